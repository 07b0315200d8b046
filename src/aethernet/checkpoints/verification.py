"""Pictures on which two forms of a network are compared, and the comparison."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# A part of "Chelsea" by Stéfan van der Walt (CC0), 96x64 pixels. A binary PPM is read
# without an image library, so the checks run where none is installed.
_NATURAL_IMAGE = Path(__file__).with_name("natural_image.ppm")

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """The difference between an output and the expected one, over all values."""

    max_abs_error: float
    """Largest absolute difference; pictures are 0..1. Infinite if not `finite`."""
    psnr: float
    """Peak signal-to-noise ratio in dB for a peak of 1; infinite if they are equal."""
    finite: bool
    """Whether no difference is NaN or infinite."""

    def __str__(self) -> str:
        if not self.finite:
            return "NaN or infinite values"
        return f"max abs error {self.max_abs_error:.2e}, PSNR {self.psnr:.1f} dB"


def compare(output: npt.NDArray[Any], expected: npt.NDArray[Any]) -> Difference:
    """Compare two arrays of one shape, in float64.

    Raises:
        ValueError: when the shapes differ.
    """
    if output.shape != expected.shape:
        raise ValueError(f"Cannot compare {[*output.shape]} with {[*expected.shape]}.")
    with np.errstate(invalid="ignore"):  # of infinite values
        error = np.asarray(output, np.float64) - np.asarray(expected, np.float64)
    if not np.isfinite(error).all():
        return Difference(float("inf"), float("-inf"), finite=False)
    with np.errstate(divide="ignore"):  # of equal outputs
        psnr = -10 * np.log10(np.square(error).mean())
    return Difference(float(np.abs(error).max()), float(psnr), finite=True)


def natural_image(height: int, width: int, channels: int = 3) -> Image:
    """A photograph `(1, channels, height, width)`, float32, 0..1.

    It is mirrored to fill the size. One channel is luma; other numbers than 1 and 3
    repeat red, green and blue.
    """
    _, size, _, pixels = _NATURAL_IMAGE.read_bytes().split(b"\n", 3)
    columns, rows = map(int, size.split())
    interleaved = np.frombuffer(pixels, np.uint8).reshape(rows, columns, 3)
    image: Image = np.moveaxis(interleaved, -1, 0).astype(np.float32)
    image /= 255
    if channels == 1:
        weights = np.array(_LUMA, np.float32)[:, None, None]
        image = (image * weights).sum(0, keepdims=True)
    else:
        image = image[np.arange(channels) % 3]
    image = image[:, _mirrored(height, rows)][:, :, _mirrored(width, columns)]
    return np.ascontiguousarray(image[None])


def noise_image(height: int, width: int, channels: int = 3) -> Image:
    """Uniform noise `(1, channels, height, width)`, float32, 0..1; never changes."""
    generator = np.random.default_rng(0)
    return generator.random((1, channels, height, width), np.float32)


def verification_frames(height: int, width: int, channels: int = 3) -> dict[str, Image]:
    """Ordinary and extreme pictures by name, `(1, channels, height, width)`, float32.

    The first two are the ordinary ones. The flat ones and the checkerboard drive
    activations to where half precision fails.
    """
    natural = natural_image(height, width, channels)
    checkerboard = np.indices((height, width)).sum(0) % 2
    return {
        "natural image": natural,
        "noise": noise_image(height, width, channels),
        "all 0": np.zeros_like(natural),
        "all 1": np.ones_like(natural),
        "checkerboard": np.zeros_like(natural) + checkerboard.astype(np.float32),
    }


def _mirrored(length: int, period: int) -> npt.NDArray[np.intp]:
    index = np.arange(length) % (2 * period)
    return np.where(index < period, index, 2 * period - 1 - index)
