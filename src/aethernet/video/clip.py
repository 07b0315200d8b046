"""Read video files: look at the first frame, then decode all of them.

A decoded frame becomes planes `(1 to 4, H, W)`, float32, 0..1: gray or RGB, and alpha
where there is transparency. The values are encoded ones: no transfer function is
applied or removed. Timestamps are whole ticks
of the clip's time base and are never rounded here.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from aethernet.errors import AetherError
from aethernet.files import check_source
from aethernet.pictures.animation import AnimationReader, is_animated
from aethernet.video.animated import (
    animation_frames,
    left_out,
    shown_seconds,
    time_base_of,
)
from aethernet.video.describe import has_alpha_beside
from aethernet.video.dv import recorded
from aethernet.video.extras import (
    Extra,
    TrackFacts,
    read_facts,
    side_data,
    stated_by,
)
from aethernet.video.libav import (
    as_fraction,
    av_errors,
    av_reason,
    bit_depth,
    colour_components,
    has_alpha,
    import_av,
    is_cover,
    open_container,
    planar_name,
    planes_of,
)
from aethernet.video.services import Broadcast, read_broadcast
from aethernet.video.unread import is_encrypted, unread
from aethernet.video.yuv import (
    BT709,
    FULL,
    LIMITED,
    MATRICES,
    RGB,
    SRGB,
    UNSPECIFIED,
    Colour,
    to_rgb,
    usual_colour,
)

_log = logging.getLogger(__name__)

# A seek aims this many seconds before the wanted frame: a picture that is coded without
# a clean start (intra refresh, open groups) has settled by then.
_RUN_UP = Fraction(2)

# A timestamp may lie before the last one by this many frames; more is a jump back.
_JUMP = 10

_USUAL_RATE = Fraction(25)  # frames per second, where a file does not name its rate

# Codec with its transparency beside its packets -> the decoder of libav that reads it.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

# Codecs whose frames do not say whether they are interlaced.
_WITHOUT_FIELDS = (
    *("rawvideo", "v210", "v410", "v308", "v408", "r210", "r10k", "huffyuv", "ffvhuff"),
    *("utvideo", "magicyuv", "qtrle", "png", "jpeg2000", "cfhd", "dnxhd", "hap"),
)

_ASPECTS = "aspects of pixels"

INTERLACED = (
    "is interlaced. Its frames are upscaled as they are, with both fields in one "
    "picture; deinterlace it first if it has motion"
)
"""A remark on a clip."""


@dataclass(frozen=True)
class Clip:
    """A video file and its video stream, as far as upscaling needs to know them."""

    path: Path
    index: int | None
    """Number of the stream in the file; None for an animation."""
    time_base: Fraction
    """Seconds per tick."""
    rate: Fraction
    """Frames per second, on average or as announced."""
    width: int
    height: int
    pixel_format: str
    """libav's name of the planar format that holds the decoded frames."""
    decoder: str | None
    """libav's name of the decoder; None for libav's choice."""
    siting: str
    """Place of the chroma samples, a key of `yuv.SITINGS`."""
    colour: Colour
    aspect: Fraction | None
    """Width of a pixel over its height; None where the file does not say."""
    display_matrix: tuple[int, ...] | None
    """How a player turns the picture; the stored frames are not turned."""
    origin: int
    """Tick at which the file begins; above 0 if it begins late, as broadcasts do."""
    begin: Fraction
    """Seconds from the origin to the first frame; sound may come before."""
    duration: Fraction | None
    """Seconds of the picture; None where the file does not say."""
    frames: int | None
    """Number of frames, as announced or estimated; None where nothing is known."""
    extras: tuple[Extra, ...]
    """What the stream says about its pictures, which containers can say again."""
    beside: frozenset[str]
    """Names of what the first frame carries besides, such as captions."""
    remarks: tuple[str, ...]
    """What a user should know before the work begins; each completes "The clip ..."."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """What PyAV does not tell of its metadata, by libav's keys: of the channel that
    broadcast it, and when DV was recorded."""
    stated: Mapping[str, object] = field(default_factory=dict)
    """What the first frame says of the clip, by names; empty for an animation."""


@dataclass(frozen=True)
class Cut:
    """A part of a clip: the frames with `first <= pts < end`, in the clip's ticks."""

    first: int | None = None
    end: int | None = None


