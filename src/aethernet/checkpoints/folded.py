"""The network as it is run: NumPy arrays in execution order. No PyTorch.

    picture (B, in_chans, H, W), 0..1
      | - mean, first 3x3 --------------------------------------+
      | blocks: x + last(GELU(gate(n)) * main(n)),              |
      |         n = (t - mean(t)) / sqrt(var(t) + BLOCK_EPS),   |
      |         t = depthwise(x)                                |
      | norm, after_body 3x3                                    |
      + <-------------------------------------------------------+
      | before_upsample 3x3, LeakyReLU
      | steps: 3x3, PixelShuffle
      | tail 5x5, PixelShuffle, + mean
    picture (B, in_chans, scale * H, scale * W), not clamped

It computes the same function as `aether_core.AetherNet`. What is folded holds for every
weight and is computed in float64:

- The small depthwise kernel is added to the large one: W = lk + pad(sk).
- A block's LayerNorm has a scale g and a shift b per channel. They go into the
  projections after it: W (g * n + b) + c = (W g) n + (W b + c). The last LayerNorm
  keeps its own: the 3x3 convolution after it pads with zeros, not with b.
- `img_range` goes into the first convolution and the last one.
- The last 3x3 convolution before a PixelShuffle ("widen"), that PixelShuffle and
  `conv_last` have nothing non-linear between them. They become one 5x5 convolution on
  the smaller grid, see `Tail`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from aethernet.checkpoints.layout import (
    UPSAMPLE_CHANNELS,
    UPSAMPLE_FACTORS,
    hyperparameters_from_shapes,
)

BLOCK_EPS = 1e-6
NORM_EPS = 1e-5
LEAKY_SLOPE = 0.01

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution of stride 1 with "same" zero padding; kernel sides are odd."""

    weight: Array
    """(out, in, rows, columns); (C, 1, rows, columns) where it is depthwise."""
    bias: Array
    """(out,)"""


@dataclass(frozen=True, eq=False)
class Block:
    """The weights of one AetherBlock."""

    depthwise: Convolution
    gate: Convolution
    """1x1 on the normalised features; holds LayerNorm's scale and shift."""
    main: Convolution
    """As `gate`."""
    last: Convolution
    """1x1, hidden -> C"""


@dataclass(frozen=True, eq=False)
class Edges:
    """What `Tail.whole` adds too much to the outermost pixels of the picture.

    `conv_last` pads with zeros. `whole` sees there what "widen" makes of its own
    padding instead. Of the `factor` x `factor` pixels that a PixelShuffle makes of one
    position, the first row is wrong in the first row of positions, the last row in the
    last one; the same for columns. The exact result is

        whole(x) - rows(x) - columns(x) + corners(x),

    where `rows` counts at those rows only, `columns` at those columns only and
    `corners` where both count, because there it was subtracted twice.
    """

    rows: Convolution
    """(out, 64, 1, 5)"""
    columns: Convolution
    """(out, 64, 5, 1)"""
    corners: Convolution
    """(out, 64, 1, 1)"""


@dataclass(frozen=True, eq=False)
class Tail:
    """From 64 channels to the picture, before `mean` is added."""

    whole: Convolution
    """(in_chans * factor**2, 64, 5, 5) before a PixelShuffle; (in_chans, 64, 3, 3)
    where `factor` is 1."""
    factor: int
    edges: Edges | None
    """None where `factor` is 1."""


@dataclass(frozen=True, eq=False)
class Folded:
    """A network in execution order. All arrays are read-only and of one dtype."""

    in_chans: int
    scale: int
    mean: float
    """Subtracted from the picture, and added to the result."""
    first: Convolution
    blocks: tuple[Block, ...]
    norm_weight: Array
    """(C,), of the last LayerNorm"""
    norm_bias: Array
    after_body: Convolution
    before_upsample: Convolution
    steps: tuple[tuple[Convolution, int], ...]
    """Convolutions before a PixelShuffle, and its factor; those before the tail."""
    tail: Tail


def fold(
    state_dict: Mapping[str, Array],
    img_range: float = 1.0,
    dtype: npt.DTypeLike = np.float32,
) -> Folded:
    """Fold a state dict, of the training form or the fused form.

    Args:
        state_dict: floating-point arrays by key.
        img_range: as the network was trained; no weight tells it.
        dtype: of the result; float64 is for proofs.

    Raises:
        CheckpointError: when it is not the state dict of an AetherNet.
    """
    shapes = {key: value.shape for key, value in state_dict.items()}
    arguments = hyperparameters_from_shapes(shapes)
    exact = {key: np.asarray(value, np.float64) for key, value in state_dict.items()}
    held = partial(_held, dtype=np.dtype(dtype))

    def convolution(name: str, factor: float = 1.0) -> Convolution:
        return held(exact[f"{name}.weight"] * factor, exact[f"{name}.bias"])

    blocks = [
        _block(exact, f"layers.{group}.{block}.", held)
        for group, depth in enumerate(arguments["depths"])
        for block in range(depth)
    ]
    factors = UPSAMPLE_FACTORS[arguments["scale"]]
    norm = held(exact["norm.weight"], exact["norm.bias"])
    return Folded(
        in_chans=arguments["in_chans"],
        scale=arguments["scale"],
        mean=0.5 if arguments["in_chans"] == 3 else 0.0,
        first=convolution("conv_first", img_range),
        blocks=tuple(blocks),
        norm_weight=norm.weight,
        norm_bias=norm.bias,
        after_body=convolution("conv_after_body"),
        before_upsample=convolution("conv_before_upsample.0"),
        steps=tuple(
            (convolution(f"upsample.{2 * i}"), factor)
            for i, factor in enumerate(factors[:-1])
        ),
        tail=_tail(exact, factors, img_range, held),
    )


def _held(weight: Array, bias: Array, dtype: npt.DTypeLike) -> Convolution:
    """These weights in a dtype, read-only."""
    parts = []
    for part in (weight, bias):
        with np.errstate(over="ignore"):  # what overflows shows in the output
            array: Array = np.array(part, dtype, order="C")  # a copy
        array.flags.writeable = False
        parts.append(array)
    return Convolution(*parts)


def depthwise_kernel(exact: Mapping[str, Array], prefix: str) -> tuple[Array, Array]:
    """The kernel `(C, 1, rows, columns)` and the bias of a block's convolution.

    Args:
        exact: a state dict in float64, of either form.
        prefix: of the keys, "layers.0.0.conv.".
    """
    if f"{prefix}fused_conv.weight" in exact:
        return exact[f"{prefix}fused_conv.weight"], exact[f"{prefix}fused_conv.bias"]
    large, small = (exact[f"{prefix}{which}_conv.weight"] for which in ("lk", "sk"))
    margin = (large.shape[-1] - small.shape[-1]) // 2
    sides = [(0, 0), (0, 0), (margin, margin), (margin, margin)]
    kernel = large + np.pad(small, sides)
    return kernel, exact[f"{prefix}lk_bias"] + exact[f"{prefix}sk_bias"]


_Hold = Callable[[Array, Array], Convolution]


def _block(exact: Mapping[str, Array], prefix: str, held: _Hold) -> Block:
    kernel, bias = depthwise_kernel(exact, f"{prefix}conv.")

    def projection(name: str, scale: Array, shift: Array) -> Convolution:
        weight = exact[f"{prefix}ffn.{name}.weight"]
        bias = exact[f"{prefix}ffn.{name}.bias"] + weight @ shift
        return held((weight * scale)[:, :, None, None], bias)

    scale, shift = exact[f"{prefix}norm.weight"], exact[f"{prefix}norm.bias"]
    unchanged = np.ones(len(exact[f"{prefix}ffn.fc1_gate.bias"]))
    return Block(
        depthwise=held(kernel, bias),
        gate=projection("fc1_gate", scale, shift),
        main=projection("fc1_main", scale, shift),
        last=projection("fc2", unchanged, 0 * unchanged),
    )


def _tail(
    exact: Mapping[str, Array], factors: tuple[int, ...], img_range: float, held: _Hold
) -> Tail:
    last = exact["conv_last.weight"] / img_range
    last_bias = exact["conv_last.bias"] / img_range
    if not factors:
        return Tail(held(last, last_bias), 1, None)
    name, factor = f"upsample.{2 * len(factors) - 2}", factors[-1]
    out = (len(last), factor, factor)  # the order that PixelShuffle takes
    narrow = (UPSAMPLE_CHANNELS, factor, factor)
    widen = exact[f"{name}.weight"].reshape(*narrow, UPSAMPLE_CHANNELS, 3, 3)
    widen_bias = exact[f"{name}.bias"].reshape(narrow)
    sides = {"whole": (5, 5), "rows": (1, 5), "columns": (5, 1), "corners": (1, 1)}
    kernels = {k: np.zeros((*out, UPSAMPLE_CHANNELS, *sides[k])) for k in sides}
    biases = {kind: np.zeros(out) for kind in sides}
    biases["whole"] += last_bias[:, None, None]
    # Pixel (i, j) of a position sees through tap (y, x) of `conv_last` the pixel (p, q)
    # of the position that is `down` below and `right` of it, each -1, 0 or 1.
    for i, j, y, x in np.ndindex(factor, factor, 3, 3):
        down, p = divmod(i + y - 1, factor)
        right, q = divmod(j + x - 1, factor)
        kernel = np.tensordot(last[:, :, y, x], widen[:, p, q], 1)  # (out, 64, 3, 3)
        bias = last[:, :, y, x] @ widen_bias[:, p, q]
        rows, columns = slice(down + 1, down + 4), slice(right + 1, right + 4)
        # From outside the picture a 3x3 kernel reaches its outermost row or column.
        row, column = kernel[:, :, [1 - down]], kernel[..., [1 - right]]
        added = {"whole": (kernel, rows, columns)}
        if down:
            added["rows"] = (row, slice(None), columns)
        if right:
            added["columns"] = (column, rows, slice(None))
        if down and right:
            added["corners"] = (row[..., [1 - right]], slice(None), slice(None))
        for kind, (part, vertical, horizontal) in added.items():
            kernels[kind][:, i, j, :, vertical, horizontal] += part
            biases[kind][:, i, j] += bias
    count = len(last) * factor**2
    whole, *edges = (
        held(kernels[k].reshape(count, UPSAMPLE_CHANNELS, *sides[k]), biases[k].ravel())
        for k in sides
    )
    return Tail(whole, factor, Edges(*edges))
