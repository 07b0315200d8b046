"""Run a command: turn errors into one line on stderr and an exit code."""

import argparse
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable

from aethernet.commands.signals import Stop
from aethernet.errors import AetherError, first_line, system_reason
from aethernet.files import WRITE_ERRORS
from aethernet.text import printable

_INTERRUPTED = "interrupted; no file is left half written."


def exit_code(
    job: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace
) -> int:
    """Run a job and return the exit code of the process.

    The code is 0 on success, 1 after an error and 130 after Ctrl-C; SIGTERM ends the
    process with 143, SIGHUP with 129. A job that continues after a part of it failed
    reports that failure itself and returns 1.

    An error prints one line. An exception that is not an `AetherError` is a bug: its
    traceback is printed with `--verbose` or with AETHERNET_DEBUG=1 in the environment.
    AETHERNET_DEBUG=1 also shows the traceback of an `AetherError` and of its cause.
    Log messages go to stderr if that is a terminal.
    """
    stop = Stop()
    _accept_any_character()
    _show_log_messages()
    try:
        code = job(arguments) or 0
        _flush_stdout()
    except KeyboardInterrupt:
        _print_error(_INTERRUPTED)
        return 128 + signal.SIGINT  # as in shells
    except BrokenPipeError:  # the reader of our output has closed it
        _discard_stdout()
        return 1
    except Exception as error:
        if stop.code is not None:  # a library has turned the signal into its error
            if stop.interrupted:
                _print_error(_INTERRUPTED)
            return stop.code
        _report(error, arguments)
        return 1
    return code


def _accept_any_character() -> None:
    """Keep a file name that the terminal cannot encode from stopping a job."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _show_log_messages() -> None:
    if logging.lastResort:  # shows warnings where nothing else does
        logging.lastResort.setFormatter(_PlainLines())
    if not sys.stderr or not sys.stderr.isatty():
        return
    logger = logging.getLogger("aethernet")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_PlainLines())
        logger.addHandler(handler)


def _flush_stdout() -> None:
    """Write what is left in the buffer.

    Raises:
        AetherError: when that fails, as on a full disk.
    """
    try:
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_stdout()
        raise _unwritable_stdout(error) from error


def _report(error: Exception, arguments: argparse.Namespace) -> None:
    """Print one line about an error, and its traceback if the user asked for it."""
    debug = os.environ.get("AETHERNET_DEBUG", "") not in ("", "0")
    verbose = debug or getattr(arguments, "verbose", False)
    if isinstance(error, AetherError | MemoryError):
        line = str(error) if isinstance(error, AetherError) else "out of memory."
    elif isinstance(error, OSError) and _is_of_a_full_disk(error):
        debug = verbose
        _discard_stdout()  # which may be what could not be written
        line = f"Cannot write: {system_reason(error)}."
    else:
        debug = verbose
        # The scripts in `fuse_script` and `onnx` have no --verbose.
        flag = "--verbose" if "verbose" in arguments else "AETHERNET_DEBUG=1"
        advice = "please" if verbose else f"run again with {flag} and"
        line = f"unexpected {_described(error)}; {advice} report it."
    if debug and sys.stderr:
        traceback.print_exception(error)
    _print_error(line)


def _is_of_a_full_disk(error: OSError) -> bool:
    """Whether writing failed for a reason of the disk, to a file that has no name.

    That is standard output or a temporary file.
    """
    return error.filename is None and error.errno in WRITE_ERRORS


def _unwritable_stdout(error: OSError) -> AetherError:
    return AetherError(f"Cannot write to standard output: {system_reason(error)}.")


def _described(error: Exception) -> str:
    """The class of an unexpected error and, in one line, its message."""
    name, line = type(error).__name__, first_line(error).rstrip(".")
    return name if line == name else f"{name}: {line}"


def _print_error(text: str) -> None:
    if sys.stderr:  # None if it is closed, for which `print` would take stdout
        print(f"error: {printable(text)}", file=sys.stderr)


def _discard_stdout() -> None:
    """Keep Python from writing the rest of its buffer at exit, which would fail."""
    if sys.stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _PlainLines(logging.Formatter):
    """Log messages as one line of printable text each; they contain file names."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
