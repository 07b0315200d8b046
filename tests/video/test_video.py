"""Upscaling videos: timing, colours, other streams, resuming, pipes, bad files."""

import argparse
import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from helpers import ROOT, lively_network, without_hidden

av = pytest.importorskip("av", reason="needs pip install -e '.[video]'")
from av.stream import Disposition  # noqa: E402
from PIL import Image  # noqa: E402

from aethernet.checkpoints.checkpoint import save_checkpoint  # noqa: E402
from aethernet.commands.main import main  # noqa: E402
from aethernet.commands.values import raw_format, seconds  # noqa: E402
from aethernet.errors import AetherError  # noqa: E402
from aethernet.video import upscale as video  # noqa: E402
from aethernet.video.clip import read_clip  # noqa: E402
from aethernet.video.encode import CODECS  # noqa: E402
from aethernet.video.upscale import VideoOptions, upscale_stream, upscale_video  # noqa: E402
from aethernet.video.y4m import RawFormat  # noqa: E402
from aethernet.video.yuv import Colour, from_rgb, to_rgb  # noqa: E402

WIDTH, HEIGHT = 48, 32
LOSSLESS = VideoOptions(codec="ffv1")
MS = Fraction(1, 1000)


def jpeg():
    file = io.BytesIO()
    Image.new("RGB", (16, 12), "red").save(file, "JPEG")
    return file.getvalue()


COVER = jpeg()


class Repeat:
    """Stands in for a model: each pixel becomes a square of scale x scale."""

    channels = 3

    def __init__(self, scale=2):
        self.scale = scale
        self.seen = []

    def run(self, batch):
        self.seen.append(batch)
        return batch.repeat(self.scale, 2).repeat(self.scale, 3)

    def describe(self):
        return "a stand-in"

    @property
    def frames(self):
        """What it was given of the clip, without the fingerprint's picture."""
        return self.seen[1:]


def planes_of(frame):
    """A frame's planes as arrays of integers that can be written."""
    deep = frame.format.components[0].bits > 8
    dtype = np.dtype("<u2" if deep else "u1")
    return [
        np.ndarray(
            (plane.height, plane.width),
            dtype,
            buffer=plane,
            strides=(plane.line_size, dtype.itemsize),
        )
        for plane in frame.planes
    ]


def moving(n, planes):
    """Frame n of a scene that differs in every frame; its colours exist in RGB."""
    for index, plane in enumerate(planes):
        rows, columns = np.indices(plane.shape)
        low, span = (118, 20) if index else (60, 120)
        plane[...] = low + (3 * rows + 5 * columns + 11 * n + 7 * index) % span


