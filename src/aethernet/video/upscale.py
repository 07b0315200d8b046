"""Upscaling videos: file to file, and through pipes.

Decoding, the network and encoding overlap. A file is encoded in segments, kept in a
hidden folder beside the target until they are joined: a run that was killed is taken up
at the frame where the last whole segment ends.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from aethernet.errors import AetherError
from aethernet.files import check_target, replacing
from aethernet.pipeline import overlapped
from aethernet.runtimes.base import Model
from aethernet.upscaling.planes import upscale_planes
from aethernet.video.clip import (
    CONTAINERS,
    Clip,
    Cut,
    Segment,
    frame_to_rgb,
    frames_from,
    libav,
    read_clip,
)
from aethernet.video.encode import Encoding, encoding_for
from aethernet.video.mux import check_muxable, join
from aethernet.video.parts import SEGMENT_FRAMES, Frame, Parts, job_of
from aethernet.video.y4m import (
    RawFormat,
    raw_writer,
    read_header,
    read_raw,
    read_y4m,
    y4m_writer,
)

_log = logging.getLogger(__name__)

# What is taken for a video by its name; libav looks at the content.
VIDEO_SUFFIXES = (
    *CONTAINERS,
    *(".3gp", ".avi", ".flv", ".m2ts", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts"),
    *(".vob", ".wmv"),
)

SEGMENT_SECONDS = 60.0

_FEWEST_FRAMES = 12

# Seconds by which a clip may end before it says so without a word.
_EARLY = 1


@dataclass(frozen=True)
class VideoOptions:
    """How a video is upscaled; what is None is left to the source and the codec."""

    codec: str | None = None
    """A key of `video_io.CODECS`."""
    crf: float | None = None
    pixel_format: str | None = None
    """libav's name."""
    start: float | None = None
    """Seconds from the beginning of the clip."""
    end: float | None = None
    """Likewise; frames from then on are left out."""
    preview: float | None = None
    """Seconds: only so much, from `start` or, without one, out of the middle."""
    overwrite: bool = False
    """Replace a target that exists."""


@dataclass(frozen=True)
class UpscaledVideo:
    """What `upscale_video` did; sizes are (width, height) in pixels."""

    source: Path
    target: Path
    size_before: tuple[int, int]
    size_after: tuple[int, int]
    frames: int
    """In the target."""
    resumed: int
    """Of these, how many an earlier run had made."""
    encoding: Encoding


def upscale_video(
    source: Path,
    target: Path,
    model: Model,
    options: VideoOptions | None = None,
    report: Callable[[int, int | None], None] | None = None,
) -> UpscaledVideo:
    """Upscale the picture of a video file and copy everything else in it.

    Args:
        target: its suffix chooses the container, one of `video_io.CONTAINERS`.
        model: for gray or RGB pictures of any size.
        report: called with the frames done, of how many (None where nobody knows); the
            first time with those of an earlier run.

    Raises:
        AetherError: when the source is no whole video, the target cannot hold it or
            exists, the model fails, or a file cannot be written.
    """
    source, target, options = Path(source), Path(target), options or VideoOptions()
    report = report or (lambda done, of: None)
    suffix = target.suffix.lower()
    if suffix not in CONTAINERS:
        raise AetherError(f"Cannot write {target}: name it {', '.join(CONTAINERS)}.")
    clip = read_clip(source)
    check_target(target, source)
    if target.exists() and not options.overwrite:
        raise AetherError(f"{target} exists; --overwrite replaces it.")
    words = (options.codec, options.crf, options.pixel_format)
    encoding = encoding_for(clip, model.scale, suffix, *words)
    cut = _cut(clip, options)
    for remark in clip.remarks:
        _log.warning("%s %s.", source, remark)
    check_muxable(clip, encoding, suffix)
    parts = Parts(target, job_of(clip, encoding, cut, model))
    av = libav()
    try:
        resumed = sum(len(segment.pts) for segment in parts.segments)
        expected = _expected_frames(clip, cut)
        done = resumed
        report(done, expected)

        def upscaled(frame: Frame) -> Frame:
            nonlocal done
            planes = upscale_planes(frame.planes, model)
            done += 1
            report(done, max(done, expected) if expected else None)
            return replace(frame, planes=planes)

        def write(frames: Iterator[Frame]) -> None:
            while (first := next(frames, None)) is not None:
                parts.write(_segment(first, frames), encoding)

        overlapped(_planes(clip, cut, parts.segments), upscaled, write)
        if not parts.segments:
            raise AetherError(f"{source} has no frame in the part that was asked for.")
        _warn_of_an_early_end(clip, cut, parts.segments[-1].end)
        if done != expected:  # an estimate
            report(done, done)
        with replacing(target) as temporary:
            join(parts.segments, clip, cut, temporary)
    except av.FFmpegError as error:
        raise AetherError(
            f"Cannot make {target} of {source}: {error.strerror}."
        ) from error
    finally:
        parts.tidy()
    parts.remove()
    sizes = (clip.width, clip.height), (encoding.width, encoding.height)
    return UpscaledVideo(source, target, *sizes, done, resumed, encoding)


