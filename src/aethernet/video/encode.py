"""Encode upscaled frames: choose codec and pixel format, write a segment."""

import io
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aethernet.errors import AetherError
from aethernet.video.extras import Extra, light_of, mastering_of
from aethernet.video.libav import (
    bit_depth,
    chroma_subsampling,
    colour_components,
    has_alpha,
    import_av,
    pixel_format,
    planar_name,
    planes_of,
    usual_priority,
)
from aethernet.video.yuv import BT709, FULL, LIMITED, RGB, Colour, from_rgb

if TYPE_CHECKING:
    # It loads libvips, and the list of codecs is needed for --help.
    from aethernet.video.clip import Clip

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
    alpha: dict[str, str] | None = None
    """Further options for transparency; None for an encoder that stores none."""
    captions: bool = False
    """Whether it stores the captions of a frame (CEA-608, CEA-708)."""


# libav's name of the encoder -> how it is used.
CODECS = {
    "libx264": Codec(17, {"preset": "medium", "a53cc": "1"}, captions=True),
    "libx265": Codec(19, {"preset": "medium", "a53cc": "1"}, captions=True),
    "libsvtav1": Codec(23, {"preset": "6"}),
    "libvpx-vp9": Codec(
        24,
        {"b": "0", "row-mt": "1", "cpu-used": "2"},
        alpha={"auto-alt-ref": "0"},  # libvpx takes no transparency with it
    ),
    "ffv1": Codec(
        None,
        {"level": "3", "slicecrc": "1", "slices": "4", "g": "1"},
        alpha={},
    ),
    "prores_ks": Codec(
        None,
        {"profile": "hq", "vendor": "apl0"},
        {"profile": "4444"},
        alpha={"alpha_bits": "16"},
    ),
}

# Encoder -> its option for parameters of its own, and those that are always set.
_PARAMETERS = {
    "libx264": ("x264-params", ""),
    "libx265": ("x265-params", "log-level=none"),
    "libsvtav1": ("svtav1-params", ""),
}

# Below this width x265 4.1 writes past its buffers.
_X265_WIDTH = 64

_SVT_SIDE = 64  # SVT-AV1 takes no sides below

# The one format in which browsers read the transparency of VP9.
_VP9_ALPHA = "yuva420p"


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
    siting: str
    """Place of the chroma samples, where their rows are fewer: "left", "topleft"."""
    aspect: Fraction | None
    """Width of a pixel over its height; None where the source does not say."""
    parameters: str = ""
    """What the encoder is told of the light levels, in its own words."""

    @property
    def has_alpha(self) -> bool:
        """Whether it stores transparency."""
        return has_alpha(pixel_format(self.pixel_format))

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


def default_codec(clip: "Clip", scale: int, suffix: str, *, alpha: bool) -> str:
    """The codec for a clip where none is asked for: a key of `CODECS`.

    This is AV1 for WebM, or VP9 for sides below 64, else HEVC for more than 8 bits and
    H.264 for 8, or for less than 64 pixels of width. Few devices play 10-bit H.264;
    nearly all that play HEVC play it with 10 bits. For transparency it is VP9, which
    has 8 bits and 4:2:0, or FFV1 for more, and ProRes in .mov.

    Raises:
        AetherError: when no codec stores transparency in this container.
    """
    kind = pixel_format(clip.pixel_format)
    deep = bit_depth(kind) > 8
    if alpha:
        if suffix == ".mov":
            return "prores_ks"
        if suffix not in (".mkv", ".webm"):
            raise _no_alpha(clip, f"no codec here stores in {suffix}")
        more = deep or chroma_subsampling(kind) != (2, 2)
        return "ffv1" if more and suffix == ".mkv" else "libvpx-vp9"
    if suffix == ".webm":
        small = scale * min(clip.width, clip.height) < _SVT_SIDE
        return "libvpx-vp9" if small else "libsvtav1"
    wide = scale * clip.width >= _X265_WIDTH
    return "libx265" if deep and wide else "libx264"


def _no_alpha(clip: "Clip", who: str) -> AetherError:
    return AetherError(
        f"The video has transparency, which {who}.",
        clip.path,
        "Name the output .webm, .mkv or .mov, or put it on black with --pixel-format "
        "yuv420p.",
    )


