"""What a file says twice, in a damaged way, or in a way that few programs know."""

import struct
import sys
import zlib

import numpy as np
import pytest
import pyvips
from picture_files import (
    XMP,
    chunks_of,
    exif_block,
    needs_jxl,
    patches,
    png,
    upscaled,
    with_segments,
)
from PIL import Image

from aethernet.pictures import plugins


def as_text(block):
    """An EXIF block as ImageMagick puts it into a PNG file."""
    content = b"Exif\0\0" + block
    digits = f"\nexif\n{len(content):8}\n{content.hex()}\n".encode()
    return b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(digits)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_second_exif_block_is_named(tmp_path, suffix, caplog):
    block = exif_block()
    second = as_text(exif_block(maker_note=True))
    source = png(tmp_path / "in.png", (b"eXIf", block), second)
    target = tmp_path / f"out{suffix}"
    assert upscaled(source, target) == 0
    named = "left out another EXIF block in the text Raw profile type exif\n"
    assert named in caplog.text
    with Image.open(target) as image:
        assert image.getexif()[0x010F] == "Camera maker"


def test_the_same_exif_block_twice_is_one(tmp_path, caplog):
    block = exif_block()
    source = png(tmp_path / "in.png", (b"eXIf", block), as_text(block))
    assert upscaled(source, tmp_path / "out.png") == 0
    assert "left out" not in caplog.text
    kinds = [kind for kind, _ in chunks_of(tmp_path / "out.png")]
    assert (kinds.count(b"eXIf"), kinds.count(b"zTXt")) == (1, 0)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
def test_damaged_exif_is_named(tmp_path, suffix, caplog):
    source = tmp_path / f"in{suffix}"
    if suffix == ".png":
        png(source, (b"eXIf", b"no block"))
    else:
        Image.fromarray(patches()).save(source, exif=b"Exif\0\0no block")
    assert upscaled(source, tmp_path / "out.png") == 0
    assert "left out EXIF, which is damaged\n" in caplog.text


@needs_jxl()
@pytest.mark.parametrize("before", [b"", bytes(4)])
def test_exif_of_jpeg_xl_with_and_without_an_offset(tmp_path, before, caplog):
    import pillow_jxl  # noqa: F401  # writes what it is given

    source = tmp_path / "in.jxl"
    Image.fromarray(patches()).save(source, exif=before + exif_block())
    assert upscaled(source, tmp_path / "out.png") == 0
    with Image.open(tmp_path / "out.png") as image:
        assert image.getexif()[0x010F] == "Camera maker"
    assert "left out" not in caplog.text


def frame_control(number):
    data = struct.pack(">5I2H2B", number, 80, 16, 0, 0, 1, 10, 0, 0)
    return b"fcTL", data


def test_an_animation_of_one_frame_is_a_still_picture(tmp_path):
    one = (b"acTL", struct.pack(">2I", 1, 0))
    source = png(tmp_path / "in.png", one, frame_control(0))
    assert upscaled(source, tmp_path / "out.jpg") == 0
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.size == (160, 32)


def test_a_picture_before_an_animation_is_none(tmp_path, capsys):
    one = (b"acTL", struct.pack(">2I", 1, 0))
    assert upscaled(png(tmp_path / "in.png", one), tmp_path / "out.jpg") == 1
    assert "The picture is animated" in capsys.readouterr().err


def test_lab_becomes_srgb_with_a_warning(tmp_path, caplog):
    gray = np.zeros((8, 8, 3), np.int16)
    gray[..., 0] = 16384  # L = 50
    image = pyvips.Image.new_from_array(gray, interpretation="labs")
    image.tiffsave(str(tmp_path / "in.tif"))
    assert upscaled(tmp_path / "in.tif", tmp_path / "out.png") == 0
    assert "left out the values in Lab (now sRGB)\n" in caplog.text
    with Image.open(tmp_path / "out.png") as made:
        assert np.abs(np.asarray(made.convert("L"), int) - 119).max() <= 1


def test_two_packets_of_xmp(tmp_path, caplog):
    start = b"XML:com.adobe.xmp" + bytes(5)
    packets = [(b"iTXt", start + XMP), (b"iTXt", start + XMP.replace(b"%s", b"b"))]
    assert upscaled(png(tmp_path / "in.png", *packets), tmp_path / "out.png") == 0
    assert "left out another XMP packet\n" in caplog.text


@pytest.mark.parametrize(("kind", "named"), [(0, True), (1, False)])
def test_pictures_beneath_the_first_one_of_a_tiff(tmp_path, kind, named, caplog):
    source = tmp_path / "in.tif"
    Image.fromarray(patches()).save(source, tiffinfo={330: 0})
    content = bytearray(source.read_bytes())
    entry = content.index(struct.pack("<H", 330))
    beneath = struct.pack("<HHHIII", 1, 254, 4, 1, kind, 0)
    struct.pack_into("<HII", content, entry + 2, 4, 1, len(content))
    source.write_bytes(content + beneath)
    assert upscaled(source, tmp_path / "out.png") == 0
    assert ("left out 1 more picture in the file\n" in caplog.text) == named
    assert bool(caplog.text) == named


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        (b"pixi", b"abcd", "the property abcd"),
        (b"rdf+xml", b"xyz+xml", "data of the type application/xyz+xml"),
        (b"", b"\0\0\0\x18uuid" + bytes(16), "the box uuid"),
        (b"", b"\0\0\0\x18mpvd" + bytes(16), "a film"),
        (b"", b"\0\0\0\x18free" + bytes(16), ""),
    ],
)
def test_what_heif_holds_besides(tmp_path, before, after, name, caplog):
    source = tmp_path / "in.avif"
    Image.fromarray(patches()).save(source, exif=exif_block(), xmp=XMP)
    content = source.read_bytes()
    if before:
        assert content.count(before) == 1
        source.write_bytes(content.replace(before, after))
    else:
        source.write_bytes(content + after)
    assert upscaled(source, tmp_path / "out.png") == 0
    assert (f"left out {name}\n" in caplog.text) == bool(name)
    assert bool(caplog.text) == bool(name)


