"""Y'CbCr to R'G'B' and back, by the formulas of ITU-T H.273, in float32.

Written out here because libswscale, asked for 16-bit or float RGB, makes white of 0.996
of most layouts and mixes up the ranges of gray; measured with libswscale 9.5.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

# Numbers of H.273, which libav uses too. As primaries 1, 5, 6 mean the same standards.
RGB, BT709, UNSPECIFIED, BT470BG, SMPTE170M = 0, 1, 2, 5, 6


LIMITED, FULL = 1, 2  # libav's numbers of the ranges

# Matrix -> the shares of red and blue in luma.
_LUMA = {
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),  # FCC
    BT470BG: (0.299, 0.114),
    SMPTE170M: (0.299, 0.114),
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020, non-constant luminance
}

MATRICES = (RGB, *_LUMA)

# Where chroma samples lie, by libav's names, across and down: 0 on the first of the
# luma samples that share one, 1 in the middle of them.
SITINGS = {"left": (0, 1), "center": (1, 1), "topleft": (0, 0)}

_BAND_ROWS = 64  # a multiple of all subsamplings

_POOL = ThreadPoolExecutor(thread_name_prefix="aethernet-yuv")

# Below this height a clip that says nothing is taken for BT.601, as players do.
_HD_LINES = 720

_625_LINES = 576


@dataclass(frozen=True)
class Colour:
    """What the values of a stream mean."""

    matrix: int
    """One of `MATRICES`."""
    range: int
    """`LIMITED` (16..235 of 255) or `FULL`."""
    primaries: int
    transfer: int


def usual_colour(lines: int, value_range: int) -> Colour:
    """What players assume of a clip of that height that says nothing."""
    if lines >= _HD_LINES:
        return Colour(BT709, value_range, BT709, BT709)
    matrix = BT470BG if lines == _625_LINES else SMPTE170M
    return Colour(matrix, value_range, matrix, SMPTE170M)


def to_rgb(
    planes: Sequence[np.ndarray],
    bits: int,
    colour: Colour,
    siting: str = "left",
) -> np.ndarray:
    """Planes `(1 or 3, H, W)`, float32, gray or R'G'B', clipped to 0..1.

    Args:
        planes: Y', or Y', Cb, Cr (chroma may be smaller), or R', G', B'; integers.
        bits: of a value.
    """
    height, width = planes[0].shape
    result = np.empty((len(planes), height, width), np.float32)
    scales, offsets = _coding(len(planes), bits, colour)
    for n, plane in enumerate(planes):
        values = plane.astype(np.float32)
        values -= np.float32(offsets[n])
        values *= np.float32(1 / scales[n])
        if plane.shape != (height, width):
            across, down = SITINGS[siting]
            values = _spread(values, height, 0, down)
            values = _spread(values, width, 1, across)
        result[n] = values
    if len(planes) == 3 and colour.matrix != RGB:
        inverse = np.linalg.inv(_matrix(colour.matrix)).astype(np.float32)
        result = (inverse @ result.reshape(3, -1)).reshape(result.shape)
    return np.clip(result, 0, 1, out=result)


def from_rgb(
    planes: np.ndarray,
    bits: int,
    colour: Colour,
    subsampling: tuple[int, int] = (1, 1),
    siting: str = "left",
) -> list[np.ndarray]:
    """The opposite of `to_rgb`: integers, rounded; what is beyond 0..1 is clipped.

    Args:
        subsampling: luma samples per chroma sample, across and down.
    """
    # In bands of rows, which stay in a core's cache, and one on each core; not where
    # chroma reaches beyond its own rows.
    height = planes.shape[1]
    rows = _BAND_ROWS if SITINGS[siting][1] or subsampling[1] == 1 else height

    def band(first: int) -> list[np.ndarray]:
        part = planes[:, first : first + rows]
        return _band_from_rgb(part, bits, colour, subsampling, siting)

    bands = [*_POOL.map(band, range(0, height, rows))]
    return [np.concatenate(parts) for parts in zip(*bands, strict=True)]


def _band_from_rgb(
    planes: np.ndarray,
    bits: int,
    colour: Colour,
    subsampling: tuple[int, int],
    siting: str,
) -> list[np.ndarray]:
    values = np.clip(planes, 0, 1).astype(np.float32, copy=False)
    scales, offsets = _coding(len(planes), bits, colour)
    if len(planes) == 3 and colour.matrix != RGB:
        matrix = _matrix(colour.matrix).astype(np.float32)
        values = (matrix @ values.reshape(3, -1)).reshape(values.shape)
    dtype = np.uint8 if bits <= 8 else np.uint16
    results = []
    for n, plane in enumerate(values):
        kept = plane
        if n and colour.matrix != RGB:
            across, down = SITINGS[siting]
            kept = _gather(kept, subsampling[0], 1, across)
            kept = _gather(kept, subsampling[1], 0, down)
        coded = kept * np.float32(scales[n])
        coded += np.float32(offsets[n] + 0.5)  # rounded by what the conversion cuts off
        np.clip(coded, 0, 2**bits - 1, out=coded)
        results.append(coded.astype(dtype))
    return results


def _matrix(number: int) -> np.ndarray:
    """`(3, 3)`: from R', G', B' to Y' in 0..1 and Cb, Cr in -0.5..0.5."""
    red, blue = _LUMA[number]
    luma = np.array([red, 1 - red - blue, blue])
    return np.stack(
        [
            luma,
            ([0, 0, 1] - luma) / (2 * (1 - blue)),
            ([1, 0, 0] - luma) / (2 * (1 - red)),
        ]
    )


def _coding(count: int, bits: int, colour: Colour) -> tuple[list[float], list[float]]:
    """What each plane's values are multiplied by, and what is added, to be stored."""
    peak, step, middle = 2**bits - 1, 2.0 ** (bits - 8), 2 ** (bits - 1)
    if colour.matrix == RGB:
        return [peak] * 3, [0] * 3
    if colour.range == FULL:
        return [peak] * 3, [0, middle, middle]
    return [219 * step, 224 * step, 224 * step], [16 * step, middle, middle]


