"""AVIF and HEIC: boxes of a file, and metadata put into one that libvips has encoded.

Sources: ISO/IEC 14496-12 (boxes), ISO/IEC 23008-12 (pictures), and the AVIF
specification.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from aethernet.pictures.colour import StatedColour
from aethernet.pictures.metadata import (
    MOST_FILLING,
    Metadata,
    code_points,
    more_pictures,
)
from aethernet.pictures.timing import Timing

_LARGEST_BOX = 2**28
_MOST_FRAMES, _MOST_BOXES = 100_000, 1000
_DEPTH = {b"urn:mpeg:mpegB:cicp:systems:auxiliary:depth", b"urn:mpeg:hevc:2015:auxid:2"}
_ALPHA = {b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1"}
_AUXILIARY = re.compile(rb"auxC.{4}([\x21-\x7e]+)\0", re.DOTALL)
# What describes how pictures are coded, or is read here; what else there may be.
_KNOWN_PROPERTIES = (
    *(b"ispe", b"pixi", b"colr", b"av1C", b"hvcC", b"lhvC", b"vvcC", b"jpgC", b"j2kH"),
    *(b"auxC", b"irot", b"imir", b"clap", b"a1op", b"a1lx", b"lsel", b"rloc", b"rref"),
    *(b"clli", b"mdcv", b"pasp", b"free", b"skip"),
)
_PROPERTIES = {
    b"cclv": "the content colour volume",
    b"amve": "the ambient viewing environment",
    b"udes": "the description",
    b"altt": "the text instead of the picture",
}
_KNOWN_BOXES = (b"ftyp", b"meta", b"moov", b"mdat", b"free", b"skip", b"wide")
_FILM = b"mpvd"
_XMP_TYPE = b"application/rdf+xml"
# PNG counts chromaticities and luminance in the units of the box; the order differs.
_GREEN_BLUE_RED = (8, 0, 4)


@dataclass(frozen=True)
class _Box:
    kind: bytes
    start: int
    """Of its content."""
    end: int


def _boxes(data: bytes, start: int, end: int) -> Iterator[_Box]:
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        elif size == 0:
            size = end - start
        if size < head or start + size > end:
            return
        yield _Box(kind, start + head, start + size)
        start += size


def _outer(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kinds of the boxes that are in no other, and how many bytes follow in each."""
    end = file.seek(0, 2)
    at = file.seek(0)
    for _ in range(_MOST_BOXES):
        if len(head := file.read(8)) < 8:
            return
        size, kind = struct.unpack(">I4s", head)
        if size == 1:  # the size follows in 64 bits
            size = int.from_bytes(file.read(8), "big")
        elif size == 0:  # it ends with the file
            size = end - at
        start = file.tell()
        if not start <= at + size <= end:
            return
        yield kind, at + size - start
        at = file.seek(at + size)


def _end(file: BinaryIO) -> int:
    """Where the last of the boxes ends that are in no other."""
    end = 0
    for _, length in _outer(file):
        end = file.tell() + length
    return end


def is_premultiplied(path: Path) -> bool:
    """Whether the colours of the main picture are multiplied by its alpha."""
    meta = _content(path, b"meta")[4:]
    try:
        top = {box.kind: box for box in _boxes(meta, 0, len(meta))}
        references, primary = top[b"iref"], _primary(meta, top)
        letter = ">I" if meta[references.start] else ">H"
        return any(
            box.kind == b"prem"
            and struct.unpack_from(letter, meta, box.start)[0] == primary
            for box in _boxes(meta, references.start + 4, references.end)
        )
    except (struct.error, LookupError):
        return False


def _content(path: Path, wanted: bytes) -> bytes:
    """The content of the first box of a kind that is in no other."""
    with path.open("rb") as file:
        for kind, length in _outer(file):
            if kind == wanted:
                return file.read(min(length, _LARGEST_BOX))
    return b""


def is_sequence(path: Path) -> bool:
    """Whether the file has frames: an animation, or a burst of a camera."""
    with path.open("rb") as file:
        return any(kind == b"moov" for kind, _ in _outer(file))


