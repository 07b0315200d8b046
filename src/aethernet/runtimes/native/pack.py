"""Weights in the layouts that `kernels.c` reads, from a folded network.

The layouts depend on L, the numbers in a vector: channels are in groups of L, output
channels of a product in panels of 2 L. Unused places are zero.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from aethernet.checkpoints.folded import Block, Convolution, Folded, Tail

Floats = npt.NDArray[np.float32]
Exact = npt.NDArray[np.float64]

TOP, BOTTOM, LEFT, RIGHT = 4, 8, 1, 2
"""Bits of an edge: on which sides of the picture a position is the outermost."""


@dataclass(frozen=True, eq=False)
class PackedConvolution:
    """A square convolution, or a product where the kernel is 1."""

    channels: int
    out_channels: int
    kernel: int
    weights: Floats
    """[panel][ky][group][kx][lane][2 L]; the last group has only its channels' lanes,
    so that a product is [panel][channel][2 L]"""
    bias: Floats
    """[panel][2 L]"""

    @cached_property
    def addresses(self) -> tuple[int, int]:
        """Where weights and bias begin."""
        return self.weights.ctypes.data, self.bias.ctypes.data


@dataclass(frozen=True, eq=False)
class PackedBlock:
    """The weights of one AetherBlock."""

    channels: int
    hidden: int
    kernel: int
    depthwise: Floats
    """[group][ky][kx][L]"""
    depthwise_bias: Floats
    """[group][L]"""
    expand: PackedConvolution
    """To panels of L gate channels and the L main channels that belong to them."""
    project: PackedConvolution


@dataclass(frozen=True, eq=False)
class PackedNorm:
    """Scale and shift of the last LayerNorm, [group][L]."""

    channels: int
    scale: Floats
    shift: Floats


def aligned(count: int) -> Floats:
    """Zeros that start at a multiple of 64 bytes, a line of the cache."""
    memory = np.zeros(count + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + count]


def _filled(values: npt.NDArray[np.floating], shape: tuple[int, ...]) -> Floats:
    """`values` in the corner of zeros of this shape."""
    result = aligned(int(np.prod(shape))).reshape(shape)
    result[tuple(map(slice, values.shape))] = values
    return result


def _kept(values: npt.NDArray[np.floating]) -> Floats:
    """As one aligned row."""
    result = aligned(values.size)
    result[:] = values.ravel()
    return result


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def pack_convolution(convolution: Convolution, lanes: int) -> PackedConvolution:
    """Pack weights of shape (out, in, kernel, kernel) for vectors of `lanes`."""
    weight = convolution.weight
    out, channels, kernel, _ = weight.shape
    panels = _up(out, 2 * lanes) // (2 * lanes)
    shape = (panels * 2 * lanes, channels, kernel, kernel)
    rows = _filled(weight, shape).reshape(panels, 2 * lanes, *shape[1:])
    full = channels // lanes * lanes
    pieces = []
    for part in (rows[:, :, :full], rows[:, :, full:]):
        if part.shape[2]:
            width = min(lanes, part.shape[2])
            grouped = part.reshape(panels, 2 * lanes, -1, width, kernel, kernel)
            # -> panel, ky, group, kx, lane, 2 L
            moved = grouped.transpose(0, 4, 2, 5, 3, 1)
            pieces.append(moved.reshape(panels, kernel, -1))
    weights = _kept(np.concatenate(pieces, axis=2))
    bias = _filled(convolution.bias, (panels * 2 * lanes,))
    return PackedConvolution(channels, out, kernel, weights, bias)


def pack_block(block: Block, lanes: int) -> PackedBlock:
    """Pack a block of a folded network for vectors of `lanes`."""
    channels, _, kernel, _ = block.depthwise.weight.shape
    hidden = len(block.gate.bias)
    wide, wide_hidden = _up(channels, lanes), _up(hidden, lanes)
    depthwise = _filled(block.depthwise.weight[:, 0], (wide, kernel, kernel))
    depthwise = depthwise.reshape(-1, lanes, kernel, kernel).transpose(0, 2, 3, 1)
    gate_and_main = [
        (
            _filled(part.weight[:, :, 0, 0], (wide_hidden, channels)),
            _filled(part.bias, (wide_hidden,)),
        )
        for part in (block.gate, block.main)
    ]
    # By turns L rows of the gate and L rows of main.
    weight = np.stack(
        [w.reshape(-1, lanes, channels) for w, _ in gate_and_main], axis=1
    ).reshape(2 * wide_hidden, channels, 1, 1)
    bias = np.stack([b.reshape(-1, lanes) for _, b in gate_and_main], axis=1).ravel()
    return PackedBlock(
        channels,
        hidden,
        kernel,
        _kept(depthwise),
        _filled(block.depthwise.bias, (wide,)),
        pack_convolution(Convolution(weight, bias), lanes),
        pack_convolution(block.last, lanes),
    )


def pack_norm(folded: Folded, lanes: int) -> PackedNorm:
    """Pack the last LayerNorm for vectors of `lanes`."""
    channels = len(folded.norm_weight)
    wide = _up(channels, lanes)
    return PackedNorm(
        channels,
        _filled(folded.norm_weight, (wide,)),
        _filled(folded.norm_bias, (wide,)),
    )


class Ending:
    """All after the last activation as one convolution before one PixelShuffle.

    A folded network has it in `steps` and a `tail` with corrections for the outermost
    pixels. Nothing in it is non-linear, so that all steps are one convolution, 5x5
    again: a pixel of the x2 grid reaches two pixels far on its own grid, which with the
    3x3 of the step before is two positions of the grid below. That takes a third of the
    multiply-adds for 4x, and no memory for the larger grids.

    Every grid is padded with zeros on its own, and the corrections go into the kernels:
    positions at an edge of the picture have kernels of their own, for the 4 bits `TOP`,
    `BOTTOM`, `LEFT`, `RIGHT`. They are made when first asked for, in float64.
    """

    def __init__(self, folded: Folded) -> None:
        self.tail = folded.tail
        self.steps = folded.steps
        self.in_chans, self.scale = folded.in_chans, folded.scale
        self._made: dict[tuple[int, int], tuple[Exact, Exact]] = {}

    @cached_property
    def kernel(self) -> int:
        """Side of the kernels: 5, or 3 where nothing is enlarged."""
        return self.tail.whole.weight.shape[-1]

    def at(self, edge: int) -> Convolution:
        """The convolution for positions with these edges: (in_chans * scale**2, 64).

        `edge` is the sum of the bits of the sides where the position is outermost.
        """
        return Convolution(*self._from(0, edge))

    def _from(self, level: int, edge: int) -> tuple[Exact, Exact]:
        """Weight and bias of all from step `level` on, for one edge."""
        key = (level, edge)
        if key not in self._made:
            if level == len(self.steps):
                self._made[key] = _tail_at(self.tail, self.in_chans, edge)
            else:
                self._made[key] = self._joined(level, edge)
        return self._made[key]

    def _joined(self, level: int, edge: int) -> tuple[Exact, Exact]:
        """Step `level` and what comes after it, as one 5x5 convolution."""
        step, factor = self.steps[level]
        finer = self._finer(level)
        channels = step.weight.shape[1]
        seen, constants = [], []
        for p, q in np.ndindex(factor, factor):
            inner = (TOP if p == 0 else 0) | (BOTTOM if p == factor - 1 else 0)
            inner |= (LEFT if q == 0 else 0) | (RIGHT if q == factor - 1 else 0)
            kernel, constant = self._from(level + 1, edge & inner)
            seen.append(_cut(kernel, p, q, factor, edge))
            constants.append(constant)
        # One product for all pixels: they are few, and the weights large.
        parts, added = _before_shuffle(np.concatenate(seen), step, factor)
        shape = (factor, factor, self.in_chans, finer, finer)
        weight = parts.reshape(*shape, channels, 5, 5)
        weight = weight.transpose(2, 0, 3, 1, 4, 5, 6, 7)
        bias = (np.concatenate(constants) + added).reshape(shape)
        bias = bias.transpose(2, 0, 3, 1, 4)  # PixelShuffle's order
        count = self.in_chans * (factor * finer) ** 2
        return weight.reshape(count, channels, 5, 5), bias.ravel()

    def _finer(self, level: int) -> int:
        """Output pixels along a side for one pixel of the grid after step `level`."""
        factors = [factor for _, factor in self.steps[level + 1 :]]
        return int(np.prod(factors, dtype=int)) * self.tail.factor


def _tail_at(tail: Tail, in_chans: int, edge: int) -> tuple[Exact, Exact]:
    """The tail's kernel with the corrections for one edge in it."""
    weight = tail.whole.weight.astype(np.float64)
    bias = tail.whole.bias.astype(np.float64)
    if tail.edges is None or not edge:
        return weight, bias
    factor, edges = tail.factor, tail.edges
    at = np.arange(factor)
    first, last = at == 0, at == factor - 1
    vertical = (first & bool(edge & TOP)) | (last & bool(edge & BOTTOM))
    horizontal = (first & bool(edge & LEFT)) | (last & bool(edge & RIGHT))
    shape = (in_chans, factor, factor)
    rows = np.broadcast_to(vertical[:, None], shape).ravel()
    columns = np.broadcast_to(horizontal, shape).ravel()
    both = rows & columns
    weight[rows, :, 2] -= edges.rows.weight[rows, :, 0]
    bias[rows] -= edges.rows.bias[rows]
    weight[columns, :, :, 2] -= edges.columns.weight[columns, :, :, 0]
    bias[columns] -= edges.columns.bias[columns]
    weight[both, :, 2, 2] += edges.corners.weight[both, :, 0, 0]
    bias[both] += edges.corners.bias[both]
    return weight, bias


