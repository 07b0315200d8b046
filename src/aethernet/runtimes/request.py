"""Which model to open, and how to run it: what a user's flags say, as one value."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aethernet.runtimes.base import NOTHING_ASKED, AskedValues
from aethernet.runtimes.registry import open_any
from aethernet.runtimes.tiling import DEFAULT_CONTEXT, Tiled


@dataclass(frozen=True)
class ModelRequest:
    """Which model to open, and how to run it."""

    path: Path
    runtime: str = "auto"
    """As for `open_any`, like `device`, `precision` and `asked`."""
    device: str = "auto"
    precision: str = "auto"
    tile: int | None = None
    """As for `Tiled`, like `context`."""
    context: int = DEFAULT_CONTEXT
    asked: AskedValues = NOTHING_ASKED

    def open(
        self,
        pixels: Callable[[], float] | None = None,
        kind: type[Tiled] = Tiled,
    ) -> Tiled:
        """Open the model, for pictures of any size.

        Args:
            pixels: as for `open_any`.
            kind: the class that divides pictures into tiles.

        Raises:
            AetherError: as `open_any` and `Tiled` do.
        """
        how = (self.runtime, self.device, self.precision)
        opened = open_any(self.path, *how, pixels, self.asked)
        return kind(opened, self.tile, self.context)
