"""EXIF blocks: what is true of an upscaled picture, without moving anything in them.

A block is a TIFF structure; a MakerNote in it may hold offsets into the block. So
numbers are changed where they lie, and what is added comes behind the rest.
"""

import io
import struct
from collections.abc import Mapping
from fractions import Fraction

from aethernet.pictures import ifd

PREFIX = b"Exif\0\0"
"""What goes before a block in JPEG, and before it in `exif-data` of libvips."""

_STORED_SIDES, _SIDES = (256, 257), (40962, 40963)
# Where the subject is: x, y, and its diameter or its width and height. And pixels of
# the sensor for a length, across and down.
_SUBJECTS = (37396, 41492)
_SENSOR = (41486, 41487)
_THUMBNAIL = (513, 514)
_COMMENT = 37510
_TEXT, _SHORT, _RATIONAL, _BYTES = 2, 3, 5, 7
_MILLIMETRES = {2: 25.4, 3: 10.0}
"""In the units of resolutions."""


def block_of(data: bytes) -> bytes | None:
    """The block without a prefix; None unless it is a TIFF structure."""
    data = data.removeprefix(PREFIX)
    try:
        ifd.Structure(io.BytesIO(data))
    except (ValueError, struct.error):
        return None
    return data


def orientation_of(block: bytes) -> int:
    """The orientation that the block states, 1 to 8; 1 where it states none."""
    found = ifd.Structure(io.BytesIO(block))
    try:
        turn = found.directory(found.first).tags[ifd.ORIENTATION].numbers(found.order)
    except (ValueError, KeyError, struct.error):
        return 1
    return turn[0] if turn and 1 <= turn[0] <= 8 else 1


def upright(
    block: bytes, size: tuple[int, int], thumbnail: bytes | None = None
) -> bytes:
    """The block for a picture that is upright and has this width and height.

    The orientation becomes 1, the sides are set, and numbers of pixels follow them.
    Nothing is moved.

    Args:
        block: of the source.
        size: width and height of the result.
        thumbnail: of the result, a JPEG file. It takes the place of the old one, if
            there is one. None: the old one is cut off, since it shows the source.
    """
    found = ifd.Structure(io.BytesIO(block))
    changed = bytearray(block)
    try:
        first = found.directory(found.first)
    except ValueError:
        return block
    _set(changed, found.order, first.tags.get(ifd.ORIENTATION), 1)
    inner = found.inside(first.tags, ifd.EXIF_DIRECTORY)
    if inner:
        _scale(changed, found.order, inner.tags, orientation_of(block), size)
    for tag, side in zip(_STORED_SIDES, size, strict=True):
        _set(changed, found.order, first.tags.get(tag), side)
    for tag, side in zip(_SIDES, size, strict=True):
        _set(changed, found.order, inner.tags.get(tag) if inner else None, side)
    if first.next:
        _exchange_thumbnail(changed, found, first, thumbnail)
    return bytes(changed)


def _scale(
    block: bytearray, order: str, tags: ifd.Tags, turn: int, size: tuple[int, int]
) -> None:
    """Change what counts in pixels of the source, if that states its own sides."""
    try:
        old = [tags[tag].numbers(order)[0] for tag in _SIDES]
    except (LookupError, struct.error):
        return
    if not all(old):
        return
    upright_sides = old[::-1] if turn > 4 else old
    ratios = [
        Fraction(new, side) for new, side in zip(size, upright_sides, strict=True)
    ]
    for tag in _SUBJECTS:
        value = tags.get(tag)
        if value and value.kind == _SHORT and value.count >= 2:
            x, y, *extent = value.numbers(order)
            place = _turned(x, y, old, turn)
            numbers = (*place, *(extent[::-1] if turn > 4 else extent))
            scaled = [round(n * r) for n, r in zip(numbers, ratios * 2, strict=False)]
            if all(0 <= number < 2**16 for number in scaled):
                struct.pack_into(f"{order}{len(scaled)}H", block, value.place, *scaled)
    _scale_sensor(block, order, [tags.get(tag) for tag in _SENSOR], turn, ratios)


def _scale_sensor(
    block: bytearray,
    order: str,
    values: list[ifd.Value | None],
    turn: int,
    ratios: list[Fraction],
) -> None:
    """Change the pixels of the sensor for a length, across and down."""
    known = [value for value in values if value and value.kind == _RATIONAL]
    numbers = [value.numbers(order) for value in known]
    if len(known) < 2 or not all(below for _, below, *_ in numbers):
        return
    stated = [Fraction(above, below) for above, below, *_ in numbers]
    for value, density, ratio in zip(
        known, stated[::-1] if turn > 4 else stated, ratios, strict=True
    ):
        scaled = (density * ratio).limit_denominator(10_000)
        if scaled.numerator < 2**32:
            pair = scaled.as_integer_ratio()
            struct.pack_into(f"{order}2I", block, value.place, *pair)


