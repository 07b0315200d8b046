"""What a picture carries beside its pixels, and what of it a format can hold."""

import math
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from aethernet.pictures import exif
from aethernet.pictures.colour import (
    SRGB,
    UNSPECIFIED,
    StatedColour,
    profile_of,
    profile_space,
    rgb_profile_of_gray,
)

# Tags of EXIF that mean the same as keywords of PNG. What generators of pictures write
# as "parameters" they themselves put into the user's comment in other formats.
_TAGS = {"Description": 270, "Software": 305, "Author": 315, "Copyright": 33432}
_COMMENTS = ("parameters", "Comment")

_SIDES_IN_XMP = (
    rb"tiff:ImageWidth|exif:PixelXDimension",
    rb"tiff:ImageLength|exif:PixelYDimension",
)

_LONGEST = 25_000
"""Characters of texts that are put into EXIF, which has 64 KB in JPEG."""

MOST_FILLING = 64
"""Bytes behind a picture that mean nothing; some programs fill up blocks."""

_IIM_RESOURCE = 0x0404
# Resources of Photoshop that do not describe the result: thumbnails, digests of IPTC;
# guides and slices, which lie at pixels of the source.
_STALE_RESOURCES = (0x0409, 0x040C, 0x0425)
_BY_PIXELS = (0x0408, 0x041A)


@dataclass(frozen=True)
class Text:
    """A text or a comment, as its file stores it."""

    kind: bytes
    """The PNG chunk: b"tEXt", b"zTXt" or b"iTXt"; b"COM" for a comment of JPEG, GIF."""
    data: bytes
    """The content of the chunk, or of the comment."""

    @property
    def keyword(self) -> str:
        if self.kind == b"COM":
            return "Comment"
        return self.data.partition(b"\0")[0].decode("latin-1")

    @property
    def content(self) -> str | None:
        """The text itself; None where it is damaged, or longer than `_LONGEST`."""
        found = self.unpacked(_LONGEST + 1)
        try:
            in_utf_8 = self.kind in (b"iTXt", b"COM")
            text = (found or b"").decode("utf-8" if in_utf_8 else "latin-1")
        except UnicodeDecodeError:
            return None
        return text if found is not None and len(text) <= _LONGEST else None

    def unpacked(self, most: int) -> bytes | None:
        """Its bytes, at most so many if it is compressed; None where it is damaged."""
        if self.kind == b"COM":
            return self.data.rstrip(b"\0")
        _, _, rest = self.data.partition(b"\0")
        try:
            if self.kind == b"iTXt":
                packed, rest = rest[0], rest[2:].split(b"\0", 2)[2]
            else:
                packed = self.kind == b"zTXt"
                rest = rest[1:] if packed else rest
            return zlib.decompressobj().decompress(rest, most) if packed else rest
        except (zlib.error, IndexError):
            return None


@dataclass(frozen=True)
class GainMap:
    """A second picture in a JPEG that tells how much brighter HDR displays show it."""

    jpeg: bytes
    """With its own metadata."""
    size: tuple[int, int]
    """Width and height of the upright picture it belongs to."""
    turn: int = 1
    """The EXIF orientation that has to be applied to it."""
    markers: tuple[bytes, ...] = ()
    """Segments of the first picture that announce it, beside XMP."""


@dataclass(frozen=True)
class Metadata:
    """What a picture carries beside its pixels."""

    profile: bytes | None = None
    """ICC profile."""
    colour: StatedColour = field(default_factory=StatedColour)
    exif: bytes | None = None
    """A TIFF structure, without the prefix it has in JPEG."""
    xmp: bytes | None = None
    photoshop: bytes | None = None
    """Photoshop's image resources (8BIM), one of which holds IPTC."""
    texts: tuple[Text, ...] = ()
    gain_map: GainMap | None = None
    changed: bytes | None = None
    """Time of the last change, as PNG's tIME."""
    resolution: tuple[float, float] | None = None
    """Pixels per millimetre across and down; None if the file states none."""
    unitless: tuple[int, int] | None = None
    """Pixels across and down for a length without a unit, if they differ: only their
    ratio is known."""
    others: tuple[str, ...] = ()
    """What the file holds besides, and no output will: names for a message."""


