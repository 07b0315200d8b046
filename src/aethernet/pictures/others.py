"""Metadata of BMP and GIF, read from their bytes.

Sources: the headers of Windows' BMP, version 4 and 5; GIF89a.
"""

import struct
from pathlib import Path

import PIL.Image

from aethernet.pictures.colour import StatedColour
from aethernet.pictures.metadata import Metadata, Text

_CALIBRATED, _SRGB, _EMBEDDED, _LINKED = bytes(4), b"BGRs", b"DEBM", b"KNIL"
_XMP_OF_GIF = b"\x21\xff\x0bXMP DataXMP"
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
