"""Pictures that carry things beside their pixels, made byte by byte, and their readers.

The readers here are others than ours: Pillow, or a few lines that look at the bytes.
"""

import base64
import functools
import io
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import pyvips
from helpers import SHARED, repeating_onnx
from PIL import Image, ImageCms, ImageOps

from aethernet.commands.main import main

CASES = SHARED / "cases"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    b'rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="%s"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
MAKER_NOTE = b"MAKER\0\x01\x02" + bytes(range(256)) * 4
IIM = b"\x1c\x02\x78\x00\x0dWritten below"
COLOURS = ((230, 40, 30), (40, 200, 60), (20, 60, 220), (128, 128, 128), (64, 96, 30))
DISPLAY_P3, PQ = (12, 13), (9, 16)


def shared_case(name):
    """A file of ../shared/cases, or a skipped test."""
    path = CASES / name
    if not path.exists():
        pytest.skip(f"needs ../shared/cases/{name}")
    return path


def needs_jxl():
    return pytest.mark.skipif(
        not find_spec("pillow_jxl"), reason="needs the extra formats (pillow_jxl)"
    )


def upscaled(source, target, *flags):
    """Run `aethernet upscale` with a model that doubles pixels; returns the code."""
    model = Path(target).parent / ".double.onnx"
    if not model.exists():
        repeating_onnx(model, 2)
    words = ["upscale", source, "-o", target, "--model", model, *flags]
    words += ["--runtime", "onnxruntime", "--device", "cpu"]
    return main([*map(str, words), "--precision", "float32"])


def patches(side=16, bands=3, dtype=np.uint8):
    """Squares of one colour each, in a row: `(side, 5 * side, bands)`."""
    row = np.array(COLOURS, np.float64)[:, :bands]
    pixels = row.repeat(side, 0)[np.newaxis].repeat(side, 0)
    return np.rint(pixels / 255 * np.iinfo(dtype).max).astype(dtype)


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(path, *chunks, pixels=None):
    """A PNG file with these chunks, (kind, data) each, behind IHDR."""
    pixels = patches() if pixels is None else pixels
    depth = 8 * pixels.dtype.itemsize
    bands = pixels.shape[2]
    head = struct.pack(">IIBB3x", *pixels.shape[1::-1], depth, (0, 4, 2, 6)[bands - 1])
    rows = pixels.astype(f">u{depth // 8}").reshape(len(pixels), -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + b"".join(chunk(*each) for each in chunks)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )
    return path


def with_segments(path, *added):
    """A JPEG file with these segments, (marker, content) each."""
    Image.fromarray(patches()).save(path, "JPEG")
    content = path.read_bytes()
    made = b"".join(
        struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data
        for marker, data in added
    )
    path.write_bytes(content[:20] + made + content[20:])
    return path


def chunks_of(path):
    """The chunks of a PNG file: a list of (kind, data)."""
    content, place, found = path.read_bytes(), 8, []
    while place < len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        data = content[place + 8 : place + 8 + size]
        stored = struct.unpack_from(">I", content, place + 8 + size)[0]
        assert zlib.crc32(kind + data) == stored
        found.append((kind, data))
        place += 12 + size
    return found


def nclx_of(path):
    """Primaries, transfer and matrix in an AVIF file, or None."""
    content = path.read_bytes()
    place = content.find(b"colrnclx")
    return struct.unpack_from(">3H", content, place + 8) if place > 0 else None


def gamma_chunks(gamma=100_000):
    return ((b"gAMA", struct.pack(">I", gamma)),)


def cicp_chunk(primaries, transfer):
    return (b"cICP", bytes((primaries, transfer, 0, 1)))


def exif_block(orientation=1, maker_note=False, thumbnail=b""):
    """An EXIF block, big-endian, with a camera's name."""
    exif = Image.Exif()
    exif[0x010F] = "Camera maker"
    exif[0x0112] = orientation
    if maker_note:
        exif.get_ifd(0x8769)[0x927C] = MAKER_NOTE
    if not thumbnail:
        return exif.tobytes().removeprefix(b"Exif\0\0")
    # A second directory with the thumbnail, which ends the block.
    block = bytearray(exif.tobytes().removeprefix(b"Exif\0\0"))
    (count,) = struct.unpack_from(">H", block, 8)
    field, start = 8 + 2 + 12 * count, len(block)
    struct.pack_into(">I", block, field, start)
    place = start + 2 + 2 * 12 + 4
    block += struct.pack(">H", 2)
    block += struct.pack(">HHII", 513, 4, 1, place)
    block += struct.pack(">HHIII", 514, 4, 1, len(thumbnail), 0)
    return bytes(block) + thumbnail


