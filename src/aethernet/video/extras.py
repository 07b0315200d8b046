"""What a video carries beside its pictures: light levels, stereo 3D, captions.

libav keeps most of it in structs that PyAV neither reads nor writes. But libav's
Matroska muxer writes them as elements of a track, and its demuxer reads those. So a
Matroska header in memory tells what a stream says (`read_facts`), and a stream that
was read from such a header says it to any other container (`with_extras`).
"""

import contextlib
import io
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from aethernet.video.ebml import Element, elements, find, find_in_file, joined
from aethernet.video.libav import entries, import_av

# Matroska's numbers (RFC 9559) of what is read or written here.
_INFO, _CLUSTER, _SEGMENT, _TRACKS, _TRACK = (
    *(0x1549A966, 0x1F43B675, 0x18538067, 0x1654AE6B, 0xAE),
)
_VIDEO, _COLOUR, _INTERLACED = 0xE0, 0x55B0, 0x9A
_SITING_ACROSS, _SITING_DOWN = 0x55B7, 0x55B8
_MOST_LIGHT, _MEAN_LIGHT, _MASTERING = 0x55BC, 0x55BD, 0x55D0
_STEREO, _PROJECTION, _PROJECTION_KIND, _PROJECTION_DATA = (
    0x53B8,
    0x7670,
    0x7671,
    0x7672,
)
_CROPPING = (0x54AA, 0x54BB, 0x54CC, 0x54DD)
_ADDITION, _ADDITION_KIND, _ADDITION_DATA = 0x41E4, 0x41E7, 0x41ED
_IN_MASTERING = range(0x55D1, 0x55DB)

_FLAT, _CUBE, _MESH = 0, 2, 3  # kinds of projection
_DOLBY_VISION = (b"dvcC", b"dvvC", b"dvwC")
_SECOND_VIEW = (b"mvcC", b"hvcE")

MASTERING, LIGHT = "the mastering display", "the content light levels"
STEREO, SPHERE = "the stereo 3D layout", "the spherical projection"
CROPPING = "the cropping"

# What an extra is called -> its elements, and whether they describe colours.
_KINDS = {
    MASTERING: ((_MASTERING,), True),
    LIGHT: ((_MOST_LIGHT, _MEAN_LIGHT), True),
    STEREO: ((_STEREO,), False),
    SPHERE: ((_PROJECTION,), False),
    CROPPING: (_CROPPING, False),
}

# Where Matroska says that chroma samples lie, across and down -> a key of
# `yuv.SITINGS`.
_SITINGS = {(1, 2): "left", (2, 2): "center", (1, 1): "topleft", (2, 1): "top"}

CAPTIONS = "closed captions"

# libav's name of side data of a frame -> what people call it.
_BESIDE = {
    "A53_CC": CAPTIONS,
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "SMPTE_2094_APP5": "HDR metadata of SMPTE ST 2094-50",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "AMBIENT_VIEWING_ENVIRONMENT": "the ambient viewing environment",
    "ICC_PROFILE": "a colour profile",
    "EXIF": "EXIF",
    "AFD": "the active format description",
    "S12M_TIMECODE": "timecodes inside the picture",
    "LCEVC": "an LCEVC enhancement layer",
    "VIEW_ID": "a second view (MV-HEVC)",
    "3D_REFERENCE_DISPLAYS": "reference displays for stereo 3D",
}

# Side data of the same kinds as the extras.
_AS_EXTRAS = {
    "MASTERING_DISPLAY_METADATA": MASTERING,
    "CONTENT_LIGHT_LEVEL": LIGHT,
    "STEREO3D": STEREO,
    "SPHERICAL": SPHERE,
}

# The same in the plural, of a clip whose frames do not all say the same.
_STATED = {
    "MASTERING_DISPLAY_METADATA": "mastering displays",
    "CONTENT_LIGHT_LEVEL": "light levels",
    "STEREO3D": "stereo 3D layouts",
    "SPHERICAL": "spherical projections",
    "DISPLAYMATRIX": "rotations",
}

