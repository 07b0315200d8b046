"""Metadata that libav does not read, or reads by another name than it writes."""

import contextlib
import struct
from fractions import Fraction

import pytest
from video_beside import add_boxes, add_text, add_timecode, box, h264, number
from video_helpers import MS, FrameRepeat, add_sound, av, make_clip

from aethernet.errors import AetherError
from aethernet.video.ebml import Element, elements, joined
from aethernet.video.upscale import upscale_video

MOVIE, TRACK = (b"moov",), (b"moov", b"trak")
BYTES = bytes(range(1, 41))


def lost(clip, name, caplog):
    caplog.clear()
    upscale_video(clip, clip.with_name(name), FrameRepeat())
    texts = [record.getMessage() for record in caplog.records]
    return [text.partition("left out ")[2].partition(", with")[0] for text in texts]


def change_part(clip, kind, change):
    """Change the content of the parts of that number of a Matroska file."""
    head, segment = elements(clip.read_bytes())
    parts = [
        Element(kind, change(part.content)) if part.number == kind else part
        for part in elements(segment.content)
    ]
    clip.write_bytes(joined([head, Element(segment.number, joined(parts))]))


def text(kind, content):
    """As QuickTime stores it: length and language come first."""
    return box(kind, struct.pack(">HH", len(content), 0x15C7), content)


def handler(kind):
    return box(b"hdlr", bytes(8), kind, bytes(13))


def keys(*names):
    made = [struct.pack(">I4s", 8 + len(n), b"mdta") + n for n in names]
    return box(b"keys", struct.pack(">II", 0, len(names)), *made)


def value(place, content):
    data = box(b"data", struct.pack(">II", 1, 0), content)
    return struct.pack(">II", 8 + len(data), place) + data


def data(kind, content):
    return box(b"data", struct.pack(">II", kind, 0), content)


def listed(*items):
    """The metadata of iTunes."""
    return box(b"meta", bytes(4), handler(b"mdir"), box(b"ilst", *items))


def free(name, content):
    mean = box(b"mean", bytes(4), b"com.apple.iTunes")
    return box(b"----", mean, box(b"name", bytes(4), name), data(1, content))


CASES = [
    ((*MOVIE, b"udta"), listed(box(b"tmpo", data(21, b"\0\x5a"))), "the metadata tmpo"),
    ((*MOVIE, b"udta"), listed(box(b"tmpo", data(21, bytes(2)))), ""),
    ((*MOVIE, b"udta"), listed(box(b"stik", data(21, b"\x09"))), ""),
    ((*MOVIE, b"udta"), listed(free(b"MOOD", b"calm")), ""),
    ((*MOVIE, b"udta"), box(b"XMP_", b"<x:xmpmeta/>"), "XMP"),
    ((*MOVIE, b"udta"), box(b"GPMF", BYTES), "the settings of the camera (GPMF)"),
    ((*MOVIE, b"udta"), box(b"Xtra", BYTES), "the metadata of Windows (Xtra)"),
    ((*MOVIE, b"udta"), box(b"thmb", BYTES), "the thumbnail"),
    ((*MOVIE, b"udta"), text(b"\xa9zzz", b"abc"), "the metadata ©zzz"),
    ((*MOVIE, b"udta"), text(b"\xa9nam", b"A title"), ""),
    ((*MOVIE, b"udta"), text(b"\xa9too", b"A program"), ""),
    ((*MOVIE, b"udta"), box(b"free", BYTES), ""),
    ((*TRACK, b"udta"), box(b"abcd", BYTES), "the metadata abcd"),
    ((*TRACK, b"udta"), text(b"\xa9nam", b"A name"), ""),
    (TRACK, box(b"tref", box(b"cdsc", bytes(4))), "which tracks belong together"),
    (TRACK, box(b"imap", BYTES), "the box imap"),
    (TRACK, box(b"tapt", *(box(k, bytes(12)) for k in (b"clef", b"enof"))), ""),
    (
        TRACK,
        box(b"tapt", box(b"clef", bytes(12)), box(b"enof", bytes(11) + b"\1")),
        "the apertures of the picture",
    ),
    (
        TRACK,
        box(b"meta", bytes(4), handler(b"ID32"), box(b"ID32", BYTES)),
        "metadata of the type ID32",
    ),
    (
        MOVIE,
        box(b"meta", bytes(4), handler(b"mp7t"), box(b"xml ", BYTES)),
        "metadata of the type mp7t",
    ),
    (
        MOVIE,
        box(
            b"meta",
            handler(b"mdta"),
            keys(b"com.example.a", b"com.example.b"),
            box(b"ilst", value(1, b"read")),
        ),
        "the metadata com.example.b",
    ),
    (
        (*MOVIE, b"udta"),
        listed(
            box(b"\xa9gen", data(1, b"Noir")),
            box(b"xid ", data(1, b"a:b:c")),
            box(b"apID", data(0, bytes([200]))),
        ),
        "the metadata apID and xid",
    ),
    ((), b"no box" * 20, "what lies behind the boxes"),
    ((), box(b"udta", box(b"abcd", BYTES)), "the metadata abcd"),
]


@pytest.mark.parametrize(("place", "added", "name"), CASES)
def test_what_libav_does_not_read_of_mp4_is_named(tmp_path, place, added, name, caplog):
    clip = h264(tmp_path / "in.mp4", size=(64, 32))
    add_boxes(clip, place, added)
    assert lost(clip, "out.mkv", caplog) == [name] * bool(name)


@pytest.mark.parametrize("length", [0, 3, 8, 20])
def test_a_box_that_is_cut_short_is_no_traceback(tmp_path, length):
    for place, added, _ in CASES:
        clip = h264(tmp_path / "in.mp4", size=(64, 32))
        cut = bytearray(added[: max(len(added) - length, 8)])
        if place:
            struct.pack_into(">I", cut, 0, len(cut))
        add_boxes(clip, place, bytes(cut))
        with contextlib.suppress(AetherError):
            upscale_video(clip, tmp_path / "out.mkv", FrameRepeat())
            (tmp_path / "out.mkv").unlink()


PHONE = {
    b"com.apple.quicktime.make": b"Acme",
    b"com.apple.quicktime.model": b"P 1",
    b"com.apple.quicktime.creationdate": b"2020-01-02T03:04:05+0100",
    b"com.apple.quicktime.location.ISO6709": b"+52.5000+013.4000/",
    b"com.apple.quicktime.title": b"A walk",
}


@pytest.mark.parametrize(
    ("suffix", "carried"),
    [
        (".mov", ("make", "model", "date", "location", "title")),
        (".mp4", ("date", "location", "title")),
    ],
)
def test_what_a_phone_states_by_keys_of_its_own(tmp_path, suffix, carried, caplog):
    clip = h264(tmp_path / "in.mp4", size=(64, 32))
    values = [value(n, text) for n, text in enumerate(PHONE.values(), 1)]
    stated = box(b"meta", handler(b"mdta"), keys(*PHONE), box(b"ilst", *values))
    add_boxes(clip, MOVIE, stated)
    names = lost(clip, f"out{suffix}", caplog)
    makers = "com.apple.quicktime.make and com.apple.quicktime.model"
    assert names == [f"the metadata {makers}"] * (suffix == ".mp4")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        found = container.metadata
    usual = {key.decode().rpartition(".")[2]: each for key, each in PHONE.items()}
    usual["date"] = usual["creationdate"]
    usual["location"] = usual["ISO6709"]
    for key in carried:
        assert found[key] == usual[key].decode()


def test_what_libav_tells_twice_is_named_once(tmp_path, caplog):
    clip = h264(tmp_path / "in.mp4", size=(64, 32))
    add_boxes(clip, (*MOVIE, b"udta"), text(b"\xa9dir", b"Me"), text(b"\xa9too", b"It"))
    with av.open(str(clip)) as container:
        assert {"director", "director-eng", "encoder-eng"} <= {*container.metadata}
    assert lost(clip, "out.mp4", caplog) == ["the metadata director"]


