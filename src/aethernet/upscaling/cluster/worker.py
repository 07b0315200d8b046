"""A worker process of the cluster: it opens the model once and upscales pictures."""

import contextlib
import errno
import logging
import os
import pickle
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from aethernet.cache import cache_folder, make_folder
from aethernet.devices import limit_threads
from aethernet.errors import AetherError, OutOfMemoryError
from aethernet.files import check_target
from aethernet.runtimes.base import Model
from aethernet.runtimes.request import ModelRequest
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling.cluster.storage import (
    RemoteJob,
    file_system,
    reason_without_keys,
    temporary_name,
    upload,
)
from aethernet.upscaling.files import Options, Upscaled, upscale_file
from aethernet.upscaling.folders import Job, Outcome

# Errors that come again when the job is tried again.
_LASTING_ERRORS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_LASTING_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class WorkerSetup:
    """All that a worker needs to know beside its jobs."""

    model: ModelRequest
    """Its path is on the machine that starts the run, which sends the file."""
    files: Mapping[str, bytes]
    """Name -> content of the model's file and of those that belong to it."""
    options: Options
    run: str
    """Marks the temporary files of this run."""
    threads: int
    """For computing on processors."""
    overwrite: bool
    """Upscale a picture also when its target exists."""


class Answer(NamedTuple):
    """The outcome of a job, as a worker sends it."""

    number: int
    """Of the job."""
    outcome: Outcome
    worth_retrying: bool
    notes: tuple[str, ...] = ()
    """Warnings that the worker logged since its last answer."""


class _Notes(logging.Handler):
    """Keeps the warnings of a worker, which has no terminal, for its next answer."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.names: dict[str, str] = {}
        """Temporary paths that jobs work with now, and what they stand for."""
        self._kept: queue.SimpleQueue[str] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for temporary, name in [*self.names.items()]:
            text = text.replace(temporary, name)
        self._kept.put(text)

    def taken(self) -> tuple[str, ...]:
        return tuple(self._kept.get() for _ in range(self._kept.qsize()))

    @contextlib.contextmanager
    def named(self, names: Mapping[str, str]) -> Iterator[None]:
        """Let warnings in this block name these paths by what they stand for."""
        self.names |= names
        try:
            yield
        finally:
            for temporary in names:
                del self.names[temporary]


class Worker:
    """Upscales pictures; Ray makes one in a process of its own for each `Pool` share.

    It takes and returns rows of Ray Data: a job comes as pickled `(number, job)` under
    "job", and goes as a pickled `Answer` under "answer". A worker that could not open
    the model answers every job with the pickled `AetherError`.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        """Open the model."""
        self._setup = setup
        logging.getLogger("pyvips").setLevel(logging.ERROR)
        limit_threads(setup.threads)
        self._notes = _Notes()
        logging.getLogger("aethernet").addHandler(self._notes)
        self._model: Tiled | None = None
        self._error: AetherError | None = None
        try:
            self._model = _opened(setup.model, setup.files)
        except AetherError as error:
            self._error = error
        except Exception as error:  # of any library: the driver reports it
            self._error = AetherError(_reason(error), setup.model.path)

    def __call__(self, row: Mapping[str, bytes]) -> dict[str, bytes]:
        """Do the job in a row."""
        if self._error:
            return {"answer": pickle.dumps(self._error)}
        number, job = pickle.loads(row["job"])  # from our own driver
        answer = self.answer(number, job)._replace(notes=self._notes.taken())
        return {"answer": pickle.dumps(answer)}

    def answer(self, number: int, job: Job | RemoteJob) -> Answer:
        """Do a job and return its outcome; a failure is an outcome, not an error."""
        start = time.perf_counter()
        shown = cast("Job", job)  # of a `RemoteJob` only the names are shown
        try:
            done = self._upscale(number, job)
        except Exception as error:  # of any library: the other jobs go on
            failed = Outcome(shown, "failed", _reason(error))
            return Answer(number, failed, worth_retrying(error))
        if done is None:
            skipped = Outcome(shown, "skipped", "another run finished it meanwhile")
            return Answer(number, skipped, False)
        sizes = (done.size_before, done.size_after)
        seconds = time.perf_counter() - start
        return Answer(number, Outcome(shown, "done", "", *sizes, seconds), False)

    def _upscale(self, number: int, job: Job | RemoteJob) -> Upscaled | None:
        """Do a job; None where its target exists already."""
        name = temporary_name(number, self._setup.run, job.target.suffix)
        if isinstance(job, RemoteJob):
            return self._upscale_remote(job, name)
        if not self._setup.overwrite and job.target.is_file():
            return None
        check_target(job.target, job.source)
        temporary = job.target.with_name(name)
        try:
            with self._notes.named({str(temporary): str(job.target)}):
                done = self._upscale_file(job.source, temporary)
            os.replace(temporary, job.target)
        except AetherError as error:
            if error.path != temporary:
                raise
            raise error.about(job.target) from error
        finally:
            temporary.unlink(missing_ok=True)
        return replace(done, target=job.target)

    def _upscale_remote(self, job: RemoteJob, name: str) -> Upscaled | None:
        """Do a job by way of a folder of this machine."""
        target_files, target_path = file_system(job.target)
        if (
            not self._setup.overwrite
            and target_files.get_file_info(target_path).is_file
        ):
            return None
        with tempfile.TemporaryDirectory(prefix="aethernet_") as folder:
            source = Path(folder, f"source{job.source.suffix}")
            target = Path(folder, f"target{job.target.suffix}")
            files, path = file_system(job.source)
            with files.open_input_stream(path) as stream, source.open("wb") as file:
                shutil.copyfileobj(stream, file, 2**20)
            names = {str(source): str(job.source), str(target): str(job.target)}
            try:
                with self._notes.named(names):
                    done = self._upscale_file(source, target)
            except AetherError as error:
                locations = {source: job.source, target: job.target}
                location = error.path and locations.get(error.path)
                if not location:
                    raise
                raise error.about(str(location)) from error
            upload(target, target_files, target_path, name)
        return done

    def _upscale_file(self, source: Path, target: Path) -> Upscaled:
        assert self._model
        return upscale_file(source, target, self._model, self._setup.options)


