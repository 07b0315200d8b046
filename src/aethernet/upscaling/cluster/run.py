"""Upscale folders that are too large for one machine, on a Ray cluster.

Ray Data hands out the jobs and keeps a pool of workers, one for each GPU or for a few
processors, each with the model loaded once. For a picture a worker does what `aethernet
upscale` does: it calls the same `upscale_file`, and a target that exists is finished.

Only the driver, which reads the outcomes, decides what is tried again. Jobs go out in
rounds. The next round has the jobs without an outcome, whose worker died, and those
whose failure may not come again. In later rounds a worker has one job at a time, so
that a picture that kills it takes no other with it.
"""

import logging
import os
import pickle
import secrets
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import cast

from aethernet.errors import AetherError, import_optional
from aethernet.files import check_source, unreadable
from aethernet.runtimes.choice import warn_once
from aethernet.runtimes.request import ModelRequest
from aethernet.upscaling.cluster.ray_session import (
    Pool,
    configure,
    ray_session,
    worker_pool,
)
from aethernet.upscaling.cluster.storage import (
    RemoteJob,
    reason_without_keys,
    remove_unfinished,
)
from aethernet.upscaling.cluster.worker import Answer, Worker, WorkerSetup
from aethernet.upscaling.files import Options
from aethernet.upscaling.folders import Job, Outcome

_log = logging.getLogger(__name__)

# Jobs of a worker in the first round: one is read while another is in the network and a
# third is written.
_JOBS_AT_ONCE = 3

# Jobs are handed out in at most so many blocks; making more takes seconds.
_MOST_BLOCKS = 1024

_DIED = "The worker that had it died, as it does of a picture too large for its memory."


def upscale_on_cluster(
    jobs: Sequence[Job | RemoteJob],
    model: ModelRequest,
    options: Options,
    address: str | None,
    retries: int = 2,
    *,
    overwrite: bool = False,
) -> Generator[Outcome, None, None]:
    """Upscale pictures on the machines of a cluster; yield outcomes as they come.

    A picture that fails does not stop the others. Closing the generator ends the
    workers and removes the files they had begun.

    Args:
        jobs: those of `folders.plan`, for folders that every machine has under the same
            path, or those of `remote_plan`.
        model: opened once by every worker.
        options: how pictures are upscaled.
        address: of a running cluster, as `ray.init` takes it ("host:6379", "auto");
            None to start Ray on this machine, for this run.
        retries: how often to try a job again whose worker died, or whose failure may
            not come again, such as an I/O error.
        overwrite: upscale a picture also when its target exists. Else a target that
            appeared in the meantime is skipped.

    Raises:
        AetherError: when the cluster cannot be reached or fails, or a worker cannot
            open the model.
        MissingExtraError: when Ray is not installed.
    """
    files = _model_files(model.path)
    run = secrets.token_hex(4)
    pending = _Pending(jobs)
    if not pending.jobs:
        return
    try:
        with ray_session(address) as ray:
            pool = worker_pool(ray.nodes(), model.device)
            _log.info("%d workers on the cluster", pool.workers)
            threads = max(int(pool.cpus), 1)
            setup = WorkerSetup(model, files, options, run, threads, overwrite)
            for attempt in range(retries + 1):
                is_last = attempt == retries
                at_once = 1 if attempt else _JOBS_AT_ONCE
                for answer in _round(ray, pool, pending.jobs, setup, at_once):
                    if pending.settles(answer, is_last):
                        yield answer.outcome
                if not pending.jobs:
                    return
                pending.note_folders()
                if not is_last:
                    _log.warning("trying %d pictures again", len(pending.jobs))
            yield from pending.given_up(retries + 1)
    finally:
        pending.note_folders()
        remove_unfinished(pending.folders, run)


class _Pending:
    """The jobs without a final outcome."""

    def __init__(self, jobs: Sequence[Job | RemoteJob]) -> None:
        self.jobs = {number: _absolute(job) for number, job in enumerate(jobs)}
        self.folders: set[Path] = set()
        """Local folders where a worker may have left an unfinished file."""
        self._reasons: dict[int, str] = {}

    def settles(self, answer: Answer, is_last: bool) -> bool:
        """Take an answer; whether its outcome is the final one of its job."""
        self._reasons[answer.number] = answer.outcome.reason
        if answer.number not in self.jobs or (answer.worth_retrying and not is_last):
            return False
        del self.jobs[answer.number]
        return True

    def note_folders(self) -> None:
        self.folders |= {
            job.target.parent for job in self.jobs.values() if isinstance(job, Job)
        }

    def given_up(self, tries: int) -> Iterator[Outcome]:
        """Failures of the jobs that are left."""
        for number, job in self.jobs.items():
            reason = f"{self._reasons.get(number, _DIED)} Tried {tries} times."
            yield Outcome(cast("Job", job), "failed", reason)
        self.jobs.clear()


def _round(
    ray: ModuleType,
    pool: Pool,
    jobs: Mapping[int, Job | RemoteJob],
    setup: WorkerSetup,
    at_once: int,
) -> Iterator[Answer]:
    """Hand out every job once; there is no answer for a job whose worker died.

    Args:
        at_once: jobs that a worker has at the same time.
    """
    data = import_optional("ray.data", "cluster")
    items = [{"job": pickle.dumps(item)} for item in jobs.items()]
    blocks = min(len(items), _MOST_BLOCKS)
    configure(data, pool.workers)
    with warnings.catch_warnings():
        # Ray warns about `max_task_retries` here. Ray 2.64 no longer takes it, and the
        # extra excludes that version.
        warnings.simplefilter("ignore", DeprecationWarning)
        rows = data.from_items(items, override_num_blocks=blocks).map(
            Worker,
            fn_constructor_args=(setup,),
            compute=data.ActorPoolStrategy(
                size=min(pool.workers, blocks),
                max_tasks_in_flight_per_actor=at_once,
                max_concurrent_calls_per_actor=at_once,
                enable_true_multi_threading=True,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            memory=pool.memory,
            max_task_retries=0,  # Ray would retry without end
        )
    try:
        for batch in rows.iter_batches(
            batch_size=None, prefetch_batches=0, batch_format="pyarrow"
        ):
            for pickled in batch["answer"].to_pylist():
                answer = pickle.loads(pickled)  # from our own workers
                if isinstance(answer, AetherError):
                    raise _cannot_open(answer, setup.model.path) from answer
                for note in answer.notes:
                    warn_once(note)  # each worker may have the same
                yield answer
    except ray.exceptions.RayError as error:
        raise AetherError(
            f"The cluster failed: {reason_without_keys(error)}"
        ) from error


def _cannot_open(error: AetherError, model: Path) -> AetherError:
    return AetherError(
        f"A worker of the cluster cannot open the model. {error.reason}",
        error.path or model,
        error.hint,
    )


def _model_files(path: Path) -> dict[str, bytes]:
    """The model's file and those that belong to it: header or weights beside it."""
    check_source(path, "a model file")
    beside = (path.with_name(path.name + end) for end in (".json", ".data"))
    content = {}
    for file in (path, *filter(Path.is_file, beside)):
        try:
            content[file.name] = file.read_bytes()
        except OSError as error:
            raise unreadable(error, file) from error
    return content


def _absolute(job: Job | RemoteJob) -> Job | RemoteJob:
    """The job with paths that mean the same in a worker, which has another folder."""
    if isinstance(job, RemoteJob):
        return job
    return Job(Path(os.path.abspath(job.source)), Path(os.path.abspath(job.target)))
