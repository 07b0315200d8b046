"""The TensorRT library that is installed, its messages, and the GPU to use."""

import functools
import re
from dataclasses import dataclass
from typing import Any

import torch

from aethernet.errors import AetherError, MissingExtraError, import_optional
from aethernet.runtimes.tensorrt.header import LIBRARIES

_INSTALL = {
    "tensorrt": "NVIDIA's installation guide for TensorRT says how",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13; in AetherNet's folder "
    "pip install -e '.[tensorrt]' brings all",
}


class Messages:
    """What a library logs, kept until somebody asks."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.activation_bytes: int | None = None
        """GPU memory for the largest input of the engine built last."""

    def take(self, severity: int, text: str) -> None:
        """Note a message. Severities are the library's: 0, 1 are errors, 2 warnings."""
        line = " ".join(text.split())
        if severity <= 1:
            self.errors.append(line)
        elif severity == 2 and line not in self.warnings:
            self.warnings.append(line)
        if found := re.match(r"Total Activation Memory: (\d+) bytes", line):
            self.activation_bytes = int(found[1])

    def reason(self) -> str:
        """The first error, which later ones follow from, to end a sentence with."""
        return self.errors[0].rstrip(".") if self.errors else "it does not say why"


@dataclass(frozen=True)
class Library:
    """TensorRT or TensorRT for RTX, as far as both have the same names."""

    name: str
    module: Any
    logger: Any
    messages: Messages

    @property
    def title(self) -> str:
        return f"{LIBRARIES[self.name]} {self.module.__version__}"


@functools.cache  # the library keeps to the first logger that it is given
def open_library(name: str) -> Library:
    """Import a library, a key of `LIBRARIES`, and listen to it.

    Raises:
        MissingExtraError: when it is not installed, or not wholly.
    """
    try:
        module: Any = import_optional(name)
    except MissingExtraError as error:
        raise MissingExtraError(
            f"{LIBRARIES[name]} is not installed: {_INSTALL[name]}."
        ) from error
    except (ImportError, OSError) as error:  # a shared library of it, most often
        raise MissingExtraError(
            f"{LIBRARIES[name]} is installed, and cannot be loaded: {error}"
        ) from error
    messages = Messages()
    logger = type(
        "Listener",
        (module.ILogger,),
        {"log": lambda _, severity, text: messages.take(int(severity), text)},
    )()
    return Library(name, module, logger, messages)


def choose_gpu(name: str) -> torch.device:
    """The NVIDIA GPU of that name: "auto" is the current one, else cuda, cuda:1 ..

    Raises:
        AetherError: when it is none, or not there.
    """
    if name != "auto" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise AetherError(
            f"TensorRT engines run on an NVIDIA GPU (cuda, cuda:1 ..), not on {name!r}."
        )
    if not torch.cuda.is_available():
        raise AetherError(
            "There is no NVIDIA GPU here that PyTorch can use, and a TensorRT engine "
            "runs on nothing else; take the ONNX file or the checkpoint it is from."
        )
    index = name.partition(":")[2]
    number = int(index) if index else torch.cuda.current_device()
    if number >= torch.cuda.device_count():
        raise AetherError(
            f"There is no device {name}: this machine has "
            f"{torch.cuda.device_count()} NVIDIA GPU(s), counted from cuda:0."
        )
    return torch.device("cuda", number)
