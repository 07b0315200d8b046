"""JPEG segments: read from a file, and put into one while it is written.

Sources: JFIF 1.02, XMP part 3, CIPA DC-007 (several pictures in one file), and the
Ultra HDR image format 1.1 of Android with ISO 21496-1.
"""

import hashlib
import math
import mmap
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from aethernet.pictures.exif import PREFIX
from aethernet.pictures.metadata import (
    MOST_FILLING,
    GainMap,
    Metadata,
    Text,
    more_pictures,
    photoshop_of,
    resources_by_pixels,
)

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_ICC = b"ICC_PROFILE\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_DUCKY = b"Ducky"
_PICTURES = b"MPF\0"
_ISO_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1\0"
# What is carried otherwise or describes the coding: by the marker and the beginning.
_KNOWN = (
    *((0xE0, b"JFIF\0"), (0xE0, b"JFXX\0"), (0xE1, PREFIX), (0xE1, _XMP)),
    *((0xE1, _EXTENSION), (0xE2, _ICC), (0xE2, _PICTURES), (0xED, _PHOTOSHOP)),
    *((0xE2, _ISO_GAIN_MAP), (0xEE, b"Adobe")),
)
_NAMES = {
    (0xEB, b"JP"): "content credentials (JUMBF)",
    (0xE2, b"FPXR"): "FlashPix data",
}
_GAIN_MAPS = (b"http://ns.adobe.com/hdr-gain-map/1.0/", _ISO_GAIN_MAP, b"hdrgainmap")

_LARGEST = 65533
"""Bytes that a segment holds."""
_MOST_SEGMENTS, _MOST_PICTURES = 100_000, 100
HEAD = 2
"""Bytes before the first place where segments may be put."""


@dataclass(frozen=True)
class _Segment:
    marker: int
    data: bytes


def read(path: Path, known: Metadata, turn: int, size: tuple[int, int]) -> Metadata:
    """Add what the segments of a JPEG file say, as `read_from` does."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=1) as content:
        return read_from(content, known, turn, size)


def read_from(
    content: "mmap.mmap | bytes", known: Metadata, turn: int, size: tuple[int, int]
) -> Metadata:
    """Add what the segments of a JPEG say.

    Args:
        content: of the file.
        known: profile, EXIF and XMP as libvips read them.
        turn: the EXIF orientation, which is applied to the pixels.
        size: width and height of the upright picture.
    """
    segments, end = _segments(content, 0)
    attached = _attached(content, end)
    rest = len(content) - end
    gain_map, others = None, []
    for jpeg in attached:
        if gain_map is None and _is_gain_map(jpeg):
            markers = [s.data for s in segments if s.data.startswith(_ISO_GAIN_MAP)]
            gain_map = GainMap(jpeg, size, turn, tuple(markers))
    others += more_pictures(len(attached) - bool(gain_map))
    behind = rest - sum(map(len, attached))
    if behind > MOST_FILLING:
        others.append(f"{behind} bytes behind the picture, a film perhaps")
    if any(map(_has_thumbnail, segments)):
        others.append("the thumbnail")
    if known.profile is None and any(_is(s, 0xE2, _ICC) for s in segments):
        others.append("the colour profile, which is damaged")
    others += sorted({name for s in segments if (name := _unknown(s))})
    others += _twice(segments)
    # libvips takes other segments of this kind for XMP.
    packets = [s.data[len(_XMP) :] for s in segments if _is(s, 0xE1, _XMP)]
    extended = any(_is(s, 0xE1, _EXTENSION) for s in segments)
    if extended and not (packets and b"HasExtendedXMP" in packets[0]):
        others.append("extended XMP without its beginning")
    photoshop = b"".join(
        s.data[len(_PHOTOSHOP) :] for s in segments if _is(s, 0xED, _PHOTOSHOP)
    )
    others += resources_by_pixels(photoshop)
    return replace(
        known,
        xmp=_with_extension(packets[0] if packets else None, segments),
        photoshop=photoshop_of(photoshop),
        texts=tuple(Text(b"COM", s.data) for s in segments if s.marker == 0xFE),
        gain_map=gain_map,
        unitless=next(
            (
                struct.unpack_from(">HH", s.data, 8)
                for s in segments
                if _is(s, 0xE0, b"JFIF\0") and len(s.data) >= 12 and not s.data[7]
            ),
            None,
        ),
        others=tuple(others),
    )


def _is(segment: _Segment, marker: int, start: bytes) -> bool:
    return segment.marker == marker and segment.data.startswith(start)


def _has_thumbnail(segment: _Segment) -> bool:
    """Whether JFIF, which states the sides of one at the end, has a thumbnail."""
    if _is(segment, 0xE0, b"JFIF\0"):
        return len(segment.data) >= 14 and all(segment.data[12:14])
    return _is(segment, 0xE0, b"JFXX\0")


def _has_texts(segment: _Segment) -> bool:
    """Whether Photoshop's "save for the web" has put texts beside the quality."""
    place = len(_DUCKY)
    while place + 4 <= len(segment.data):
        kind, size = struct.unpack_from(">2H", segment.data, place)
        if kind in (2, 3):  # a comment, and who has the rights
            return True
        place += 4 + size
    return False


