"""The resolution that a file states goes into the output, and no other."""

import struct

import pytest
from picture_files import chunks_of, exif_block, patches, png, upscaled
from PIL import Image

from aethernet.pictures.files import PictureReader

SUFFIXES = (".png", ".jpg", ".tif", ".bmp", ".webp", ".avif")


def saved(path, **options):
    Image.fromarray(patches()).save(path, **options)
    return path


def stated(path):
    """The bytes in which a file states its resolution, and what they say."""
    if path.suffix in (".png", ".apng"):
        return [struct.unpack(">IIB", d) for k, d in chunks_of(path) if k == b"pHYs"]
    content = path.read_bytes()
    if path.suffix == ".jpg":
        assert content[2:11] == b"\xff\xe0\0\x10JFIF\0"
        unit, across, down = struct.unpack_from(">BHH", content, 13)
        return [(across, down, unit)]
    if path.suffix == ".bmp":
        return [struct.unpack_from("<2i", content, 38)]
    with Image.open(path) as image:
        tags = image.tag_v2 if path.suffix == ".tif" else image.getexif()
        return [tuple(tags[n] for n in (282, 283, 296) if n in tags)]


NONE = {
    ".png": [],
    ".jpg": [(1, 1, 0)],
    ".tif": [(1, 1, 1)],
    ".bmp": [(0, 0)],
    ".webp": [()],
    ".avif": [()],
}


def without(folder, kind):
    """A picture of that format, or kind of file, that states no resolution."""
    if kind == "apng":
        frames = [Image.fromarray(patches() // n) for n in (1, 2)]
        frames[0].save(folder / "in.png", save_all=True, append_images=frames[1:])
        return folder / "in.png"
    path = saved(folder / f"in{kind}")
    if kind == ".bmp":  # Pillow states 96 dpi
        content = bytearray(path.read_bytes())
        content[38:46] = bytes(8)
        path.write_bytes(content)
    if kind == ".png":
        assert not stated(path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [*SUFFIXES, ".gif"])
def test_none_is_made_up(tmp_path, kind, suffix):
    target = tmp_path / f"out{suffix}"
    assert upscaled(without(tmp_path, kind), target) == 0
    assert stated(target) == NONE[suffix]


def test_none_is_made_up_for_an_animation(tmp_path):
    assert upscaled(without(tmp_path, "apng"), tmp_path / "out.apng") == 0
    assert stated(tmp_path / "out.apng") == []


# As PNG and BMP state 72 dpi; as others do.
AT_72 = {
    ".png": [(2835, 2835, 1)],
    ".jpg": [(72, 72, 1)],
    ".tif": [(72, 72, 2)],
    ".bmp": [(2835, 2835)],
    ".webp": [(72, 72, 2)],
    ".avif": [(72, 72, 2)],
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [".png", ".jpg", ".tif", ".bmp"])
def test_that_of_72_dpi_is_one_too(tmp_path, kind, suffix, caplog):
    source = saved(tmp_path / f"in{kind}", dpi=(72, 72))
    target = tmp_path / f"out{suffix}"
    assert upscaled(source, target) == 0
    (found,) = stated(target)
    assert found == pytest.approx(AT_72[suffix][0], abs=0.01)
    assert "left out" not in caplog.text


def test_that_of_an_animation(tmp_path):
    frames = [Image.fromarray(patches() // n) for n in (1, 2)]
    options = {"save_all": True, "append_images": frames[1:], "dpi": (300, 300)}
    frames[0].save(tmp_path / "in.png", **options)
    assert upscaled(tmp_path / "in.png", tmp_path / "out.apng") == 0
    assert stated(tmp_path / "out.apng") == [(11811, 11811, 1)]


@pytest.mark.parametrize("kind", [".webp", ".avif", ".jpg", ".png"])
def test_that_of_exif(tmp_path, kind):
    exif = Image.Exif()
    exif[282], exif[283], exif[296] = 100.0, 100.0, 3
    source = saved(tmp_path / f"in{kind}", exif=exif)
    assert upscaled(source, tmp_path / "out.png") == 0
    assert stated(tmp_path / "out.png") == [(10_000, 10_000, 1)]


def test_exif_without_one_states_none(tmp_path):
    source = saved(tmp_path / "in.webp", exif=exif_block())
    assert upscaled(source, tmp_path / "out.png") == 0
    assert stated(tmp_path / "out.png") == []


def test_across_and_down_change_places_with_the_picture(tmp_path):
    """A fax: 204 dots per inch across, 98 down, on its side."""
    source = saved(tmp_path / "in.tif", dpi=(204, 98), tiffinfo={274: 6})
    assert upscaled(source, tmp_path / "out.jpg") == 0
    assert stated(tmp_path / "out.jpg") == [(98, 204, 1)]


@pytest.mark.parametrize(
    ("suffix", "wanted"),
    [(".png", (2, 4, 0)), (".jpg", (1, 2, 0)), (".tif", (2, 4, 1))],
)
def test_the_shape_of_pixels_without_a_unit(tmp_path, suffix, wanted, caplog):
    source = png(tmp_path / "in.png", (b"pHYs", struct.pack(">IIB", 2, 4, 0)))
    target = tmp_path / f"out{suffix}"
    assert upscaled(source, target) == 0
    assert stated(target) == [wanted]
    assert "left out" not in caplog.text
    assert upscaled(target, tmp_path / "again.png") == 0
    ((across, down, unit),) = stated(tmp_path / "again.png")
    assert (down, unit) == (2 * across, 0)


def test_one_that_the_output_cannot_hold_is_named(tmp_path, caplog):
    source = png(tmp_path / "in.png", (b"pHYs", struct.pack(">IIB", 9, 9, 1)))
    assert upscaled(source, tmp_path / "out.jpg") == 0
    assert stated(tmp_path / "out.jpg") == [(1, 1, 0)]
    assert "the resolution" in caplog.text


def test_one_that_makes_no_sense_is_none(tmp_path):
    source = png(tmp_path / "in.png", (b"pHYs", struct.pack(">IIB", 0, 0, 1)))
    assert PictureReader(source).header.metadata.resolution is None
