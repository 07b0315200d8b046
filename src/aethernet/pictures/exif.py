"""EXIF blocks: what is true of an upscaled picture, without moving anything in them.

A block is a TIFF structure; a MakerNote in it may hold offsets into the block. So
numbers are changed where they lie, and what is added comes behind the rest.
"""

import io
import struct

from aethernet.pictures import ifd

PREFIX = b"Exif\0\0"
"""What goes before a block in JPEG, and before it in `exif-data` of libvips."""


def block_of(data: bytes) -> bytes | None:
    """The block without a prefix; None unless it is a TIFF structure."""
    data = data.removeprefix(PREFIX)
    try:
        ifd.Structure(io.BytesIO(data))
    except (ValueError, struct.error):
        return None
    return data


def upright(block: bytes, size: tuple[int, int]) -> bytes:
    """The block for a picture that is upright and has this width and height.

    The orientation becomes 1, the sides are set, and the thumbnail, which shows the
    picture as it was, is cut off. Nothing is moved.
    """
    found = ifd.Structure(io.BytesIO(block))
    changed = bytearray(block)
    try:
        first = found.directory(found.first)
    except ValueError:
        return block
    _set(changed, found.order, first.tags.get(ifd.ORIENTATION), 1)
    inner = found.inside(first.tags, ifd.EXIF_DIRECTORY)
    for tag, side in zip((40962, 40963), size, strict=True):
        _set(changed, found.order, inner.tags.get(tag) if inner else None, side)
    if first.next:
        changed[first.next_field : first.next_field + 4] = bytes(4)
        _wipe_thumbnail(changed, found, first.next)
    return bytes(changed)


def _set(block: bytearray, order: str, value: ifd.Value | None, number: int) -> None:
    """Change a number where it lies, if it is there and the new one fits."""
    letter = {3: "H", 4: "I"}.get(value.kind if value else 0)
    if value is None or letter is None or number >= 2 ** (8 * struct.calcsize(letter)):
        return
    struct.pack_into(order + letter, block, value.place, number)


def _wipe_thumbnail(block: bytearray, found: ifd.Structure, place: int) -> None:
    """Drop the bytes of the thumbnail if they end the block, else make them zero."""
    try:
        tags = found.directory(place).tags
        start, size = (tags[tag].numbers(found.order)[0] for tag in (513, 514))
    except (ValueError, KeyError, struct.error):
        return
    if start + size == len(block):
        del block[start:]
    elif start + size < len(block):
        block[start : start + size] = bytes(size)


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


def has_maker_note(block: bytes) -> bool:
    """Whether there is a MakerNote in the block."""
    try:
        found = ifd.Structure(io.BytesIO(block))
        first = found.directory(found.first)
    except (ValueError, struct.error):
        return False
    inner = found.inside(first.tags, ifd.EXIF_DIRECTORY)
    return bool(inner and ifd.MAKER_NOTE in inner.tags)