def timing(path: Path) -> Timing:
    """How long the frames of an AVIF are shown (ISO/IEC 14496-12, 8.4.2 and 8.6).

    Raises:
        ValueError: when boxes are damaged or missing.
    """
    movie = _content(path, b"moov")
    try:
        for track in _boxes(movie, 0, len(movie)):
            if track.kind == b"trak" and _handler(movie, track) == b"pict":
                return Timing(tuple(_seconds(movie, track)), _plays(movie, track))
    except (struct.error, IndexError) as error:
        raise ValueError("A box is cut short.") from error
    raise ValueError("The file has no frames.")


def _handler(movie: bytes, track: _Box) -> bytes:
    """What a track holds: b"pict" for colours, b"auxv" for alpha."""
    box = _inside(movie, track, b"mdia", b"hdlr")
    return movie[box.start + 8 : box.start + 12]


def _seconds(movie: bytes, track: _Box) -> list[Fraction]:
    header = _inside(movie, track, b"mdia", b"mdhd")
    place = header.start + (20 if movie[header.start] else 12)
    (second,) = struct.unpack_from(">I", movie, place)
    times = _inside(movie, track, b"mdia", b"minf", b"stbl", b"stts")
    (rows,) = struct.unpack_from(">I", movie, times.start + 4)
    found: list[Fraction] = []
    for row in range(rows):
        place = times.start + 8 + 8 * row
        count, units = struct.unpack_from(">2I", movie, place)
        if max(row, len(found) + count) > _MOST_FRAMES or not second:
            raise ValueError("The times of the frames make no sense.")
        found += [Fraction(units, second)] * count
    return found


def _plays(movie: bytes, track: _Box) -> int:
    """How often all frames are shown, 0: for ever, which is meant where nothing is."""
    try:
        edits = _inside(movie, track, b"edts", b"elst")
    except ValueError:
        return 0
    if not movie[edits.start + 3] & 1:  # a flag: the edit is repeated
        return 1
    header = _inside(movie, track, b"tkhd")
    kind = ">Q" if movie[edits.start] else ">I"
    (one,) = struct.unpack_from(kind, movie, edits.start + 8)
    kind, place = (">Q", 28) if movie[header.start] else (">I", 20)
    (whole,) = struct.unpack_from(kind, movie, header.start + place)
    if not one or whole + 1 == 256 ** struct.calcsize(kind):  # all bits: for ever
        return 0
    return max(round(whole / one), 1)


def _inside(content: bytes, box: _Box, *path: bytes) -> _Box:
    """The first box of each kind of a path, one in another."""
    for kind in path:
        inner = _boxes(content, box.start, box.end)
        found = next((each for each in inner if each.kind == kind), None)
        if found is None:
            raise ValueError(f"There is no box {kind!r}.")
        box = found
    return box


def read(path: Path, known: Metadata, pictures: int) -> Metadata:
    """Add what the boxes of the main picture say.

    Args:
        path: of the file.
        known: profile, EXIF and XMP as libvips read them.
        pictures: of full size in the file, with the main one.

    Raises:
        struct.error, KeyError, IndexError, StopIteration: when boxes are damaged.
    """
    meta = _content(path, b"meta")[4:]  # version and flags come first
    top = {box.kind: box for box in _boxes(meta, 0, len(meta))}
    properties = _properties(meta, top)
    mine = [properties[i] for i in _associated(meta, top, _primary(meta, top))]
    others = [*more_pictures(pictures - 1), *_others(meta, top)]
    for kind, _ in mine:
        if kind not in _KNOWN_PROPERTIES:
            name = f"the property {kind.decode('latin-1')}"
            others.append(_PROPERTIES.get(kind, name))
    others += [*_other_items(meta, top), *_behind(path)]
    colour = _colour(mine, known.profile)
    return replace(
        known, colour=colour, unitless=_shape(mine), others=tuple(dict.fromkeys(others))
    )


def _primary(meta: bytes, top: dict[bytes, _Box]) -> int:
    box = top[b"pitm"]
    version = meta[box.start]
    (item,) = struct.unpack_from(">I" if version else ">H", meta, box.start + 4)
    return int(item)


