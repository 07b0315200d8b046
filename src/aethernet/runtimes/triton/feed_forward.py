"""LayerNorm, gated feed-forward and residual of a block in one kernel.

`x + last(GELU(gate(n)) * main(n))` with `n` the normalized channels of a pixel. What
LayerNorm multiplies and adds stands in the two projections' weights. A program
computes some pixels whole, so that of the intermediate values nothing goes through the
GPU's memory: 2 reads and 1 write of the features instead of some twenty.

Tensors are `(B, C, H, W)`, contiguous, float16, bfloat16 or float32; sums, LayerNorm
and GELU are in float32. GELU is the exact one, with erf, or for half precision within
5e-5 of it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

LARGEST_WIDTH = 256  # channels: a program holds all of a pixel
_HIDDEN_STEP = 64  # hidden channels are padded to a multiple of this
# Pixels and hidden channels that one program computes at once, and how it is compiled,
# for up to 128 channels and for more. The first of each is the fastest of those that
# benchmarks/triton_kernels.py --search tries, on an H200; the second was not searched.
FORWARD = [
    {"BLOCK": 64, "STEP": 64, "num_warps": 4, "num_stages": 2},
    {"BLOCK": 64, "STEP": 32, "num_warps": 8, "num_stages": 2},
]
# The same for `_forward_kept`, for 96 and 128 channels on an H100.
KEPT = {"BLOCK": 128, "STEP": 64, "num_warps": 8, "num_stages": 1}


class Projections(NamedTuple):
    """The weights of a feed-forward, padded by zeros to powers of two."""

    gate: Tensor
    """`(C, hidden)`, as the other two."""
    main: Tensor
    last: Tensor
    gate_bias: Tensor
    """`(hidden,)`, float32."""
    main_bias: Tensor
    last_bias: Tensor
    """`(C,)`, float32."""


@triton.jit
def normalized(u_ptr, place, held, channels, eps):  # noqa: ANN201
    """Pixels' channels with mean 0 and variance 1, and 1 / standard deviation."""
    u = tl.load(u_ptr + place, held, other=0.0).to(tl.float32)
    mean = tl.sum(u, 1) / channels
    centred = tl.where(held, u - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / channels + eps)
    return centred * inverse[:, None], inverse


@triton.jit
def _finish(total, x_ptr, out_ptr, bias_ptr, place, held):
    """Add the bias and the residual, and store."""
    total += tl.load(bias_ptr)[None, :]
    total += tl.load(x_ptr + place, held, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), held)


@triton.jit
def _forward(
    u_ptr,
    x_ptr,
    out_ptr,
    gate_ptr,
    main_ptr,
    last_ptr,
    gate_bias_ptr,
    main_bias_ptr,
    last_bias_ptr,
    channels,
    pixels,
    eps,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, WIDTH)
    sample = tl.program_id(1).to(tl.int64) * channels * pixels
    place = sample + (c[None, :].to(tl.int64) * pixels + pixel[:, None])
    held = (pixel < pixels)[:, None] & (c < channels)[None, :]
    normal, _ = normalized(u_ptr, place, held, channels, eps)
    normal = normal.to(u_ptr.dtype.element_ty)
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    for start in range(0, HIDDEN, STEP):
        j = start + tl.arange(0, STEP)
        tile = c[:, None] * HIDDEN + j[None, :]
        gate = tl.dot(normal, tl.load(gate_ptr + tile), input_precision="ieee")
        gate += tl.load(gate_bias_ptr + j)[None, :]
        main = tl.dot(normal, tl.load(main_ptr + tile), input_precision="ieee")
        main += tl.load(main_bias_ptr + j)[None, :]
        hidden = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476)) * main
        last = tl.trans(tl.load(last_ptr + tile))
        hidden = hidden.to(u_ptr.dtype.element_ty)
        total = tl.dot(hidden, last, total, input_precision="ieee")
    _finish(total, x_ptr, out_ptr, last_bias_ptr + c, place, held)


