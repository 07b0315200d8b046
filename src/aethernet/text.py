"""Text for a terminal: unprintable characters, and tables in columns."""

import re
from collections.abc import Callable, Container, Iterable, Sequence

# Control characters, line and paragraph separators and marks that change the direction
# of text; and surrogates, which stand for bytes that are not valid text.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

_LONGEST_LINE = 1000


def in_columns(rows: Iterable[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """Lay out a table: one line of text per row, with two spaces between columns.

    Widths are those of a terminal, where a Chinese or Japanese character takes two
    cells. Unprintable characters are escaped, as by `printable`.

    Args:
        rows: all with the same number of cells.
        right: numbers of the columns to align right, counted from 0.
    """
    cell_len = _cell_len()
    table = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - cell_len(cell))
            cells.append(padding + cell if number in right else cell + padding)
        lines.append("  ".join(cells).rstrip())
    return lines


def _cell_len() -> Callable[[str], int]:
    """The function that measures text; rich is imported only to print a table.

    Without rich, wide characters count as one cell: the fuse script runs where only
    torch is installed.
    """
    try:
        from rich.cells import cell_len
    except ModuleNotFoundError:
        return len
    return cell_len


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def printable(text: str) -> str:
    """Make one line of any text, for instance of a file name.

    Unprintable characters are escaped, and more than 1,000 characters are cut.
    """
    line = _UNPRINTABLE.sub(_escaped, text)
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}.."


def without_surrogates(text: str) -> str:
    r"""Escape bytes that are not valid text, as \xNN, so that `text` can be encoded."""
    return re.sub("[\ud800-\udfff]", _escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    # Python stores an undecodable byte as U+DC80 to U+DCFF: show that byte.
    return (
        f"\\x{code & 0xFF:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(match[0])[1:-1]
    )
