"""Animations that become videos: times, transparency, what is left out."""

from fractions import Fraction

import numpy as np
import pytest
from helpers import PLAIN, lively_file
from picture_files import turned_animation
from PIL import Image
from video_beside import frames_of
from video_helpers import FrameRepeat, av, times

from aethernet.commands.main import main
from aethernet.errors import AetherError
from aethernet.video.clip import read_clip
from aethernet.video.upscale import VideoOptions, upscale_video

DELAYS = (100, 50, 200, 70)


def animation(path, *, transparent=False, delays=DELAYS, loop=0):
    frames = []
    for n in range(len(delays)):
        pixels = np.full((24, 32, 4), (200, 40 * n, 20, 255), np.uint8)
        if transparent:
            pixels[:, 16:] = 0
        frames.append(Image.fromarray(pixels))
    if not transparent:
        frames = [frame.convert("RGB") for frame in frames]
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(
        *(path,),
        save_all=True,
        append_images=frames[1:],
        duration=list(delays),
        loop=loop,
        **lossless,
    )
    return path


def pictures(path):
    with av.open(str(path)) as container:
        frames = frames_of(container, container.streams.video[0])
        return [frame.reformat(format="rgba").to_ndarray() for frame in frames]


@pytest.mark.parametrize("before", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("after", [".mp4", ".mkv"])
def test_times_and_pictures_are_those_of_the_animation(tmp_path, before, after, caplog):
    source = animation(tmp_path / f"in{before}")
    target = tmp_path / f"out{after}"
    done = upscale_video(source, target, FrameRepeat())
    assert done.encoding.codec == "libx264"
    assert times(target) == [Fraction(each, 1000) for each in (0, 100, 150, 350)]
    with av.open(str(target)) as container:
        assert container.duration == 420_000  # microseconds
    for n, picture in enumerate(pictures(target)):
        assert picture.shape == (48, 64, 4)
        assert np.abs(picture.astype(int) - (200, 40 * n, 20, 255)).max() <= 6
    assert "left out the number of repetitions" in caplog.text


@pytest.mark.parametrize("turn", range(2, 9))
@pytest.mark.parametrize("before", [".webp", ".png", ".avif"])
def test_an_orientation_turns_every_frame(tmp_path, before, turn):
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[:12, :16], pixels[12:, :16], pixels[:12, 16:] = (
        *((250, 250, 0), (0, 250, 0), (0, 60, 250)),
    )
    frames = [Image.fromarray(np.roll(pixels, 4 * n, 1)) for n in range(3)]
    source = tmp_path / f"in{before}"
    upright = turned_animation(source, turn, frames, duration=100)
    for after in (".mkv", ".mp4", ".mov"):
        target = tmp_path / f"out{after}"
        upscale_video(source, target, FrameRepeat())
        for picture, small in zip(pictures(target), upright, strict=True):
            expected = small.repeat(2, 0).repeat(2, 1)
            assert picture.shape[:2] == expected.shape[:2]
            difference = np.abs(picture[..., :3] - expected)
            assert difference.mean() < 8  # of blurred edges; 60 and more if not turned


def test_a_small_one_goes_into_webm(tmp_path):
    source = animation(tmp_path / "in.gif", delays=(100, 50))
    done = upscale_video(source, tmp_path / "out.webm", FrameRepeat())
    assert done.encoding.codec == "libvpx-vp9"
    assert times(tmp_path / "out.webm") == [0, Fraction(1, 10)]


def test_transparency_goes_into_webm_and_is_refused_for_mp4(tmp_path):
    for suffix in (".gif", ".webp", ".png"):
        source = animation(tmp_path / f"in{suffix}", transparent=True)
        target = tmp_path / f"{suffix[1:]}.webm"
        assert upscale_video(source, target, FrameRepeat()).encoding.has_alpha
        for picture in pictures(target):
            assert picture[24, 8, 3] > 250
            assert picture[24, 56, 3] < 5
        with pytest.raises(AetherError, match="has transparency"):
            upscale_video(source, tmp_path / "out.mp4", FrameRepeat())


def test_frames_of_no_time_last_as_long_as_viewers_show_them(tmp_path):
    source = animation(tmp_path / "in.gif", delays=(0, 10, 20))
    target = tmp_path / "out.mp4"
    upscale_video(source, target, FrameRepeat())
    assert times(target) == [0, Fraction(1, 10), Fraction(2, 10)]


def test_exact_times_of_apng(tmp_path):
    source = animation(tmp_path / "in.png", delays=[1000 / 30] * 4)
    target = tmp_path / "out.mp4"
    upscale_video(source, target, FrameRepeat())
    assert times(target) == [Fraction(n, 30) for n in range(4)]


def test_a_part_of_it(tmp_path):
    source = animation(tmp_path / "in.webp")
    options = VideoOptions(codec="ffv1", start=0.1, end=0.35)
    upscale_video(source, tmp_path / "out.mkv", FrameRepeat(), options)
    assert times(tmp_path / "out.mkv") == [0, Fraction(1, 20)]


def test_gray_stays_gray(tmp_path):
    frames = [Image.new("L", (32, 24), value) for value in (10, 200)]
    source = tmp_path / "in.gif"
    frames[0].save(source, save_all=True, append_images=frames[1:], duration=100)
    assert read_clip(source).pixel_format in ("gray", "gbrp")
    target = tmp_path / "out.mkv"
    upscale_video(source, target, FrameRepeat(), VideoOptions("ffv1"))
    for value, picture in zip((10, 200), pictures(target), strict=True):
        assert np.abs(picture[..., :3].astype(int) - value).max() <= 1


def test_the_command_makes_a_video_of_an_animation(tmp_path, capsys):
    source = animation(tmp_path / "in.gif", delays=(100, 50))
    model = tmp_path / "model.safetensors"
    lively_file(model, depths=(1,))
    command = ["upscale", str(source), "--model", str(model), "--runtime", PLAIN]
    command += ["--device", "cpu", "-o", str(tmp_path / "out.mp4")]
    assert main([*command, "--codec", "libx264"]) == 0
    assert times(tmp_path / "out.mp4") == [0, Fraction(1, 10)]
    still = tmp_path / "still.png"
    Image.new("RGB", (8, 8)).save(still)
    command[1] = str(still)
    assert main(command) == 1
    assert "Cannot be written" in capsys.readouterr().err