# libav's numbers of side data that PyAV has no names for.
_UNNAMED = {
    28: "LCEVC",
    29: "VIEW_ID",
    30: "3D_REFERENCE_DISPLAYS",
    31: "EXIF",
    32: "SMPTE_2094_APP5",
}

# Identifiers of what encoders write about themselves into the stream: x264 and x265.
_ENCODERS = ("dc45e9bde6d948b7962cd820d923eeef", "2ca2de09b51747dbbb55a4fe7fc2fc4e")

# libav's type of stereo 3D, and whether the views are swapped -> Matroska's StereoMode.
_STEREO_MODES = {
    (1, False): 1,
    (1, True): 11,
    (2, False): 3,
    (2, True): 2,
    (3, False): 13,
    (3, True): 14,
    (4, False): 5,
    (4, True): 4,
    (6, False): 7,
    (6, True): 6,
    (7, False): 9,
    (7, True): 8,
}
_ANAGLYPHS = {"anaglyph_cyan_red": 10, "anaglyph_green_magenta": 12}

# The bits of a timecode of MPEG-2 that are its time: one is always set, one is a flag.
_GOP_TIME = 0xFFEFFF


@dataclass(frozen=True)
class Extra:
    """One thing that a stream says about its pictures."""

    name: str
    """As in "the clip has NAME"."""
    elements: tuple[Element, ...]
    """How Matroska says it."""

    def enlarged(self, scale: int) -> "Extra":
        """The same of a picture that is so many times as wide and high."""
        if self.name == CROPPING:
            changed = [
                _unsigned(each.number, _number(each) * scale) for each in self.elements
            ]
            return replace(self, elements=tuple(changed))
        if self.name == SPHERE:
            changed = [_enlarged_cube(each, scale) for each in self.elements]
            return replace(self, elements=tuple(changed))
        return self

    def means(self, other: "Extra") -> bool:
        """Whether the other says the same; numbers may be rounded."""
        if self.name in (STEREO, CROPPING):
            same = _numbers(self.elements) == _numbers(other.elements)
            return self.name == other.name and same
        return self.name == other.name


@dataclass(frozen=True)
class TrackFacts:
    """What a stream says beside its codec."""

    extras: tuple[Extra, ...]
    siting: str | None
    """Place of the chroma samples, a key of `yuv.SITINGS`; None if not known."""
    beside: frozenset[str]
    """Names of what has no element that could be written again."""
    dolby_vision_only: bool
    """Whether the colours mean nothing without Dolby Vision's metadata."""
    interlaced: bool = False
    """Whether the container says that frames are; codecs may know better."""


def side_data(frame: Any, stream: Any | None = None) -> dict[str, bytes]:
    """The side data of a decoded frame, by libav's names.

    Args:
        stream: that it comes from; where it is given, side data that PyAV has no name
            for is found too, without content.
    """
    unnamed: list[str] = []
    try:
        found = frame.side_data
    except ValueError:  # one kind without a name hides all others
        if stream is None:
            return {}
        graph = _Filters(stream)
        unnamed = [name for n, name in _UNNAMED.items() if graph.has(frame, n)]
        try:
            found = graph.without(frame, _UNNAMED).side_data
        except ValueError:
            return dict.fromkeys(unnamed, b"")
    data = dict.fromkeys(unnamed, b"")
    for entry in entries(found):
        kind, content = entry.type.name, bytes(entry)
        if not (kind in data and _is_of_encoder(content)):
            data[kind] = content  # user data may come more than once
    return data


def _is_of_encoder(user_data: bytes) -> bool:
    """Whether an encoder tells its own settings in this."""
    return user_data[:16].hex() in _ENCODERS


class _Filters:
    """libav's filter `sidedata`, for frames of a stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def has(self, frame: Any, number: int) -> bool:
        try:
            self._run(frame, [f"mode=select:type={number}"])
        except BlockingIOError:
            return False
        return True

    def without(self, frame: Any, numbers: Iterable[int]) -> Any:
        return self._run(frame, [f"mode=delete:type={number}" for number in numbers])

    def _run(self, frame: Any, filters: list[str]) -> Any:
        from av.filter import Graph

        graph = Graph()
        nodes = [
            graph.add_buffer(template=self._stream),
            *(graph.add("sidedata", arguments) for arguments in filters),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        graph.push(frame)
        return graph.pull()


def names_beside(data: Mapping[str, bytes], size: tuple[int, int]) -> frozenset[str]:
    """What people call the side data of a frame, except extras and rotation.

    Args:
        data: the side data.
        size: of the frame, width and height in pixels.
    """
    names = {_BESIDE[kind] for kind in data if kind in _BESIDE}
    user_data = data.get("SEI_UNREGISTERED", b"")
    if user_data and not _is_of_encoder(user_data):
        names.add("user data inside the picture")
    if int.from_bytes(data.get("GOP_TIMECODE", b""), sys.byteorder) & _GOP_TIME:
        names.add(_BESIDE["S12M_TIMECODE"])
    if _pans(data.get("PANSCAN", b""), size):
        names.add("pan and scan")
    return frozenset(names)


def _pans(data: bytes, size: tuple[int, int]) -> bool:
    """Whether AVPanScan names a part of the picture; sizes are in 16ths of a pixel."""
    if not data:
        return False
    _, width, height, *positions = struct.unpack_from("=3i6h", data)
    is_smaller = width and (width // 16, height // 16) != size
    return bool(is_smaller or any(positions))


def stated_by(frame: Any, data: Mapping[str, bytes]) -> dict[str, object]:
    """What a frame says of the whole clip, by names; other frames may say otherwise.

    Args:
        frame: a decoded one.
        data: its side data.
    """
    colours = frame.colorspace, frame.color_range, frame.color_primaries
    found: dict[str, object] = {
        "colours": (*colours, frame.color_trc),
        "pixel formats": frame.format.name,
    }
    return found | {name: data[kind] for kind, name in _STATED.items() if kind in data}


def read_facts(stream: Any, frame: Any) -> TrackFacts:
    """Read what a stream says.

    Args:
        stream: of a container that is being read.
        frame: its first one.
    """
    data = side_data(frame, stream)
    track = _track_of(stream)
    video = find(track, _VIDEO) or b""
    colour = find(video, _COLOUR) or b""
    said = *_read(video, colour), *_anaglyph(stream), *_of_frame(data)
    extras = {extra.name: extra for extra in said}
    beside = set(names_beside(data, (frame.width, frame.height)))
    for kind, name in _AS_EXTRAS.items():
        if kind in data and name not in extras and not _says_nothing(kind, data[kind]):
            beside.add(name)
    dolby = None
    for addition in (e.content for e in elements(track) if e.number == _ADDITION):
        added = (find(addition, _ADDITION_KIND) or b"")[-4:]
        if added in _DOLBY_VISION:
            beside.add(_BESIDE["DOVI_METADATA"])
            dolby = find(addition, _ADDITION_DATA)
        elif added in _SECOND_VIEW:
            beside.add(_BESIDE["VIEW_ID"])
    place = (colour, _SITING_ACROSS), (colour, _SITING_DOWN)
    across, down = (int.from_bytes(find(*each) or b"", "big") for each in place)
    return TrackFacts(
        tuple(extras.values()),
        _SITINGS.get((across, down)),
        frozenset(beside),
        # The last four bits: what the colours are without the metadata; 0: nothing.
        dolby is not None and len(dolby) > 4 and not dolby[4] >> 4,
        int.from_bytes(find(video, _INTERLACED) or b"", "big") == 1,
    )


def _track_of(stream: Any) -> bytes:
    """A stream as a track of Matroska; empty where Matroska does not hold it."""
    file = io.BytesIO()
    with contextlib.suppress(import_av().FFmpegError, ValueError):
        with open_unofficial(file, "matroska") as container:
            container.add_stream_from_template(stream, opaque=True)
            container.start_encoding()
        return find(file.getvalue(), _SEGMENT, _TRACKS, _TRACK) or b""
    return b""


def open_unofficial(file: Any, format: str) -> Any:
    """Open a container for writing that may hold what no standard names yet.

    Stereo 3D and spherical video in MP4 are Google's, Dolby Vision is Dolby's.

    Raises:
        av.FFmpegError: when it cannot be written.
    """
    options = {"strict": "unofficial"}
    return import_av().open(file, "w", format=format, container_options=options)


def _read(video: bytes, colour: bytes) -> Iterator[Extra]:
    for name, (numbers, of_colour) in _KINDS.items():
        inside = elements(colour if of_colour else video)
        found = tuple(each for each in inside if each.number in numbers)
        found = tuple(each for each in found if not _is_flat(each))
        if found and any(map(any, (each.content for each in found))):
            yield Extra(name, found)


def has_mesh(file: BinaryIO) -> bool:
    """Whether a Matroska file has a mesh for spherical video, which libav ignores."""
    tracks = find_in_file(file, _SEGMENT, _TRACKS) or b""
    path = _VIDEO, _PROJECTION, _PROJECTION_KIND
    try:
        inside = [each.content for each in elements(tracks) if each.number == _TRACK]
        kinds = [find(track, *path) or b"" for track in inside]
    except ValueError:  # damaged in a way that libav puts up with
        return False
    return any(int.from_bytes(kind, "big") == _MESH for kind in kinds)


def _anaglyph(stream: Any) -> Iterator[Extra]:
    """Stereo 3D in two colours, which libav has only as metadata."""
    if mode := _ANAGLYPHS.get(stream.metadata.get("stereo_mode", "")):
        yield Extra(STEREO, (_unsigned(_STEREO, mode),))


def _is_flat(element: Element) -> bool:
    """Whether this is a projection that only turns the picture."""
    if element.number != _PROJECTION:
        return False
    kind = find(element.content, _PROJECTION_KIND) or b"\0"
    return int.from_bytes(kind, "big") == _FLAT


def _of_frame(data: Mapping[str, bytes]) -> Iterator[Extra]:
    """What the side data of a frame says, from inside the coded pictures."""
    if (stereo := data.get("STEREO3D")) is not None:
        kind, flags = struct.unpack_from("=2i", stereo)
        if mode := _STEREO_MODES.get((kind, bool(flags & 1))):
            yield Extra(STEREO, (_unsigned(_STEREO, mode),))
    if (light := data.get("CONTENT_LIGHT_LEVEL")) is not None:
        levels = struct.unpack_from("=2I", light)
        numbers = (_MOST_LIGHT, _MEAN_LIGHT)
        yield Extra(LIGHT, tuple(map(_unsigned, numbers, levels)))
    if (display := data.get("MASTERING_DISPLAY_METADATA")) is not None:
        yield from _mastering(display)


def _mastering(display: bytes) -> Iterator[Extra]:
    """AVMasteringDisplayMetadata: ratios for red, green, blue, white; light; flags."""
    *ratios, has_colours, has_light = struct.unpack_from("=22i", display)
    values = [
        above / below if below else 0.0
        for above, below in zip(ratios[::2], ratios[1::2], strict=True)
    ]
    values[8], values[9] = values[9], values[8]  # Matroska has the most light first
    known = (*[bool(has_colours)] * 8, *[bool(has_light)] * 2)
    written = [
        Element(number, struct.pack(">d", value))
        for number, value, is_known in zip(_IN_MASTERING, values, known, strict=True)
        if is_known
    ]
    if written:
        yield Extra(MASTERING, (Element(_MASTERING, joined(written)),))


def _says_nothing(kind: str, data: bytes) -> bool:
    return kind == "STEREO3D" and not any(data[:4])  # its type is "not stereo"


def mastering_of(extras: Iterable[Extra]) -> list[float] | None:
    """Chromaticities x, y of red, green, blue and white; most and least light in cd/m2.

    None where the extras do not say all of it.
    """
    for extra in extras:
        if extra.name == MASTERING:
            inside = {e.number: e.content for e in elements(extra.elements[0].content)}
            if all(number in inside for number in _IN_MASTERING):
                return [_float(inside[number]) for number in _IN_MASTERING]
    return None


def light_of(extras: Iterable[Extra]) -> tuple[int, int] | None:
    """The most light of a pixel and of a frame's mean, in cd/m2; None if not known."""
    for extra in extras:
        if extra.name == LIGHT:
            values = {each.number: _number(each) for each in extra.elements}
            return values.get(_MOST_LIGHT, 0), values.get(_MEAN_LIGHT, 0)
    return None


