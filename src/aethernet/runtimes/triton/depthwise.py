"""Depthwise convolution with a large kernel, on tensor cores.

A tensor core multiplies matrices, and a depthwise convolution has none to offer. Here
the output is cut into tiles of 4 x 16 pixels. What a tile reads, K + 3 rows of 32
pixels, is one row of a matrix; the kernel, written once for each pixel of the tile, is
a second one, of bands (a Toeplitz matrix). Their product computes
`(K + 3) * 32 / K**2` times as much as the convolution (3.7 for K = 11), on units more
than ten times as fast, and reads every input pixel about seven times instead of
`K**2` times.

Tensors are `(B, C, H, W)`, contiguous, float16, bfloat16 or float32 (exact, slow);
sums are in float32.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

LARGEST_KERNEL = 17  # its window is 32 pixels wide
_ROWS, _COLUMNS = 4, 16  # of a tile
_WINDOW = 32  # pixels in a row that a tile reads
_LEAD = 8  # of them left of the tile: aligned, and enough for the largest kernel
_SPLITS = 2  # parts of the tiles that are summed one by one in a gradient
# Tiles that one program computes at once, and how it is compiled: the fastest of those
# that benchmarks/triton_kernels.py --search tries.
CONVOLVE = {"BLOCK": 128, "num_warps": 8, "num_stages": 1}
GRADIENT = {"BLOCK": 64, "num_warps": 4, "num_stages": 3}


@triton.jit
def _convolve(
    x_ptr,
    bands_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    channels,
    height,
    width,
    tiles_across,
    tiles,
    count,
    KERNEL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Tiles of one channel: windows (BLOCK, 64) times bands (64, 64), summed."""
    channel = tl.program_id(1)
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tile = number % tiles
    top, left = tile // tiles_across * 4, tile % tiles_across * 16
    plane = ((number // tiles) * channels + channel).to(tl.int64) * (height * width)
    inside = (number < count)[:, None]
    part = tl.arange(0, 64)  # two rows of a window, or the pixels of a tile
    x = left[:, None] + (part % 32 - 8)[None, :]
    inside_x = inside & (x >= 0) & (x < width)
    bands_ptr += channel * ((KERNEL + 3) * 32 * 64)
    total = tl.zeros((BLOCK, 64), tl.float32)
    for pair in range((KERNEL + 3) // 2):
        y = top[:, None] + (part // 32 + 2 * pair - KERNEL // 2)[None, :]
        windows = tl.load(
            x_ptr + plane[:, None] + (y * width + x),
            inside_x & (y >= 0) & (y < height),
            other=0.0,
            cache_modifier=".ca",  # windows overlap
        )
        bands = tl.load(bands_ptr + (pair * 64 + part)[:, None] * 64 + part[None, :])
        total = tl.dot(windows, bands, total, input_precision="ieee")
    y = top[:, None] + (part // 16)[None, :]
    x = left[:, None] + (part % 16)[None, :]
    written = inside & (y < height) & (x < width)
    place = plane[:, None] + (y * width + x)
    if HAS_BIAS:
        total += tl.load(bias_ptr + channel).to(tl.float32)
    if HAS_RESIDUAL:
        total += tl.load(residual_ptr + place, written, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), written)


@triton.jit
def _gather_bands_gradient(
    x_ptr,
    gradient_ptr,
    out_ptr,
    channels,
    height,
    width,
    tiles_across,
    tiles,
    count,
    KERNEL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Two rows of the bands of one channel: windows' transpose times gradients."""
    channel, pair = tl.program_id(0), tl.program_id(1)
    split, splits = tl.program_id(2), tl.num_programs(2)
    part = tl.arange(0, 64)
    total = tl.zeros((64, 64), tl.float32)
    for start in range(split * BLOCK, count, splits * BLOCK):
        number = start + tl.arange(0, BLOCK)
        tile = number % tiles
        top, left = tile // tiles_across * 4, tile % tiles_across * 16
        plane = (number // tiles * channels + channel).to(tl.int64) * (height * width)
        inside = (number < count)[:, None]
        x = left[:, None] + (part % 32 - 8)[None, :]
        y = top[:, None] + (part // 32 + 2 * pair - KERNEL // 2)[None, :]
        windows = tl.load(
            x_ptr + plane[:, None] + (y * width + x),
            inside & (x >= 0) & (x < width) & (y >= 0) & (y < height),
            other=0.0,
        )
        x = left[:, None] + (part % 16)[None, :]
        y = top[:, None] + (part // 16)[None, :]
        gradients = tl.load(
            gradient_ptr + plane[:, None] + (y * width + x),
            inside & (x < width) & (y < height),
            other=0.0,
        )
        total = tl.dot(tl.trans(windows), gradients, total, input_precision="ieee")
    size = (KERNEL + 3) * 32 * 64
    out_ptr += (split * channels + channel) * size + pair * 64 * 64
    tl.store(out_ptr + part[:, None] * 64 + part[None, :], total)


def bands_of(kernel: Tensor, dtype: torch.dtype, mirrored: bool = False) -> Tensor:
    """The bands of depthwise kernels.

    Args:
        kernel: `(.., C, 1, K, K)`, K odd, up to `LARGEST_KERNEL`.
        dtype: of the result.
        mirrored: turn the kernels by 180 degrees, for the gradient of the input.

    Returns:
        `(.., C, (K + 3) * 32, 64)`: a window's pixels, and a tile's.
    """
    size = kernel.shape[-1]
    spread, _ = _indices(size, mirrored, kernel.device)
    with_zero = functional.pad(kernel.flatten(-3).to(dtype), (0, 1))
    return with_zero[..., spread].unflatten(-1, (-1, _ROWS * _COLUMNS))


def convolve(
    x: Tensor,
    bands: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """A depthwise convolution, "same" zero padding.

    Args:
        x: `(B, C, H, W)`.
        bands: of `bands_of`, in the dtype of `x`.
        bias: `(C,)`; None: zero.
        residual: `(B, C, H, W)`, added to the result; None: zero.

    Returns:
        `(B, C, H, W)` in the dtype of `x`.
    """
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    batch, channels, height, width = x.shape
    across, tiles = _tiles(height, width)
    out = torch.empty_like(x)
    with torch.cuda.device_of(x):  # Triton starts kernels on the current one
        _convolve[(triton.cdiv(batch * tiles, CONVOLVE["BLOCK"]), channels)](
            x,
            bands,
            x if bias is None else bias,
            x if residual is None else residual,
            out,
            channels,
            height,
            width,
            across,
            tiles,
            batch * tiles,
            KERNEL=_kernel_size(bands),
            HAS_BIAS=bias is not None,
            HAS_RESIDUAL=residual is not None,
            **CONVOLVE,
        )
    return out


def new_bands_gradients(kernel: Tensor) -> Tensor:
    """Room for what `bands_gradient` writes, for kernels `(.., C, 1, K, K)`."""
    *lead, channels, _, _, size = kernel.shape
    places = (size + _ROWS - 1) * _WINDOW * _ROWS * _COLUMNS
    return kernel.new_empty((*lead, _SPLITS, channels, places), dtype=torch.float32)


def bands_gradient(x: Tensor, gradient: Tensor, size: int, out: Tensor) -> None:
    """Write the gradient of the bands, in parts; `kernel_gradient` sums them.

    Args:
        x: `(B, C, H, W)`, what was convolved.
        gradient: of the result, likewise.
        size: K.
        out: of `new_bands_gradients`, for one convolution.
    """
    x, gradient = x.contiguous(), gradient.contiguous()
    batch, channels, height, width = x.shape
    across, tiles = _tiles(height, width)
    with torch.cuda.device_of(x):  # Triton starts kernels on the current one
        _gather_bands_gradient[(channels, (size + _ROWS - 1) // 2, _SPLITS)](
            x,
            gradient,
            out,
            channels,
            height,
            width,
            across,
            tiles,
            batch * tiles,
            KERNEL=size,
            **GRADIENT,
        )


def kernel_gradient(bands: Tensor, size: int) -> Tensor:
    """The gradient of depthwise kernels, from that of their bands.

    Args:
        bands: of `new_bands_gradients`, filled by `bands_gradient`.
        size: K.

    Returns:
        `(.., C, 1, K, K)`, float32.
    """
    _, gathered = _indices(size, False, bands.device)
    places = bands[..., gathered].unflatten(-1, (size, size, -1))
    return places.sum((-5, -1)).unsqueeze(-3)


def _tiles(height: int, width: int) -> tuple[int, int]:
    """How many tiles lie side by side in a picture, and how many in all."""
    across = triton.cdiv(width, _COLUMNS)
    return across, across * triton.cdiv(height, _ROWS)


def _kernel_size(bands: Tensor) -> int:
    return bands.shape[1] // _WINDOW - _ROWS + 1


@cache
def _indices(size: int, mirrored: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """From a kernel to its bands and back.

    Returns:
        For each value of the bands its place in the kernel, `size**2` for a zero; and
        for each place in the kernel its 64 places in the bands, one after another.
    """
    window_y, window_x, y, x = torch.meshgrid(
        *map(torch.arange, (size + _ROWS - 1, _WINDOW, _ROWS, _COLUMNS)), indexing="ij"
    )
    row, column = window_y - y, window_x - x - (_LEAD - size // 2)
    held = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    if mirrored:
        row, column = size - 1 - row, size - 1 - column
    spread = torch.where(held, row * size + column, size * size).flatten()
    gathered = spread.argsort(stable=True)[: size * size * _ROWS * _COLUMNS]
    return spread.to(device), gathered.to(device)