def with_chapters(folder, **metadata):
    def named(container, stream):
        chapter = {"id": 1, "start": 0, "end": 90, "time_base": MS}
        container.set_chapters([{**chapter, "metadata": {"title": "One", **metadata}}])

    return make_clip(folder / "in.mkv", 4, codec="libx264", set_up=named)


def test_chapters_of_mp4_are_carried_without_a_word(tmp_path, caplog):
    clip = with_chapters(tmp_path)
    assert lost(clip, "in.mp4", caplog) == []
    for name in ("out.mkv", "out.mov"):
        assert lost(tmp_path / "in.mp4", name, caplog) == []
        with av.open(str(tmp_path / name)) as container:
            titles = [each["metadata"]["title"] for each in container.chapters()]
        assert titles == ["One"]


@pytest.mark.parametrize(
    ("suffix", "named"), [(".mkv", False), (".mp4", True), (".mov", True)]
)
def test_more_about_a_chapter(tmp_path, suffix, named, caplog):
    clip = with_chapters(tmp_path, SUBTITLE="Two")
    names = lost(clip, f"out{suffix}", caplog)
    assert names == ["metadata of chapters beside their titles"] * named
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        (chapter,) = container.chapters()
    assert (chapter["metadata"].get("SUBTITLE") == "Two") == (not named)


def chapter(*parts):
    display = Element(0x80, bytes(Element(0x85, b"One")))
    times = [number(0x73C4, 1), number(0x91, 0), number(0x92, 9 * 10**7)]
    return Element(0xB6, joined([*times, display, *parts]))


@pytest.mark.parametrize(
    ("editions", "name"),
    [
        ([[chapter()]], ""),
        ([[chapter()], [chapter()]], "which chapters belong to which"),
        ([[chapter(chapter())]], "chapters inside of chapters"),
        (
            [[chapter(Element(0x80, bytes(Element(0x85, b"Eins"))))]],
            "names of chapters in other languages",
        ),
        ([[chapter(number(0x98, 1))]], "that chapters are hidden"),
        ([[chapter(number(0x98, 0))]], ""),
    ],
)
def test_chapters_of_matroska_that_libav_does_not_read(
    tmp_path, editions, name, caplog
):
    clip = h264(tmp_path / "in.mkv")
    head, segment = elements(clip.read_bytes())
    made = [Element(0x45B9, joined(each)) for each in editions]
    parts = segment.content + bytes(Element(0x1043A770, joined(made)))
    clip.write_bytes(joined([head, Element(segment.number, parts)]))
    names = lost(clip, "out.mkv", caplog)
    assert len(names) == bool(name)
    assert all(each.startswith(name) for each in names)


def test_the_name_of_a_track_of_mp4_is_carried(tmp_path, caplog):
    def extras(container):
        packets = add_sound(container, "aac", 48000)
        container.streams.audio[0].metadata["title"] = "Comments"
        return packets

    clip = make_clip(tmp_path / "in.mp4", codec="libx264", extras=extras)
    for suffix, key in ((".mp4", "name"), (".mkv", "title")):
        assert lost(clip, f"out{suffix}", caplog) == []
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            assert container.streams.audio[0].metadata[key] == "Comments"


