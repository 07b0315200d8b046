"""Codecs, their pixel formats and their quality."""

import numpy as np
import pytest
from helpers import without_hidden
from video_helpers import (
    LOSSLESS,
    FrameRepeat,
    av,
    decoded,
    make_clip,
    planes_of,
    solid,
)

from aethernet.errors import AetherError
from aethernet.video.encode import CODECS
from aethernet.video.upscale import VideoOptions, upscale_video


class TestCodecs:
    @pytest.mark.parametrize("kind", ["yuv420p", "yuv422p10le", "yuv444p12le", "gray"])
    @pytest.mark.parametrize("codec", CODECS)
    def test_every_codec_takes_every_common_source(self, tmp_path, codec, kind):
        clip = make_clip(tmp_path / "in.mkv", 2, kind=kind, size=(64, 64))
        upscale_video(
            clip, tmp_path / "out.mkv", FrameRepeat(), VideoOptions(codec=codec)
        )
        assert len(decoded(tmp_path / "out.mkv")) == 2

    @pytest.mark.parametrize("kind", ["nv12", "yuyv422", "rgb24", "bgr0", "p010le"])
    def test_layouts_that_are_not_planar_lose_nothing(self, tmp_path, kind):
        rng = np.random.default_rng(0)
        path = tmp_path / "in.nut"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("rawvideo", rate=25)
            stream.width, stream.height, stream.pix_fmt = 16, 16, kind
            frame = av.VideoFrame(16, 16, kind)
            for plane in frame.planes:
                plane.update(rng.integers(120, 136, plane.buffer_size, np.uint8))
            container.mux([*stream.encode(frame), *stream.encode(None)])
        model = FrameRepeat()
        done = upscale_video(path, tmp_path / "out.mkv", model, LOSSLESS)
        planar = done.encoding.pixel_format
        before = planes_of(decoded(path)[0][1].reformat(format=planar))[0]
        after = planes_of(decoded(tmp_path / "out.mkv")[0][1])[0][::2, ::2]
        assert np.abs(after.astype(int) - before).max() <= 1

    def test_crf_reaches_the_encoder(self, tmp_path):
        rng = np.random.default_rng(0)

        def noise(n, planes):
            for plane in planes:
                plane[...] = rng.integers(16, 235, plane.shape)

        clip = make_clip(tmp_path / "in.mkv", 3, noise)
        sizes = []
        for crf in (10, 40):
            target = tmp_path / f"{crf}.mkv"
            upscale_video(clip, target, FrameRepeat(), VideoOptions("libx264", crf))
            sizes.append(target.stat().st_size)
        assert sizes[0] > 3 * sizes[1]

    def test_options_that_do_not_go_together_are_refused(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 2)
        for name, options, message in (
            ("out.mkv", VideoOptions("h263"), "no codec 'h263'"),
            ("out.mkv", VideoOptions("ffv1", 17), "no constant rate factor"),
            ("out.mkv", VideoOptions(pixel_format="rgb"), "no pixel format"),
            ("out.mkv", VideoOptions("libx264", None, "rgb24"), "does not take"),
            ("out.webm", VideoOptions("libx264"), "webm does not hold libx264"),
            ("out.avi", VideoOptions(), "Use one of .mkv"),
        ):
            with pytest.raises(AetherError, match=message):
                upscale_video(clip, tmp_path / name, FrameRepeat(), options)
        assert without_hidden(tmp_path) == ["in.mkv"]

    def test_odd_sides_are_refused_with_a_way_out(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 2, size=(47, 31))
        with pytest.raises(AetherError, match="yuv444p"):
            upscale_video(
                clip, tmp_path / "out.mkv", FrameRepeat(1), VideoOptions("libx264")
            )
        options = VideoOptions("libx264", pixel_format="yuv444p")
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(1), options)
        assert len(decoded(tmp_path / "out.mkv")) == 2


class TestPixelFormats:
    def test_10_bit_is_encoded_with_10_bits_by_default(self, tmp_path):
        clip = make_clip(
            tmp_path / "in.mkv", 2, solid(400, 512, 512), kind="yuv420p10le"
        )
        done = upscale_video(clip, tmp_path / "out.mkv", FrameRepeat())
        assert done.encoding.codec == "libx265"
        assert decoded(tmp_path / "out.mkv")[0][1].format.name == "yuv420p10le"

    def test_x265_is_not_used_for_widths_where_it_writes_past_its_buffers(
        self, tmp_path
    ):
        clip = make_clip(
            *(tmp_path / "in.mkv", 2, solid(400, 512, 512)),
            kind="yuv420p10le",
            size=(30, 32),
        )
        done = upscale_video(clip, tmp_path / "out.mkv", FrameRepeat())
        assert done.encoding.codec == "libx264"
        assert decoded(tmp_path / "out.mkv")[0][1].format.name == "yuv420p10le"
        with pytest.raises(AetherError, match="narrower than 64 pixels"):
            upscale_video(
                *(clip, tmp_path / "out.mp4", FrameRepeat(), VideoOptions("libx265"))
            )

    def test_rgb_is_stored_as_yuv_where_the_codec_has_no_rgb(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 1, kind="gbrp10le")
        done = upscale_video(
            clip, tmp_path / "out.mkv", FrameRepeat(), VideoOptions(codec="libx264")
        )
        assert done.encoding.pixel_format == "yuv444p10le"
        ((_, frame),) = decoded(tmp_path / "out.mkv")
        assert (frame.colorspace, frame.color_range) == (1, 1)
