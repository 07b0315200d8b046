"""Read, compute and write at the same time, in threads joined by bounded queues."""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

# Seconds to wait for a reader at the end. It may hang in a network drive, or in a pipe
# that nobody writes to. Being a daemon thread, it does not keep Python from ending.
PATIENCE = 2.0

# What `overlapped` reads ahead, and how many results may wait to be written.
_READ_AHEAD, _WRITE_BEHIND = 3, 2

# Seconds between two looks at whether the other side has stopped.
_POLL = 0.1

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class _End:
    """The last thing in a queue, with the error that ended the items, if one did."""

    error: BaseException | None = None


class _Conveyor(Generic[T]):
    """A bounded queue from one thread to another; either side can end it.

    A signal can raise an exception at any moment of the main thread. In `queue.Queue`
    it may do so just after a lock was taken, which is then never released. The calls of
    `SimpleQueue` are written in C and cannot be interrupted halfway, so the places of
    the bounded queue are tokens in a second one.
    """

    def __init__(self, capacity: int) -> None:
        self._items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(capacity):
            self._places.put(None)
        self._stopped = threading.Event()

    def put(self, item: T) -> bool:
        """Wait for a place and add an item; False when the receiver has stopped."""
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Empty):
                self._places.get(timeout=_POLL)
                self._items.put(item)
                return True
        return False

    def end(self, error: BaseException | None = None) -> None:
        """Say that no more items come; the receiver gets the error after the items."""
        self._items.put(_End(error))

    def stop(self) -> None:
        """Say that no more items are taken."""
        self._stopped.set()

    def __iter__(self) -> Iterator[T]:
        """Take items until the end; raises the error that ended them."""
        while not isinstance(item := self._take(), _End):
            self._places.put(None)
            yield item
        if item.error:
            raise item.error

    def _take(self) -> T | _End:
        """Wait for the next item.

        Without a timeout the main thread could miss a signal that arrives just before
        it waits, and would never act on it.
        """
        while True:
            with contextlib.suppress(queue.Empty):
                return self._items.get(timeout=_POLL)


def ahead(items: Iterable[T], count: int) -> Generator[T, None, None]:
    """Yield the same items, made in a thread of their own, up to `count` ahead.

    Close the generator (`contextlib.closing`) to end the thread early. It is waited for
    at most `PATIENCE` seconds.

    Raises:
        BaseException: what `items` raises, after the items made before it.
    """
    made = _Conveyor[T](count)

    def make() -> None:
        error = None
        try:
            for item in items:
                if not made.put(item):
                    break
        except BaseException as failure:
            error = failure
        made.end(error)

    thread = threading.Thread(target=make, name="aethernet-reader", daemon=True)
    thread.start()
    try:
        yield from made
    finally:
        made.stop()
        thread.join(PATIENCE)


def overlapped(
    source: Iterable[A], work: Callable[[A], B], sink: Callable[[Iterator[B]], None]
) -> None:
    """Read, work and write at the same time; the work is done in this thread.

    What was read before the source failed is still worked on and written. When reading
    or the work fails, `sink` sees the end of the results and can finish what it has.

    Args:
        source: read in a thread of its own.
        work: makes a result of each item.
        sink: takes all results, in a thread of its own.

    Raises:
        BaseException: the first error of the three.
    """
    results = _Conveyor[B](_WRITE_BEHIND)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            sink(iter(results))
        except BaseException as error:
            failures.append(error)
        finally:
            results.stop()

    writer = threading.Thread(target=write, name="aethernet-writer", daemon=True)
    writer.start()
    try:
        with contextlib.closing(ahead(source, _READ_AHEAD)) as items:
            for item in items:
                if not results.put(work(item)):
                    break
    except BaseException as error:
        failures.append(error)
    results.end()
    while writer.is_alive():
        writer.join(_POLL)
    if failures:
        raise failures[0]
