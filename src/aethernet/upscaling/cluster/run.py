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
import logging
import os
import pickle
import secrets
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from aethernet.errors import AetherError, import_optional
from aethernet.files import check_source
from aethernet.upscaling.cluster.ray_session import (
    Pool,
    configure,
    ray_session,
    worker_pool,
)
from aethernet.upscaling.cluster.storage import RemoteJob, first_line
from aethernet.upscaling.cluster.worker import Answer, ModelWords, Worker
from aethernet.upscaling.files import Options
from aethernet.upscaling.folders import Job, Outcome

_log = logging.getLogger(__name__)

# One is read while another is in the network and a third is written.
_FILES_AT_ONCE = 3

# Jobs are handed out in so many parts at most; making them takes seconds.
_MOST_BLOCKS = 1024

_DIED = (
    "The worker that had it died; a picture that is too large for the memory does that."
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
        with ray_session(address) as ray:
            pool = worker_pool(ray.nodes(), model.device)
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
    pool: Pool,
    jobs: Mapping[int, Job | RemoteJob],
    worker: Mapping[str, Any],
    again: bool,
) -> Iterator[Answer]:
    """Hand out the jobs once; there is no answer for those whose worker died."""
    data = import_optional("ray.data", "cluster")
    items = [{"job": pickle.dumps(item)} for item in jobs.items()]
    blocks = min(len(items), _MOST_BLOCKS)
    configure(data, pool.workers)
    at_once = 1 if again else _FILES_AT_ONCE
    with warnings.catch_warnings():
        # `max_task_retries` may be given so until Ray 2.64, which the extra excludes.
        warnings.simplefilter("ignore", DeprecationWarning)
        rows = data.from_items(items, override_num_blocks=blocks).map(
            Worker,
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
        raise AetherError(f"The cluster failed: {first_line(error)}") from error


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
