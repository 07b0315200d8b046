"""PSNR and SSIM against another implementation, and computed by hand."""

import numpy as np
import pytest
from helpers import photo

from aethernet.metrics import Figures, luma, mean, measure, psnr, ssim


def noisy_photo(height, width):
    pixels = photo(height, width)
    noise = np.random.default_rng(3).normal(0, 12, pixels.shape)
    return (pixels + noise).clip(0, 255).round().astype(np.uint8)


def test_luma_runs_from_16_to_235_and_gray_is_three_equal_colours():
    extremes = np.array([[[0] * 3, [255] * 3]], np.uint8)
    assert luma(extremes) == pytest.approx(np.array([[16, 235]]))
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    expected = luma(gray.repeat(3, axis=2))
    assert luma(gray) == pytest.approx(expected)
    with_alpha = np.concatenate((gray, gray * 0), axis=2)
    assert luma(with_alpha) == pytest.approx(expected)


def test_psnr_by_hand():
    plane = np.full((20, 20), 100.0)
    assert psnr(plane + 5, plane) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(plane, plane) == float("inf")


def test_ssim_of_two_flat_planes_by_hand():
    # There is no variance, so only the luminance term remains.
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    planes = np.full((15, 12), 100.0), np.full((15, 12), 120.0)
    assert ssim(*planes) == pytest.approx(expected, abs=1e-12)


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip(
        "skimage.metrics", reason="needs pip install scikit-image"
    )
    first, second = luma(photo(40, 53)), luma(noisy_photo(40, 53))
    expected = metrics.structural_similarity(
        first,
        second,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert 0.3 < expected < 0.95
    assert ssim(first, second) == pytest.approx(expected, abs=1e-9)


def test_the_border_does_not_count():
    reference = photo(40, 53)
    changed = reference.copy()
    changed[:3] = changed[-3:] = 255 - changed[:3]
    changed[:, :3] = changed[:, -3:] = 0
    assert measure(changed, reference, 3) == Figures(float("inf"), pytest.approx(1))
    assert measure(changed, reference, 2).psnr < 30


def test_pictures_that_are_too_small_have_no_figures():
    tiny = photo(12, 12)
    result = measure(tiny, tiny, 2)
    assert result.psnr == float("inf")
    assert np.isnan(result.ssim)
    assert np.isnan(measure(tiny, tiny, 6).psnr)


def test_other_sizes_and_types_are_refused():
    with pytest.raises(ValueError, match="Cannot compare"):
        measure(photo(20, 20), photo(20, 21), 0)
    with pytest.raises(ValueError, match="uint16"):
        luma(photo(20, 20).astype(np.uint16))


def test_the_mean_is_over_pictures():
    assert mean([Figures(30, 0.9), Figures(32, 0.8)]) == Figures(
        31, pytest.approx(0.85)
    )
