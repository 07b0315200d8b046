"""The directories of tags (IFD) in TIFF files and EXIF blocks.

Values stay where they are whenever possible, because a MakerNote may hold offsets that
count from the start of the block. Source: TIFF 6.0, EXIF 2.32, BigTIFF.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import BinaryIO

ORIENTATION, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 274, 282, 283, 296
EXIF_DIRECTORY, GPS_DIRECTORY, INTEROPERABILITY = 34665, 34853, 40965
MAKER_NOTE = 37500
_DIRECTORIES = (EXIF_DIRECTORY, GPS_DIRECTORY, INTEROPERABILITY)

# Bytes of a value by its type; the size of the parts whose order of bytes matters.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_SIZES |= {13: 4, 16: 8, 17: 8, 18: 8}
_PARTS = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SHORT, _LONG, _RATIONAL, _LONG8 = 3, 4, 5, 16

_MOST_ENTRIES, _LARGEST_VALUE = 4096, 2**28


@dataclass(frozen=True)
class Value:
    """The value of a tag."""

    kind: int
    """TIFF's type: 2 text, 3 short, 4 long, 5 rational, 7 bytes .."""
    data: bytes
    """In the order of bytes of its file."""
    place: int = 0
    """Where it lies in the file."""

    @property
    def count(self) -> int:
        return len(self.data) // _SIZES[self.kind]

    def numbers(self, order: str) -> tuple[int, ...]:
        """Whole numbers; the numerators and denominators of rationals in turn."""
        letter = {1: "B", 2: "H", 4: "I", 8: "Q"}[_PARTS.get(self.kind, 1)]
        size = _PARTS.get(self.kind, 1)
        return struct.unpack(f"{order}{len(self.data) // size}{letter}", self.data)

    def in_order(self, old: str, new: str) -> bytes:
        """The data in another order of bytes."""
        size = _PARTS.get(self.kind, 1)
        if old == new or size == 1:
            return self.data
        parts = [self.data[i : i + size][::-1] for i in range(0, len(self.data), size)]
        return b"".join(parts)


Tags = Mapping[int, Value]


@dataclass(frozen=True)
class Directory:
    """One directory, as it lies in a file."""

    tags: dict[int, Value]
    next_field: int
    """Where the offset of the next directory is stored."""
    next: int
    """The offset of the next directory; 0: there is none."""


class Structure:
    """A TIFF file or an EXIF block.

    Attributes:
        order: "<" or ">", the order of its bytes.
        big: whether offsets have 64 bits (BigTIFF).
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read the header.

        Raises:
            ValueError: when it is none.
        """
        self._file = file
        file.seek(0)
        head = file.read(16)
        self.order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        magic = struct.unpack_from(f"{self.order}H", head, 2) if self.order else (0,)
        self.big = magic == (43,)
        if magic not in ((42,), (43,)) or len(head) < 8 + 8 * self.big:
            raise ValueError("This is no TIFF structure.")
        self.first_field = 8 if self.big else 4
        self.first = self._unpack("Q" if self.big else "I", head, self.first_field)

    def _unpack(self, letter: str, data: bytes, start: int = 0) -> int:
        return int(struct.unpack_from(self.order + letter, data, start)[0])

    def _read(self, place: int, size: int) -> bytes:
        self._file.seek(place)
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError("The TIFF structure ends early.")
        return data

    def directory(self, place: int) -> Directory:
        """The directory there; tags whose values lie outside of the file are left out.

        Raises:
            ValueError: when it lies outside of the file itself.
        """
        counter, row = ("Q", 20) if self.big else ("H", 12)
        offset, inline = ("Q", 8) if self.big else ("I", 4)
        head = struct.calcsize(counter)
        count = self._unpack(counter, self._read(place, head))
        if count > _MOST_ENTRIES:
            raise ValueError("The TIFF structure has too many tags.")
        table = self._read(place + head, count * row)
        tags = {}
        for start in range(0, len(table), row):
            tag, kind = struct.unpack_from(f"{self.order}HH", table, start)
            size = self._unpack(offset, table, start + 4) * _SIZES.get(kind, 0)
            where = place + head + start + row - inline
            if size > inline:
                where = self._unpack(offset, table, start + row - inline)
            if not 0 < size <= _LARGEST_VALUE:
                continue
            try:
                tags[tag] = Value(kind, self._read(where, size), where)
            except ValueError:
                continue
        field = place + head + count * row
        try:
            following = self._unpack(offset, self._read(field, inline))
        except ValueError:  # some writers leave it out
            following = 0
        return Directory(tags, field, following)

    def inside(self, tags: Tags, tag: int) -> Directory | None:
        """The directory that a tag leads to, if there is one that can be read."""
        if tag not in tags:
            return None
        try:
            return self.directory(tags[tag].numbers(self.order)[0])
        except (ValueError, struct.error, KeyError):
            return None


