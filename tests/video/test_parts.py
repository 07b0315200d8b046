"""Runs that are killed or fail, and resume; two runs for one target."""

import json
import signal
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from helpers import ROOT, without_hidden
from video_helpers import (
    LOSSLESS,
    FrameRepeat,
    add_sound,
    decoded,
    digests,
    digests_of_doubled,
    make_clip,
    packets_of,
    times,
)

from aethernet.errors import AetherError
from aethernet.runtimes.tiling import Tiled
from aethernet.video import parts
from aethernet.video.upscale import VideoOptions, upscale_video

SLOW_RUN = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}]
from video_helpers import FrameRepeat, LOSSLESS
from aethernet.video import parts
from aethernet.video.upscale import upscale_video

class Slow(FrameRepeat):
    def run(self, batch):
        time.sleep(0.02)
        return super().run(batch)

parts.SEGMENT_FRAMES = 6
done = upscale_video(Path({source!r}), Path({target!r}), Slow(), LOSSLESS)
print(done.resumed)
"""


class TestResuming:
    @pytest.fixture(autouse=True)
    def short_segments(self, monkeypatch):
        monkeypatch.setattr(parts, "SEGMENT_FRAMES", 6)

    def test_a_run_killed_twice_gives_what_one_run_gives(self, tmp_path):
        clip = make_clip(
            tmp_path / "in.mp4",
            60,
            codec="libx264",
            time_base=Fraction(1, 12800),
            extras=lambda container: add_sound(container, "aac"),
            options={"g": "12"},
        )
        target = tmp_path / "out.mkv"
        folder = tmp_path / ".out.mkv.parts"
        code = SLOW_RUN.format(
            tests=str(ROOT / "tests"), source=str(clip), target=str(target)
        )
        seen = 0
        for _ in range(2):
            process = subprocess.Popen([sys.executable, "-c", code])
            deadline = time.monotonic() + 60
            while len([*folder.glob("0*.json")]) < seen + 2:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not target.exists()
            seen = len([*folder.glob("0*.json")])
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert int(done.stdout) == 6 * seen >= 24
        assert without_hidden(tmp_path) == ["in.mp4", "out.mkv"]
        upscale_video(clip, tmp_path / "at_once.mkv", FrameRepeat(), LOSSLESS)
        assert digests(target) == digests(tmp_path / "at_once.mkv")
        assert times(target) == times(tmp_path / "at_once.mkv")
        assert packets_of(target, "audio") == packets_of(
            tmp_path / "at_once.mkv", "audio"
        )

    def interrupted(self, clip, target, options=LOSSLESS, after=15):
        """A run whose model fails after so many frames."""

        class Failing(FrameRepeat):
            def run(self, batch):
                if len(self.frames) == after:
                    raise AetherError("The model is out of order.")
                return super().run(batch)

        with pytest.raises(AetherError, match="out of order"):
            upscale_video(clip, target, Failing(), options)

    def test_what_is_finished_is_not_done_again(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 20)
        target = tmp_path / "out.mkv"
        self.interrupted(clip, target)
        assert not target.exists()
        model = FrameRepeat()
        reports = []
        done = upscale_video(
            clip, target, model, LOSSLESS, lambda *r: reports.append(r)
        )
        assert done.resumed == 15
        assert len(model.frames) == 5
        assert reports[0] == (15, 20)
        assert digests(target) == digests_of_doubled(clip)
        assert not (tmp_path / ".out.mkv.parts").exists()

    def test_slow_work_is_kept_in_shorter_segments(self, tmp_path, monkeypatch):
        monkeypatch.setattr(parts, "SEGMENT_FRAMES", 48)
        monkeypatch.setattr(parts, "SEGMENT_SECONDS", 0.0)
        clip = make_clip(tmp_path / "in.mkv", 30)
        self.interrupted(clip, tmp_path / "out.mkv", after=27)
        notes = sorted((tmp_path / ".out.mkv.parts").glob("0*.json"))
        assert [len(json.loads(note.read_text())["pts"]) for note in notes] == [
            12,
            12,
            3,
        ]

    def test_a_clip_without_a_clock_of_its_own_is_counted(self, tmp_path):
        clip = make_clip(tmp_path / "in.avi", 20, codec="libx264", options={"bf": "2"})
        target = tmp_path / "out.mkv"
        self.interrupted(clip, target)
        upscale_video(clip, target, FrameRepeat(), LOSSLESS)
        assert digests(target) == digests_of_doubled(clip)

    @pytest.mark.parametrize("changed", ["source", "model", "options"])
    def test_another_job_starts_again_with_a_warning(self, tmp_path, changed, caplog):
        clip = make_clip(tmp_path / "in.mkv", 20)
        target = tmp_path / "out.mkv"
        self.interrupted(clip, target)
        model, options = FrameRepeat(), LOSSLESS
        if changed == "source":
            make_clip(clip, 21)
        elif changed == "model":
            model.run = lambda batch: FrameRepeat.run(model, batch) * 0.9
        else:
            options = VideoOptions(codec="ffv1", end=0.7)
        done = upscale_video(clip, target, model, options)
        assert done.resumed == 0
        assert "starting again" in caplog.text

    def test_a_damaged_segment_is_made_again(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 20)
        target = tmp_path / "out.mkv"
        self.interrupted(clip, target)
        damaged = tmp_path / ".out.mkv.parts/000001.mkv"
        damaged.write_bytes(damaged.read_bytes()[:-9])
        done = upscale_video(clip, target, FrameRepeat(), LOSSLESS)
        assert done.resumed == 6
        assert digests(target) == digests_of_doubled(clip)

    def test_nothing_beyond_a_damaged_segment_counts_later(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 30)
        target = tmp_path / "out.mkv"
        self.interrupted(clip, target, after=20)
        damaged = tmp_path / ".out.mkv.parts/000001.mkv"
        damaged.write_bytes(damaged.read_bytes()[:-9])
        self.interrupted(clip, target, after=3)
        upscale_video(clip, target, FrameRepeat(), LOSSLESS)
        assert digests(target) == digests_of_doubled(clip)

    def test_two_runs_do_not_make_one_target(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 12)
        target = tmp_path / "out.mkv"

        class Meanwhile(FrameRepeat):
            def run(self, batch):
                if len(self.frames) == 8:
                    with pytest.raises(AetherError, match="Another run is making"):
                        upscale_video(clip, target, FrameRepeat(), LOSSLESS)
                return super().run(batch)

        upscale_video(clip, target, Meanwhile(), LOSSLESS)
        assert without_hidden(tmp_path) == ["in.mkv", "out.mkv"]
        assert digests(target) == digests_of_doubled(clip)

    def test_other_tiles_are_another_job(self, tmp_path, caplog):
        clip = make_clip(tmp_path / "in.mkv", 20)
        target = tmp_path / "out.mkv"
        self.interrupted(clip, target)
        model = Tiled(FrameRepeat(), tile=64)
        assert upscale_video(clip, target, model, LOSSLESS).resumed == 0
        assert "starting again" in caplog.text

    def test_what_a_kill_while_joining_left_is_removed(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 3)
        (tmp_path / ".out.0123abcd.part.mkv").write_bytes(b"half of it")
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        assert without_hidden(tmp_path) == ["in.mkv", "out.mkv"]

    def test_a_target_that_exists_is_only_replaced_on_request(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 3)
        target = tmp_path / "out.mkv"
        target.write_bytes(b"older")
        with pytest.raises(AetherError, match="--overwrite"):
            upscale_video(clip, target, FrameRepeat(), LOSSLESS)
        assert target.read_bytes() == b"older"
        upscale_video(clip, target, FrameRepeat(), VideoOptions("ffv1", overwrite=True))
        assert len(decoded(target)) == 3
