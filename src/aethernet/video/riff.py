"""The chunks of which AVI files are made (RIFF), by name where libav reads none."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

_LISTS = (b"RIFF", b"LIST")
_EMPTY = (b"JUNK", b"JUNQ", b"PAD ", b"FLLR")

# What libav reads, or describes how the file is stored, by the list that it lies in.
_KNOWN = {
    b"AVI ": (b"hdrl", b"INFO", b"movi", b"idx1", *_EMPTY),
    b"AVIX": (b"movi", b"idx1", *_EMPTY),
    b"hdrl": (b"avih", b"strl", b"odml", b"vprp", *_EMPTY),
    b"strl": (b"strh", b"strf", b"strn", b"indx", b"vprp", *_EMPTY),
}
_NAMES = {
    b"_PMX": "XMP",
    b"XMP ": "XMP",
    b"Tdat": "Adobe's timecode",
    b"exif": "EXIF",
    b"strd": "what the camera says of a stream (strd)",
}

_MOST_CHUNKS, _MOST_FILLING = 10_000, 64


def names_in_avi(file: BinaryIO) -> set[str]:
    """Names of the chunks of an AVI file that libav does not read.

    Args:
        file: open for reading; of another format, nothing is found.
    """
    size = file.seek(0, 2)
    file.seek(0)
    if file.read(4) != b"RIFF" or file.read(8)[4:] != b"AVI ":
        return set()
    found = set[str]()
    for kind, start, end in _chunks(file, 0, size):
        if kind in _KNOWN:  # "AVI " and its continuations
            found.update(_unknown(file, kind, start, end))
        elif kind not in _EMPTY and size - start > _MOST_FILLING:
            found.add("what lies behind the chunks")
    return found


def _unknown(file: BinaryIO, list_kind: bytes, start: int, end: int) -> Iterator[str]:
    for kind, first, last in _chunks(file, start, end):
        if kind in _KNOWN[list_kind]:
            if kind in _KNOWN:
                yield from _unknown(file, kind, first, last)
        elif kind.strip(b"\0"):
            yield _NAMES.get(kind, f"the chunk {kind.decode('latin-1').strip()}")


def _chunks(file: BinaryIO, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each chunk or list between two places, and where its content is."""
    for _ in range(_MOST_CHUNKS):
        if at + 8 > end:
            return
        file.seek(at)
        kind, size = struct.unpack("<4sI", file.read(8))
        start, last = at + 8, min(at + 8 + size, end)
        if kind in _LISTS:
            kind, start = file.read(4), start + 4
        if start > last:
            return
        yield kind, start, last
        at = last + size % 2