def test_the_shape_of_pixels_of_avif(tmp_path):
    source = tmp_path / "in.avif"
    Image.fromarray(patches()).save(source)
    content = source.read_bytes()
    start = content.index(b"pixi") - 4
    size = int.from_bytes(content[start : start + 4], "big")
    assert size == 16  # as much as the box that says it
    box = struct.pack(">I4sII", 16, b"pasp", 2, 1)
    source.write_bytes(content[:start] + box + content[start + size :])
    assert upscaled(source, tmp_path / "out.png") == 0
    assert (b"pHYs", struct.pack(">IIB", 1, 2, 0)) in chunks_of(tmp_path / "out.png")


NAMESPACE = b"http://ns.adobe.com/xap/1.0/\0"


@pytest.mark.parametrize(
    ("segments", "name"),
    [
        ([NAMESPACE + XMP, NAMESPACE + b"<x/>"], "another XMP packet"),
        (
            [b"Exif\0\0" + exif_block(), b"Exif\0\0" + exif_block(maker_note=True)],
            "another EXIF block",
        ),
        (
            [b"http://ns.adobe.com/xmp/extension/\0" + bytes(40)],
            "extended XMP without its beginning",
        ),
        ([b"http://example.org/\0abc"], "the segment APP1 (http://examp)"),
        ([NAMESPACE + XMP, NAMESPACE + XMP], ""),
    ],
)
def test_segments_of_jpeg(tmp_path, segments, name, caplog):
    path = tmp_path / "in.jpg"
    source = with_segments(path, *((0xE1, data) for data in segments))
    assert upscaled(source, tmp_path / "out.jpg") == 0
    assert (f"left out {name}\n" in caplog.text) == bool(name)
    assert bool(caplog.text) == bool(name)
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.info.get("xmp") in (None, XMP)


@pytest.mark.parametrize("suffix", [".gif", ".bmp", ".jpg", ".png"])
@pytest.mark.parametrize("count", [1000, 40])
def test_bytes_behind_a_picture(tmp_path, suffix, count, caplog):
    source = tmp_path / f"in{suffix}"
    Image.fromarray(patches()).save(source)
    source.write_bytes(source.read_bytes() + b"x" * count)
    assert upscaled(source, tmp_path / "out.png") == 0
    named = count == 1000 or suffix == ".png"
    assert (f"left out {count} bytes behind the picture" in caplog.text) == named
    assert bool(caplog.text) == named


@needs_jxl()
@pytest.mark.parametrize("turn", [1, 6])
def test_a_jpeg_inside_jpeg_xl_keeps_what_it_carries(tmp_path, turn, caplog):
    import pillow_jxl  # noqa: F401

    made = (0xE1, b"Exif\0\0" + exif_block(turn)), (0xE1, NAMESPACE + XMP)
    with_segments(tmp_path / "in.jpg", *made, (0xFE, b"by hand"))
    with Image.open(tmp_path / "in.jpg") as image:
        image.save(tmp_path / "in.jxl", lossless_jpeg=True)
        size = image.size[:: 1 if turn == 1 else -1]
    assert upscaled(tmp_path / "in.jxl", tmp_path / "out.jpg") == 0
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.size == (2 * size[0], 2 * size[1])
        assert image.getexif()[0x010F] == "Camera maker"
        assert image.getexif()[0x0112] == 1
        assert (image.info["xmp"], image.info["comment"]) == (XMP, b"by hand")
    assert "left out" not in caplog.text


def with_packed_boxes(path):
    import pillow_jxl  # noqa: F401

    options = {"exif": exif_block(), "xmp": XMP, "compress_metadata": True}
    Image.fromarray(patches()).save(path, **options)
    assert b"brobExif" in path.read_bytes()


@needs_jxl()
def test_compressed_boxes_of_jpeg_xl_are_kept(tmp_path, caplog):
    with_packed_boxes(tmp_path / "in.jxl")
    assert upscaled(tmp_path / "in.jxl", tmp_path / "out.png") == 0
    with Image.open(tmp_path / "out.png") as image:
        assert image.getexif()[0x010F] == "Camera maker"
        assert image.info["xmp"] == XMP
    assert "left out" not in caplog.text


@needs_jxl()
@pytest.mark.parametrize("reason", ["too long", "no library"])
def test_compressed_boxes_that_cannot_be_read_are_named(
    tmp_path, caplog, monkeypatch, reason
):
    path = tmp_path / "in.jxl"
    with_packed_boxes(path)
    if reason == "too long":
        monkeypatch.setattr(plugins, "_LONGEST_BOX", 1)
        longer = pytest.importorskip("brotli").compress(bytes(2**20))
        content = path.read_bytes()
        for kind in (b"brobExif", b"brobxml "):
            at = content.index(kind) - 4
            size = int.from_bytes(content[at : at + 4], "big")
            box = (len(longer) + 12).to_bytes(4, "big") + kind + longer
            content = content[:at] + box + content[at + size :]
        path.write_bytes(content)
    else:
        monkeypatch.setitem(sys.modules, "brotli", None)
    assert upscaled(path, tmp_path / "out.png") == 0
    assert "left out EXIF (compressed) and XMP (compressed)\n" in caplog.text
