"""Metadata of BMP and GIF, read from their bytes.

Sources: the headers of Windows' BMP, version 4 and 5; GIF89a.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from aethernet.pictures.colour import StatedColour
from aethernet.pictures.metadata import MOST_FILLING, Metadata, Text

_CALIBRATED, _SRGB, _EMBEDDED, _LINKED = bytes(4), b"BGRs", b"DEBM", b"KNIL"
_EXTENSION, _PICTURE, _END = 0x21, 0x2C, 0x3B
_COMMENT, _PLAIN_TEXT, _APPLICATION = 0xFE, 0x01, 0xFF
_XMP_OF_GIF, _PROFILE_OF_GIF = b"XMP DataXMP", b"ICCRGBG1012"
_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
_NOTHING = re.compile(b"\0*")
_TRAILER = b"\x01\xff\xfe"
"""How the 257 bytes behind XMP in a GIF begin."""


def read_bmp(path: Path) -> Metadata:
    """Resolution, colour and profile of a BMP file."""
    with path.open("rb") as file:
        head = file.read(14 + 124)
        size = int.from_bytes(head[14:18], "little")
        found = Metadata()
        if size >= 40 and len(head) >= 14 + 40:
            across, down = struct.unpack_from("<2i", head, 14 + 24)
            found = Metadata(resolution=(across / 1000, down / 1000))
        whole = int.from_bytes(head[2:6], "little")
        if whole > 14 + size:  # some programs do not say how long the file is
            behind = _behind(path.stat().st_size - whole)
            found = replace(found, others=tuple(behind))
        if size < 108 or len(head) < 14 + 108:
            return found
        kind = head[14 + 56 : 14 + 60]
        if kind == _SRGB:
            return replace(found, colour=StatedColour(srgb=0))
        if kind == _CALIBRATED:
            return replace(found, colour=_calibrated(head))
        if kind == _LINKED:
            name = "the colour profile, which is in another file"
            return replace(found, others=(*found.others, name))
        if kind == _EMBEDDED and size >= 124 and len(head) >= 14 + 124:
            start, length = struct.unpack_from("<II", head, 14 + 112)
            file.seek(14 + start)
            return replace(found, profile=file.read(length) or None)
    return found


def _behind(count: int) -> list[str]:
    """The name of so many bytes behind a picture."""
    return [f"{count} bytes behind the picture"] if count > MOST_FILLING else []


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
    """Comments, XMP and profile of a GIF file of one frame."""
    content = path.read_bytes()
    comments, others = [], []
    found = Metadata()
    for label, name, data in _extensions(content):
        if label == _END:
            others += _behind(len(data))
        elif label == _COMMENT:
            comments.append(data)
        elif label == _PLAIN_TEXT:
            others.append("a text that is drawn on the picture")
        elif name == _XMP_OF_GIF:
            found = replace(found, xmp=data)
        elif name == _PROFILE_OF_GIF:
            found = replace(found, profile=data)
        elif label == _APPLICATION and name not in _LOOPS:
            others.append(f"the data of {name.decode('latin-1').strip()}")
    aspect = content[12]
    return replace(
        found,
        texts=(Text(b"COM", b"\n".join(comments)),) if comments else (),
        unitless=(64, aspect + 15) if aspect else None,
        others=tuple(dict.fromkeys(others)),
    )


def _extensions(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Label, name (of an application) and data of a GIF's extensions.

    At last come the bytes behind the picture.

    Raises:
        IndexError: when the file ends early.
    """
    place = 13 + _palette(content[10])
    while content[place] != _END:
        if content[place] == _PICTURE:
            place += 10 + _palette(content[place + 9]) + 1
            _, place = _blocks(content, place)
            continue
        if content[place] != _EXTENSION:
            return
        label, place, name = content[place + 1], place + 2, b""
        if label in (_APPLICATION, _PLAIN_TEXT):
            name = content[place + 1 : place + 1 + content[place]]
            place += 1 + len(name)
        end = content.find(_TRAILER, place)
        if name == _XMP_OF_GIF and end >= 0:  # it is not in blocks
            data, place = content[place:end], end + 258
        else:
            data, place = _blocks(content, place)
        yield label, name, data
    yield _END, b"", content[place + 1 :]


def _palette(flags: int) -> int:
    """Bytes of a palette."""
    return 3 * 2 ** (1 + (flags & 7)) if flags & 0x80 else 0


def _blocks(content: bytes, place: int) -> tuple[bytes, int]:
    """The data of the blocks that begin there, and where they end."""
    parts = []
    while size := content[place]:
        parts.append(content[place + 1 : place + 1 + size])
        place += 1 + size
    return b"".join(parts), place + 1


def gif_with_metadata(content: bytes, metadata: Metadata) -> bytes:
    """A GIF file with comments, profile and XMP added before its first picture.

    Args:
        content: of a file without them.
        metadata: of which texts of the kind "COM" are comments.
    """
    added = b""
    for text in metadata.texts:
        added += bytes((_EXTENSION, _COMMENT)) + _in_blocks(text.data)
    application = bytes((_EXTENSION, _APPLICATION, 11))
    if metadata.profile:
        added += application + _PROFILE_OF_GIF + _in_blocks(metadata.profile)
    if metadata.xmp:
        # Readers that know only blocks find their way out by the last bytes.
        way_out = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
        added += application + _XMP_OF_GIF + metadata.xmp + way_out
    start = 13 + _palette(content[10])
    return content[:start] + added + content[start:]


def _in_blocks(data: bytes) -> bytes:
    pieces = [data[i : i + 255] for i in range(0, len(data), 255)]
    return b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\0"


def count_gif_frames(path: Path) -> int | None:
    """How many pictures a GIF file has; None if it ends inside of one."""
    content = path.read_bytes()
    frames = 0
    try:
        place = 13 + _palette(content[10])
        while place < len(content) and content[place] in (0, _PICTURE, _EXTENSION):
            if content[place] == _PICTURE:
                frames += 1
                place += 10 + _palette(content[place + 9]) + 1
                _, place = _blocks(content, place)
            elif content[place] == _EXTENSION:
                _, place = _blocks(content, place + 2)
            else:
                nothing = _NOTHING.match(content, place)
                assert nothing
                place = nothing.end()
    except IndexError:
        return None
    return frames
