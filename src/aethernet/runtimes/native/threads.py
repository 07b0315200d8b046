"""Work in steps, shared by threads that live for one call.

A step is a list of jobs that do not depend on each other. Threads take the next job
until there is none, then wait for each other before the next step. The kernels run
without Python's lock. No thread outlives the call, so nothing spins or waits between
calls, and a process that forks has no threads of ours.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

_log = logging.getLogger(__name__)

Job = Callable[[int], None]
"""Takes the number of the thread, from 0."""


class _Team:
    """What the threads of one call share."""

    def __init__(self, steps: Sequence[Sequence[Job]]) -> None:
        self.queues = [deque(step) for step in steps]
        self.barrier = threading.Barrier(1)
        self.complete = threading.Event()
        self.stopped = threading.Event()
        self.error: BaseException | None = None

    def start(self, helpers: Sequence[threading.Thread]) -> None:
        """Start the helpers, which wait until it is known how many there are.

        Where the system gives no more threads, the work is done by those there are.
        """
        started = 1
        try:
            for helper in helpers:
                helper.start()
                started += 1
        except RuntimeError as error:
            _log.info("%d threads instead of %d: %s", started, len(helpers) + 1, error)
        self.barrier = threading.Barrier(started)
        self.complete.set()

    def help(self, number: int) -> None:
        """What a helper does."""
        self.complete.wait()
        self.work(number)

    def work(self, number: int) -> None:
        """Do jobs until there are none, or somebody stopped."""
        try:
            for queue in self.queues:
                while not self.stopped.is_set() and (job := _next(queue)):
                    job(number)
                if self.stopped.is_set():
                    return
                self.barrier.wait()
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            self.stop(error)

    def stop(self, error: BaseException) -> None:
        self.error = self.error or error
        self.stopped.set()
        self.barrier.abort()
        self.complete.set()


def _next(queue: deque[Job]) -> Job | None:
    """Take the next job; atomic in every build of Python, free-threaded ones too."""
    try:
        return queue.popleft()
    except IndexError:
        return None


def run_steps(steps: Sequence[Sequence[Job]], threads: int) -> None:
    """Do all jobs of each step, one step after another.

    The calling thread works, too. Ctrl-C ends the call when the jobs that are running
    are done.

    Args:
        steps: in order; empty ones are allowed.
        threads: at least 1; never more are started than a step has jobs.

    Raises:
        BaseException: the first that a job raises, KeyboardInterrupt too.
    """
    threads = max(1, min(threads, max((len(step) for step in steps), default=1)))
    team = _Team(steps)
    helpers = [
        threading.Thread(target=team.help, args=(number,), daemon=True)
        for number in range(1, threads)
    ]
    try:
        team.start(helpers)
        team.work(0)
    except BaseException as error:  # Ctrl-C between two lines of `work`
        team.stop(error)
    for helper in helpers:
        if helper.ident is not None:
            helper.join()
    if team.error is not None:
        raise team.error


def rectangles(
    height: int, width: int, threads: int, limit: int, tile_rows: int
) -> list[tuple[int, int, int, int]]:
    """Cut a picture into rectangles, jobs of a step: rows from, to, columns from, to.

    Args:
        height: in pixels, as all here.
        width: of the picture.
        threads: that share the work. Each gets eight rectangles where there are enough
            rows, so that none waits long for a slower one.
        limit: pixels of one rectangle at most, unless a row of tiles of 48 columns has
            more. Between two rectangles a thread notices Ctrl-C.
        tile_rows: rows are a multiple of it, so that tiles are whole.
    """
    rows, columns = -(-height // (8 * threads)), width
    rows = min(rows, limit // width) // tile_rows * tile_rows
    rows = max(tile_rows, rows)
    if rows * columns > limit:
        columns = max(48, limit // rows // 48 * 48)
    bands = -(-height // rows)
    if bands * -(-width // columns) < 2 * threads:
        pieces = -(-2 * threads // bands)
        columns = min(columns, max(24, -(-width // pieces // 24) * 24))
    return [
        (y, min(y + rows, height), x, min(x + columns, width))
        for y in range(0, height, rows)
        for x in range(0, width, columns)
    ]