def encoding_for(
    clip: "Clip",
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
    source_format = pixel_format(clip.pixel_format)
    alpha = has_alpha(
        pixel_format(pixel_format_name) if pixel_format_name else source_format
    )
    codec = codec or default_codec(clip, scale, suffix, alpha=alpha)
    if codec not in CODECS:
        raise AetherError(
            f"There is no codec {codec!r} here, only {', '.join(CODECS)}."
        )
    if codec == "libx265" and scale * clip.width < _X265_WIDTH:
        raise AetherError(
            f"libx265 does not take videos narrower than {_X265_WIDTH} pixels.",
            clip.path,
            "Name another codec: --codec libx264.",
        )
    if crf is not None and CODECS[codec].crf is None:
        raise AetherError(
            f"{codec} has no constant rate factor.", hint="Leave --crf out."
        )
    pixel_format_name = _format_for(clip, codec, pixel_format_name)
    return VideoEncoding(
        codec,
        CODECS[codec].crf if crf is None else crf,
        pixel_format_name,
        clip.width * scale,
        clip.height * scale,
        clip.rate,
        clip.time_base,
        _stored_colour(clip.colour, is_rgb=pixel_format(pixel_format_name).is_rgb),
        "topleft" if clip.siting == "topleft" else "left",
        clip.aspect,
        _light_parameters(codec, clip.extras),
    )


def _format_for(clip: "Clip", codec: str, asked: str | None) -> str:
    """The pixel format to encode: the one asked for, or the nearest to the clip's."""
    formats = _formats_of(codec)
    if asked is not None:
        if pixel_format(asked).name not in formats:
            raise AetherError(
                f"{codec} does not take the pixel format {asked}, only "
                f"{', '.join(formats)}."
            )
        return asked
    alpha = has_alpha(pixel_format(clip.pixel_format))
    formats = [name for name in formats if has_alpha(pixel_format(name)) == alpha]
    if not formats:
        raise _no_alpha(clip, f"{codec} does not store")
    return _nearest_format(clip.pixel_format, formats)


def _light_parameters(codec: str, extras: Sequence[Extra]) -> str:
    """The light levels in words of the encoder, which writes them into the stream."""
    written = []
    if codec not in _PARAMETERS:
        return ""
    if display := mastering_of(extras):
        if codec == "libsvtav1":
            numbers = [f"{value:.6g}" for value in display]
        else:  # in steps of 0.00002, and of 0.0001 cd/m2
            steps = [*[50000] * 8, *[10000] * 2]
            numbers = [str(round(v * s)) for v, s in zip(display, steps, strict=True)]
        red, green, blue, white, light = (
            f"({numbers[n]},{numbers[n + 1]})" for n in range(0, 10, 2)
        )
        name = "mastering-display" if codec != "libx265" else "master-display"
        written.append(f"{name}=G{green}B{blue}R{red}WP{white}L{light}")
    if light_levels := light_of(extras):
        names = {"libx264": "cll", "libx265": "max-cll", "libsvtav1": "content-light"}
        most, mean = light_levels
        written.append(f"{names[codec]}={most},{mean}")
    return ":".join(written)


def _stored_colour(colour: Colour, *, is_rgb: bool) -> Colour:
    """The clip's colours, with a matrix that the pixel format can have."""
    if is_rgb:
        return replace(colour, matrix=RGB, range=FULL)
    if colour.matrix == RGB:
        return replace(colour, matrix=BT709, range=LIMITED)
    return colour


def _formats_of(codec: str) -> list[str]:
    """The pixel formats of a codec that are planar."""
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
        if each.name == planar_name(each)
        and (not has_alpha(each) or _stores_alpha(codec, each.name))
    ]


def _stores_alpha(codec: str, name: str) -> bool:
    if codec == "libvpx-vp9":
        return name == _VP9_ALPHA
    return CODECS[codec].alpha is not None


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
            colour_components(candidate) < colour_components(wanted),
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
    across, down = chroma_subsampling(pixel_format(nearest))
    if colour_components(wanted) > 1 and (across > chroma[0] or down > chroma[1]):
        columns = 4 // across
        rows = columns if down == 1 else 0
        _log.warning("reducing chroma to 4:%d:%d, for this codec", columns, rows)
    return nearest


