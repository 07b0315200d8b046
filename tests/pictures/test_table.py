"""The table in docs/upscaling.md: what becomes of everything a picture carries."""

import re
import struct
from importlib.util import find_spec

import numpy as np
import pytest
import pyvips
from helpers import ROOT
from picture_files import (
    DISPLAY_P3,
    IIM,
    MAKER_NOTE,
    PQ,
    XMP,
    chunks_of,
    cicp_chunk,
    exif_block,
    gamma_chunks,
    jxl_file,
    nclx_of,
    patches,
    png,
    srgb_profile,
    upscaled,
    with_segments,
)
from PIL import Image, IptcImagePlugin

from aethernet.pictures.colour import StatedColour, profile_of
from aethernet.pictures.files import FORMATS, READABLE, read_picture

SUFFIXES = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "WebP": ".webp",
    "TIFF": ".tif",
    "AVIF": ".avif",
    "BMP": ".bmp",
    "JPEG XL": ".jxl",
}
TIME = (b"tIME", struct.pack(">H5B", 2020, 1, 2, 3, 4, 5))
LEVELS = (b"cLLI", struct.pack(">II", 10_000_000, 4_000_000))


def table():
    """The cells: (row, format, cell)."""
    text = (ROOT / "docs/upscaling.md").read_text("utf-8")
    rows = re.findall(r"^\| (what the source carries .*) \|$", text, re.MULTILINE)
    (head,) = [row.split(" | ") for row in rows]
    body = text.split(f"| {rows[0]} |\n")[1].split("\n\n")[0].splitlines()[1:]
    for line in body:
        row, *cells = line.strip("| ").split(" | ")
        yield from (
            (row, kind, cell) for kind, cell in zip(head[1:], cells, strict=True)
        )


CELLS = list(table())


def with_exif(folder, **options):
    return with_segments(folder / "in.jpg", (0xE1, b"Exif\0\0" + exif_block(**options)))


def saved(path, **options):
    Image.fromarray(patches()).save(path, **options)
    return path


def gray_with_profile(folder):
    profile = profile_of(StatedColour(gamma=55556), gray=True)
    Image.fromarray(patches()[..., 0]).save(folder / "in.tif", icc_profile=profile)
    return folder / "in.tif"


def with_iptc(folder):
    block = (
        b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IIM)) + IIM + bytes(len(IIM) % 2)
    )
    return with_segments(folder / "in.jpg", (0xED, b"Photoshop 3.0\0" + block))


def with_guides(folder):
    block = b"8BIM" + struct.pack(">H2xI", 0x408, 16) + bytes(16)
    return with_segments(folder / "in.jpg", (0xED, b"Photoshop 3.0\0" + block))


def with_a_subject(folder):
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({40962: 80, 40963: 16, 41492: (10, 3)})
    return saved(folder / "in.jpg", exif=exif)


def with_gain_map(folder):
    path = with_segments(folder / "in.jpg")
    name = b"http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version='1' "
    name += b"xmlns:hdrgm='http://ns.adobe.com/hdr-gain-map/1.0/'/>"
    gain_map = with_segments(folder / "map.jpg", (0xE1, name)).read_bytes()
    path.write_bytes(path.read_bytes() + gain_map)
    return path


def with_second_picture(folder):
    path = with_segments(folder / "in.jpg")
    path.write_bytes(path.read_bytes() + path.read_bytes())
    return path