def _twice(segments: list[_Segment]) -> list[str]:
    """Names of what is there a second time, and differs."""
    names = {PREFIX: "another EXIF block", _XMP: "another XMP packet"}
    return [
        name
        for start, name in names.items()
        if len({s.data for s in segments if _is(s, 0xE1, start)}) > 1
    ]


def _unknown(segment: _Segment) -> str | None:
    """The name of an application segment that is carried nowhere."""
    if _is(segment, 0xEC, _DUCKY):
        return "the texts of Ducky" if _has_texts(segment) else None
    if not 0xE0 <= segment.marker <= 0xEF or any(_is(segment, *k) for k in _KNOWN):
        return None
    for kind, name in _NAMES.items():
        if _is(segment, *kind):
            return name
    start = re.match(rb"[\x20-\x7e]{0,12}", segment.data)
    label = f" ({start[0].decode()})" if start and len(start[0]) > 2 else ""
    return f"the segment APP{segment.marker - 0xE0}{label}"


def _segments(content: "mmap.mmap | bytes", start: int) -> tuple[list[_Segment], int]:
    """The segments of the JPEG that begins at `start`, and where it ends."""
    found: list[_Segment] = []
    place = start + 2
    scan_end = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
    while place + 4 <= len(content):
        if content[place] != 0xFF:
            break
        marker = content[place + 1]
        if marker == 0xFF:  # filling
            place += 1
            continue
        if marker == 0xD9:
            return found, place + 2
        (size,) = struct.unpack(">H", content[place + 2 : place + 4])
        found.append(_Segment(marker, bytes(content[place + 4 : place + 2 + size])))
        if len(found) > _MOST_SEGMENTS:
            raise ValueError("The file has too many segments.")
        place += 2 + size
        if marker == 0xDA:
            match = scan_end.search(content, place)
            place = match.start() if match else len(content)
    if content[place : place + 2] == b"\xff\xd9":
        return found, place + 2
    return found, len(content)


def _attached(content: "mmap.mmap | bytes", end: int) -> list[bytes]:
    """The JPEG files that lie behind the first one."""
    found: list[bytes] = []
    place = end
    while len(found) < _MOST_PICTURES:
        start = content.find(b"\xff\xd8\xff", place)
        # Between pictures, writers leave some zeros at most.
        if start < 0 or content[place:start].strip(b"\0"):
            return found
        _, place = _segments(content, start)
        found.append(bytes(content[start:place]))
    return found


def _is_gain_map(jpeg: bytes) -> bool:
    segments, _ = _segments(jpeg, 0)
    return any(name in s.data for s in segments for name in _GAIN_MAPS)


def _with_extension(xmp: bytes | None, segments: Iterable[_Segment]) -> bytes | None:
    """The XMP with the part that did not fit into one segment."""
    match = xmp and re.search(
        rb"\s*\w+:HasExtendedXMP\s*=\s*[\"']([0-9A-Fa-f]{32})[\"']", xmp
    )
    if not xmp or not match:
        return xmp
    parts: dict[int, bytes] = {}
    for segment in segments:
        if _is(segment, 0xE1, _EXTENSION + match[1]):
            start = len(_EXTENSION) + 32
            _, offset = struct.unpack_from(">II", segment.data, start)
            parts[offset] = segment.data[start + 8 :]
    extension = b"".join(part for _, part in sorted(parts.items()))
    return _merged(xmp.replace(match[0], b""), extension)


def _merged(xmp: bytes, extension: bytes) -> bytes:
    """One packet with the descriptions of both."""
    place = xmp.rfind(b"</rdf:RDF>")
    start = extension.find(b"<rdf:RDF")
    start, end = extension.find(b">", start) + 1, extension.rfind(b"</rdf:RDF>")
    if place < 0 or not 0 < start <= end:
        return xmp
    # Prefixes that it declares outside of what is taken from it.
    outside = re.findall(rb"xmlns:\w+\s*=\s*(?:\"[^\"]*\"|'[^']*')", extension[:start])
    declared = re.findall(rb"xmlns:\w+", xmp[: xmp.find(b">", xmp.find(b"<rdf:RDF"))])
    missing = [name for name in outside if name.split(b"=")[0].strip() not in declared]
    packet = xmp[:place] + extension[start:end] + xmp[place:]
    if missing:
        head, name, tail = packet.partition(b"<rdf:RDF")
        packet = head + name + b" " + b" ".join(missing) + tail
    return packet


def segments_for(metadata: Metadata) -> tuple[bytes, list[str]]:
    """The segments that hold the metadata, to be put at the beginning.

    Args:
        metadata: to write.

    Returns:
        The segments, and names of what does not fit into them.
    """
    unit, sides = _density(metadata)
    lost = []
    if not all(0 < side < 2**16 for side in sides):
        unit, sides = 0, (1, 1)
        lost.append("the resolution")
    made = _jfif(unit, sides)
    if metadata.exif:
        if len(PREFIX + metadata.exif) <= _LARGEST:
            made += _segment(0xE1, PREFIX + metadata.exif)
        else:
            lost.append("EXIF, which is larger than 64 KB")
    if metadata.xmp:
        made += _xmp_segments(metadata.xmp)
    if metadata.profile:
        room = _LARGEST - len(_ICC) - 2
        profile = metadata.profile
        parts = [profile[i : i + room] for i in range(0, len(profile), room)]
        if len(parts) <= 255:
            for number, part in enumerate(parts, 1):
                numbered = bytes((number, len(parts)))
                made += _segment(0xE2, _ICC + numbered + part)
        else:
            lost.append("the colour profile, which is larger than 16 MB")
    if metadata.photoshop:
        room = _LARGEST - len(_PHOTOSHOP)
        for start in range(0, len(metadata.photoshop), room):
            part = metadata.photoshop[start : start + room]
            made += _segment(0xED, _PHOTOSHOP + part)
    for text in metadata.texts:
        made += _segment(0xFE, text.data[:_LARGEST])
        if len(text.data) > _LARGEST:
            lost.append("the end of a comment of more than 64 KB")
    return made, lost


