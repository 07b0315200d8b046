"""TensorRT engines, executed by the library that built them."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from aethernet.errors import AetherError
from aethernet.files import check_source, unreadable
from aethernet.runtimes.base import Description, InputSizes, library_failures
from aethernet.runtimes.tensorrt.header import (
    EngineHeader,
    check_content,
    check_covers,
    check_fits,
    read_header,
)
from aethernet.runtimes.tensorrt.library import open_library
from aethernet.runtimes.values import Values

_log = logging.getLogger(__name__)


class TensorRTRuntime:
    """An engine on an NVIDIA GPU, with the header that `aethernet engine` wrote."""

    def __init__(
        self, path: Path, header: EngineHeader, content: bytes, device: torch.device
    ) -> None:
        """Load an engine.

        Args:
            path: of the engine, for messages.
            header: the one beside it.
            content: of the engine's file.
            device: an NVIDIA GPU.

        Raises:
            AetherError: when this GPU or this version of the library cannot run it.
        """
        self.scale: int = header.scale
        least, _, most = (shape[2:] for shape in header.profile)
        self.input_sizes = InputSizes(least, most)
        self.channels: int = header.channels
        self.values = Values()
        """As `values.Foreign`."""
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
                "%s was tuned on %s and may be slower on %s.",
                path,
                header.gpu,
                self._gpu,
            )
        self._stream = torch.cuda.Stream(device)
        self._open(content)
        self._shape: tuple[int, ...] = ()
        self._memory: torch.Tensor | None = None

    def _open(self, content: bytes) -> None:
        trt, messages = self._library.module, self._library.messages
        messages.clear()
        with on_stream(self._device, self._stream):
            # Kept, because it must live as long as what it makes.
            self._runtime = trt.Runtime(self._library.logger)
            self._engine = self._runtime.deserialize_cuda_engine(content)
            # We allocate the memory for each size: the library would allocate it for
            # the largest, which is gigabytes for full HD.
            self._context = self._engine and self._engine.create_execution_context(
                trt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
        if self._context is None:
            raise AetherError(
                f"{self._library.title} does not load this engine on {self._gpu}: "
                f"{messages.reason()}.",
                self._path,
            )

    @classmethod
    def load(cls, path: Path, device: str = "auto", precision: str = "auto") -> Self:
        check_source(path, "a TensorRT engine")
        header = read_header(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise unreadable(error, path) from error
        check_content(path, header, content)
        if precision not in ("auto", header.precision):
            raise AetherError(
                f"The engine computes in {header.precision}, not in {precision}: it "
                "has the precision of the ONNX file it was built from.",
                path,
            )
        return cls(path, header, content, choose_gpu(device))

    @torch.inference_mode()
    def run(self, batch: np.ndarray) -> np.ndarray:
        """As `Model.run`; a batch larger than the profile allows is run in parts."""
        most = self._header.profile[2][0]
        parts = [batch[i : i + most] for i in range(0, len(batch), most)]
        for part in parts:
            check_covers(self._path, self._header, part.shape)
        with library_failures(self.describe(), batch.shape, (RuntimeError,)):
            return np.concatenate([self._run(part) for part in parts])

    def _run(self, part: np.ndarray) -> np.ndarray:
        header, context = self._header, self._context
        batch, channels, height, width = part.shape
        with on_stream(self._device, self._stream):
            # Contiguous in any case: engines take linear NCHW.
            given = np.ascontiguousarray(self.values.given(part))
            source = torch.from_numpy(given).to(
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
            # Waits for the stream.
            return self.values.made(target.float().cpu().numpy())

    def _prepare(self, shape: tuple[int, ...]) -> bool:
        """Set the shape of the next input and allocate memory for it."""
        if shape == self._shape:
            return True
        self._library.messages.clear()
        self._shape = ()
        if not self._context.set_input_shape(self._header.input_name, shape):
            return False
        size = self._context.update_device_memory_size_for_shapes()
        self._memory = None  # freed before the new one is allocated
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
