"""The TensorRT library that is installed, its messages, and the GPU to use."""

import contextlib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from aethernet.errors import AetherError, MissingExtraError, import_optional
from aethernet.runtimes.tensorrt.header import LIBRARIES

INSTALL_RTX = (
    "Install it: pip install tensorrt-rtx-cu13, or in AetherNet's folder: "
    "pip install -e '.[tensorrt]'."
)
"""How to get the library that the package index has."""

_INSTALL = {
    "tensorrt": "Follow NVIDIA's installation guide for TensorRT.",
    "tensorrt_rtx": INSTALL_RTX,
}


class Messages:
    """What a library logs, kept until it is needed for an error or a warning."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.activation_bytes: int | None = None
        """GPU memory for the largest input of the engine that was built last."""

    def add(self, severity: int, text: str) -> None:
        """Keep a message; the library's severities are 0, 1: error, 2: warning."""
        line = " ".join(text.split())
        if severity <= 1:
            self.errors.append(line)
        elif severity == 2 and line not in self.warnings:
            self.warnings.append(line)
        if found := re.match(r"Total Activation Memory: (\d+) bytes", line):
            self.activation_bytes = int(found[1])

    def reason(self) -> str:
        """The first error, which later ones follow from, without a full stop."""
        return self.errors[0].rstrip(".") if self.errors else "it gives no reason"


@dataclass(frozen=True)
class Library:
    """TensorRT or TensorRT for RTX, as far as both have the same names."""

    name: str
    """A key of `LIBRARIES`."""
    module: Any
    logger: Any
    messages: Messages

    @property
    def title(self) -> str:
        """Name and version, for people."""
        return f"{LIBRARIES[self.name]} {self.module.__version__}"


@functools.cache  # the library uses only the first logger that it is given
def open_library(name: str) -> Library:
    """Import a library, a key of `LIBRARIES`, and collect its messages.

    Raises:
        MissingExtraError: when it is not installed or does not load.
    """
    try:
        module: Any = import_optional(name)
    except MissingExtraError as error:
        if not error.hint:  # it is installed
            raise
        raise MissingExtraError(
            f"{LIBRARIES[name]} is not installed.", hint=_INSTALL[name]
        ) from error
    messages = Messages()
    logger = type(
        "Listener",
        (module.ILogger,),
        {"log": lambda _, severity, text: messages.add(int(severity), text)},
    )()
    return Library(name, module, logger, messages)


def choose_gpu(name: str) -> torch.device:
    """The NVIDIA GPU of that name: "auto" is the current one, else cuda, cuda:1, ...

    Raises:
        AetherError: when the name is no NVIDIA GPU, or that GPU is not available.
    """
    if name != "auto" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise AetherError(
            f"TensorRT engines run on an NVIDIA GPU (cuda, cuda:1, ...), not on "
            f"{name!r}."
        )
    if not torch.cuda.is_available():
        raise AetherError(
            "There is no NVIDIA GPU here that PyTorch can use, and a TensorRT engine "
            "runs on nothing else.",
            hint="Use the ONNX file or the checkpoint that it was made from.",
        )
    index = name.partition(":")[2]
    number = int(index) if index else torch.cuda.current_device()
    if number >= torch.cuda.device_count():
        raise AetherError(
            f"There is no device {name}: this machine has "
            f"{torch.cuda.device_count()} NVIDIA GPU(s), counted from cuda:0."
        )
    return torch.device("cuda", number)


@contextlib.contextmanager
def on_stream(device: torch.device, stream: Any) -> Iterator[None]:
    """A block in which the library and PyTorch use this device and this stream."""
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield
