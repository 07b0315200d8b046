"""Join encoded segments to one stream, and copy the other streams of the source."""

import contextlib
import heapq
import io
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from aethernet.errors import AetherError
from aethernet.text import listed
from aethernet.video.boxes import chapter_tracks
from aethernet.video.clip import Clip, Cut
from aethernet.video.describe import (
    ALPHA_MODE,
    TIMECODE,
    has_alpha_beside,
    in_usual_keys,
    is_timecode,
    kept_metadata,
    kept_of_stream,
    moved_timecode,
    timecode_of,
)
from aethernet.video.encode import (
    CODECS,
    Segment,
    VideoEncoding,
    add_video_stream,
    sample_of,
)
from aethernet.video.extras import (
    CAPTIONS,
    Extra,
    open_unofficial,
    with_extras,
)
from aethernet.video.held import (
    held_extras,
    repair_stereo,
    unheld_metadata,
    unheld_of_stream,
)
from aethernet.video.libav import (
    as_fraction,
    av_reason,
    import_av,
    is_cover,
    open_container,
)
from aethernet.video.services import GUIDE

_log = logging.getLogger(__name__)

# Suffixes of containers that can be written -> libav's names for them.
CONTAINERS = {
    ".mkv": "matroska",
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".webm": "webm",
}

_MATROSKA = (".mkv", ".webm")

# Containers that hold no stream with a cover. Matroska has attachments for it.
_NO_COVERS = (".mkv", ".mov")

# Encoders whose stream itself stores the shape of a pixel.
_STORE_ASPECT = ("libx264", "libx265")

# Packets of sound among which the first one of each stream is looked for.
_TRIED_PACKETS = 200

# Seconds beyond the end of a cut in which packets from before it may still come.
_INTERLEAVING = Fraction(10)

# Container -> its own keys for what a broadcast says of its channel.
_OF_SERVICES = {"mp4": {"service_name": "network"}}

# Codec of a cover picture -> its name and type as an attachment.
_COVERS = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}


def check_muxable(clip: Clip, encoding: VideoEncoding, suffix: str) -> None:
    """Check before any work that a container takes the video.

    Warnings name what else of the clip it does not take.

    Args:
        clip: the source.
        encoding: of the upscaled video.
        suffix: of the target, a key of `CONTAINERS`.

    Raises:
        AetherError: when it does not take the video.
    """
    av = import_av()
    try:
        with (
            _source_of(clip) as source,
            av.open(io.BytesIO(), "w", format=CONTAINERS[suffix]) as trial,
        ):
            add_video_stream(trial, encoding)
            _add_copies(trial, source, clip, suffix, Fraction(0))
            trial.set_chapters(_chapters(source, Fraction(0), None))
            trial.start_encoding()
            lost = _left_out(clip, encoding, suffix)
            lost += _left_out_of_texts(source, clip, suffix)
    except (av.FFmpegError, ValueError) as error:
        raise AetherError(
            f"{suffix} does not hold this video as {encoding.codec} "
            f"({av_reason(error)}).",
            clip.path,
            "Name the output .mkv, which holds most videos.",
        ) from error
    if lost:
        how = encoding.codec, suffix
        _log.warning("%s: left out %s, with %s in %s", clip.path, listed(lost), *how)


def _left_out(clip: Clip, encoding: VideoEncoding, suffix: str) -> list[str]:
    """Names of what the video stream carries and the new one will not."""
    lost = set(clip.beside)
    if CODECS[encoding.codec].captions:
        lost.discard(CAPTIONS)
    if clip.extras:
        sample = sample_of(encoding)
        format = CONTAINERS[suffix]
        held = held_extras(sample, _enlarged(clip, encoding.width), format)
        lost |= {e.name for e in clip.extras} - {e.name for e in held}
    in_matroska = suffix in _MATROSKA
    stored = encoding.codec in _STORE_ASPECT or not in_matroska
    if clip.aspect not in (None, 1) and not stored:  # PyAV cannot set Matroska's
        lost.add(f"the pixel aspect of {clip.aspect}")
    if clip.display_matrix and in_matroska and not _only_turns(clip.display_matrix):
        lost.add("the mirroring of the picture")
    return sorted(lost)


def _left_out_of_texts(source: Any, clip: Clip, suffix: str) -> list[str]:
    """Names of what the container does not hold of metadata, languages and purposes."""
    format, lost = CONTAINERS[suffix], []
    own = [source.streams[clip.index]] if clip.index is not None else []
    held = _held_streams(clip, suffix)
    copied = [source.streams[index] for index in sorted(held - {clip.index})]
    for stream in (*own, *copied):
        for name in unheld_of_stream(stream, format):
            lost.append(f"{name} of stream {stream.index}")
    if suffix == ".mkv":
        lost += [
            f"the description of stream {stream.index}"
            for stream in source.streams
            if stream.type == "attachment" and stream.metadata.get("title")
        ]
    of_chapters = {key for each in source.chapters() for key in each["metadata"]}
    if suffix != ".mkv" and of_chapters - {"title"}:
        lost.append("metadata of chapters beside their titles")
    metadata = dict(_metadata(source, clip, suffix, Fraction(0)))
    if names := unheld_metadata(metadata, format):
        lost.append(f"the metadata {listed(names)}")
    return lost


def _metadata(
    source: Any, clip: Clip, suffix: str, skipped: Fraction
) -> Iterator[tuple[str, str]]:
    """The metadata of the file for a container, without what is untrue of the output.

    Args:
        skipped: seconds of the source that are left out at the beginning.
    """
    yield from kept_metadata(source.metadata, skipped, clip.rate)
    own_keys = _OF_SERVICES.get(CONTAINERS[suffix], {})
    for key, value in clip.texts.items():
        own_key = own_keys.get(key, key)
        if own_key not in source.metadata:
            yield own_key, value


def _only_turns(matrix: Sequence[int]) -> bool:
    """Whether a display matrix (row by row) has no mirroring and no other scale."""
    a, b, _, c, d = matrix[:5]
    return a == d and b == -c


