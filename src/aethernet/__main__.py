"""Run the command line with `python -m aethernet`."""

import os
import sys
from contextlib import suppress

from aethernet.commands.signals import end_at_interrupts

end_at_interrupts()  # before the imports that take their time

from aethernet.commands import main as command  # noqa: E402


def main() -> None:
    """Run the command of this process, and end the process with its exit code."""
    code: int | str | None
    try:
        code = command.main()
    except SystemExit as end:
        code = end.code
    waiting = sys.modules.get("aethernet.runtimes.waiting")
    if waiting and waiting.calls_are_left():
        with suppress(OSError, AttributeError):  # closed, or none at all
            sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)
    sys.exit(code)


if __name__ == "__main__":
    main()
