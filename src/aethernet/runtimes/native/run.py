"""A folded network, executed by the kernels in C."""

from collections.abc import Callable
from functools import partial

import numpy as np

from aethernet.checkpoints.folded import BLOCK_EPS, LEAKY_SLOPE, NORM_EPS, Folded
from aethernet.devices import free_memory
from aethernet.errors import AetherError, OutOfMemoryError
from aethernet.runtimes.cores import usable_cores
from aethernet.runtimes.native.library import (
    ADD,
    LEAKY,
    FeatureMap,
    Kernels,
    Rectangle,
    edges_of,
    load_kernels,
    map_floats,
)
from aethernet.runtimes.native.pack import (
    Ending,
    Floats,
    PackedBlock,
    PackedConvolution,
    aligned,
    pack_block,
    pack_convolution,
    pack_norm,
)
from aethernet.runtimes.native.threads import Job, rectangles, run_steps

# Multiply-adds of one job: about 20 ms on one core, after which Ctrl-C is noticed.
_JOB_SIZE = 500_000_000
# Bytes that are taken without asking how many are free, which takes 4 ms.
_NOT_ASKED = 32 * 2**20
_KERNEL_SLOPE = 0.01  # LEAKY_SLOPE of kernels.c


class NativeNetwork:
    """A network in the memory layout of this processor's kernels.

    It may be called from several threads at once; each call has memory of its own. It
    holds its weights twice only while it is made: the folded network is not kept,
    except for the small convolutions at the end.
    """

    def __init__(
        self, folded: Folded, threads: int = 0, kernels: Kernels | None = None
    ) -> None:
        """Pack the weights, which takes milliseconds.

        Args:
            folded: in float32.
            threads: of a call; 0: all physical cores that this process may use.
            kernels: a variant; None: the best one of this processor.

        Raises:
            AetherError: when there are no kernels for this processor.
        """
        if folded.blocks[0].gate.weight.dtype != np.float32:
            raise AetherError("The native runtime computes in float32 only.")
        if LEAKY_SLOPE != _KERNEL_SLOPE:
            raise AetherError(f"The kernels have no LeakyReLU of slope {LEAKY_SLOPE}.")
        if threads < 0:
            raise AetherError(f"The number of threads must be positive, not {threads}.")
        self.kernels = kernels or load_kernels()
        self.threads = threads or usable_cores()
        self.scale, self.channels = folded.scale, folded.in_chans
        self.mean = folded.mean
        lanes = self.kernels.lanes
        self.first = pack_convolution(folded.first, lanes)
        self.blocks = [pack_block(block, lanes) for block in folded.blocks]
        self.norm = pack_norm(folded, lanes)
        self.after_body = pack_convolution(folded.after_body, lanes)
        self.before_upsample = pack_convolution(folded.before_upsample, lanes)
        self.ending = Ending(folded)
        self._ends: dict[int, PackedConvolution] = {}
        self._end(0)

    @property
    def embed_dim(self) -> int:
        """Channels of the blocks."""
        return self.norm.channels

    @property
    def margin(self) -> int:
        """Zeros around a map, in pixels: what the largest kernel reaches."""
        radii = (block.kernel // 2 for block in self.blocks)
        return max(self.ending.kernel // 2, *radii)

    def operations(self) -> int:
        """Multiply-adds for each pixel of the input, padding not counted."""
        c = self.embed_dim
        blocks = sum(b.channels * (b.kernel**2 + 3 * b.hidden) for b in self.blocks)
        head = 2 * 9 * self.channels * c + 9 * c * c
        narrow = self.before_upsample.out_channels
        tail = self.ending.kernel**2 * narrow * self.channels * self.scale**2
        return blocks + head + 9 * c * narrow + tail

    def memory(self, height: int, width: int) -> int:
        """Bytes that a call takes for this size, beside input and output.

        Two feature maps and the scratch of each thread.
        """
        groups = self._map_groups()
        lanes, pixels = self.kernels.lanes, self.kernels.pixels
        one = map_floats(groups, height, width, self.margin, lanes, pixels)
        return 4 * (2 * one + self.threads * self._scratch_floats())

    @property
    def bytes_per_pixel(self) -> int:
        """Of a large picture, for each pixel of the input.

        Two feature maps, then input and output.
        """
        maps = 2 * self._map_groups() * self.kernels.lanes
        return 4 * (maps + self.channels * (1 + self.scale**2))

    def __call__(self, batch: Floats) -> Floats:
        """Upscale `(B, channels, H, W)`, float32, 0..1; the result is not clamped.

        Raises:
            AetherError: when the batch has another shape or dtype.
            OutOfMemoryError: when it does not fit the memory, before any computation.
        """
        if batch.ndim != 4 or batch.shape[1] != self.channels or 0 in batch.shape[2:]:
            raise AetherError(
                f"The model takes (B, {self.channels}, H, W), not {batch.shape}."
            )
        if batch.dtype != np.float32:
            raise AetherError(f"The model takes float32, not {batch.dtype}.")
        batch = np.ascontiguousarray(batch)
        count, channels, height, width = batch.shape
        shape = (count, channels, height * self.scale, width * self.scale)
        needed = self.memory(height, width) + 4 * int(np.prod(shape))
        if needed > _NOT_ASKED and needed > free_memory("cpu"):
            raise _out_of_memory(height, width, needed)
        try:
            result = np.empty(shape, np.float32)
            maps = [self._new_map(height, width) for _ in range(2)]
            scratch = [aligned(self._scratch_floats()) for _ in range(self.threads)]
        except MemoryError as error:
            raise _out_of_memory(height, width, needed) from error
        for edge in edges_of(height, width):
            self._end(edge)
        for image, target in zip(batch, result, strict=True):
            self._run(image, target, maps, scratch)
        return result

    def _run(
        self,
        image: Floats,
        target: Floats,
        maps: list[FeatureMap],
        scratch: list[Floats],
    ) -> None:
        """Compute one picture."""
        limit = max(1, _JOB_SIZE // max(self.operations() // len(self.blocks), 1))
        tile_rows = self.kernels.tile_rows
        _, height, width = image.shape
        parts = rectangles(height, width, self.threads, limit, tile_rows)
        steps: list[list[Job]] = [
            [partial(work, part) for part in parts]
            for work in self._steps(image, target, maps, scratch)
        ]
        run_steps(steps, self.threads)

    def _steps(
        self,
        image: Floats,
        target: Floats,
        maps: list[FeatureMap],
        scratch: list[Floats],
    ) -> list[Callable[[Rectangle, int], None]]:
        """All steps in order, each for a rectangle and the number of a thread.

        The features of the first convolution are needed at the end again. Computing
        them twice costs less than a third map: 0.2% of the small network at 2x.
        """
        k, (here, there) = self.kernels, maps

        def first(to: FeatureMap, where: Rectangle, thread: int) -> None:
            k.first(image, to, where, self.mean, self.first, scratch[thread])

        def one_block(
            block: PackedBlock,
            a: FeatureMap,
            b: FeatureMap,
            where: Rectangle,
            thread: int,
        ) -> None:
            k.block(a, b, where, block, BLOCK_EPS, scratch[thread])

        steps: list[Callable[[Rectangle, int], None]] = [partial(first, here)]
        for block in self.blocks:
            steps.append(partial(one_block, block, here, there))
            here, there = there, here

        def norm_and_first(where: Rectangle, thread: int) -> None:
            k.norm(here, where, self.norm, NORM_EPS)
            first(there, where, thread)

        def after_body(where: Rectangle, thread: int) -> None:
            k.conv(here, there, where, self.after_body, ADD, scratch[thread])

        def before_upsample(where: Rectangle, thread: int) -> None:
            k.conv(there, here, where, self.before_upsample, LEAKY, scratch[thread])

        def tail(where: Rectangle, thread: int) -> None:
            k.tail(here, target, where, self.mean, ends, scratch[thread])

        ends = [self._ends.get(edge) for edge in range(16)]
        return [*steps, norm_and_first, after_body, before_upsample, tail]

    def _map_groups(self) -> int:
        """Groups of a map, which holds the features of the body or of the tail."""
        most = max(self.embed_dim, self.before_upsample.out_channels)
        return self.kernels.groups(most)

    def _new_map(self, height: int, width: int) -> FeatureMap:
        channels = self._map_groups() * self.kernels.lanes
        return self.kernels.new_map(channels, height, width, self.margin)

    def _scratch_floats(self) -> int:
        hidden = max(block.hidden for block in self.blocks)
        return self.kernels.scratch_floats(self.channels, self.embed_dim, hidden)

    def _end(self, edge: int) -> PackedConvolution:
        """The last convolution for positions at this edge, made when first needed."""
        if edge not in self._ends:
            made = pack_convolution(self.ending.at(edge), self.kernels.lanes)
            self._ends[edge] = made  # by two threads at once: twice the same
        return self._ends[edge]


def _out_of_memory(height: int, width: int, needed: int) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"Out of memory on cpu for a picture of {width}x{height}: "
        f"{needed / 2**20:.0f} MiB are needed."
    )
