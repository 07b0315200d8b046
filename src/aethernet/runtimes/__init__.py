"""What executes a model: one class each, the same methods, chosen by name or trial."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from aethernet import rewrites
from aethernet.checkpoint import SUFFIXES as CHECKPOINT_SUFFIXES
from aethernet.errors import AetherError
from aethernet.files import check_source

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


# Name -> (module and class of ours, suffixes of the files it loads). The first of those
# that load a file is what the others are held against.
RUNTIMES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "pytorch": ("aethernet.runtimes.pytorch", "PyTorchRuntime", CHECKPOINT_SUFFIXES),
    "onnxruntime": (
        "aethernet.runtimes.onnxruntime",
        "OnnxRuntime",
        (".onnx", *CHECKPOINT_SUFFIXES),
    ),
    "openvino": (
        "aethernet.runtimes.openvino",
        "OpenVINORuntime",
        (".onnx", *CHECKPOINT_SUFFIXES),
    ),
    "tensorrt": ("aethernet.runtimes.tensorrt", "TensorRTRuntime", (".engine",)),
}

# Name -> kinds of device. Where there can be several a number may follow: cuda:1.
DEVICES: dict[str, tuple[str, ...]] = {
    "pytorch": ("cpu", "cuda", "xpu", "mps"),
    "onnxruntime": ("cpu", "cuda", "tensorrt", "dml", "coreml"),
    "openvino": ("cpu", "xpu"),
    "tensorrt": ("cuda",),
}


def open_model(
    path: str | Path,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> Runtime:
    """Load a model file with what executes it fastest here, or as the words say.

    Each "auto" leaves a choice to a short trial on one tile, made once for a model and
    a machine and kept in the user's cache. Whatever is returned has been checked on
    that tile, except PyTorch float32 on the CPU where there is nothing else, and
    TensorRT's engines, which have nothing to be checked against.

    Args:
        path: a checkpoint, an .onnx file of anyone, or an .engine file.
        runtime: "auto" or a key of `RUNTIMES`.
        device: "auto" or of a kind in `DEVICES`, with a number if need be: "cuda:1".
        precision: "auto" or one of `PRECISIONS`.

    Raises:
        AetherError: when the file is missing or no model, or nothing here executes it
            as asked.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    check_source(path, "a model file")
    fitting = [name for name, (*_, suffixes) in RUNTIMES.items() if suffix in suffixes]
    if not fitting:
        known = dict.fromkeys(s for *_, suffixes in RUNTIMES.values() for s in suffixes)
        raise AetherError(
            f"{path} is no model by its name; expected one of {', '.join(known)}."
        )
    for word, known_words in (
        (runtime, ("auto", *RUNTIMES)),
        (precision, ("auto", *PRECISIONS)),
    ):
        if word not in known_words:
            raise AetherError(f"There is no {word!r}, only {', '.join(known_words)}.")
    if runtime != "auto" and runtime not in fitting:
        raise AetherError(
            f"The runtime {runtime} does not load {suffix} files, "
            f"{' and '.join(fitting)} would; `aethernet export` makes an .onnx file of "
            "a checkpoint, `aethernet engine` an .engine file of that."
        )
    names = fitting if runtime == "auto" else [runtime]
    able = [name for name in names if device_kind(device) in ("auto", *DEVICES[name])]
    if not able:
        known = dict.fromkeys(kind for name in names for kind in DEVICES[name])
        raise AetherError(
            f"The device {device!r} is none of {', '.join(known)}, which is what "
            f"{' and '.join(names)} may have."
        )
    if suffix == ".engine":
        return runtime_class("tensorrt").load(path, device, precision)
    from aethernet.runtimes.choice import choose

    return choose(path, able, device, precision, named=runtime != "auto")


def device_kind(device: str) -> str:
    """What stands before the number: "cuda" of "cuda:1"."""
    return device.partition(":")[0]


def runtime_class(name: str) -> type[Runtime]:
    """The class of that key of `RUNTIMES`; the library it needs may be missing."""
    module, class_name, _ = RUNTIMES[name]
    return getattr(importlib.import_module(module), class_name)
