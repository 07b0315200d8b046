"""What ONNX Runtime and OpenVINO share: any ONNX file, and exports of our checkpoints.

An export is made the first time a checkpoint is loaded, and kept in the user's cache.
"""

import abc
import contextlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import numpy as np
import psutil

from aethernet.cache import (
    cache_folder,
    code_version,
    is_intact,
    make_folder,
    remove_sealed,
    seal,
)
from aethernet.checkpoints.onnx import ExportOptions, export_onnx
from aethernet.checkpoints.onnx_graph import Norm
from aethernet.checkpoints.onnx_limits import check_onnx_limits
from aethernet.devices import told_threads
from aethernet.errors import AetherError
from aethernet.files import check_target, unreadable
from aethernet.runtimes.base import (
    Description,
    InputSizes,
    ModelFile,
    library_failures,
    no_picture_model,
)
from aethernet.runtimes.cores import usable_cores
from aethernet.runtimes.probing import found_sizes
from aethernet.runtimes.values import Values
from aethernet.version import PACKAGE

_log = logging.getLogger(__name__)

KEPT_EXPORTS = 16
"""Exports that stay in the cache, the last used."""

# The code that decides what an export holds; its change makes kept exports invalid.
EXPORTING_CODE = (PACKAGE / "aether_core.py", PACKAGE / "checkpoints")

# A side that the file leaves free, as a size no picture reaches.
_UNBOUNDED = 2**31

T = TypeVar("T")