def _properties(meta: bytes, top: dict[bytes, _Box]) -> dict[int, tuple[bytes, bytes]]:
    """Kind and content of all properties, by the numbers that stand for them."""
    inside = top[b"iprp"]
    container = next(
        box for box in _boxes(meta, inside.start, inside.end) if box.kind == b"ipco"
    )
    return {
        number: (box.kind, meta[box.start : box.end])
        for number, box in enumerate(_boxes(meta, container.start, container.end), 1)
    }


def _associated(meta: bytes, top: dict[bytes, _Box], item: int) -> list[int]:
    """The numbers of an item's properties."""
    inside = top[b"iprp"]
    for box in _boxes(meta, inside.start, inside.end):
        if box.kind != b"ipma":
            continue
        for found, place, count in _ipma_rows(meta, box):
            if found == item:
                wide = meta[box.start + 3] & 1
                letter, mask = (("H", 0x7FFF), ("B", 0x7F))[not wide]
                numbers = struct.unpack_from(f">{count}{letter}", meta, place)
                return [number & mask for number in numbers if number & mask]
    return []


def _ipma_rows(meta: bytes, box: _Box) -> Iterator[tuple[int, int, int]]:
    """Of each row: the item, where its properties begin, and how many there are."""
    version, wide = meta[box.start], meta[box.start + 3] & 1
    (rows,) = struct.unpack_from(">I", meta, box.start + 4)
    place = box.start + 8
    for _ in range(rows):
        letter = "I" if version else "H"
        item, count = struct.unpack_from(f">{letter}B", meta, place)
        place += struct.calcsize(f">{letter}B")
        yield item, place, count
        place += count * (2 if wide else 1)


def _colour(
    properties: list[tuple[bytes, bytes]], profile: bytes | None
) -> StatedColour:
    colour = StatedColour()
    for kind, data in properties:
        # A profile outranks code points here, unlike in PNG.
        if kind == b"colr" and data[:4] == b"nclx" and not profile:
            primaries, transfer = struct.unpack_from(">HH", data, 4)
            colour = replace(colour, cicp=code_points(primaries, transfer))
        elif kind == b"clli" and len(data) >= 4:
            levels = (10_000 * level for level in struct.unpack_from(">HH", data))
            colour = replace(colour, light=struct.pack(">II", *levels))
        elif kind == b"mdcv" and len(data) >= 24:
            corners = [data[place : place + 4] for place in _GREEN_BLUE_RED]
            colour = replace(colour, mastering=b"".join(corners) + data[12:24])
    return colour


def _others(meta: bytes, top: dict[bytes, _Box]) -> tuple[str, ...]:
    """Names of what a file holds beside its main picture, its metadata and alpha."""
    found = []
    inside = top[b"iprp"]
    content = meta[inside.start : inside.end]
    # Auxiliary pictures, whose kind is a URN behind the box's version and flags.
    kinds = {name for name in _AUXILIARY.findall(content) if name not in _ALPHA}
    if kinds & _DEPTH:
        found.append("the depth map")
    if b"hdrgainmap" in content or b"tmap" in meta:
        found.append("the gain map (HDR)")
    rest = {name for name in kinds - _DEPTH if b"hdrgainmap" not in name}
    found += [f"the auxiliary picture {name.decode()}" for name in sorted(rest)]
    return tuple(found)


def _shape(properties: list[tuple[bytes, bytes]]) -> tuple[int, int] | None:
    """Pixels across and down for the same length, if the file says so."""
    for kind, data in properties:
        if kind == b"pasp" and len(data) >= 8:
            width, height = struct.unpack_from(">II", data)
            return (height, width) if width and height else None
    return None


def _other_items(meta: bytes, top: dict[bytes, _Box]) -> Iterator[str]:
    """Names of items that are neither pictures nor EXIF nor XMP."""
    for entry in _items(meta, top):
        content = meta[entry.start : entry.end]
        if content[0] < 2:
            continue
        # Number, protection, kind; then a name and the type of the content.
        start = 10 + 2 * (content[0] == 3)
        kind, texts = content[start - 2 : start + 2], content[start + 2 :].split(b"\0")
        stated = texts[1] if len(texts) > 1 else b""
        if kind == b"mime" and stated != _XMP_TYPE:
            yield f"data of the type {stated.decode('latin-1') or 'mime'}"
        elif kind == b"uri ":
            yield f"data of the type {stated.decode('latin-1') or 'uri'}"


