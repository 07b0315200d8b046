"""Folders too large for one machine: the pictures' jobs on a Ray cluster.

Ray Data hands out the jobs and keeps a pool of workers, one for each GPU or for a few
processors, each with the model loaded once. What a worker does for a picture is what
`aethernet upscale` does: the same `upscale_file`, and a target that exists is finished.

Only the driver, who reads the outcomes, decides what is tried again: jobs go out in
rounds, and the next round has those without an outcome, whose worker died, and those
whose failure may pass. In later rounds a worker has one job at a time, so that nobody
else's picture is lost with it.
"""

import contextlib
import errno
import logging
import os
import pickle
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlsplit

import numpy as np
import torch

import aethernet
from aethernet.cache import cache_folder, make_folder
from aethernet.errors import AetherError, OutOfMemoryError, import_optional
from aethernet.files import check_source, check_target
from aethernet.folders import Job, Outcome, Source, name_targets, natural_order
from aethernet.images import READABLE, SUFFIXES
from aethernet.runtimes import Model, device_kind, open_model
from aethernet.tiling import DEFAULT_CONTEXT, Tiled
from aethernet.upscale import Options, Upscaled, upscale_file

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_log = logging.getLogger(__name__)

# What a worker without a GPU takes, or less where no machine has so much: more threads
# help a network little, and a tile is sized for a share of the memory that is free.
_CPUS, _MEMORY = 4, 8 * 2**30
# One is read while another is in the network and a third is written.
_FILES_AT_ONCE = 3
# Jobs are handed out in so many parts at most; making them takes seconds.
_MOST_BLOCKS = 1024
# Nothing but names and outcomes goes through the object store.
_OBJECT_STORE = 256 * 2**20
_SECONDS_TO_CONNECT = 10
# File systems whose files appear whole when they are closed, and that have no folders.
_OBJECT_STORES = ("s3", "gcs", "abfs")
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DIED = (
    "The worker that had it died; a picture that is too large for the memory does that."
)
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


@dataclass(frozen=True)
class Location:
    """A file below a folder that pyarrow knows: a URI, or an absolute local path."""

    root: str
    path: str
    """Below the root, "/" between folders."""

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    def __str__(self) -> str:
        return f"{without_keys(self.root).rstrip('/')}/{self.path}"


@dataclass(frozen=True)
class RemoteJob:
    """A `Job` whose files may lie in another kind of storage."""

    source: Location
    target: Location


@dataclass(frozen=True)
class RemotePlan:
    """What to do, and what was finished before; as `folders.Plan`."""

    jobs: tuple[RemoteJob, ...]
    done: tuple[RemoteJob, ...] = ()


class _Answer(NamedTuple):
    """What a worker says of a job."""

    number: int
    outcome: Outcome
    may_pass: bool
    """Whether trying again can help."""


class _Pool(NamedTuple):
    """How many workers there are, and what each of them takes."""

    workers: int
    cpus: float
    gpus: float
    memory: float


def is_remote(name: str) -> bool:
    """Whether a word on the command line is a URI, such as s3://bucket/folder."""
    return _REMOTE.match(name) is not None


def remote_plan(
    source: str,
    output: str,
    *,
    suffix: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
) -> RemotePlan:
    """Find the pictures below a folder, and name what is to be made of them.

    Names are those that `folders.plan` gives; nothing is read but lists of names.

    Args:
        source, output: folders, each a URI or a local path.
        suffix: goes between a name and its format.
        format: of the outputs, e.g. ".png"; None for that of each source.
        overwrite: make those again whose target exists.

    Raises:
        AetherError: when there is no such folder or no picture in it, it cannot be
            listed, or the outputs would go where the sources are.
    """
    if format is not None and format.lower() not in SUFFIXES:
        raise AetherError(
            f"Cannot write {format} files; the formats are {', '.join(SUFFIXES)}."
        )
    roots = [n if is_remote(n) else os.path.abspath(n) for n in (source, output)]
    inside = _below(*roots)
    if inside == "":
        raise AetherError(
            f"{without_keys(output)} is the folder of the pictures: name another one "
            "for the outputs."
        )
    found = [
        Path(name)
        for name in _names(roots[0], must_exist=True)
        if PurePosixPath(name).suffix.lower() in READABLE
        and not any(part.startswith(".") for part in name.split("/"))
        and not (inside and name.startswith(f"{inside}/"))
    ]
    if not found:
        raise AetherError(
            f"There is no picture in {without_keys(source)}; looked for names that end "
            f"in {', '.join(READABLE)}."
        )
    found.sort(key=natural_order)
    sources = [Source(path, path) for path in found]
    targets = name_targets(sources, Path(), suffix or "", format, os.fspath)
    finished = set() if overwrite else _names(roots[1], must_exist=False)
    jobs = [
        RemoteJob(
            Location(roots[0], name.as_posix()), Location(roots[1], target.as_posix())
        )
        for name, target in zip(found, targets, strict=True)
    ]
    return RemotePlan(
        tuple(job for job in jobs if job.target.path not in finished),
        tuple(job for job in jobs if job.target.path in finished),
    )