def _turned(x: int, y: int, old: list[int], turn: int) -> tuple[int, int]:
    """Where a pixel of a picture with these sides is once it is upright."""
    width, height = old
    if turn in (2, 3, 7, 8):
        x = width - 1 - x
    if turn in (3, 4, 6, 7):
        y = height - 1 - y
    return (y, x) if turn > 4 else (x, y)


def has_thumbnail(block: bytes) -> bool:
    """Whether there is a thumbnail, a JPEG file, in the block."""
    found = ifd.Structure(io.BytesIO(block))
    try:
        place = found.directory(found.first).next
        return bool(place) and _THUMBNAIL[0] in found.directory(place).tags
    except ValueError:
        return False


def _set(block: bytearray, order: str, value: ifd.Value | None, number: int) -> None:
    """Change a number where it lies, if it is there and the new one fits."""
    letter = {3: "H", 4: "I"}.get(value.kind if value else 0)
    if value is None or letter is None or number >= 2 ** (8 * struct.calcsize(letter)):
        return
    struct.pack_into(order + letter, block, value.place, number)


def _exchange_thumbnail(
    block: bytearray, found: ifd.Structure, first: ifd.Directory, new: bytes | None
) -> None:
    """Put the new thumbnail at the end; make the bytes of the old one zero."""
    try:
        tags = found.directory(first.next).tags
        start, size = (tags[tag].numbers(found.order)[0] for tag in _THUMBNAIL)
        if start <= max(value.place for value in tags.values()):
            raise ValueError("The thumbnail is not behind its tags.")
    except (ValueError, KeyError, struct.error):
        new = None
    else:
        if start + size == len(block):
            del block[start:]
        elif start + size < len(block):
            block[start : start + size] = bytes(size)
    if new is None:
        block[first.next_field : first.next_field + 4] = bytes(4)
        return
    _set(block, found.order, tags.get(ifd.ORIENTATION), 1)
    block += bytes(len(block) % 2)
    for tag, number in zip(_THUMBNAIL, (len(block), len(new)), strict=True):
        _set(block, found.order, tags[tag], number)
    block += new


def with_resolution(block: bytes | None, resolution: tuple[float, float]) -> bytes:
    """The block with a resolution in pixels per millimetre, if it has none yet."""
    if block is None:
        order = "<"
        tags = ifd.resolution_tags(resolution, order)
        return ifd.header(order) + ifd.entries(tags, order, 8, 0, False)
    found = ifd.Structure(io.BytesIO(block))
    try:
        first = found.directory(found.first)
    except ValueError:
        return block
    if ifd.X_RESOLUTION in first.tags:
        return block
    tags = first.tags | ifd.resolution_tags(resolution, found.order)
    start = len(block) + len(block) % 2
    added = ifd.entries(tags, found.order, start, first.next, False)
    head = block[:4] + struct.pack(f"{found.order}I", start)
    return head + block[8:] + bytes(len(block) % 2) + added


def resolution_of(block: bytes) -> tuple[float, float] | None:
    """The resolution that the block states, in pixels per millimetre."""
    found = ifd.Structure(io.BytesIO(block))
    try:
        tags = found.directory(found.first).tags
        unit = tags[ifd.RESOLUTION_UNIT].numbers(found.order)[0]
        sides = [
            above / below / _MILLIMETRES[unit]
            for tag in (ifd.X_RESOLUTION, ifd.Y_RESOLUTION)
            for above, below in [tags[tag].numbers(found.order)]
        ]
    except (ValueError, LookupError, ZeroDivisionError):
        return None
    return sides[0], sides[1]


def of_texts(described: Mapping[int, str], comment: str | None) -> bytes:
    """A block of texts.

    Args:
        described: texts of the first directory by their tags.
        comment: the user's comment, which is stored as UTF-16; None for none.
    """
    tags = {
        tag: ifd.Value(_TEXT, text.encode() + b"\0") for tag, text in described.items()
    }
    inside = {}
    if comment is not None:
        data = b"UNICODE\0" + comment.encode("utf-16-be")
        inside[ifd.EXIF_DIRECTORY] = ifd.Tree({_COMMENT: ifd.Value(_BYTES, data)})
    return ifd.header(">") + ifd.serialised(ifd.Tree(tags, inside), ">")


def has_maker_note(block: bytes) -> bool:
    """Whether there is a MakerNote in the block."""
    try:
        found = ifd.Structure(io.BytesIO(block))
        first = found.directory(found.first)
    except (ValueError, struct.error):
        return False
    inner = found.inside(first.tags, ifd.EXIF_DIRECTORY)
    return bool(inner and ifd.MAKER_NOTE in inner.tags)
