"""The parser of the command line: short errors that say what could be meant."""

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """ " Did you mean NAME?", or "" where nothing known is like what was given."""
    found = difflib.get_close_matches(given, [*known], n=1)
    return f" Did you mean {found[0]}?" if found else ""


class CommandParser(argparse.ArgumentParser):
    """Prints one line about a wrong argument, and where to look."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As `argparse`, but what is not known is an error here.

        The parser of a command knows its flags, which the one above it does not.
        """
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            flags = [flag for action in self._actions for flag in action.option_strings]
            meant = did_you_mean(rest[0].partition("=")[0], flags)
            what = "flag" if rest[0].startswith("-") else "argument"
            self.error(f"There is no {what} {rest[0]}.{meant}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Print the message as one line, and exit with 2."""
        end = "" if message.endswith((".", "?")) else "."
        if sys.stderr:  # None if it is closed
            print(f"error: {message}{end} See {self.prog} --help.", file=sys.stderr)
        sys.exit(2)