def test_the_description_of_an_attachment_is_named(tmp_path, caplog):
    def extras(container):
        container.add_attachment("font.ttf", "font/ttf", b"not really a font")
        return []

    clip = make_clip(tmp_path / "in.mkv", 2, extras=extras)
    assert lost(clip, "out.mkv", caplog) == []

    def described(content):
        (file,) = (e for e in elements(content) if e.number == 0x61A7)
        text = Element(0x467E, b"For the titles")
        return bytes(Element(file.number, file.content + bytes(text)))

    change_part(clip, 0x1941A469, described)
    target = "again.mkv"
    assert lost(clip, target, caplog) == ["the description of stream 1"]


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_the_timecode_of_a_file_becomes_a_track(tmp_path, suffix, caplog):
    def set_up(container, stream):
        add_timecode(container, container)

    clip = h264(tmp_path / "in.mkv", 25, set_up=set_up)
    assert lost(clip, f"out{suffix}", caplog) == []
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert container.streams.video[0].metadata["timecode"] == "01:00:00:00"


def test_a_stream_without_a_known_codec_is_named_as_its_maker_does(tmp_path, caplog):
    clip = h264(tmp_path / "in.mp4", size=(64, 32), extras=add_text)
    content = clip.read_bytes()
    assert content.count(b"tx3g") == 1
    content = content.replace(b"tx3g", b"gpmd").replace(b"SubtitleH", b"GoPro MET")
    clip.write_bytes(content)
    lost(clip, "out.mkv", caplog)
    assert "GoPro METandler, " in caplog.text


def riff_chunk(kind, content):
    size = struct.pack("<I", len(content))
    return kind + size + content + bytes(len(content) % 2)


@pytest.mark.parametrize(
    ("added", "name"),
    [
        (riff_chunk(b"_PMX", b"<x:xmpmeta/>"), "XMP"),
        (riff_chunk(b"LIST", b"Tdat" + riff_chunk(b"tc_O", BYTES)), "Adobe's timecode"),
        (riff_chunk(b"LIST", b"abcd" + riff_chunk(b"efgh", BYTES)), "the chunk abcd"),
        (riff_chunk(b"LIST", b"INFO" + riff_chunk(b"INAM", b"A\0")), ""),
        (riff_chunk(b"JUNK", BYTES), ""),
    ],
)
def test_chunks_of_avi_that_libav_does_not_read(tmp_path, added, name, caplog):
    clip = make_clip(tmp_path / "in.avi", 3, codec="mpeg4", time_base=Fraction(1, 25))
    content = bytearray(clip.read_bytes()) + added
    struct.pack_into("<I", content, 4, len(content) - 8)
    clip.write_bytes(content)
    assert lost(clip, "out.mkv", caplog) == [name] * bool(name)
    clip.write_bytes(content + bytes(range(1, 101)))
    behind = "what lies behind the chunks"
    assert lost(clip, "again.mkv", caplog) == [
        " and ".join([name] * bool(name) + [behind])
    ]


def test_lists_in_lists_of_avi_are_named_once(tmp_path, caplog):
    clip = make_clip(tmp_path / "in.avi", 3, codec="mpeg4", time_base=Fraction(1, 25))
    added = b""
    for _ in range(2000):  # more than functions of Python may call each other
        added = riff_chunk(b"LIST", b"hdrl" + added)
    content = bytearray(clip.read_bytes()) + added
    struct.pack_into("<I", content, 4, len(content) - 8)
    clip.write_bytes(content)
    assert lost(clip, "out.mkv", caplog) == ["the chunk hdrl"]


@pytest.mark.parametrize("element", [0x3CB923, 0x3E83BB, 0x4444])
def test_links_of_matroska_to_other_files(tmp_path, element, caplog):
    clip = h264(tmp_path / "in.mkv")
    added = bytes(Element(element, b"another.mkv"))
    change_part(clip, 0x1549A966, lambda content: content + added)
    assert lost(clip, "out.mkv", caplog) == ["links to other files"]