def read_clip(path: Path) -> Clip:
    """Read the header of a video file and decode its first frame.

    Raises:
        AetherError: when the file cannot be read, holds no video that can be decoded or
            is cut short, or its kind of picture is not supported.
        MissingExtraError: when PyAV is not installed.
    """
    av = import_av()
    check_source(path, "a video")
    if is_animated(path):
        return _describe_animation(path)
    if not path.stat().st_size:
        raise AetherError("The file is empty; expected a video.", path)
    try:
        with open_container(path) as container:
            if is_encrypted(path):
                raise AetherError("The video is encrypted.", path)
            stream = _video_stream(container, path)
            _check_whole(stream, path)
            decoder = _decoder_for(stream, path)
            stated = _stated_colour(stream.codec_context)
            first = next(_decoded(container, stream, path, decoder), None)
            if first is None:
                raise AetherError("The file holds no frame that can be decoded.", path)
            colour = _colour(first, stated)
            _check_supported(colour, path)
            return _describe(container, stream, first, path, decoder, colour)
    except av.FFmpegError as error:
        raise _not_a_video(path, av_reason(error)) from error


def _not_a_video(path: Path, reason: str) -> AetherError:
    return AetherError(
        f"The file cannot be read as a video ({reason}).",
        path,
        "It may be another kind of file, or cut short.",
    )


def _video_stream(container: Any, path: Path) -> Any:
    """The stream to upscale: the best one that is not a cover picture."""
    pictures = [stream for stream in container.streams.video if not is_cover(stream)]
    best = container.streams.best("video")
    stream = best if best in pictures else next(iter(pictures), None)
    if stream is None:
        kinds = dict.fromkeys(f"{stream.type}" for stream in container.streams)
        if not kinds:
            raise _not_a_video(path, "no streams")
        found = " and ".join(kinds)
        raise AetherError(f"The file has no video stream, only {found}.", path)
    if stream.codec_context is None:
        raise AetherError("PyAV has no decoder for the video stream.", path)
    return stream


def _check_whole(stream: Any, path: Path) -> None:
    """Refuse a file whose index names bytes beyond its end."""
    size = path.stat().st_size
    entries = stream.index_entries
    whole = sum(entry.pos + entry.size <= size for entry in entries)
    if whole < len(entries):
        raise AetherError(
            f"The file is cut short: it holds {whole} of the {len(entries)} frames in "
            "its index.",
            path,
            "Copy it again, or repair it.",
        )


def _decoder_for(stream: Any, path: Path) -> str | None:
    """The decoder that reads the transparency of VP8 and VP9, where the clip has it.

    libav's own decoders of these leave it out.
    """
    name = _ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or not has_alpha_beside(stream):
        return None
    try:
        import_av().Codec(name, "r")
    except ValueError as error:
        raise AetherError(
            f"The video has transparency, and this build of PyAV lacks {name}, which "
            "decodes it.",
            path,
        ) from error
    return name


def _check_supported(colour: Colour, path: Path) -> None:
    if colour.matrix not in MATRICES:
        raise AetherError(
            f"The video uses the colour matrix {colour.matrix} of ITU-T H.273, "
            "which is not supported.",
            path,
            "Convert it first, e.g. to BT.709.",
        )


def _describe(
    container: Any,
    stream: Any,
    first: Any,
    path: Path,
    decoder: str | None,
    colour: Colour,
) -> Clip:
    time_base = as_fraction(stream.time_base)
    assert time_base
    rate = as_fraction(stream.guessed_rate) or as_fraction(stream.average_rate)
    facts = read_facts(stream, first)
    data = side_data(first, stream)
    matrix = data.get("DISPLAYMATRIX")
    is_broadcast = container.format.name == "mpegts"
    said = read_broadcast(path, stream.id) if is_broadcast else Broadcast()
    start = container.start_time or 0  # microseconds
    origin = max(round(Fraction(start, 10**6) / time_base), 0)
    begin = max(((stream.start_time or 0) - origin) * time_base, Fraction(0))
    duration = _duration(container, stream, time_base, begin)
    frames = stream.frames or (round(duration * rate) if duration and rate else None)
    return Clip(
        path=path,
        index=stream.index,
        time_base=time_base,
        rate=rate or _USUAL_RATE,
        width=first.width,
        height=first.height,
        pixel_format=_planar_name(first, path, decoder),
        decoder=decoder,
        siting=facts.siting or _usual_siting(stream.codec_context.name),
        colour=colour,
        aspect=as_fraction(stream.sample_aspect_ratio),
        display_matrix=(
            tuple(np.frombuffer(matrix, np.int32).tolist()) if matrix else None
        ),
        origin=origin,
        begin=begin,
        duration=duration,
        frames=frames,
        extras=facts.extras,
        beside=facts.beside | unread(path, stream) | said.others,
        remarks=_remarks(first, facts, stream.codec_context.name),
        texts={**said.metadata, **recorded(path, stream.index)},
        stated={**stated_by(first, data), _ASPECTS: _coded_aspect(stream)},
    )