@triton.jit
def _gelu(x):
    """GELU within 5e-5, for half precision, in half of the instructions of erf.

    The normal distribution is an odd polynomial, fitted for the least error of GELU
    between -4.4 and 4.4 and constant beyond.
    """
    near = tl.minimum(tl.maximum(x, -4.4), 4.4)
    square = near * near
    total = 3.57265751e-11 * square - 3.75665458e-09
    total = total * square + 1.74171736e-07
    total = total * square - 4.72642113e-06
    total = total * square + 8.43089859e-05
    total = total * square - 1.05508745e-03
    total = total * square + 9.64333741e-03
    total = total * square - 6.60769124e-02
    total = total * square + 3.98761864e-01
    return x * (0.5 + near * total)


@triton.jit
def _normalized_parts(u_ptr, place_c, place_d, inside, held_c, held_d, channels, eps):
    """As `normalized`, of channels in two parts, and in the dtype of the features."""
    u_c = tl.load(u_ptr + place_c, inside & held_c, other=0.0)
    u_d = tl.load(u_ptr + place_d, inside & held_d, other=0.0)
    exact_c, exact_d = u_c.to(tl.float32), u_d.to(tl.float32)
    mean = (tl.sum(exact_c, 1) + tl.sum(exact_d, 1)) / channels
    exact_c = tl.where(held_c, exact_c - mean[:, None], 0.0)
    exact_d = tl.where(held_d, exact_d - mean[:, None], 0.0)
    squares = tl.sum(exact_c * exact_c, 1) + tl.sum(exact_d * exact_d, 1)
    inverse = tl.rsqrt(squares / channels + eps)[:, None]
    return (exact_c * inverse).to(u_c.dtype), (exact_d * inverse).to(u_d.dtype)


