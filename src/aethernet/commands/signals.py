"""Signals that end a command, so that it removes its temporary files first."""

import signal
import sys
from types import FrameType

_INTERRUPT = signal.SIGINT


class Stop:
    """The signal that asked this process to end, if one did.

    Each handler raises an exception in the main thread, so that what is half done is
    cleaned up. A library that is running then may turn it into an error of its own;
    `code` tells it apart.
    """

    def __init__(self) -> None:
        """Take over the signals, except those that the user let the process ignore."""
        self._received: int | None = None
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
        for number in (getattr(signal, name, None) for name in names):
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._stop)

    @property
    def code(self) -> int | None:
        """The exit code after a signal, as in shells; None without one."""
        return None if self._received is None else 128 + self._received

    @property
    def interrupted(self) -> bool:
        """Whether it was Ctrl-C."""
        return self._received == _INTERRUPT

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        if number == _INTERRUPT:
            raise KeyboardInterrupt
        sys.exit(128 + number)


def end_at_interrupts() -> None:
    """Let Ctrl-C end this process at once, until `Stop` takes over.

    For the time of the imports, in which there is nothing to clean up.
    """
    if signal.getsignal(_INTERRUPT) is signal.default_int_handler:
        signal.signal(_INTERRUPT, signal.SIG_DFL)