class TestEncrypted:
    def check_refused(self, clip):
        with pytest.raises(AetherError, match="The video is encrypted"):
            upscale_video(clip, clip.with_name("out.mkv"), FrameRepeat())
        assert not clip.with_name("out.mkv").exists()

    def test_mp4(self, tmp_path):
        clip = h264(tmp_path / "in.mp4")
        content = clip.read_bytes()
        place = content.index(b"avc1", content.index(b"stsd"))
        clip.write_bytes(content[:place] + b"encv" + content[place + 4 :])
        self.check_refused(clip)

    def test_a_broadcast(self, tmp_path):
        clip = h264(tmp_path / "in.ts", 9)
        content = bytearray(clip.read_bytes())
        for at in range(0, len(content), 188):
            if content[at + 1] & 0x1F:  # no table of programs
                content[at + 3] |= 0x80
        clip.write_bytes(content)
        self.check_refused(clip)

    @pytest.mark.parametrize("kind", [0, 1])
    def test_matroska(self, tmp_path, kind):
        clip = h264(tmp_path / "in.mkv")
        # Nothing is stripped of the packets' heads.
        packed = Element(0x5034, joined([number(0x4254, 3), Element(0x4255, b"")]))
        encoding = Element(0x6240, joined([number(0x5033, kind), packed]))

        def changed(content):
            (track,) = (e for e in elements(content) if e.number == 0xAE)
            added = track.content + bytes(Element(0x6D80, bytes(encoding)))
            return bytes(Element(0xAE, added))

        change_part(clip, 0x1654AE6B, changed)
        if kind:
            self.check_refused(clip)
            return
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat())


@pytest.mark.parametrize(
    ("layout", "suffix", "named"),
    [
        ("5.1(side)", ".mkv", True),
        ("5.1", ".mkv", False),
        ("stereo", ".mkv", False),
        ("5.1(side)", ".mov", False),
    ],
)
def test_channels_of_pcm_that_matroska_does_not_tell(
    tmp_path, layout, suffix, named, caplog
):
    def extras(container):
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = layout
        frame = av.AudioFrame("s16", layout, 800)
        frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        return stream.encode(frame) + stream.encode(None)

    clip = make_clip(tmp_path / "in.mov", 2, codec="libx264", extras=extras)
    names = lost(clip, f"out{suffix}", caplog)
    assert names == [f"the layout {layout} of the channels of stream 1"] * named


def dv(path, packs):
    """A clip of DV whose first blocks tell the time of the recording."""
    clip = make_clip(path, 2, codec="dvvideo", size=(720, 576), time_base=DV_TIME)
    content = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        frame = bytes(next(container.demux(video=0)))
    start = content.index(frame)
    at = next(n for n in range(0, len(frame), 80) if frame[n] >> 5 == 2)
    for n, pack in enumerate(packs):
        first = start + at + 3 + 5 * n
        content[first : first + 5] = pack
    clip.write_bytes(content)
    return clip


DV_TIME = Fraction(1, 25)
DATE, TIME = bytes.fromhex("62ffd70503"), bytes.fromhex("63ffa283d4")


@pytest.mark.parametrize(
    ("packs", "expected"),
    [
        ((DATE, TIME), "2003-05-17T14:03:22"),
        ((DATE,), "2003-05-17"),
        ((TIME,), None),
        ((b"\x62\xff\xff\xff\xff",), None),
        ((bytes.fromhex("62ffc10170"), TIME), None),
        ((bytes.fromhex("62ffd70597"),), "1997-05-17"),
        ((bytes.fromhex("62ffc01503"),), None),
    ],
)
@pytest.mark.parametrize("suffix", [".avi", ".mov"])
def test_when_dv_was_recorded(tmp_path, packs, expected, suffix):
    from aethernet.video.dv import recorded

    clip = dv(tmp_path / f"in{suffix}", packs)
    assert recorded(clip, 0) == ({"date": expected} if expected else {})


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_the_time_of_the_recording_is_carried(tmp_path, suffix):
    clip = dv(tmp_path / "in.avi", (DATE, TIME))
    target = tmp_path / f"out{suffix}"
    upscale_video(clip, target, FrameRepeat())
    with av.open(str(target)) as container:
        found = {key.lower(): text for key, text in container.metadata.items()}
    assert found["date"] == "2003-05-17T14:03:22"
