"""What one worker process of the cluster does with one file."""

import contextlib
import errno
import logging
import os
import pickle
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from aethernet.cache import cache_folder, make_folder
from aethernet.errors import AetherError, OutOfMemoryError
from aethernet.files import check_target
from aethernet.runtimes.base import Model
from aethernet.runtimes.registry import open_model
from aethernet.runtimes.tiling import DEFAULT_CONTEXT, Tiled
from aethernet.upscaling.cluster.storage import (
    RemoteJob,
    first_line,
    reached,
    upload,
)
from aethernet.upscaling.files import Options, Upscaled, upscale_file
from aethernet.upscaling.folders import Job, Outcome

# What is as wrong the next time.
_LASTING_ERRORS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

_LASTING_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class ModelWords:
    """What `open_model` and `Tiled` are told, on every machine alike."""

    path: Path
    """Read here and sent to the workers."""
    runtime: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    tile: int | None = None
    context: int = DEFAULT_CONTEXT


class Answer(NamedTuple):
    """What a worker says of a job."""

    number: int
    outcome: Outcome
    may_pass: bool
    """Whether trying again can help."""


class Worker:
    """What Ray makes one of for each GPU or share of processors, in its own process."""

    def __init__(
        self,
        files: Mapping[str, bytes],
        words: ModelWords,
        options: Options,
        run: str,
        threads: int,
        overwrite: bool,
    ) -> None:
        """Open the model; where that fails, each job is answered with the reason."""
        self.options, self.run, self.overwrite = options, run, overwrite
        self.broken = ""
        logging.getLogger("pyvips").setLevel(logging.ERROR)
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory(prefix="aethernet_") as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            try:
                with _one_at_a_time():
                    path = Path(folder, words.path.name)
                    model = open_model(
                        path, words.runtime, words.device, words.precision
                    )
                    self.model = _Shared(model, words.tile, words.context)
            except Exception as error:
                self.broken = _reason(error).replace(f"{folder}{os.sep}", "")

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        if self.broken:
            return {"answer": pickle.dumps(self.broken)}
        number, job = pickle.loads(row["job"])  # of our own driver
        return {"answer": pickle.dumps(self._answer(number, job))}

    def _answer(self, number: int, job: Job | RemoteJob) -> Answer:
        told = cast("Job", job)
        start = time.perf_counter()
        name = f".{number}.{self.run}.part{job.target.suffix}"
        try:
            how = (name, self.model, self.options, self.overwrite)
            if isinstance(job, RemoteJob):
                done = _upscale_remote(job, *how)
            else:
                done = _upscale_local(job, *how)
        except Exception as error:  # of whatever library: the rest goes on
            failed = Outcome(told, "failed", _reason(error))
            return Answer(number, failed, _may_pass(error))
        if done is None:
            skipped = Outcome(told, "skipped", "it was finished meanwhile")
            return Answer(number, skipped, False)
        sizes = (done.size_before, done.size_after)
        seconds = time.perf_counter() - start
        return Answer(number, Outcome(told, "done", "", *sizes, seconds), False)


class _Shared(Tiled):
    """A model that several threads use in turns."""

    def __init__(self, model: Model, tile: int | None, context: int) -> None:
        super().__init__(model, tile, context)
        self._turn = threading.RLock()

    def run(self, batch: np.ndarray) -> np.ndarray:
        with self._turn:
            return super().run(batch)


def _upscale_local(
    job: Job, name: str, model: Tiled, options: Options, overwrite: bool
) -> Upscaled | None:
    """None where it is finished already. `name` is for what is not whole yet."""
    if not overwrite and job.target.is_file():
        return None
    check_target(job.target, job.source)
    begun = job.target.with_name(name)
    try:
        done = upscale_file(job.source, begun, model, options)
        os.replace(begun, job.target)
    except AetherError as error:
        said = str(error).replace(str(begun), str(job.target))
        raise AetherError(said) from error
    finally:
        begun.unlink(missing_ok=True)
    return replace(done, target=job.target)


def _upscale_remote(
    job: RemoteJob, name: str, model: Tiled, options: Options, overwrite: bool
) -> Upscaled | None:
    """As `_upscale_local`, by way of a folder of this machine."""
    files, path = reached(job.target)
    if not overwrite and files.get_file_info(path).is_file:
        return None
    with tempfile.TemporaryDirectory(prefix="aethernet_") as folder:
        source = Path(folder, f"source{job.source.suffix}")
        target = Path(folder, f"target{job.target.suffix}")
        theirs, its_path = reached(job.source)
        with theirs.open_input_stream(its_path) as stream, source.open("wb") as file:
            shutil.copyfileobj(stream, file, 2**20)
        try:
            done = upscale_file(source, target, model, options)
        except AetherError as error:
            said = str(error).replace(str(source), str(job.source))
            raise AetherError(said.replace(str(target), str(job.target))) from error
        upload(target, files, path, name)
    return done


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """One worker of a machine tries runtimes; the others find out what it found."""
    from filelock import FileLock  # Ray needs it too

    try:
        folder = cache_folder()
        make_folder(folder)
        lock: contextlib.AbstractContextManager[Any] = FileLock(folder / "cluster.lock")
    except AetherError:  # nothing is kept, so each has to find out
        lock = contextlib.nullcontext()
    with lock:
        yield


def _reason(error: BaseException) -> str:
    if isinstance(error, AetherError):
        return str(error)
    if isinstance(error, MemoryError):
        return "Out of memory."
    if isinstance(error, OSError):
        return f"Cannot read or write: {first_line(error)}"
    return f"{type(error).__name__}: {first_line(error)}"


def _may_pass(error: BaseException | None) -> bool:
    """Whether trying again can help: I/O errors, and memory that others had."""
    while error is not None:
        if isinstance(error, MemoryError | OutOfMemoryError):
            return True
        if isinstance(error, OSError):
            lasting = error.errno in _LASTING_CODES
            return not (lasting or isinstance(error, _LASTING_ERRORS))
        error = error.__cause__
    return False
