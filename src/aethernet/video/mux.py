"""Join encoded segments and copy the other streams of the source."""

import heapq
import io
import logging
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from aethernet.errors import AetherError
from aethernet.video.clip import (
    CONTAINERS,
    Clip,
    Cut,
    Segment,
    fraction,
    is_cover,
    libav,
    open_container,
    reason_of,
)
from aethernet.video.encode import Encoding, add_encoder

_log = logging.getLogger(__name__)

# Encoders whose stream says by itself how wide a pixel is.
_SAY_ASPECT = ("libx264", "libx265")

# Packets of other streams this far beyond the end of a cut may still be interleaved.
_INTERLEAVING = Fraction(10)

# What a cover picture is called as an attachment, by its codec.
_COVERS = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}

# Says of the old file what would be wrong of the new one.
_STALE = ("encoder", "major_brand", "minor_version", "compatible_brands", "duration")

_STALE_PREFIXES = ("_statistics", "bps", "number_of_")


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
            open_container(clip.path) as source,
            av.open(io.BytesIO(), "w", format=CONTAINERS[suffix]) as trial,
        ):
            add_encoder(trial, encoding)
            _add_copies(trial, source, clip, suffix)
            trial.set_chapters(_chapters(source, 0, None))
            trial.start_encoding()
    except (av.FFmpegError, ValueError) as error:
        raise AetherError(
            f"{suffix} does not hold this video as {encoding.codec} "
            f"({reason_of(error)}); .mkv holds most."
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
        open_container(clip.path) as source,
        open_container(segments[0].path) as template,
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
        if is_cover(original) and suffix == ".mkv" and codec in _COVERS:
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
    with open_container(clip.path) as container:
        packets = container.demux(container.streams[index])
        return next((bytes(packet) for packet in packets if packet.size), b"")


def _is_held(stream: Any, suffix: str) -> bool:
    """Whether a container of that suffix takes the stream, found out by trying."""
    if stream.codec_context is None or (suffix == ".mkv" and is_cover(stream)):
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
        base = fraction(chapter["time_base"])
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
        with open_container(segment.path) as container:
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
        base = fraction(original.time_base)
        ticks = packet.dts if packet.pts is None else packet.pts
        assert base
        if ticks is not None and not is_cover(original):
            if end is not None and ticks * base >= end + _INTERLEAVING:
                return
            if (seek and ticks * base < shift) or (
                end is not None and ticks * base >= end
            ):
                continue
        moved = 0 if is_cover(original) else round(shift / base)
        if packet.pts is not None:
            packet.pts -= moved
        if packet.dts is not None:
            packet.dts -= moved
        packet.stream = copies[original.index]
        yield packet
