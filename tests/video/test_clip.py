"""Files that are not whole videos, warnings about unusual ones, and cuts."""

import os
from fractions import Fraction

import numpy as np
import pytest
from helpers import without_hidden
from video_helpers import (
    HEIGHT,
    LOSSLESS,
    WIDTH,
    FrameRepeat,
    add_sound,
    av,
    make_clip,
    moving,
    planes_of,
    times,
)

from aethernet.errors import AetherError
from aethernet.video.clip import read_clip
from aethernet.video.encode import SegmentEncoder
from aethernet.video.upscale import VideoOptions, upscale_video


def test_a_name_is_never_an_address(tmp_path):
    clip = make_clip(tmp_path / "in.mkv", 2)
    odd = clip.rename(tmp_path / "concat:a|b %d é.mkv")
    assert read_clip(odd).frames == 2


class TestCuts:
    @pytest.mark.parametrize(
        ("options", "frames"),
        [
            ({"start": 0.5}, range(13, 50)),
            ({"end": 0.5}, range(13)),
            ({"start": 0.48, "end": 1}, range(12, 25)),
            ({"preview": 0.4}, range(20, 30)),
            ({"preview": 60.0}, range(50)),
            ({"preview": 0.2, "start": 0.4}, range(10, 15)),
        ],
    )
    def test_which_frames_are_taken(self, tmp_path, options, frames):
        clip = make_clip(
            tmp_path / "in.mp4", 50, codec="libx264", time_base=Fraction(1, 12800)
        )
        model = FrameRepeat()
        target = tmp_path / "out.mkv"
        upscale_video(clip, target, model, VideoOptions(codec="ffv1", **options))
        expected = FrameRepeat()
        upscale_video(clip, tmp_path / "whole.mkv", expected, LOSSLESS)
        assert len(model.frames) == len(frames)
        for frame, n in zip(model.frames, frames, strict=True):
            assert np.array_equal(frame, expected.frames[n])
        assert times(target) == [Fraction(n, 25) for n in range(len(frames))]

    def test_empty_cuts_are_refused(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 10)
        for options, message in (
            ({"start": 5.0}, "ends at 0.40 s"),
            ({"start": 0.2, "end": 0.2}, "chosen part of the video is empty"),
            ({"preview": 1.0, "end": 2.0}, "do not go together"),
        ):
            with pytest.raises(AetherError, match=message):
                upscale_video(
                    clip, tmp_path / "o.mkv", FrameRepeat(), VideoOptions(**options)
                )
        assert without_hidden(tmp_path) == ["in.mkv"]