def upscale_on_cluster(
    jobs: Sequence[Job | RemoteJob],
    model: ModelWords,
    options: Options,
    address: str | None,
    retries: int = 2,
    *,
    overwrite: bool = False,
) -> Generator[Outcome, None, None]:
    """Upscale pictures on the machines of a cluster; outcomes in the order they come.

    A picture that fails does not stop the rest. Closing the iterator ends the workers,
    and removes what they had begun.

    Args:
        jobs: of `folders.plan`, for folders that every machine has under the same
            path, or of `remote_plan`.
        model: opened once by every worker.
        address: of a running cluster, as `ray.init` takes it ("host:6379", "auto");
            None for a Ray of this machine alone, which ends with the run.
        retries: how often more a job is tried whose worker died, or whose failure may
            pass, such as an I/O error.
        overwrite: make again what exists. Else a target that appeared in the meantime
            is skipped.

    Raises:
        AetherError: when Ray is not installed, the cluster cannot be reached or fails,
            or a worker cannot open the model.
    """
    files = _model_files(model.path)
    run = secrets.token_hex(4)
    pending = {number: _absolute(job) for number, job in enumerate(jobs)}
    if not pending:
        return
    lost: set[Path] = set()
    try:
        with _ray(address) as ray:
            pool = _pool(ray.nodes(), model.device)
            _log.info("%d workers on the cluster", pool.workers)
            reasons: dict[int, str] = {}
            for attempt in range(retries + 1):
                worker = {
                    "files": files,
                    "words": model,
                    "options": options,
                    "run": run,
                    "threads": max(int(pool.cpus), 1),
                    "overwrite": overwrite,
                }
                for number, outcome, may_pass in _round(
                    ray, pool, pending, worker, attempt > 0
                ):
                    reasons[number] = outcome.reason
                    if number in pending and not (may_pass and attempt < retries):
                        del pending[number]
                        yield outcome
                if not pending:
                    break
                lost |= _local_folders(pending.values())
                if attempt < retries:
                    _log.warning("trying %d pictures again", len(pending))
            for number, job in pending.items():
                reason = f"{reasons.get(number, _DIED)} Tried {retries + 1} times."
                yield Outcome(cast("Job", job), "failed", reason)
            pending = {}
    finally:
        _remove_begun(lost | _local_folders(pending.values()), run)


def _round(
    ray: ModuleType,
    pool: _Pool,
    jobs: Mapping[int, Job | RemoteJob],
    worker: Mapping[str, Any],
    again: bool,
) -> Iterator[_Answer]:
    """Hand out the jobs once; there is no answer for those whose worker died."""
    data = import_optional("ray.data", "cluster")
    items = [{"job": pickle.dumps(item)} for item in jobs.items()]
    blocks = min(len(items), _MOST_BLOCKS)
    _configure(data, pool.workers)
    at_once = 1 if again else _FILES_AT_ONCE
    with warnings.catch_warnings():
        # `max_task_retries` may be given so until Ray 2.64, which the extra excludes.
        warnings.simplefilter("ignore", DeprecationWarning)
        rows = data.from_items(items, override_num_blocks=blocks).map(
            _Worker,
            fn_constructor_kwargs=worker,
            compute=data.ActorPoolStrategy(
                size=min(pool.workers, blocks),
                max_tasks_in_flight_per_actor=at_once,
                max_concurrent_calls_per_actor=at_once,
                enable_true_multi_threading=True,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            memory=pool.memory,
            max_task_retries=0,  # Ray would do it for ever
        )
    try:
        for batch in rows.iter_batches(
            batch_size=None, prefetch_batches=0, batch_format="pyarrow"
        ):
            for answer in batch["answer"].to_pylist():
                found = pickle.loads(answer)  # of our own workers
                if isinstance(found, str):
                    raise AetherError(f"A worker cannot open the model: {found}")
                yield found
    except ray.exceptions.RayError as error:
        raise AetherError(f"The cluster failed: {_first_line(error)}") from error


def _configure(data: ModuleType, workers: int) -> None:
    """What Ray Data should do otherwise than it does of itself."""
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a dead worker's jobs are for the next round
    context.max_consecutive_actor_init_deaths = 2 * workers
    context.execution_no_progress_timeout_s = -1  # a picture may take hours
    context.target_max_block_size = 1  # each outcome comes when it is there
    logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)


