"""TensorRT engines, executed by the library that built them.

Written without an NVIDIA GPU at hand: no engine has been run by it. What needs none
(headers, staleness, sizes, that the library has what is called here) is tested.
"""

import contextlib
import functools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from aethernet.engine_header import (
    LIBRARIES,
    EngineHeader,
    check_content,
    check_covers,
    check_fits,
    read_header,
)
from aethernet.errors import (
    AetherError,
    MissingExtraError,
    OutOfMemoryError,
    import_optional,
)
from aethernet.files import check_source
from aethernet.runtimes import Description, Limits

_log = logging.getLogger(__name__)

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


class TensorRTRuntime:
    """An engine on an NVIDIA GPU, with the header that `aethernet engine` wrote."""

    def __init__(
        self, path: Path, header: EngineHeader, content: bytes, device: torch.device
    ) -> None:
        """Load an engine's `content`; `path` is its name for messages.

        Raises:
            AetherError: when this GPU and this library do not run it.
        """
        self.scale: int = header.scale
        least, _, most = (shape[2:] for shape in header.profile)
        self.limits = Limits(least, most)
        self.channels: int = header.channels
        self._path, self._header, self._device = path, header, device
        self._library = open_library(header.library)
        self._gpu = torch.cuda.get_device_name(device)
        check_fits(
            path,
            header,
            self._library.module.__version__,
            self._gpu,
            torch.cuda.get_device_capability(device),
        )
        if header.gpu not in (None, self._gpu):
            _log.warning(
                "%s was tuned on %s, which %s is not: it may be slower than it could.",
                path,
                header.gpu,
                self._gpu,
            )
        trt, messages = self._library.module, self._library.messages
        messages.clear()
        self._stream = torch.cuda.Stream(device)
        with _current(device, self._stream):
            # Kept: what it has made must not outlive it.
            self._runtime = trt.Runtime(self._library.logger)
            self._engine = self._runtime.deserialize_cuda_engine(content)
            # Memory of our own for each size: the library would take it for the
            # largest, which is gigabytes for full HD.
            self._context = self._engine and self._engine.create_execution_context(
                trt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
        if self._context is None:
            raise AetherError(
                f"{self._library.title} does not load {path} on {self._gpu}: "
                f"{messages.reason()}."
            )
        self._shape: tuple[int, ...] = ()
        self._memory: torch.Tensor | None = None

    @classmethod
    def load(cls, path: Path, device: str = "auto", precision: str = "auto") -> Self:
        check_source(path, "a TensorRT engine")
        header = read_header(path)
        content = path.read_bytes()
        check_content(path, header, content)
        if precision not in ("auto", header.precision):
            raise AetherError(
                f"{path} computes in {header.precision}, not in {precision}; an engine "
                "has the precision of the ONNX file it was built from."
            )
        return cls(path, header, content, choose_gpu(device))

    @torch.inference_mode()
    def run(self, batch: np.ndarray) -> np.ndarray:
        """Upscale; a batch beyond the profile is taken in parts."""
        most = self._header.profile[2][0]
        parts = [batch[i : i + most] for i in range(0, len(batch), most)]
        for part in parts:
            check_covers(self._path, self._header, part.shape)
        try:
            return np.concatenate([self._run(part) for part in parts])
        except (MemoryError, RuntimeError) as error:
            if "memory" not in str(error):
                raise
            height, width = batch.shape[-2:]
            raise OutOfMemoryError(
                f"Out of memory on {self._gpu} for a picture of {width}x{height}."
            ) from error

    def _run(self, part: np.ndarray) -> np.ndarray:
        header, context = self._header, self._context
        batch, channels, height, width = part.shape
        with _current(self._device, self._stream):
            # Contiguous, whatever layout it came in: engines take linear NCHW.
            source = torch.from_numpy(np.ascontiguousarray(part)).to(
                self._device, getattr(torch, header.input_dtype)
            )
            target = torch.empty(
                (batch, channels, height * self.scale, width * self.scale),
                dtype=getattr(torch, header.output_dtype),
                device=self._device,
            )
            done = (
                self._prepare(tuple(part.shape))
                and context.set_tensor_address(header.input_name, source.data_ptr())
                and context.set_tensor_address(header.output_name, target.data_ptr())
                and context.execute_async_v3(self._stream.cuda_stream)
            )
            if not done:
                raise AetherError(
                    f"{self._library.title} failed on an image of {width}x{height}: "
                    f"{self._library.messages.reason()}."
                )
            return target.float().cpu().numpy()  # waits for the stream

    def _prepare(self, shape: tuple[int, ...]) -> bool:
        if shape == self._shape:
            return True
        self._library.messages.clear()
        self._shape = ()
        if not self._context.set_input_shape(self._header.input_name, shape):
            return False
        size = self._context.update_device_memory_size_for_shapes()
        self._memory = None  # before the new one is taken
        self._memory = torch.empty(max(size, 1), dtype=torch.uint8, device=self._device)
        self._context.set_device_memory(self._memory.data_ptr(), size)
        self._shape = shape
        return True

    def describe(self) -> Description:
        return Description(
            self._library.title,
            str(self._device),
            self._header.precision,
            f"the engine was built for it ({self._gpu})",
        )


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


@contextlib.contextmanager
def _current(device: torch.device, stream: Any) -> Iterator[None]:
    """What the library and PyTorch do meanwhile, they do there."""
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield
