"""PNG chunks: read from a file, and put into one while it is written.

Source: the PNG specification, third edition.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from aethernet.pictures.colour import StatedColour
from aethernet.pictures.exif import block_of
from aethernet.pictures.metadata import (
    Metadata,
    Text,
    code_points,
    photoshop_of,
)
from aethernet.pictures.timing import Timing

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD = len(SIGNATURE) + 25
"""Bytes before the first place where chunks may be put: signature and IHDR."""

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_XMP = b"XML:com.adobe.xmp"
_XMP_OF_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
_RAW = b"Raw profile type "
_IPTC = _RAW + b"iptc"
# Chunks that are carried in another way, or describe the old pixels or their coding.
_KNOWN = (
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"eXIf", b"pHYs", b"sBIT"),
    *(b"tIME", b"iDOT", b"cICP", b"gAMA", b"cHRM", b"sRGB", b"mDCV", b"cLLI"),
    *(b"acTL", b"fcTL", b"fdAT", b"CgBI"),
)
_NAMES = {
    b"bKGD": "the background colour",
    b"hIST": "the histogram of the palette",
    b"sPLT": "suggested palettes",
    b"caBX": "content credentials (C2PA)",
}
_PARTS = {
    "profile": "colour profile",
    "exif": "EXIF block",
    "xmp": "XMP packet",
    "photoshop": "IPTC block",
}
_LARGEST_PROFILE, _MOST_CHUNKS = 2**24, 100_000


def read(path: Path, known: Metadata) -> Metadata:
    """Add what the chunks of a PNG file say.

    Args:
        path: of the file.
        known: profile, EXIF and XMP as libvips read them.
    """
    chunks, behind = _chunks(path)
    first: dict[bytes, bytes] = {}
    for kind, data in chunks:
        first.setdefault(kind, data)
    known, texts, others = _without_raw_profiles(
        known, [Text(kind, data) for kind, data in chunks if kind in _TEXTS]
    )
    others += sorted(
        {
            _NAMES.get(kind, f"the chunk {kind.decode('latin-1')}")
            for kind, _ in chunks
            if kind not in (*_KNOWN, *_TEXTS)
        }
    )
    packets = [text for text in texts if _is_xmp(text)]
    # libvips looks only at what comes before the pixels.
    if known.xmp is None and packets:
        known = replace(known, xmp=packets[0].unpacked(_LARGEST_PROFILE) or None)
        others += ["XMP, which is damaged"] * (known.xmp is None)
    if known.exif is None and b"eXIf" in first:
        known = replace(known, exif=block_of(first[b"eXIf"]))
    depth = first[b"IHDR"][8]
    if any(bits < depth for bits in first.get(b"sBIT", b"")):
        others.append("the number of significant bits")
    if b"iCCP" in first and known.profile is None:  # by libpng's rules
        others.append("the colour profile, which is damaged or for other pixels")
    if len({text.data for text in packets}) > 1:
        others.append("another XMP packet")
    if b"eXIf" in first and known.exif is None:
        others.append("EXIF, which is damaged")
    if behind:
        others.append(f"{behind} bytes behind the picture")
    resolution, unitless = known.resolution, None
    if b"pHYs" in first:
        across, down, unit = struct.unpack(">IIB", first[b"pHYs"])
        if unit:
            resolution = across / 1000, down / 1000
        else:
            unitless = across, down
    return replace(
        known,
        colour=_colour(first),
        resolution=resolution,
        texts=tuple(text for text in texts if not _is_xmp(text)),
        changed=first.get(b"tIME"),
        unitless=unitless,
        others=tuple(others),
    )


def _chunks(path: Path) -> tuple[list[tuple[bytes, bytes]], int]:
    """All chunks but those of pixels, whose content is left out; bytes behind them."""
    found: list[tuple[bytes, bytes]] = []
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind == b"IEND":
                end = file.seek(size + 4, 1)
                return found, max(file.seek(0, 2) - end, 0)
            if kind in (b"IDAT", b"fdAT"):
                file.seek(size + 4, 1)
                continue
            data = file.read(size)
            file.seek(4, 1)
            found.append((kind, data))
            if len(found) > _MOST_CHUNKS:
                raise ValueError("The file has too many chunks.")
    return found, 0


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


def _is_xmp(text: Text) -> bool:
    return text.data.partition(b"\0")[0] == _XMP


def _without_raw_profiles(
    known: Metadata, texts: list[Text]
) -> tuple[Metadata, list[Text], list[str]]:
    """The metadata with what ImageMagick and others store as texts.

    Returns:
        That, the other texts, and names of what is there twice and differs.
    """
    left, twice = [], []
    for text in texts:
        keyword = text.data.partition(b"\0")[0]
        name = keyword.removeprefix(_RAW) if keyword.startswith(_RAW) else b""
        content = _raw_profile(text) if name else None
        found = content and _meaning(name, content)
        if not found:
            left.append(text)
            continue
        for part in ("profile", "exif", "xmp", "photoshop"):
            first, other = getattr(known, part), getattr(found, part)
            if not first:  # libvips reads some itself
                known = replace(known, **{part: other})
            elif other not in (None, first):
                twice.append(f"another {_PARTS[part]} in the text {text.keyword}")
    return known, left, twice


def _meaning(name: bytes, content: bytes) -> Metadata | None:
    """What a profile of that name says; None if it is unknown or damaged."""
    found = Metadata()
    if name in (b"iptc", b"8bim"):
        found = Metadata(photoshop=photoshop_of(content))
    elif name in (b"icc", b"icm"):
        found = Metadata(profile=content or None)
    elif name == b"xmp" or content.startswith(_XMP_OF_JPEG):
        found = Metadata(xmp=content.removeprefix(_XMP_OF_JPEG) or None)
    elif name in (b"exif", b"APP1"):
        found = Metadata(exif=block_of(content))
    return found if found != Metadata() else None


def _raw_profile(text: Text) -> bytes | None:
    """A profile that is stored as a text of hexadecimal digits."""
    content = text.data.partition(b"\0")[2]
    try:
        if text.kind == b"zTXt":
            content = zlib.decompressobj().decompress(content[1:], _LARGEST_PROFILE)
        match = re.fullmatch(rb"\s*[^\n]+\n\s*\d+\s+([0-9a-fA-F\s]*)", content)
        return bytes.fromhex(match[1].decode()) if match else None
    except (zlib.error, ValueError):
        return None


def resolution_chunk(resolution: tuple[float, float]) -> bytes:
    """The chunk that states pixels per millimetre."""
    across, down = (round(1000 * side) for side in resolution)
    return _chunk(b"pHYs", struct.pack(">IIB", across, down, 1))


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
    if metadata.resolution:
        made += resolution_chunk(metadata.resolution)
    elif metadata.unitless:
        made += _chunk(b"pHYs", struct.pack(">IIB", *metadata.unitless, 0))
    if metadata.exif:
        made += _chunk(b"eXIf", metadata.exif)
    if metadata.changed:
        made += _chunk(b"tIME", metadata.changed)
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


def animation_of(path: Path) -> tuple[Timing, bool, int]:
    """Timing of an animated PNG; whether its first picture is no frame; its bits.

    Raises:
        ValueError: when the file has no animation, or fewer frames than it says.
    """
    chunks, _ = _chunks(path)
    heads = [data for kind, data in chunks if kind == b"IHDR" and len(data) == 13]
    animations = [d for kind, d in chunks if kind == b"acTL" and len(d) == 8]
    frames = [data for kind, data in chunks if kind == b"fcTL" and len(data) == 26]
    if not heads or not animations:
        raise ValueError("The file has no animation.")
    count, plays = struct.unpack(">2I", animations[0])
    if len(frames) < count:
        raise ValueError("The file has fewer frames than it says.")
    seconds = []
    for data in frames[:count]:
        above, below = struct.unpack_from(">2H", data, 20)
        seconds.append(Fraction(above, below or 100))
    return Timing(tuple(seconds), plays), not _first_is_frame(path), heads[0][8]


def _first_is_frame(path: Path) -> bool:
    """Whether a frame of the animation is announced before the first pixels."""
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind in (b"fcTL", b"IDAT"):
                return kind == b"fcTL"
            file.seek(size + 4, 1)
    return False


def animated(frames: Iterator[bytes], timing: Timing, chunks: bytes) -> Iterator[bytes]:
    """The parts of an animated PNG.

    Args:
        frames: each as a PNG file of the same size and kind.
        timing: as many frames.
        chunks: as `chunks_for` makes them.
    """
    number = 0  # of the chunks that tell the order
    for n, (frame, seconds) in enumerate(zip(frames, timing.seconds, strict=True)):
        parts = [*_parts(frame)]
        header = parts[0][1]
        if n == 0:
            yield SIGNATURE + _chunk(b"IHDR", header)
            count = len(timing.seconds)
            yield _chunk(b"acTL", struct.pack(">2I", count, timing.plays)) + chunks
        above, below = _ratio(seconds)
        size = header[:8]
        control = struct.pack(">I8s2I2H2B", number, size, 0, 0, above, below, 0, 0)
        number += 1
        yield _chunk(b"fcTL", control)
        pixels = b"".join(data for kind, data in parts if kind == b"IDAT")
        if n == 0:
            yield _chunk(b"IDAT", pixels)
            continue
        yield _chunk(b"fdAT", struct.pack(">I", number) + pixels)
        number += 1
    yield _chunk(b"IEND", b"")


def _parts(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at < len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        yield kind, content[at + 8 : at + 8 + size]
        at += size + 12


def _ratio(seconds: Fraction) -> tuple[int, int]:
    """The time as two numbers of 16 bits, as exactly as these can say it."""
    near = seconds.limit_denominator(65535)
    if near.numerator > 65535:
        near = Fraction(min(round(seconds * 1000), 65535), 1000)
    if near.numerator > 65535 or near.denominator > 65535:
        near = Fraction(min(round(seconds), 65535))
    return near.numerator, near.denominator


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