def _coded_aspect(stream: Any) -> Fraction | None:
    """Width of a pixel over its height, as the stream itself said last."""
    return as_fraction(stream.codec_context.sample_aspect_ratio)


def _describe_animation(path: Path) -> Clip:
    reader = AnimationReader(path)
    header, timing = reader.header, reader.timing
    seconds = shown_seconds(timing)
    duration = sum(seconds, Fraction(0))
    colours = 1 if header.bands < 3 else 3
    name = {1: "gray", 3: "gbrp"}[colours]
    if not reader.is_opaque():
        name = {1: "ya8", 3: "gbrap"}[colours]
    # The colours of pictures on the web are sRGB: its primaries, and its transfer.
    matrix = UNSPECIFIED if colours == 1 else RGB
    return Clip(
        path=path,
        index=None,
        time_base=time_base_of(timing),
        rate=len(seconds) / duration,
        width=header.width,
        height=header.height,
        pixel_format=name,
        decoder=None,
        siting="left",
        colour=Colour(matrix, FULL, BT709, SRGB),
        aspect=None,
        display_matrix=None,
        origin=0,
        begin=Fraction(0),
        duration=duration,
        frames=len(seconds),
        extras=(),
        beside=left_out(reader),
        remarks=(),
    )


def _planar_name(first: Any, path: Path, decoder: str | None) -> str:
    """Name of the planar format that holds the frames, and their transparency."""
    if first.format.has_palette and _is_transparent_palette(first):
        return "gbrap"
    name = planar_name(first.format)
    if decoder is None or has_alpha(first.format):
        return name
    if name != "yuv420p":  # libvpx decodes no other transparency
        raise AetherError(
            f"The video has transparency beside pictures of {name}, which cannot be "
            "decoded.",
            path,
        )
    return "yuva420p"  # a frame may come without alpha if it is opaque


def _is_transparent_palette(frame: Any) -> bool:
    """Whether a colour of a palette (native 32-bit ARGB) is not opaque."""
    colours = np.frombuffer(frame.planes[1], np.uint32, 256)
    return bool((colours >> 24 < 255).any())


def _remarks(first: Any, facts: TrackFacts, codec: str) -> tuple[str, ...]:
    remarks = []
    by_container = facts.interlaced and codec in _WITHOUT_FIELDS
    if first.interlaced_frame or by_container:
        remarks.append(INTERLACED)
    if facts.dolby_vision_only:
        remarks.append(
            "is in colours that only Dolby Vision's metadata makes right; without it "
            "they will look green and purple"
        )
    return tuple(remarks)


def _duration(
    container: Any, stream: Any, time_base: Fraction, begin: Fraction
) -> Fraction | None:
    """Seconds of the stream, else of the file, whose other streams may be longer."""
    if stream.duration:
        return stream.duration * time_base
    # Matroska stores the end of a stream in a tag, e.g. 00:01:30.500000000.
    tag = stream.metadata.get("DURATION", "")
    if match := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", tag):
        hours, minutes, rest = match.groups()
        end = int(hours) * 3600 + int(minutes) * 60 + Fraction(rest)
        if end > begin:
            return end - begin
    end = Fraction(container.duration or 0, 10**6)
    return end - begin if end > begin else None


def _stated_colour(context: Any) -> tuple[int, int, int]:
    """Matrix, primaries and transfer of a decoder or a frame; 0 counts as not stated.

    0 is a matrix, but only of RGB, which the pixel format tells.
    """
    stated = context.colorspace, context.color_primaries, context.color_trc
    matrix, primaries, transfer = (each or UNSPECIFIED for each in stated)
    return matrix, primaries, transfer


def _colour(frame: Any, container: tuple[int, int, int]) -> Colour:
    """What a frame says about its values, and the usual colours where it says nothing.

    A clip without a description counts as BT.709 from 720 lines on and as BT.601 below,
    with limited range (gray: full), and RGB as sRGB. The output then names these, since
    players would assume others by its size.

    Args:
        frame: the first one.
        container: matrix, primaries and transfer that the file states, which count
            where the frame states none.
    """
    matrix, primaries, transfer = (
        known if own == UNSPECIFIED else own
        for own, known in zip(_stated_colour(frame), container, strict=True)
    )
    if frame.format.is_rgb or frame.format.has_palette:
        primaries = BT709 if primaries == UNSPECIFIED else primaries
        transfer = SRGB if transfer == UNSPECIFIED else transfer
        return Colour(RGB, FULL, primaries, transfer)
    full = frame.color_range == FULL or frame.format.name.startswith("yuvj")
    if colour_components(frame.format) == 1:  # libav assumes full range for gray
        full = frame.color_range != LIMITED
    value_range = FULL if full else LIMITED
    if matrix != UNSPECIFIED:
        return Colour(matrix, value_range, primaries, transfer)
    usual = usual_colour(frame.height, value_range)
    if primaries == transfer == UNSPECIFIED:
        return usual
    return replace(usual, primaries=primaries, transfer=transfer)


