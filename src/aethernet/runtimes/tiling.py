"""Pictures larger than memory: windows that overlap, and what to keep of each.

A *tile* is what is kept of a window, the *context* is the real pixels around it that
the network also sees. Where the context is at least the network's receptive radius, the
result is that of the whole picture; the default is less, and measured.
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

# Tiles chosen here are no larger, and none is halved below the smallest.
_LARGEST_TILE, _SMALLEST_TILE = 1024, 32

# What a pixel of a window takes: aether_large in float32, the most of the variants.
_BYTES_PER_PIXEL = 8192

_SHARE_OF_MEMORY = 1 / 3


@dataclass(frozen=True)
class Window:
    """Along one side of a picture: what the network sees, and what is kept of it."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def windows(length: int, most: int, context: int, least: int = 1) -> list[Window]:
    """Windows of one size, as even and as few as possible, that cover a side.

    Args:
        length: of the side, in pixels.
        most: pixels that a window may have, more than twice the context.
        context: pixels that it has at least beyond what is kept, except at the ends.
        least: pixels that it must have, where the side has them; not more than `most`.
    """
    if length <= most:
        return [Window(0, length, 0, length)]
    count = math.ceil((length - 2 * context) / (most - 2 * context))
    size = max(math.ceil((length + 2 * context * (count - 1)) / count), least)
    starts = [i * (length - size) // (count - 1) for i in range(count)]
    # Neighbours meet in the middle of what both have seen.
    meets = [(starts[i] + starts[i - 1] + size) // 2 for i in range(1, count)]
    edges = [0, *meets, length]
    return [
        Window(start, start + size, edges[i], edges[i + 1])
        for i, start in enumerate(starts)
    ]


class Tiled:
    """A runtime around another, which takes pictures of any size in bounded memory.

    On running out of memory the tile is halved, and what failed is done again.
    """

    def __init__(
        self, model: Model, tile: int | None = None, context: int = DEFAULT_CONTEXT
    ) -> None:
        """Wrap a model.

        Args:
            tile: pixels along each side of what is kept of a window; 0: pictures are
                not divided; None: what the free memory allows.
            context: pixels around it.

        Raises:
            AetherError: when the model takes one size only, too small for the context.
        """
        self.model, self.context = model, context
        self.scale, self.channels = model.scale, model.channels
        self.limits = model.limits
        self.busy = 0.0
        """Seconds spent in the model so far."""
        self.asked_tile = tile
        if tile is None:
            tile = _tile_for(free_memory(model.describe().device), context)
        self._tile = tile or None
        for side in self.limits.most or ():
            if side <= 2 * context:
                raise AetherError(
                    f"The model takes {side} pixels a side at most, too few for a "
                    f"context of {context} on both; set a smaller one (--context)."
                )

    @property
    def tile(self) -> int | None:
        """Pixels along each side, None where pictures are not divided."""
        return self._tile

    def describe(self) -> Description:
        return self.model.describe()

    def most(self, axis: int) -> int | None:
        """Pixels that a window may have along height (0) or width (1)."""
        allowed = [] if self._tile is None else [self._tile + 2 * self.context]
        if self.limits.most:
            allowed.append(self.limits.most[axis])
        return min(allowed, default=None)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Upscale `(B, channels, H, W)` as `Model.run`, of any size.

        Raises:
            AetherError: as the model does, and OutOfMemoryError when even the smallest
                tile does not fit.
        """
        height, width = batch.shape[2:]
        least = self.limits.least
        down = windows(height, self.most(0) or height, self.context, least[0])
        across = windows(width, self.most(1) or width, self.context, least[1])
        if len(down) == len(across) == 1:
            return self._run_window(batch)
        scale = self.scale
        output = np.empty((*batch.shape[:2], height * scale, width * scale), np.float32)
        for row in down:
            for column in across:
                part = self.run(  # in smaller ones, where the tile was halved meanwhile
                    batch[:, :, row.start : row.stop, column.start : column.stop]
                )
                output[(..., _scaled(row, scale), _scaled(column, scale))] = part[
                    (..., _kept(row, scale), _kept(column, scale))
                ]
        return output

    def _run_window(self, window: np.ndarray) -> np.ndarray:
        height, width = window.shape[2:]
        least = self.limits.least
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
        least = max(self.limits.least)
        if tile < _SMALLEST_TILE or tile + 2 * self.context < least:
            raise error
        _log.warning("out of memory at %dx%d: tiles of %d now", width, height, tile)
        self._tile = tile


def _scaled(window: Window, scale: int) -> slice:
    return slice(window.keep_start * scale, window.keep_stop * scale)


def _kept(window: Window, scale: int) -> slice:
    return slice(
        (window.keep_start - window.start) * scale,
        (window.keep_stop - window.start) * scale,
    )


def _tile_for(free: int, context: int) -> int:
    side = int((free * _SHARE_OF_MEMORY / _BYTES_PER_PIXEL) ** 0.5) - 2 * context
    return min(max(side // 16 * 16, 2 * _SMALLEST_TILE), _LARGEST_TILE)