def frame_maker(
    encoding: VideoEncoding,
) -> Callable[[np.ndarray, Any | None], Any]:
    """Return a function that turns planes into a frame for the encoder.

    It takes planes `(1 to 4, H, W)`, float32, 0..1, and the frame whose captions the
    new one shall have, or None.
    """
    kind = pixel_format(encoding.pixel_format)
    bits, subsampling = bit_depth(kind), chroma_subsampling(kind)
    siting = encoding.siting if subsampling[1] == 2 else "left"
    size = encoding.width, encoding.height

    def make(planes: np.ndarray, captions: Any | None = None) -> Any:
        if captions is None:
            frame = import_av().VideoFrame(*size, encoding.pixel_format)
        else:  # PyAV copies side data only from one frame to another
            name = encoding.pixel_format
            frame = captions.reformat(*size, name, interpolation="POINT")
        colours, alpha = _parted(planes, encoding.has_alpha)
        if colour_components(kind) > len(colours):  # a codec that has no gray
            colours = np.repeat(colours, 3, axis=0)
        coded = from_rgb(colours, bits, encoding.colour, subsampling, siting)
        if alpha is not None:
            coded.append(np.rint(alpha * (2**bits - 1)))
        _describe(frame, encoding.colour)
        for view, values in zip(planes_of(frame), coded, strict=True):
            view[...] = values
        return frame

    return make


def _describe(described: Any, colour: Colour) -> None:
    """State the colours in a codec's context, or in a frame, where ProRes takes them.

    Other encoders ignore what a frame says.
    """
    described.colorspace, described.color_range = colour.matrix, colour.range
    described.color_primaries, described.color_trc = colour.primaries, colour.transfer


def _parted(planes: np.ndarray, keep: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours and alpha; colours are put on black where alpha is not kept."""
    if len(planes) in (1, 3):
        return planes, np.ones_like(planes[0]) if keep else None
    colours, alpha = planes[:-1], np.clip(planes[-1], 0, 1)
    return (colours, alpha) if keep else (colours * alpha, None)


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

    def write(
        self, planes: np.ndarray, pts: int, duration: int, captions: Any | None = None
    ) -> None:
        """Encode a frame, shown at `pts` for `duration` ticks.

        Args:
            planes: `(1 to 4, H, W)`, float32, 0..1.
            pts: tick of the clip's clock.
            duration: in ticks.
            captions: the decoded frame whose captions are stored, if any.
        """
        if self._base is None:
            self._base = pts
        frame = self._make(planes, captions)
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


def sample_of(encoding: VideoEncoding) -> bytes:
    """A Matroska file of one black frame, encoded in this way.

    Raises:
        AetherError: when the encoder does not take this encoding.
    """
    file = io.BytesIO()
    with import_av().open(file, "w", format="matroska") as container:
        stream = add_video_stream(container, encoding)
        black = np.zeros((1, encoding.height, encoding.width), np.float32)
        if pixel_format(encoding.pixel_format).is_rgb:
            black = black.repeat(3, axis=0)
        frame = frame_maker(encoding)(black, None)
        packets = [*stream.encode(frame), *stream.encode()]
        for number, packet in enumerate(packets):
            # x265 sometimes gives wrong ones to videos shorter than its look-ahead.
            packet.pts = packet.dts = number
        container.mux(packets)
    return file.getvalue()


def add_video_stream(container: Any, encoding: VideoEncoding) -> Any:
    """Add a stream with its opened encoder to a container that is being written.

    Raises:
        AetherError: when the container does not hold this codec, or the encoder does
            not take this size or pixel format.
    """
    av = import_av()
    codec, kind = CODECS[encoding.codec], pixel_format(encoding.pixel_format)
    options = dict(codec.options)
    name, always = _PARAMETERS.get(encoding.codec, ("", ""))
    if parameters := ":".join(filter(None, (always, encoding.parameters))):
        options[name] = parameters
    if encoding.crf is not None:
        options["crf"] = f"{encoding.crf:g}"
    subsampling = chroma_subsampling(kind)
    if subsampling == (1, 1):
        options |= codec.options_444
    if subsampling == (2, 2) and colour_components(kind) == 3:
        options["chroma_sample_location"] = encoding.siting
    if has_alpha(kind):
        options |= codec.alpha or {}
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
    _describe(context, encoding.colour)
    if encoding.aspect:
        context.sample_aspect_ratio = encoding.aspect