def _opened(model: ModelRequest, files: Mapping[str, bytes]) -> Tiled:
    """Open the model from a copy of its files. Errors name the file that was sent."""
    with tempfile.TemporaryDirectory(prefix="aethernet_") as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        copy = replace(model, path=Path(folder, model.path.name))
        try:
            with _one_at_a_time():
                return copy.open(kind=_SharedModel)
        except AetherError as error:
            if error.path is None or error.path.parent != Path(folder):
                raise
            raise error.about(model.path.with_name(error.path.name)) from error


class _SharedModel(Tiled):
    """A model that several threads use in turn."""

    def __init__(self, model: Model, tile: int | None, context: int) -> None:
        super().__init__(model, tile, context)
        self._turn = threading.RLock()

    def run(self, batch: np.ndarray) -> np.ndarray:
        with self._turn:
            return super().run(batch)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let one worker of a machine try the runtimes; the others use its result."""
    from filelock import FileLock

    try:
        folder = cache_folder()
        make_folder(folder)
        lock: contextlib.AbstractContextManager[Any] = FileLock(folder / "cluster.lock")
    except AetherError:  # without a cache every worker has to try
        lock = contextlib.nullcontext()
    with lock:
        yield


def _reason(error: BaseException) -> str:
    if isinstance(error, AetherError):
        return str(error)
    if isinstance(error, MemoryError):
        return "Out of memory."
    if isinstance(error, OSError):
        return f"Cannot read or write: {reason_without_keys(error)}"
    return f"{type(error).__name__}: {reason_without_keys(error)}"


def worth_retrying(error: BaseException | None) -> bool:
    """Whether trying again can help: after I/O errors, or when memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError | OutOfMemoryError):
            return True
        if isinstance(error, OSError):
            lasting = error.errno in _LASTING_CODES
            return not (lasting or isinstance(error, _LASTING_ERRORS))
        error = error.__cause__
    return False
