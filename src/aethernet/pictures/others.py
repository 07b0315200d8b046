"""Metadata of BMP and GIF, read from their bytes.

Sources: the headers of Windows' BMP, version 4 and 5; GIF89a.
"""

import re
import struct
from pathlib import Path

import PIL.Image

from aethernet.pictures.colour import StatedColour
from aethernet.pictures.metadata import Metadata, Text

_CALIBRATED, _SRGB, _EMBEDDED, _LINKED = bytes(4), b"BGRs", b"DEBM", b"KNIL"
_XMP_OF_GIF = b"\x21\xff\x0bXMP DataXMP"
_PICTURE, _EXTENSION, _END = 0x2C, 0x21, 0x3B
_NOTHING = re.compile(b"\0*")
_TRAILER = b"\x01\xff\xfe"
"""How the 257 bytes behind XMP in a GIF begin."""


def read_bmp(path: Path) -> Metadata:
    """Colour and profile of a BMP file."""
    with path.open("rb") as file:
        head = file.read(14 + 124)
        if len(head) < 18:
            return Metadata()
        (size,) = struct.unpack_from("<I", head, 14)
        if size < 108 or len(head) < 14 + 108:
            return Metadata()
        kind = head[14 + 56 : 14 + 60]
        if kind == _SRGB:
            return Metadata(colour=StatedColour(srgb=0))
        if kind == _CALIBRATED:
            return Metadata(colour=_calibrated(head))
        if kind == _LINKED:
            return Metadata(others=("the colour profile, which is in another file",))
        if kind == _EMBEDDED and size >= 124 and len(head) >= 14 + 124:
            start, length = struct.unpack_from("<II", head, 14 + 112)
            file.seek(14 + start)
            return Metadata(profile=file.read(length) or None)
    return Metadata()


def _calibrated(head: bytes) -> StatedColour:
    """Gamma and the XYZ of the primaries, whose sum is that of white."""
    corners = struct.unpack_from("<9i", head, 14 + 60)
    gammas = struct.unpack_from("<3I", head, 14 + 96)
    gamma = None
    if gammas[0] and len(set(gammas)) == 1:
        gamma = round(100_000 * 65536 / gammas[0])
    rgb = [corners[i : i + 3] for i in (0, 3, 6)]
    white = tuple(map(sum, zip(*rgb, strict=True)))
    if min(map(sum, rgb)) <= 0:
        return StatedColour(gamma=gamma)
    pairs = [(x / (x + y + z), y / (x + y + z)) for x, y, z in (white, *rgb)]
    numbers = tuple(round(value * 100_000) for pair in pairs for value in pair)
    return StatedColour(gamma=gamma, chromaticities=numbers)


def read_gif(path: Path) -> Metadata:
    """Comments and XMP of a GIF file of one frame."""
    with PIL.Image.open(path, formats=["GIF"]) as image:
        comment = image.info.get("comment")
    texts = (Text(b"COM", comment),) if comment else ()
    content = path.read_bytes()
    start = content.find(_XMP_OF_GIF)
    end = content.find(_TRAILER, start)
    if start < 0 or end < 0:
        return Metadata(texts=texts)
    return Metadata(texts=texts, xmp=content[start + len(_XMP_OF_GIF) : end])


def gif_with_metadata(content: bytes, metadata: Metadata) -> bytes:
    """A GIF file with comments and XMP added before its first picture.

    Args:
        content: of a file without them.
        metadata: of which texts of the kind "COM" are comments.
    """
    added = b""
    for text in metadata.texts:
        pieces = [text.data[i : i + 255] for i in range(0, len(text.data), 255)]
        blocks = b"".join(bytes([len(piece)]) + piece for piece in pieces)
        added += b"\x21\xfe" + blocks + b"\0"
    if metadata.xmp:
        # Readers that know only blocks find their way out by these bytes.
        way_out = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
        added += _XMP_OF_GIF + metadata.xmp + way_out
    start = _behind_palette(content, 10, 13)
    return content[:start] + added + content[start:]


def count_gif_frames(path: Path) -> int | None:
    """How many pictures a GIF file has; None if it ends inside of one."""
    content = path.read_bytes()
    at, frames = _behind_palette(content, 10, 13), 0
    while at < len(content) and content[at] != _END:
        if content[at] == _PICTURE:
            frames += 1
            behind = _behind_palette(content, at + 9, at + 10)
            at = _behind_blocks(content, behind + 1)  # after the size of codes
        elif content[at] == _EXTENSION:
            at = _behind_blocks(content, at + 2)
        elif content[at]:
            break  # readers stop here, too
        else:
            nothing = _NOTHING.match(content, at)
            assert nothing
            at = nothing.end()
    return frames if at <= len(content) else None


def _behind_palette(content: bytes, flags: int, start: int) -> int:
    """Where a palette ends that begins at `start`, if the flags announce one."""
    announced = content[flags] if flags < len(content) else 0
    return start + (3 * 2 ** ((announced & 7) + 1) if announced & 0x80 else 0)


def _behind_blocks(content: bytes, at: int) -> int:
    """Where blocks end that begin at `at`; behind the content if they do not."""
    while at < len(content) and content[at]:
        at += 1 + content[at]
    return at + 1
