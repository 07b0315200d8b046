"""The compiled kernels: found, chosen for this processor, called with checked shapes.

`kernels.c` says what the functions compute and how maps are laid out. C checks
nothing, so whatever reaches it has been compared here with the memory behind it.
"""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aethernet.errors import AetherError, first_line
from aethernet.runtimes.native.build import LIBRARY, sources
from aethernet.runtimes.native.pack import (
    Floats,
    PackedBlock,
    PackedConvolution,
    PackedNorm,
    aligned,
)

_BUILD = (
    "Build them in AetherNet's folder: python tools/build_native.py; it needs a C "
    "compiler, or: pip install ziglang."
)

PLAIN, ADD, LEAKY = 0, 1, 2
"""What `Kernels.conv` does with its result, as in kernels.c."""

Rectangle = tuple[int, int, int, int]
"""Rows from, to, columns from, to, in pixels; the ends are not part of it."""

# Variants by what `aether_level` says, best first.
_BY_LEVEL = {4: ("v4", "v3"), 3: ("v3",), 8: ("neon",)}

_FLOAT32 = np.dtype(np.float32)
_P, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_RECTANGLE = [_N] * 4
_MAPS = [_N, _N, *_RECTANGLE]  # row, plane, rectangle
ARGUMENTS: dict[str, list[Any]] = {
    "block": [_P, _P, *_MAPS, _N, _N, _N, *[_P] * 6, _F, _P],
    "norm": [_P, *_MAPS, _N, _P, _P, _F],
    "conv": [_P, _P, *_MAPS, _N, _N, _P, _P, _N, _P],
    "first": [_P, _P, _N, _N, _N, _N, *_RECTANGLE, _N, _N, _F, _P, _P, _P],
    "tail": [_P, _P, _N, _N, _N, _N, *_RECTANGLE, _N, _N, _N, _N, _F, _P, _P, _P],
}
"""Types of the arguments of each function."""


