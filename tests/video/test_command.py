"""`aethernet upscale` for videos and pipes, and its flags."""

import argparse
import subprocess
import sys

import pytest
from helpers import LIGHT, lively_file, without_hidden
from video_helpers import (
    HEIGHT,
    WIDTH,
    decoded,
    everything,
    make_clip,
    packets_of,
    times,
    y4m,
)

from aethernet.commands.main import main
from aethernet.commands.values import raw_format, seconds
from aethernet.video.y4m import RawFormat


class TestFlags:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [("90", 90), ("5s", 5), ("1:30", 90), ("0:01:30.5", 90.5), (".5", 0.5)],
    )
    def test_times_as_people_write_them(self, text, expected):
        assert seconds(text) == expected

    @pytest.mark.parametrize("text", ["", "abc", "-5", "1:2:3:4", "5m", "nan", "1:"])
    def test_what_is_not_a_time(self, text):
        with pytest.raises(argparse.ArgumentTypeError, match="expected seconds"):
            seconds(text)

    def test_raw_formats_as_people_write_them(self):
        assert raw_format("640x360") == RawFormat(640, 360)
        assert raw_format("640X360:48") == RawFormat(640, 360, 16)
        for text in ("640", "0x5", "5x5:9", "axb", "640x360:", "9999999x5"):
            with pytest.raises(argparse.ArgumentTypeError, match="expected WxH"):
                raw_format(text)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags that make the command run a tiny network."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    lively_file(path, depths=(1,))
    return ["--model", str(path), "--runtime", LIGHT, "--device", "cpu"]


class TestCommand:
    def test_a_clip_and_a_preview_of_it(self, tmp_path, flags, capsys):
        clip = make_clip(tmp_path / "in.mkv", 10, extras=everything)
        target = str(tmp_path / "out.mkv")
        command = ["upscale", str(clip), "-o", target, *flags, "--codec", "ffv1"]
        assert main([*command, "--preview", "0.2"]) == 0
        assert len(decoded(target)) == 5
        assert main(command) == 1
        assert "exists" in capsys.readouterr().err
        assert main([*command, "--overwrite"]) == 0
        assert times(target) == times(clip)
        assert packets_of(target, "audio") == packets_of(clip, "audio")

    @pytest.mark.parametrize("name", ["in.vob", "in.nut", "in.part1", "in"])
    def test_a_clip_of_another_name(self, tmp_path, flags, name):
        """The content tells the format, where the output has the name of a video."""
        clip = make_clip(tmp_path / "in.mkv", 4).rename(tmp_path / name)
        target = tmp_path / "out.mkv"
        assert main(["upscale", str(clip), "-o", str(target), *flags]) == 0
        assert times(target) == times(clip)

    def test_a_bad_clip_gives_one_error(self, tmp_path, flags, capsys):
        (tmp_path / "text.mp4").write_text("This is not a film. " * 99)
        command = ["upscale", str(tmp_path / "text.mp4"), *flags]
        assert main([*command, "-o", str(tmp_path / "out.mkv")]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert without_hidden(tmp_path) == ["text.mp4"]

    def test_frames_through_pipes(self, flags):
        content = y4m("420p10", 2)[0].getvalue()
        command = [sys.executable, "-m", "aethernet", "upscale", "-", "-o", "-", *flags]
        done = subprocess.run(command, input=content, capture_output=True, check=True)
        header = f"YUV4MPEG2 W{2 * WIDTH} H{2 * HEIGHT} ".encode()
        assert done.stdout.startswith(header)
        size = 2 * WIDTH * 2 * HEIGHT * 3 // 2 * 2
        assert len(done.stdout) == done.stdout.index(b"\n") + 1 + 2 * (6 + size)
        cut = subprocess.run(
            command, input=content[:-9], capture_output=True, check=False
        )
        assert cut.returncode == 1
        assert cut.stdout == done.stdout[: -(6 + size)]
        assert (
            b"ends inside a frame; the whole frames before it are done (1)"
            in cut.stderr
        )
