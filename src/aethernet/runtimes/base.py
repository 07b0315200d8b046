"""The interface of a loaded model and of the runtimes that load one."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from aethernet.checkpoints import rewrites

if TYPE_CHECKING:
    import numpy as np


PRECISIONS = tuple(rewrites.PRECISIONS)


@dataclass(frozen=True)
class Description:
    """What executes a model, for people."""

    runtime: str
    """The library's name, e.g. "ONNX Runtime"."""
    device: str
    """As `--device` takes it, e.g. "cuda:0"."""
    precision: str
    """One of `PRECISIONS`."""
    why: str = ""
    """How this one came to be taken; empty when nobody chose."""

    def __str__(self) -> str:
        line = f"{self.runtime} {self.precision} on {self.device}"
        return f"{line}: {self.why}" if self.why else line


@dataclass(frozen=True)
class Limits:
    """Sizes of input that a model takes, (height, width) in pixels."""

    least: tuple[int, int] = (1, 1)
    most: tuple[int, int] | None = None
    """None where memory is the only limit."""


class Model(Protocol):
    """A loaded model."""

    scale: int
    """Output pixels per input pixel along each side."""
    channels: int
    """Channels of the image, in and out: 3 is RGB, 1 is gray."""
    limits: Limits
    """Sizes of input that `run` takes."""

    def run(self, batch: "np.ndarray") -> "np.ndarray":
        """Upscale `(B, channels, H, W)`, float32, 0..1; the result is not clamped.

        Raises:
            AetherError: when the batch does not fit the model.
            OutOfMemoryError: when it does not fit the memory.
        """

    def describe(self) -> Description:
        """Library, device and precision."""


class Runtime(Model, Protocol):
    """What loads a model, and is that model then."""

    @classmethod
    def load(cls, path: Path, device: str, precision: str) -> Self:
        """Load a model file.

        Args:
            path: of one of the suffixes in `RUNTIMES`.
            device: "auto" (the best there is) or a name of a kind in `DEVICES`.
            precision: one of `PRECISIONS`, or "auto": float32, or what the file holds.

        Raises:
            AetherError: when the file is no such model, the device is not there or
                cannot compute in that precision.
        """


class TriedRuntime(Runtime, Protocol):
    """A runtime that `choice` may choose among others."""

    why: str
    """What `describe` gives as the reason; set by whoever chose."""

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """What "auto" may take here, best first; raises MissingExtraError."""

    @classmethod
    def precisions(cls, path: Path, device: str) -> tuple[str, ...]:
        """What may pay for this file on this device; "auto" is what the file holds."""