def make_clip(
    path,
    count=6,
    draw=moving,
    *,
    codec="ffv1",
    kind="yuv420p",
    size=(WIDTH, HEIGHT),
    times=None,
    time_base=MS,
    colour=(2, 0, 2, 2),
    set_up=None,
    extras=None,
    options=None,
):
    """Write a clip; `times` are ticks of `time_base`, by default 25 frames a second.

    `colour`: matrix, range, primaries, transfer. `set_up(container, stream)` comes
    before the first frame, `extras(container)` returns packets to be added.
    """
    times = times or [round(Fraction(n, 25) / time_base) for n in range(count)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = kind
        context = stream.codec_context
        context.time_base = stream.time_base = time_base
        context.colorspace, context.color_range = colour[:2]
        context.color_primaries, context.color_trc = colour[2:]
        if set_up:
            set_up(container, stream)
        packets = extras(container) if extras else []
        for n, pts in enumerate(times):
            frame = av.VideoFrame(*size, kind)
            draw(n, planes_of(frame))
            frame.colorspace, frame.color_range = colour[:2]
            frame.color_primaries, frame.color_trc = colour[2:]
            frame.pts, frame.time_base = pts, time_base
            packets += stream.encode(frame)
        packets += stream.encode(None)
        container.mux(packets)
    return path


def decoded(path):
    with av.open(str(path)) as container:
        return [
            (frame.pts * container.streams.video[0].time_base, frame)
            for frame in container.decode(video=0)
        ]


def times(path):
    return [time for time, _ in decoded(path)]


def digests(path):
    """Of every decoded frame."""
    return [
        hashlib.sha256(b"".join(p.tobytes() for p in planes_of(frame))).hexdigest()
        for _, frame in decoded(path)
    ]


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
        monkeypatch.setattr(video, "SEGMENT_FRAMES", 5)
        clip = make_clip(tmp_path / "in.mkv", times=self.IRREGULAR)
        target = tmp_path / f"out{suffix}"
        done = upscale_video(clip, target, Repeat(), VideoOptions(codec=codec))
        assert done.frames == 12
        assert times(target) == [tick * MS for tick in self.IRREGULAR]

    def test_an_exact_time_base_stays_exact(self, tmp_path):
        base = Fraction(1, 90000)
        ticks = [0, 3003, 6006, 9010, 12013, 100001]
        clip = make_clip(
            tmp_path / "in.mp4", codec="libx264", times=ticks, time_base=base
        )
        upscale_video(clip, tmp_path / "out.mp4", Repeat())
        assert times(tmp_path / "out.mp4") == [tick * base for tick in ticks]

    @pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
    def test_a_constant_rate_stays_constant(self, tmp_path, suffix):
        clip = make_clip(tmp_path / "in.mkv", 60)
        target = tmp_path / f"out{suffix}"
        upscale_video(clip, target, Repeat(), VideoOptions("libx264"))
        with av.open(str(target)) as container:
            assert container.streams.video[0].average_rate == 25
            assert container.duration == 60 * 40_000  # microseconds

    def test_progress_counts_every_frame(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 7)
        said = []
        target = tmp_path / "out.mkv"
        upscale_video(clip, target, Repeat(), LOSSLESS, lambda *word: said.append(word))
        assert [done for done, _ in said] == [*range(8)]
        assert said[-1] == (7, 7)

    def test_a_clip_that_begins_late_begins_at_zero(self, tmp_path):
        late = [round(1.4 * 90000) + 3600 * n for n in range(5)]
        clip = make_clip(
            tmp_path / "in.ts",
            codec="libx264",
            times=late,
            time_base=Fraction(1, 90000),
        )
        assert times(clip)[0] > 1
        upscale_video(clip, tmp_path / "out.mkv", Repeat(), LOSSLESS)
        assert times(tmp_path / "out.mkv") == [Fraction(n, 25) for n in range(5)]


def solid(*values):
    def draw(n, planes):
        for plane, value in zip(planes, values, strict=True):
            plane[...] = value

    return draw


# ITU-T H.273: number of the matrix -> Kr, Kb.
MATRICES = {
    1: (0.2126, 0.0722),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    9: (0.2627, 0.0593),
}


def as_rgb(y, cb, cr, matrix, full):
    """By the formulas of ITU-T H.273, 0..1."""
    kr, kb = MATRICES[matrix]
    black, luma, chroma = (0, 255, 255) if full else (16, 219, 224)
    y, cb, cr = (y - black) / luma, (cb - 128) / chroma, (cr - 128) / chroma
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip([red, green, blue], 0, 1)


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
        model = Repeat()
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
        upscale_video(clip, tmp_path / "out.mkv", Repeat(), VideoOptions(codec=codec))
        for _, frame in decoded(tmp_path / "out.mkv"):
            for plane, value in zip(planes_of(frame), (100, 90, 170), strict=True):
                assert np.abs(plane.astype(int) - value).max() <= 2
            described = (frame.colorspace, frame.color_range)
            assert (*described, frame.color_primaries, frame.color_trc) == colour

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
        model = Repeat()
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
        upscale_video(clip, tmp_path / "out.mkv", Repeat(), LOSSLESS)
        ((_, frame),) = decoded(tmp_path / "out.mkv")
        assert frame.format.name == "yuv420p10le"
        luma = planes_of(frame)[0][::2, ::2].astype(int)
        before = planes_of(decoded(clip)[0][1])[0].astype(int)
        assert np.abs(luma - before).max() <= 1
        assert len(np.unique(luma)) >= 0.99 * len(np.unique(before))
        assert (frame.color_primaries, frame.color_trc) == (9, 16)  # BT.2020, PQ

    def test_10_bit_is_encoded_with_10_bits_by_default(self, tmp_path):
        clip = make_clip(
            tmp_path / "in.mkv", 2, solid(400, 512, 512), kind="yuv420p10le"
        )
        done = upscale_video(clip, tmp_path / "out.mkv", Repeat())
        assert done.encoding.codec == "libx265"
        assert decoded(tmp_path / "out.mkv")[0][1].format.name == "yuv420p10le"

    def test_8_bits_are_not_dithered(self, tmp_path):
        clip = make_clip(
            tmp_path / "in.mkv", 1, solid(101, 128, 128), colour=(1, 1, 1, 1)
        )
        upscale_video(clip, tmp_path / "out.mkv", Repeat(), LOSSLESS)
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

        class Bilinear(Repeat):
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
        upscale_video(clip, tmp_path / "out.mkv", Repeat(), LOSSLESS)
        for (_, before), (_, after) in zip(
            decoded(clip), decoded(tmp_path / "out.mkv"), strict=True
        ):
            assert after.format.name == "gray"
            difference = (
                planes_of(after)[0][::2, ::2].astype(int) - planes_of(before)[0]
            )
            assert np.abs(difference).max() <= 1

    def test_rgb_is_stored_as_yuv_where_the_codec_has_no_rgb(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 1, kind="gbrp10le")
        done = upscale_video(
            clip, tmp_path / "out.mkv", Repeat(), VideoOptions(codec="libx264")
        )
        assert done.encoding.pixel_format == "yuv444p10le"
        ((_, frame),) = decoded(tmp_path / "out.mkv")
        assert (frame.colorspace, frame.color_range) == (1, 1)

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
            upscale_video(clip, target, Repeat(), VideoOptions(codec=codec))
            with av.open(str(target)) as container:
                ratio = container.streams.video[0].sample_aspect_ratio
                assert Fraction(ratio.numerator, ratio.denominator) == Fraction(16, 11)
            frame = decoded(target)[0][1]
            assert frame.rotation == decoded(clip)[0][1].rotation == 90

    def test_an_aspect_that_cannot_be_carried_is_said(self, tmp_path, caplog):
        def set_up(container, stream):
            stream.codec_context.sample_aspect_ratio = Fraction(16, 11)

        clip = make_clip(tmp_path / "in.mp4", 2, codec="libx264", set_up=set_up)
        upscale_video(clip, tmp_path / "out.mkv", Repeat(), LOSSLESS)
        assert "pixel aspect of 16/11" in caplog.text


class TestCodecs:
    @pytest.mark.parametrize("kind", ["yuv420p", "yuv422p10le", "yuv444p12le", "gray"])
    @pytest.mark.parametrize("codec", CODECS)
    def test_every_codec_takes_every_common_source(self, tmp_path, codec, kind):
        clip = make_clip(tmp_path / "in.mkv", 2, kind=kind, size=(64, 64))
        upscale_video(clip, tmp_path / "out.mkv", Repeat(), VideoOptions(codec=codec))
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
        model = Repeat()
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
            upscale_video(clip, target, Repeat(), VideoOptions("libx264", crf))
            sizes.append(target.stat().st_size)
        assert sizes[0] > 3 * sizes[1]

    def test_words_that_do_not_go_together_are_refused(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 2)
        for name, options, said in (
            ("out.mkv", VideoOptions("h263"), "no codec 'h263'"),
            ("out.mkv", VideoOptions("ffv1", 17), "no constant rate factor"),
            ("out.mkv", VideoOptions(pixel_format="rgb"), "no pixel format"),
            ("out.mkv", VideoOptions("libx264", None, "rgb24"), "does not take"),
            ("out.webm", VideoOptions("libx264"), "webm does not hold libx264"),
            ("out.avi", VideoOptions(), "name it .mkv"),
        ):
            with pytest.raises(AetherError, match=said):
                upscale_video(clip, tmp_path / name, Repeat(), options)
        assert without_hidden(tmp_path) == ["in.mkv"]

    def test_odd_sides_are_refused_with_a_way_out(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 2, size=(47, 31))
        with pytest.raises(AetherError, match="yuv444p"):
            upscale_video(
                clip, tmp_path / "out.mkv", Repeat(1), VideoOptions("libx264")
            )
        options = VideoOptions("libx264", pixel_format="yuv444p")
        upscale_video(clip, tmp_path / "out.mkv", Repeat(1), options)
        assert len(decoded(tmp_path / "out.mkv")) == 2


def add_sound(container, codec="flac", rate=8000, count=8):
    """Add a sound stream; returns its packets, 0.1 s each."""
    stream = container.add_stream(codec, rate=rate)
    stream.layout = "mono"
    stream.metadata["language"] = "nds"
    packets = []
    for n in range(count):
        samples = (8000 * np.sin(np.arange(rate // 10) / (3 + n))).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
        frame.sample_rate, frame.pts = rate, n * rate // 10
        frame.time_base = Fraction(1, rate)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def add_subtitles(container):
    stream = container.add_mux_stream("subrip")
    stream.metadata["title"] = "Lyrics"
    stream.time_base = MS
    packets = []
    for start, text in ((40, "one"), (520, "two")):
        packet = av.Packet(text.encode())
        packet.stream, packet.time_base = stream, MS
        packet.pts = packet.dts = start
        packet.duration = 300
        packets.append(packet)
    return packets


def everything(container):
    container.metadata["title"] = "A clip"
    container.set_chapters(
        [
            {
                "id": n + 1,
                "start": 400 * n,
                "end": 400 * (n + 1),
                "time_base": MS,
                "metadata": {"title": f"Part {n}"},
            }
            for n in range(2)
        ]
    )
    container.add_attachment("font.ttf", "font/ttf", b"not really a font")
    return sorted(
        add_sound(container) + add_subtitles(container),
        key=lambda packet: packet.pts * packet.time_base,
    )


def packets_of(path, kind):
    """(time, data) of the first stream of that kind."""
    with av.open(str(path)) as container:
        (stream, *_) = (s for s in container.streams if s.type == kind)
        return [
            (packet.pts * stream.time_base, bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]


def add_cover(container):
    """Add a cover picture, as music players show it; returns its packet."""
    stream = container.add_stream("mjpeg", rate=25)
    stream.width, stream.height, stream.pix_fmt = 16, 12, "yuvj420p"
    stream.disposition = Disposition.attached_pic
    packet = av.Packet(COVER)
    packet.stream, packet.time_base, packet.pts, packet.dts = stream, MS, 0, 0
    return [packet]


class TestOtherStreams:
    def test_everything_else_is_copied(self, tmp_path, monkeypatch):
        monkeypatch.setattr(video, "SEGMENT_FRAMES", 7)
        clip = make_clip(tmp_path / "in.mkv", 20, extras=everything)
        target = tmp_path / "out.mkv"
        upscale_video(clip, target, Repeat())
        assert times(target) == times(clip)
        for kind in ("audio", "subtitle"):
            assert packets_of(target, kind) == packets_of(clip, kind)
        assert len(packets_of(target, "audio")) > 1
        with av.open(str(clip)) as before, av.open(str(target)) as after:
            assert [s.type for s in after.streams] == [s.type for s in before.streams]
            assert after.metadata["title"] == "A clip"
            assert after.streams.audio[0].language == "nds"
            assert after.streams.subtitles[0].metadata["title"] == "Lyrics"
            told = [
                [(c["start"] * c["time_base"], c["metadata"]) for c in each.chapters()]
                for each in (before, after)
            ]
            assert told[0] == told[1]
            assert told[0][1] == (Fraction(2, 5), {"title": "Part 1"})
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
        upscale_video(clip, tmp_path / "out.mp4", Repeat())
        assert packets_of(tmp_path / "out.mp4", "audio") == packets_of(clip, "audio")
        assert times(tmp_path / "out.mp4") == times(clip)

    def test_times_that_are_repeated_do_not_stop_the_copy(self, tmp_path):
        def repeated(container):
            first, second, *rest = add_sound(container)
            second.pts = second.dts = first.pts
            return [first, second, *rest]

        clip = make_clip(tmp_path / "in.mkv", 10, extras=repeated)
        before = packets_of(clip, "audio")
        assert before[0][0] == before[1][0]
        upscale_video(clip, tmp_path / "out.mp4", Repeat())
        after = packets_of(tmp_path / "out.mp4", "audio")
        assert [data for _, data in after] == [data for _, data in before]

    def test_what_the_container_cannot_hold_is_said(self, tmp_path, caplog):
        clip = make_clip(tmp_path / "in.mkv", 10, extras=everything)
        upscale_video(clip, tmp_path / "out.mp4", Repeat())
        said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert len(said) == 2
        assert "stream 2 (subtitle, srt) is left out, .mp4 does not hold it" in said[0]
        assert "attachment" in said[1]
        assert packets_of(tmp_path / "out.mp4", "audio")
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert len(container.chapters()) == 2

    def test_a_cover_stays_a_cover_in_every_container(self, tmp_path):
        clip = make_clip(tmp_path / "in.mp4", 4, codec="libx264", extras=add_cover)
        for source, target in (
            ("in.mp4", "out.mp4"),
            ("in.mp4", "out.mkv"),
            ("out.mkv", "again.mkv"),
            ("out.mkv", "again.mp4"),
        ):
            upscale_video(tmp_path / source, tmp_path / target, Repeat())
            with av.open(str(tmp_path / target)) as container:
                film, cover = container.streams.video
                assert not film.disposition & Disposition.attached_pic
                assert cover.disposition & Disposition.attached_pic
                packets = [*container.demux(cover)]
            assert [bytes(p) for p in packets if p.size] == [COVER], target
            assert times(tmp_path / target) == times(clip)

    def test_a_cover_that_webm_does_not_hold_is_said(self, tmp_path, caplog):
        clip = make_clip(
            *(tmp_path / "in.mp4", 2), codec="libx264", size=(64, 64), extras=add_cover
        )
        upscale_video(clip, tmp_path / "out.webm", Repeat())
        assert "stream 1 (video, mjpeg) is left out" in caplog.text

    def test_a_title_that_is_no_utf8_stops_nothing(self, tmp_path):
        def name_it(container, stream):
            container.metadata["title"] = "A clip of mine"

        clip = make_clip(tmp_path / "in.mkv", 2, set_up=name_it)
        content = clip.read_bytes()
        assert b"A clip of mine" in content
        clip.write_bytes(content.replace(b"A clip of mine", b"caf\xe9, of mine"))
        upscale_video(clip, tmp_path / "out.mkv", Repeat())
        assert b", of mine" in (tmp_path / "out.mkv").read_bytes()

    def test_a_cut_cuts_all_streams_alike(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 20, extras=everything)
        target = tmp_path / "out.mkv"
        options = VideoOptions(codec="ffv1", start=0.4, end=0.6)
        upscale_video(clip, target, Repeat(), options)
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


def digests_of_doubled(clip):
    """Frames of a clip as an uncut lossless run gives them."""
    target = clip.with_name("whole.mkv")
    upscale_video(clip, target, Repeat(), LOSSLESS)
    return digests(target)


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
        model = Repeat()
        target = tmp_path / "out.mkv"
        upscale_video(clip, target, model, VideoOptions(codec="ffv1", **options))
        expected = Repeat()
        upscale_video(clip, tmp_path / "whole.mkv", expected, LOSSLESS)
        assert len(model.frames) == len(frames)
        for frame, n in zip(model.frames, frames, strict=True):
            assert np.array_equal(frame, expected.frames[n])
        assert times(target) == [Fraction(n, 25) for n in range(len(frames))]

    def test_empty_cuts_are_refused(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 10)
        for options, said in (
            ({"start": 5.0}, "ends at 0.40 s"),
            ({"start": 0.2, "end": 0.2}, "asked for is empty"),
            ({"preview": 1.0, "end": 2.0}, "--end goes without"),
        ):
            with pytest.raises(AetherError, match=said):
                upscale_video(
                    clip, tmp_path / "o.mkv", Repeat(), VideoOptions(**options)
                )
        assert without_hidden(tmp_path) == ["in.mkv"]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("90", 90), ("5s", 5), ("1:30", 90), ("0:01:30.5", 90.5), (".5", 0.5)],
    )
    def test_times_as_people_write_them(self, text, expected):
        assert seconds(text) == expected

    @pytest.mark.parametrize("text", ["", "abc", "-5", "1:2:3:4", "5m", "nan", "1:"])
    def test_what_is_no_time(self, text):
        with pytest.raises(argparse.ArgumentTypeError, match="expected seconds"):
            seconds(text)


DRIVER = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}]
from test_video import Repeat, LOSSLESS
from aethernet.video import upscale as video

class Slow(Repeat):
    def run(self, batch):
        time.sleep(0.02)
        return super().run(batch)

video.SEGMENT_FRAMES = 6
done = video.upscale_video(Path({source!r}), Path({target!r}), Slow(), LOSSLESS)
print(done.resumed)
"""


class TestResuming:
    @pytest.fixture(autouse=True)
    def short_segments(self, monkeypatch):
        monkeypatch.setattr(video, "SEGMENT_FRAMES", 6)

    def test_a_run_killed_twice_ends_as_if_it_had_not_been(self, tmp_path):
        clip = make_clip(
            tmp_path / "in.mp4",
            60,
            codec="libx264",
            time_base=Fraction(1, 12800),
            extras=lambda container: add_sound(container, "aac"),
            options={"g": "12"},
        )
        target = tmp_path / "out.mkv"
        parts = tmp_path / ".out.mkv.parts"
        code = DRIVER.format(
            tests=str(ROOT / "tests"), source=str(clip), target=str(target)
        )
        seen = 0
        for _ in range(2):
            process = subprocess.Popen([sys.executable, "-c", code])
            deadline = time.monotonic() + 60
            while len([*parts.glob("0*.json")]) < seen + 2:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not target.exists()
            seen = len([*parts.glob("0*.json")])
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert int(done.stdout) == 6 * seen >= 24
        assert without_hidden(tmp_path) == ["in.mp4", "out.mkv"]
        upscale_video(clip, tmp_path / "at_once.mkv", Repeat(), LOSSLESS)
        assert digests(target) == digests(tmp_path / "at_once.mkv")
        assert times(target) == times(tmp_path / "at_once.mkv")
        assert packets_of(target, "audio") == packets_of(
            tmp_path / "at_once.mkv", "audio"
        )

    def interrupted(self, clip, target, options=LOSSLESS, after=15):
        """A run whose model fails after so many frames."""

        class Failing(Repeat):
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
        model = Repeat()
        said = []
        done = upscale_video(clip, target, model, LOSSLESS, lambda *w: said.append(w))
        assert done.resumed == 15
        assert len(model.frames) == 5
        assert said[0] == (15, 20)
        assert digests(target) == digests_of_doubled(clip)
        assert not (tmp_path / ".out.mkv.parts").exists()

    def test_slow_work_is_kept_in_shorter_segments(self, tmp_path, monkeypatch):
        monkeypatch.setattr(video, "SEGMENT_FRAMES", 48)
        monkeypatch.setattr(video, "SEGMENT_SECONDS", 0.0)
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
        upscale_video(clip, target, Repeat(), LOSSLESS)
        assert digests(target) == digests_of_doubled(clip)

    @pytest.mark.parametrize("changed", ["source", "model", "options"])
    def test_another_job_begins_anew_and_says_so(self, tmp_path, changed, caplog):
        clip = make_clip(tmp_path / "in.mkv", 20)
        target = tmp_path / "out.mkv"
        self.interrupted(clip, target)
        model, options = Repeat(), LOSSLESS
        if changed == "source":
            make_clip(clip, 21)
        elif changed == "model":
            model.run = lambda batch: Repeat.run(model, batch) * 0.9
        else:
            options = VideoOptions(codec="ffv1", end=0.7)
        done = upscale_video(clip, target, model, options)
        assert done.resumed == 0
        assert "begun anew" in caplog.text

    def test_a_damaged_segment_is_made_again(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 20)
        target = tmp_path / "out.mkv"
        self.interrupted(clip, target)
        damaged = tmp_path / ".out.mkv.parts/000001.mkv"
        damaged.write_bytes(damaged.read_bytes()[:-9])
        done = upscale_video(clip, target, Repeat(), LOSSLESS)
        assert done.resumed == 6
        assert digests(target) == digests_of_doubled(clip)

    def test_nothing_beyond_a_damaged_segment_counts_later(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 30)
        target = tmp_path / "out.mkv"
        self.interrupted(clip, target, after=20)
        damaged = tmp_path / ".out.mkv.parts/000001.mkv"
        damaged.write_bytes(damaged.read_bytes()[:-9])
        self.interrupted(clip, target, after=3)
        upscale_video(clip, target, Repeat(), LOSSLESS)
        assert digests(target) == digests_of_doubled(clip)

    def test_two_runs_do_not_make_one_target(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 12)
        target = tmp_path / "out.mkv"

        class Meanwhile(Repeat):
            def run(self, batch):
                if len(self.frames) == 8:
                    with pytest.raises(AetherError, match="Another run is making"):
                        upscale_video(clip, target, Repeat(), LOSSLESS)
                return super().run(batch)

        upscale_video(clip, target, Meanwhile(), LOSSLESS)
        assert without_hidden(tmp_path) == ["in.mkv", "out.mkv"]
        assert digests(target) == digests_of_doubled(clip)

    def test_other_tiles_are_another_job(self, tmp_path, caplog):
        clip = make_clip(tmp_path / "in.mkv", 20)
        target = tmp_path / "out.mkv"
        self.interrupted(clip, target)
        model = Repeat()
        model.context, model.asked_tile = 0, 64
        assert upscale_video(clip, target, model, LOSSLESS).resumed == 0
        assert "begun anew" in caplog.text

    def test_what_a_kill_while_joining_left_is_removed(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 3)
        (tmp_path / ".out.0123abcd.part.mkv").write_bytes(b"half of it")
        upscale_video(clip, tmp_path / "out.mkv", Repeat(), LOSSLESS)
        assert without_hidden(tmp_path) == ["in.mkv", "out.mkv"]

    def test_a_target_that_exists_is_only_replaced_on_request(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 3)
        target = tmp_path / "out.mkv"
        target.write_bytes(b"older")
        with pytest.raises(AetherError, match="--overwrite"):
            upscale_video(clip, target, Repeat(), LOSSLESS)
        assert target.read_bytes() == b"older"
        upscale_video(clip, target, Repeat(), VideoOptions("ffv1", overwrite=True))
        assert len(decoded(target)) == 3


class TestTellsOf:
    def test_a_clip_that_ends_before_it_says(self, tmp_path, caplog):
        clip = make_clip(tmp_path / "in.mkv", 100)
        content = clip.read_bytes()
        clip.write_bytes(content[: len(content) * 6 // 10])
        upscale_video(clip, tmp_path / "out.mkv", Repeat(), LOSSLESS)
        assert "may be cut short" in caplog.text

    def test_a_whole_clip_without_a_word(self, tmp_path, caplog):
        clip = make_clip(tmp_path / "in.mkv", 60)
        upscale_video(clip, tmp_path / "out.mkv", Repeat(), LOSSLESS)
        assert caplog.text == ""

    def test_times_that_jump_back(self, tmp_path):
        options = {"codec": "libx264", "time_base": Fraction(1, 90000)}
        whole = make_clip(tmp_path / "a.ts", 30, **options).read_bytes()
        (tmp_path / "in.ts").write_bytes(whole + whole)
        with pytest.raises(AetherError, match="timestamps jump back"):
            upscale_video(tmp_path / "in.ts", tmp_path / "out.mkv", Repeat(), LOSSLESS)

    def test_gray_without_a_range_is_full(self, tmp_path):
        def ramp(_, planes):
            planes[0][...] = np.linspace(0, 255, WIDTH).astype(np.uint8)

        clip = make_clip(tmp_path / "in.mkv", 2, ramp, kind="gray", colour=(2, 0, 2, 2))
        upscale_video(clip, tmp_path / "out.mkv", Repeat(), LOSSLESS)
        (_, frame), *_ = decoded(tmp_path / "out.mkv")
        found = planes_of(frame)[0][0, ::2]
        assert np.array_equal(found, np.linspace(0, 255, WIDTH).astype(np.uint8))

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
            done = upscale_video(clip, target, Repeat(), options)
            assert abs(done.frames - count) <= 1


class TestBadInput:
    def refused(self, source, said, target=None, model=None):
        before = source.read_bytes() if source.is_file() else None
        target = target or source.with_name("out.mkv")
        with pytest.raises(AetherError, match=said) as error:
            upscale_video(source, target, model or Repeat())
        assert "\n" not in str(error.value)
        assert str(error.value).endswith(".")
        assert not target.exists()
        hidden = [n for n in os.listdir(source.parent) if n.startswith(".")]
        assert hidden == []
        if before is not None:
            assert source.read_bytes() == before

    def test_text_nothing_missing_and_folder(self, tmp_path):
        (tmp_path / "text.mp4").write_text("This is not a film. " * 99)
        self.refused(tmp_path / "text.mp4", "is no video")
        (tmp_path / "empty.mp4").touch()
        self.refused(tmp_path / "empty.mp4", "is empty")
        self.refused(tmp_path / "absent.mp4", "There is no file")
        (tmp_path / "folder.mp4").mkdir()
        self.refused(tmp_path / "folder.mp4", "is a folder")

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
        self.refused(tmp_path / "cut.mp4", "is cut short" if fast else "is no video")

    def test_sound_only_and_no_frames(self, tmp_path):
        with av.open(str(tmp_path / "sound.mkv"), "w") as container:
            container.mux(add_sound(container))
        self.refused(tmp_path / "sound.mkv", "no video stream; it holds audio")
        clip = make_clip(tmp_path / "whole.mkv", 1)
        with (
            av.open(str(clip)) as source,
            av.open(str(tmp_path / "none.mkv"), "w") as container,
        ):
            container.add_stream_from_template(source.streams.video[0])
            container.start_encoding()
        self.refused(tmp_path / "none.mkv", "no video that can be read")

    def test_transparency_is_refused(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 2, kind="yuva420p")
        self.refused(clip, "transparency")

    def test_the_clip_itself_is_no_target(self, tmp_path):
        clip = make_clip(tmp_path / "in.mkv", 2)
        with pytest.raises(AetherError, match="name another output"):
            upscale_video(clip, clip, Repeat(), VideoOptions(overwrite=True))

    def test_a_model_that_fails_is_one_error(self, tmp_path):
        class Bad(Repeat):
            def run(self, batch):
                return super().run(batch) * np.nan

        clip = make_clip(tmp_path / "in.mkv", 2)
        self.refused(clip, "NaN", model=Bad())

    def test_a_full_disk_is_one_error(self, tmp_path, monkeypatch):
        clip = make_clip(tmp_path / "in.mkv", 20)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(video.SegmentEncoder, "close", full)
        self.refused(clip, "No space left")

    def test_interlaced_frames_are_said(self, tmp_path, caplog):
        clip = make_clip(
            tmp_path / "in.mkv",
            3,
            codec="libx264",
            options={"x264-params": "tff=1", "flags": "+ildct+ilme"},
        )
        upscale_video(clip, tmp_path / "out.mkv", Repeat(), LOSSLESS)
        assert "is interlaced" in caplog.text

    def test_damaged_packets_are_left_out_and_said(self, tmp_path, caplog):
        clip = make_clip(tmp_path / "in.mov", 10, codec="prores_ks", kind="yuv422p10le")
        with av.open(str(clip)) as container:
            fifth = [*container.demux(video=0)][4].pos
        content = bytearray(clip.read_bytes())
        content[fifth : fifth + 16] = bytes(16)
        clip.write_bytes(content)
        done = upscale_video(clip, tmp_path / "out.mkv", Repeat(), LOSSLESS)
        assert done.frames == 9
        kept = [n for n in range(10) if n != 4]
        assert times(tmp_path / "out.mkv") == [Fraction(n, 25) for n in kept]
        assert "1 damaged packets of the video were left out" in caplog.text


Y4M = {
    "420": "yuv420p",
    "420jpeg": "yuv420p",
    "420mpeg2": "yuv420p",
    "420paldv": "yuv420p",
    "422": "yuv422p",
    "444": "yuv444p",
    "mono": "gray",
    "420p10": "yuv420p10le",
    "422p12": "yuv422p12le",
    "444p16": "yuv444p16le",
    "mono16": "gray16le",
}


def y4m(layout, count=3, width=WIDTH, height=HEIGHT, extra="F30000:1001 Ip A1:1"):
    """A stream, and the planes of its frames."""
    stream = io.BytesIO()
    stream.write(f"YUV4MPEG2 W{width} H{height} {extra} C{layout}\n".encode())
    frames = []
    for n in range(count):
        frame = av.VideoFrame(width, height, Y4M[layout])
        planes = planes_of(frame)
        moving(n, planes)
        for plane in planes:
            plane[...] <<= frame.format.components[0].bits - 8
        stream.write(b"FRAME\n" + b"".join(plane.tobytes() for plane in planes))
        frames.append([plane.copy() for plane in planes])
    stream.seek(0)
    return stream, frames


class TestPipes:
    @pytest.mark.parametrize("layout", Y4M)
    def test_y4m_in_and_out(self, layout):
        source, frames = y4m(layout)
        target = io.BytesIO()
        assert upscale_stream(source, target, Repeat()) == 3
        line, _, rest = target.getvalue().partition(b"\n")
        assert (
            line
            == (
                f"YUV4MPEG2 W{2 * WIDTH} H{2 * HEIGHT} F30000:1001 Ip A1:1 C{layout}"
            ).encode()
        )
        deep = frames[0][0].itemsize == 2
        for planes in frames:
            assert rest.startswith(b"FRAME\n")
            rest = rest[6:]
            for plane in planes:
                count = 4 * plane.size
                values = np.frombuffer(rest, plane.dtype, count).astype(int)
                rest = rest[count * plane.itemsize :]
                after = values.reshape(2 * plane.shape[0], -1)[::2, ::2]
                if plane is planes[0]:
                    unit = 256 if deep and "16" in layout else 16 if deep else 1
                    assert np.abs(after - plane).max() <= 2 * unit
        assert rest == b""

    def test_libav_reads_what_we_write(self):
        source, _ = y4m("420p10")
        target = io.BytesIO()
        upscale_stream(source, target, Repeat())
        target.seek(0)
        with av.open(target, format="yuv4mpegpipe") as container:
            frames = [*container.decode(video=0)]
        assert [frame.format.name for frame in frames] == ["yuv420p10le"] * 3
        assert (frames[0].width, frames[0].height) == (2 * WIDTH, 2 * HEIGHT)

    @pytest.mark.parametrize("full", [False, True])
    def test_y4m_range_is_honoured(self, full):
        word = "FULL" if full else "LIMITED"
        source, _ = y4m("444", 1, extra=f"F25:1 XCOLORRANGE={word}")
        model = Repeat()
        content = bytearray(source.getvalue())
        header = content.index(b"FRAME\n") + 6
        size = WIDTH * HEIGHT
        for n, value in enumerate((100, 90, 170)):
            start = header + n * size
            content[start : start + size] = bytes([value]) * size
        target = io.BytesIO()
        upscale_stream(io.BytesIO(content), target, model)
        expected = as_rgb(100, 90, 170, 6, full)
        assert np.allclose(model.seen[0][0, :, 0, 0], expected, atol=0.5 / 255)
        assert f"XCOLORRANGE={word}".encode() in target.getvalue()

    @pytest.mark.parametrize("bits", [8, 16])
    def test_raw_rgb(self, bits):
        dtype = np.dtype("u1" if bits == 8 else "<u2")
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 2**bits, (2, 5, 7, 3)).astype(dtype)
        target = io.BytesIO()
        done = upscale_stream(
            io.BytesIO(frames.tobytes()), target, Repeat(), RawFormat(7, 5, bits)
        )
        assert done == 2
        assert target.getvalue() == frames.repeat(2, 1).repeat(2, 2).tobytes()

    @pytest.mark.parametrize("raw", [None, RawFormat(WIDTH, HEIGHT)])
    def test_a_stream_that_breaks_off_gives_its_whole_frames(self, raw):
        source, _ = y4m("444", 3)
        content = source.getvalue()
        if raw:
            content = bytes(3 * 3 * WIDTH * HEIGHT)
        whole = io.BytesIO()
        upscale_stream(io.BytesIO(content), whole, Repeat(), raw)
        target = io.BytesIO()
        with pytest.raises(AetherError, match="breaks off inside a frame; the 2 whole"):
            upscale_stream(io.BytesIO(content[:-100]), target, Repeat(), raw)
        assert len(target.getvalue()) > len(whole.getvalue()) * 0.6
        assert whole.getvalue().startswith(target.getvalue())

    def test_a_reader_that_goes_away_ends_it(self):
        source, _ = y4m("420", 50, 64, 64)
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as end:
            end_reading = threading.Timer(0.2, end.close)
            end_reading.start()
            with pytest.raises(BrokenPipeError), os.fdopen(writer, "wb", 0) as target:
                upscale_stream(source, target, Repeat(8))
            end_reading.join()

    def test_pieces_of_a_slow_pipe_are_put_together(self):
        content = y4m("420", 2)[0].getvalue()
        reader, writer = os.pipe()

        def trickle():
            with os.fdopen(writer, "wb", 0) as end:
                for start in range(0, len(content), 1000):
                    end.write(content[start : start + 1000])

        feeder = threading.Thread(target=trickle)
        feeder.start()
        with os.fdopen(reader, "rb", 0) as source:
            assert (
                upscale_stream(io.BufferedReader(source), io.BytesIO(), Repeat()) == 2
            )
        feeder.join()

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "found nothing"),
            (b"P6 3 3 255\n", "found something else"),
            (b"YUV4MPEG2 " + b"x" * 5000, "something else"),
            (b"YUV4MPEG2 W0 H32 C420\nFRAME\n", "no size"),
            (b"YUV4MPEG2 W99999999 H32\nFRAME\n", "no size"),
            (b"YUV4MPEG2 W8 H8 C411\nFRAME\n", "C411, which is not supported"),
            (b"YUV4MPEG2 W8 H8 C444alpha\nFRAME\n", "not supported"),
            (b"YUV4MPEG2 W8 H8\nnonsense\n", "breaks off"),
        ],
    )
    def test_what_is_no_y4m(self, content, said):
        with pytest.raises(AetherError, match=said):
            upscale_stream(io.BytesIO(content), io.BytesIO(), Repeat())

    def test_raw_formats_as_people_write_them(self):
        assert raw_format("640x360") == RawFormat(640, 360)
        assert raw_format("640X360:48") == RawFormat(640, 360, 16)
        for text in ("640", "0x5", "5x5:9", "axb", "640x360:", "9999999x5"):
            with pytest.raises(argparse.ArgumentTypeError, match="expected WxH"):
                raw_format(text)


class TestOverlap:
    def test_reading_working_and_writing_happen_at_once(self):
        busy = {"read": 0.0, "work": 0.0, "write": 0.0}

        def slowly(name, value=None):
            start = time.perf_counter()
            time.sleep(0.02)
            busy[name] += time.perf_counter() - start
            return value

        def sink(items):
            for n, item in enumerate(items):
                assert item == n
                slowly("write")

        start = time.perf_counter()
        source = (slowly("read", n) for n in range(15))
        video._overlapped(source, lambda n: slowly("work", n), sink)
        assert time.perf_counter() - start < 0.7 * sum(busy.values())

    @pytest.mark.parametrize("where", ["read", "work", "write"])
    def test_an_error_anywhere_comes_out_once(self, where):
        def fail(here, n):
            if where == here and n == 3:
                raise AetherError(here)
            return n

        def sink(items):
            for n in items:
                fail("write", n)

        source = (fail("read", n) for n in range(100))
        with pytest.raises(AetherError, match=where):
            video._overlapped(source, lambda n: fail("work", n), sink)


def test_a_name_is_never_taken_for_an_address(tmp_path):
    clip = make_clip(tmp_path / "in.mkv", 2)
    odd = clip.rename(tmp_path / "concat:a|b %d é.mkv")
    assert read_clip(odd).frames == 2


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """What makes the command run a tiny network."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_checkpoint(lively_network(depths=(1,)), path)
    return ["--model", str(path), "--runtime", "pytorch", "--device", "cpu"]


class TestCommand:
    def test_a_clip_and_a_preview_of_it(self, tmp_path, words, capsys):
        clip = make_clip(tmp_path / "in.mkv", 10, extras=everything)
        target = str(tmp_path / "out.mkv")
        command = ["upscale", str(clip), "-o", target, *words, "--codec", "ffv1"]
        assert main([*command, "--preview", "0.2"]) == 0
        assert len(decoded(target)) == 5
        assert main(command) == 1
        assert "exists" in capsys.readouterr().err
        assert main([*command, "--overwrite"]) == 0
        assert times(target) == times(clip)
        assert packets_of(target, "audio") == packets_of(clip, "audio")

    def test_a_bad_clip_is_one_sentence(self, tmp_path, words, capsys):
        (tmp_path / "text.mp4").write_text("This is not a film. " * 99)
        command = ["upscale", str(tmp_path / "text.mp4"), *words]
        assert main([*command, "-o", str(tmp_path / "out.mkv")]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert without_hidden(tmp_path) == ["text.mp4"]

    def test_frames_through_pipes(self, words):
        content = y4m("420p10", 2)[0].getvalue()
        command = [sys.executable, "-m", "aethernet", "upscale", "-", "-o", "-", *words]
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
        assert b"breaks off inside a frame; the 1 whole" in cut.stderr
