"""EBML, the nested elements of which Matroska files are made (RFC 8794)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_HEADER = 0x1A45DFA3

# Elements that are looked at in a part of a file, and bytes that are read of one.
_MOST_ELEMENTS, _LARGEST = 100_000, 2**24


@dataclass(frozen=True)
class Element:
    """An element; that of a master element is the content of those in it."""

    number: int
    """As Matroska's specification writes it, with its length marker: 0xE0, 0x55B0."""
    content: bytes

    def __bytes__(self) -> bytes:
        number = self.number.to_bytes((self.number.bit_length() + 7) // 8, "big")
        # The size in eight bytes, of which the first is the marker of that length.
        return number + (2**56 | len(self.content)).to_bytes(8, "big") + self.content


def elements(content: bytes) -> Iterator[Element]:
    """Read elements that follow each other.

    The content of one whose size is not known reaches to the end.

    Raises:
        ValueError: when one is cut short.
    """
    at = 0
    while at < len(content):
        number, at = _number(content, at, keep_marker=True)
        first = at
        size, at = _number(content, at, keep_marker=False)
        unknown = 2 ** (7 * (at - first)) - 1
        end = len(content) if size == unknown else at + size
        if end > len(content):
            raise ValueError(f"the element {number:X} is cut short")
        yield Element(number, content[at:end])
        at = end


def find(content: bytes, *path: int) -> bytes | None:
    """The content of the first element at the end of a path of numbers, if any.

    Raises:
        ValueError: as `elements`.
    """
    for number in path:
        found = (each.content for each in elements(content) if each.number == number)
        inner = next(found, None)
        if inner is None:
            return None
        content = inner
    return content


def find_in_file(file: BinaryIO, *path: int) -> bytes | None:
    """As `find`, without reading more of the file than it must.

    Args:
        file: open for reading; of another format than EBML, nothing is found.
        path: of numbers.
    """
    at, end = 0, file.seek(0, 2)
    file.seek(0)
    try:
        if _number(file.read(4), 0, keep_marker=True)[0] != _HEADER:
            return None
        for number in path:
            spans = (each[1:] for each in _spans(file, at, end) if each[0] == number)
            at, end = next(spans)
    except (ValueError, StopIteration):
        return None
    file.seek(at)
    return file.read(min(end - at, _LARGEST))


def _spans(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Numbers of the elements that follow each other; where their contents are."""
    for _ in range(_MOST_ELEMENTS):
        if at >= end:
            return
        file.seek(at)
        head = file.read(16)
        number, used = _number(head, 0, keep_marker=True)
        size, first = _number(head, used, keep_marker=False)
        unknown = 2 ** (7 * (first - used)) - 1
        stop = end if size == unknown else min(at + first + size, end)
        yield number, at + first, stop
        at = stop


def joined(parts: list[Element]) -> bytes:
    """The elements one after another."""
    return b"".join(map(bytes, parts))


def _number(content: bytes, at: int, *, keep_marker: bool) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    first = content[at] if at < len(content) else 0
    length = 9 - first.bit_length()
    if not first or at + length > len(content):
        raise ValueError("a number is cut short")
    value = int.from_bytes(content[at : at + length], "big")
    return value if keep_marker else value & (2 ** (7 * length) - 1), at + length
