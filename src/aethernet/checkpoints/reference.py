"""Compute a folded network with NumPy alone: the reference where PyTorch is missing.

It is written to be checked by reading, and fast enough for small pictures: a core takes
half a second for 48x32 pixels of `aether_small` in float32. It computes in the dtype of
the network.
"""

import math

import numpy as np
import numpy.typing as npt

from aethernet.checkpoints.folded import (
    BLOCK_EPS,
    LEAKY_SLOPE,
    NORM_EPS,
    Block,
    Convolution,
    Folded,
    Tail,
)
from aethernet.errors import AetherError

Array = npt.NDArray[np.floating]

# erf(x) = x P(x^2) / Q(x^2) for |x| <= 4, highest power first: the approximation for
# float32 of Eigen 3.3 (generic_fast_erf_float), within 4.2e-7 of the exact value.
_ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)

_math_erf = np.frompyfunc(math.erf, 1, 1)

# Of a depthwise convolution at once: bytes that stay in a processor's cache.
_CHUNK_BYTES = 1 << 18


def evaluate(folded: Folded, image: Array) -> Array:
    """Compute the network.

    Args:
        folded: in float32 or float64, which is what it is computed in.
        image: `(B, in_chans, H, W)`, H and W from 1 up, 0..1.

    Returns:
        `(B, in_chans, scale * H, scale * W)`, not clamped.

    Raises:
        AetherError: when the picture has another shape.
    """
    if image.ndim != 4 or image.shape[1] != folded.in_chans or 0 in image.shape:
        wanted = f"(B, {folded.in_chans}, H, W)"
        raise AetherError(f"The network takes {wanted}, not {image.shape}.")
    dtype = folded.first.weight.dtype
    with np.errstate(over="ignore", invalid="ignore"):  # shows in the result
        results = [_one(folded, each) for each in image.astype(dtype)]
    return np.stack(results)


def largest_deviations(folded: Folded, image: Array) -> list[float]:
    """Of each block, the largest distance of a convolved value from its pixel's mean.

    The last one is that of the values that the norm after the blocks receives.
    LayerNorm squares these distances, which float16 holds up to 256.

    Args:
        folded: in float32 or float64.
        image: `(in_chans, H, W)`, 0..1.
    """
    x = convolve(image - folded.mean, folded.first)
    found = []
    for block in folded.blocks:
        convolved = convolve_depthwise(x, block.depthwise)
        found.append(float(np.abs(convolved - convolved.mean(0)).max()))
        x = x + _rest(convolved, block)
    return [*found, float(np.abs(x - x.mean(0)).max())]


def erf(x: Array) -> Array:
    """The error function: exact in float64, within 4.2e-7 in float32."""
    if x.dtype == np.float64:
        return np.asarray(_math_erf(x), np.float64)
    x = np.clip(x, -4, 4)
    square = x * x
    result = _polynomial(square, _ERF_P)
    result *= x
    result /= _polynomial(square, _ERF_Q)
    return result