def premultiplied(folder):
    pixels = np.dstack((patches() // 2, np.full((16, 80), 128, np.uint8)))
    path = folder / "in.tif"
    Image.fromarray(pixels).save(path)
    content = bytearray(path.read_bytes())
    entry = content.index(struct.pack("<HHI", 338, 3, 1))
    struct.pack_into("<H", content, entry + 8, 1)
    path.write_bytes(content)
    return path


def of_unknown_kind(folder):
    path = premultiplied(folder)
    content = path.read_bytes()
    kind = struct.pack("<HHI", 338, 3, 1)
    path.write_bytes(content.replace(kind + b"\1", kind + b"\0"))
    return path


def in_cmyk(folder):
    Image.fromarray(patches()).convert("CMYK").save(folder / "in.tif")
    return folder / "in.tif"


def frames(path):
    one, other = (Image.fromarray(patches() // n) for n in (1, 2))
    one.save(path, save_all=True, append_images=[other])
    return path


SOURCES = {
    "ICC profile": lambda f: saved(f / "in.jpg", icc_profile=srgb_profile()),
    "ICC profile for gray": gray_with_profile,
    "code points (cICP, nclx) of SDR": lambda f: png(
        f / "in.png", cicp_chunk(*DISPLAY_P3)
    ),
    "code points of HDR": lambda f: png(f / "in.png", cicp_chunk(*PQ)),
    "light levels": lambda f: png(f / "in.png", cicp_chunk(*PQ), LEVELS),
    "gamma and primaries": lambda f: png(f / "in.png", *gamma_chunks()),
    "EXIF": with_exif,
    "MakerNote": lambda f: with_exif(f, maker_note=True),
    "numbers of pixels in EXIF": with_a_subject,
    "guides and slices": with_guides,
    "orientation": lambda f: saved(f / "in.tif", tiffinfo={274: 6}),
    "thumbnail in EXIF": lambda f: with_exif(
        f, thumbnail=pyvips.Image.black(16, 12).jpegsave_buffer()
    ),
    "XMP": lambda f: saved(f / "in.jpg", xmp=XMP),
    "IPTC": with_iptc,
    "texts of PNG with a place in EXIF": lambda f: png(
        f / "in.png", (b"tEXt", b"Author\0me"), (b"tEXt", b"parameters\0Steps: 20")
    ),
    "other texts of PNG": lambda f: png(f / "in.png", (b"tEXt", b"prompt\0{}")),
    "time of the last change": lambda f: png(f / "in.png", TIME),
    "shape of pixels": lambda f: png(
        f / "in.png", (b"pHYs", struct.pack(">IIB", 1, 2, 0))
    ),
    "comments of JPEG": lambda f: with_segments(f / "in.jpg", (0xFE, b"by hand")),
    "resolution": lambda f: saved(f / "in.png", dpi=(300, 300)),
    "gain map": with_gain_map,
    "more pictures in a JPEG": with_second_picture,
    "extra channels": lambda f: jxl_file(f / "in.jxl", "depth"),
    "premultiplied alpha": premultiplied,
    "values in CMYK": in_cmyk,
    "alpha of an unknown kind": of_unknown_kind,
    "16 bits": lambda f: png(f / "in.png", pixels=patches(dtype=np.uint16)),
    "several pages": lambda f: frames(f / "in.tif"),
    "animation": lambda f: frames(f / "in.webp"),
}

NAMED = {
    "ICC profile": "the colour profile",
    "ICC profile for gray": "the colour profile",
    "code points (cICP, nclx) of SDR": "the colour space",
    "code points of HDR": "the colour space (BT.2020, PQ)",
    "light levels": "the light levels",
    "gamma and primaries": "the colour space (gamma",
    "EXIF": "EXIF",
    "MakerNote": "MakerNote",
    "numbers of pixels in EXIF": "EXIF",
    "guides and slices": "Photoshop's guides and slices",
    "thumbnail in EXIF": ("the thumbnail", "EXIF"),
    "XMP": "XMP",
    "IPTC": "IPTC",
    "texts of PNG with a place in EXIF": "the texts Author, parameters",
    "other texts of PNG": "the text prompt",
    "time of the last change": "the time of the last change",
    "shape of pixels": "the shape of the pixels (2:1)",
    "comments of JPEG": "the text Comment",
    "gain map": "the gain map",
    "more pictures in a JPEG": "1 more picture",
    "extra channels": "the depth map",
    "values in CMYK": "the values in CMYK (now sRGB)",
    "alpha of an unknown kind": ("the kind of the last channel", "no transparency"),
    "16 bits": "of 16 bits per value",
    "several pages": "pages",
    "animation": "animated",
    "premultiplied alpha": "no transparency",
}


def comment_in(path):
    """The user's comment in EXIF."""
    stored = exif_of(path).get_ifd(0x8769).get(37510, b"")
    return stored.removeprefix(b"UNICODE\0").decode("utf-16-be")


def texts_in(path):
    if path.suffix == ".png":
        return opened(path).text == {"Author": "me", "parameters": "Steps: 20"}
    return (exif_of(path)[315], comment_in(path)) == ("me", "Steps: 20")


def content_of(path):
    return path.read_bytes()


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


def exif_of(path):
    return opened(path).getexif()


def profile_in(path):
    return opened(path).info.get("icc_profile")


def stated_code_points(path, wanted):
    if path.suffix == ".png":
        return cicp_chunk(*wanted) in chunks_of(path)
    return (nclx_of(path) or (0, 0))[:2] == wanted


def levels_in(path):
    if path.suffix == ".png":
        return LEVELS in chunks_of(path)
    return b"clli" + struct.pack(">HH", 1000, 400) in content_of(path)


def iptc_in(path):
    if path.suffix == ".png":
        return b"Raw profile type iptc" in content_of(path)
    return IptcImagePlugin.getiptcinfo(opened(path))[2, 120] == b"Written below"


def resolution_in(path):
    image = opened(path)
    if path.suffix in (".webp", ".avif", ".jxl"):
        return image.getexif()[282] == 300
    return image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def shape_in(path):
    if path.suffix == ".png":
        return (b"pHYs", struct.pack(">IIB", 1, 2, 0)) in chunks_of(path)
    image = opened(path)
    if path.suffix == ".jpg":
        return (image.info["jfif_density"], image.info["jfif_unit"]) == ((1, 2), 0)
    return tuple(image.tag_v2[n] for n in (282, 283, 296)) == (1, 2, 1)


def thumbnail_in(path):
    if path.suffix == ".jxl":
        return b"\xff\xd8\xff" in exif_of(path).tobytes() or b"\xff\xd8" in content_of(
            path
        )
    image = pyvips.Image.new_from_file(str(path))
    return bool(image.get_typeof("jpeg-thumbnail-data"))


def straight(path):
    pixels = read_picture(path).pixels.astype(int)
    return abs(pixels[8, 8, 3] - 128) <= 3 and abs(pixels[8, 8, 0] - 230) <= 8


def xmp_in(path):
    return XMP in content_of(path)


FOUND = {
    "ICC profile": lambda p: profile_in(p) == srgb_profile(),
    "ICC profile for gray": lambda p: profile_in(p) is not None,
    "code points (cICP, nclx) of SDR": lambda p: (
        stated_code_points(p, DISPLAY_P3)
        or profile_in(p) == profile_of(StatedColour(cicp=DISPLAY_P3), gray=False)
    ),
    "code points of HDR": lambda p: stated_code_points(p, PQ),
    "light levels": levels_in,
    "gamma and primaries": lambda p: (
        profile_in(p) is not None or gamma_chunks()[0] in chunks_of(p)
    ),
    "EXIF": lambda p: exif_of(p)[0x010F] == "Camera maker",
    "MakerNote": lambda p: MAKER_NOTE in content_of(p),
    "numbers of pixels in EXIF": lambda p: exif_of(p).get_ifd(0x8769)[41492] == (20, 6),
    "orientation": lambda p: (
        exif_of(p).get(0x0112, 1) == 1 and opened(p).size == (32, 160)
    ),
    "thumbnail in EXIF": thumbnail_in,
    "XMP": xmp_in,
    "IPTC": iptc_in,
    "texts of PNG with a place in EXIF": texts_in,
    "other texts of PNG": lambda p: opened(p).text == {"prompt": "{}"},
    "time of the last change": lambda p: TIME in chunks_of(p),
    "comments of JPEG": lambda p: (
        b"by hand" in content_of(p) or "by hand" in comment_in(p)
    ),
    "resolution": resolution_in,
    "shape of pixels": shape_in,
    "gain map": lambda p: b"hdr-gain-map" in content_of(p),
    "premultiplied alpha": straight,
    "16 bits": lambda p: read_picture(p).pixels.dtype == np.uint16,
    "animation": lambda p: opened(p).n_frames == 2,
}


def of(table, row):
    """The entry of the key with which the row's name begins."""
    keys = [
        key for key in table if row == key or row.startswith((f"{key} ", f"{key},"))
    ]
    return table[max(keys, key=len)]


@pytest.mark.parametrize(("row", "kind", "cell"), CELLS)
def test_each_cell_is_true(tmp_path, row, kind, cell, caplog, capsys):
    if "JPEG XL" in row + kind and not find_spec("pillow_jxl"):
        pytest.skip("needs the extra formats (pillow_jxl)")
    source, target = of(SOURCES, row)(tmp_path), tmp_path / f"out{SUFFIXES[kind]}"
    assert read_is_known(source)
    code = upscaled(source, target)
    names = of(NAMED, row) if cell in ("refused", "warned") else ()
    names = (names,) if isinstance(names, str) else names
    if cell == "refused":
        assert code == 1
        error = capsys.readouterr().err
        assert any(name in error for name in names)
        assert not target.exists()
        return
    assert code == 0
    if kind == "JPEG XL":
        import pillow_jxl  # noqa: F401  # teaches Pillow to read it
    if cell == "warned":
        assert any(name in caplog.text for name in names)
        assert caplog.text.count("left out") == 1
        return
    assert cell in ("carried", "converted")
    assert of(FOUND, row)(target), row
    assert "left out" not in caplog.text


def read_is_known(path):
    return path.suffix in READABLE and path.stat().st_size > 0


def test_the_table_has_every_format_and_every_kind_of_source():
    assert {kind for _, kind, _ in CELLS} == {each.name for each in FORMATS.values()}
    rows = {row for row, _, _ in CELLS}
    assert len(rows) == len(SOURCES)
    assert {cell for _, _, cell in CELLS} == {
        "carried",
        "converted",
        "warned",
        "refused",
    }
