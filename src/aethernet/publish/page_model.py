"""A model as the page computes it on a processor, with the kernels in WebAssembly.

The page knows nothing of the network. It gets the weights, packed for vectors of four
numbers, the place of everything in its memory, and the calls of the functions in
`kernels.c` in the order of `runtimes/native/run.py`. `web/src/processor.ts` fills in
what depends on the picture and on the thread.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from aethernet.checkpoints.folded import BLOCK_EPS, NORM_EPS, Folded
from aethernet.runtimes.native.library import (
    ADD,
    ARGUMENTS,
    LEAKY,
    Constants,
    map_floats,
)
from aethernet.runtimes.native.pack import (
    Ending,
    Floats,
    PackedBlock,
    PackedConvolution,
    pack_block,
    pack_convolution,
    pack_norm,
)

CONSTANTS = Constants(lanes=4, pixels=12, tile_rows=4, tile=96, line=48)
"""The constants of the kernels in WebAssembly."""

EDGES = 16
"""Kernels of the last convolution, by edge as in `pack.Ending`."""

# In bytes: the beginning of the memory, which belongs to the kernels themselves, and
# the stack of a thread.
_OWN, _STACK = 2**16, 2**14

# Numbers that the threads share, beside one for each step: `processor.ts` names them.
_SHARED = 3

Argument = str | float
"""A number, such as a place in the memory in bytes, or the name of what the page fills
in: height, width, top, bottom, scratch."""


class _Network:
    """The weights of a network, packed for the kernels."""

    def __init__(self, folded: Folded) -> None:
        lanes = CONSTANTS.lanes
        self.in_chans, self.mean = folded.in_chans, folded.mean
        self.scale = folded.scale
        self.first = pack_convolution(folded.first, lanes)
        self.blocks = [pack_block(block, lanes) for block in folded.blocks]
        self.norm = pack_norm(folded, lanes)
        self.after_body = pack_convolution(folded.after_body, lanes)
        self.before_upsample = pack_convolution(folded.before_upsample, lanes)
        ending = Ending(folded)
        self.ends = [pack_convolution(ending.at(edge), lanes) for edge in range(EDGES)]
        # Mixed, because edges are alike: Deflate packs them to half of it or less.
        self.mixed = np.stack([end.weights for end in self.ends], axis=-1).ravel()

    @property
    def margin(self) -> int:
        """Zeros around a map, in pixels: what the largest kernel reaches."""
        kernels = [block.kernel for block in self.blocks]
        return max(self.ends[0].kernel, *kernels) // 2

    def kernels(self) -> list[Floats]:
        """All kernels, beginning with those that are mixed."""
        depthwise = [block.depthwise for block in self.blocks]
        return [self.mixed, *depthwise, *(c.weights for c in self._convolutions())]

    def vectors(self) -> list[Floats]:
        """All biases, and the scale and shift of the LayerNorm."""
        depthwise = [block.depthwise_bias for block in self.blocks]
        biases = [c.bias for c in (*self._convolutions(), *self.ends)]
        return [self.norm.scale, self.norm.shift, *depthwise, *biases]

    def _convolutions(self) -> Iterator[PackedConvolution]:
        yield self.first
        for block in self.blocks:
            yield from (block.expand, block.project)
        yield from (self.after_body, self.before_upsample)


class _Layout:
    """Where everything lies in the page's memory. Places are in bytes.

    Maps are laid out as `FeatureMap`, for the largest picture; a smaller one takes a
    part of each row and plane.
    """

    def __init__(self, network: _Network, most: int) -> None:
        self._end = _OWN
        steps = len(network.blocks) + 5  # as `_steps` makes them
        self.words = self._take(_SHARED + steps)
        arrays = (*network.kernels(), *network.vectors())
        self.weights = self._take(sum(a.size for a in arrays) + 2 * EDGES)
        channels, narrow = network.norm.channels, network.before_upsample.out_channels
        groups, margin = CONSTANTS.groups(max(channels, narrow)), network.margin
        size = map_floats(groups, most, most, margin, CONSTANTS.lanes, CONSTANTS.pixels)
        self.maps = self._take(2 * size)
        self.row = (most + margin) * CONSTANTS.lanes
        self.plane = (most + margin) * self.row
        corner = self.maps[0] + 4 * margin * (self.row + CONSTANTS.lanes)
        self.origins = (corner, corner + 4 * size)
        self.image = self._take(network.in_chans * most**2)
        self.result = self._take(network.in_chans * (most * network.scale) ** 2)
        hidden = max(block.hidden for block in network.blocks)
        self.scratch = CONSTANTS.scratch_floats(network.in_chans, channels, hidden)

    def _take(self, numbers: int) -> list[int]:
        """A place for numbers of 32 bits, and their count."""
        place = self._end
        self._end = _up(place + 4 * numbers)
        return [place, numbers]

    def program(self) -> dict[str, Any]:
        """What the page has to know of it."""
        return {
            "words": self.words,
            "weights": self.weights,
            "maps": self.maps,
            "image": self.image[0],
            "result": self.result[0],
            "scratch": self._end + _STACK,
            "each": _up(_STACK + 4 * self.scratch),
        }


class _Weights:
    """All weights in the memory: kernels, vectors, and tables of the last kernels."""

    def __init__(self, network: _Network, half: bool, place: int) -> None:
        """Lay them out from `place` on; `half` keeps kernels in float16 in the file."""
        kernels, vectors = network.kernels(), network.vectors()
        self.halves = sum(array.size for array in kernels) if half else 0
        self._places = {}
        for array in (*kernels, *vectors):
            self._places[id(array)] = place
            place += array.nbytes
        self.tables = [place, place + 4 * EDGES]
        (mixed,) = self.at(network.mixed)
        table = [mixed + end.weights.nbytes * i for i, end in enumerate(network.ends)]
        table += self.at(*(end.bias for end in network.ends))
        parts = [array.astype("<f2" if half else "<f4") for array in kernels]
        parts += [array.astype("<f4") for array in vectors]
        parts += [np.array(table, "<u4")]
        self.content = b"".join(part.tobytes() for part in parts)

    def at(self, *arrays: Floats) -> list[int]:
        """The places of arrays."""
        return [self._places[id(array)] for array in arrays]

    def convolution(self, packed: PackedConvolution) -> list[int]:
        """The places of kernel and bias."""
        return self.at(packed.weights, packed.bias)


def page_model(folded: Folded, half: bool, most: int) -> tuple[bytes, dict[str, Any]]:
    """The weights, and what the page has to know to use them.

    Args:
        folded: in float32.
        half: whether kernels are kept in float16; biases never are.
        most: pixels along each side of the largest picture.
    """
    network = _Network(folded)
    layout = _Layout(network, most)
    weights = _Weights(network, half, layout.weights[0])
    return weights.content, {
        **layout.program(),
        "halves": weights.halves,
        "mixed": network.mixed.size,
        "tileRows": CONSTANTS.tile_rows,
        "steps": _steps(network, layout, weights),
    }


def _up(size: int) -> int:
    """To whole lines of the cache, 64 bytes."""
    return -(-size // 64) * 64


def _call(name: str, *words: Argument) -> list[Argument]:
    """A call of a function of the kernels."""
    assert len(words) == len(ARGUMENTS[name]), name
    return [name, *words]


def _steps(
    network: _Network, layout: _Layout, weights: _Weights
) -> list[list[list[Argument]]]:
    """The calls of each step, as `NativeNetwork` makes them."""
    size = ("height", "width")
    rectangle = ("top", "bottom", 0, "width")
    strides = (layout.row, layout.plane)
    image, result = layout.image[0], layout.result[0]
    channels = network.norm.channels
    here, there = layout.origins

    def first(to: int) -> list[Argument]:
        maps = (image, to, *strides, *size, *rectangle)
        numbers = (network.in_chans, channels, network.mean)
        own = weights.convolution(network.first)
        return _call("first", *maps, *numbers, *own, "scratch")

    def conv(a: int, b: int, packed: PackedConvolution, mode: int) -> list[Argument]:
        maps = (a, b, *strides, *rectangle)
        own = (packed.channels, packed.out_channels, *weights.convolution(packed))
        return _call("conv", *maps, *own, mode, "scratch")

    def whole(a: int, b: int, block: PackedBlock) -> list[Argument]:
        maps = (a, b, *strides, *rectangle)
        numbers = (block.channels, block.hidden, block.kernel)
        depthwise = weights.at(block.depthwise, block.depthwise_bias)
        own = [c for w in (block.expand, block.project) for c in weights.convolution(w)]
        return _call("block", *maps, *numbers, *depthwise, *own, BLOCK_EPS, "scratch")

    steps = [[first(here)]]
    for block in network.blocks:
        steps.append([whole(here, there, block)])
        here, there = there, here
    scale = weights.at(network.norm.scale, network.norm.shift)
    norm = _call("norm", here, *strides, *rectangle, channels, *scale, NORM_EPS)
    steps.append([norm, first(there)])
    steps.append([conv(here, there, network.after_body, ADD)])
    steps.append([conv(there, here, network.before_upsample, LEAKY)])
    end = network.ends[0]
    maps = (here, result, *strides, *size, *rectangle)
    numbers = (end.channels, network.in_chans, network.scale, end.kernel, network.mean)
    steps.append([_call("tail", *maps, *numbers, *weights.tables, "scratch")])
    return steps