def with_extras(template: bytes, extras: Iterable[Extra]) -> bytes:
    """A Matroska file of one stream, changed so that the stream says more.

    Args:
        template: the file, as libav writes it.
        extras: what it shall say.

    Raises:
        ValueError: when the file is cut short.
    """
    head, segment = elements(template)
    kept = []
    for part in elements(segment.content):
        if part.number == _TRACKS:
            tracks = [
                _with_extras_in_track(track, tuple(extras))
                for track in elements(part.content)
                if track.number == _TRACK
            ]
            kept.append(Element(_TRACKS, joined(tracks)))
        elif part.number in (_INFO, _CLUSTER):
            kept.append(part)
    return joined([head, Element(_SEGMENT, joined(kept))])


def _with_extras_in_track(track: Element, extras: tuple[Extra, ...]) -> Element:
    parts = [part for part in elements(track.content) if part.number != _VIDEO]
    video = find(track.content, _VIDEO) or b""
    replaced = {each.number for extra in extras for each in extra.elements}

    def added(before: bytes, *, of_colour: bool) -> list[Element]:
        new = [extra for extra in extras if _KINDS[extra.name][1] == of_colour]
        kept = [each for each in elements(before) if each.number not in replaced]
        return [*kept, *(each for extra in new for each in extra.elements)]

    colour = added(find(video, _COLOUR) or b"", of_colour=True)
    inside = added(video, of_colour=False)
    inside = [each for each in inside if each.number != _COLOUR]
    inside.append(Element(_COLOUR, joined(colour)))
    return Element(_TRACK, joined([*parts, Element(_VIDEO, joined(inside))]))


def _enlarged_cube(projection: Element, scale: int) -> Element:
    """A projection with the padding of its cube in pixels of the larger picture."""
    kind = find(projection.content, _PROJECTION_KIND) or b""
    if int.from_bytes(kind, "big") != _CUBE:
        return projection

    def enlarged(part: Element) -> Element:
        if part.number != _PROJECTION_DATA or len(part.content) != 12:
            return part
        version, layout, padding = struct.unpack(">3I", part.content)
        return replace(
            part, content=struct.pack(">3I", version, layout, padding * scale)
        )

    parts = [enlarged(part) for part in elements(projection.content)]
    return Element(_PROJECTION, joined(parts))


def _numbers(found: Iterable[Element]) -> dict[int, int]:
    """The numbers in elements, without those that are 0."""
    return {each.number: n for each in found if (n := _number(each))}


def _number(element: Element) -> int:
    return int.from_bytes(element.content, "big")


def _unsigned(number: int, value: int) -> Element:
    return Element(number, value.to_bytes(max((value.bit_length() + 7) // 8, 1), "big"))


def _float(content: bytes) -> float:
    return float(struct.unpack(">d" if len(content) == 8 else ">f", content)[0])
