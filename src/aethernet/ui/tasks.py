"""What the page's server works on: one task at a time, in a thread of its own.

A task knows how far it is and how long the rest takes, and stops when it is asked to.
It belongs to no connection, so a page that was reloaded finds it again.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aethernet.devices import device_kind
from aethernet.errors import AetherError
from aethernet.runtimes.base import Description, Model
from aethernet.runtimes.tiling import Tiled

_log = logging.getLogger(__name__)

KEPT_TASKS = 6
"""Tasks whose uploads and results are kept; those before them are removed."""

# Small tiles let a task report and stop often, also on a slow processor. With tiles of
# 1024 the context around them would be less: by 20% of the work, and by 6%.
_TILE_ON_PROCESSOR, _TILE = 256, 512

State = Literal["waiting", "running", "done", "failed", "cancelled"]


class CancelledError(Exception):
    """The task was asked to stop."""


class Estimate:
    """How much of some work is done, and how long the rest takes at that pace."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing; `clock` gives seconds."""
        self._clock = clock
        self._begun: tuple[float, float] | None = None
        self._latest = 0.0
        self.share = 0.0
        """The part that is done, 0..1; it never falls."""

    def advance(self, share: float) -> None:
        """Note the part that is done; the first call starts the clock."""
        self._latest = self._clock()
        self.share = min(max(self.share, share), 1.0)
        if self._begun is None:
            self._begun = self._latest, self.share

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end; None before anything was done."""
        if self._begun is None:
            return None
        begun, before = self._begun
        gained = self.share - before
        if gained <= 0:
            return None
        left = (1 - self.share) * (self._latest - begun) / gained
        return max(left - (self._clock() - self._latest), 0.0)


@dataclass(frozen=True)
class Made:
    """A file that a task has made."""

    name: str
    """To show and to download, with folders: "scans/a_2x.png"."""
    path: Path
    source: Path
    size_before: tuple[int, int]
    """Width and height in pixels, as the next."""
    size_after: tuple[int, int]
    remark: str = ""


@dataclass(eq=False)
class Task:
    """Something to do, its progress and its results."""

    kind: Literal["pictures", "video"]
    title: str
    folder: Path
    """For what it makes; removed with the task."""
    uploads: tuple[Path, ...]
    work: "Callable[[Task], None]"
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    state: State = "waiting"
    phase: str = "Waiting"
    estimate: Estimate = field(default_factory=Estimate)
    made: list[Made] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Names and reasons."""
    error: str = ""
    """Why the whole task failed."""
    how: str = ""
    """What ran: the model, the library, the device."""
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    begun: float | None = None
    seconds: float | None = None

    @property
    def alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")

    def check(self) -> None:
        """Raise `CancelledError` if the task was asked to stop."""
        if self.stop.is_set():
            raise CancelledError

    def as_json(self, ahead: int = 0) -> dict[str, Any]:
        """All that the page shows, without any path.

        Args:
            ahead: how many tasks come before it.
        """
        seconds = self.seconds
        if seconds is None and self.begun is not None:
            seconds = time.monotonic() - self.begun
        left = self.estimate.seconds_left if self.state == "running" else None
        return {
            "id": self.id,
            "kind": self.kind,
            "title": self.title,
            "state": self.state,
            "phase": "Stopping" if self.alive and self.stop.is_set() else self.phase,
            "ahead": ahead,
            "share": round(self.estimate.share, 4),
            "seconds": None if seconds is None else round(seconds, 1),
            "seconds_left": None if left is None else round(left, 1),
            "results": [
                {
                    "name": made.name,
                    "size_before": made.size_before,
                    "size_after": made.size_after,
                    "bytes": _size_of(made.path),
                    "remark": made.remark,
                }
                for made in [*self.made]
            ],
            "failures": [
                {"name": name, "reason": reason} for name, reason in [*self.failed]
            ],
            "error": self.error,
            "how": self.how,
        }


def _size_of(path: Path) -> int | None:
    """Bytes of a file; None when it was removed to make room."""
    try:
        return path.stat().st_size
    except OSError:
        return None


