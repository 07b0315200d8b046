"""Video files through PyAV (FFmpeg's libraries): probing, decoding, encoding, joining.

Between decoder and encoder a frame is planes of float32, `(1 or 3, H, W)`, gray or RGB,
0..1, encoded values (no transfer function is applied or removed), by the clip's matrix
and range. Timestamps are whole ticks of the clip's time base, never rounded here.
"""

import heapq
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from aethernet.errors import AetherError, import_optional
from aethernet.files import check_source
from aethernet.yuv import (
    BT709,
    FULL,
    LIMITED,
    MATRICES,
    RGB,
    UNSPECIFIED,
    Colour,
    from_rgb,
    to_rgb,
    usual_colour,
)

_log = logging.getLogger(__name__)

# Suffix -> libav's name for the container. What can be written.
CONTAINERS = {
    ".mkv": "matroska",
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".webm": "webm",
}

# Luma samples per chroma sample, across and down, by libav's names.
_CHROMA = {
    (1, 1): "444",
    (2, 1): "422",
    (2, 2): "420",
    (1, 2): "440",
    (4, 1): "411",
    (4, 4): "410",
}

_NUMBERING = Fraction(1, 25)

# Encoders whose stream says by itself how wide a pixel is.
_SAY_ASPECT = ("libx264", "libx265")

# A seek lands on a key frame this long before what is wanted: a picture that is coded
# without a clean start (intra refresh, open groups) has settled by then.
_RUN_UP = Fraction(2)
# Packets of other streams this far beyond the end of a cut may still be interleaved.
_INTERLEAVING = Fraction(10)

# What a cover picture is called as an attachment, by its codec.
_COVERS = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}

# Says of the old file what would be wrong of the new one.
_STALE = ("encoder", "major_brand", "minor_version", "compatible_brands", "duration")
_STALE_PREFIXES = ("_statistics", "bps", "number_of_")
# Side data that encoders here do not take over, and what people call it.
_NOT_CARRIED = {
    "MASTERING_DISPLAY_METADATA": "mastering display metadata",
    "CONTENT_LIGHT_LEVEL": "content light level",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "A53_CC": "closed captions inside the picture",
}


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
class Clip:
    """A video file's video stream, as its header and its first frame describe it."""

    path: Path
    index: int
    """Of the stream in the file."""
    time_base: Fraction
    """Seconds per tick."""
    rate: Fraction
    """Frames per second, on average or as announced."""
    width: int
    height: int
    pixel_format: str
    """libav's name of the planar layout that holds the decoded frames."""
    siting: str
    """Of the chroma samples, a key of `yuv.SITINGS`."""
    colour: Colour
    aspect: Fraction | None
    """Of a pixel, width over height; None where it is not said."""
    display_matrix: tuple[int, ...] | None
    """How a player turns the picture; the stored frames are not turned."""
    origin: int
    """Ticks at which the file begins; 0 unless it begins late, as broadcasts do."""
    begin: Fraction
    """Seconds from there to the first frame; sound may come before."""
    duration: Fraction | None
    """Seconds of the picture, None where the file does not say."""
    frames: int | None
    """As announced or estimated; None where nothing is known."""
    remarks: tuple[str, ...]
    """What a user should know before the work begins."""


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


@dataclass(frozen=True)
class Segment:
    """A file of encoded frames that begins with a key frame, and their true timing."""

    path: Path
    pts: tuple[int, ...]
    """Timestamps in the order in which the frames are stored."""
    end: int
    """When the last frame has been shown; ticks."""


@dataclass(frozen=True)
class Cut:
    """Which part of a clip: `first <= pts < end`, in ticks of the clip's clock."""

    first: int | None = None
    end: int | None = None


def libav() -> ModuleType:
    """PyAV, quiet.

    Raises:
        MissingExtraError: when it is not installed.
    """
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 speaks past libav's log
    return import_optional("av", "video")


