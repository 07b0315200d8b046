"""PSNR and SSIM of luma, as in the tables of super-resolution papers.

Both compare 8-bit pictures on the Y channel of ITU-R BT.601 (16..235, not rounded).
Along each edge, `border` pixels are left out; papers leave out as many as the scale.
Gray counts as a colour with three equal values, and alpha is ignored. Everything is
computed in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROTOCOL = (
    "PSNR and SSIM of luma (ITU-R BT.601) of 8-bit pictures. At each edge, as many "
    "pixels as the scale are left out. SSIM uses a Gaussian window of 11x11 pixels "
    "(sigma 1.5)."
)

_PEAK = 255.0

# Y of red, green and blue 0..255, ITU-R BT.601-7.
_BLACK, _WEIGHTS = 16.0, (65.481 / 255, 128.553 / 255, 24.966 / 255)

# Wang et al., "Image quality assessment: from error visibility to structural
# similarity", 2004.
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03


@dataclass(frozen=True)
class Figures:
    """The quality of a picture, compared with its HR picture."""

    psnr: float
    """PSNR-Y in dB; infinite if the luma is equal, NaN if the border leaves nothing."""
    ssim: float
    """SSIM-Y, at most 1; NaN if the picture is smaller than the window."""

    def __str__(self) -> str:
        return f"{self.psnr:.2f} dB, SSIM {self.ssim:.4f}"


def measure(pixels: np.ndarray, reference: np.ndarray, border: int) -> Figures:
    """Compare a picture with its HR picture.

    Args:
        pixels: `(H, W, bands)`, uint8: gray or RGB, with or without alpha.
        reference: the HR picture, of the same height and width.
        border: pixels to leave out along every edge.

    Raises:
        ValueError: when the sizes differ or the values are not uint8.
    """
    if pixels.shape[:2] != reference.shape[:2]:
        raise ValueError(f"Cannot compare {pixels.shape} with {reference.shape}.")
    first, second = (_inner(luma(each), border) for each in (pixels, reference))
    return Figures(psnr(first, second), ssim(first, second))


def mean(figures: Sequence[Figures]) -> Figures:
    """The mean of each figure over pictures, as tables state it."""
    psnrs, ssims = ([getattr(f, name) for f in figures] for name in ("psnr", "ssim"))
    return Figures(float(np.mean(psnrs)), float(np.mean(ssims)))


def luma(pixels: np.ndarray) -> np.ndarray:
    """Y of `(H, W, bands)` uint8: `(H, W)`, float64, 16..235.

    Raises:
        ValueError: when the values are not uint8.
    """
    if pixels.dtype != np.uint8:
        raise ValueError(f"Luma needs uint8 values, not {pixels.dtype}.")
    colours = pixels[:, :, : 3 if pixels.shape[2] > 2 else 1].astype(np.float64)
    if colours.shape[2] == 1:
        colours = colours.repeat(3, axis=2)
    # Not a matrix product, which would round equal pixels differently.
    red, green, blue = (colours[:, :, i] * w for i, w in enumerate(_WEIGHTS))
    return np.asarray(_BLACK + red + green + blue)


def psnr(plane: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two `(H, W)` for a peak of 255, in dB."""
    if plane.size == 0:
        return float("nan")
    mse = float(np.square(plane - reference).mean())
    return float(10 * np.log10(_PEAK**2 / mse)) if mse else float("inf")


def ssim(plane: np.ndarray, reference: np.ndarray) -> float:
    """Mean structural similarity of two `(H, W)` for a peak of 255.

    Only windows inside the picture count, as in the authors' program.
    """
    if min(plane.shape) < _WINDOW:
        return float("nan")
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    mean_x, mean_y = _weighted(plane), _weighted(reference)
    var_x = _weighted(plane * plane) - mean_x**2
    var_y = _weighted(reference * reference) - mean_y**2
    covariance = _weighted(plane * reference) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float((luminance * structure).mean())


def _weighted(plane: np.ndarray) -> np.ndarray:
    """Gaussian mean around each pixel whose window is inside the picture."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    height, width = (side - _WINDOW + 1 for side in plane.shape)
    rows = sum(w * plane[i : i + height] for i, w in enumerate(weights))
    return np.asarray(sum(w * rows[:, i : i + width] for i, w in enumerate(weights)))


def _inner(plane: np.ndarray, border: int) -> np.ndarray:
    height, width = plane.shape
    bottom, right = max(height - border, border), max(width - border, border)
    return plane[border:bottom, border:right]