@dataclass(frozen=True)
class Room:
    """What a format can hold beside pixels."""

    code_points: bool = False
    """Colour by code points (cICP, nclx)."""
    gamma: bool = False
    """gAMA, cHRM and sRGB, as PNG has them."""
    profile: bool = True
    gray_profile: bool = True
    exif: bool = True
    thumbnail: bool = True
    """A thumbnail in EXIF."""
    xmp: bool = True
    photoshop: bool = False
    texts: bool = False
    changed: bool = False
    """The time of the last change, outside of EXIF."""
    comments: bool = False
    gain_map: bool = False
    resolution: bool = True
    """A resolution outside of EXIF."""
    shape: bool = False
    """The shape of pixels that are not square, without a unit."""


def fitted(metadata: Metadata, room: Room, gray: bool) -> tuple[Metadata, list[str]]:
    """What a format can hold of the metadata, in its own form.

    Args:
        metadata: of the source.
        room: of the format.
        gray: whether the picture has one colour channel.

    Returns:
        What is to be written, and names of what is lost.
    """
    lost = list(metadata.others)
    kept = _fitted_colour(metadata, room, gray, lost)
    resolution, unitless = metadata.resolution, metadata.unitless
    if unitless and not resolution and not room.shape:
        shared = math.gcd(*unitless) or 1
        width, height = (n // shared for n in reversed(unitless))
        lost.append(f"the shape of the pixels ({width}:{height})")
    if kept.changed and not room.changed:
        lost.append("the time of the last change")
        kept = replace(kept, changed=None)
    if room.exif and kept.exif is None and not room.texts:
        kept = _with_texts_as_exif(kept, room)
    if resolution and not room.resolution and not room.exif:
        lost.append("the resolution")
    elif resolution and not room.resolution:
        kept = replace(kept, exif=exif.with_resolution(kept.exif, resolution))
    if kept.exif and not room.exif:
        maker = " with its MakerNote" if exif.has_maker_note(kept.exif) else ""
        lost.append(f"EXIF{maker}")
        kept = replace(kept, exif=None)
    if kept.exif and not room.thumbnail and exif.has_thumbnail(kept.exif):
        lost.append("the thumbnail")
    if kept.gain_map and not room.gain_map:
        lost.append("the gain map (HDR)")
        kept = replace(kept, gain_map=None)
    if kept.xmp:  # readers correct the orientation in EXIF only
        kept = replace(kept, xmp=upright_xmp(kept.xmp))
    if kept.xmp and kept.gain_map is None:
        kept = replace(kept, xmp=without_attachments(kept.xmp))
    if kept.xmp and not room.xmp:
        lost.append("XMP")
        kept = replace(kept, xmp=None)
    if kept.photoshop and not room.photoshop:
        lost.append("IPTC" if iim_of(kept.photoshop) else "what Photoshop added")
        kept = replace(kept, photoshop=None)
    return _fitted_texts(kept, room, lost), lost


def _with_texts_as_exif(metadata: Metadata, room: Room) -> Metadata:
    """The metadata with an EXIF block of the texts that have a place in one."""
    described: dict[int, str] = {}
    comment: str | None = None
    left = []
    first = _COMMENTS[0]
    for text in sorted(metadata.texts, key=lambda text: text.keyword != first):
        tag, content = _TAGS.get(text.keyword), text.content
        own = room.comments and text.kind == b"COM"
        if tag and tag not in described and content:
            described[tag] = content
        elif text.keyword in _COMMENTS and comment is None and content and not own:
            comment = content
        else:
            left.append(text)
    length = sum(map(len, described.values())) + len(comment or "")
    if length > _LONGEST or not length:
        return metadata
    block = exif.of_texts(described, comment)
    return replace(metadata, exif=block, texts=tuple(left))


def _fitted_texts(metadata: Metadata, room: Room, lost: list[str]) -> Metadata:
    held = tuple(
        text
        for text in metadata.texts
        if (room.texts or (room.comments and text.kind == b"COM"))
    )
    names = [text.keyword for text in metadata.texts if text not in held]
    if names:
        shown = ", ".join(names[:8]) + (", .." if len(names) > 8 else "")
        lost.append(f"the text{'s' * (len(names) > 1)} {shown}")
    return replace(metadata, texts=held)


def _fitted_colour(
    metadata: Metadata, room: Room, gray: bool, lost: list[str]
) -> Metadata:
    """The metadata with profile and colour as the format can hold them."""
    colour, profile = metadata.colour, metadata.profile
    if profile and profile_space(profile) not in (b"GRAY" if gray else b"RGB ",):
        profile = None
        lost.append("the colour profile, which is for other pixels")
    if gray and profile and not room.gray_profile:
        profile = rgb_profile_of_gray(profile)
        if profile is None:
            lost.append("the colour profile, which is for gray")
    for_gray = gray and room.gray_profile
    kept = StatedColour()
    if colour.cicp:
        if room.code_points and (room.gamma or not colour.narrow):
            kept = colour if room.gamma else StatedColour(cicp=colour.cicp)
            # Where both are held, a profile would outrank the code points.
            profile = profile if room.gamma else None
        elif room.profile and (equal := profile_of(colour, for_gray)):
            profile = equal
        elif not _is_srgb(colour):
            lost.append(colour.describe())
    elif room.gamma:
        kept = colour
    elif profile is None and colour.srgb is not None and room.code_points:
        kept = StatedColour(cicp=SRGB)
    elif profile is None and _is_stated(colour):
        profile = profile_of(colour, for_gray)
        if (profile is None or not room.profile) and not _is_srgb(colour):
            lost.append(colour.describe())
    if profile and not room.profile:
        profile = None
        if not _is_stated(colour):
            lost.append("the colour profile")
    levels = colour.mastering, colour.light
    if room.code_points:
        kept = replace(kept, mastering=colour.mastering, light=colour.light)
    elif any(levels):
        lost.append("the light levels of HDR")
    return replace(metadata, colour=kept, profile=profile)


def _is_srgb(colour: StatedColour) -> bool:
    """Whether the colours are what programs assume where nothing is stated."""
    if colour.cicp:
        return colour.cicp == SRGB and not colour.narrow
    return colour.srgb is not None


def shown_profile(metadata: Metadata, gray: bool) -> bytes | None:
    """The ICC profile by which the picture is to be shown."""
    colour = metadata.colour
    if colour.cicp or (metadata.profile is None and _is_stated(colour)):
        return profile_of(colour, gray) or metadata.profile
    return metadata.profile


def _is_stated(colour: StatedColour) -> bool:
    return (
        colour.srgb is not None
        or colour.gamma is not None
        or colour.chromaticities is not None
    )


def more_pictures(count: int) -> list[str]:
    """How pictures beside the main one are named, if there are any."""
    return [f"{count} more picture{'s' * (count > 1)} in the file"] if count > 0 else []


def code_points(primaries: int, transfer: int) -> tuple[int, int] | None:
    """Code points of a file, or None if they state nothing."""
    unspecified = (0, UNSPECIFIED)
    if primaries in unspecified and transfer in unspecified:
        return None
    return primaries, transfer


def upright_xmp(xmp: bytes) -> bytes:
    """The XMP of a picture whose orientation has been applied."""
    return re.sub(
        rb"(tiff:Orientation(?:\s*=\s*[\"']\s*|>\s*))[2-8]",
        rb"\g<1>1",
        xmp,
    )


def xmp_of_size(xmp: bytes, size: tuple[int, int]) -> bytes:
    """The XMP of a picture of that width and height, where it states them."""
    for names, side in zip(_SIDES_IN_XMP, size, strict=True):
        stated = rb"((?:" + names + rb")(?:\s*=\s*[\"']\s*|>\s*))\d+"
        xmp = re.sub(stated, rb"\g<1>%d" % side, xmp)
    return xmp


# What XMP says of pictures and films that lie in the same file: namespaces by prefix.
_ATTACHED = (
    rb"hdrgm:\w+",
    rb"HDRGainMap:\w+",
    rb"apdi:\w+",
    rb"GCamera:(?:MotionPhoto|MicroVideo)\w*",
    rb"Camera:(?:MotionPhoto|MicroVideo)\w*",
)
_LARGEST_EMPTY = 2**16


def without_attachments(xmp: bytes) -> bytes | None:
    """The XMP without what it says of a gain map or a film in the same file.

    Returns:
        None if nothing else was in it.
    """
    found = xmp
    for name in _ATTACHED:
        found = re.sub(rb"\s" + name + rb"\s*=\s*(?:\"[^\"]*\"|'[^']*')", b"", found)
        found = re.sub(rb"<" + name + rb"\b[^<>]*>[^<]*</[\w:]+>", b"", found)
    match = re.search(rb"<(\w+:Directory)\b", found)
    if match and b"Semantic" in found:
        end = found.rfind(b"</" + match[1] + b">")
        if end > 0:
            behind = end + len(match[1]) + 3
            found = found[: match.start()] + found[behind:]
    return None if found != xmp and _is_empty(found) else found


def _is_empty(xmp: bytes) -> bool:
    """Whether the descriptions in it have neither properties nor content."""
    if len(xmp) > _LARGEST_EMPTY:
        return False
    for start, body in re.findall(
        rb"<rdf:Description\b([^>]*?)(?:/>|>(.*?)</rdf:Description>)", xmp, re.DOTALL
    ):
        names = re.findall(rb"([\w:.-]+)\s*=", start)
        properties = [n for n in names if not n.startswith((b"xmlns:", b"rdf:about"))]
        if body.strip() or properties:
            return False
    return True


def resources(photoshop: bytes) -> list[tuple[int, bytes, bytes]]:
    """Photoshop's image resources: their numbers, names (padded) and contents."""
    found, place = [], 0
    while photoshop[place : place + 4] == b"8BIM" and place + 7 <= len(photoshop):
        (number,) = struct.unpack_from(">H", photoshop, place + 4)
        name = photoshop[place + 6 : place + 7 + photoshop[place + 6]]
        name += bytes(len(name) % 2)
        start = place + 6 + len(name)
        if start + 4 > len(photoshop):
            break
        (size,) = struct.unpack_from(">I", photoshop, start)
        found.append((number, name, photoshop[start + 4 : start + 4 + size]))
        place = start + 4 + size + size % 2
    return found


def joined(found: Sequence[tuple[int, bytes, bytes]]) -> bytes | None:
    """Resources as Photoshop stores them, without those of the old picture."""
    blocks = [
        b"8BIM"
        + struct.pack(">H", number)
        + name
        + struct.pack(">I", len(data))
        + data
        + bytes(len(data) % 2)
        for number, name, data in found
        if number not in (*_STALE_RESOURCES, *_BY_PIXELS)
    ]
    return b"".join(blocks) or None


def resources_by_pixels(photoshop: bytes) -> list[str]:
    """The name of resources that are not true of a larger picture, if there are any."""
    found = any(number in _BY_PIXELS for number, _, _ in resources(photoshop))
    return ["Photoshop's guides and slices"] * found


def photoshop_of(iptc: bytes) -> bytes | None:
    """IPTC as image resources; it may be these already, with a header or without."""
    iptc = iptc.removeprefix(b"Photoshop 3.0\0")
    if iptc[:4] == b"8BIM":
        return joined(resources(iptc))
    return joined([(_IIM_RESOURCE, b"\0\0", iptc)]) if iptc else None


def iim_of(photoshop: bytes) -> bytes | None:
    """The IPTC records in image resources."""
    for number, _, data in resources(photoshop):
        if number == _IIM_RESOURCE:
            return data
    return None
