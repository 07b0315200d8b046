"""Colours of videos: matrices, ranges, bit depths, chroma, gray and RGB."""

import os
import sys

import numpy as np
import pytest
from video_helpers import (
    HEIGHT,
    LOSSLESS,
    MATRICES,
    WIDTH,
    FrameRepeat,
    as_rgb,
    decoded,
    make_clip,
    planes_of,
    solid,
)

from aethernet.video.upscale import VideoOptions, upscale_video
from aethernet.video.yuv import Colour, from_rgb, to_rgb


class TestColours:
    @pytest.mark.parametrize("bits", [8, 10, 12, 16])
    @pytest.mark.parametrize("full", [False, True])
    @pytest.mark.parametrize("matrix", MATRICES)
    def test_what_is_not_changed_comes_back_value_for_value(self, matrix, full, bits):
        colour = Colour(matrix, 2 if full else 1, 1, 1)
        rng = np.random.default_rng(0)
        step = 2 ** (bits - 8)
        planes = [
            rng.integers(low * step, high * step, (70, 33))
            for low, high in ((60, 180), (116, 140), (116, 140))
        ]
        back = from_rgb(to_rgb(planes, bits, colour), bits, colour)
        # float32 has 24 bits, of which the way there and back takes some.
        for before, after in zip(planes, back, strict=True):
            assert np.abs(after.astype(int) - before).max() <= (1 if bits == 16 else 0)

    @pytest.mark.parametrize("kind", ["yuv420p", "yuv444p"])
    @pytest.mark.parametrize("full", [False, True])
    @pytest.mark.parametrize("matrix", MATRICES)
    def test_solid_colours_go_through_the_right_matrix(
        self, tmp_path, matrix, full, kind
    ):
        values = (100, 90, 170)
        colour = (matrix, 2 if full else 1, 1, 1)
        clip = make_clip(
            tmp_path / "in.mkv", 1, solid(*values), kind=kind, colour=colour
        )
        model = FrameRepeat()
        upscale_video(clip, tmp_path / "out.mkv", model, LOSSLESS)
        seen = model.frames[0][0].reshape(3, -1)
        expected = as_rgb(*values, matrix, full)
        assert np.abs(seen - expected[:, None]).max() < 0.5 / 255
        ((_, frame),) = decoded(tmp_path / "out.mkv")
        assert (frame.width, frame.height) == (2 * WIDTH, 2 * HEIGHT)
        assert frame.format.name == kind
        for plane, value in zip(planes_of(frame), values, strict=True):
            assert np.abs(plane.astype(int) - value).max() <= 1
        assert (frame.colorspace, frame.color_range) == colour[:2]
        assert (frame.color_primaries, frame.color_trc) == (1, 1)

    @pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
    def test_lossy_codecs_keep_a_solid_colour_and_its_description(
        self, tmp_path, codec
    ):
        colour = (1, 2, 1, 13)
        size = (64, 64)  # the smallest that SVT-AV1 takes
        clip = make_clip(
            tmp_path / "in.mkv", 3, solid(100, 90, 170), size=size, colour=colour
        )
        upscale_video(
            clip, tmp_path / "out.mkv", FrameRepeat(), VideoOptions(codec=codec)
        )
        for _, frame in decoded(tmp_path / "out.mkv"):
            for plane, value in zip(planes_of(frame), (100, 90, 170), strict=True):
                assert np.abs(plane.astype(int) - value).max() <= 2
            described = (frame.colorspace, frame.color_range)
            assert (*described, frame.color_primaries, frame.color_trc) == colour
        if sys.platform == "linux":
            # SVT-AV1 gives root's threads real-time priority.
            threads = map(int, os.listdir("/proc/self/task"))
            assert {*map(os.sched_getscheduler, threads)} == {os.SCHED_OTHER}

    @pytest.mark.parametrize(
        ("lines", "matrix", "primaries", "transfer"),
        [(32, 6, 6, 6), (576, 5, 5, 6), (720, 1, 1, 1)],
    )
    def test_what_is_not_said_goes_by_the_size_and_is_then_said(
        self, tmp_path, lines, matrix, primaries, transfer
    ):
        clip = make_clip(
            tmp_path / "in.mkv", 1, solid(100, 90, 170), size=(WIDTH, lines)
        )
        model = FrameRepeat()
        upscale_video(clip, tmp_path / "out.mkv", model, LOSSLESS)
        expected = as_rgb(100, 90, 170, matrix, full=False)
        assert np.allclose(model.frames[0][0, :, 0, 0], expected, atol=0.5 / 255)
        ((_, frame),) = decoded(tmp_path / "out.mkv")
        assert (frame.colorspace, frame.color_range) == (matrix, 1)
        assert (frame.color_primaries, frame.color_trc) == (primaries, transfer)

    def test_10_bit_has_no_8_bit_step(self, tmp_path):
        def ramp(n, planes):
            codes = np.resize(np.arange(64, 941), planes[0].shape)
            planes[0][...] = codes
            planes[1][...] = planes[2][...] = 512

        clip = make_clip(
            tmp_path / "in.mkv", 1, ramp, kind="yuv420p10le", colour=(9, 1, 9, 16)
        )
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        ((_, frame),) = decoded(tmp_path / "out.mkv")
        assert frame.format.name == "yuv420p10le"
        luma = planes_of(frame)[0][::2, ::2].astype(int)
        before = planes_of(decoded(clip)[0][1])[0].astype(int)
        assert np.abs(luma - before).max() <= 1
        assert len(np.unique(luma)) >= 0.99 * len(np.unique(before))
        assert (frame.color_primaries, frame.color_trc) == (9, 16)  # BT.2020, PQ

    def test_8_bits_are_not_dithered(self, tmp_path):
        clip = make_clip(
            tmp_path / "in.mkv", 1, solid(101, 128, 128), colour=(1, 1, 1, 1)
        )
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        ((_, frame),) = decoded(tmp_path / "out.mkv")
        assert all(len(np.unique(plane)) == 1 for plane in planes_of(frame))

    @pytest.mark.parametrize("scale", [1, 2])
    def test_chroma_stays_where_it_is(self, tmp_path, scale):
        # A slope in chroma comes out as the same slope, not moved sideways: sample n
        # of 4:2:0 lies at luma column 2n.
        def slope(n, planes):
            planes[0][...] = 128
            planes[1][...] = 80 + 4 * np.arange(planes[1].shape[1])
            planes[2][...] = 128

        clip = make_clip(
            tmp_path / "in.mkv",
            1,
            slope,
            codec="libx264",
            colour=(1, 2, 1, 1),
            options={"qp": "0", "x264-params": "chromaloc=0"},
        )

        class Bilinear(FrameRepeat):
            def run(self, batch):
                height, width = batch.shape[2:]
                wide = np.arange(width * self.scale)
                at = (wide + 0.5) / self.scale - 0.5
                rows = [np.interp(at, range(width), row) for row in batch[0, :, 0]]
                tall = np.repeat(np.stack(rows)[None, :, None], height * self.scale, 2)
                return tall.astype(np.float32)

        upscale_video(clip, tmp_path / "out.mkv", Bilinear(scale), LOSSLESS)
        chroma = planes_of(decoded(tmp_path / "out.mkv")[0][1])[1][HEIGHT // 4]
        # Output column x is input column (x + 0.5) / scale - 0.5.
        at = (2 * np.arange(len(chroma)) + 0.5) / scale - 0.5
        expected = 80 + 4 * at / 2
        inside = slice(4, -4)
        assert np.abs(chroma[inside] - expected[inside]).max() <= 1

    def test_gray_stays_gray(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 2, kind="gray")
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        for (_, before), (_, after) in zip(
            decoded(clip), decoded(tmp_path / "out.mkv"), strict=True
        ):
            assert after.format.name == "gray"
            difference = (
                planes_of(after)[0][::2, ::2].astype(int) - planes_of(before)[0]
            )
            assert np.abs(difference).max() <= 1

    def test_gray_without_a_range_is_full(self, tmp_path):
        def ramp(_, planes):
            planes[0][...] = np.linspace(0, 255, WIDTH).astype(np.uint8)

        clip = make_clip(tmp_path / "in.mkv", 2, ramp, kind="gray", colour=(2, 0, 2, 2))
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        (_, frame), *_ = decoded(tmp_path / "out.mkv")
        found = planes_of(frame)[0][0, ::2]
        assert np.array_equal(found, np.linspace(0, 255, WIDTH).astype(np.uint8))
