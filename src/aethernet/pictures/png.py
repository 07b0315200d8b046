"""PNG chunks: read from a file, and put into one while it is written.

Source: the PNG specification, third edition.
"""

import re
import struct
import zlib
from pathlib import Path

from aethernet.pictures.colour import StatedColour
from aethernet.pictures.metadata import (
    Metadata,
    Text,
    code_points,
    photoshop_of,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD = len(SIGNATURE) + 25
"""Bytes before the first place where chunks may be put: signature and IHDR."""

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_XMP = b"XML:com.adobe.xmp"
_IPTC = b"Raw profile type iptc"
# Chunks that are carried in another way, or describe the old pixels or their coding.
_KNOWN = (
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"eXIf", b"pHYs", b"sBIT"),
    *(b"hIST", b"tIME", b"iDOT", b"cICP", b"gAMA", b"cHRM", b"sRGB", b"mDCV", b"cLLI"),
    *(b"acTL", b"fcTL", b"fdAT", b"CgBI"),
)
_NAMES = {
    b"bKGD": "the background colour",
    b"sPLT": "suggested palettes",
    b"caBX": "content credentials (C2PA)",
}
_LARGEST_PROFILE, _MOST_CHUNKS = 2**24, 100_000


def read(path: Path, known: Metadata) -> Metadata:
    """Add what the chunks of a PNG file say.

    Args:
        path: of the file.
        known: profile, EXIF and XMP as libvips read them.
    """
    chunks = _chunks(path)
    first: dict[bytes, bytes] = {}
    for kind, data in chunks:
        first.setdefault(kind, data)
    texts = [Text(kind, data) for kind, data in chunks if kind in _TEXTS]
    photoshop = None
    for text in texts:
        if text.data.startswith(_IPTC + b"\0"):
            photoshop = _raw_profile(text)
    others = sorted(
        {
            _NAMES.get(kind, f"the chunk {kind.decode('latin-1')}")
            for kind, _ in chunks
            if kind not in (*_KNOWN, *_TEXTS)
        }
    )
    left = (_XMP, *((_IPTC,) if photoshop else ()))
    return Metadata(
        profile=known.profile,
        colour=_colour(first),
        exif=known.exif,
        xmp=known.xmp,
        photoshop=photoshop,
        texts=tuple(t for t in texts if t.data.partition(b"\0")[0] not in left),
        others=tuple(others),
    )


def _chunks(path: Path) -> list[tuple[bytes, bytes]]:
    """All chunks but those of pixels, whose content is left out."""
    found = []
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind in (b"IDAT", b"fdAT", b"IEND"):
                file.seek(size + 4, 1)
                continue
            data = file.read(size)
            file.seek(4, 1)
            found.append((kind, data))
            if len(found) > _MOST_CHUNKS:
                raise ValueError("The file has too many chunks.")
    return found


def _colour(chunks: dict[bytes, bytes]) -> StatedColour:
    def of(kind: bytes, size: int) -> bytes | None:
        data = chunks.get(kind)
        return data if data is not None and len(data) == size else None

    cicp, gamma = of(b"cICP", 4), of(b"gAMA", 4)
    corners, srgb = of(b"cHRM", 32), of(b"sRGB", 1)
    return StatedColour(
        cicp=code_points(cicp[0], cicp[1]) if cicp else None,
        narrow=bool(cicp) and cicp[3] == 0 if cicp else False,
        srgb=srgb[0] if srgb else None,
        gamma=struct.unpack(">I", gamma)[0] if gamma else None,
        chromaticities=struct.unpack(">8I", corners) if corners else None,
        mastering=of(b"mDCV", 24),
        light=of(b"cLLI", 8),
    )


def _raw_profile(text: Text) -> bytes | None:
    """IPTC that ImageMagick and others store as a text of hexadecimal digits."""
    content = text.data.partition(b"\0")[2]
    try:
        if text.kind == b"zTXt":
            content = zlib.decompressobj().decompress(content[1:], _LARGEST_PROFILE)
        match = re.fullmatch(rb"\s*iptc\s+\d+\s+([0-9a-fA-F\s]*)", content)
        return photoshop_of(bytes.fromhex(match[1].decode())) if match else None
    except (zlib.error, ValueError):
        return None


def chunks_for(metadata: Metadata) -> bytes:
    """The chunks that hold the metadata, to be put behind IHDR."""
    colour = metadata.colour
    made = b""
    if colour.mastering:
        made += _chunk(b"mDCV", colour.mastering)
    if colour.light:
        made += _chunk(b"cLLI", colour.light)
    if colour.cicp:
        made += _chunk(b"cICP", bytes((*colour.cicp, 0, 0 if colour.narrow else 1)))
    if metadata.profile:
        made += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.profile))
    elif colour.srgb is not None:
        made += _chunk(b"sRGB", bytes((colour.srgb,)))
    if colour.gamma is not None:
        made += _chunk(b"gAMA", struct.pack(">I", colour.gamma))
    if colour.chromaticities is not None:
        made += _chunk(b"cHRM", struct.pack(">8I", *colour.chromaticities))
    if metadata.exif:
        made += _chunk(b"eXIf", metadata.exif)
    if metadata.xmp:
        made += _chunk(b"iTXt", _XMP + bytes(5) + metadata.xmp)
    if metadata.photoshop:
        made += _chunk(b"zTXt", _IPTC + b"\0\0" + _iptc_text(metadata.photoshop))
    for text in metadata.texts:
        kind, data = (text.kind, text.data)
        if kind == b"COM":
            kind, data = _comment(text.data)
        made += _chunk(kind, data)
    return made


def _iptc_text(photoshop: bytes) -> bytes:
    digits = photoshop.hex()
    lines = [digits[i : i + 72] for i in range(0, len(digits), 72)]
    return zlib.compress(
        "\n".join(["", "iptc", f"{len(photoshop):8}", *lines, ""]).encode()
    )


def _comment(data: bytes) -> tuple[bytes, bytes]:
    """A comment of another format as a text chunk."""
    data = data.rstrip(b"\0").replace(b"\0", b" ")
    try:
        data.decode()
    except UnicodeDecodeError:
        return b"tEXt", b"Comment\0" + data
    return b"iTXt", b"Comment" + bytes(5) + data


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
