"""Calls of libraries that can be interrupted, or that may take only so long."""

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from aethernet.errors import TooSlowError

# Seconds between two looks at the clock, and for a call to end once it is told to.
_POLL, _PATIENCE = 0.1, 0.5

T = TypeVar("T")


def interruptible(
    call: Callable[[], T], stop: Callable[[], None], seconds: float | None = None
) -> T:
    """Make a call that can end early: at a signal, or after some time.

    Python acts on a signal only between its own instructions, so the call is made in a
    thread of its own, while the main thread waits. Signals come to no other thread:
    there, a call without a limit is simply made.

    Args:
        call: takes long in a library that lets other threads run meanwhile.
        stop: asks the library to end the call soon; where it does not, the call is left
            to itself, in a thread that does not keep Python from ending.
        seconds: of wall time, and also of this process's CPU time, so that a busy
            machine does not matter.

    Raises:
        TooSlowError: when it takes longer.
        BaseException: what the call raises, or a signal does in the main thread.
    """
    if seconds is None and threading.current_thread() is not threading.main_thread():
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
                result = results.get(timeout=_POLL)
            except queue.Empty:
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
        raise
    if isinstance(result, BaseException):
        raise result
    return result[0]