@triton.jit
def _forward_kept(
    u_ptr,
    x_ptr,
    out_ptr,
    gate_ptr,
    main_ptr,
    last_ptr,
    gate_bias_ptr,
    main_bias_ptr,
    last_bias_ptr,
    channels,
    pixels,
    steps,
    count,
    eps,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """As `_forward`, for half precision and weights that shared memory can hold.

    A program reads them once and goes on from pixels to pixels. The channels are in two
    parts, so that 96 are 64 and 32 instead of a padded 128.
    """
    c, d = tl.arange(0, FIRST), FIRST + tl.arange(0, SECOND)
    kept = ()
    for start in tl.static_range(0, HIDDEN, STEP):
        j = start + tl.arange(0, STEP)
        upper = c[:, None] * HIDDEN + j[None, :]
        lower = d[:, None] * HIDDEN + j[None, :]
        kept += (tl.load(gate_ptr + upper), tl.load(gate_ptr + lower))
        kept += (tl.load(main_ptr + upper), tl.load(main_ptr + lower))
        kept += (tl.load(last_ptr + upper), tl.load(last_ptr + lower))
    for number in range(tl.program_id(0), count, tl.num_programs(0)):
        sample = (number // steps).to(tl.int64) * channels * pixels
        pixel = number % steps * BLOCK + tl.arange(0, BLOCK)
        inside = (pixel < pixels)[:, None]
        # Places count from the picture on, in 32 bits: half of the instructions.
        place_c = c[None, :] * pixels + pixel[:, None]
        place_d = d[None, :] * pixels + pixel[:, None]
        held_c, held_d = (c < channels)[None, :], (d < channels)[None, :]
        u_c, u_d = _normalized_parts(
            u_ptr + sample, place_c, place_d, inside, held_c, held_d, channels, eps
        )
        total_c = tl.zeros((BLOCK, FIRST), tl.float32)
        total_d = tl.zeros((BLOCK, SECOND), tl.float32)
        for step in tl.static_range(HIDDEN // STEP):
            j = step * STEP + tl.arange(0, STEP)
            gate = tl.dot(u_d, kept[6 * step + 1], tl.dot(u_c, kept[6 * step]))
            gate += tl.load(gate_bias_ptr + j)[None, :]
            main = tl.dot(u_d, kept[6 * step + 3], tl.dot(u_c, kept[6 * step + 2]))
            main += tl.load(main_bias_ptr + j)[None, :]
            hidden = (_gelu(gate) * main).to(u_c.dtype)
            total_c = tl.dot(hidden, tl.trans(kept[6 * step + 4]), total_c)
            total_d = tl.dot(hidden, tl.trans(kept[6 * step + 5]), total_d)
        x, out, bias = x_ptr + sample, out_ptr + sample, last_bias_ptr
        _finish(total_c, x, out, bias + c, place_c, inside & held_c)
        _finish(total_d, x, out, bias + d, place_d, inside & held_d)


def projections(
    gate: Tensor,
    gate_bias: Tensor,
    main: Tensor,
    main_bias: Tensor,
    last: Tensor,
    last_bias: Tensor,
    dtype: torch.dtype,
) -> Projections:
    """Pad the weights of a feed-forward, or of several at once, and convert them.

    Args:
        gate: `(.., hidden, C)`, with LayerNorm's weight in it; `main` likewise.
        gate_bias: `(.., hidden)`, with LayerNorm's bias in it; `main_bias` likewise.
        main: see `gate`.
        main_bias: see `gate_bias`.
        last: `(.., C, hidden)`.
        last_bias: `(.., C)`.
        dtype: of the matrices; biases are float32.
    """
    channels, hidden = last.shape[-2:]
    right = -hidden % _HIDDEN_STEP
    below = _width(channels) - channels

    def matrix(values: Tensor) -> Tensor:
        return functional.pad(values.to(dtype), (0, right, 0, below)).contiguous()

    def vector(values: Tensor, more: int) -> Tensor:
        return functional.pad(values.float(), (0, more))

    return Projections(
        matrix(gate.mT),
        matrix(main.mT),
        matrix(last),
        vector(gate_bias, right),
        vector(main_bias, right),
        vector(last_bias, below),
    )


def feed_forward(u: Tensor, x: Tensor, weights: Projections, eps: float) -> Tensor:
    """`x + last(GELU(gate(n)) * main(n))`, n the LayerNorm of `u` over channels.

    Args:
        u: `(B, C, H, W)`.
        x: the same.
        weights: see `projections`, of the dtype of `u`.
        eps: of LayerNorm.
    """
    u, x = u.contiguous(), x.contiguous()
    batch, channels, height, width = u.shape
    out = torch.empty_like(u)
    pixels = height * width
    across, hidden = weights.gate.shape
    tensors = (
        *(u, x, out, weights.gate, weights.main, weights.last),
        *(weights.gate_bias, weights.main_bias, weights.last_bias),
    )
    programs = kept_programs(weights, u)
    with torch.cuda.device_of(u):  # Triton starts kernels on the current one
        if programs:
            first, second = _halves(channels)
            steps = triton.cdiv(pixels, KEPT["BLOCK"])
            _forward_kept[(min(programs, batch * steps),)](
                *tensors,
                channels,
                pixels,
                steps,
                batch * steps,
                eps,
                FIRST=first,
                SECOND=second,
                HIDDEN=hidden,
                **KEPT,
            )
            return out
        chosen = FORWARD[across > 128]
        _forward[(triton.cdiv(pixels, chosen["BLOCK"]), batch)](
            *tensors,
            channels,
            pixels,
            eps,
            WIDTH=across,
            HIDDEN=hidden,
            **chosen,
        )
    return out


def kept_programs(weights: Projections, u: Tensor) -> int:
    """How many programs of `_forward_kept` the GPU holds at once.

    0, which means `_forward`: for float32, for pictures whose places need 64 bits, and
    where a program's shared memory cannot hold the weights. `aether_small` needs
    132 KiB, which data-centre GPUs have.
    """
    if u.dtype is torch.float32 or u[0].numel() >= 2**31:
        return 0
    if not u.is_cuda:  # interpreted
        return 2
    channels, hidden = sum(_halves(u.shape[1])), weights.gate.shape[1]
    # The weights, the pixels at work, and what sums over channels take.
    needed = 2 * channels * (3 * hidden + KEPT["BLOCK"]) + 2048
    card = torch.cuda.get_device_properties(u.device)
    if needed > getattr(card, "shared_memory_per_block_optin", 0):
        return 0
    each = card.shared_memory_per_multiprocessor // needed
    return int(card.multi_processor_count * max(1, each))


def _halves(channels: int) -> tuple[int, int]:
    """Two powers of two, from 16, whose sum is as many channels or few more."""
    first = max(16, triton.next_power_of_2(channels) // 2)
    return first, max(16, triton.next_power_of_2(channels - first))


def _width(channels: int) -> int:
    """Channels, padded: a power of two, at least 32 for two parts of `_halves`."""
    return max(32, triton.next_power_of_2(channels))