def read_clip(path: Path) -> Clip:
    """Look at a video file: its header, and its first frame, which is decoded.

    Raises:
        AetherError: when it holds no video that can be decoded, or is cut short, or
            cannot be read.
    """
    av = libav()
    check_source(path, "a video")
    if not path.stat().st_size:
        raise AetherError(f"{path} is empty; expected a video.")
    try:
        with _open(path) as container:
            stream = _video_stream(container, path)
            _check_whole(container, stream, path)
            first = next(_decoded(container, stream), None)
            if first is None:
                raise AetherError(f"{path} holds no frame that can be decoded.")
            return _describe(container, stream, first, path)
    except av.FFmpegError as error:
        raise _unreadable(path, _reason(error)) from error


def _unreadable(path: Path, reason: str) -> AetherError:
    return AetherError(
        f"{path} is no video that can be read ({reason}); it is of another kind, or "
        "cut short."
    )


def _open(path: Path) -> Any:
    av = libav()
    words: dict[str, Any] = {}
    if int(av.__version__.partition(".")[0]) < 19:
        # Later ones take titles that are no UTF-8 by themselves, and know no such word.
        words["metadata_errors"] = "replace"
    # As a file whatever its name looks like, and nothing else it may refer to.
    options = {"protocol_whitelist": "file"}
    return av.open(f"file:{path}", container_options=options, **words)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _video_stream(container: Any, path: Path) -> Any:
    """The stream to upscale: the best one that is not a cover picture."""
    pictures = [stream for stream in container.streams.video if not _is_cover(stream)]
    best = container.streams.best("video")
    stream = best if best in pictures else next(iter(pictures), None)
    if stream is None:
        kinds = dict.fromkeys(f"{stream.type}" for stream in container.streams)
        if not kinds:
            raise _unreadable(path, "no streams")
        found = " and ".join(kinds)
        raise AetherError(f"{path} has no video stream; it holds {found}.")
    if stream.codec_context is None:
        raise AetherError(f"{path} is coded in a way that PyAV cannot decode.")
    return stream


def _is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def _check_whole(container: Any, stream: Any, path: Path) -> None:
    """Refuse a file whose index speaks of bytes that are not there."""
    size = path.stat().st_size
    entries = stream.index_entries
    whole = sum(entry.pos + entry.size <= size for entry in entries)
    if whole < len(entries):
        raise AetherError(
            f"{path} is cut short: of the {len(entries)} frames in its index it holds "
            f"{whole}. Copy it again, or have it repaired."
        )


def _describe(container: Any, stream: Any, first: Any, path: Path) -> Clip:
    time_base = _fraction(stream.time_base)
    assert time_base
    rate = _fraction(stream.guessed_rate) or _fraction(stream.average_rate)
    kind = first.format
    if _has_alpha(kind):
        raise AetherError(
            f"{path} has transparency ({kind.name}), which is not carried; take it off "
            "first, e.g. with ffmpeg's -pix_fmt."
        )
    if first.colorspace not in (*MATRICES, UNSPECIFIED):
        raise AetherError(
            f"{path} uses the colour matrix {first.colorspace} of ITU-T H.273, which "
            "is not supported; convert it to BT.709, say."
        )
    side_data = _side_data(first)
    remarks = []
    if first.interlaced_frame:
        remarks.append(
            "is interlaced; its frames are upscaled as they are, combs and all, so "
            "deinterlace it first if it moves"
        )
    lost = dict.fromkeys(_NOT_CARRIED[n] for n in side_data if n in _NOT_CARRIED)
    if lost:
        remarks.append(f"has {', '.join(lost)}, which is not carried")
    matrix = side_data.get("DISPLAYMATRIX")
    start = container.start_time or 0  # microseconds
    origin = max(round(Fraction(start, 10**6) / time_base), 0)
    begin = max(((stream.start_time or 0) - origin) * time_base, Fraction(0))
    duration = _duration(container, stream, time_base, begin)
    frames = stream.frames or (round(duration * rate) if duration and rate else None)
    return Clip(
        path,
        stream.index,
        time_base,
        rate or Fraction(25),
        first.width,
        first.height,
        _planar(kind),
        _siting(stream.codec_context.name),
        _colour(first),
        _fraction(stream.sample_aspect_ratio),
        tuple(np.frombuffer(matrix, np.int32).tolist()) if matrix else None,
        origin,
        begin,
        duration,
        frames,
        tuple(remarks),
    )