def _density(metadata: Metadata) -> tuple[int, tuple[int, int]]:
    """JFIF's unit (1: inches; 0: none), and pixels across and down for one of it."""
    if metadata.resolution:
        across, down = metadata.resolution
        return 1, (round(25.4 * across), round(25.4 * down))
    across, down = metadata.unitless or (1, 1)
    shared = math.gcd(across, down) or 1
    return 0, (across // shared, down // shared)


def _jfif(unit: int, sides: tuple[int, int]) -> bytes:
    """JFIF's segment, which libvips leaves out."""
    return _segment(
        0xE0, b"JFIF\0" + struct.pack(">HBHHBB", 0x0102, unit, *sides, 0, 0)
    )


def _segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def _xmp_segments(xmp: bytes) -> bytes:
    """XMP in one segment; if it is larger, in the extension that XMP defines."""
    if len(_XMP + xmp) <= _LARGEST:
        return _segment(0xE1, _XMP + xmp)
    body = re.sub(rb"<\?xpacket.*?\?>", b"", xmp).strip()
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest().upper().encode()
    first = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        b'rdf:about="" xmlns:xmpNote="http://ns.adobe.com/xmp/note/" '
        b'xmpNote:HasExtendedXMP="' + digest + b'"/></rdf:RDF></x:xmpmeta>'
    )
    made = _segment(0xE1, _XMP + first)
    room = _LARGEST - len(_EXTENSION) - 40
    for start in range(0, len(body), room):
        place = struct.pack(">II", len(body), start)
        part = body[start : start + room]
        made += _segment(0xE1, _EXTENSION + digest + place + part)
    return made


def gain_map_with(gain_map: GainMap, jpeg: bytes) -> bytes:
    """The gain map with new pixels: another JPEG with the old one's metadata."""
    segments, _ = _segments(gain_map.jpeg, 0)
    kept = b"".join(
        _segment(s.marker, s.data)
        for s in segments
        if 0xE1 <= s.marker <= 0xEF and not _is(s, 0xE2, _PICTURES) and s.marker != 0xEE
    )
    return jpeg[:HEAD] + _jfif(0, (1, 1)) + kept + jpeg[HEAD:]


def announcing(metadata: Metadata, gain_map: bytes) -> Metadata:
    """The metadata with the size of the gain map, which XMP tells."""
    if not metadata.xmp:
        return metadata

    def sized(match: "re.Match[bytes]") -> bytes:
        if b'"GainMap"' not in match[0] and b"'GainMap'" not in match[0]:
            return match[0]
        size = b"%d" % len(gain_map)
        return re.sub(rb"(Item:Length\s*=\s*[\"'])\d+", rb"\g<1>" + size, match[0])

    xmp = re.sub(rb"<\w+:Item\b[^>]*>", sized, metadata.xmp)
    return replace(metadata, xmp=xmp)


def index_for(gain_map: GainMap) -> tuple[bytes, int]:
    """The segments that announce a gain map, with an index of both pictures.

    Returns:
        The segments, and where in them the three numbers of `index_numbers` go.
    """
    made = b"".join(_segment(0xE2, marker) for marker in gain_map.markers)
    rows = [
        struct.pack(">HHI4s", 0xB000, 7, 4, b"0100"),
        struct.pack(">HHII", 0xB001, 4, 1, 2),
        struct.pack(">HHII", 0xB002, 7, 32, 8 + 2 + 36 + 4),
    ]
    table = b"MM\0*" + struct.pack(">IH", 8, 3) + b"".join(rows) + bytes(4)
    first = struct.pack(">IIIHH", 0x030000, 0, 0, 0, 0)
    second = struct.pack(">IIIHH", 0, 0, 0, 0, 0)
    made += _segment(0xE2, _PICTURES + table + first + second)
    return made, len(made) - 32


def index_numbers(primary: int, gain_map: int, index: int) -> dict[int, bytes]:
    """What has to be written where, once all sizes are known.

    Args:
        primary: bytes of the first picture.
        gain_map: bytes of the second, which follows it.
        index: where in the file the entries of the index are.
    """
    header = index - (8 + 2 + 36 + 4)
    return {
        index + 4: struct.pack(">I", primary),
        index + 20: struct.pack(">II", gain_map, primary - header),
    }
