"""Bicubic resizing: like MATLAB's `imresize`, and like PyTorch's.

Published tables are based on MATLAB's. Kernel: Keys, "Cubic convolution interpolation
for digital image processing", 1981, with a = -0.5. Pixel centres are aligned, and the
picture is continued beyond its edges by its mirror image with doubled edge pixels. For
reduction the kernel is widened by the scale (antialiasing).
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np

Edges = Literal["symmetric", "edge"]
"""How a picture goes on beyond its edges, as `numpy.pad` names it: by its mirror image
with doubled edge pixels, or by its edge pixels."""

# Half the width of the kernel, in pixels of the smaller picture.
_REACH = 2

_MATLABS, _PYTORCHS = -0.5, -0.75  # a of Keys' kernel


def enlarge(planes: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge `(.., H, W)`, float, like `imresize(picture, scale)`; not clamped."""
    return _enlarged(planes, scale, _MATLABS, "symmetric")


def enlarge_sharply(planes: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge `(.., H, W)`, float, like PyTorch's `interpolate`; not clamped.

    With a = -0.75 the kernel is a little sharper, and edge pixels are repeated.
    """
    return _enlarged(planes, scale, _PYTORCHS, "edge")


def reduce(planes: np.ndarray, scale: int) -> np.ndarray:
    """Reduce `(.., H, W)`, float, like `imresize(picture, 1 / scale)`; not clamped.

    Raises:
        ValueError: when H or W is not a multiple of the scale.
    """
    height, width = planes.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"{width}x{height} pixels are not a multiple of {scale}.")
    margin = _REACH * scale
    taps = np.arange(-margin, margin + scale)  # from the first pixel that is merged
    weights = _keys((taps - (scale - 1) / 2) / scale, _MATLABS)
    weights /= weights.sum()
    for axis in (-2, -1):
        continued = _continued(planes, axis, margin, "symmetric")
        last = planes.shape[axis] - scale + 1
        planes = _sum(
            (weight, _part(continued, axis, slice(first, first + last, scale)))
            for first, weight in enumerate(weights)
        )
    return planes


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
        reduced = np.clip(reduce(band.astype(np.float64), scale), 0, 255)
        # MATLAB rounds halves away from zero.
        bands.append(np.floor(reduced + 0.5).astype(np.uint8))
    return np.stack(bands, axis=2)


def whole_pixels(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Crop `(H, W, bands)` at the right and the bottom to multiples of the scale."""
    height, width = (side - side % scale for side in pixels.shape[:2])
    return pixels[:height, :width]


def _keys(distances: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel, 0 from a distance of 2 on."""
    x = np.abs(distances)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _enlarged(planes: np.ndarray, scale: int, a: float, edges: Edges) -> np.ndarray:
    for axis in (-2, -1):
        side = planes.shape[axis]
        continued = _continued(planes, axis, _REACH, edges)
        shape = [*planes.shape]
        shape[axis] *= scale
        result = np.empty(shape, planes.dtype)
        for place in range(scale):  # of an output pixel within its input pixel
            centre = (place + 0.5) / scale - 0.5
            weights = _keys(np.arange(-_REACH, _REACH + 1) - centre, a)
            _part(result, axis, slice(place, None, scale))[...] = _sum(
                (weight, _part(continued, axis, slice(first, first + side)))
                for first, weight in enumerate(weights)
            )
        planes = result
    return planes


def _continued(planes: np.ndarray, axis: int, margin: int, edges: Edges) -> np.ndarray:
    margins = [(0, 0)] * planes.ndim
    margins[axis] = (margin, margin)
    return np.pad(planes, margins, mode=edges)


def _part(planes: np.ndarray, axis: int, part: slice) -> np.ndarray:
    """A view of the part along the last axis (-1) or the one before (-2)."""
    return planes[..., part] if axis == -1 else planes[..., part, :]


def _sum(terms: Iterable[tuple[np.floating, np.ndarray]]) -> np.ndarray:
    """Sum of arrays with weights, in the arrays' type."""
    total: np.ndarray | None = None
    for weight, part in terms:
        if weight:
            term = part * part.dtype.type(weight)
            total = term if total is None else np.add(total, term, out=total)
    assert total is not None  # the kernel is not 0 everywhere
    return total
