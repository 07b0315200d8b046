"""Pictures on which two forms of a network are compared, and the comparison."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# A part of "Chelsea" by Stéfan van der Walt (CC0), 96x64 pixels. A binary PPM is read
# without an image library, so the checks run where only torch is installed.
_NATURAL_IMAGE = Path(__file__).with_name("natural_image.ppm")

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


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


def compare(output: Tensor, expected: Tensor) -> Difference:
    """Compare two tensors of one shape, in float64.

    Raises:
        ValueError: when the shapes differ.
    """
    if output.shape != expected.shape:
        raise ValueError(f"Cannot compare {[*output.shape]} with {[*expected.shape]}.")
    error = output.double().cpu() - expected.double().cpu()
    if not torch.isfinite(error).all():
        return Difference(float("inf"), float("-inf"), finite=False)
    mse = error.square().mean()
    return Difference(error.abs().max().item(), (-10 * mse.log10()).item(), finite=True)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Stop a GPU from computing float32 convolutions in TF32 (10-bit mantissa)."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def natural_image(height: int, width: int, channels: int = 3) -> Tensor:
    """A photograph `(1, channels, height, width)`, float32, 0..1.

    It is mirrored to fill the size. One channel is luma; other numbers than 1 and 3
    repeat red, green and blue.
    """
    _, size, _, pixels = _NATURAL_IMAGE.read_bytes().split(b"\n", 3)
    columns, rows = map(int, size.split())
    image = torch.frombuffer(bytearray(pixels), dtype=torch.uint8)
    image = image.view(rows, columns, 3).permute(2, 0, 1).float() / 255
    if channels == 1:
        image = (image * torch.tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True)
    else:
        image = image[torch.arange(channels) % 3]
    image = image[:, _mirrored(height, rows)][:, :, _mirrored(width, columns)]
    return image.unsqueeze(0)


def noise_image(height: int, width: int, channels: int = 3) -> Tensor:
    """Uniform noise `(1, channels, height, width)`, float32, 0..1; never changes."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, channels, height, width, generator=generator)


def verification_frames(
    height: int, width: int, channels: int = 3
) -> dict[str, Tensor]:
    """Ordinary and extreme pictures by name, `(1, channels, height, width)`, float32.

    The flat ones and the checkerboard drive activations to where half precision fails.
    """
    natural = natural_image(height, width, channels)
    checkerboard = (torch.arange(height).view(-1, 1) + torch.arange(width)) % 2
    return {
        "natural image": natural,
        "noise": noise_image(height, width, channels),
        "all 0": torch.zeros_like(natural),
        "all 1": torch.ones_like(natural),
        "checkerboard": checkerboard.to(natural).expand_as(natural),
    }


def _mirrored(length: int, period: int) -> Tensor:
    index = torch.arange(length) % (2 * period)
    return torch.where(index < period, index, 2 * period - 1 - index)