def map_floats(
    groups: int, height: int, width: int, margin: int, lanes: int, pixels: int
) -> int:
    """Numbers in a map, with the zeros around it and what kernels may read behind it.

    Neighbouring rows and groups share their margins. Behind the last group stand a
    margin and `pixels` rows and pixels, by which kernels may read too far.
    """
    row = (width + margin) * lanes
    rows = margin + groups * (height + margin) + pixels
    return rows * row + (2 * margin + pixels) * lanes


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Features as kernels.c lays them out: [group][row][column][L], zeros around."""

    groups: int
    height: int
    width: int
    margin: int
    """Rows and columns of zeros."""
    lanes: int
    pixels: int
    """How far kernels may read behind their rectangle: PIXELS."""
    memory: Floats = field(init=False)

    def __post_init__(self) -> None:
        sizes = (self.groups, self.height, self.width, self.margin)
        count = map_floats(*sizes, self.lanes, self.pixels)
        object.__setattr__(self, "memory", aligned(count))

    @functools.cached_property
    def row(self) -> int:
        """Numbers from a row to the next."""
        return (self.width + self.margin) * self.lanes

    @functools.cached_property
    def plane(self) -> int:
        """Numbers from a group to the next."""
        return (self.height + self.margin) * self.row

    @functools.cached_property
    def origin(self) -> int:
        """Address of row 0, column 0 of group 0."""
        before = self.margin * (self.row + self.lanes)
        return self.memory.ctypes.data + 4 * before


def _refuse(unless: bool, what: str) -> None:
    if not unless:
        raise AetherError(f"The native runtime cannot compute this: {what}.")


def _size(values: Floats, least: int, what: str) -> int:
    """The address of an array that has at least `least` numbers."""
    fits = values.dtype == _FLOAT32 and values.flags.c_contiguous
    if not (fits and values.size >= least):
        _refuse(False, f"{what} has {values.size} numbers")
    return values.ctypes.data


@dataclass(eq=False)
class Constants:
    """What memory layouts depend on: the constants of kernels.c for one variant."""

    lanes: int
    pixels: int
    tile_rows: int
    tile: int
    line: int

    def groups(self, channels: int) -> int:
        """Groups of L that this many channels fill."""
        return -(-channels // self.lanes)

    def scratch_floats(self, in_chans: int, channels: int, hidden: int) -> int:
        """Numbers of scratch that a thread needs for everything."""
        block = self.tile * (self.groups(channels) + self.groups(hidden))
        first = self.groups(in_chans) * 3 * (self.line + 2 + self.pixels)
        return max(block * self.lanes, first * self.lanes + self.sums)

    @property
    def sums(self) -> int:
        """Numbers of scratch for a line of a convolution."""
        return (self.line + self.pixels) * 2 * self.lanes


class Kernels(Constants):
    """The functions of one variant."""

    def __init__(self, path: Path, variant: str) -> None:
        """Load a library.

        Raises:
            AetherError: when it does not load or lacks the variant.
        """
        self.variant = variant
        try:
            library = ctypes.CDLL(str(path))
            constant = library[f"aether_constant_{variant}"]
            self._functions = {
                name: library[f"aether_{name}_{variant}"] for name in ARGUMENTS
            }
        except (OSError, AttributeError) as error:
            raise AetherError(
                f"The native kernels do not load: {first_line(error)}.", path
            ) from error
        for name, function in self._functions.items():
            function.argtypes, function.restype = ARGUMENTS[name], None
        constant.argtypes, constant.restype = [_N], _N
        super().__init__(*map(constant, range(5)))
        self._peak = library[f"aether_peak_{variant}"]
        self._peak.argtypes, self._peak.restype = [_N, _P], None

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of `kernels.c`, whose arguments have been checked."""
        self._functions[name](*arguments)

    def peak(self, rounds: int) -> int:
        """Multiply and add in registers; returns how many multiply-adds that were."""
        data = aligned(2 * self.lanes)
        self._peak(rounds, data.ctypes.data)
        return rounds * self.pixels * 2 * self.lanes * 8

    def new_map(
        self, channels: int, height: int, width: int, margin: int
    ) -> FeatureMap:
        """A map of zeros.

        Raises:
            MemoryError: when there is no memory for it.
        """
        groups = self.groups(channels)
        return FeatureMap(groups, height, width, margin, self.lanes, self.pixels)

    def block(
        self,
        source: FeatureMap,
        target: FeatureMap,
        where: Rectangle,
        weights: PackedBlock,
        eps: float,
        scratch: Floats,
    ) -> None:
        """A whole AetherBlock, `source` to `target`, for one rectangle.

        Raises:
            AetherError: here and below, when shapes do not fit each other.
        """
        w = weights
        _refuse(source is not target, "a block in place")
        self._check_maps(source, target, where, w.kernel // 2)
        self._check_channels(w.channels, source, target)
        groups = self.groups(w.channels)
        side = w.kernel**2 * self.lanes
        _refuse(w.kernel % 2 == 1 and w.hidden > 0, "the kernel or hidden width")
        self._check_packed(w.expand, w.channels, self.groups(w.hidden) * 2 * self.lanes)
        self._check_packed(w.project, w.hidden, w.channels)
        self.call(
            "block",
            source.origin,
            target.origin,
            source.row,
            source.plane,
            *where,
            w.channels,
            w.hidden,
            w.kernel,
            _size(w.depthwise, groups * side, "the depthwise kernel"),
            _size(w.depthwise_bias, groups * self.lanes, "the depthwise bias"),
            *w.expand.addresses,
            *w.project.addresses,
            eps,
            _size(scratch, self.scratch_floats(1, w.channels, w.hidden), "scratch"),
        )

    def norm(
        self, features: FeatureMap, where: Rectangle, norm: PackedNorm, eps: float
    ) -> None:
        """LayerNorm with scale and shift, in place."""
        self._check_maps(features, features, where, 0)
        self._check_channels(norm.channels, features)
        wide = self.groups(norm.channels) * self.lanes
        self.call(
            "norm",
            features.origin,
            features.row,
            features.plane,
            *where,
            norm.channels,
            _size(norm.scale, wide, "the scale"),
            _size(norm.shift, wide, "the shift"),
            eps,
        )

    def conv(
        self,
        source: FeatureMap,
        target: FeatureMap,
        where: Rectangle,
        weights: PackedConvolution,
        mode: int,
        scratch: Floats,
    ) -> None:
        """A 3x3 convolution between maps; `mode` is `PLAIN`, `ADD` or `LEAKY`."""
        _refuse(source is not target, "a convolution in place")
        self._check_maps(source, target, where, 1)
        self._check_channels(weights.channels, source)
        self._check_channels(weights.out_channels, target)
        _refuse(weights.kernel == 3, f"a kernel of {weights.kernel}")
        self._check_packed(weights, weights.channels, weights.out_channels)
        self.call(
            "conv",
            source.origin,
            target.origin,
            source.row,
            source.plane,
            *where,
            weights.channels,
            weights.out_channels,
            *weights.addresses,
            mode,
            _size(scratch, self.sums, "scratch"),
        )

    def first(
        self,
        image: Floats,
        target: FeatureMap,
        where: Rectangle,
        mean: float,
        weights: PackedConvolution,
        scratch: Floats,
    ) -> None:
        """The first 3x3: `image` (channels, H, W) minus `mean`, to a map."""
        shape = (weights.channels, target.height, target.width)
        _refuse(image.shape == shape, f"a picture of shape {image.shape}")
        self._check_maps(target, target, where, 0)
        self._check_channels(weights.out_channels, target)
        _refuse(weights.kernel == 3, f"a kernel of {weights.kernel}")
        self._check_packed(weights, weights.channels, weights.out_channels)
        needed = self.scratch_floats(weights.channels, 1, 1)
        self.call(
            "first",
            _size(image, image.size, "the picture"),
            target.origin,
            target.row,
            target.plane,
            target.height,
            target.width,
            *where,
            weights.channels,
            weights.out_channels,
            mean,
            *weights.addresses,
            _size(scratch, needed, "scratch"),
        )

    def tail(
        self,
        source: FeatureMap,
        image: Floats,
        where: Rectangle,
        mean: float,
        by_edge: Sequence[PackedConvolution | None],
        scratch: Floats,
    ) -> None:
        """The last convolution and PixelShuffle, plus `mean`, into the picture.

        Args:
            source: a map.
            image: (channels, scale * H, scale * W), C-contiguous.
            where: rectangle of the map.
            mean: added to everything.
            by_edge: by edge as in `pack.Ending`; None where no pixel has that edge.
            scratch: of a thread, see `scratch_floats`.
        """
        weights = by_edge[0]
        _refuse(weights is not None and len(by_edge) == 16, "a tail of other weights")
        assert weights is not None
        channels, scale = len(image), image.shape[-1] // source.width
        shape = (channels, scale * source.height, scale * source.width)
        _refuse(image.shape == shape and scale > 0, f"a picture of {image.shape}")
        _refuse(image.flags.writeable, "a picture that is read-only")
        self._check_maps(source, source, where, weights.kernel // 2)
        self._check_channels(weights.channels, source)
        for packed in by_edge:
            if packed is not None:
                same = packed.kernel == weights.kernel
                _refuse(same, "kernels of different sizes")
                self._check_packed(packed, weights.channels, channels * scale**2)
        for edge in _edges_in(where, source.height, source.width):
            _refuse(by_edge[edge] is not None, f"edge {edge} has no weights")
        pointers = ctypes.c_void_p * 16
        self.call(
            "tail",
            source.origin,
            _size(image, image.size, "the picture"),
            source.row,
            source.plane,
            source.height,
            source.width,
            *where,
            weights.channels,
            channels,
            scale,
            weights.kernel,
            mean,
            pointers(*[p.addresses[0] if p else 0 for p in by_edge]),
            pointers(*[p.addresses[1] if p else 0 for p in by_edge]),
            _size(scratch, self.sums, "scratch"),
        )

    def _check_maps(
        self, source: FeatureMap, target: FeatureMap, where: Rectangle, radius: int
    ) -> None:
        """Both maps have the layout of this variant, and `where` is inside."""
        y0, y1, x0, x1 = where
        inside = 0 <= y0 <= y1 <= source.height and 0 <= x0 <= x1 <= source.width
        _refuse(inside, f"rows {y0} to {y1}, columns {x0} to {x1}")
        _refuse(source.margin >= radius, f"a margin of {source.margin}")
        _refuse(
            (source.height, source.width, source.margin)
            == (target.height, target.width, target.margin),
            "maps of different sizes",
        )
        for features in (source, target):
            same = (features.lanes, features.pixels) == (self.lanes, self.pixels)
            _refuse(same, "a map of another variant")

    def _check_channels(self, channels: int, *maps: FeatureMap) -> None:
        for features in maps:
            fits = 0 < self.groups(channels) <= features.groups
            _refuse(fits, f"{channels} channels in {features.groups} groups")

    def _check_packed(
        self, packed: PackedConvolution, channels: int, out_channels: int
    ) -> None:
        wide = -(-out_channels // (2 * self.lanes)) * 2 * self.lanes
        same = (packed.channels, packed.out_channels) == (channels, out_channels)
        _refuse(same, f"{packed.channels} to {packed.out_channels} channels")
        _size(packed.weights, packed.kernel**2 * channels * wide, "a convolution")
        _size(packed.bias, wide, "a bias")


def edge_of(at: int, size: int) -> int:
    """Bit 1 for the first of `size`, bit 2 for the last: `LEFT` and `RIGHT`."""
    return (at == 0) | (at == size - 1) << 1


def _edges_in(where: Rectangle, height: int, width: int) -> set[int]:
    """The edges of all positions of a rectangle."""
    y0, y1, x0, x1 = where
    rows = {edge_of(y, height) for y in (y0, min(y0 + 1, y1 - 1), y1 - 1)}
    columns = {edge_of(x, width) for x in (x0, min(x0 + 1, x1 - 1), x1 - 1)}
    if y0 == y1 or x0 == x1:
        return set()
    return {4 * row + column for row in rows for column in columns}


def edges_of(height: int, width: int) -> set[int]:
    """The edges of all positions of a picture."""
    return _edges_in((0, height, 0, width), height, width)


def variants(path: Path = LIBRARY) -> tuple[str, ...]:
    """Variants that processor and system support, best first; empty where none is.

    Raises:
        AetherError: when the library is missing, does not load, or is not built from
            the sources beside it.
    """
    if not path.is_file():
        raise AetherError("The native kernels have not been built.", path, _BUILD)
    try:
        library = ctypes.CDLL(str(path))
        level, built_from = library.aether_level, library.aether_sources
    except (OSError, AttributeError) as error:
        raise AetherError(
            f"The native kernels do not load: {first_line(error)}.", path, _BUILD
        ) from error
    built_from.restype = _N
    if built_from() != sources():
        raise AetherError(
            "The native kernels were built from other sources.", path, _BUILD
        )
    return _BY_LEVEL.get(level(), ())


@functools.cache
def load_kernels(path: Path = LIBRARY, variant: str = "") -> Kernels:
    """The kernels for this processor, or the variant of that name.

    Raises:
        AetherError: when there is no library, or none of its variants runs here.
    """
    possible = variants(path)
    if not possible:
        raise AetherError(
            "The native runtime needs a processor with AVX2 and FMA, or arm64.",
            hint="Use another one: --runtime auto.",
        )
    if variant and variant not in possible:
        raise AetherError(f"This processor has no {variant}, only {possible}.")
    return Kernels(path, variant or possible[0])
