"""Small clips and y4m streams, and what is in the files made of them."""

import hashlib
import io
from fractions import Fraction

import numpy as np
import pytest
from helpers import Repeat

av = pytest.importorskip("av", reason="needs pip install -e '.[video]'")
from av.stream import Disposition
from PIL import Image

from aethernet.video.upscale import VideoOptions, upscale_video

WIDTH, HEIGHT = 48, 32
LOSSLESS = VideoOptions(codec="ffv1")
MS = Fraction(1, 1000)


class FrameRepeat(Repeat):
    """As `Repeat`, for a whole video."""

    @property
    def frames(self):
        """What it was given of the clip, without the picture of the fingerprint."""
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


def solid(*values):
    def draw(n, planes):
        for plane, value in zip(planes, values, strict=True):
            plane[...] = value

    return draw


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


def digests_of_doubled(clip):
    """Frames of a clip as an uncut lossless run gives them."""
    target = clip.with_name("whole.mkv")
    upscale_video(clip, target, FrameRepeat(), LOSSLESS)
    return digests(target)


def packets_of(path, kind):
    """(time, data) of the first stream of that kind."""
    with av.open(str(path)) as container:
        (stream, *_) = (s for s in container.streams if s.type == kind)
        return [
            (packet.pts * stream.time_base, bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]


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


def jpeg():
    file = io.BytesIO()
    Image.new("RGB", (16, 12), "red").save(file, "JPEG")
    return file.getvalue()


COVER = jpeg()


def add_cover(container):
    """Add a cover picture, as music players show it; returns its packet."""
    stream = container.add_stream("mjpeg", rate=25)
    stream.width, stream.height, stream.pix_fmt = 16, 12, "yuvj420p"
    stream.disposition = Disposition.attached_pic
    packet = av.Packet(COVER)
    packet.stream, packet.time_base, packet.pts, packet.dts = stream, MS, 0, 0
    return [packet]


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
