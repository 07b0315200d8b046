"""Transparent videos: carried, put on black when asked to, or refused first."""

import numpy as np
import pytest
from helpers import PLAIN, lively_file, without_hidden
from video_beside import add_extras, first_frame, frames_of, stereo
from video_helpers import (
    HEIGHT,
    WIDTH,
    FrameRepeat,
    av,
    decoded,
    make_clip,
    moving,
    planes_of,
    times,
)

from aethernet.commands.main import main
from aethernet.errors import AetherError
from aethernet.video.upscale import VideoOptions, upscale_video

VP9 = {"codec": "libvpx-vp9", "options": {"b": "0", "crf": "10", "auto-alt-ref": "0"}}


def halves(n, planes):
    """The left half is opaque, the right one transparent."""
    *colours, alpha = planes
    moving(n, colours)
    deep = alpha.dtype.itemsize > 1
    if deep:
        for plane in colours:
            plane[...] <<= 2
    alpha[...] = 0
    alpha[:, : alpha.shape[1] // 2] = 1023 if deep else 255


def transparent(path, kind="yuva420p", **options):
    return make_clip(path, 3, halves, kind=kind, **options)


def alpha_of(path):
    """The alpha plane of the first frame, 0..1."""
    frame = first_frame(path)
    alpha = planes_of(frame)[-1]
    assert frame.format.components[-1].is_alpha, frame.format.name
    return alpha / (2 ** frame.format.components[-1].bits - 1)


class TestCarried:
    @pytest.mark.parametrize("codec", ["vp8", "vp9"])
    @pytest.mark.parametrize("suffix", [".webm", ".mkv", ".mov"])
    def test_transparency_beside_the_packets(self, tmp_path, shared, codec, suffix):
        clip = shared / f"cases/{codec}_alpha.webm"
        target = tmp_path / f"out{suffix}"
        model = FrameRepeat()
        done = upscale_video(clip, target, model)
        assert done.encoding.has_alpha
        alpha = alpha_of(target)
        half = alpha.shape[1] // 2
        assert alpha[:, : half - 8].min() > 0.98
        assert alpha[:, half + 8 :].max() < 0.02
        assert times(target) == times(clip)

    @pytest.mark.parametrize(
        ("kind", "suffix", "codec", "name"),
        [
            ("yuva420p", ".webm", "libvpx-vp9", "yuva420p"),
            ("yuva420p", ".mkv", "libvpx-vp9", "yuva420p"),
            ("yuva420p10le", ".mkv", "ffv1", "yuva420p10le"),
            ("yuva444p10le", ".mov", "prores_ks", "yuva444p10le"),
            ("yuva444p10le", ".webm", "libvpx-vp9", "yuva420p"),
            ("gbrap10le", ".mkv", "ffv1", "gbrap10le"),
        ],
    )
    def test_each_container_has_a_codec_for_it(
        self, tmp_path, kind, suffix, codec, name
    ):
        clip = transparent(tmp_path / "in.mkv", kind)
        target = tmp_path / f"out{suffix}"
        done = upscale_video(clip, target, FrameRepeat())
        assert done.encoding.codec == codec
        frame = first_frame(target)
        assert frame.format.name == name
        before, after = alpha_of(clip), alpha_of(target)
        assert np.abs(after[::2, ::2] - before)[:, : WIDTH // 2 - 4].max() < 0.03
        assert np.abs(after[::2, ::2] - before)[:, WIDTH // 2 + 4 :].max() < 0.03

    def test_gray_with_transparency_stays_gray(self, tmp_path):
        clip = tmp_path / "in.nut"
        with av.open(str(clip), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "ya8"
            frame = av.VideoFrame(16, 16, "ya8")
            pixels = np.zeros((16, 16, 2), np.uint8)
            pixels[..., 0], pixels[:8, :, 1] = 90, 255
            frame.planes[0].update(pixels.tobytes())
            container.mux([*stream.encode(frame), *stream.encode(None)])
        target = tmp_path / "out.mkv"
        upscale_video(clip, target, FrameRepeat(), VideoOptions("ffv1"))
        ((_, after),) = decoded(target)
        assert after.format.name == "ya8"
        found = np.frombuffer(after.planes[0], np.uint8).reshape(32, -1, 2)[:, :32]
        assert (found[..., 0] == 90).all()
        assert (found[:16, :, 1] == 255).all()
        assert (found[16:, :, 1] == 0).all()

    def test_colours_beside_the_transparent_part_get_no_dark_edge(self, tmp_path):
        def on_black(n, planes):
            *colours, alpha = planes
            for plane, value in zip(colours, (180, 128, 128), strict=True):
                plane[...] = value
            colours[0][:, WIDTH // 2 :] = 16
            alpha[...] = 0
            alpha[:, : WIDTH // 2] = 255

        clip = make_clip(tmp_path / "in.mkv", 1, on_black, kind="yuva444p")
        model = FrameRepeat()
        upscale_video(clip, tmp_path / "out.mkv", model, VideoOptions("ffv1"))
        colours, alpha = model.frames
        assert alpha[0, 0, 8, [2, -2]].tolist() == [1, 0]
        near = colours[0, :, 8, WIDTH // 2 : WIDTH // 2 + 3]
        assert np.abs(near - colours[0, :, 8, :1]).max() < 0.02

    def test_it_goes_together_with_other_things(self, tmp_path):
        clip = add_extras(transparent(tmp_path / "in.mkv"), stereo(1))
        target = tmp_path / "out.webm"
        upscale_video(clip, target, FrameRepeat())
        with av.open(str(target)) as container:
            assert container.streams[0].metadata["stereo_mode"] == "left_right"
        assert alpha_of(target)[:, WIDTH + 8 :].max() < 0.02
        assert b"\x53\xc0\x81\x01" in target.read_bytes()  # AlphaMode

    def test_a_part_of_it(self, tmp_path):
        clip = make_clip(tmp_path / "in.webm", 30, halves, kind="yuva420p", **VP9)
        target = tmp_path / "out.mkv"
        options = VideoOptions("ffv1", start=0.8, end=1.0)
        upscale_video(clip, target, FrameRepeat(), options)
        assert len(times(target)) == 5
        assert alpha_of(target)[:, WIDTH + 8 :].max() < 0.02

    def test_a_frame_without_alpha_among_others_is_opaque(self, tmp_path):
        # As browsers record: alpha comes only with frames that need it.
        clip = transparent(tmp_path / "in.webm", **VP9)
        parts = tmp_path / "parts.webm"
        with av.open(str(clip)) as source, av.open(str(parts), "w") as output:
            (original,) = source.streams
            stream = output.add_stream_from_template(original, opaque=True)
            stream.metadata["alpha_mode"] = "1"
            for n, packet in enumerate(source.demux(original)):
                if packet.size:
                    kept = packet
                    if n == 0:
                        kept = av.Packet(bytes(packet))
                        kept.pts = kept.dts = packet.pts
                        kept.time_base, kept.is_keyframe = packet.time_base, True
                    kept.stream = stream
                    output.mux(kept)
        target = tmp_path / "out.mkv"
        upscale_video(parts, target, FrameRepeat(), VideoOptions("ffv1"))
        with av.open(str(target)) as container:
            kinds = {f.format.name for f in frames_of(container, container.streams[0])}
        assert kinds == {"yuva420p"}
        assert alpha_of(target).min() == 1


class TestLeftOut:
    @pytest.mark.parametrize(
        ("name", "codec"), [("out.mp4", None), ("out.mkv", "libx264")]
    )
    def test_what_cannot_hold_it_is_refused_before_anything_is_written(
        self, tmp_path, name, codec
    ):
        clip = transparent(tmp_path / "in.webm", **VP9)
        model = FrameRepeat()
        with pytest.raises(AetherError, match=r"has transparency.*--pixel-format"):
            upscale_video(clip, tmp_path / name, model, VideoOptions(codec))
        assert without_hidden(tmp_path) == ["in.webm"]
        assert not model.seen

    def test_it_is_put_on_black_when_asked_for(self, tmp_path, caplog):
        clip = transparent(tmp_path / "in.webm", **VP9)
        target = tmp_path / "out.mp4"
        options = VideoOptions(pixel_format="yuv420p")
        upscale_video(clip, target, FrameRepeat(), options)
        assert "the transparency is left out" in caplog.text
        luma = planes_of(first_frame(target))[0]
        assert luma[:, WIDTH + 8 :].max() <= 20
        assert luma[:, : WIDTH - 8].min() > 50

    @pytest.mark.parametrize("codec", ["libx264", "ffv1", "libsvtav1"])
    def test_a_tag_of_transparency_is_not_copied(self, tmp_path, codec):
        clip = transparent(tmp_path / "in.webm", size=(64, 64), **VP9)
        target = tmp_path / "out.mkv"
        options = VideoOptions(codec, pixel_format="yuv420p")
        upscale_video(clip, target, FrameRepeat(), options)
        with av.open(str(target)) as container:
            assert "ALPHA_MODE" not in container.streams[0].metadata
        assert b"alpha_mode" not in target.read_bytes().lower()

    def test_a_tag_of_the_target_is_true(self, tmp_path):
        clip = transparent(tmp_path / "in.mkv")
        for codec, tagged in (("libvpx-vp9", True), ("ffv1", False)):
            target = tmp_path / f"{codec}.mkv"
            upscale_video(clip, target, FrameRepeat(), VideoOptions(codec))
            with av.open(str(target)) as container:
                (stream,) = container.streams
                tag = stream.metadata.get(
                    "ALPHA_MODE", stream.metadata.get("alpha_mode")
                )
            assert (tag == "1") == tagged


def test_the_command_carries_transparency(tmp_path, capsys):
    clip = transparent(tmp_path / "in.webm", size=(WIDTH, HEIGHT), **VP9)
    model = tmp_path / "model.safetensors"
    lively_file(model, depths=(1,))
    command = ["upscale", str(clip), "--model", str(model), "--runtime", PLAIN]
    command += ["--device", "cpu"]
    assert main([*command, "-o", str(tmp_path / "out.webm")]) == 0
    assert "yuva420p" in capsys.readouterr().out
    alpha = alpha_of(tmp_path / "out.webm")
    assert alpha.shape == (2 * HEIGHT, 2 * WIDTH)
    assert alpha.std() > 0.1
    assert main([*command, "-o", str(tmp_path / "out.mp4")]) == 1
    assert "has transparency" in capsys.readouterr().err