def _usual_siting(codec: str) -> str:
    """Place of the chroma samples where the stream does not name it.

    All codecs but the oldest place them left.
    """
    return "center" if codec in ("mjpeg", "mpeg1video") else "left"


def frames_from(clip: Clip, first: int | None = None) -> Iterator[Any]:
    """Yield decoded frames in order of time; no two have the same timestamp.

    Args:
        clip: the file to decode.
        first: leave out frames shown before this tick. They are skipped by seeking
            where that is exact, else by decoding them.

    Raises:
        AetherError: when frames change their size or timestamps jump back, or the file
            cannot be read.
    """
    if first is not None and clip.index is not None:
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
    """Decode from the tick `seek`, or from the beginning."""
    if clip.index is None:
        yield from animation_frames(clip.path, clip.time_base)
        return
    with (
        av_errors("The video cannot be decoded", clip.path),
        open_container(clip.path) as container,
    ):
        stream = container.streams[clip.index]
        stream.thread_type = "AUTO"
        if seek is not None:
            container.seek(seek, stream=stream)
        sought, aspect = seek is not None, clip.stated.get(_ASPECTS)
        for frame in _decoded(container, stream, clip.path, clip.decoder, sought):
            if (frame.width, frame.height) != (clip.width, clip.height):
                raise AetherError(
                    f"The frames change their size from {clip.width}x{clip.height} to "
                    f"{frame.width}x{frame.height} at "
                    f"{float(frame.pts * clip.time_base):.3f} s.",
                    clip.path,
                    "Cut it there.",
                )
            now = _coded_aspect(stream)
            if now not in (None, aspect):
                aspect = now
                _log.warning(
                    "%s: from about %.2f s on, pixels have another aspect; the target "
                    "keeps that of the beginning",
                    *(clip.path, float((frame.pts - clip.origin) * clip.time_base)),
                )
            yield frame


def _decoded(
    container: Any,
    stream: Any,
    path: Path,
    decoder: str | None,
    sought: bool = False,
) -> Iterator[Any]:
    """Decode a stream and give every frame a timestamp and a duration."""
    av = import_av()
    context = av.CodecContext.create(decoder, "r") if decoder else stream
    time_base, rate = as_fraction(stream.time_base), as_fraction(stream.guessed_rate)
    assert time_base
    step = max(round(1 / (rate or _USUAL_RATE) / time_base), 1)
    previous: int | None = None
    damaged = 0
    for packet in container.demux(stream):
        try:
            frames = context.decode(packet)
        except av.error.InvalidDataError:
            damaged += 1
            continue
        for frame in frames:
            pts = frame.dts if frame.pts is None else frame.pts
            if pts is None:
                if sought:
                    raise AetherError("The frames have no timestamps to seek by.", path)
                pts = 0 if previous is None else previous + step
            if previous is not None:
                if pts < previous - _JUMP * step:
                    raise _jump_back(path, previous * time_base)
                pts = max(pts, previous + 1)  # no encoder takes a timestamp twice
            frame.pts = previous = pts
            frame.duration = frame.duration or step
            yield frame
    if damaged:
        _log.warning("%s: skipped %d damaged packets of the video", path, damaged)


def _jump_back(path: Path, at: Fraction) -> AetherError:
    return AetherError(
        f"The video's timestamps jump back at {float(at):.2f} s, as they do in "
        "recordings that were appended to each other.",
        path,
        "Remux it first (ffmpeg -i IN -c copy OUT.mkv), or cut it there.",
    )


def frame_to_rgb(frame: Any, clip: Clip) -> np.ndarray:
    """Convert a decoded frame to planes `(1 to 4, H, W)`, float32, 0..1.

    A format that is not planar is repacked first, which changes no value.
    """
    if frame.format.name.replace("yuvj", "yuv") != clip.pixel_format:
        frame = frame.reformat(format=clip.pixel_format)
    planes, bits = planes_of(frame), bit_depth(frame.format)
    count = colour_components(frame.format)
    colours = to_rgb(planes[:count], bits, clip.colour, clip.siting)
    if count == len(planes):
        return colours
    alpha = planes[-1].astype(np.float32) / np.float32(2**bits - 1)
    return np.concatenate((colours, alpha[np.newaxis]))