def _duration(
    container: Any, stream: Any, time_base: Fraction, begin: Fraction
) -> Fraction | None:
    """Seconds of the stream, else of the file, whose other streams may be longer."""
    if stream.duration:
        return stream.duration * time_base
    # Matroska says when it is over in a tag, e.g. 00:01:30.500000000.
    said = stream.metadata.get("DURATION", "")
    if match := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", said):
        hours, minutes, rest = match.groups()
        total = int(hours) * 3600 + int(minutes) * 60 + Fraction(rest)
        if total > begin:
            return total - begin
    over = Fraction(container.duration or 0, 10**6)
    return over - begin if over > begin else None


def _side_data(frame: Any) -> dict[str, Any]:
    try:  # By number: what iterating gives depends on the version of PyAV.
        found = [frame.side_data[n] for n in range(len(frame.side_data))]
        return {data.type.name: data for data in found}
    except ValueError:  # a kind that PyAV has no name for
        return {}


def _fraction(ratio: Any) -> Fraction | None:
    """libav's ratios may be absent, 0/1 or n/0."""
    return Fraction(ratio.numerator, ratio.denominator) if ratio else None


def _colour(frame: Any) -> Colour:
    """What a frame says of its values, and the usual rule where it says nothing.

    A clip without any description is taken for BT.709 from 720 lines on and for BT.601
    below, limited range (gray: full); the output then says so, since its size would
    mislead.
    """
    primaries, transfer = frame.color_primaries, frame.color_trc
    if frame.format.is_rgb:
        return Colour(RGB, FULL, primaries, transfer)
    full = frame.color_range == FULL or frame.format.name.startswith("yuvj")
    if (
        len(frame.format.components) == 1
    ):  # for gray libav takes full, unless it is told
        full = frame.color_range != LIMITED
    value_range = FULL if full else LIMITED
    if frame.colorspace not in (UNSPECIFIED, RGB):
        return Colour(frame.colorspace, value_range, primaries, transfer)
    usual = usual_colour(frame.height, value_range)
    if primaries == transfer == UNSPECIFIED:
        return usual
    return replace(usual, primaries=primaries, transfer=transfer)


def _video_format(name: str) -> Any:
    av = libav()
    try:
        return av.VideoFormat(name)
    except ValueError as error:
        raise AetherError(
            f"There is no pixel format {name!r}; e.g. yuv420p, yuv420p10le, yuv444p."
        ) from error


def default_codec(clip: Clip, suffix: str) -> str:
    """AV1 in WebM; else HEVC for more than 8 bits, H.264 for 8.

    Few devices play 10-bit H.264, nearly all that play HEVC play it with 10 bits.
    """
    if suffix == ".webm":
        return "libsvtav1"
    return "libx265" if _depth(_video_format(clip.pixel_format)) > 8 else "libx264"


def _planar(kind: Any) -> str:
    """libav's name of the layout that holds the same values, each plane for itself."""
    bits = _depth(kind)
    ending = "" if bits <= 8 else f"{min(bits, 16)}le"
    if len(kind.components) == 1 and not kind.has_palette:
        return f"gray{ending}"
    if kind.is_rgb or kind.has_palette:
        return f"gbrp{ending}"
    return f"yuv{_CHROMA[_subsampling(kind)]}p{ending}"


def _depth(kind: Any) -> int:
    return max(component.bits for component in kind.components)


def _siting(codec: str) -> str:
    """Where chroma samples lie; PyAV does not say, and all but the oldest agree."""
    return "center" if codec in ("mjpeg", "mpeg1video") else "left"