def entries(tags: Tags, order: str, start: int, following: int, big: bool) -> bytes:
    """A directory with its values, to be placed at `start` of a file.

    Args:
        tags: their data in this order of bytes.
        order: "<" or ">".
        start: offset of the directory in its file.
        following: offset of the next directory, or 0.
        big: whether the file is a BigTIFF.
    """
    counter, row = ("Q", 20) if big else ("H", 12)
    offset, inline = ("Q", 8) if big else ("I", 4)
    table = struct.pack(order + counter, len(tags))
    place = start + len(table) + len(tags) * row + inline
    values = b""
    for tag, value in sorted(tags.items()):
        head = struct.pack(f"{order}HH{offset}", tag, value.kind, value.count)
        if len(value.data) <= inline:
            table += head + value.data + bytes(inline - len(value.data))
            continue
        table += head + struct.pack(order + offset, place + len(values))
        values += value.data + bytes(len(value.data) % 2)
    return table + struct.pack(order + offset, following) + values


def value_of(number: int | tuple[int, int], order: str, kind: int = _LONG) -> Value:
    """A value of one number, or of a numerator and a denominator."""
    if isinstance(number, tuple):
        return Value(_RATIONAL, struct.pack(f"{order}2I", *number))
    return Value(kind, struct.pack(order + ("H" if kind == _SHORT else "I"), number))


def resolution_tags(resolution: tuple[float, float], order: str) -> dict[int, Value]:
    """Tags for pixels per millimetre, as pixels per inch."""

    def per_inch(side: float) -> Value:
        thousandths = min(round(side * 25_400), 2**32 - 1)
        # PNG counts by the metre: 300 per inch come back as 299.9994.
        whole = round(thousandths / 1000)
        near = abs(thousandths - 1000 * whole) <= 10
        return value_of((whole, 1) if near else (thousandths, 1000), order)

    across, down = map(per_inch, resolution)
    unit = value_of(2, order, _SHORT)
    return {X_RESOLUTION: across, Y_RESOLUTION: down, RESOLUTION_UNIT: unit}


def shape_tags(shape: tuple[int, int], order: str) -> dict[int, Value]:
    """Tags that state no resolution, only the shape of pixels; (1, 1): square."""
    across, down = (value_of((side, 1), order) for side in shape)
    unit = value_of(1, order, _SHORT)
    return {X_RESOLUTION: across, Y_RESOLUTION: down, RESOLUTION_UNIT: unit}


@dataclass(frozen=True)
class Tree:
    """A directory with the directories that its tags lead to."""

    tags: Tags
    inside: Mapping[int, "Tree"] = field(default_factory=dict)

    def in_order(self, old: str, new: str) -> "Tree":
        """The same with the bytes of all values in another order."""
        tags = {
            tag: replace(value, data=value.in_order(old, new))
            for tag, value in self.tags.items()
        }
        inside = {tag: tree.in_order(old, new) for tag, tree in self.inside.items()}
        return Tree(tags, inside)


def tree_of(found: Structure, tags: Tags) -> Tree:
    """A directory with those for EXIF, GPS and interoperability that can be read."""
    inside = {}
    for tag in (EXIF_DIRECTORY, GPS_DIRECTORY):
        if directory := found.inside(tags, tag):
            inner = found.inside(directory.tags, INTEROPERABILITY)
            leaves = {INTEROPERABILITY: Tree(_leaves(inner.tags))} if inner else {}
            inside[tag] = Tree(_leaves(directory.tags), leaves)
    return Tree(_leaves(tags), inside)


def _leaves(tags: Tags) -> dict[int, Value]:
    """The tags that lead to no other directory."""
    return {tag: value for tag, value in tags.items() if tag not in _DIRECTORIES}


def serialised(tree: Tree, order: str, start: int = 8, big: bool = False) -> bytes:
    """Directories with all their values, to be placed at `start` of a file.

    Args:
        tree: its values in this order of bytes.
        order: "<" or ">".
        start: offset of the first directory.
        big: whether the file is a BigTIFF.
    """
    kind, letter = (_LONG8, "Q") if big else (_LONG, "I")

    def offset(place: int) -> Value:
        return Value(kind, struct.pack(order + letter, place))

    tags = {**tree.tags, **dict.fromkeys(tree.inside, offset(0))}
    place = start + len(entries(tags, order, start, 0, big))
    behind = b""
    for tag, inner in tree.inside.items():
        tags[tag] = offset(place + len(behind))
        behind += serialised(inner, order, place + len(behind), big)
        behind += bytes(len(behind) % 2)
    return entries(tags, order, start, 0, big) + behind


def header(order: str) -> bytes:
    """The first eight bytes of an EXIF block whose directory follows them."""
    return {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
