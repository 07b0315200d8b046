"""TensorRT engines, executed by the library that built them.

Written without an NVIDIA GPU at hand: no engine has been run by it. What needs none
(headers, staleness, sizes, that the library has what is called here) is tested.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from aethernet.errors import AetherError, OutOfMemoryError
from aethernet.files import check_source
from aethernet.runtimes.base import Description, Limits
from aethernet.runtimes.tensorrt.header import (
    EngineHeader,
    check_content,
    check_covers,
    check_fits,
    read_header,
)
from aethernet.runtimes.tensorrt.library import choose_gpu, open_library

_log = logging.getLogger(__name__)


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


@contextlib.contextmanager
def _current(device: torch.device, stream: Any) -> Iterator[None]:
    """What the library and PyTorch do meanwhile, they do there."""
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield
