"""The table in docs/video.md: what becomes of everything a video carries."""

import functools
import logging
import re
import struct
from fractions import Fraction

import pytest
from helpers import ROOT
from video_beside import (
    CAPTION,
    T35,
    USER_DATA,
    add_boxes,
    add_extras,
    add_ordered_chapters,
    add_sei,
    add_text,
    add_timecode,
    beside,
    box,
    cropping,
    dolby_vision,
    facts,
    first_frame,
    h264,
    hdr10_plus,
    light,
    mastering,
    sphere,
    stereo,
)
from video_helpers import (
    COVER,
    MS,
    Disposition,
    FrameRepeat,
    add_cover,
    add_sound,
    add_subtitles,
    av,
    make_clip,
    packets_of,
    times,
)

from aethernet.errors import AetherError
from aethernet.video.ebml import Element, elements, find, joined
from aethernet.video.upscale import upscale_video

CONTAINERS = (".mkv", ".mp4", ".mov", ".webm")
SIZE = (64, 32)
IRREGULAR = (0, 40, 41, 120)


def table():
    """The cells: (row, suffix, cell)."""
    text = (ROOT / "docs/video.md").read_text("utf-8")
    head = "| what the source carries | .mkv | .mp4 | .mov | .webm |\n"
    body = text.split(head)[1].split("\n\n")[0].splitlines()[1:]
    for line in body:
        row, *cells = line.strip("| ").split(" | ")
        yield from zip([row] * 4, CONTAINERS, cells, strict=True)


CELLS = list(table())


def a_disc(folder):
    clip = h264(
        folder / "in.mkv",
        size=SIZE,
        colour=(9, 1, 9, 16),
        options={"chroma_sample_location": "topleft"},
    )
    return add_extras(clip, mastering(), light(), sphere(), cropping(2, 2, 2, 2))


def a_cube(folder):
    cube = sphere(2, struct.pack(">3I", 0, 0, 4))
    return add_extras(h264(folder / "in.mkv", size=SIZE), cube, stereo(7))


def in_444(folder):
    return make_clip(folder / "in.mkv", 2, kind="yuv444p", size=SIZE)


def has_444(path):
    return first_frame(path).format.name == "yuv444p"


def a_mesh(folder):
    return add_extras(h264(folder / "in.mkv"), sphere(3, b"\0\0\0\0mesh"))


def with_an_order(folder):
    return add_ordered_chapters(h264(folder / "in.mkv", size=SIZE))


def side_by_side(folder):
    return add_extras(h264(folder / "in.mkv", size=SIZE), stereo(1))


def a_film(folder):
    def named(container, stream):
        container.metadata["title"] = "A film"
        container.metadata["MADE_WITH"] = "patience"
        stream.metadata["title"] = "The picture"
        chapter = {"id": 1, "start": 0, "end": 90, "time_base": MS}
        container.set_chapters([{**chapter, "metadata": {"title": "One"}}])

    def extras(container):
        container.add_attachment("font.ttf", "font/ttf", b"not really a font")
        return add_sound(container, "libopus", 48000) + add_subtitles(container)

    return make_clip(
        folder / "in.mkv",
        times=IRREGULAR,
        size=SIZE,
        set_up=named,
        extras=extras,
        codec="libx264",
    )


def in_low_german(folder):
    def set_up(container, stream):
        stream.metadata["language"] = "nds"
        stream.disposition = Disposition.visual_impaired

    return h264(folder / "in.mkv", size=SIZE, set_up=set_up)


def from_a_phone(folder):
    def set_up(container, stream):
        stream.set_display_rotation(90)
        add_timecode(container, stream)

    def extras(container):
        return add_text(container)

    return h264(folder / "in.mov", 25, size=SIZE, set_up=set_up, extras=extras)


def mirrored(folder):
    def set_up(container, stream):
        stream.set_display_rotation(0, hflip=True)
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)

    return h264(folder / "in.mp4", size=SIZE, set_up=set_up, extras=add_cover)


def broadcast(folder):
    clip = make_clip(
        folder / "in.mkv",
        3,
        codec="libx265",
        size=SIZE,
        options={"x265-params": "log-level=none:bframes=0"},
    )
    user_data = bytes(range(16)) + b"telemetry"
    return add_sei(clip, (T35, CAPTION), (T35, hdr10_plus()), (USER_DATA, user_data))


def in_dolby_vision(folder):
    clip = add_extras(h264(folder / "in.mkv", size=SIZE))
    head, segment = elements(clip.read_bytes())
    tracks = Element(0xAE, find(segment.content, 0x1654AE6B, 0xAE) + dolby_vision(1))
    parts = [
        Element(part.number, bytes(tracks)) if part.number == 0x1654AE6B else part
        for part in elements(segment.content)
    ]
    clip.write_bytes(joined([head, Element(segment.number, joined(parts))]))
    return clip


def with_alpha(kind):
    return lambda folder: make_clip(folder / "in.mkv", 2, size=SIZE, kind=kind)


def interlaced(folder):
    options = {"x264-params": "tff=1", "flags": "+ildct+ilme"}
    return h264(folder / "in.mkv", size=SIZE, options=options)


# Row -> the clip, what is found in the result, and what the warning names.
def says(name):
    return lambda path: name in {extra.name for extra in facts(path).extras}


def colours(path):
    frame = first_frame(path)
    return (frame.colorspace, frame.color_primaries, frame.color_trc) == (9, 9, 16)


def metadata_of(stream):
    return {key.lower(): value for key, value in stream.metadata.items()}


def has_timecode_track(path):
    with av.open(str(path)) as container:
        return any(stream.type == "data" for stream in container.streams)


def timecode(path):
    with av.open(str(path)) as container:
        return metadata_of(container.streams.video[0])["timecode"] == "01:00:00:00"


def has_sound(path):
    return bool(packets_of(path, "audio"))


def language(path):
    with av.open(str(path)) as container:
        return container.streams.video[0].language == "nds"


def titled(path):
    with av.open(str(path)) as container:
        return container.metadata["title"] == "A film"


def of_the_making(path):
    with av.open(str(path)) as container:
        return container.metadata["MADE_WITH"] == "patience"


def purpose(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return bool(stream.disposition & Disposition.visual_impaired)


def a_broadcast(folder):
    options = {"service_name": "A channel"}
    clip = h264(folder / "plain.mkv", size=SIZE)
    target = folder / "in.ts"
    with av.open(str(clip)) as source, av.open(str(target), "w") as output:
        output.metadata.update(options)
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return target


def from_an_action_camera(folder):
    clip = h264(folder / "in.mp4", size=SIZE)
    return add_boxes(clip, (b"moov", b"udta"), box(b"GPMF", b"settings"))


def channel(path):
    with av.open(str(path)) as container:
        found = {key.lower(): value for key, value in container.metadata.items()}
        return "A channel" in (found.get("service_name"), found.get("network"))


def cover(path):
    with av.open(str(path)) as container:
        found = [s for s in container.streams.video if len(container.streams.video) > 1]
        packets = [bytes(p) for p in container.demux(found[-1]) if p.size]
        return packets == [COVER]


def texts(path):
    return len(packets_of(path, "subtitle")) > 0


def chapter(path):
    with av.open(str(path)) as container:
        return [c["metadata"]["title"] for c in container.chapters()] == ["One"]


def font(path):
    with av.open(str(path)) as container:
        (stream,) = container.streams.attachments
        return stream.data.startswith(b"not really a font")


def alpha(path):
    return any(component.is_alpha for component in first_frame(path).format.components)


def deep_alpha(path):
    return alpha(path) and first_frame(path).format.components[0].bits >= 10


def aspect(path):
    with av.open(str(path)) as container:
        ratio = container.streams.video[0].sample_aspect_ratio
        return Fraction(ratio.numerator, ratio.denominator) == Fraction(16, 11)


ROWS = {
    "times of frames": (a_film, lambda p: times(p) == [n * MS for n in IRREGULAR], ""),
    "matrix, range": (a_disc, colours, ""),
    "chroma of full": (in_444, has_444, "reducing chroma to 4:2:0"),
    "place of chroma": (a_disc, lambda p: facts(p).siting == "topleft", ""),
    "transparency, 8 bits": (with_alpha("yuva420p"), alpha, ""),
    "transparency, 10 bits": (with_alpha("yuva444p10le"), deep_alpha, "reducing 10"),
    "mastering display": (a_disc, says("the mastering display"), ""),
    "content light": (a_disc, says("the content light levels"), ""),
    "HDR10+": (broadcast, None, "HDR10+ metadata"),
    "Dolby Vision": (in_dolby_vision, None, "Dolby Vision metadata"),
    "spherical video": (a_disc, says("the spherical projection"), ""),
    "spherical video, cube": (a_cube, says("the spherical projection"), "spherical"),
    "spherical video, mesh": (a_mesh, None, "the spherical projection"),
    "stereo 3D, side": (side_by_side, says("the stereo 3D layout"), "stereo 3D"),
    "stereo 3D, rows": (a_cube, says("the stereo 3D layout"), "stereo 3D"),
    "cropping": (a_disc, says("the cropping"), ""),
    "rotation": (from_a_phone, lambda p: abs(first_frame(p).rotation) == 90, ""),
    "mirroring": (mirrored, lambda p: "DISPLAYMATRIX" in beside(p), "mirroring"),
    "pixel aspect": (mirrored, aspect, "the pixel aspect of 16/11"),
    "closed captions": (broadcast, lambda p: "A53_CC" in beside(p), "closed captions"),
    "other user data": (broadcast, None, "user data inside the picture"),
    "interlaced": (interlaced, None, "is interlaced"),
    "timecode": (from_a_phone, timecode, ""),
    "sound, such as Opus": (a_film, has_sound, "(audio, opus"),
    "language of": (in_low_german, language, "the language nds"),
    "purpose of": (in_low_german, purpose, "the purpose visual impaired"),
    "SubRip": (a_film, texts, "(subtitle, srt"),
    "subtitles of MP4": (from_a_phone, texts, "(subtitle, mov_text"),
    "chapters": (a_film, chapter, ""),
    "order in which": (with_an_order, None, "the order in which chapters play"),
    "title": (a_film, titled, ""),
    "metadata of a kind": (from_an_action_camera, None, "(GPMF)"),
    "name of the channel": (a_broadcast, channel, "service_name"),
    "other metadata": (a_film, of_the_making, "the metadata MADE_WITH"),
    "attachments": (a_film, font, "(attachment"),
    "cover": (mirrored, cover, "(video, mjpeg"),
}


@pytest.fixture(scope="module")
def upscaled(tmp_path_factory):
    """Upscale a clip once for each container: the file or None, and the messages."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("aethernet").addHandler(handler)

    @functools.cache
    def made(make):
        return make(tmp_path_factory.mktemp("clip"))

    @functools.cache
    def run(make, suffix):
        clip = made(make)
        target = clip.with_name(f"out{suffix}")
        messages.clear()
        try:
            upscale_video(clip, target, FrameRepeat())
        except AetherError as error:
            return None, (str(error),)
        return target, tuple(messages)

    yield run
    logging.getLogger("aethernet").removeHandler(handler)


def row_of(name):
    keys = [key for key in ROWS if name.startswith(key)]
    return ROWS[max(keys, key=len)]


@pytest.mark.parametrize(("row", "suffix", "cell"), CELLS)
def test_each_cell_is_true(upscaled, row, suffix, cell):
    make, found, named = row_of(row)
    target, messages = upscaled(make, suffix)
    if cell == "refused":
        assert target is None
        assert "has transparency" in messages[0]
        return
    assert target, messages
    if cell == "warned":
        assert any(named in message for message in messages), messages
        return
    assert found(target)
    if row.startswith("timecode"):
        assert has_timecode_track(target) == (cell == "carried")
    warned = [message for message in messages if named and named in message]
    assert not warned


def test_the_table_has_a_row_for_everything():
    rows = {row for row, _, _ in CELLS}
    assert len(rows) == len(ROWS)
    assert all(any(row.startswith(key) for row in rows) for key in ROWS)
    words = {cell for _, _, cell in CELLS}
    assert words == {"carried", "converted", "warned", "refused"}
    assert all(re.search(r"\w", row) for row in rows)
