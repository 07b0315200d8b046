"""What ONNX Runtime and OpenVINO share: ONNX files of anyone, and exports of ours."""

import abc
import contextlib
import logging
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import numpy as np
import psutil
import torch

from aethernet.cache import cache_folder, code_version, make_folder
from aethernet.errors import AetherError, OutOfMemoryError
from aethernet.files import check_target, sha256_of
from aethernet.runtimes.base import Description, Limits

_log = logging.getLogger(__name__)

# Exports kept, the last used; a training run upscales with many checkpoints once.
_KEPT_EXPORTS = 16

# What the libraries and the drivers below them say, in words of their own.
_MEMORY = re.compile(r"alloc|out.of.memory|OutOfMemory|CUDA failure 2\b", re.IGNORECASE)

T = TypeVar("T")


class OnnxModel(abc.ABC):
    """An ONNX model of one input and one output `(B, C, H, W)`, float32 or float16."""

    library: ClassVar[str]

    def __init__(
        self,
        path: Path,
        shapes: Sequence[Sequence[int | None]],
        dtype: type[np.floating] | None,
        device: str,
        precision: str,
    ) -> None:
        """`shapes` are of inputs and outputs, None where the file leaves a side free;
        `dtype` is of the input, None where it is neither of both.
        """
        shape = shapes[0] if len(shapes) == 2 else ()
        channels = shape[1] if len(shape) == 4 else None
        if channels is None or dtype is None:
            raise AetherError(
                f"{path} is no picture model: expected one input (batch, channels, "
                "height, width), float32 or float16, with a fixed number of channels, "
                "and one output."
            )
        self.fixed = tuple(shape)
        height, width = shape[2:]
        self.limits = Limits(
            (height or 1, width or 1),
            # A side that is free is bounded by nothing a window would reach.
            (height or 2**31, width or 2**31) if height or width else None,
        )
        self.channels: int = channels
        self.device, self.precision, self.why = device, precision, ""
        self._dtype = dtype
        # What comes out tells the scale of any file, whoever wrote it.
        probe = self.size(1, 8, 8)
        try:
            out = self._run(np.zeros(probe, np.float32)).shape
        except (MemoryError, ValueError) as error:
            raise AetherError(f"{path} takes inputs of {probe}: too large.") from error
        self.scale: int = out[2] // probe[2] if len(out) == 4 and probe[2] else 0
        if not self.scale or out != (
            *probe[:2],
            probe[2] * self.scale,
            probe[3] * self.scale,
        ):
            raise AetherError(
                f"{path} is no upscaler: it makes {out} of {tuple(probe)}."
            )

    @classmethod
    @abc.abstractmethod
    def of_file(cls, path: Path, device: str, precision: str) -> Self:
        """Load an .onnx file."""

    @abc.abstractmethod
    def _execute(self, batch: np.ndarray) -> np.ndarray:
        """Run the library, which raises what it likes."""

    def size(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The shape of an input that the file takes, this one where sides are free."""
        wanted = (batch, self.channels, height, width)
        sides = [fixed or side for fixed, side in zip(self.fixed, wanted, strict=True)]
        return (sides[0], sides[1], sides[2], sides[3])

    def run(self, batch: np.ndarray) -> np.ndarray:
        for side, fixed, what in zip(
            batch.shape,
            self.fixed,
            ("batch", "channels", "height", "width"),
            strict=True,
        ):
            if fixed not in (None, side):
                raise AetherError(
                    f"This ONNX file takes a {what} of {fixed} only, not {side}; "
                    "export it with free sizes."
                )
        return self._run(batch)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        try:
            output = self._execute(batch.astype(self._dtype, copy=False))
        except Exception as error:  # their errors share no base class of their own
            if isinstance(error, MemoryError) or _MEMORY.search(str(error)):
                height, width = batch.shape[-2:]
                raise OutOfMemoryError(
                    f"Out of memory on {self.device} for a picture of {width}x{height}."
                ) from error
            raise AetherError(
                f"{self.library} failed on an image of shape {[*batch.shape]}: out of "
                "memory, or no picture model."
            ) from error
        return np.asarray(output).astype(np.float32, copy=False)

    def describe(self) -> Description:
        return Description(self.library, self.device, self.precision, self.why)


def allowed_threads() -> int:
    """Threads that PyTorch was told to take, by us or OMP_NUM_THREADS; 0 for no word.

    The libraries here do not look at either: of several workers on one machine each
    would take all of it.
    """
    threads = torch.get_num_threads()
    return threads if threads < (psutil.cpu_count(logical=False) or 1) else 0


def load_exported(path: Path, precision: str, load: Callable[[Path], T]) -> T:
    """Load the ONNX export of a checkpoint, made and verified the first time.

    Raises:
        AetherError: when it cannot be exported, kept or loaded.
    """
    name = f"{sha256_of(path)[:32]}-{code_version()}-{precision}.onnx"
    try:
        folder = cache_folder() / "exports"
        make_folder(folder)
        check_target(folder / name)
    except AetherError as error:
        _log.info("the export is not kept: %s", error)
        with tempfile.TemporaryDirectory(prefix="aethernet_") as temporary:
            return load(_export(path, Path(temporary, name), precision))
    target = folder / name
    if target.is_file():
        try:
            loaded = load(target)
        except AetherError as error:
            _log.info("exporting again, %s does not load: %s", target, error)
        else:
            with contextlib.suppress(OSError):  # another user's
                target.touch()  # used last
            return loaded
    _export(path, target, precision)
    _drop_oldest(folder)
    return load(target)


def _export(path: Path, target: Path, precision: str) -> Path:
    from aethernet.checkpoints.onnx import export_onnx

    _log.info("exporting %s to ONNX in %s, once", path, precision)
    export_onnx(path, target, dynamic=True, precision=precision)
    return target


def _drop_oldest(folder: Path) -> None:
    # Without those that other processes write at this moment, whose names are hidden.
    files = [f for f in folder.glob("*.onnx") if not f.name.startswith(".")]
    with contextlib.suppress(OSError):  # moved or removed by another process meanwhile
        files.sort(key=lambda file: file.stat().st_mtime)
        for old in files[:-_KEPT_EXPORTS]:
            old.unlink(missing_ok=True)
