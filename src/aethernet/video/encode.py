"""Encode upscaled frames: choose codec and pixel format, write a segment."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from aethernet.errors import AetherError
from aethernet.video.clip import Clip
from aethernet.video.libav import (
    bit_depth,
    chroma_subsampling,
    has_alpha,
    import_av,
    pixel_format,
    planar_name,
    planes_of,
    usual_priority,
)
from aethernet.video.yuv import BT709, FULL, LIMITED, RGB, Colour, from_rgb

_log = logging.getLogger(__name__)

# Time base of the timestamps in a segment's file, which only number its packets.
_NUMBERING = Fraction(1, 25)


@dataclass(frozen=True)
class Codec:
    """An encoder of libav and the options that it is used with."""

    crf: float | None
    """Default constant rate factor; None for an encoder that has none. It is lower than
    the encoder's own, so that the result is not blurred again."""
    options: dict[str, str] = field(default_factory=dict)
    options_444: dict[str, str] = field(default_factory=dict)
    """Further options for 4:4:4."""


# libav's name of the encoder -> how it is used.
CODECS = {
    "libx264": Codec(17, {"preset": "medium", "a53cc": "0"}),
    "libx265": Codec(19, {"preset": "medium", "x265-params": "log-level=none"}),
    "libsvtav1": Codec(23, {"preset": "6"}),
    "ffv1": Codec(None, {"level": "3", "slicecrc": "1", "slices": "4", "g": "1"}),
    "prores_ks": Codec(None, {"profile": "hq", "vendor": "apl0"}, {"profile": "4444"}),
}


@dataclass(frozen=True)
class VideoEncoding:
    """How a video stream is written."""

    codec: str
    """A key of `CODECS`."""
    crf: float | None
    """Constant rate factor; None for a codec that has none."""
    pixel_format: str
    """libav's name."""
    width: int
    height: int
    rate: Fraction
    """Frames per second."""
    time_base: Fraction
    """Seconds per tick."""
    colour: Colour
    aspect: Fraction | None
    """Width of a pixel over its height; None where the source does not say."""

    def __str__(self) -> str:
        quality = "" if self.crf is None else f" CRF {self.crf:g}"
        return f"{self.codec}{quality} {self.pixel_format}"


@dataclass(frozen=True)
class Segment:
    """A file of encoded frames that begins with a key frame, and their true times."""

    path: Path
    pts: tuple[int, ...]
    """Timestamps in the order in which the frames are stored, in the clip's ticks."""
    end: int
    """Tick at which the last frame has been shown."""


def default_codec(clip: Clip, suffix: str) -> str:
    """The codec for a clip where none is asked for: a key of `CODECS`.

    This is AV1 for WebM, else HEVC for more than 8 bits and H.264 for 8. Few devices
    play 10-bit H.264; nearly all that play HEVC play it with 10 bits.
    """
    if suffix == ".webm":
        return "libsvtav1"
    return "libx265" if bit_depth(pixel_format(clip.pixel_format)) > 8 else "libx264"


def encoding_for(
    clip: Clip,
    scale: int,
    suffix: str,
    *,
    codec: str | None = None,
    crf: float | None = None,
    pixel_format_name: str | None = None,
) -> VideoEncoding:
    """Choose how to encode the upscaled clip.

    Args:
        clip: the source.
        scale: how many times larger each side becomes.
        suffix: of the target, e.g. ".mkv".
        codec: a key of `CODECS`; None for `default_codec`.
        crf: constant rate factor; None for that of the codec.
        pixel_format_name: libav's name; None for the clip's, or the nearest that the
            codec takes.

    Raises:
        AetherError: when one of these does not exist or does not go with the codec.
    """
    codec = codec or default_codec(clip, suffix)
    if codec not in CODECS:
        raise AetherError(
            f"There is no codec {codec!r} here, only {', '.join(CODECS)}."
        )
    if crf is not None and CODECS[codec].crf is None:
        raise AetherError(
            f"{codec} has no constant rate factor.", hint="Leave --crf out."
        )
    formats = _formats_of(codec)
    if pixel_format_name is None:
        pixel_format_name = _nearest_format(clip.pixel_format, formats)
    elif pixel_format(pixel_format_name).name not in formats:
        raise AetherError(
            f"{codec} does not take the pixel format {pixel_format_name}, only "
            f"{', '.join(formats)}."
        )
    return VideoEncoding(
        codec,
        CODECS[codec].crf if crf is None else crf,
        pixel_format_name,
        clip.width * scale,
        clip.height * scale,
        clip.rate,
        clip.time_base,
        _stored_colour(clip.colour, is_rgb=pixel_format(pixel_format_name).is_rgb),
        clip.aspect,
    )


def _stored_colour(colour: Colour, *, is_rgb: bool) -> Colour:
    """The clip's colours, with a matrix that the pixel format can have."""
    if is_rgb:
        return replace(colour, matrix=RGB, range=FULL)
    if colour.matrix == RGB:
        return replace(colour, matrix=BT709, range=LIMITED)
    return colour


