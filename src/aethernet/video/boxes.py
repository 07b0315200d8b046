"""The boxes of which MP4 and MOV files are made (ISO/IEC 14496-12)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

# Boxes that hold boxes -> how many bytes of their own come before these.
_PARENTS = {
    **dict.fromkeys((b"moov", b"trak", b"mdia", b"minf", b"stbl"), 0),
    b"stsd": 8,
    **dict.fromkeys((b"avc1", b"hvc1", b"hev1", b"av01", b"vp09"), 78),
}

_ENCRYPTED = (b"encv", b"enca", b"enct", b"encs", b"drmi", b"drms")

# That are looked at in a file, or in a box.
_MOST_BOXES = 100_000


@dataclass(frozen=True)
class Box:
    """A box of a file, whose content is not read."""

    kind: bytes
    start: int
    first: int
    """Where the content begins."""
    end: int


def hide_boxes(file: BinaryIO, name: bytes) -> None:
    """Make boxes that describe a video stream free space, in the file itself.

    Args:
        file: open for reading and writing; of MP4 or MOV, else nothing is changed.
        name: of the boxes, four letters.
    """
    for box in outermost(file):
        _hide(file, name, box)


def boxes_of_pictures(file: BinaryIO, track: int) -> Iterator[Box]:
    """The boxes that describe the pictures of a track.

    Args:
        file: open for reading; of MP4 or MOV, else nothing is found.
        track: its number in the file.
    """
    for movie in outermost(file):
        if movie.kind == b"moov":
            for box in inside(file, movie):
                if box.kind == b"trak" and _track_number(file, box) == track:
                    for entry in _at(file, box, b"mdia", b"minf", b"stbl", b"stsd"):
                        yield from inside(file, entry, 78)
            return


def tracks_of(file: BinaryIO) -> Iterator[tuple[Box, bytes]]:
    """The tracks of a movie, and what each holds: b"vide", b"soun", b"text" ..

    Args:
        file: open for reading; of MP4 or MOV, else nothing is found.
    """
    for movie in outermost(file):
        if movie.kind == b"moov":
            for track in inside(file, movie):
                if track.kind == b"trak":
                    parts = _at(file, track, b"mdia")
                    handler = next((b for b in parts if b.kind == b"hdlr"), None)
                    file.seek(handler.first + 8 if handler else track.end)
                    yield track, file.read(4) if handler else b""
            return


def chapter_tracks(file: BinaryIO) -> set[int]:
    """Numbers of the tracks that hold the chapters of others.

    Args:
        file: open for reading; of MP4 or MOV, else nothing is found.
    """
    found: set[int] = set()
    for track, _ in tracks_of(file):
        for box in _at(file, track, b"tref"):
            if box.kind == b"chap":
                file.seek(box.first)
                data = file.read(min(box.end - box.first, 4 * _MOST_BOXES))
                found.update(each for (each,) in struct.iter_unpack(">I", _whole(data)))
    return found


def has_encrypted_track(file: BinaryIO) -> bool:
    """Whether a track of MP4 or MOV is encrypted (ISO/IEC 23001-7)."""
    return any(
        entry.kind in _ENCRYPTED
        for track, _ in tracks_of(file)
        for entry in _at(file, track, b"mdia", b"minf", b"stbl", b"stsd")
    )


def _whole(data: bytes) -> bytes:
    return data[: len(data) - len(data) % 4]


def inside(file: BinaryIO, box: Box, skipped: int | None = None) -> Iterator[Box]:
    """The boxes in a box.

    Args:
        file: open for reading.
        box: one that holds boxes.
        skipped: bytes of its own before these; None for what is usual for its kind.
    """
    own = _PARENTS.get(box.kind, 0) if skipped is None else skipped
    yield from _boxes(file, box.first + own, box.end)


def outermost(file: BinaryIO) -> Iterator[Box]:
    """The boxes that are in no other.

    Args:
        file: open for reading; of MP4 or MOV, else nothing is found.
    """
    end = file.seek(0, 2)
    file.seek(4)
    if file.read(4) == b"ftyp":
        yield from _boxes(file, 0, end)


def behind(file: BinaryIO) -> int:
    """How many bytes follow the last box of a file; 0 of another format."""
    end = max((box.end for box in outermost(file)), default=None)
    return 0 if end is None else file.seek(0, 2) - end


def _boxes(file: BinaryIO, at: int, end: int) -> Iterator[Box]:
    for _ in range(_MOST_BOXES):
        if at + 8 > end:
            return
        file.seek(at)
        size, kind = struct.unpack(">I4s", file.read(8))
        first = at + 8
        if size == 1:  # the size follows in 64 bits
            (size,) = struct.unpack(">Q", file.read(8).rjust(8, b"\0"))
            first += 8
        stop = at + size if size else end
        if not first <= stop <= end:
            return
        yield Box(kind, at, first, stop)
        at = stop


def _at(file: BinaryIO, box: Box, *path: bytes) -> Iterator[Box]:
    """The boxes in the first box at the end of a path of kinds."""
    for kind in path:
        found = next((each for each in inside(file, box) if each.kind == kind), None)
        if found is None:
            return
        box = found
    yield from inside(file, box)


def _track_number(file: BinaryIO, track: Box) -> int | None:
    header = next((b for b in inside(file, track) if b.kind == b"tkhd"), None)
    if header is None:
        return None
    file.seek(header.first)
    content = file.read(24)
    # Behind version and flags come two times, of 32 or 64 bits.
    place = 20 if content[:1] == b"\1" else 12
    return int.from_bytes(content[place : place + 4], "big")


def _hide(file: BinaryIO, name: bytes, box: Box) -> None:
    if box.kind == name:
        file.seek(box.start + 4)
        file.write(b"free")
    elif box.kind in _PARENTS:
        for each in inside(file, box):
            _hide(file, name, each)
