"""Gradients of the feed-forward, in Triton; see `feed_forward` for what it computes.

The gradient of the input takes one kernel, which leaves in the GPU's memory what the
gradients of the weights are products of; a second one sums those over the pixels.
"""

from typing import NamedTuple, Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from aethernet.runtimes.triton.feed_forward import Projections, normalized

_SPLITS = 32  # parts of the pixels that are summed one by one in a gradient
# See `feed_forward.FORWARD`.
BACKWARD = [
    {"BLOCK": 64, "STEP": 32, "num_warps": 4, "num_stages": 1},
    {"BLOCK": 32, "STEP": 32, "num_warps": 8, "num_stages": 1},
]
PRODUCTS = [
    {"BLOCK": 64, "ROWS": 64, "num_warps": 4, "num_stages": 3},
    {"BLOCK": 64, "ROWS": 64, "num_warps": 8, "num_stages": 3},
]


@triton.jit
def _backward(
    u_ptr,
    gradient_ptr,
    out_ptr,
    normal_ptr,
    work_ptr,
    sums_ptr,
    gate_ptr,
    main_ptr,
    last_ptr,
    gate_bias_ptr,
    main_bias_ptr,
    channels,
    pixels,
    eps,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """The gradient of `u`, and its sum; what those of the weights are products of."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, WIDTH)
    number = tl.program_id(1).to(tl.int64)
    place = number * channels * pixels + (c[None, :] * pixels + pixel[:, None])
    inside = (pixel < pixels)[:, None]
    held = inside & (c < channels)[None, :]
    dtype = u_ptr.dtype.element_ty
    exact, inverse = normalized(u_ptr, place, held, channels, eps)
    normal = exact.to(dtype)
    tl.store(normal_ptr + place, normal, held)
    gradient = tl.load(gradient_ptr + place, held, other=0.0)
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    work_ptr += number * 3 * HIDDEN * pixels
    for start in range(0, HIDDEN, STEP):
        j = start + tl.arange(0, STEP)
        tile = c[:, None] * HIDDEN + j[None, :]
        gate_weight = tl.load(gate_ptr + tile)
        main_weight = tl.load(main_ptr + tile)
        gate = tl.dot(normal, gate_weight, input_precision="ieee")
        gate += tl.load(gate_bias_ptr + j)[None, :]
        main = tl.dot(normal, main_weight, input_precision="ieee")
        main += tl.load(main_bias_ptr + j)[None, :]
        of_hidden = tl.dot(gradient, tl.load(last_ptr + tile), input_precision="ieee")
        below = 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
        slope = below + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
        of_gate = (of_hidden * main * slope).to(dtype)
        of_main = (of_hidden * gate * below).to(dtype)
        hidden = (gate * below * main).to(dtype)
        row = j[None, :] * pixels + pixel[:, None]
        tl.store(work_ptr + row, of_gate, inside)
        tl.store(work_ptr + HIDDEN * pixels + row, of_main, inside)
        tl.store(work_ptr + 2 * HIDDEN * pixels + row, hidden, inside)
        total = tl.dot(of_gate, tl.trans(gate_weight), total, input_precision="ieee")
        total = tl.dot(of_main, tl.trans(main_weight), total, input_precision="ieee")
    mean, along = tl.sum(total, 1) / channels, tl.sum(total * exact, 1) / channels
    total = (total - mean[:, None] - exact * along[:, None]) * inverse[:, None]
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), held)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums_ptr + program * WIDTH + c, tl.sum(total, 0))


@triton.jit
def _products(
    work_ptr,
    normal_ptr,
    gradient_ptr,
    out_ptr,
    sums_ptr,
    last_sums_ptr,
    channels,
    pixels,
    steps,
    count,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over pixels: rows of `work` times channels, and each alone."""
    first = tl.program_id(0) * ROWS
    split, splits = tl.program_id(1), tl.num_programs(1)
    row = first + tl.arange(0, ROWS)
    c = tl.arange(0, WIDTH)
    if first < 2 * HIDDEN:
        other_ptr = normal_ptr
    else:
        other_ptr = gradient_ptr
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    sums = tl.zeros((ROWS,), tl.float32)
    last_sums = tl.zeros((WIDTH,), tl.float32)
    for number in range(split, count, splits):
        sample = (number // steps).to(tl.int64)
        pixel = number % steps * BLOCK + tl.arange(0, BLOCK)
        inside = (pixel < pixels)[None, :]
        rows = tl.load(
            work_ptr
            + sample * (3 * HIDDEN) * pixels
            + (row[:, None] * pixels + pixel[None, :]),
            inside,
            other=0.0,
        )
        others = tl.load(
            other_ptr
            + sample * channels * pixels
            + (c[:, None] * pixels + pixel[None, :]),
            inside & (c < channels)[:, None],
            other=0.0,
        )
        total = tl.dot(rows, tl.trans(others), total, input_precision="ieee")
        sums += tl.sum(rows.to(tl.float32), 1)
        last_sums += tl.sum(others.to(tl.float32), 1)
    if first == 2 * HIDDEN:
        tl.store(last_sums_ptr + split * WIDTH + c, last_sums)
    row += split * (3 * HIDDEN)
    tl.store(out_ptr + row[:, None] * WIDTH + c[None, :], total)
    tl.store(sums_ptr + row, sums)


class Partial(NamedTuple):
    """Gradients of a feed-forward's weights and of `u`, in parts to be summed."""

    products: Tensor
    """`(.., parts, 3, hidden, C)`, float32 and padded like the others: of the weights,
    the gate's, the main one's and the last one's."""
    sums: Tensor
    """`(.., parts, 3, hidden)`; of the biases of the first two."""
    last_sums: Tensor
    """`(.., parts, C)`; of the bias of the last."""
    u_sums: Tensor
    """`(.., parts, C)`; of the bias of the convolution before."""

    @classmethod
    def room(cls, weights: Projections, u: Tensor) -> Self:
        """Not filled yet, for weights `(.., C, hidden)` and `u` `(B, C, H, W)`."""
        *lead, across, hidden = weights.gate.shape
        batch, pixels = len(u), u.shape[-2] * u.shape[-1]
        parts = _splits(weights, u)
        programs = batch * triton.cdiv(pixels, BACKWARD[across > 128]["BLOCK"])
        return cls(
            *(
                u.new_empty((*lead, *shape), dtype=torch.float32)
                for shape in (
                    (parts, 3, hidden, across),
                    (parts, 3, hidden),
                    (parts, across),
                    (programs, across),
                )
            )
        )

    def summed(self) -> tuple[Projections, Tensor]:
        """Gradients `(..)` of the weights, and of the bias before; still padded."""
        products = self.products.sum(-4).mT
        sums = self.sums.sum(-3)
        gate, main, last = products.unbind(-3)
        gate_bias, main_bias, _ = sums.unbind(-2)
        last_bias = self.last_sums.sum(-2)
        found = Projections(gate, main, last, gate_bias, main_bias, last_bias)
        return found, self.u_sums.sum(-2)


def feed_forward_gradients(
    u: Tensor, gradient: Tensor, weights: Projections, eps: float, out: Partial
) -> Tensor:
    """Gradients of `feed_forward`, without that of `x`, which is `gradient`.

    Args:
        u: as in `feed_forward`.
        gradient: of the result.
        weights: as in `feed_forward`.
        eps: of LayerNorm.
        out: receives the gradients of the weights.

    Returns:
        The gradient of `u`.
    """
    u, gradient = u.contiguous(), gradient.contiguous()
    batch, channels, height, width = u.shape
    pixels = height * width
    across, hidden = weights.gate.shape
    of_u, normal = torch.empty_like(u), torch.empty_like(u)
    work = u.new_empty((batch, 3 * hidden, pixels))
    chosen = BACKWARD[across > 128]
    with torch.cuda.device_of(u):  # Triton starts kernels on the current one
        _backward[(triton.cdiv(pixels, chosen["BLOCK"]), batch)](
            u,
            gradient,
            of_u,
            normal,
            work,
            out.u_sums,
            weights.gate,
            weights.main,
            weights.last,
            weights.gate_bias,
            weights.main_bias,
            channels,
            pixels,
            eps,
            WIDTH=across,
            HIDDEN=hidden,
            **chosen,
        )
    _sum_products(u, gradient, normal, work, weights, out)
    return of_u


def _sum_products(
    u: Tensor,
    gradient: Tensor,
    normal: Tensor,
    work: Tensor,
    weights: Projections,
    out: Partial,
) -> None:
    """Sum over pixels what `_backward` left, into the gradients of the weights."""
    batch, channels, height, width = u.shape
    across, hidden = weights.gate.shape
    chosen = PRODUCTS[across > 128]
    steps = triton.cdiv(height * width, chosen["BLOCK"])
    with torch.cuda.device_of(u):
        _products[(3 * hidden // chosen["ROWS"], _splits(weights, u))](
            work,
            normal,
            gradient,
            out.products,
            out.sums,
            out.last_sums,
            channels,
            height * width,
            steps,
            batch * steps,
            WIDTH=across,
            HIDDEN=hidden,
            **chosen,
        )


def _splits(weights: Projections, u: Tensor) -> int:
    """Into how many parts the pixels are divided for the gradients of the weights."""
    block = PRODUCTS[weights.gate.shape[-2] > 128]["BLOCK"]
    steps = triton.cdiv(u.shape[-2] * u.shape[-1], block)
    return min(_SPLITS, len(u) * steps)
