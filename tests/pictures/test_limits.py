"""Small pictures that would take minutes or gigabytes are refused at once."""

import struct
import sys

import numpy as np
import pytest
import pyvips
from helpers import PLAIN, SHARED, lively_file, photo, write
from limited import serving
from picture_files import avif_grid
from PIL import Image

from aethernet.errors import ImageError
from aethernet.pictures.files import PictureReader, read_picture

HOSTILE = SHARED / "cases/hostile"


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Check that `aethernet upscale` refuses a picture at once."""
    if not sys.platform.startswith("linux"):
        pytest.skip("limits processes as Linux can")
    folder = tmp_path_factory.mktemp("model")
    lively_file(folder / "m.safetensors", embed_dim=4, depths=(1,))
    model = ("--model", folder / "m.safetensors", "--runtime", PLAIN)
    plain = ("--device", "cpu", "--precision", "float32")  # nothing to compare
    with serving() as server:

        def check(path):
            words = ("upscale", path, "-o", folder / "out.png", *model)
            server.run(*words, *plain).check_refused(f"{path.name}: ")
            assert not (folder / "out.png").exists()

        yield check


def rle_rows(path, width, height):
    """A BMP compressed as RLE, of one run a row."""
    rows = b"\x01\x05\x00\x00" * height + b"\x00\x01"
    palette = bytes(1024)
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0
    )
    start = 14 + len(header) + len(palette)
    file = struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start)
    path.write_bytes(file + header + palette + rows)
    return path


def damaged_gif(path, height):
    """A narrow GIF of that many rows, whose data are wrong after a few."""
    Image.fromarray(photo(13, 17)).convert("P").save(path)
    data = bytearray(path.read_bytes())
    frame = data.index(b"\x2c\x00\x00\x00\x00")
    for place in (8, frame + 7):
        data[place : place + 2] = struct.pack("<H", height)
    data[frame + 60 : frame + 80] = b"\xff" * 20
    path.write_bytes(data)
    return path


def high_avif(path, height):
    """An AVIF that claims more rows than its data have."""
    write(photo(64, 16), path)
    data = bytearray(path.read_bytes())
    place = data.index(b"ispe") + 8
    assert struct.unpack(">II", data[place : place + 8]) == (16, 64)
    data[place : place + 8] = struct.pack(">II", 16, height)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("make", "suffix", "sides"),
    [
        (rle_rows, ".bmp", (22_000, 22_000)),
        (damaged_gif, ".gif", (47_629,)),
        (damaged_gif, ".gif", (65_535,)),
        (high_avif, ".avif", (60_000,)),
        (high_avif, ".avif", (4_000_000,)),
    ],
)
def test_a_small_file_is_refused_at_once(refused, tmp_path, make, suffix, sides):
    refused(make(tmp_path / f"in{suffix}", *sides))


@pytest.mark.parametrize("name", ["img-3398-hang.gif", "bmp22000x22000_rle_rows.bmp"])
def test_a_shared_case_is_refused_at_once(refused, name):
    if not (HOSTILE / name).exists():
        pytest.skip("needs ../shared/cases")
    refused(HOSTILE / name)


def test_an_rle_picture_that_has_its_pixels_is_read(tmp_path):
    path = rle_rows(tmp_path / "a.bmp", 1, 50)
    assert read_picture(path).pixels.shape[:2] == (50, 1)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_high_pictures_are_read_in_time_that_grows_with_their_rows(tmp_path, suffix):
    pixels = np.tile(photo(256, 4, 4), (60, 1, 1))
    path = write(pixels, tmp_path / f"a{suffix}")
    made = PictureReader(path, spread_colours=True).rows(pixels.shape[0])
    whole = pyvips.Image.new_from_file(str(path)).numpy()
    visible = whole[..., 3] > 0
    assert np.array_equal(made[visible], whole[visible])


def test_a_damaged_part_below_is_an_error_there(tmp_path):
    path = write(photo(2000, 300), tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reader = PictureReader(path)
    assert np.array_equal(reader.rows(100), photo(2000, 300)[:100])
    with pytest.raises(ImageError, match="ends early"):
        reader.rows(1900)


def test_a_grid_of_avif_is_one_picture(tmp_path):
    pixels = photo(128, 192)
    made = read_picture(avif_grid(tmp_path / "in.avif", pixels, 64)).pixels
    assert np.abs(made.astype(int) - pixels).mean() < 3
    cut = read_picture(avif_grid(tmp_path / "in.avif", pixels, 64, (180, 120))).pixels
    assert np.array_equal(cut, made[:120, :180])


@pytest.mark.parametrize("size", [(20_000, 20_000), (60_000, 60_000)])
def test_a_grid_that_is_larger_than_its_tiles(refused, size, tmp_path):
    refused(avif_grid(tmp_path / "in.avif", photo(128, 192), 64, size))