def _spread(values: np.ndarray, length: int, axis: int, middle: int) -> np.ndarray:
    """Interpolate along an axis to `length` (Catmull-Rom)."""
    count = values.shape[axis]
    if count == length:
        return values
    factor = -(-length // count)
    shape = [*values.shape]
    shape[axis] = count * factor
    result = np.empty(shape, np.float32)
    for phase in range(factor):
        position = (phase - middle * (factor - 1) / 2) / factor
        first = int(np.floor(position))
        result[_every(factor, phase, axis)] = sum(
            np.float32(weight) * _moved(values, first + tap, axis)
            for tap, weight in zip((-1, 0, 1, 2), _cubic(position - first), strict=True)
            if weight
        )
    return result.take(range(length), axis)


def _gather(values: np.ndarray, factor: int, axis: int, middle: int) -> np.ndarray:
    """Average along an axis what lies around each of the samples that remain."""
    if factor == 1:
        return values
    missing = -values.shape[axis] % factor
    pad = [(0, 0), (0, 0)]
    # One more before the first sample where it is the middle of its surroundings.
    before = 0 if middle else factor // 2
    pad[axis] = (before, missing + factor // 2)
    values = np.pad(values, pad, mode="edge")
    count = (values.shape[axis] - before - factor // 2) // factor
    taps = [1.0] * factor if middle else [0.5, *[1.0] * (factor - 1), 0.5]
    result: np.ndarray | None = None
    for tap, weight in enumerate(taps):
        part = values[_every(factor, tap, axis)]
        part = part[:count] if axis == 0 else part[:, :count]
        part = part * np.float32(weight / factor)
        result = part if result is None else np.add(result, part, out=result)
    assert result is not None
    return result


def _every(factor: int, phase: int, axis: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(phase, None, factor),)


def _moved(values: np.ndarray, by: int, axis: int) -> np.ndarray:
    """What lies `by` samples further on; the edge is repeated."""
    if not by:
        return values
    count = values.shape[axis]
    return values.take(np.clip(np.arange(count) + by, 0, count - 1), axis)


def _cubic(t: float) -> tuple[float, float, float, float]:
    """Catmull-Rom weights of the samples at -1, 0, 1, 2 for a point at 0 <= t < 1."""
    return (
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    )
