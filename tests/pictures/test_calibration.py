"""Pictures for the calibration of int8."""

import numpy as np
import pytest
from PIL import Image

from aethernet.errors import ImageError
from aethernet.pictures.calibration import MAX_PICTURES, calibration_pictures


def save(path, *size, mode="RGB"):
    """A picture of random values."""
    path.parent.mkdir(exist_ok=True)
    bands = len(mode) if mode != "L" else 0
    shape = (*size, bands) if bands else size
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return pixels


def test_pictures_of_other_channels_are_skipped(tmp_path):
    colour = save(tmp_path / "a.png", 20, 30)
    with_alpha = save(tmp_path / "more/b.png", 16, 17, mode="RGBA")
    gray = save(tmp_path / "gray.png", 9, 8, mode="L")
    (tmp_path / "notes.txt").write_text("not a picture")
    found = calibration_pictures(tmp_path, 3, None)
    assert sorted(found) == ["a.png", "more/b.png"]
    for name, pixels in (("a.png", colour), ("more/b.png", with_alpha[:, :, :3])):
        assert found[name].dtype == np.float32
        expected = pixels.transpose(2, 0, 1)[None] / 255
        np.testing.assert_allclose(found[name], expected, atol=1e-7)
    (found,) = calibration_pictures(tmp_path, 1, None).values()
    np.testing.assert_allclose(found[0, 0], gray / 255, atol=1e-7)


def test_the_middle_is_taken(tmp_path):
    pixels = save(tmp_path / "large.png", 140, 131)
    (found,) = calibration_pictures(tmp_path, 3, None).values()
    assert found.shape == (1, 3, 128, 128)
    middle = pixels[6:134, 1:129].transpose(2, 0, 1)
    np.testing.assert_allclose(found[0], middle / 255, atol=1e-7)


def test_a_fixed_size_is_filled_by_mirroring(tmp_path):
    pixels = save(tmp_path / "small.png", 5, 40)
    (found,) = calibration_pictures(tmp_path, 3, (2, 8, 16)).values()
    assert found.shape == (2, 3, 8, 16)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0, :, 5:], found[0, :, 4:1:-1])
    middle = pixels[:, 12:28].transpose(2, 0, 1)
    np.testing.assert_allclose(found[0, :, :5], middle / 255, atol=1e-7)


def test_many_pictures_are_thinned_out_evenly(tmp_path):
    for number in range(2 * MAX_PICTURES + 1):
        save(tmp_path / f"{number:03}.png", 4, 4)
    found = [*calibration_pictures(tmp_path, 3, None)]
    assert found == [f"{number:03}.png" for number in range(0, 129, 3)]


def test_errors_name_the_folder_or_the_picture(tmp_path):
    with pytest.raises(ImageError, match="no such folder") as raised:
        calibration_pictures(tmp_path / "absent", 3, None)
    assert raised.value.path == tmp_path / "absent"
    with pytest.raises(ImageError, match="of 3 channels") as raised:
        calibration_pictures(tmp_path, 3, None)
    assert raised.value.path == tmp_path
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError) as raised:
        calibration_pictures(tmp_path, 3, None)
    assert raised.value.path == tmp_path / "a.png"