@functools.cache
def srgb_profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def shown(image):
    """What a colour-managed reader shows: sRGB pixels by the file's ICC profile."""
    profile = image.info.get("icc_profile")
    rgb = image.convert("RGB") if image.mode != "L" else image
    if profile is None:
        return np.asarray(rgb.convert("RGB"), float)
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    made = ImageCms.profileToProfile(
        rgb, source, target, ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB"
    )
    return np.asarray(made, float)


def centres(pixels):
    """The mean colour in the middle of each of the patches in a row."""
    count = len(COLOURS)
    height, width = pixels.shape[:2]
    side = width // count
    middle = slice(height // 4, 3 * height // 4)
    return np.array(
        [
            pixels[middle, i * side + side // 4 : (i + 1) * side - side // 4].mean(
                axis=(0, 1)
            )
            for i in range(count)
        ]
    )


def srgb_encoded(linear):
    """Linear light, 0..1, as values 0..255 of sRGB."""
    linear = np.clip(linear, 0, 1)
    curve = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    return 255 * curve


def _box(kind, *parts, full=None):
    """A box of an AVIF file; `full` is its version and flags, if it has any."""
    body = b"".join(parts)
    if full is not None:
        body = struct.pack(">I", full) + body
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _boxes_in(data, start=0):
    """The first box of each kind."""
    found = {}
    while start + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        found.setdefault(kind, data[start : start + size])
        start += size
    return found


def _avif_tiles(pixels, side):
    """The encoded tiles of a picture, and what AVIF says of each, by kind."""
    tiles, properties = [], {}
    for y, x in np.ndindex(len(pixels) // side, pixels.shape[1] // side):
        part = pixels[y * side : (y + 1) * side, x * side : (x + 1) * side]
        image = pyvips.Image.new_from_array(np.ascontiguousarray(part))
        options = {"compression": "av1", "subsample_mode": "off", "Q": 90}
        top = _boxes_in(image.heifsave_buffer(**options, keep="none"))
        meta = _boxes_in(top[b"meta"], 12)
        properties = _boxes_in(_boxes_in(meta[b"iprp"], 8)[b"ipco"], 8)
        tiles.append(top[b"mdat"][8:])
    return tiles, properties


def avif_grid(path, pixels, side, size=None):
    """An AVIF file whose picture is a grid of square tiles, as cameras write it.

    Args:
        path: of the file.
        pixels: cut into tiles.
        side: of a tile, at least 64.
        size: width and height that the file states; None: those of the pixels.
    """
    height, width = pixels.shape[:2]
    tiles, properties = _avif_tiles(pixels, side)
    names = range(2, len(tiles) + 2)
    kept = [properties[kind] for kind in (b"av1C", b"pixi") if kind in properties]

    def sides(*numbers):
        return _box(b"ispe", struct.pack(">II", *numbers), full=0)

    def entry(name, kind, flags):
        head = struct.pack(">HH4sx", name, 0, kind)
        return _box(b"infe", head, full=0x02000000 + flags)

    def of(name, *numbers):
        return struct.pack(">HB", name, len(numbers)) + bytes(numbers)

    size = size or (width, height)
    container = _box(b"ipco", sides(*size), sides(side, side), *kept)
    whole, each = (1, 4), (2, 0x83, 4)
    linked = of(1, *whole) + b"".join(of(name, *each) for name in names)
    count = struct.pack(">I", len(tiles) + 1)
    entries = [entry(1, b"grid", 0), *(entry(name, b"av01", 1) for name in names)]
    used = struct.pack(f">HH{len(tiles)}H", 1, len(tiles), *names)
    grid = (height // side - 1, width // side - 1, *size)

    def meta_at(place):
        table = struct.pack(">4H2I", 1, 1, 0, 1, 0, 8)
        for name, data in zip(names, tiles, strict=True):
            table += struct.pack(">4H2I", name, 0, 0, 1, place, len(data))
            place += len(data)
        return _box(
            b"meta",
            _box(b"hdlr", struct.pack(">4x4s13x", b"pict"), full=0),
            _box(b"pitm", struct.pack(">H", 1), full=0),
            _box(b"iloc", b"\x44\0", count[2:], table, full=0x01000000),
            _box(b"iinf", count[2:], *entries, full=0),
            _box(b"iref", _box(b"dimg", used), full=0),
            _box(b"iprp", container, _box(b"ipma", count, linked, full=0)),
            _box(b"idat", struct.pack(">xx2BHH", *grid)),
            full=0,
        )

    start = _box(b"ftyp", b"avif\0\0\0\0avifmif1miafMA1A")
    place = len(start) + len(meta_at(0)) + 8
    path.write_bytes(start + meta_at(place) + _box(b"mdat", *tiles))
    return path


# Orientation of EXIF -> quarter turns to the left and mirror axis of AVIF (0: top and
# bottom change places), which are applied in this order.
_TURNS = {
    2: (0, 1),
    3: (2, None),
    4: (0, 0),
    5: (1, 0),
    6: (3, None),
    7: (3, 0),
    8: (1, None),
}


def turned_animation(path, turn, frames, **options):
    """Write RGB frames with an orientation; returns them as arrays, upright."""
    if path.suffix == ".avif":
        options["quality"] = 100
    else:
        options["exif"] = exif_block(turn)
    if path.suffix == ".webp":
        options["lossless"] = True
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    if path.suffix == ".avif" and turn > 1:
        path.write_bytes(_turned_avif(path.read_bytes(), turn))
    upright = []
    for frame in frames:
        still = frame.copy()
        still.getexif()[0x0112] = turn
        upright.append(np.asarray(ImageOps.exif_transpose(still)).astype(int))
    return upright


def _turned_avif(content, turn):
    """The file with the boxes irot and imir in place of two that decoders can spare.

    Pillow 12.3 cannot write them in an animation.
    """
    quarters, axis = _TURNS[turn]
    start = content.index(b"colrnclx", content.index(b"moov")) - 4
    first = int.from_bytes(content[start : start + 4], "big")
    second = start + first
    assert content[second + 4 : second + 8] == b"ccst"
    end = second + int.from_bytes(content[second : second + 4], "big")
    made = b"\0\0\0\x09irot" + bytes([quarters]) if quarters else b""
    made += b"" if axis is None else b"\0\0\0\x09imir" + bytes([axis])
    rest = end - start - len(made)
    made += rest.to_bytes(4, "big") + b"free" + bytes(rest - 8)
    return content[:start] + made + content[end:]


# JPEG XL of 16x16 with more than a plain picture, written by libjxl's encoder.
JXL_FILES = {
    "depth": """
/wpDwATKMbQwN7cyNhAYCQgIEAB0AUsoNBbeoXBOQUFJMTICaRcdY/BurAhjGGPwEogxOBmDg1kJAAQQAgggCBBA
LCCAyiABgCoqfausMAPnVADy2wYAgkYBgIpXgKwAABgAfsa58QMcI4H4LeDmD4DnAg==""",
    "many": """
AAAADEpYTCANCocKAAAAFGZ0eXBqeGwgAAAAAGp4bCAAAAAJanhsbAoAAADRanhsY/8KQ0CrQDmGFubmVsYGEkMA
5RhamJtbGRuIDAAPAAAAAAAOA5RjaGFubmVsIDMcUI6hhbm5lbGB0AQJlGNoYW5uZWwgNXRQjqGFubmVsYHYSAgA
gAAAEAC8AUsoo7rldOLNmwe/V1jvwaogIaGg4Ag0QsTICNFGBJRyWiK8o8yYMc7MbCDiTgAggBBAAEGAAMIAAQAB
IHAgoAEAAKZxAMBqMAcACAAgvWErE5Kqhwf91zs5Acv/P/954D//v8gi//+FFv9/Gj3/Pw==""",
    "black": """
AAAADEpYTCANCocKAAAAFGZ0eXBqeGwgAAAAAGp4bCAAAAAJanhsbAoAAAB7anhsY/8KQ8AooBxDC3NzK2MDgZEI
CBAAdAFLKDQW3qFwTkFBSTEyAmkXHWPwbqwIYxhj8BKIMTgZg4NZCQAEEAIIIAgQQCwggMogAYAqKn2rrDAD51QA
8tsGAIJGAYCKV4CsAAAYAH7GufEDHCOB+C3g5g+A5wI=""",
    "layers": """
/wpDwADKMbQwN7cyNhAYEggIABVbWF6ZHADAAEsYk46DgwkR4wbEI1UxBm+NMTh7AYEADkDTuwEAAwA21gcADACo
fy5/Uomy/4CdBQiIEAAABBACwYotLK9MDgDAAEsYk46DgwkR4wbEI1UxBm+NMTh7AYEADkDTuwEAAwA21gcADACo
fy5/Uomy/4CdBQ==""",
    "alphas": """
/wpDQGEJCCAAAQB0AUsoM7YZNWfSMObgew0aNCg5GAFGpF10jMG7gzIQAzFKUik7AYAAQgABBAECCAMEEBQIwEJI
khAAlDFBAwD8DOEAAA4AEADgLR8AgGzw6A+xAmA0AWx6AKpjAFQuAA==""",
    "premultiplied": """
/wpDwADKMbQwN7cyNhCYEggIEACEAEsYixUAlIp3F3V3AREAIGYFAAAGEQIYgx0Y14sVUFaAUg==""",
}


def jxl_file(path, name):
    """Write one of `JXL_JXL_FILES`; returns its path."""
    path.write_bytes(base64.b64decode(JXL_FILES[name]))
    return path
