"""Text for a terminal: unprintable characters, columns."""

import re
from collections.abc import Container, Iterable, Sequence

# Control characters, ends of lines and turns of direction; and surrogates, which stand
# for bytes that are no text.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

_LONGEST_LINE = 1000


def in_columns(rows: Iterable[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """Rows of as many cells each as lines of text; columns of numbers flush right.

    Args:
        right: which columns those are, counted from 0.
    """
    rows = [*rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def printable(text: str) -> str:
    """One line of at most 1,000 characters, whatever a file put into it."""
    line = _UNPRINTABLE.sub(escaped, text)
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}.."


def escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    # Python's stand-in for a byte, U+DC80 to U+DCFF, is shown as that byte.
    return (
        f"\\x{code & 0xFF:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(match[0])[1:-1]
    )
