"""Upscale pictures larger than memory in windows that overlap.

A *tile* is the part of a window that is kept. The *context* is the real pixels around
it, which the network also sees. With a context of at least the network's receptive
radius the result equals that of the whole picture. The default is smaller, and chosen
by measurement.
"""

import logging
import math
import time
from dataclasses import dataclass

import numpy as np

from aethernet.devices import free_memory
from aethernet.errors import AetherError, OutOfMemoryError
from aethernet.runtimes.base import Description, Model

_log = logging.getLogger(__name__)

# The smallest multiple of 8 whose seams, with the shipped model on photographs, stay
# below half an 8-bit step and change at most one value in 10,000
# (`benchmarks/context.py` measures it).
DEFAULT_CONTEXT = 16

# The largest tile chosen here, and the smallest that halving leads to.
_LARGEST_TILE, _SMALLEST_TILE = 1024, 32

# Memory for a pixel of a window with aether_large in float32, the largest variant, in
# the runtime that takes most. A model that knows its own has it as `bytes_per_pixel`.
_BYTES_PER_PIXEL = 8192
_SHARE_OF_MEMORY = 1 / 3


@dataclass(frozen=True)
class Window:
    """A range of pixels along one side of a picture.

    The network sees `start` to `stop`; `keep_start` to `keep_stop` is kept.
    """

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def windows(length: int, most: int, context: int, least: int = 1) -> list[Window]:
    """The fewest windows of one size that cover a side, evenly spread.

    All lengths are in pixels.

    Args:
        length: of the side.
        most: largest length of a window, more than twice the context.
        context: least length of a window on both sides of what is kept, except at the
            ends of the side.
        least: smallest length of a window, where the side has it; at most `most`.
    """
    if length <= most:
        return [Window(0, length, 0, length)]
    count = math.ceil((length - 2 * context) / (most - 2 * context))
    size = max(math.ceil((length + 2 * context * (count - 1)) / count), least)
    starts = [i * (length - size) // (count - 1) for i in range(count)]
    # Neighbours meet in the middle of their overlap.
    meets = [(starts[i] + starts[i - 1] + size) // 2 for i in range(1, count)]
    edges = [0, *meets, length]
    return [
        Window(start, start + size, edges[i], edges[i + 1])
        for i, start in enumerate(starts)
    ]


class Tiled:
    """A model around another, which upscales pictures of any size in bounded memory.

    When memory runs out, the tile is halved and the window is tried again.
    """

    def __init__(
        self, model: Model, tile: int | None = None, context: int = DEFAULT_CONTEXT
    ) -> None:
        """Wrap a model.

        Args:
            model: which upscales the windows.
            tile: pixels along each side of a tile; 0: pictures are not divided; None:
                as large as the free memory allows.
            context: pixels around a tile.

        Raises:
            AetherError: when the model takes windows of a fixed size only, which is
                too small for the context.
        """
        self.model, self.context = model, context
        self.scale, self.channels = model.scale, model.channels
        self.input_sizes = model.input_sizes
        self.busy = 0.0
        """Seconds spent in the model so far."""
        self.asked_tile = tile
        if tile is None:
            each = getattr(model, "bytes_per_pixel", _BYTES_PER_PIXEL)
            tile = _tile_for(free_memory(model.describe().device), context, each)
        self._tile = tile or None
        for side in self.input_sizes.most or ():
            if side <= 2 * context:
                raise AetherError(
                    f"The model takes at most {side} pixels a side, too few for a "
                    f"context of {context} on both sides.",
                    hint="Set a smaller one with --context.",
                )

    @property
    def tile(self) -> int | None:
        """Pixels along each side of a tile; None where pictures are not divided."""
        return self._tile

    def describe(self) -> Description:
        return self.model.describe()

    def most(self, axis: int) -> int | None:
        """The largest window along height (0) or width (1); None without a limit."""
        allowed = [] if self._tile is None else [self._tile + 2 * self.context]
        if self.input_sizes.most:
            allowed.append(self.input_sizes.most[axis])
        return min(allowed, default=None)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Upscale `(B, channels, H, W)` of any size, as `Model.run`.

        Raises:
            AetherError: as the model does.
            OutOfMemoryError: when even the smallest tile does not fit.
        """
        height, width = batch.shape[2:]
        least = self.input_sizes.least
        down = windows(height, self.most(0) or height, self.context, least[0])
        across = windows(width, self.most(1) or width, self.context, least[1])
        if len(down) == len(across) == 1:
            return self._run_window(batch)
        scale = self.scale
        output = np.empty((*batch.shape[:2], height * scale, width * scale), np.float32)
        for row in down:
            for column in across:
                part = self.run(  # divides it again if the tile was halved meanwhile
                    batch[:, :, row.start : row.stop, column.start : column.stop]
                )
                output[(..., _scaled(row, scale), _scaled(column, scale))] = part[
                    (..., _kept(row, scale), _kept(column, scale))
                ]
        return output

    def _run_window(self, window: np.ndarray) -> np.ndarray:
        height, width = window.shape[2:]
        least = self.input_sizes.least
        missing = max(least[0] - height, 0), max(least[1] - width, 0)
        padded = np.ascontiguousarray(window)
        if any(missing):
            sides = ((0, 0), (0, 0), (0, missing[0]), (0, missing[1]))
            padded = np.pad(padded, sides, mode="edge")
        start = time.perf_counter()
        try:
            output = self.model.run(padded)
        except OutOfMemoryError as error:
            self._halve(height, width, error)
            return self.run(window)
        finally:
            self.busy += time.perf_counter() - start
        return output[:, :, : height * self.scale, : width * self.scale]

    def _halve(self, height: int, width: int, error: OutOfMemoryError) -> None:
        largest = max(height, width)
        tile = min(self._tile or largest, largest) // 2
        least = max(self.input_sizes.least)
        if tile < _SMALLEST_TILE or tile + 2 * self.context < least:
            raise error
        _log.warning("out of memory at %dx%d: using tiles of %d", width, height, tile)
        self._tile = tile


def _scaled(window: Window, scale: int) -> slice:
    return slice(window.keep_start * scale, window.keep_stop * scale)


def _kept(window: Window, scale: int) -> slice:
    return slice(
        (window.keep_start - window.start) * scale,
        (window.keep_stop - window.start) * scale,
    )


def _tile_for(free: int, context: int, bytes_per_pixel: int) -> int:
    side = int((free * _SHARE_OF_MEMORY / bytes_per_pixel) ** 0.5) - 2 * context
    return min(max(side // 16 * 16, 2 * _SMALLEST_TILE), _LARGEST_TILE)
