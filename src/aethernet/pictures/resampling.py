"""Bicubic resizing like MATLAB's `imresize`, on which published tables are based.

Formula: Keys, "Cubic convolution interpolation for digital image processing", 1981,
with a = -0.5. Pixel centres are aligned, and the picture is continued beyond its edges
by its mirror image with doubled edge pixels. For reduction the kernel is widened by the
scale (antialiasing). PyTorch has this kernel but cuts it off at the edges, so pictures
are continued before resizing and cut afterwards.
"""

import numpy as np
import torch
from torch import Tensor

# More than the kernel's reach, in LR pixels.
_MARGIN = 4


def enlarge(planes: Tensor, scale: int) -> Tensor:
    """Enlarge `(B, C, H, W)`, float, like `imresize(picture, scale)`; not clamped."""
    continued = _continued(planes, _MARGIN)
    resized = _bicubic(continued, [side * scale for side in continued.shape[2:]])
    return _without_margin(resized, _MARGIN * scale)


def reduce(planes: Tensor, scale: int) -> Tensor:
    """Reduce `(B, C, H, W)`, float, like `imresize(picture, 1 / scale)`; not clamped.

    Raises:
        ValueError: when H or W is not a multiple of the scale.
    """
    if any(side % scale for side in planes.shape[2:]):
        height, width = planes.shape[2:]
        raise ValueError(f"{width}x{height} pixels are not a multiple of {scale}.")
    continued = _continued(planes, _MARGIN * scale)
    resized = _bicubic(continued, [side // scale for side in continued.shape[2:]])
    return _without_margin(resized, _MARGIN)


def lr_pixels(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Make the LR picture of an HR picture by the published protocol.

    Args:
        pixels: `(H, W, bands)`, uint8, large enough for one LR pixel. They are first
            cropped by `whole_pixels`.

    Returns:
        `(H // scale, W // scale, bands)`, uint8, computed in float64 and rounded once.
    """
    bands = []  # one at a time, since float64 takes eight times the memory
    for band in np.moveaxis(whole_pixels(pixels, scale), 2, 0):
        plane = torch.from_numpy(band.astype(np.float64))
        reduced = reduce(plane[None, None], scale)[0, 0].clamp(0, 255)
        # MATLAB rounds halves away from zero.
        bands.append((reduced + 0.5).floor().to(torch.uint8).numpy())
    return np.stack(bands, axis=2)


def whole_pixels(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Crop `(H, W, bands)` at the right and the bottom to multiples of the scale."""
    height, width = (side - side % scale for side in pixels.shape[:2])
    return pixels[:height, :width]


def _bicubic(planes: Tensor, size: list[int]) -> Tensor:
    # Without antialias PyTorch's kernel has a = -0.75. For enlarging, that is the only
    # difference the flag makes.
    return torch.nn.functional.interpolate(
        planes, size=size, mode="bicubic", antialias=True
    )


def _continued(planes: Tensor, margin: int) -> Tensor:
    for dimension in (2, 3):
        side = planes.shape[dimension]
        index = torch.arange(-margin, side + margin, device=planes.device) % (2 * side)
        index = torch.minimum(index, 2 * side - 1 - index)
        planes = planes.index_select(dimension, index)
    return planes


def _without_margin(planes: Tensor, margin: int) -> Tensor:
    return planes[:, :, margin:-margin, margin:-margin].contiguous()
