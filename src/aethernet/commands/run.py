"""Run a command: errors become one line on stderr and an exit code."""

import argparse
import io
import logging
import os
import signal
import sys
from collections.abc import Callable

from aethernet.errors import AetherError
from aethernet.text import printable


def exit_code(
    job: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace
) -> int:
    """Run a job: 0 when it ends well; 1, and a sentence on stderr, when it does not.

    A job that goes on where a part of it fails says so itself, and returns 1.

    What the rooms log on the way goes to stderr where somebody watches it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cleans up on the way
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console of few letters must not stop a job over a file's name.
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr and sys.stderr.isatty():
        watched = logging.getLogger("aethernet")
        watched.setLevel(logging.INFO)
        if not watched.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(_PlainLines())
            watched.addHandler(handler)
    try:
        code = job(arguments) or 0
        if sys.stdout:
            sys.stdout.flush()
    except AetherError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except MemoryError:
        print("error: out of memory.", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # of standard output: files have sentences of their own
        print(f"error: {printable(str(error))}.", file=sys.stderr)
        if sys.stdout:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing is left half written.", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells have it
    return code


class _PlainLines(logging.Formatter):
    """Of what is logged, names of files among it, only what is text on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