def _behind(path: Path) -> Iterator[str]:
    """Names of what lies in a file beside the pictures and their description."""
    with path.open("rb") as file:
        for kind, _ in _outer(file):
            if kind == _FILM:
                yield "a film"
            elif kind not in _KNOWN_BOXES:
                yield f"the box {kind.decode('latin-1')}"
        behind = file.seek(0, 2) - _end(file)
        if behind > MOST_FILLING:
            yield f"{behind} bytes behind the picture"


def with_metadata(content: bytes, metadata: Metadata) -> bytes:
    """The file with profile or code points, light levels, EXIF and XMP.

    Args:
        content: of an AVIF file as libvips writes it without them: the box that
            describes the picture, then its data.
        metadata: to add.
    """
    box = next(b for b in _boxes(content, 0, len(content)) if b.kind == b"meta")
    meta = content[box.start + 4 : box.end]
    top = {b.kind: b for b in _boxes(meta, 0, len(meta))}
    primary = _primary(meta, top)
    items = []
    if metadata.exif:
        items.append((b"Exif", b"", bytes(4) + metadata.exif))
    if metadata.xmp:
        items.append((b"mime", b"application/rdf+xml\0", metadata.xmp))
    properties = _new_properties(metadata, meta, top)
    if not items and not properties:
        return content
    numbers = [_largest_item(meta, top) + 1 + i for i in range(len(items))]
    parts = {b.kind: meta[b.start : b.end] for b in top.values()}
    parts[b"iinf"] = _more_items(parts[b"iinf"], items, numbers)
    parts[b"iref"] = _more_references(parts.get(b"iref"), numbers, primary)
    parts[b"iprp"] = _more_properties(meta, top, primary, properties)
    sizes = [len(data) for _, _, data in items]
    grown = 0
    for _ in range(2):  # the second time with the offsets that are then known
        end = len(content) + grown + 8
        places = [end + sum(sizes[:i]) for i in range(len(sizes))]
        spans = list(zip(numbers, places, sizes, strict=True))
        iloc = _more_places(meta[top[b"iloc"].start : top[b"iloc"].end], grown, spans)
        body = b"".join(
            _box(kind, iloc if kind == b"iloc" else data)
            for kind, data in parts.items()
            if data
        )
        whole = _box(b"meta", content[box.start : box.start + 4] + body)
        grown = len(whole) - (box.end - box.start + 8)
    more = b"".join(data for _, _, data in items)
    behind = _box(b"mdat", more) if more else b""
    return content[: box.start - 8] + whole + content[box.end :] + behind


def _box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", len(data) + 8, kind) + data


def _new_properties(
    metadata: Metadata, meta: bytes, top: dict[bytes, _Box]
) -> list[bytes]:
    colour, made = metadata.colour, []
    if metadata.profile:
        made.append(_box(b"colr", b"prof" + metadata.profile))
    if colour.cicp:
        # The matrix and the range are those libheif has encoded with.
        matrix, full = 6, 0x80
        for kind, data in _properties(meta, top).values():
            if kind == b"colr" and data[:4] == b"nclx":
                matrix, full = struct.unpack_from(">HB", data, 8)
        made.append(
            _box(b"colr", b"nclx" + struct.pack(">HHHB", *colour.cicp, matrix, full))
        )
    if colour.light:
        levels = (
            min(round(level / 10_000), 65535)
            for level in struct.unpack(">II", colour.light)
        )
        made.append(_box(b"clli", struct.pack(">HH", *levels)))
    if colour.mastering:
        red, green, blue = (colour.mastering[i : i + 4] for i in (0, 4, 8))
        made.append(_box(b"mdcv", green + blue + red + colour.mastering[12:]))
    return made


def _largest_item(meta: bytes, top: dict[bytes, _Box]) -> int:
    numbers = [0]
    for entry in _items(meta, top):
        letter = ">I" if meta[entry.start] == 3 else ">H"
        numbers.append(struct.unpack_from(letter, meta, entry.start + 4)[0])
    return max(numbers)


def _items(meta: bytes, top: dict[bytes, _Box]) -> Iterator[_Box]:
    """The boxes that describe an item each."""
    box = top[b"iinf"]
    yield from _boxes(meta, box.start + (8 if meta[box.start] else 6), box.end)