def _subsampling(kind: Any) -> tuple[int, int]:
    """Luma samples per chroma sample, across and down."""
    return 16 // kind.chroma_width(16), 16 // kind.chroma_height(16)


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
    elif _video_format(pixel_format).name not in formats:
        raise AetherError(
            f"{codec} does not take the pixel format {pixel_format}, only "
            f"{', '.join(formats)}."
        )
    colour = clip.colour
    to_rgb = _video_format(pixel_format).is_rgb
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
        if kind.name == _planar(kind) and not _has_alpha(kind)
    ]


def _has_alpha(kind: Any) -> bool:
    return any(component.is_alpha for component in kind.components)


def _nearest_format(name: str, formats: Sequence[str]) -> str:
    """The one of `formats` that loses least of what `name` holds, and adds least."""
    if name in formats:
        return name
    wanted = _video_format(name)
    depth, chroma = _depth(wanted), _subsampling(wanted)

    def loss(other: str) -> tuple[Any, ...]:
        kind = _video_format(other)
        across, down = _subsampling(kind)
        return (
            len(kind.components) < len(wanted.components),
            kind.is_rgb and not wanted.is_rgb,
            max(depth - _depth(kind), 0),
            across > chroma[0] or down > chroma[1],
            wanted.is_rgb and not kind.is_rgb,
            len(kind.components),
            _depth(kind),
            -across * down,
        )

    nearest = min(formats, key=loss)
    if (kept := _depth(_video_format(nearest))) < depth:
        _log.warning("%d bits per value become %d", depth, kept)
    return nearest


def frames_from(clip: Clip, first: int | None = None) -> Iterator[Any]:
    """Decoded frames in order of time, each with a timestamp of its own.

    Args:
        first: leave out what is shown before this tick; reached by seeking where that
            is exact, else by decoding everything.

    Raises:
        AetherError: when frames change their size, or the file cannot be read.
    """
    if first is not None:
        found = _sought(clip, first)
        if found is not None:
            yield from found
            return
    for frame in _all_frames(clip, None):
        if first is None or frame.pts >= first:
            yield frame


def _sought(clip: Clip, first: int) -> Iterator[Any] | None:
    """As `frames_from`, by seeking; None where that does not land before `first`."""
    frames = _all_frames(clip, first - round(_RUN_UP / clip.time_base))
    try:
        landed = next(frames, None)
    except AetherError:
        return None
    if landed is None or landed.pts > first:
        frames.close()
        return None

    def wanted() -> Iterator[Any]:
        if landed.pts == first:
            yield landed
        yield from (frame for frame in frames if frame.pts >= first)

    return wanted()


def _all_frames(clip: Clip, seek: int | None) -> Any:
    av = libav()
    try:
        with _open(clip.path) as container:
            stream = container.streams[clip.index]
            stream.thread_type = "AUTO"
            if seek is not None:
                container.seek(seek, stream=stream)
            for frame in _decoded(container, stream, sought=seek is not None):
                if (frame.width, frame.height) != (clip.width, clip.height):
                    raise AetherError(
                        f"{clip.path} changes its size from {clip.width}x{clip.height} "
                        f"to {frame.width}x{frame.height} at "
                        f"{float(frame.pts * clip.time_base):.3f} s; cut it there."
                    )
                yield frame
    except av.FFmpegError as error:
        raise AetherError(f"Cannot decode {clip.path}: {_reason(error)}.") from error


# Frames by which a timestamp may lie before the last one, as slips do.
_JUMP = 10


def _decoded(container: Any, stream: Any, *, sought: bool = False) -> Iterator[Any]:
    av = libav()
    time_base, rate = _fraction(stream.time_base), _fraction(stream.guessed_rate)
    assert time_base
    step = max(round(1 / (rate or 25) / time_base), 1)
    previous: int | None = None
    damaged = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            damaged += 1
            continue
        for frame in frames:
            pts = frame.dts if frame.pts is None else frame.pts
            if pts is None:
                if sought:
                    raise AetherError("Frames without timestamps cannot be sought.")
                pts = 0 if previous is None else previous + step
            if previous is not None:
                if pts < previous - _JUMP * step:
                    raise AetherError(
                        "The video's timestamps jump back at "
                        f"{float(previous * time_base):.2f} s, as in recordings put "
                        "together; remux it first (ffmpeg -i IN -c copy OUT.mkv), or "
                        "cut it there."
                    )
                pts = max(pts, previous + 1)  # no encoder takes one twice
            frame.pts = previous = pts
            frame.duration = frame.duration or step
            yield frame
    if damaged:
        _log.warning("%d damaged packets of the video were left out", damaged)


def planes_of(frame: Any) -> list[np.ndarray]:
    """A planar frame's planes as writable arrays `(H, W)`, RGB in that order."""
    dtype = np.dtype(np.uint8 if _depth(frame.format) <= 8 else "<u2")
    planes = [
        np.ndarray(
            (plane.height, plane.width),
            dtype,
            buffer=plane,
            strides=(plane.line_size, dtype.itemsize),
        )
        for plane in frame.planes
    ]
    if frame.format.is_rgb:
        green, blue, red = planes
        return [red, green, blue]
    return planes


def frame_to_rgb(frame: Any, clip: Clip) -> np.ndarray:
    """A decoded frame as planes `(1 or 3, H, W)`, float32, 0..1.

    Layouts that are not planar become so first, which changes no value.
    """
    if frame.format.name.replace("yuvj", "yuv") != clip.pixel_format:
        frame = frame.reformat(format=clip.pixel_format)
    return to_rgb(planes_of(frame), _depth(frame.format), clip.colour, clip.siting)


def frame_maker(
    width: int, height: int, pixel_format: str, colour: Colour, siting: str = "left"
) -> Callable[[np.ndarray], Any]:
    """What turns planes `(1 or 3, H, W)`, float32, 0..1, into new frames."""
    kind = _video_format(pixel_format)
    bits, subsampling = _depth(kind), _subsampling(kind)

    def make(planes: np.ndarray) -> Any:
        frame = libav().VideoFrame(width, height, pixel_format)
        if len(kind.components) > len(planes):  # gray, and a codec without it
            planes = np.repeat(planes, 3, axis=0)
        coded = from_rgb(planes, bits, colour, subsampling, siting)
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
        self._stream = _add_encoder(self._container, encoding)
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


def _add_encoder(container: Any, encoding: Encoding) -> Any:
    av = libav()
    codec = CODECS[encoding.codec]
    options = dict(codec.options)
    if encoding.crf is not None:
        options["crf"] = f"{encoding.crf:g}"
    if _subsampling(_video_format(encoding.pixel_format)) == (1, 1):
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


def check_muxable(clip: Clip, encoding: Encoding, suffix: str) -> None:
    """Find out before any work whether the container takes encoder and streams.

    What it does not take of all else is named in warnings.

    Raises:
        AetherError: when it does not take the video.
    """
    av = libav()
    said = encoding.codec in _SAY_ASPECT or suffix not in (".mkv", ".webm")
    if clip.aspect not in (None, 1) and not said:  # PyAV cannot set Matroska's
        _log.warning(
            "%s: the pixel aspect of %s is lost with %s in %s",
            clip.path,
            clip.aspect,
            encoding.codec,
            suffix,
        )
    try:
        with (
            _open(clip.path) as source,
            av.open(io.BytesIO(), "w", format=CONTAINERS[suffix]) as trial,
        ):
            _add_encoder(trial, encoding)
            _add_copies(trial, source, clip, suffix)
            trial.set_chapters(_chapters(source, 0, None))
            trial.start_encoding()
    except (av.FFmpegError, ValueError) as error:
        raise AetherError(
            f"{suffix} does not hold this video as {encoding.codec} "
            f"({_reason(error)}); .mkv holds most."
        ) from error


def join(segments: Sequence[Segment], clip: Clip, cut: Cut, target: Path) -> None:
    """Write segments as one stream, without re-encoding, and all else of the clip.

    Every packet keeps its data. All streams move together: so that the clip begins at
    zero where it began later, or where it was cut. Decoding times are made anew, since
    every segment had its own.

    Args:
        target: a file that may be written over; its suffix chooses the container.

    Raises:
        AetherError: when a segment does not hold what was noted of it.
    """
    av = libav()
    begin = min(segments[0].pts) if cut.first is not None else clip.origin
    shift = begin * clip.time_base
    end = segments[-1].end * clip.time_base if cut.end is not None else None
    suffix = target.suffix.lower()
    with (
        _open(clip.path) as source,
        _open(segments[0].path) as template,
        av.open(f"file:{target}", "w", format=CONTAINERS[suffix]) as output,
    ):
        stream = _add_joined(output, template.streams.video[0], source, clip, suffix)
        copies = _add_copies(output, source, clip, suffix, quiet=True)
        for key, value in source.metadata.items():
            if not _is_stale(key):
                output.metadata[key] = value
        output.set_chapters(_chapters(source, shift, end))
        packets = heapq.merge(
            _joined_packets(segments, clip, begin, stream),
            _in_order(
                _copied_packets(source, copies, shift, end, seek=cut.first is not None),
                0 if suffix in (".mkv", ".webm") else 1,
            ),
            key=_decoding_time,
        )
        for packet in packets:
            output.mux(packet)


def _in_order(packets: Iterator[Any], step: int) -> Iterator[Any]:
    """The packets, none of a stream decoded before `step` ticks after the one before.

    Broadcasts repeat times or jump back, which no container takes.
    """
    latest: dict[int, int] = {}
    for packet in packets:
        if packet.dts is not None:
            earliest = latest.get(packet.stream_index)
            if earliest is not None and packet.dts < earliest + step:
                packet.dts = earliest + step
                if packet.pts is not None:
                    packet.pts = max(packet.pts, packet.dts)
            latest[packet.stream_index] = packet.dts
        yield packet


def _decoding_time(packet: Any) -> Fraction:
    ticks = packet.pts if packet.dts is None else packet.dts
    return (ticks or 0) * Fraction(
        packet.time_base.numerator, packet.time_base.denominator
    )


def _add_joined(
    output: Any, template: Any, source: Any, clip: Clip, suffix: str
) -> Any:
    stream = output.add_stream_from_template(
        template, opaque=True, time_base=clip.time_base
    )
    stream.codec_context.framerate = clip.rate
    if clip.aspect:
        stream.codec_context.sample_aspect_ratio = clip.aspect
    if clip.display_matrix:
        stream.set_display_matrix(clip.display_matrix)
    if template.codec_context.name == "hevc" and suffix != ".mkv":
        stream.codec_context.codec_tag = "hvc1"  # what Apple's players ask for
    _describe_copy(stream, source.streams[clip.index])
    return stream


def _describe_copy(stream: Any, original: Any) -> None:
    stream.disposition = original.disposition
    for key, value in original.metadata.items():
        if not _is_stale(key):
            stream.metadata[key] = value


def _is_stale(key: str) -> bool:
    key = key.lower()
    return key in _STALE or key.startswith(_STALE_PREFIXES)


def _add_copies(
    output: Any, source: Any, clip: Clip, suffix: str, *, quiet: bool = False
) -> dict[int, Any]:
    """Add the streams that are copied; returns them by their index in the source."""
    copies = {}
    for original in source.streams:
        if original.index == clip.index:
            continue
        codec = original.codec_context.name if original.codec_context else None
        if _is_cover(original) and suffix == ".mkv" and codec in _COVERS:
            # As a stream it would be a video of one frame: Matroska attaches covers.
            name, kind = _COVERS[codec]
            name = original.metadata.get("filename", name)
            output.add_attachment(name, kind, _cover(clip, original.index))
        elif original.type == "attachment" and suffix == ".mkv":
            output.add_attachment(
                original.name or f"attachment {original.index}",
                original.mimetype or "application/octet-stream",
                original.data,
            )
        elif _is_held(original, suffix):
            stream = output.add_stream_from_template(original, opaque=True)
            _describe_copy(stream, original)
            copies[original.index] = stream
        elif not quiet:
            _log.warning(
                "%s: stream %d (%s) is left out, %s does not hold it",
                clip.path,
                original.index,
                _kind(original),
                suffix,
            )
    return copies


def _cover(clip: Clip, index: int) -> bytes:
    """The picture file in a stream that is a cover."""
    with _open(clip.path) as container:
        packets = container.demux(container.streams[index])
        return next((bytes(packet) for packet in packets if packet.size), b"")


def _is_held(stream: Any, suffix: str) -> bool:
    """Whether a container of that suffix takes the stream, found out by trying."""
    if stream.codec_context is None or (suffix == ".mkv" and _is_cover(stream)):
        return False
    av = libav()
    try:
        with av.open(io.BytesIO(), "w", format=CONTAINERS[suffix]) as trial:
            trial.add_stream_from_template(stream, opaque=True)
            trial.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True


def _kind(stream: Any) -> str:
    name = stream.codec_context.name if stream.codec_context else None
    words = [stream.type, name, stream.language]
    return ", ".join(word for word in words if word)


def _chapters(source: Any, shift: Fraction | int, end: Fraction | None) -> list[Any]:
    """The source's chapters, `shift` seconds earlier, as far as they are in the cut."""
    chapters = []
    for chapter in source.chapters():
        base = _fraction(chapter["time_base"])
        assert base
        moved = round(shift / base)
        stop = chapter["end"] if end is None else min(chapter["end"], round(end / base))
        start = max(chapter["start"], moved)
        if start < stop:
            times = {"start": start - moved, "end": stop - moved}
            chapters.append({**chapter, **times})
    return chapters


def _joined_packets(
    segments: Sequence[Segment], clip: Clip, begin: int, stream: Any
) -> Iterator[Any]:
    stored = [pts for segment in segments for pts in segment.pts]
    shown = sorted(stored)
    rank = {pts: n for n, pts in enumerate(shown)}
    # A frame is decoded when as many as may come before their turn have been shown.
    delay = max(n - rank[pts] for n, pts in enumerate(stored))
    following = [*shown[1:], segments[-1].end]
    step = max((following[-1] - shown[0]) // len(shown), 1)
    n = 0
    for segment in segments:
        with _open(segment.path) as container:
            before = n
            for packet in container.demux(container.streams.video[0]):
                if not packet.size:
                    continue  # ends the stream
                if n == before + len(segment.pts):
                    raise _not_as_noted(segment)
                pts = stored[n]
                packet.time_base = clip.time_base
                packet.pts = pts - begin
                early = n - delay
                dts = shown[early] if early >= 0 else shown[0] + early * step
                packet.dts = dts - begin
                packet.duration = following[rank[pts]] - pts
                packet.stream = stream
                yield packet
                n += 1
            if n != before + len(segment.pts):
                raise _not_as_noted(segment)


def _not_as_noted(segment: Segment) -> AetherError:
    return AetherError(
        f"{segment.path} does not hold the {len(segment.pts)} frames that were written "
        "to it; remove its folder and start anew."
    )


def _copied_packets(
    source: Any,
    copies: dict[int, Any],
    shift: Fraction,
    end: Fraction | None,
    *,
    seek: bool,
) -> Iterator[Any]:
    if not copies:
        return
    if seek:
        source.seek(int(shift * 10**6))
    for packet in source.demux([source.streams[index] for index in copies]):
        if not packet.size:
            continue
        original = packet.stream
        base = _fraction(original.time_base)
        ticks = packet.dts if packet.pts is None else packet.pts
        assert base
        if ticks is not None and not _is_cover(original):
            if end is not None and ticks * base >= end + _INTERLEAVING:
                return
            if (seek and ticks * base < shift) or (
                end is not None and ticks * base >= end
            ):
                continue
        moved = 0 if _is_cover(original) else round(shift / base)
        if packet.pts is not None:
            packet.pts -= moved
        if packet.dts is not None:
            packet.dts -= moved
        packet.stream = copies[original.index]
        yield packet
