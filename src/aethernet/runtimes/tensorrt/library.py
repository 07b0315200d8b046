"""The TensorRT library that is installed, its messages, and the GPU that is here."""

import functools
import re
from dataclasses import dataclass
from typing import Any

from aethernet.errors import MissingExtraError, import_optional, install_line
from aethernet.runtimes.tensorrt.header import LIBRARIES

INSTALL_RTX = f"Install it, and what runs it: {install_line('tensorrt')}."
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


@dataclass(frozen=True)
class CudaGpu:
    """An NVIDIA GPU."""

    name: str
    capability: tuple[int, int]
    """Its compute capability."""


def current_gpu() -> CudaGpu | None:
    """The NVIDIA GPU that PyTorch uses here; None without PyTorch or such a GPU."""
    try:
        torch: Any = import_optional("torch")
    except MissingExtraError:
        return None
    if not torch.cuda.is_available():
        return None
    return CudaGpu(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
