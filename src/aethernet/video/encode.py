"""Codecs, pixel formats and the encoding of one segment."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from aethernet.errors import AetherError
from aethernet.video.clip import (
    Clip,
    depth_of,
    has_alpha,
    is_planar,
    libav,
    planes_of,
    subsampling,
    video_format,
)
from aethernet.video.yuv import BT709, FULL, LIMITED, RGB, Colour, from_rgb

_log = logging.getLogger(__name__)

_NUMBERING = Fraction(1, 25)


@dataclass(frozen=True)
class Codec:
    """An encoder of libav as it is used here."""

    crf: float | None
    """Constant rate factor when none is asked for; None where there is no such thing.
    Lower than the encoder's own: the result should not be blurred again."""
    options: dict[str, str] = field(default_factory=dict)
    deep: dict[str, str] = field(default_factory=dict)
    """Further options for 4:4:4."""


# Name -> how it is used.
CODECS = {
    "libx264": Codec(17, {"preset": "medium", "a53cc": "0"}),
    "libx265": Codec(19, {"preset": "medium", "x265-params": "log-level=none"}),
    "libsvtav1": Codec(23, {"preset": "6"}),
    "ffv1": Codec(None, {"level": "3", "slicecrc": "1", "slices": "4", "g": "1"}),
    "prores_ks": Codec(None, {"profile": "hq", "vendor": "apl0"}, {"profile": "4444"}),
}


@dataclass(frozen=True)
class Encoding:
    """How a video stream is written."""

    codec: str
    """A key of `CODECS`."""
    crf: float | None
    pixel_format: str
    width: int
    height: int
    rate: Fraction
    time_base: Fraction
    colour: Colour
    aspect: Fraction | None

    def __str__(self) -> str:
        quality = "" if self.crf is None else f" CRF {self.crf:g}"
        return f"{self.codec}{quality} {self.pixel_format}"


def default_codec(clip: Clip, suffix: str) -> str:
    """AV1 in WebM; else HEVC for more than 8 bits, H.264 for 8.

    Few devices play 10-bit H.264, nearly all that play HEVC play it with 10 bits.
    """
    if suffix == ".webm":
        return "libsvtav1"
    return "libx265" if depth_of(video_format(clip.pixel_format)) > 8 else "libx264"


def encoding_for(
    clip: Clip,
    scale: int,
    suffix: str,
    codec: str | None,
    crf: float | None,
    pixel_format: str | None,
) -> Encoding:
    """How the upscaled clip is to be encoded; None is left to the clip and the codec.

    Raises:
        AetherError: for words that do not exist or do not go together.
    """
    codec = codec or default_codec(clip, suffix)
    if codec not in CODECS:
        raise AetherError(
            f"There is no codec {codec!r} here, only {', '.join(CODECS)}."
        )
    if crf is not None and CODECS[codec].crf is None:
        raise AetherError(f"{codec} has no constant rate factor; leave --crf out.")
    formats = _formats_of(codec)
    if pixel_format is None:
        pixel_format = _nearest_format(clip.pixel_format, formats)
    elif video_format(pixel_format).name not in formats:
        raise AetherError(
            f"{codec} does not take the pixel format {pixel_format}, only "
            f"{', '.join(formats)}."
        )
    colour = clip.colour
    to_rgb = video_format(pixel_format).is_rgb
    if to_rgb:
        colour = replace(colour, matrix=RGB, range=FULL)
    elif colour.matrix == RGB:
        colour = replace(colour, matrix=BT709, range=LIMITED)
    return Encoding(
        codec,
        CODECS[codec].crf if crf is None else crf,
        pixel_format,
        clip.width * scale,
        clip.height * scale,
        clip.rate,
        clip.time_base,
        colour,
        clip.aspect,
    )


def _formats_of(codec: str) -> list[str]:
    av = libav()
    try:
        formats = av.Codec(codec, "w").video_formats
    except ValueError as error:
        raise AetherError(
            f"This build of PyAV has no encoder {codec}; try another --codec."
        ) from error
    return [
        kind.name
        for kind in formats or ()
        if kind.name == is_planar(kind) and not has_alpha(kind)
    ]


def _nearest_format(name: str, formats: Sequence[str]) -> str:
    """The one of `formats` that loses least of what `name` holds, and adds least."""
    if name in formats:
        return name
    wanted = video_format(name)
    depth, chroma = depth_of(wanted), subsampling(wanted)

    def loss(other: str) -> tuple[Any, ...]:
        kind = video_format(other)
        across, down = subsampling(kind)
        return (
            len(kind.components) < len(wanted.components),
            kind.is_rgb and not wanted.is_rgb,
            max(depth - depth_of(kind), 0),
            across > chroma[0] or down > chroma[1],
            wanted.is_rgb and not kind.is_rgb,
            len(kind.components),
            depth_of(kind),
            -across * down,
        )

    nearest = min(formats, key=loss)
    if (kept := depth_of(video_format(nearest))) < depth:
        _log.warning("%d bits per value become %d", depth, kept)
    return nearest


def frame_maker(
    width: int, height: int, pixel_format: str, colour: Colour, siting: str = "left"
) -> Callable[[np.ndarray], Any]:
    """What turns planes `(1 or 3, H, W)`, float32, 0..1, into new frames."""
    kind = video_format(pixel_format)
    bits, ratio = depth_of(kind), subsampling(kind)

    def make(planes: np.ndarray) -> Any:
        frame = libav().VideoFrame(width, height, pixel_format)
        if len(kind.components) > len(planes):  # gray, and a codec without it
            planes = np.repeat(planes, 3, axis=0)
        coded = from_rgb(planes, bits, colour, ratio, siting)
        for view, values in zip(planes_of(frame), coded, strict=True):
            view[...] = values
        return frame

    return make


class SegmentEncoder:
    """Encodes frames into one file of its own, with an encoder of its own."""

    def __init__(self, path: Path, encoding: Encoding) -> None:
        """Raises AetherError when the encoder does not take what is asked of it."""
        self._encoding = encoding
        self._container = libav().open(f"file:{path}", "w", format="matroska")
        self._stream = add_encoder(self._container, encoding)
        self._make = frame_maker(
            encoding.width, encoding.height, encoding.pixel_format, encoding.colour
        )
        self._base: int | None = None
        self._pts: list[int] = []
        self._end = 0

    def write(self, planes: np.ndarray, pts: int, duration: int) -> None:
        """Encode planes to be shown at `pts` for `duration` ticks."""
        if self._base is None:
            self._base = pts
        frame = self._make(planes)
        frame.pts, frame.duration = pts - self._base, duration
        frame.time_base = self._encoding.time_base
        frame.pict_type = 0
        self._end = pts + duration
        self._mux(self._stream.encode(frame))

    def close(self) -> tuple[tuple[int, ...], int]:
        """Finish the file; what `Segment` wants to know of it: `pts` and `end`."""
        self._mux(self._stream.encode(None))
        self._container.close()
        return tuple(self._pts), self._end

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            assert self._base is not None
            self._pts.append(packet.pts + self._base)
            # The file numbers its frames; what counts is noted.
            packet.pts = packet.dts = len(self._pts)
            packet.duration, packet.time_base = 1, _NUMBERING
            self._container.mux(packet)


def add_encoder(container: Any, encoding: Encoding) -> Any:
    av = libav()
    codec = CODECS[encoding.codec]
    options = dict(codec.options)
    if encoding.crf is not None:
        options["crf"] = f"{encoding.crf:g}"
    if subsampling(video_format(encoding.pixel_format)) == (1, 1):
        options |= codec.deep
    try:
        stream = container.add_stream(
            encoding.codec, rate=encoding.rate, options=options
        )
    except ValueError as error:
        raise AetherError(
            f"{container.format.name} does not hold {encoding.codec}; .mkv holds all."
        ) from error
    try:
        stream.width, stream.height = encoding.width, encoding.height
        stream.pix_fmt = encoding.pixel_format
        context = stream.codec_context
        context.time_base = stream.time_base = encoding.time_base
        context.thread_type = "AUTO"
        context.colorspace = encoding.colour.matrix
        context.color_range = encoding.colour.range
        context.color_primaries = encoding.colour.primaries
        context.color_trc = encoding.colour.transfer
        if encoding.aspect:
            context.sample_aspect_ratio = encoding.aspect
        context.open()
    except (av.FFmpegError, ValueError) as error:
        what = f"{encoding.width}x{encoding.height} {encoding.pixel_format}"
        hint = ""
        if (encoding.width % 2 or encoding.height % 2) and options.get("crf"):
            hint = "; it wants even sides, except with --pixel-format yuv444p"
        raise AetherError(f"{encoding.codec} does not take {what}{hint}.") from error
    return stream
