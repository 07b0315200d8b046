"""Convert Y'CbCr to R'G'B' and back, in float32, by the formulas of ITU-T H.273.

This is written out here because libswscale 9.5, asked for 16-bit or float RGB, turns
0.996 into white for most layouts and mixes up the ranges of gray.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

# Matrices by their numbers in H.273, which libav uses too. As primaries, 1, 5 and 6
# mean the same standards.
RGB, BT709, UNSPECIFIED, BT470BG, SMPTE170M = 0, 1, 2, 5, 6
SRGB = 13  # as transfer
LIMITED, FULL = 1, 2  # value ranges, by libav's numbers

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

# libav's name for the place of the chroma samples -> that place, across and down: 0 is
# on the first of the luma samples that share one, 1 is in the middle of them.
SITINGS = {"left": (0, 1), "center": (1, 1), "topleft": (0, 0), "top": (1, 0)}

# From this height on, players assume BT.709 where a clip does not name its matrix;
# below it they assume BT.601.
_HD_LINES = 720
_625_LINES = 576

_BAND_ROWS = 64  # a multiple of all subsamplings
_POOL = ThreadPoolExecutor(thread_name_prefix="aethernet-yuv")


@dataclass(frozen=True)
class Colour:
    """What the stored values of a stream mean, by the numbers of ITU-T H.273."""

    matrix: int
    """One of `MATRICES`."""
    range: int
    """`LIMITED` (16..235 of 255) or `FULL`."""
    primaries: int
    transfer: int


def usual_colour(lines: int, value_range: int) -> Colour:
    """The colours that players assume for a clip of this height without a description.

    Args:
        lines: height of the clip in pixels.
        value_range: `LIMITED` or `FULL`.
    """
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
    """Decode stored values.

    Args:
        planes: integers `(H, W)`: Y', or Y', Cb, Cr (chroma may be smaller), or R', G',
            B'.
        bits: per value.
        colour: what the values mean.
        siting: place of the chroma samples, a key of `SITINGS`.

    Returns:
        Planes `(1 or 3, H, W)`, float32, gray or R'G'B', clipped to 0..1.
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
    """Encode gray or R'G'B' values: the opposite of `to_rgb`.

    Args:
        planes: `(1 or 3, H, W)`, float32; values beyond 0..1 are clipped.
        bits: per value.
        colour: what the stored values mean.
        subsampling: luma samples per chroma sample, across and down.
        siting: place of the chroma samples, a key of `SITINGS`.

    Returns:
        Integer planes `(H, W)`, rounded: uint8 up to 8 bits, else uint16.
    """
    # In bands of rows, which fit into a core's cache, one on each core. A chroma sample
    # that reaches beyond its own rows needs the whole frame at once.
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
        coded += np.float32(offsets[n] + 0.5)  # astype cuts off: this rounds
        np.clip(coded, 0, 2**bits - 1, out=coded)
        results.append(coded.astype(dtype))
    return results


def _matrix(number: int) -> np.ndarray:
    """The matrix `(3, 3)` from R', G', B' to Y' in 0..1 and Cb, Cr in -0.5..0.5."""
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
    """Factor and offset of each plane: stored value = factor * value + offset."""
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
    """Average along an axis the samples around each one that remains."""
    if factor == 1:
        return values
    missing = -values.shape[axis] % factor
    pad = [(0, 0), (0, 0)]
    # A sample that is the centre of its average needs one more before the first.
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
    """The samples that lie `by` further along the axis; the edge is repeated."""
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