def _cut(kernel: Exact, p: int, q: int, factor: int, edge: int) -> Exact:
    """A 5x5 kernel at pixel (p, q) of a position, as seen from the 3x3 positions.

    Pixels outside the picture are zeros, so the kernel's weights there count nothing.

    Returns:
        (out, channels, 3 * factor, 3 * factor)
    """
    size = 3 * factor
    seen = np.zeros((*kernel.shape[:2], size, size))
    top, left = factor + p - 2, factor + q - 2
    seen[:, :, top : top + 5, left : left + 5] = kernel
    for bit, outside in (
        (TOP, np.s_[:, :, :factor]),
        (BOTTOM, np.s_[:, :, 2 * factor :]),
        (LEFT, np.s_[:, :, :, :factor]),
        (RIGHT, np.s_[:, :, :, 2 * factor :]),
    ):
        if edge & bit:
            seen[outside] = 0
    return seen


def _before_shuffle(seen: Exact, step: Convolution, factor: int) -> tuple[Exact, Exact]:
    """What `seen` of `_cut` says of the positions before a 3x3 and a PixelShuffle.

    Returns:
        (out, channels, 5, 5) and (out,).
    """
    out, narrow = seen.shape[:2]
    weight = step.weight.astype(np.float64)
    channels = weight.shape[1]
    # (out, c, position, i, position, j) -> (position, position, out, c * f * f)
    split = seen.reshape(out, narrow, 3, factor, 3, factor)
    rows = split.transpose(2, 4, 0, 1, 3, 5).reshape(9 * out, -1)
    products = (rows @ weight.reshape(len(weight), -1)).reshape(
        3, 3, out, channels, 3, 3
    )
    result = np.zeros((out, channels, 5, 5))
    for y, x in np.ndindex(3, 3):
        result[:, :, y : y + 3, x : x + 3] += products[y, x]
    bias = rows @ step.bias.astype(np.float64)
    return result, bias.reshape(9, out).sum(0)