def _warn_of_an_early_end(clip: Clip, cut: Cut, end: int) -> None:
    """Say so when there was less of a clip than it says, as of one cut short."""
    if cut.end is not None or clip.duration is None:
        return
    lasted = (end - clip.origin) * clip.time_base - clip.begin
    if clip.duration - lasted > _EARLY:
        _log.warning(
            "%s says that it lasts %.1f s, and its picture ends at %.1f s: it may be "
            "cut short",
            *(clip.path, float(clip.duration), float(lasted)),
        )


def _segment(first: Frame, frames: Iterator[Frame]) -> Iterator[Frame]:
    """As many frames as make a segment."""
    begun = time.monotonic()
    yield first
    for count, frame in enumerate(itertools.islice(frames, SEGMENT_FRAMES - 1), 2):
        yield frame
        late = time.monotonic() - begun > SEGMENT_SECONDS
        if late and count >= _FEWEST_FRAMES:
            return


def upscale_stream(
    source: BinaryIO, target: BinaryIO, model: Model, raw: RawFormat | None = None
) -> int:
    """Upscale frames from one pipe into another: y4m, or raw RGB where `raw` is given.

    Returns:
        How many frames.

    Raises:
        AetherError: when the source is something else or breaks off inside a frame; the
            frames before are written.
        BrokenPipeError: when whoever reads the target goes away.
    """
    if raw is not None:
        frames, write = read_raw(source, raw), raw_writer(target, raw)
    else:
        header = read_header(source)
        frames = read_y4m(source, header)
        write = y4m_writer(target, header, model.scale)
    done = 0

    def write_all(results: Iterator[np.ndarray]) -> None:
        nonlocal done
        for planes in results:
            write(planes)
            done += 1

    overlapped(frames, lambda planes: upscale_planes(planes, model), write_all)
    return done


def _cut(clip: Clip, options: VideoOptions) -> Cut:
    """The part asked for, in ticks of the clip's clock."""
    start, end, preview = map(_exact, (options.start, options.end, options.preview))
    if preview is not None:
        if end is not None:
            raise AetherError("A preview has a length; --end goes without --preview.")
        if start is None:
            if clip.duration is None:
                raise AetherError(
                    f"{clip.path} does not say how long it is, so its middle is not "
                    "known; say where a preview begins with --start."
                )
            start = clip.begin + max(clip.duration - preview, Fraction(0)) / 2
        end = start + preview
    if end is not None and end <= (start or 0):
        raise AetherError(f"The part of {clip.path} that was asked for is empty.")
    over = None if clip.duration is None else clip.begin + clip.duration
    if start is not None and over is not None and start >= over:
        raise AetherError(
            f"The picture of {clip.path} ends at {float(over):.2f} s; nothing is left "
            f"of it from {float(start):g} s on."
        )
    first, last = (
        None if at is None else clip.origin + math.ceil(at / clip.time_base)
        for at in (start or None, end)
    )
    return Cut(first, last)


def _exact(at: float | None) -> Fraction | None:
    """What the digits say: 0.1 is a tenth, not the nearest binary fraction."""
    return None if at is None else Fraction(repr(float(at)))


def _expected_frames(clip: Clip, cut: Cut) -> int | None:
    if cut == Cut() or clip.frames is None or clip.duration is None:
        return clip.frames if cut == Cut() else None
    begin = clip.origin + round(clip.begin / clip.time_base)
    over = begin + round(clip.duration / clip.time_base)
    first = begin if cut.first is None else max(cut.first, begin)
    end = over if cut.end is None else min(cut.end, over)
    part = Fraction(end - first) * clip.time_base / clip.duration
    return max(round(clip.frames * part), 1)


def _planes(clip: Clip, cut: Cut, done: list[Segment]) -> Iterator[Frame]:
    """The frames of the cut that come after those of the segments."""
    for frame in _frames_after(clip, cut, done):
        if cut.end is not None and frame.pts >= cut.end:
            return
        yield Frame(frame_to_rgb(frame, clip), frame.pts, frame.duration)


def _frames_after(clip: Clip, cut: Cut, done: list[Segment]) -> Iterator[Any]:
    if not done:
        return frames_from(clip, cut.first)
    last = max(done[-1].pts)
    frames = frames_from(clip, last)
    if (frame := next(frames, None)) is not None and frame.pts == last:
        return frames
    # Seeking changed the clock, as it does in files that have none of their own.
    count = sum(len(segment.pts) for segment in done)
    return itertools.islice(frames_from(clip, cut.first), count, None)
