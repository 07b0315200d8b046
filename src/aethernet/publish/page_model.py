"""A model as the page computes it on a processor, with the kernels in WebAssembly.

The page knows nothing of the network. It gets the weights, packed for vectors of four
numbers, and the calls of the functions in `kernels.c` in the order of
`runtimes/native/run.py`. `web/src/processor.ts` fills in what depends on the picture.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aethernet.checkpoints.folded import BLOCK_EPS, NORM_EPS, Convolution, Folded
from aethernet.runtimes.native.library import ADD, LEAKY
from aethernet.runtimes.native.pack import (
    Ending,
    Floats,
    PackedConvolution,
    pack_block,
    pack_convolution,
    pack_norm,
)

LANES = 4
"""Numbers in a vector of WebAssembly."""

EDGES = 16
"""Kernels of the last convolution, by edge as in `pack.Ending`."""

# Names of what depends on the picture. The page has two maps, a and b.
_MAP = ("row", "plane")
_SIZE = ("height", "width")
_WHERE = ("top", "bottom", "left", "right")

Argument = str | int | list[Any]
"""A name of what depends on the picture; an integer; ["float", value]; weights as
["half" or "single", place]. With a count at the end a table of arrays, one for each
edge, of so many numbers; they lie mixed: the first number of each, then the second."""


@dataclass
class _Weights:
    """Arrays one after another; places are counted in numbers."""

    half: bool
    """Whether kernels are kept in float16."""
    halves: list[Floats] = field(default_factory=list)
    singles: list[Floats] = field(default_factory=list)

    def kernel(self, values: Floats) -> list[Any]:
        """Keep a kernel."""
        if not self.half:
            return self.vector(values)
        self.halves.append(values)
        return ["half", sum(map(np.size, self.halves[:-1]))]

    def vector(self, values: Floats) -> list[Any]:
        """Keep a bias or a scale."""
        self.singles.append(values)
        return ["single", sum(map(np.size, self.singles[:-1]))]

    def convolution(self, packed: PackedConvolution) -> list[Argument]:
        """Keep a convolution."""
        return [self.kernel(packed.weights), self.vector(packed.bias)]

    def content(self) -> bytes:
        """The halves, then the singles."""
        halves = [values.astype("<f2").tobytes() for values in self.halves]
        singles = [values.astype("<f4").tobytes() for values in self.singles]
        return b"".join((*halves, *singles))


def page_model(folded: Folded, half: bool) -> tuple[bytes, dict[str, Any]]:
    """The weights, and what the page has to know to use them.

    Args:
        folded: in float32.
        half: whether kernels are kept in float16; biases never are.
    """
    weights = _Weights(half)
    widths = [len(block.gate.bias) for block in folded.blocks]
    kernels = [block.depthwise.weight.shape[-1] for block in folded.blocks]
    channels, narrow = len(folded.norm_weight), len(folded.before_upsample.bias)
    ending = Ending(folded)
    steps = _steps(folded, ending, weights)
    content = weights.content()
    return content, {
        "halves": sum(map(np.size, weights.halves)),
        "singles": sum(map(np.size, weights.singles)),
        "margin": max(ending.kernel, *kernels) // 2,
        "groups": {
            "image": _groups(folded.in_chans),
            "map": _groups(max(channels, narrow)),
            "tile": _groups(channels) + _groups(max(widths)),
        },
        "steps": steps,
    }


def _groups(channels: int) -> int:
    return -(-channels // LANES)


def _steps(
    folded: Folded, ending: Ending, weights: _Weights
) -> list[list[list[Argument]]]:
    """The calls of each step, as `NativeNetwork` makes them."""
    channels = len(folded.norm_weight)
    mean: Argument = ["float", folded.mean]

    def packed(convolution: Convolution) -> list[Argument]:
        return weights.convolution(pack_convolution(convolution, LANES))

    def conv(a: str, b: str, convolution: Convolution, mode: int) -> list[Argument]:
        sizes = (convolution.weight.shape[1], len(convolution.bias))
        own = packed(convolution)
        return ["conv", a, b, *_MAP, *_WHERE, *sizes, *own, mode, "scratch"]

    start = packed(folded.first)

    def first(to: str) -> list[Argument]:
        sizes = (folded.in_chans, channels, mean)
        places = ("image", to, *_MAP, *_SIZE, *_WHERE)
        return ["first", *places, *sizes, *start, "scratch"]

    here, there = "a", "b"
    steps = [[first(here)]]
    for each in folded.blocks:
        block = pack_block(each, LANES)
        own = [
            *(block.channels, block.hidden, block.kernel),
            *(weights.kernel(block.depthwise), weights.vector(block.depthwise_bias)),
            *weights.convolution(block.expand),
            *weights.convolution(block.project),
            ["float", BLOCK_EPS],
        ]
        steps.append([["block", here, there, *_MAP, *_WHERE, *own, "scratch"]])
        here, there = there, here
    norm = pack_norm(folded, LANES)
    scale = [weights.vector(norm.scale), weights.vector(norm.shift)]
    eps: Argument = ["float", NORM_EPS]
    steps.append([["norm", here, *_MAP, *_WHERE, channels, *scale, eps], first(there)])
    steps.append([conv(here, there, folded.after_body, ADD)])
    steps.append([conv(there, here, folded.before_upsample, LEAKY)])
    sizes = (folded.in_chans, folded.scale, ending.kernel, mean)
    places = (here, "result", *_MAP, *_SIZE, *_WHERE)
    narrow = len(folded.before_upsample.bias)
    tables = _edges(ending, weights)
    steps.append([["tail", *places, narrow, *sizes, *tables, "scratch"]])
    return steps


def _edges(ending: Ending, weights: _Weights) -> list[Argument]:
    """The last convolution for every edge.

    Mixed, because edges are alike: gzip packs them to half or less of what it would.
    """
    ends = [pack_convolution(ending.at(edge), LANES) for edge in range(EDGES)]
    tables: list[Argument] = []
    for keep, arrays in (
        (weights.kernel, [end.weights for end in ends]),
        (weights.vector, [end.bias for end in ends]),
    ):
        mixed = np.stack(arrays, axis=-1).ravel()
        tables.append([*keep(mixed), arrays[0].size])
    return tables
