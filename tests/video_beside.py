"""Clips that carry more than pictures, and what is found in files made of them."""

import io
import struct
from fractions import Fraction

from video_helpers import MS, av, make_clip

from aethernet.video.ebml import Element, elements, joined
from aethernet.video.extras import (
    CROPPING,
    LIGHT,
    MASTERING,
    SPHERE,
    STEREO,
    Extra,
    read_facts,
)
from aethernet.video.extras import with_extras as with_extras_in
from aethernet.video.libav import entries

DISPLAY = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329, 1000.0, 0.0001)
"""Red, green, blue and white; most and least light."""
LEVELS = (1000, 400)

# Payloads of SEI messages registered by ITU-T T.35.
CAPTION = b"\xb5\x00\x31GA94\x03\x42\xff\xfc\x94\x20\xfc\x94\x2c\xff"
T35, USER_DATA = 4, 5


def facts(path):
    """What the first frame and the stream of a file say of the picture."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return read_facts(stream, next(container.decode(stream)))


def hdr10_plus():
    """SMPTE ST 2094-40, application 4, one window."""
    fields = [(8, 1), (2, 1), (27, 1000), (1, 0), *[(17, 5000)] * 3, (17, 3000), (4, 9)]
    for percentage in (1, 5, 10, 25, 50, 75, 90, 95, 99):
        fields += [(7, percentage), (17, 10 * percentage)]
    fields += [(10, 0), (1, 0), (1, 0), (1, 0)]
    bits = "".join(f"{value:0{length}b}" for length, value in fields)
    bits += "0" * (-len(bits) % 8)
    return b"\xb5\x00\x3c\x00\x01\x04" + int(bits, 2).to_bytes(len(bits) // 8, "big")


def sei(codec, kind, payload):
    """An SEI message as a unit of H.264 or HEVC."""
    content = bytes([kind, len(payload)]) + payload + b"\x80"
    escaped, zeros = bytearray(), 0
    for value in content:
        if zeros >= 2 and value <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(value)
        zeros = zeros + 1 if value == 0 else 0
    return (b"\x06" if codec == "h264" else b"\x4e\x01") + bytes(escaped)


def add_sei(path, *messages, frames=None):
    """Put SEI messages, (kind, payload) each, before the frames of those numbers."""
    file = io.BytesIO()
    with av.open(str(path)) as source, av.open(file, "w", format="matroska") as output:
        (original,) = source.streams
        stream = output.add_stream_from_template(original, opaque=True)
        codec = original.codec_context.name
        for n, packet in enumerate(source.demux(original)):
            if not packet.size:
                continue
            units = [sei(codec, *each) for each in messages]
            if frames is not None and n not in frames:
                units = []
            added = b"".join(struct.pack(">I", len(unit)) + unit for unit in units)
            copy = av.Packet(added + bytes(packet))
            copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
            copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
            copy.stream = stream
            output.mux(copy)
    path.write_bytes(file.getvalue())
    return path


def number(number, value):
    return Element(number, value.to_bytes(max((value.bit_length() + 7) // 8, 1), "big"))


def real(number, value):
    return Element(number, struct.pack(">d", value))


def mastering():
    parts = [real(0x55D1 + n, value) for n, value in enumerate(DISPLAY)]
    return Extra(MASTERING, (Element(0x55D0, joined(parts)),))


def light():
    return Extra(LIGHT, (number(0x55BC, LEVELS[0]), number(0x55BD, LEVELS[1])))


def stereo(mode):
    return Extra(STEREO, (number(0x53B8, mode),))


def sphere(kind=1, private=None):
    parts = [number(0x7671, kind)]
    if private is not None:
        parts.append(Element(0x7672, private))
    parts += [real(0x7673, 0.0), real(0x7674, 0.0), real(0x7675, 0.0)]
    return Extra(SPHERE, (Element(0x7670, joined(parts)),))


def add_ordered_chapters(clip, flag=1):
    """The Matroska file with chapters that play in an order of their own, in place."""
    head, segment = elements(clip.read_bytes())
    edition = Element(0x45B9, bytes(number(0x45DD, flag)))
    chapters = bytes(Element(0x1043A770, bytes(edition)))
    longer = Element(segment.number, segment.content + chapters)
    clip.write_bytes(joined([head, longer]))
    return clip


def box(kind, *parts):
    """A box of MP4."""
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def add_boxes(clip, place, *added):
    """The MP4 file with boxes at the end of the first one at a path of kinds, in place.

    What is missing of the path is made. The movie has to be the last box of the file.
    """
    content = bytearray(clip.read_bytes())
    start, end, outer = 0, len(content), []
    for kind in place:
        at = start
        while at < end and content[at + 4 : at + 8] != kind:
            at += struct.unpack_from(">I", content, at)[0]
        if at >= end:
            content[end:end] = box(kind)
            at = end
            _grow(content, outer, 8)
        outer.append(at)
        start, end = at + 8, at + struct.unpack_from(">I", content, at)[0]
    made = b"".join(added)
    content[end:end] = made
    _grow(content, outer, len(made))
    clip.write_bytes(content)
    return clip


def _grow(content, places, count):
    for place in places:
        (size,) = struct.unpack_from(">I", content, place)
        struct.pack_into(">I", content, place, size + count)


def cropping(bottom, top, left, right):
    sides = {0x54AA: bottom, 0x54BB: top, 0x54CC: left, 0x54DD: right}
    return Extra(CROPPING, tuple(number(*side) for side in sides.items()))


def dolby_vision(compatible):
    """What a track of Matroska says of Dolby Vision, profile 8 or 5."""
    profile = 8 if compatible else 5
    record = bytes([1, 0, profile << 1, 6 << 3 | 5, compatible << 4]) + bytes(19)
    parts = [number(0x41E7, 0x64766343), Element(0x41ED, record)]
    return bytes(Element(0x41E4, joined(parts)))


def add_extras(path, *extras):
    """Change a Matroska file of one stream."""
    path.write_bytes(with_extras_in(path.read_bytes(), extras))
    return path


def add_timecode(container, stream):
    stream.metadata["timecode"] = "01:00:00:00"


def h264(path, count=3, **options):
    options = {"codec": "libx264", **options}
    return make_clip(path, count, **options)


def add_text(container, codec="mov_text"):
    """Add subtitles as MP4 stores them."""
    stream = container.add_mux_stream(codec)
    stream.time_base = MS
    content = b"\x00\x03one" if codec == "mov_text" else b"one"
    packet = av.Packet(content)
    packet.stream, packet.time_base = stream, MS
    packet.pts, packet.dts, packet.duration = 0, 0, 80
    return [packet]


def first_frame(path):
    """The first frame, with transparency also from VP8 and VP9, and its stream."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return next(frames_of(container, stream))


def frames_of(container, stream):
    """Decode with the decoders of libvpx, which read transparency."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    context = av.CodecContext.create(name, "r") if name else stream
    for packet in container.demux(stream):
        yield from context.decode(packet)


def beside(path):
    """libav's names of the side data of the first frame, and its bytes."""
    return {e.type.name: bytes(e) for e in entries(first_frame(path).side_data)}


def display_of(path):
    """As `DISPLAY`, from the side data of the first frame."""
    ratios = struct.unpack_from("=20i", beside(path)["MASTERING_DISPLAY_METADATA"])
    values = [
        float(Fraction(*each)) for each in zip(ratios[::2], ratios[1::2], strict=True)
    ]
    return (*values[:8], values[9], values[8])