class OnnxModel(abc.ABC):
    """An ONNX model with one input and one output `(B, C, H, W)`."""

    library: ClassVar[str]
    """The name of the library, for people."""

    def __init__(
        self,
        path: Path,
        shapes: Sequence[Sequence[int | None]],
        dtype: type[np.floating] | type[np.uint8] | None,
        device: str,
        precision: str,
    ) -> None:
        """Check a file that is loaded, and learn its scale by running it once.

        Args:
            path: of the file.
            shapes: of its inputs and outputs, with None for sides that are free.
            dtype: of its input, None where that is none of float32, float16 and uint8.
            device: where it runs.
            precision: in which it computes.

        Raises:
            AetherError: when it is no picture model, or does not enlarge pictures.
        """
        shape = shapes[0] if len(shapes) == 2 else ()
        channels = shape[1] if len(shape) == 4 else None
        if channels is None or dtype is None:
            raise no_picture_model(path, "float32, float16 or uint8")
        self.fixed = tuple(shape)
        height, width = shape[2:]
        self.input_sizes = InputSizes(
            (height or 1, width or 1),
            (height or _UNBOUNDED, width or _UNBOUNDED) if height or width else None,
        )
        self.channels: int = channels
        self.device, self.precision, self.why = device, precision, ""
        self._dtype = dtype
        white = 255.0 if dtype is np.uint8 else 1.0
        self.values = Values(white, white)
        """As `values.Foreign`."""
        self._path = path
        # The output's size tells the scale of any file, whatever program wrote it.
        self._sizes = found_sizes(
            path,
            device,
            lambda height, width: self.size(1, height, width),
            lambda shape, time: self._run(np.zeros(shape, np.float32), time).shape,
        )
        self.scale: int = self._sizes.scale

    @classmethod
    @abc.abstractmethod
    def of_file(cls, path: Path, device: str, precision: str) -> Self:
        """Load an .onnx file."""

    @abc.abstractmethod
    def _execute(self, batch: np.ndarray, seconds: float | None) -> np.ndarray:
        """Run the library, which may raise anything.

        Args:
            batch: `(B, C, H, W)`, of the type that the file takes.
            seconds: after which a library that can be stopped is; None: not at all.

        Raises:
            TooSlowError: when it was stopped.
        """

    def size(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The shape of an input for the file: as given, except for its fixed sides."""
        wanted = (batch, self.channels, height, width)
        sides = [fixed or side for fixed, side in zip(self.fixed, wanted, strict=True)]
        return (sides[0], sides[1], sides[2], sides[3])

    def run(self, batch: np.ndarray) -> np.ndarray:
        names = ("batch", "channels", "height", "width")
        for name, fixed, side in zip(names, self.fixed, batch.shape, strict=True):
            if fixed not in (None, side):
                raise AetherError(
                    f"This ONNX file takes a {name} of {fixed} only, not {side}.",
                    hint="Export it with free sizes.",
                )
        height, width = batch.shape[2:]
        missing = [self._sizes.padded(side) - side for side in (height, width)]
        if any(missing):
            sides = ((0, 0), (0, 0), *((0, side) for side in missing))
            batch = np.pad(batch, sides, mode="reflect")
        output = self.values.made(self._run(self.values.given(batch)))
        wanted = (*batch.shape[:2], *(side * self.scale for side in batch.shape[2:]))
        if output.shape != wanted:
            raise AetherError(
                f"The model makes {output.shape} of {batch.shape}, not {wanted}, so it "
                "is no upscaler.",
                self._path,
            )
        return output[:, :, : height * self.scale, : width * self.scale]

    def _run(self, batch: np.ndarray, seconds: float | None = None) -> np.ndarray:
        if self._dtype is np.uint8:
            batch = np.rint(batch.clip(0, 255))
        with library_failures(self.describe(), batch.shape):
            output = self._execute(batch.astype(self._dtype, copy=False), seconds)
        return np.asarray(output).astype(np.float32, copy=False)

    def describe(self) -> Description:
        return Description(self.library, self.device, self.precision, self.why)


def read_graph(path: Path) -> bytes:
    """The content of an ONNX file, which is checked before a library gets it.

    Raises:
        AetherError: when it cannot be read, or is not within `checkpoints.onnx_limits`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(error, path) from error
    check_onnx_limits(content, path)
    return content


def allowed_threads() -> int:
    """Threads that this process was told to use, or its cores; 0: all of the machine's.

    ONNX Runtime and OpenVINO do not look themselves: each of several workers on one
    machine, and a container with a part of it, would use all of its cores.
    """
    everything = psutil.cpu_count(logical=False) or 1
    threads = min(usable_cores(), told_threads() or everything)
    return threads if threads < everything else 0


def load_exported(
    file: ModelFile,
    precision: str,
    load: Callable[[Path], T],
    norm: Norm = "operator",
) -> T:
    """Load the ONNX export of a checkpoint, which is made and verified the first time.

    Args:
        file: the checkpoint.
        precision: of the export.
        load: loads an .onnx file.
        norm: how LayerNorm is written; each writing is a file of its own.

    Raises:
        AetherError: when the checkpoint cannot be exported, or the export not loaded.
    """
    version = code_version(EXPORTING_CODE)
    name = f"{file.digest[:32]}-{version}-{precision}-{norm}.onnx"
    try:
        folder = cache_folder() / "exports"
        make_folder(folder)
        check_target(folder / name)
    except AetherError as error:
        return _load_unkept(file, name, precision, norm, load, error)
    target = folder / name
    if is_intact(target):
        try:
            loaded = load(target)
        except AetherError as error:
            _log.info("exporting again, the kept export does not load: %s", error)
        else:
            with contextlib.suppress(OSError):  # the file may belong to another user
                target.touch()  # marks it as the last used
            return loaded
    try:
        _export(file, target, precision, norm)
        seal(target)
    except AetherError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        with contextlib.suppress(OSError):
            remove_sealed(target)  # makes room for the next
        return _load_unkept(file, name, precision, norm, load, error)
    _drop_oldest(folder)
    return load(target)


def _load_unkept(
    file: ModelFile,
    name: str,
    precision: str,
    norm: Norm,
    load: Callable[[Path], T],
    reason: AetherError,
) -> T:
    """Load an export from a temporary folder, where the cache cannot be written."""
    _log.info("the export is not kept: %s", reason)
    with tempfile.TemporaryDirectory(prefix="aethernet_") as temporary:
        return load(_export(file, Path(temporary, name), precision, norm))


def _export(file: ModelFile, target: Path, precision: str, norm: Norm) -> Path:
    _log.info("exporting %s to ONNX in %s, once", file.path, precision)
    options = ExportOptions(dynamic=True, precision=precision, norm=norm)
    export_onnx(file.checkpoint, target, options)
    return target


def _drop_oldest(folder: Path) -> None:
    # Hidden names are of files that other processes are writing now.
    files = [f for f in folder.glob("*.onnx") if not f.name.startswith(".")]
    with contextlib.suppress(OSError):  # another process moved or removed one meanwhile
        files.sort(key=lambda file: file.stat().st_mtime)
        for old in files[:-KEPT_EXPORTS]:
            remove_sealed(old)