def _formats_of(codec: str) -> list[str]:
    """The pixel formats of a codec that are planar and without transparency."""
    av = import_av()
    try:
        formats = av.Codec(codec, "w").video_formats
    except ValueError as error:
        raise AetherError(
            f"This build of PyAV has no encoder {codec}.", hint="Use another --codec."
        ) from error
    return [
        each.name
        for each in formats or ()
        if each.name == planar_name(each) and not has_alpha(each)
    ]


def _nearest_format(name: str, formats: Sequence[str]) -> str:
    """The one of `formats` that loses least of what `name` holds, and adds least."""
    if name in formats:
        return name
    wanted = pixel_format(name)
    depth, chroma = bit_depth(wanted), chroma_subsampling(wanted)

    def loss(other: str) -> tuple[Any, ...]:
        candidate = pixel_format(other)
        across, down = chroma_subsampling(candidate)
        return (
            len(candidate.components) < len(wanted.components),
            candidate.is_rgb and not wanted.is_rgb,
            max(depth - bit_depth(candidate), 0),
            across > chroma[0] or down > chroma[1],
            wanted.is_rgb and not candidate.is_rgb,
            len(candidate.components),
            bit_depth(candidate),
            -across * down,
        )

    nearest = min(formats, key=loss)
    if (kept := bit_depth(pixel_format(nearest))) < depth:
        _log.warning("reducing %d bits per value to %d, for this codec", depth, kept)
    return nearest


def frame_maker(encoding: VideoEncoding) -> Callable[[np.ndarray], Any]:
    """Return a function that turns planes into a frame for the encoder.

    It takes planes `(1 or 3, H, W)`, float32, 0..1.
    """
    kind = pixel_format(encoding.pixel_format)
    bits, subsampling = bit_depth(kind), chroma_subsampling(kind)

    def make(planes: np.ndarray) -> Any:
        frame = import_av().VideoFrame(
            encoding.width, encoding.height, encoding.pixel_format
        )
        if len(kind.components) > len(planes):  # gray, with a codec that has no gray
            planes = np.repeat(planes, 3, axis=0)
        coded = from_rgb(planes, bits, encoding.colour, subsampling)
        for view, values in zip(planes_of(frame), coded, strict=True):
            view[...] = values
        return frame

    return make


class SegmentEncoder:
    """Encodes frames into a file of their own, with an encoder of their own."""

    def __init__(self, path: Path, encoding: VideoEncoding) -> None:
        """Open the file and the encoder.

        Raises:
            AetherError: when the encoder does not take this encoding.
            av.FFmpegError: when the file cannot be written. So may the methods.
        """
        self._path, self._encoding = path, encoding
        self._container = import_av().open(f"file:{path}", "w", format="matroska")
        self._stream = add_video_stream(self._container, encoding)
        self._make = frame_maker(encoding)
        self._base: int | None = None
        self._pts: list[int] = []
        self._end = 0

    def write(self, planes: np.ndarray, pts: int, duration: int) -> None:
        """Encode a frame, shown at `pts` for `duration` ticks.

        Args:
            planes: `(1 or 3, H, W)`, float32, 0..1.
            pts: tick of the clip's clock.
            duration: in ticks.
        """
        if self._base is None:
            self._base = pts
        frame = self._make(planes)
        frame.pts, frame.duration = pts - self._base, duration
        frame.time_base = self._encoding.time_base
        frame.pict_type = 0  # the encoder decides
        self._end = pts + duration
        self._mux(self._stream.encode(frame))

    def close(self) -> Segment:
        """Finish the file."""
        self._mux(self._stream.encode(None))
        self._container.close()
        return Segment(self._path, tuple(self._pts), self._end)

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            assert self._base is not None
            self._pts.append(packet.pts + self._base)
            # The file only numbers its packets; the true times are in `Segment`.
            packet.pts = packet.dts = len(self._pts)
            packet.duration, packet.time_base = 1, _NUMBERING
            self._container.mux(packet)


def add_video_stream(container: Any, encoding: VideoEncoding) -> Any:
    """Add a stream with its opened encoder to a container that is being written.

    Raises:
        AetherError: when the container does not hold this codec, or the encoder does
            not take this size or pixel format.
    """
    av = import_av()
    codec = CODECS[encoding.codec]
    options = dict(codec.options)
    if encoding.crf is not None:
        options["crf"] = f"{encoding.crf:g}"
    if chroma_subsampling(pixel_format(encoding.pixel_format)) == (1, 1):
        options |= codec.options_444
    try:
        stream = container.add_stream(
            encoding.codec, rate=encoding.rate, options=options
        )
    except ValueError as error:
        raise AetherError(
            f"{container.format.name} does not hold {encoding.codec}.",
            hint="Name the output .mkv, which holds every codec.",
        ) from error
    try:
        _set_up(stream, encoding)
        with usual_priority():
            stream.codec_context.open()
    except (av.FFmpegError, ValueError) as error:
        size = f"{encoding.width}x{encoding.height}"
        odd = encoding.width % 2 or encoding.height % 2
        raise AetherError(
            f"{encoding.codec} does not take {size} {encoding.pixel_format}.",
            hint=(
                "It needs even sides, except with --pixel-format yuv444p."
                if odd and "crf" in options
                else ""
            ),
        ) from error
    return stream


def _set_up(stream: Any, encoding: VideoEncoding) -> None:
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