def pixel_shuffle(x: Array, factor: int) -> Array:
    """`(C * factor**2, H, W)` -> `(C, factor * H, factor * W)`, in PyTorch's order."""
    channels, height, width = x.shape
    x = x.reshape(channels // factor**2, factor, factor, height, width)
    return x.transpose(0, 3, 1, 4, 2).reshape(-1, height * factor, width * factor)


def convolve(x: Array, convolution: Convolution) -> Array:
    """`(in, H, W)` -> `(out, H, W)`, a dense convolution with "same" zero padding."""
    weight = convolution.weight
    out, channels, rows, columns = weight.shape
    height, width = x.shape[1:]
    if rows == columns == 1:
        result = weight[:, :, 0, 0] @ x.reshape(channels, -1)
    else:
        windows = np.lib.stride_tricks.sliding_window_view(
            _padded(x, rows, columns), (rows, columns), (1, 2)
        )  # (in, H, W, rows, columns)
        columns_of = windows.transpose(0, 3, 4, 1, 2).reshape(-1, height * width)
        result = weight.reshape(out, -1) @ columns_of
    result += convolution.bias[:, None]
    return result.reshape(out, height, width)


def convolve_depthwise(x: Array, convolution: Convolution) -> Array:
    """`(C, H, W)` -> `(C, H, W)`, every channel with a kernel of its own."""
    weight, bias = convolution.weight[:, 0], convolution.bias
    channels, rows, columns = weight.shape
    height, width = x.shape[1:]
    padded = _padded(x, rows, columns)
    result = np.empty_like(x)
    step = max(_CHUNK_BYTES // (height * width * x.itemsize), 1)
    for start in range(0, channels, step):
        part = slice(start, start + step)
        total = result[part]
        total[...] = bias[part, None, None]
        product = np.empty_like(total)
        for i, j in np.ndindex(rows, columns):
            shifted = padded[part, i : i + height, j : j + width]
            np.multiply(shifted, weight[part, i, j, None, None], out=product)
            total += product
    return result


def _one(folded: Folded, image: Array) -> Array:
    """One picture `(in_chans, H, W)`."""
    first = convolve(image - folded.mean, folded.first)
    x = first
    for block in folded.blocks:
        x = x + _branch(x, block)
    weight, bias = (v[:, None, None] for v in (folded.norm_weight, folded.norm_bias))
    x = convolve(_normalised(x, NORM_EPS) * weight + bias, folded.after_body) + first
    x = convolve(x, folded.before_upsample)
    x = np.where(x < 0, x * LEAKY_SLOPE, x)
    for convolution, factor in folded.steps:
        x = pixel_shuffle(convolve(x, convolution), factor)
    return pixel_shuffle(_before_shuffle(x, folded.tail), folded.tail.factor) + (
        folded.mean
    )


def _branch(x: Array, block: Block) -> Array:
    return _rest(convolve_depthwise(x, block.depthwise), block)


def _rest(convolved: Array, block: Block) -> Array:
    """A block's branch after its depthwise convolution."""
    x = _normalised(convolved, BLOCK_EPS)
    gate = convolve(x, block.gate)
    gate *= 0.5 * (1 + erf(gate * math.sqrt(0.5)))  # GELU
    gate *= convolve(x, block.main)
    return convolve(gate, block.last)


def _before_shuffle(x: Array, tail: Tail) -> Array:
    """The tail's convolution, exact at the edges of the picture, see `folded.Edges`."""
    result = convolve(x, tail.whole)
    if tail.edges is None:
        return result
    height, width = x.shape[1:]
    # Views by pixel of a position: (in_chans, factor, factor, H, W).
    shape = (-1, tail.factor, tail.factor, height, width)
    result = result.reshape(shape)
    ends = ((0, 0), (tail.factor - 1, -1))  # pixel of the position, position
    for i, row in ends:
        strip = convolve(x[:, [row]], tail.edges.rows).reshape(*shape[:3], 1, width)
        result[:, i, :, row] -= strip[:, i, :, 0]
        for j, column in ends:
            corner = convolve(x[:, [row]][:, :, [column]], tail.edges.corners)
            result[:, i, j, row, column] += corner.reshape(shape[:3])[:, i, j]
    for j, column in ends:
        strip = convolve(x[:, :, [column]], tail.edges.columns)
        strip = strip.reshape(*shape[:3], height, 1)
        result[:, :, j, :, column] -= strip[:, :, j, :, 0]
    return result.reshape(-1, height, width)


def _normalised(x: Array, eps: float) -> Array:
    """LayerNorm over channels, without scale and shift: `(C, H, W)`."""
    x = x - x.mean(0)
    x /= np.sqrt(np.square(x).mean(0) + eps)
    return x


def _polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    """By Horner's rule; the first coefficient is that of the highest power."""
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result *= x
        result += coefficient
    return result


def _padded(x: Array, rows: int, columns: int) -> Array:
    return np.pad(x, [(0, 0), (rows // 2,) * 2, (columns // 2,) * 2])
