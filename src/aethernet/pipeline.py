"""Work on items in threads, some ahead of the consumer."""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

# Seconds to wait for a reader that may hang, in a network drive say.
_PATIENCE = 5.0

T = TypeVar("T")


def ahead(items: Iterator[T], count: int) -> Generator[T, None, None]:
    """The same items, made in a thread of their own, so many ahead."""
    made: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(count)
    stop = threading.Event()

    def put(item: tuple[T] | BaseException | None) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                made.put(item, timeout=0.1)
                return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((item,)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=make, name="aethernet-reader", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        stop.set()
        thread.join(_PATIENCE)


# Decoded frames that may wait for the network, and upscaled ones for the encoder.
_READ_AHEAD, _WRITE_BEHIND = 3, 2

# How long a reader is waited for that may hang in a pipe nobody writes to; seconds.
_PATIENCE = 2.0

A = TypeVar("A")

B = TypeVar("B")

_END = object()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def overlapped(
    source: Iterable[A], work: Callable[[A], B], sink: Callable[[Iterator[B]], None]
) -> None:
    """Read, work and write at the same time, in three threads; the work in this one.

    What was read before the source failed is worked on and written; when reading or
    the work fails, `sink` sees an end and finishes what it has. The first error comes
    out of here.
    """
    stop, written = threading.Event(), threading.Event()
    coming: queue.Queue[Any] = queue.Queue(_READ_AHEAD)
    going: queue.Queue[Any] = queue.Queue(_WRITE_BEHIND)
    failures: list[BaseException] = []

    def read() -> None:
        last: Any = _END
        try:
            for item in source:
                if not _put(coming, item, stop):
                    break
        except BaseException as error:
            last = _Failure(error)
        _put(coming, last, stop)

    def results() -> Iterator[B]:
        while (item := going.get()) is not _END:
            yield item

    def write() -> None:
        try:
            sink(results())
        except BaseException as error:
            failures.append(error)
        finally:
            written.set()

    reader = threading.Thread(target=read, daemon=True)
    writer = threading.Thread(target=write, daemon=True)
    reader.start()
    writer.start()
    try:
        while (item := coming.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            if not _put(going, work(item), written):
                break
    finally:
        stop.set()
        _put(going, _END, written)
        writer.join()
        reader.join(_PATIENCE)
        if failures:
            raise failures[0]


def _put(to: "queue.Queue[Any]", item: Any, ended: threading.Event) -> bool:
    """Whether the item was taken before nobody takes items any more."""
    while not ended.is_set():
        with contextlib.suppress(queue.Full):
            to.put(item, timeout=0.1)
            return True
    return False