def _more_items(
    iinf: bytes, items: list[tuple[bytes, bytes, bytes]], numbers: list[int]
) -> bytes:
    letter = ">I" if iinf[0] else ">H"
    size = struct.calcsize(letter)
    (count,) = struct.unpack_from(letter, iinf, 4)
    added = b"".join(
        _box(
            b"infe",
            struct.pack(">IHH4s", 0x02000001, number, 0, kind) + b"\0" + content_type,
        )
        for number, (kind, content_type, _) in zip(numbers, items, strict=True)
    )
    return iinf[:4] + struct.pack(letter, count + len(items)) + iinf[4 + size :] + added


def _more_references(iref: bytes | None, numbers: list[int], primary: int) -> bytes:
    if not numbers:
        return iref or b""
    iref = iref or bytes(4)
    letter = "I" if iref[0] else "H"
    return iref + b"".join(
        _box(b"cdsc", struct.pack(f">{letter}H{letter}", number, 1, primary))
        for number in numbers
    )


def _more_properties(
    meta: bytes, top: dict[bytes, _Box], primary: int, added: list[bytes]
) -> bytes:
    """The box of properties; new code points take the place of old ones."""
    inside = top[b"iprp"]
    known = {number: _box(*each) for number, each in _properties(meta, top).items()}
    code_points = [new for new in added if new[8:12] == b"nclx"]
    for number, old in known.items():
        if old[4:12] == b"colrnclx" and code_points:
            known[number] = code_points[0]  # where it is, and used, already
            added = [each for each in added if each is not code_points[0]]
    container = b"".join(known.values()) + b"".join(added)
    numbers_of_new = [len(known) + 1 + i for i in range(len(added))]
    rest = b""
    for box in _boxes(meta, inside.start, inside.end):
        if box.kind != b"ipma":
            continue
        version, wide = meta[box.start], meta[box.start + 3] & 1
        letter = "H" if wide else "B"
        rows, table = 0, b""
        for item, place, count in _ipma_rows(meta, box):
            numbers = list(struct.unpack_from(f">{count}{letter}", meta, place))
            if item == primary:
                numbers += numbers_of_new
            table += struct.pack(">I" if version else ">H", item)
            table += struct.pack(f">B{len(numbers)}{letter}", len(numbers), *numbers)
            rows += 1
        head = meta[box.start : box.start + 4] + struct.pack(">I", rows)
        rest += _box(b"ipma", head + table)
    return _box(b"ipco", container) + rest


def _more_places(iloc: bytes, grown: int, spans: list[tuple[int, int, int]]) -> bytes:
    """The table of places: old ones moved by `grown` bytes, new ones added.

    Args:
        iloc: the content of the box.
        grown: bytes that come before the old places now.
        spans: item, offset in the file, and size of what is new.
    """
    version, sizes = iloc[0], struct.unpack_from(">H", iloc, 4)[0]
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    wide = "I" if version == 2 else "H"
    (count,) = struct.unpack_from(f">{wide}", iloc, 6)
    place = 6 + struct.calcsize(wide)

    def number(size: int) -> int:
        nonlocal place
        place += size
        return int.from_bytes(iloc[place - size : place], "big")

    rows = []
    for _ in range(count):
        item = number(struct.calcsize(wide))
        method = number(2) & 15 if version else 0
        number(2)  # the file it lies in: this one
        start = number(base)
        for _ in range(number(2)):
            number(index if version else 0)
            rows.append((item, method, start + number(offset), number(length)))
    moved = [(i, m, p + (0 if m else grown), s) for i, m, p, s in rows]
    return _places(moved + [(item, 0, place, size) for item, place, size in spans])


def _places(rows: list[tuple[int, int, int, int]]) -> bytes:
    """A table of places in its second form: item, method, offset and size."""
    by_item: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for item, method, place, size in rows:
        by_item.setdefault((item, method), []).append((place, size))
    made = struct.pack(">IHI", 0x02000000, 0x4400, len(by_item))
    for (item, method), extents in by_item.items():
        made += struct.pack(">IHHH", item, method, 0, len(extents))
        for place, size in extents:
            made += struct.pack(">II", place, size)
    return made
