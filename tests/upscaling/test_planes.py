"""Upscaling pixels in memory: values, depths, gray, alpha."""

import numpy as np
import pytest
from helpers import Repeat, photo

from aethernet.errors import AetherError
from aethernet.pictures.files import Picture
from aethernet.upscaling.planes import upscale_picture


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_picture_keeps_its_values(bands, dtype, channels):
    pixels = photo(bands=bands, dtype=dtype)
    depth = 8 * np.dtype(dtype).itemsize
    result = upscale_picture(Picture(pixels), Repeat(channels=channels), depth)
    assert result.pixels.dtype == dtype
    assert np.array_equal(result.pixels, pixels.repeat(2, 0).repeat(2, 1))


def test_16_bit_ramp_keeps_every_step():
    # No 8-bit step on the way: all 65536 values come out as they went in.
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    result = upscale_picture(Picture(ramp), Repeat(scale=1), 16)
    assert np.array_equal(result.pixels, ramp)


def test_output_is_clamped_and_rounded():
    class Beyond(Repeat):
        def run(self, image):
            return np.stack([image[0] * 0 + v for v in (-0.3, 0.4999, 1.7)])[None, :, 0]

    result = upscale_picture(Picture(photo(1, 1)), Beyond(scale=1), 8)
    assert result.pixels.tolist() == [[[0, 127, 255]]]


def test_gray_of_an_rgb_model_is_the_mean_of_its_channels():
    class Tinted(Repeat):
        def run(self, image):
            return image + np.float32([0, 0.1, 0.2])[None, :, None, None]

    gray = np.full((2, 2, 1), 51, np.uint8)  # 0.2
    result = upscale_picture(Picture(gray), Tinted(scale=1), 8)
    assert result.pixels.shape == (2, 2, 1)
    assert set(result.pixels.flatten().tolist()) == {round(0.3 * 255)}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_errors_not_black_pictures(bad):
    with pytest.raises(AetherError, match="NaN or infinite"):
        upscale_picture(Picture(photo()), Repeat(bad=bad), 8)


def test_a_model_of_other_channels_is_refused():
    with pytest.raises(AetherError, match="takes 4 channels"):
        upscale_picture(Picture(photo()), Repeat(channels=4), 8)