def _pool(nodes: Sequence[Mapping[str, Any]], device: str) -> _Pool:
    """As many workers as the cluster has GPUs, or fours of processors.

    Args:
        nodes: as `ray.nodes` describes them.
        device: as for `open_model`.

    Raises:
        AetherError: when no machine has a processor to give.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    machines = [machine for machine in machines if machine.get("CPU", 0) >= 1]
    if not machines:
        raise AetherError("The cluster has no machine with a processor to give.")
    with_gpus = [machine for machine in machines if machine.get("GPU", 0) >= 1]
    if with_gpus and device_kind(device) in ("auto", "cuda", "tensorrt", "xpu"):
        share = min(machine["CPU"] // machine["GPU"] for machine in with_gpus)
        count = sum(int(machine["GPU"]) for machine in with_gpus)
        return _Pool(count, max(int(share), 1), 1, 0)
    cpus = min(_CPUS, *(int(machine["CPU"]) for machine in machines))
    memory = min(_MEMORY, *(int(machine.get("memory", 0)) for machine in machines))
    count = sum(
        int(min(machine["CPU"] // cpus, machine["memory"] // memory if memory else 1e9))
        for machine in machines
    )
    return _Pool(count, cpus, 0, memory)


@contextlib.contextmanager
def _ray(address: str | None) -> Iterator[ModuleType]:
    """Ray, connected to that cluster or to one of this machine that ends with us."""
    ray = import_optional("ray", "cluster")
    import_optional("ray.data", "cluster")
    if ray.is_initialized():  # by whoever calls us
        yield ray
        return
    if address:
        _check_reachable(address)
    package = Path(aethernet.__file__).parent
    settings: dict[str, Any] = {"address": address or "local"}
    if address:
        # So that every machine runs the same code; what it needs has to be there.
        settings["runtime_env"] = {
            "py_modules": [str(package)],
            "excludes": ["__pycache__"],
        }
    # Names of sockets, which are in that folder, may have 107 characters.
    folder = tempfile.mkdtemp(
        prefix="aethernet_", dir="/tmp" if os.name == "posix" else None
    )
    if not address:
        settings |= {
            "_temp_dir": folder,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE,
        }
    with _environment(package.parent):
        try:
            _start(ray, settings, folder)
            yield ray
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _start(ray: ModuleType, settings: Mapping[str, Any], folder: str) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        # Workers import from the folder in which Ray was started: not from one with
        # pictures of anybody.
        with _silent(), contextlib.chdir(folder):
            ray.init(**settings, logging_level=logging.CRITICAL, log_to_driver=False)
    except Exception as error:
        raise AetherError(
            f"Cannot reach Ray at {settings['address']}: {_first_line(error)}"
        ) from error
    finally:
        # Ray has put its own there, with another exit code.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _environment(code: Path) -> Iterator[None]:
    """What Ray and its processes are told: where our code is, to be quiet."""
    path = os.environ.get("PYTHONPATH")
    words = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(code), path))),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    before = {name: os.environ.get(name) for name in words}
    os.environ.update(words)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep from the terminal what Ray's C++ says of how much it will say."""
    with open(os.devnull, "wb") as nothing:
        stderr = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _check_reachable(address: str) -> None:
    """Say so when nothing listens at host:port, for which Ray waits a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        where = (host.strip("[]"), int(port))
        socket.create_connection(where, _SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise AetherError(
            f"Cannot reach the cluster at {address}: {_first_line(error)}"
        ) from error


class _Worker:
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

    def _answer(self, number: int, job: Job | RemoteJob) -> _Answer:
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
            return _Answer(number, failed, _may_pass(error))
        if done is None:
            skipped = Outcome(told, "skipped", "it was finished meanwhile")
            return _Answer(number, skipped, False)
        sizes = (done.size_before, done.size_after)
        seconds = time.perf_counter() - start
        return _Answer(number, Outcome(told, "done", "", *sizes, seconds), False)


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
    files, path = _reached(job.target)
    if not overwrite and files.get_file_info(path).is_file:
        return None
    with tempfile.TemporaryDirectory(prefix="aethernet_") as folder:
        source = Path(folder, f"source{job.source.suffix}")
        target = Path(folder, f"target{job.target.suffix}")
        theirs, its_path = _reached(job.source)
        with theirs.open_input_stream(its_path) as stream, source.open("wb") as file:
            shutil.copyfileobj(stream, file, 2**20)
        try:
            done = upscale_file(source, target, model, options)
        except AetherError as error:
            said = str(error).replace(str(source), str(job.source))
            raise AetherError(said.replace(str(target), str(job.target))) from error
        _upload(target, files, path, name)
    return done


def _upload(local: Path, files: "FileSystem", path: str, name: str) -> None:
    """Send a file under a name of its own, and move it into place once it is whole."""
    parent = path.rpartition("/")[0]
    begun = f"{parent}/{name}"
    if files.type_name not in _OBJECT_STORES:
        files.create_dir(parent, recursive=True)
    try:
        with local.open("rb") as file, files.open_output_stream(begun) as stream:
            shutil.copyfileobj(file, stream, 2**20)
        # When writing fails, closing may make a whole file of what was sent.
        if files.get_file_info(begun).size != local.stat().st_size:
            raise OSError(errno.EIO, "what arrived is not what was sent")
        files.move(begun, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.delete_file(begun)
        raise


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


def _model_files(path: Path) -> dict[str, bytes]:
    """A model and what belongs to it: an engine's header, weights beside an .onnx."""
    check_source(path, "a model file")
    beside = (path.with_name(path.name + end) for end in (".json", ".data"))
    files = [path, *(file for file in beside if file.is_file())]
    try:
        return {file.name: file.read_bytes() for file in files}
    except OSError as error:
        raise AetherError(f"Cannot read {path}: {error.strerror}.") from error


