"""What executes a model: one class each, the same three methods, chosen by name."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from aethernet.checkpoint import SUFFIXES as CHECKPOINT_SUFFIXES
from aethernet.errors import AetherError
from aethernet.files import check_source

if TYPE_CHECKING:
    import numpy as np


class Runtime(Protocol):
    """A loaded model."""

    scale: int
    """Output pixels per input pixel along each side."""
    in_chans: int
    """Channels of the image, in and out: 3 is RGB, 1 is gray."""

    @classmethod
    def load(cls, path: Path, device: str) -> Self:
        """Load a model file; `device` is "auto", "cpu", "cuda", "cuda:1", "mps" ..

        Raises:
            AetherError: when the file is no such model or the device is not there.
        """

    def run(self, image: "np.ndarray") -> "np.ndarray":
        """Upscale `(B, in_chans, H, W)`, float32, 0..1; the result is not clamped.

        Raises:
            AetherError: when the image does not fit the model or the memory.
        """

    def describe(self) -> str:
        """Runtime, precision and device in a few words, for people."""


# Name -> (module and class of ours, suffixes of the files it loads).
RUNTIMES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "pytorch": ("aethernet.runtimes.pytorch", "PyTorchRuntime", CHECKPOINT_SUFFIXES),
    "onnxruntime": ("aethernet.runtimes.onnxruntime", "OnnxRuntime", (".onnx",)),
}


def load_model(
    path: str | Path, runtime: str | None = None, device: str = "auto"
) -> Runtime:
    """Load a model file with the named runtime, or the first that takes such files.

    Raises:
        AetherError: when the file is missing, or no runtime or not this one loads it.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    check_source(path, "a model file")
    fitting = [name for name, (*_, suffixes) in RUNTIMES.items() if suffix in suffixes]
    if not fitting:
        known = ", ".join(s for *_, suffixes in RUNTIMES.values() for s in suffixes)
        raise AetherError(f"{path} is no model by its name; expected one of {known}.")
    name = runtime or fitting[0]
    if name not in fitting:
        raise AetherError(
            f"The runtime {name} does not load {suffix} files, {fitting[0]} does; "
            "`aethernet export` makes an .onnx file of a checkpoint."
        )
    module, class_name, _ = RUNTIMES[name]
    cls: type[Runtime] = getattr(importlib.import_module(module), class_name)
    return cls.load(path, device)
