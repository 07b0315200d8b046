"""The interface of a loaded model, of a runtime that loads one, and of its entry.

A *runtime* is a class that loads a model file with one library and then is that model.
This module imports no library, so that flags and help texts can be made from it.
"""

import contextlib
import functools
import hashlib
import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from aethernet.checkpoints import layout
from aethernet.errors import (
    AetherError,
    OutOfMemoryError,
    first_line,
    import_optional,
)
from aethernet.files import sha256_of

if TYPE_CHECKING:
    import numpy as np

    from aethernet.checkpoints.checkpoint import Checkpoint

PRECISIONS = layout.PRECISIONS
"""What a model can be computed in."""

ONNX_RUNTIME_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
)
"""Distributions of ONNX Runtime, which also is the reference for .onnx files."""

# How libraries, and the drivers below them, say that memory ran out.
_OUT_OF_MEMORY = re.compile(
    r"(fail\w*|can.?t|could not|cannot|unable|tried)( to)?( be)? alloc|bad.?alloc|"
    r"alloc\w*.fail|out.of.memory|OutOfMemory|not enough memory|CUDA failure 2\b|"
    r"smaller than requested",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Description:
    """What executes a model, for people."""

    runtime: str
    """The library's name, e.g. "ONNX Runtime"."""
    device: str
    """As `--device` takes it, e.g. "cuda:0"."""
    precision: str
    """One of `PRECISIONS`, or "int8"."""
    why: str = ""
    """Why this runtime was chosen; empty when it was not chosen among others."""

    def __str__(self) -> str:
        line = f"{self.runtime} {self.precision} on {self.device}"
        return f"{line}: {self.why}" if self.why else line


@dataclass(frozen=True)
class InputSizes:
    """Sizes of input that a model accepts, (height, width) in pixels."""

    least: tuple[int, int] = (1, 1)
    most: tuple[int, int] | None = None
    """None where memory is the only limit."""


@dataclass(frozen=True)
class AskedValues:
    """What the user says about the values that a network takes and makes."""

    range: float | None = None
    """What white is; None: to be found out. For AetherNet this is `img_range`."""
    bgr: bool = False
    """Whether the colours are in the order blue, green, red."""


NOTHING_ASKED = AskedValues()


class Model(Protocol):
    """A loaded model."""

    scale: int
    """Output pixels per input pixel along each side."""
    channels: int
    """Channels of the image, in and out: 3 is RGB, 1 is gray."""
    input_sizes: InputSizes
    """Sizes of input that `run` accepts."""

    def run(self, batch: "np.ndarray") -> "np.ndarray":
        """Upscale a batch of images.

        Args:
            batch: `(B, channels, H, W)`, float32, 0..1.

        Returns:
            `(B, channels, scale * H, scale * W)`, float32, not clamped.

        Raises:
            AetherError: when the batch does not fit the model.
            OutOfMemoryError: when it does not fit the memory.
        """

    def describe(self) -> Description:
        """Library, device and precision."""


class ModelFile:
    """A model file whose content is read once, however many runtimes load it."""

    def __init__(self, path: Path, img_range: float | None = None) -> None:
        """Name a file; nothing is read yet.

        Args:
            path: of the file.
            img_range: of a checkpoint, as in `CheckpointOptions`.
        """
        self.path, self._img_range = path, img_range

    @classmethod
    def of(cls, file: "Path | ModelFile") -> "ModelFile":
        """The file itself, or that of a path."""
        return file if isinstance(file, ModelFile) else cls(file)

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the content, and of `img_range` if there is one.

        Raises:
            AetherError: when the file cannot be read.
        """
        found = sha256_of(self.path)
        if self._img_range is None:
            return found
        return hashlib.sha256(f"{found} {self._img_range!r}".encode()).hexdigest()

    @functools.cached_property
    def checkpoint(self) -> "Checkpoint":
        """The content of a checkpoint; raises AetherError as `load_checkpoint`."""
        from aethernet.checkpoints.checkpoint import CheckpointOptions, load_checkpoint

        options = CheckpointOptions(img_range=self._img_range)
        return load_checkpoint(self.path, options)


class Runtime(Model, Protocol):
    """A class that loads a model file and then is that model."""

    @classmethod
    def load(cls, file: Path | ModelFile, device: str, precision: str) -> Self:
        """Load a model file.

        Args:
            file: with one of the suffixes of the runtime's `RuntimeSpec`.
            device: "auto" (the best available) or a device of a kind in the spec.
            precision: one of `PRECISIONS`, or "auto": float32 for a checkpoint, what
                the file holds for any other file.

        Raises:
            AetherError: when the file is no such model, the device is not available or
                cannot compute in that precision.
        """


class TriedRuntime(Runtime, Protocol):
    """A runtime that `choice` can compare with others."""

    why: str
    """The `why` of `describe`; set when the runtime is chosen."""

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """Devices that "auto" may use here, best first.

        Raises:
            MissingExtraError: when the library is not installed.
        """

    @classmethod
    def precisions(cls, path: Path, device: str) -> tuple[str, ...]:
        """Precisions worth trying for this file on this device.

        "auto" stands for what the file holds.
        """


@dataclass(frozen=True)
class RuntimeSpec:
    """The entry of a runtime: all that is known about it before it is imported."""

    name: str
    """As `--runtime` takes it."""
    load: str
    """Module and class, "package.module:Class"; imported when the runtime is used."""
    suffixes: tuple[str, ...]
    """Of the files that it loads, in lower case."""
    devices: tuple[str, ...]
    """Kinds of device that it may have. A number may follow in a name: "cuda:1"."""
    distributions: tuple[str, ...]
    """Distributions that bring its library; one of them is enough."""
    extra: str | None
    """AetherNet's extra that installs the library; None: installed with AetherNet."""
    checkpoint_needs: tuple[tuple[str, ...], ...] = ()
    """Distributions needed besides to run a checkpoint; one of each group."""
    converts: bool = False
    """Whether it also runs a float32 .onnx file in other precisions."""
    precisions: tuple[str, ...] = PRECISIONS
    """What it may compute in."""
    lower_on_cpu: bool = False
    """Whether it may be faster in a lower precision on a processor with units for it.

    Its library is only asked for these precisions when a trial may be worth its time.
    """
    tried: bool = True
    """Whether `choice` decides about it; the class then is a `TriedRuntime`.

    False for a runtime of a file format of its own, for which there is no other.
    """
    proven: bool = False
    """Whether it compares its output with a reference itself, when it loads a model."""
    automatic: bool = True
    """Whether "auto" may take it. False: it has to be named."""

    def import_class(self) -> type[Runtime]:
        """The runtime's class; the library that it uses may still be missing.

        Raises:
            MissingExtraError: when its module needs PyTorch, and that is not installed.
        """
        module, _, name = self.load.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name == "torch":
                import_optional("torch", self.extra)  # says how to install it
            raise


def is_out_of_memory(error: Exception) -> bool:
    """Whether a library says by this that memory ran out."""
    says = _OUT_OF_MEMORY.search(str(error))
    return isinstance(error, MemoryError) or says is not None


@contextlib.contextmanager
def library_failures(
    by: Description,
    shape: Sequence[int],
    caught: tuple[type[Exception], ...] = (Exception,),
) -> Iterator[None]:
    """Turn what a library raises in this block into one of our errors.

    Args:
        by: what executes the model.
        shape: of the batch, `(B, channels, H, W)`.
        caught: what the library raises; by default anything, because the errors of
            most libraries have no base class of their own.

    Raises:
        OutOfMemoryError: when the library ran out of memory.
        AetherError: when it failed otherwise.
    """
    failures: tuple[type[Exception], ...] = (MemoryError, *caught)
    try:
        yield
    except AetherError:
        raise
    except failures as error:
        height, width = shape[-2:]
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"Out of memory on {by.device} for a picture of {width}x{height}."
            ) from error
        raise AetherError(
            f"{by.runtime} failed in {by.precision} on {by.device} on an image of "
            f"{width}x{height}: {first_line(error).rstrip('.')}."
        ) from error


def no_picture_model(path: Path, types: str) -> AetherError:
    """The error for an ONNX file whose inputs or outputs are not those of a picture.

    Args:
        path: of the file.
        types: of its input that could be used, e.g. "float32 or float16".
    """
    return AetherError(
        "This is no picture model: expected one input (batch, channels, height, "
        f"width), {types}, with a fixed number of channels, and one output.",
        path,
    )


def check_upscales(path: Path, given: Sequence[int], made: Sequence[int]) -> int:
    """The scale of a model that makes an output of one shape of an input of another.

    Args:
        path: of the model.
        given, made: shapes of input and output, `(B, C, H, W)`.

    Raises:
        AetherError: when the output is not the input enlarged by a whole number.
    """
    batch, channels, height, width = given
    scale = made[2] // height if len(made) == 4 and height else 0
    if not scale or tuple(made) != (batch, channels, height * scale, width * scale):
        raise AetherError(
            f"This is no upscaler: it makes {tuple(made)} of {tuple(given)}.", path
        )
    return scale