class TaskQueue:
    """Runs tasks one after the other and remembers the last ones."""

    def __init__(self, forget: Callable[[Task, list[Task]], None]) -> None:
        """Start the thread.

        Args:
            forget: removes the files of a task that is forgotten; gets the rest, too.
        """
        self._forget = forget
        self._tasks: list[Task] = []
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="aethernet-ui")
        self._thread.daemon = True
        self._thread.start()

    def add(self, task: Task) -> None:
        """Put a task at the end of the queue."""
        with self._changed:
            self._tasks.append(task)
            over = len(self._tasks) - KEPT_TASKS
            old = [task for task in self._tasks if not task.alive][: max(over, 0)]
            self._tasks = [task for task in self._tasks if task not in old]
            for each in old:
                self._forget(each, self._tasks)
            self._changed.notify()

    def find(self, name: str) -> Task | None:
        """The task of that id, if it is remembered."""
        return next((task for task in self.all() if task.id == name), None)

    def all(self) -> list[Task]:
        """The tasks that are remembered, the oldest first."""
        with self._changed:
            return [*self._tasks]

    def ahead(self, task: Task) -> int:
        """How many tasks have to end before this one begins."""
        before = self.all()
        before = before[: before.index(task)] if task in before else []
        return sum(each.alive for each in before) if task.state == "waiting" else 0

    def cancel(self, task: Task) -> None:
        """Ask a task to stop; what it has finished stays."""
        with self._changed:
            task.stop.set()
            if task.state == "waiting":
                _end(task, "cancelled")

    def end(self) -> None:
        """Cancel all tasks and wait until the one that runs has stopped."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        for task in self.all():
            if task.alive:
                self.cancel(task)
        self._thread.join()

    def _run(self) -> None:
        for task in self._waiting():
            task.begun = time.monotonic()
            try:
                task.check()
                task.work(task)
                _end(task, "done" if task.made or not task.failed else "failed")
            except CancelledError:
                _end(task, "cancelled")
            except AetherError as error:
                task.error = str(error)
                _end(task, "failed")
            except MemoryError:
                task.error = "Out of memory."
                _end(task, "failed")
            except Exception as error:  # a bug; the next task is not to suffer from it
                _log.exception("a task of the page failed")
                task.error = f"Unexpected {type(error).__name__}: {error}. Report it."
                _end(task, "failed")

    def _waiting(self) -> Iterator[Task]:
        while True:
            with self._changed:
                waiting = [task for task in self._tasks if task.state == "waiting"]
                if not waiting and self._ending:
                    return
                if not waiting:
                    self._changed.wait()
                    continue
                waiting[0].state = "running"
            yield waiting[0]


def _end(task: Task, state: State) -> None:
    if task.begun is not None:
        task.seconds = time.monotonic() - task.begun
    task.state = state
    task.ended.set()


class Watched:
    """A model that counts what it has done and stops when its task is asked to."""

    def __init__(self, model: Model, task: Task) -> None:
        """Wrap a model for a task."""
        self._model, self._task = model, task
        self.scale, self.channels = model.scale, model.channels
        self.input_sizes = model.input_sizes
        each = getattr(model, "bytes_per_pixel", None)
        if each is not None:
            self.bytes_per_pixel = each
        self.pixels = 0
        """Pixels of input so far."""
        self.ran: Callable[[], None] = lambda: None
        """Called after each run."""

    def describe(self) -> Description:
        return self._model.describe()

    def run(self, batch: np.ndarray) -> np.ndarray:
        """As the model; raises `CancelledError` if the task was asked to stop."""
        self._task.check()
        output = self._model.run(batch)
        self.pixels += batch.shape[0] * batch.shape[2] * batch.shape[3]
        self.ran()
        return output


def in_small_tiles(model: Model) -> Tiled:
    """The model for pictures of any size, in tiles that take little time."""
    tiled = Tiled(model)
    kind = device_kind(model.describe().device)
    most = _TILE_ON_PROCESSOR if kind == "cpu" else _TILE
    if tiled.tile is not None and tiled.tile <= most:
        return tiled
    return Tiled(model, most)