def _enlarged(clip: Clip, width: int) -> list[Extra]:
    """The extras of the clip for a picture of that width."""
    return [extra.enlarged(width // clip.width) for extra in clip.extras]


def join(segments: Sequence[Segment], clip: Clip, cut: Cut, target: Path) -> None:
    """Write segments as one stream, without re-encoding, and all else of the clip.

    Every packet keeps its data and its presentation time. All streams move together, so
    that the output begins at zero where the clip begins late or was cut. Decoding times
    are computed anew: each segment had its own.

    Args:
        segments: in order of time.
        clip: the source.
        cut: the part of it that the segments hold.
        target: a file that may be overwritten; its suffix chooses the container.

    Raises:
        AetherError: when a segment does not hold the frames that were noted for it.
        av.FFmpegError: when a file cannot be read or written.
    """
    begin = min(segments[0].pts) if cut.first is not None else clip.origin
    end = segments[-1].end * clip.time_base if cut.end is not None else None
    span = _Span(begin * clip.time_base, end, seek=cut.first is not None)
    suffix = target.suffix.lower()
    skipped = (begin - clip.origin) * clip.time_base
    with (
        _source_of(clip) as source,
        _template(segments[0].path, clip, suffix) as template,
        open_unofficial(f"file:{target}", CONTAINERS[suffix]) as output,
    ):
        stream = _add_joined(
            output, template.streams.video[0], source, clip, suffix, skipped
        )
        copies = _add_copies(output, source, clip, suffix, skipped, quiet=True)
        for key, value in _metadata(source, clip, suffix, skipped):
            output.metadata[key] = value
        if suffix not in _MATROSKA:
            output.metadata.update(in_usual_keys(output.metadata))
        output.set_chapters(_chapters(source, span.begin, span.end))
        packets = heapq.merge(
            _joined_packets(segments, clip, begin, stream),
            _in_order(
                _without_cut_sound(_copied_packets(source, copies, span)),
                0 if suffix in _MATROSKA else 1,
            ),
            key=_decoding_time,
        )
        for packet in packets:
            output.mux(packet)
    if clip.extras:
        with target.open("r+b") as file:
            repair_stereo(file, CONTAINERS[suffix])


@dataclass(frozen=True)
class _Nothing:
    """Stands in for the container of an animation, which has no other streams."""

    streams: tuple[Any, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def chapters(self) -> list[Any]:
        return []


def _source_of(clip: Clip) -> Any:
    """The container of a clip, as a context manager."""
    if clip.index is None:
        return contextlib.nullcontext(_Nothing())
    return open_container(clip.path)


def _template(segment: Path, clip: Clip, suffix: str) -> Any:
    """A container with a stream as the segment's, which also says the clip's extras."""
    if not clip.extras:
        return open_container(segment)
    with open_container(segment) as container:
        (stream,) = container.streams
        width = stream.codec_context.width
        first = _first_packet(container, stream)
    held = held_extras(first, _enlarged(clip, width), CONTAINERS[suffix])
    return import_av().open(io.BytesIO(with_extras(first, held)))


def _first_packet(container: Any, stream: Any) -> bytes:
    """A Matroska file of the first packet of a stream."""
    file = io.BytesIO()
    with import_av().open(file, "w", format="matroska") as output:
        copy = output.add_stream_from_template(stream, opaque=True)
        if has_alpha_beside(stream):
            copy.metadata[ALPHA_MODE] = "1"
        packet = next(container.demux(stream))
        packet.pts = packet.dts = 0
        packet.stream = copy
        output.mux(packet)
    return file.getvalue()


@dataclass(frozen=True)
class _Span:
    """The part of the source to copy, in seconds; it begins at zero in the output."""

    begin: Fraction
    end: Fraction | None
    seek: bool
    """Whether to seek to the beginning and leave out what comes before."""

    def __contains__(self, at: Fraction) -> bool:
        if self.seek and at < self.begin:
            return False
        return self.end is None or at < self.end

    def is_over(self, at: Fraction) -> bool:
        """Whether no packet from within comes any more after one from this time."""
        return self.end is not None and at >= self.end + _INTERLEAVING


def _without_cut_sound(packets: Iterator[Any]) -> Iterator[Any]:
    """The packets without sound that an edit list cuts away.

    The last packet before a sound begins stays: its decoder needs a run-up.
    """
    run_up: dict[int, Any] = {}
    for packet in packets:
        if packet.is_discard and packet.stream.type == "audio":
            run_up[packet.stream_index] = packet
            continue
        if (before := run_up.pop(packet.stream_index, None)) is not None:
            yield before
        yield packet


def _in_order(packets: Iterator[Any], step: int) -> Iterator[Any]:
    """The packets, with decoding times of a stream at least `step` ticks apart.

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
    """Seconds, of the presentation where there is no decoding time."""
    ticks = packet.pts if packet.dts is None else packet.dts
    return (ticks or 0) * Fraction(
        packet.time_base.numerator, packet.time_base.denominator
    )


def _add_joined(
    output: Any,
    template: Any,
    source: Any,
    clip: Clip,
    suffix: str,
    skipped: Fraction,
) -> Any:
    """Add the stream of the joined segments, described as that of the source."""
    stream = output.add_stream_from_template(
        template, opaque=True, time_base=clip.time_base
    )
    stream.codec_context.framerate = clip.rate
    if clip.aspect:
        stream.codec_context.sample_aspect_ratio = clip.aspect
    if clip.display_matrix:
        stream.set_display_matrix(clip.display_matrix)
    if template.codec_context.name == "hevc" and suffix != ".mkv":
        stream.codec_context.codec_tag = "hvc1"  # Apple's players need it
    if clip.index is not None:
        _describe_copy(stream, source.streams[clip.index], skipped, clip.rate)
    if timecode := timecode_of(source.streams):
        moved = moved_timecode(timecode, round(skipped * clip.rate), clip.rate)
        if moved is not None:
            stream.metadata[TIMECODE] = moved
    if has_alpha_beside(template):
        stream.metadata[ALPHA_MODE] = "1"
    return stream


def _describe_copy(
    stream: Any, original: Any, skipped: Fraction, rate: Fraction
) -> None:
    stream.disposition = original.disposition
    for key, value in kept_of_stream(original, skipped, rate):
        stream.metadata[key] = value


def _add_copies(
    output: Any,
    source: Any,
    clip: Clip,
    suffix: str,
    skipped: Fraction,
    *,
    quiet: bool = False,
) -> dict[int, Any]:
    """Add the streams that are copied; return them by their index in the source.

    Args:
        skipped: seconds of the source that are left out at the beginning.
        quiet: do not warn about streams that the container does not hold.
    """
    copies = {}
    held = _held_streams(clip, suffix)
    told = _chapter_tracks(clip)
    for original in source.streams:
        if original.index == clip.index:
            continue
        codec = original.codec_context.name if original.codec_context else None
        if is_cover(original) and suffix == ".mkv" and codec in _COVERS:
            # Matroska attaches covers; as a stream it would be a video of one frame.
            name, kind = _COVERS[codec]
            name = original.metadata.get("filename", name)
            output.add_attachment(name, kind, _cover(clip, original.index))
        elif original.type == "attachment" and suffix == ".mkv":
            output.add_attachment(
                original.name or f"attachment {original.index}",
                original.mimetype or "application/octet-stream",
                original.data,
            )
        elif original.index in held:
            stream = _add_copy(output, original)
            _describe_copy(stream, original, skipped, clip.rate)
            copies[original.index] = stream
        elif not (quiet or is_timecode(original) or original.id in told):
            _log.warning(
                "%s: stream %d (%s) is left out, %s does not hold it",
                *(clip.path, original.index, _kind(original), suffix),
            )
    return copies


def _chapter_tracks(clip: Clip) -> set[int]:
    """Numbers of the tracks that are written anew, as chapters."""
    if clip.index is None:
        return set()
    with clip.path.open("rb") as file:
        return chapter_tracks(file)


def _cover(clip: Clip, index: int) -> bytes:
    """The picture file that a cover stream holds."""
    with open_container(clip.path) as container:
        packets = container.demux(container.streams[index])
        return next((bytes(packet) for packet in packets if packet.size), b"")


def _add_copy(output: Any, original: Any) -> Any:
    """Add a stream that is copied packet by packet."""
    stream = output.add_stream_from_template(original, opaque=True)
    if original.type == "audio":
        # Matroska does not say which channels PCM has; MP4 has to.
        layout = original.layout
        if layout.name == f"{layout.nb_channels} channels":
            stream.codec_context.layout = f"{layout.nb_channels}c"
    return stream


def _held_streams(clip: Clip, suffix: str) -> set[int]:
    """Numbers of the streams of a clip that a container takes, found out by trying."""
    if clip.index is None:
        return set()
    with open_container(clip.path) as source:
        first: dict[int, Any] = {}
        sound = source.streams.audio
        packets = source.demux(sound) if sound else iter(())
        with contextlib.suppress(import_av().FFmpegError):  # damaged: found out later
            for packet in itertools.islice(packets, _TRIED_PACKETS):
                if packet.size:
                    first.setdefault(packet.stream_index, packet)
        return {
            stream.index
            for stream in source.streams
            if _is_held(stream, suffix, first.get(stream.index))
        }


def _is_held(stream: Any, suffix: str, packet: Any | None) -> bool:
    """Whether a container takes a stream, and the first packet of one with sound."""
    if stream.codec_context is None:
        return False
    if is_cover(stream) and suffix in _NO_COVERS:
        return False
    av = import_av()
    try:
        with av.open(io.BytesIO(), "w", format=CONTAINERS[suffix]) as trial:
            copy = _add_copy(trial, stream)
            trial.start_encoding()
            if packet:
                packet.stream = copy
                packet.pts = packet.dts = 0
                trial.mux(packet)
    except (av.FFmpegError, ValueError):
        return False
    return True


def _kind(stream: Any) -> str:
    """Type, codec and language, e.g. "subtitle, srt, eng".

    A stream without a known codec may have a name, as cameras give it.
    """
    named = stream.metadata.get("handler_name")
    name = stream.codec_context.name if stream.codec_context else named
    if stream.container.format.name == "mpegts" and stream.id == GUIDE:
        name = "program guide"
    parts = [stream.type, name, stream.language]
    return ", ".join(part for part in parts if part)


def _chapters(source: Any, begin: Fraction, end: Fraction | None) -> list[Any]:
    """The source's chapters between two times in seconds; `begin` becomes zero."""
    chapters = []
    for chapter in source.chapters():
        base = as_fraction(chapter["time_base"])
        assert base
        moved = round(begin / base)
        stop = chapter["end"] if end is None else min(chapter["end"], round(end / base))
        start = max(chapter["start"], moved)
        if start < stop:
            times = {"start": start - moved, "end": stop - moved}
            chapters.append({**chapter, **times})
    return chapters


def _joined_packets(
    segments: Sequence[Segment], clip: Clip, begin: int, stream: Any
) -> Iterator[Any]:
    """The packets of all segments, with the times they have in the output.

    Packet n is decoded when frame n - delay is shown; the delay is the deepest
    reordering of the frames.
    """
    stored = [pts for segment in segments for pts in segment.pts]
    shown = sorted(stored)
    rank = {pts: n for n, pts in enumerate(shown)}
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
        f"The file does not hold the {len(segment.pts)} frames that were written to "
        "it.",
        segment.path,
        "Remove its folder and start again.",
    )


def _copied_packets(source: Any, copies: dict[int, Any], span: _Span) -> Iterator[Any]:
    """Packets of the other streams that begin within the span, moved to the output."""
    if not copies:
        return
    if span.seek:
        source.seek(int(span.begin * 10**6))
    for packet in source.demux([source.streams[index] for index in copies]):
        if not packet.size:
            continue
        original = packet.stream
        base = as_fraction(original.time_base)
        assert base
        ticks = packet.dts if packet.pts is None else packet.pts
        if not is_cover(original):  # a cover belongs to every part of the clip
            if ticks is not None and span.is_over(ticks * base):
                return
            if ticks is not None and ticks * base not in span:
                continue
            moved = round(span.begin / base)
            if packet.pts is not None:
                packet.pts -= moved
            if packet.dts is not None:
                packet.dts -= moved
        packet.stream = copies[original.index]
        yield packet
