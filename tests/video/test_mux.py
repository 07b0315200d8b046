"""Times of frames, other streams, chapters, metadata, covers and cuts."""

import itertools
import struct
from fractions import Fraction

import numpy as np
import pytest
from video_helpers import (
    COVER,
    LOSSLESS,
    MS,
    Disposition,
    FrameRepeat,
    add_cover,
    add_sound,
    av,
    decoded,
    digests,
    digests_of_doubled,
    everything,
    make_clip,
    packets_of,
    times,
)

from aethernet.video import parts
from aethernet.video.upscale import VideoOptions, upscale_video


class TestTiming:
    IRREGULAR = (0, 40, 41, 120, 121, 500, 533, 1000, 1700, 1733, 1766, 1800)

    @pytest.mark.parametrize(
        ("suffix", "codec"),
        [
            (".mkv", "ffv1"),
            *itertools.product((".mkv", ".mp4", ".mov"), ("libx264", "libx265")),
        ],
    )
    def test_variable_frame_times_are_kept(self, tmp_path, suffix, codec, monkeypatch):
        # Frames that are stored in another order than shown, across segments.
        monkeypatch.setattr(parts, "SEGMENT_FRAMES", 5)
        clip = make_clip(tmp_path / "in.mkv", times=self.IRREGULAR)
        target = tmp_path / f"out{suffix}"
        done = upscale_video(clip, target, FrameRepeat(), VideoOptions(codec=codec))
        assert done.frames == 12
        assert times(target) == [tick * MS for tick in self.IRREGULAR]

    def test_an_exact_time_base_stays_exact(self, tmp_path):
        base = Fraction(1, 90000)
        ticks = [0, 3003, 6006, 9010, 12013, 100001]
        clip = make_clip(
            tmp_path / "in.mp4", codec="libx264", times=ticks, time_base=base
        )
        upscale_video(clip, tmp_path / "out.mp4", FrameRepeat())
        assert times(tmp_path / "out.mp4") == [tick * base for tick in ticks]

    @pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
    def test_a_constant_rate_stays_constant(self, tmp_path, suffix):
        clip = make_clip(tmp_path / "in.mkv", 60)
        target = tmp_path / f"out{suffix}"
        upscale_video(clip, target, FrameRepeat(), VideoOptions("libx264"))
        with av.open(str(target)) as container:
            assert container.streams.video[0].average_rate == 25
            assert container.duration == 60 * 40_000  # microseconds

    def test_progress_counts_every_frame(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 7)
        reports = []
        target = tmp_path / "out.mkv"
        upscale_video(
            clip,
            target,
            FrameRepeat(),
            LOSSLESS,
            lambda *report: reports.append(report),
        )
        assert [done for done, _ in reports] == [*range(8)]
        assert reports[-1] == (7, 7)

    def test_a_clip_that_begins_late_begins_at_zero(self, tmp_path):
        late = [round(1.4 * 90000) + 3600 * n for n in range(5)]
        clip = make_clip(
            tmp_path / "in.ts",
            codec="libx264",
            times=late,
            time_base=Fraction(1, 90000),
        )
        assert times(clip)[0] > 1
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        assert times(tmp_path / "out.mkv") == [Fraction(n, 25) for n in range(5)]


class TestShape:
    def test_aspect_and_rotation_are_carried(self, tmp_path):
        def set_up(container, stream):
            stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
            stream.set_display_rotation(90)

        for suffix, codec in (
            (".mp4", "libx264"),
            (".mkv", "libx264"),
            (".mkv", "libx265"),
            (".mov", "prores_ks"),
        ):
            clip = make_clip(
                tmp_path / f"in{suffix}", 2, codec="libx264", set_up=set_up
            )
            target = tmp_path / f"{codec}{suffix}"
            upscale_video(clip, target, FrameRepeat(), VideoOptions(codec=codec))
            with av.open(str(target)) as container:
                ratio = container.streams.video[0].sample_aspect_ratio
                assert Fraction(ratio.numerator, ratio.denominator) == Fraction(16, 11)
            frame = decoded(target)[0][1]
            assert frame.rotation == decoded(clip)[0][1].rotation == 90

    def test_an_aspect_that_cannot_be_carried_is_reported(self, tmp_path, caplog):
        def set_up(container, stream):
            stream.codec_context.sample_aspect_ratio = Fraction(16, 11)

        clip = make_clip(tmp_path / "in.mp4", 2, codec="libx264", set_up=set_up)
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        assert "pixel aspect of 16/11" in caplog.text


class TestOtherStreams:
    def test_everything_else_is_copied(self, tmp_path, monkeypatch):
        monkeypatch.setattr(parts, "SEGMENT_FRAMES", 7)
        clip = make_clip(tmp_path / "in.mkv", 20, extras=everything)
        target = tmp_path / "out.mkv"
        upscale_video(clip, target, FrameRepeat())
        assert times(target) == times(clip)
        for kind in ("audio", "subtitle"):
            assert packets_of(target, kind) == packets_of(clip, kind)
        assert len(packets_of(target, "audio")) > 1
        with av.open(str(clip)) as before, av.open(str(target)) as after:
            assert [s.type for s in after.streams] == [s.type for s in before.streams]
            assert after.metadata["title"] == "A clip"
            assert after.streams.audio[0].language == "nds"
            assert after.streams.subtitles[0].metadata["title"] == "Lyrics"
            chapters = [
                [(c["start"] * c["time_base"], c["metadata"]) for c in each.chapters()]
                for each in (before, after)
            ]
            assert chapters[0] == chapters[1]
            assert chapters[0][1] == (Fraction(2, 5), {"title": "Part 1"})
            font = after.streams.attachments[0]
            assert (font.name, font.mimetype) == ("font.ttf", "font/ttf")
            assert font.data.startswith(b"not really a font")

    def test_sound_of_mp4_is_copied_to_mp4(self, tmp_path):
        clip = make_clip(
            tmp_path / "in.mp4",
            10,
            codec="libx264",
            extras=lambda container: add_sound(container, "aac"),
        )
        upscale_video(clip, tmp_path / "out.mp4", FrameRepeat())
        assert packets_of(tmp_path / "out.mp4", "audio") == packets_of(clip, "audio")
        assert times(tmp_path / "out.mp4") == times(clip)

    @pytest.mark.parametrize("layout", ["stereo", "5.1"])
    def test_pcm_of_matroska_gets_its_channels_named_in_mp4(
        self, tmp_path, layout, caplog
    ):
        def sound(container):
            stream = container.add_stream("pcm_s16le", rate=8000, layout=layout)
            samples = np.arange(800 * stream.layout.nb_channels, dtype=np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], "s16", layout)
            frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
            return [*stream.encode(frame), *stream.encode(None)]

        clip, target = tmp_path / "in.mkv", tmp_path / "out.mp4"
        make_clip(clip, extras=sound)
        with av.open(str(clip)) as container:  # Matroska has their number only
            assert container.streams.audio[0].layout.name.endswith(" channels")
        upscale_video(clip, target, FrameRepeat())
        assert caplog.text == ""
        with av.open(str(target)) as container:
            assert container.streams.audio[0].layout.name == layout
        found = b"".join(data for _, data in packets_of(target, "audio"))
        assert found == b"".join(data for _, data in packets_of(clip, "audio"))

    def test_sound_that_an_edit_list_cuts_away_does_not_come_back(self, tmp_path):
        clip = make_clip(
            tmp_path / "in.mp4",
            50,
            codec="libx264",
            time_base=Fraction(1, 12800),
            extras=lambda container: add_sound(container, "aac", 48000, 20),
        )
        content, at = bytearray(clip.read_bytes()), 0
        for ticks in (12800, 48000):  # a second of the picture, and of the sound
            at = content.index(b"elst", at) + 12
            length, first = struct.unpack_from(">2i", content, at)
            struct.pack_into(">2i", content, at, length - 1000, first + ticks)
        clip.write_bytes(content)
        for suffix in (".mkv", ".mp4"):
            target = tmp_path / f"out{suffix}"
            upscale_video(clip, target, FrameRepeat())
            sound = [time for time, _ in packets_of(target, "audio")]
            assert len(times(target)) == 25
            assert abs(times(target)[0] - sound[0]) < Fraction(1, 20)

    def test_times_that_are_repeated_do_not_stop_the_copy(self, tmp_path):
        def repeated(container):
            first, second, *rest = add_sound(container)
            second.pts = second.dts = first.pts
            return [first, second, *rest]

        clip = make_clip(tmp_path / "in.mkv", 10, extras=repeated)
        before = packets_of(clip, "audio")
        assert before[0][0] == before[1][0]
        upscale_video(clip, tmp_path / "out.mp4", FrameRepeat())
        after = packets_of(tmp_path / "out.mp4", "audio")
        assert [data for _, data in after] == [data for _, data in before]

    def test_what_the_container_cannot_hold_is_reported(self, tmp_path, caplog):
        clip = make_clip(tmp_path / "in.mkv", 10, extras=everything)
        upscale_video(clip, tmp_path / "out.mp4", FrameRepeat())
        warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(warnings) == 2
        assert (
            "stream 2 (subtitle, srt) is left out, .mp4 does not hold it" in warnings[0]
        )
        assert "attachment" in warnings[1]
        assert packets_of(tmp_path / "out.mp4", "audio")
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert len(container.chapters()) == 2

    @pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
    @pytest.mark.parametrize("same", [True, False])
    def test_the_time_of_creation(self, tmp_path, suffix, same, caplog):
        one, other = (f"2020-01-02T03:04:0{n}.000000Z" for n in (5, 6))

        def set_up(container, stream):
            container.metadata["creation_time"] = one

        clip = make_clip(tmp_path / "in.mp4", codec="libx264", set_up=set_up)
        if not same:  # the header of the track tells another one
            content = bytearray(clip.read_bytes())
            place = content.index(b"mdhd") + 8
            time = struct.unpack_from(">I", content, place)[0]
            struct.pack_into(">I", content, place, time + 1)
            clip.write_bytes(content)
        with av.open(str(clip)) as container:
            found = container.streams.video[0].metadata["creation_time"]
            assert found == (one if same else other)
        target = tmp_path / f"out{suffix}"
        upscale_video(clip, target, FrameRepeat())
        with av.open(str(target)) as container:
            assert container.metadata["creation_time"] == one
        assert ("left out the time of creation" in caplog.text) == (not same)
        assert bool(caplog.text) == (not same)

    def test_a_cover_stays_a_cover_in_every_container(self, tmp_path):
        clip = make_clip(tmp_path / "in.mp4", 4, codec="libx264", extras=add_cover)
        for source, target in (
            ("in.mp4", "out.mp4"),
            ("in.mp4", "out.mkv"),
            ("out.mkv", "again.mkv"),
            ("out.mkv", "again.mp4"),
        ):
            upscale_video(tmp_path / source, tmp_path / target, FrameRepeat())
            with av.open(str(tmp_path / target)) as container:
                film, cover = container.streams.video
                assert not film.disposition & Disposition.attached_pic
                assert cover.disposition & Disposition.attached_pic
                packets = [*container.demux(cover)]
            assert [bytes(p) for p in packets if p.size] == [COVER], target
            assert times(tmp_path / target) == times(clip)

    def test_a_cover_that_webm_does_not_hold_is_reported(self, tmp_path, caplog):
        clip = make_clip(
            *(tmp_path / "in.mp4", 2), codec="libx264", size=(64, 64), extras=add_cover
        )
        upscale_video(clip, tmp_path / "out.webm", FrameRepeat())
        assert "stream 1 (video, mjpeg) is left out" in caplog.text

    def test_a_title_that_is_no_utf8_stops_nothing(self, tmp_path):
        def name_it(container, stream):
            container.metadata["title"] = "A clip of mine"

        clip = make_clip(tmp_path / "in.mkv", 2, set_up=name_it)
        content = clip.read_bytes()
        assert b"A clip of mine" in content
        clip.write_bytes(content.replace(b"A clip of mine", b"caf\xe9, of mine"))
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat())
        assert b", of mine" in (tmp_path / "out.mkv").read_bytes()

    def test_a_cut_cuts_all_streams_alike(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 20, extras=everything)
        target = tmp_path / "out.mkv"
        options = VideoOptions(codec="ffv1", start=0.4, end=0.6)
        upscale_video(clip, target, FrameRepeat(), options)
        assert times(target) == [Fraction(n, 25) for n in range(5)]
        assert digests(target) == digests_of_doubled(clip)[10:15]
        begin, end = Fraction(2, 5), Fraction(3, 5)
        whole = packets_of(clip, "audio")
        kept = [(t - begin, data) for t, data in whole if begin <= t < end]
        assert packets_of(target, "audio") == kept
        assert packets_of(target, "subtitle") == [(Fraction(12, 100), b"two")]
        with av.open(str(target)) as container:
            chapters = container.chapters()
        assert [c["metadata"]["title"] for c in chapters] == ["Part 1"]
        assert chapters[0]["start"] == 0
