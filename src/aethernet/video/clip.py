"""Video files through PyAV (FFmpeg's libraries): probing, decoding, encoding, joining.

Between decoder and encoder a frame is planes of float32, `(1 or 3, H, W)`, gray or RGB,
0..1, encoded values (no transfer function is applied or removed), by the clip's matrix
and range. Timestamps are whole ticks of the clip's time base, never rounded here.
"""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from aethernet.errors import AetherError, import_optional
from aethernet.files import check_source
from aethernet.video.yuv import (
    FULL,
    LIMITED,
    MATRICES,
    RGB,
    UNSPECIFIED,
    Colour,
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

# A seek lands on a key frame this long before what is wanted: a picture that is coded
# without a clean start (intra refresh, open groups) has settled by then.
_RUN_UP = Fraction(2)

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
        with open_container(path) as container:
            stream = _video_stream(container, path)
            _check_whole(container, stream, path)
            first = next(_decoded(container, stream), None)
            if first is None:
                raise AetherError(f"{path} holds no frame that can be decoded.")
            return _describe(container, stream, first, path)
    except av.FFmpegError as error:
        raise _unreadable(path, reason_of(error)) from error


def _unreadable(path: Path, reason: str) -> AetherError:
    return AetherError(
        f"{path} is no video that can be read ({reason}); it is of another kind, or "
        "cut short."
    )


def open_container(path: Path) -> Any:
    av = libav()
    words: dict[str, Any] = {}
    if int(av.__version__.partition(".")[0]) < 19:
        # Later ones take titles that are no UTF-8 by themselves, and know no such word.
        words["metadata_errors"] = "replace"
    # As a file whatever its name looks like, and nothing else it may refer to.
    options = {"protocol_whitelist": "file"}
    return av.open(f"file:{path}", container_options=options, **words)


def reason_of(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _video_stream(container: Any, path: Path) -> Any:
    """The stream to upscale: the best one that is not a cover picture."""
    pictures = [stream for stream in container.streams.video if not is_cover(stream)]
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


def is_cover(stream: Any) -> bool:
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
    time_base = fraction(stream.time_base)
    assert time_base
    rate = fraction(stream.guessed_rate) or fraction(stream.average_rate)
    kind = first.format
    if has_alpha(kind):
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
        is_planar(kind),
        _siting(stream.codec_context.name),
        _colour(first),
        fraction(stream.sample_aspect_ratio),
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


def fraction(ratio: Any) -> Fraction | None:
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


def video_format(name: str) -> Any:
    av = libav()
    try:
        return av.VideoFormat(name)
    except ValueError as error:
        raise AetherError(
            f"There is no pixel format {name!r}; e.g. yuv420p, yuv420p10le, yuv444p."
        ) from error


def is_planar(kind: Any) -> str:
    """libav's name of the layout that holds the same values, each plane for itself."""
    bits = depth_of(kind)
    ending = "" if bits <= 8 else f"{min(bits, 16)}le"
    if len(kind.components) == 1 and not kind.has_palette:
        return f"gray{ending}"
    if kind.is_rgb or kind.has_palette:
        return f"gbrp{ending}"
    return f"yuv{_CHROMA[subsampling(kind)]}p{ending}"


def depth_of(kind: Any) -> int:
    return max(component.bits for component in kind.components)


def _siting(codec: str) -> str:
    """Where chroma samples lie; PyAV does not say, and all but the oldest agree."""
    return "center" if codec in ("mjpeg", "mpeg1video") else "left"


def subsampling(kind: Any) -> tuple[int, int]:
    """Luma samples per chroma sample, across and down."""
    return 16 // kind.chroma_width(16), 16 // kind.chroma_height(16)


def has_alpha(kind: Any) -> bool:
    return any(component.is_alpha for component in kind.components)


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
        with open_container(clip.path) as container:
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
        raise AetherError(f"Cannot decode {clip.path}: {reason_of(error)}.") from error


# Frames by which a timestamp may lie before the last one, as slips do.
_JUMP = 10


def _decoded(container: Any, stream: Any, *, sought: bool = False) -> Iterator[Any]:
    av = libav()
    time_base, rate = fraction(stream.time_base), fraction(stream.guessed_rate)
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
    dtype = np.dtype(np.uint8 if depth_of(frame.format) <= 8 else "<u2")
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
    return to_rgb(planes_of(frame), depth_of(frame.format), clip.colour, clip.siting)
