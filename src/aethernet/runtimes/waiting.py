"""Calls of libraries that can be interrupted, or that may take only so long."""

import atexit
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from aethernet.errors import TooSlowError

# Seconds between two looks at the clock, or at what else is watched, and for a call to
# end once it is told to, or once Python ends.
_POLL, _POLL_OF_WATCH, _PATIENCE, _PATIENCE_AT_EXIT = 0.1, 0.01, 0.5, 5

T = TypeVar("T")

_left: list[threading.Thread] = []
_watch: ContextVar[Callable[[], None] | None] = ContextVar("watch", default=None)


@contextlib.contextmanager
def watched(watch: Callable[[], None]) -> Iterator[None]:
    """Let `interruptible` end its calls in this block when `watch` raises.

    Args:
        watch: is called again and again while a call is made.
    """
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def interruptible(
    call: Callable[[], T], stop: Callable[[], None], seconds: float | None = None
) -> T:
    """Make a call that can end early: at a signal, or after some time.

    Python acts on a signal only between its own instructions, so the call is made in a
    thread of its own, while the main thread waits. Signals come to no other thread:
    there, a call without a limit is simply made, unless it is watched.

    Args:
        call: takes long in a library that lets other threads run meanwhile.
        stop: asks the library to end the call soon; where it does not, the call is left
            to itself (`calls_are_left`).
        seconds: of wall time, and also of this process's CPU time, so that a busy
            machine does not matter.

    Raises:
        TooSlowError: when it takes longer.
        BaseException: what the call raises, or a signal does in the main thread, or
            what watches it (`watched`).
    """
    watch, is_main = _watch.get(), threading.current_thread() is threading.main_thread()
    if seconds is None and watch is None and not is_main:
        return call()
    results: queue.SimpleQueue[tuple[T] | BaseException] = queue.SimpleQueue()

    def make() -> None:
        try:
            results.put((call(),))
        except BaseException as error:
            results.put(error)

    thread = threading.Thread(target=make, name="aethernet-call", daemon=True)
    wall, cpu = time.monotonic(), time.process_time()
    thread.start()
    try:
        while True:
            try:
                result = results.get(timeout=_POLL_OF_WATCH if watch else _POLL)
            except queue.Empty:
                if watch:
                    watch()
                spent = min(time.monotonic() - wall, time.process_time() - cpu)
                if seconds is not None and spent > seconds:
                    raise TooSlowError(
                        f"Loading it takes more than {seconds:.1f} s."
                    ) from None
            else:
                break
    except BaseException:
        stop()
        thread.join(_PATIENCE)
        if thread.is_alive():
            _left.append(thread)
        raise
    if isinstance(result, BaseException):
        raise result
    return result[0]


def calls_are_left() -> bool:
    """Whether a call that was left to itself still goes on.

    Python must not end then: it ends a thread that comes back from a library by
    unwinding its stack, which C++ answers with `std::terminate`. `os._exit` is safe.
    """
    return any(thread.is_alive() for thread in _left)


@atexit.register
def _wait_for_calls() -> None:
    for thread in _left:
        thread.join(_PATIENCE_AT_EXIT)