def _absolute(job: Job | RemoteJob) -> Job | RemoteJob:
    """Workers do not run in this folder."""
    if isinstance(job, RemoteJob):
        return job
    return Job(Path(os.path.abspath(job.source)), Path(os.path.abspath(job.target)))


def _local_folders(jobs: Iterable[Job | RemoteJob]) -> set[Path]:
    return {job.target.parent for job in jobs if isinstance(job, Job)}


def _remove_begun(folders: set[Path], run: str) -> None:
    """Remove what workers of this run left that were killed."""
    for folder in folders:
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if f".{run}.part" in name:
                    (folder / name).unlink(missing_ok=True)


@lru_cache(maxsize=16)
def _file_system(root: str) -> tuple["FileSystem", str]:
    """Who has that folder, and what it calls it.

    Raises:
        AetherError: when pyarrow has nothing for such URIs.
    """
    fs = import_optional("pyarrow.fs", "cluster")
    try:
        if is_remote(root):
            return fs.FileSystem.from_uri(root)
        return fs.LocalFileSystem(), Path(root).as_posix()
    except (OSError, ValueError) as error:
        raise AetherError(
            f"Cannot reach {without_keys(root)}: {_first_line(error)}"
        ) from error


def _reached(location: Location) -> tuple["FileSystem", str]:
    files, base = _file_system(location.root)
    return files, f"{base.rstrip('/')}/{location.path}"


def _names(root: str, *, must_exist: bool) -> set[str]:
    """Paths of all files below a folder."""
    files, base = _file_system(root)
    base = base.rstrip("/")
    fs = import_optional("pyarrow.fs", "cluster")
    selector = fs.FileSelector(base, recursive=True, allow_not_found=not must_exist)
    try:
        found = files.get_file_info(selector)
    except FileNotFoundError as error:
        raise AetherError(f"There is no folder {without_keys(root)}.") from error
    except OSError as error:
        raise AetherError(
            f"Cannot list {without_keys(root)}: {_first_line(error)}"
        ) from error
    return {info.path[len(base) + 1 :] for info in found if info.is_file}


def _below(source: str, output: str) -> str | None:
    """Where the output folder is in that of the sources: "" is itself, None nowhere."""
    (theirs, base), (ours, inner) = _file_system(source), _file_system(output)
    base, inner = base.rstrip("/"), inner.rstrip("/")
    if theirs.type_name != ours.type_name:
        return None
    if inner == base:
        return ""
    return inner[len(base) + 1 :] if inner.startswith(f"{base}/") else None


def without_keys(root: str) -> str:
    """A URI without the words of access that it may hold."""
    if not is_remote(root):
        return root
    parts = urlsplit(root)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: BaseException) -> str:
    if isinstance(error, AetherError):
        return str(error)
    if isinstance(error, MemoryError):
        return "Out of memory."
    if isinstance(error, OSError):
        return f"Cannot read or write: {_first_line(error)}"
    return f"{type(error).__name__}: {_first_line(error)}"


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


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"//[^/@]*@", "//", text)  # words of access in a URI
    return text if text.endswith((".", "!")) else f"{text}."