class TestWarnings:
    def test_a_clip_that_ends_before_its_header_says(self, tmp_path, caplog):
        clip = make_clip(tmp_path / "in.mkv", 100)
        content = clip.read_bytes()
        clip.write_bytes(content[: len(content) * 6 // 10])
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        assert "may be cut short" in caplog.text

    def test_a_whole_clip_gives_none(self, tmp_path, caplog):
        clip = make_clip(tmp_path / "in.mkv", 60)
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        assert caplog.text == ""

    def test_times_that_jump_back(self, tmp_path):
        options = {"codec": "libx264", "time_base": Fraction(1, 90000)}
        whole = make_clip(tmp_path / "a.ts", 30, **options).read_bytes()
        (tmp_path / "in.ts").write_bytes(whole + whole)
        with pytest.raises(AetherError, match="timestamps jump back"):
            upscale_video(
                tmp_path / "in.ts", tmp_path / "out.mkv", FrameRepeat(), LOSSLESS
            )

    def test_a_picture_that_begins_after_the_sound(self, tmp_path):
        times = [2000 + 40 * n for n in range(25)]
        clip = make_clip(
            tmp_path / "in.mkv",
            times=times,
            extras=add_sound,
        )
        cases = (
            (VideoOptions("ffv1", start=2.5), 12),
            (VideoOptions("ffv1", preview=0.4), 10),
        )
        for number, (options, count) in enumerate(cases):
            target = tmp_path / f"{number}.mkv"
            done = upscale_video(clip, target, FrameRepeat(), options)
            assert abs(done.frames - count) <= 1


class TestBadInput:
    def refused(self, source, reason, about=None, model=None):
        """Check that no video is made, and for one clear reason."""
        before = source.read_bytes() if source.is_file() else None
        target = source.with_name("out.mkv")
        with pytest.raises(AetherError) as caught:
            upscale_video(source, target, model or FrameRepeat())
        assert reason in caught.value.reason
        assert caught.value.path == about
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(".")
        assert not target.exists()
        hidden = [n for n in os.listdir(source.parent) if n.startswith(".")]
        assert hidden == []
        if before is not None:
            assert source.read_bytes() == before

    def test_text_nothing_missing_and_folder(self, tmp_path):
        (tmp_path / "text.mp4").write_text("This is not a film. " * 99)
        (tmp_path / "empty.mp4").touch()
        (tmp_path / "folder.mp4").mkdir()
        for name, reason in (
            ("text.mp4", "cannot be read as a video"),
            ("empty.mp4", "is empty"),
            ("absent.mp4", "There is no such file"),
            ("folder.mp4", "This is a folder"),
        ):
            self.refused(tmp_path / name, reason, about=tmp_path / name)

    @pytest.mark.parametrize("fast", [True, False])
    def test_truncated_mp4(self, tmp_path, fast):
        options = {"movflags": "faststart"} if fast else {}
        path = tmp_path / "whole.mp4"
        with av.open(str(path), "w", container_options=options) as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height = WIDTH, HEIGHT
            for n in range(50):
                frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
                moving(n, planes_of(frame))
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        content = path.read_bytes()
        (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 3 // 4])
        reason = "is cut short" if fast else "cannot be read as a video"
        self.refused(tmp_path / "cut.mp4", reason, about=tmp_path / "cut.mp4")

    def test_sound_only_and_no_frames(self, tmp_path):
        with av.open(str(tmp_path / "sound.mkv"), "w") as container:
            container.mux(add_sound(container))
        sound, none = tmp_path / "sound.mkv", tmp_path / "none.mkv"
        self.refused(sound, "no video stream, only audio", about=sound)
        clip = make_clip(tmp_path / "whole.mkv", 1)
        with (
            av.open(str(clip)) as source,
            av.open(str(none), "w") as container,
        ):
            container.add_stream_from_template(source.streams.video[0])
            container.start_encoding()
        self.refused(none, "cannot be read as a video", about=none)

    def test_the_clip_itself_is_no_target(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 2)
        with pytest.raises(AetherError, match="would replace its own input"):
            upscale_video(clip, clip, FrameRepeat(), VideoOptions(overwrite=True))

    def test_a_model_that_fails_is_one_error(self, tmp_path):
        class Bad(FrameRepeat):
            def run(self, batch):
                return super().run(batch) * np.nan

        clip = make_clip(tmp_path / "in.mkv", 2)
        self.refused(clip, "NaN", model=Bad())

    def test_a_full_disk_is_one_error(self, tmp_path, monkeypatch):
        clip = make_clip(tmp_path / "in.mkv", 20)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(SegmentEncoder, "close", full)
        self.refused(clip, "No space left", about=tmp_path / "out.mkv")

    def test_interlaced_frames_are_reported(self, tmp_path, caplog):
        clip = make_clip(
            tmp_path / "in.mkv",
            3,
            codec="libx264",
            options={"x264-params": "tff=1", "flags": "+ildct+ilme"},
        )
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        assert "is interlaced" in caplog.text

    def test_damaged_packets_are_skipped_and_reported(self, tmp_path, caplog):
        clip = make_clip(tmp_path / "in.mov", 10, codec="prores_ks", kind="yuv422p10le")
        with av.open(str(clip)) as container:
            fifth = [*container.demux(video=0)][4].pos
        content = bytearray(clip.read_bytes())
        content[fifth : fifth + 16] = bytes(16)
        clip.write_bytes(content)
        done = upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        assert done.frames == 9
        kept = [n for n in range(10) if n != 4]
        assert times(tmp_path / "out.mkv") == [Fraction(n, 25) for n in kept]
        assert "skipped 1 damaged packets of the video" in caplog.text
