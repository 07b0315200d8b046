"""WebP chunks: put into a file that libvips has encoded.

Source: the WebP container specification.
"""

import struct
from dataclasses import replace
from pathlib import Path

from aethernet.pictures.metadata import MOST_FILLING, Metadata

_PROFILE, _ALPHA, _EXIF, _XMP, _ANIMATION = 0x20, 0x10, 0x08, 0x04, 0x02
_PIXELS = (b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF")
_KNOWN = (
    *(b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP "),
)
_ONCE = {b"EXIF": "another EXIF block", b"XMP ": "another XMP packet"}


def read(path: Path, known: Metadata) -> Metadata:
    """Add the names of the chunks that are carried nowhere.

    Args:
        path: of the file.
        known: profile, EXIF and XMP as libvips read them.
    """
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[4:8], "little")
    chunks = _chunks(content[:end])
    kinds = {kind for kind, _ in chunks} - {*_KNOWN}
    names = [f"the chunk {kind.decode('latin-1').strip()}" for kind in sorted(kinds)]
    for kind, name in _ONCE.items():
        if len({data for found, data in chunks if found == kind}) > 1:
            names.append(name)
    if (behind := len(content) - end - end % 2) > MOST_FILLING:
        names.append(f"{behind} bytes behind the picture")
    return replace(known, others=tuple(names))


def with_metadata(
    content: bytes, size: tuple[int, int], alpha: bool, metadata: Metadata
) -> bytes:
    """The file with the profile, EXIF and XMP.

    Args:
        content: of a file without them.
        size: width and height of the picture.
        alpha: whether it has any.
        metadata: to add.
    """
    if not (metadata.profile or metadata.exif or metadata.xmp):
        return content
    pixels = [c for c in _chunks(content) if c[0] in _PIXELS]
    flags = _ALPHA if alpha else 0
    if any(kind == b"ANIM" for kind, _ in pixels):
        flags |= _ANIMATION
    before, behind = [], []
    if metadata.profile:
        flags |= _PROFILE
        before.append((b"ICCP", metadata.profile))
    if metadata.exif:
        flags |= _EXIF
        behind.append((b"EXIF", metadata.exif))
    if metadata.xmp:
        flags |= _XMP
        behind.append((b"XMP ", metadata.xmp))
    sides = b"".join(struct.pack("<I", side - 1)[:3] for side in size)
    first = (b"VP8X", struct.pack("<I", flags) + sides)
    body = b"".join(
        kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
        for kind, data in (first, *before, *pixels, *behind)
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], 12
    while place + 8 <= len(content):
        kind, size = struct.unpack_from("<4sI", content, place)
        found.append((kind, content[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    return found
