"""Upscale videos: file to file, and from pipe to pipe.

Decoding, the network and encoding run at the same time. A file is encoded in segments
(see `parts`), which are joined at the end: a run that was killed resumes after the last
whole segment.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from aethernet.errors import AetherError
from aethernet.files import check_target, replacing
from aethernet.pictures.files import Picture, with_colours_spread
from aethernet.pipeline import overlapped
from aethernet.runtimes.base import Model
from aethernet.text import listed
from aethernet.upscaling.planes import pixels_of, planes_and_alpha, upscale_planes
from aethernet.video.clip import (
    INTERLACED,
    Clip,
    Cut,
    frame_to_rgb,
    frames_from,
    read_clip,
)
from aethernet.video.encode import CODECS, Segment, VideoEncoding, encoding_for
from aethernet.video.extras import CAPTIONS, names_beside, side_data, stated_by
from aethernet.video.libav import av_errors, has_alpha, pixel_format
from aethernet.video.mux import CONTAINERS, check_muxable, join
from aethernet.video.parts import Frame, Parts, VideoJob
from aethernet.video.y4m import (
    RawFormat,
    raw_writer,
    read_header,
    read_raw,
    read_y4m,
    y4m_writer,
)

_log = logging.getLogger(__name__)

# Suffixes that mark an input as a video; libav then looks at the content.
VIDEO_SUFFIXES = (
    *CONTAINERS,
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2t", ".m2ts"),
    *(".m2v", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".ts", ".vob"),
    *(".wmv",),
)

# A clip may be shorter than its header says by so many seconds without a warning.
_EARLY = 1

FrameReport = Callable[[int, int | None], None]
"""Takes the number of frames done, and of how many; None where that is not known."""


@dataclass(frozen=True)
class VideoOptions:
    """How to upscale a video; None leaves the choice to the source and the codec."""

    codec: str | None = None
    """A key of `encode.CODECS`."""
    crf: float | None = None
    """Constant rate factor: lower is better and larger."""
    pixel_format: str | None = None
    """libav's name."""
    start: float | None = None
    """Seconds from the beginning of the clip."""
    end: float | None = None
    """Seconds from the beginning of the clip; frames from then on are left out."""
    preview: float | None = None
    """Seconds: take only so much, from `start` or else out of the middle."""
    overwrite: bool = False
    """Replace a target that exists."""


@dataclass(frozen=True)
class UpscaledVideo:
    """The result of `upscale_video`; sizes are (width, height) in pixels."""

    source: Path
    target: Path
    size_before: tuple[int, int]
    size_after: tuple[int, int]
    frames: int
    """Frames in the target."""
    resumed: int
    """How many of these an earlier run made."""
    encoding: VideoEncoding


def upscale_video(
    source: Path,
    target: Path,
    model: Model,
    options: VideoOptions | None = None,
    report: FrameReport | None = None,
) -> UpscaledVideo:
    """Upscale the picture of a video file and copy everything else in it.

    Args:
        source: the video to upscale.
        target: the video to write; its suffix chooses the container, a key of
            `mux.CONTAINERS`.
        model: for gray or RGB pictures of any size.
        options: encoding, and the part of the clip to take.
        report: called as frames are done; the first time with those of an earlier run.

    Raises:
        AetherError: when the source is not a whole video, the target cannot hold it or
            exists, the model fails, or a file cannot be written.
        MissingExtraError: when PyAV is not installed.
    """
    source, target, options = Path(source), Path(target), options or VideoOptions()
    report = report or (lambda done, total: None)
    job = _job(source, target, model, options)
    clip, encoding = job.clip, job.encoding
    with (
        av_errors(f"The video cannot be made of {source}", target),
        Parts(target, job) as parts,
    ):
        resumed = parts.frames
        done = _upscale_frames(job, parts, report)
        if not parts.segments:
            raise AetherError("The chosen part of the video has no frame.", source)
        _warn_of_early_end(clip, job.cut, parts.segments[-1].end)
        with (
            replacing(target) as temporary,
            av_errors(f"The video cannot be made of {source}", temporary),
        ):
            join(parts.segments, clip, job.cut, temporary)
        parts.remove()
    sizes = (clip.width, clip.height), (encoding.width, encoding.height)
    return UpscaledVideo(source, target, *sizes, done, resumed, encoding)


def check_video_target(source: Path, target: Path, options: VideoOptions) -> None:
    """Check that a video can be written, before a model is opened.

    Raises:
        AetherError: when the suffix is not in `mux.CONTAINERS`, the file exists and is
            not to be replaced, or it cannot be written.
    """
    if target.suffix.lower() not in CONTAINERS:
        raise AetherError(
            "The suffix is not that of a video that can be written.",
            target,
            f"Use one of {', '.join(CONTAINERS)}.",
        )
    check_target(target, source)
    if target.exists() and not options.overwrite:
        raise AetherError("The file exists.", target, "--overwrite replaces it.")


def video_pixels(source: Path, options: VideoOptions) -> float:
    """About how many pixels all frames to upscale have; infinite if nobody knows.

    Args:
        source: the video.
        options: the part of it to take.

    Raises:
        AetherError: when the source is not a video, or does not have that part.
        MissingExtraError: when PyAV is not installed.
    """
    clip = read_clip(source)
    frames = _expected_frames(clip, _cut(clip, options))
    return math.inf if frames is None else frames * clip.width * clip.height


def _job(source: Path, target: Path, model: Model, options: VideoOptions) -> VideoJob:
    """Check before any work that the video can be made, and decide how."""
    check_video_target(source, target, options)
    suffix = target.suffix.lower()
    clip = read_clip(source)
    encoding = encoding_for(
        clip,
        model.scale,
        suffix,
        codec=options.codec,
        crf=options.crf,
        pixel_format_name=options.pixel_format,
    )
    cut = _cut(clip, options)
    for remark in clip.remarks:
        _log.warning("%s: the clip %s.", source, remark)
    if has_alpha(pixel_format(clip.pixel_format)) and not encoding.has_alpha:
        _log.warning(
            "%s: the transparency is left out; the picture is put on black", source
        )
    check_muxable(clip, encoding, suffix)
    return VideoJob(clip, cut, encoding, model)


def _upscale_frames(job: VideoJob, parts: Parts, report: FrameReport) -> int:
    """Upscale and encode the frames that the parts do not hold yet.

    Returns:
        The number of frames in all parts.
    """
    done = parts.frames
    expected = _expected_frames(job.clip, job.cut)
    report(done, expected)

    def upscaled(frame: Frame) -> Frame:
        nonlocal done
        planes = _upscaled_planes(frame.planes, job.model)
        done += 1
        report(done, max(done, expected) if expected else None)
        return replace(frame, planes=planes)

    overlapped(_frames(job, parts.segments), upscaled, parts.write)
    if done and done != expected:  # it was an estimate
        report(done, done)
    return done


def _upscaled_planes(planes: np.ndarray, model: Model) -> np.ndarray:
    """Upscale planes `(1 to 4, H, W)`, 0..1; an even number of them ends with alpha."""
    if len(planes) in (1, 3):
        return upscale_planes(planes, model)
    picture = with_colours_spread(Picture(pixels_of(planes.copy(), 16)))
    spread = picture.pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(65535)
    return planes_and_alpha(spread, True, model, "network")


def _warn_of_early_end(clip: Clip, cut: Cut, end: int) -> None:
    """Warn of a clip that is shorter than its header says, as one cut short is."""
    if cut.end is not None or clip.duration is None:
        return
    lasted = (end - clip.origin) * clip.time_base - clip.begin
    if clip.duration - lasted > _EARLY:
        _log.warning(
            "%s: the header says %.1f s, but the picture ends after %.1f s; the file "
            "may be cut short",
            *(clip.path, float(clip.duration), float(lasted)),
        )


def upscale_stream(
    source: BinaryIO, target: BinaryIO, model: Model, raw: RawFormat | None = None
) -> int:
    """Upscale frames from one pipe into another.

    Args:
        source: a y4m stream, or raw RGB.
        target: gets frames of the same kind, `model.scale` times as large.
        model: for gray or RGB pictures of any size.
        raw: the format of raw RGB; None for y4m.

    Returns:
        The number of frames.

    Raises:
        AetherError: when the source is of another kind or ends inside a frame; the
            whole frames before are written.
        BrokenPipeError: when the program that reads the target has ended.
    """
    if raw is not None:
        frames, write = read_raw(source, raw), raw_writer(target, raw)
    else:
        header = read_header(source)
        if header.is_interlaced:
            _log.warning("the stream %s.", INTERLACED)
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
    """The part that the options ask for, in ticks of the clip's clock."""
    start, end, preview = map(_exact, (options.start, options.end, options.preview))
    if preview is not None:
        if end is not None:
            raise AetherError("--preview and --end do not go together.")
        if start is None:
            start = _middle(clip, preview)
        end = start + preview
    if end is not None and end <= (start or 0):
        raise AetherError("The chosen part of the video is empty.", clip.path)
    over = None if clip.duration is None else clip.begin + clip.duration
    if start is not None and over is not None and start >= over:
        raise AetherError(
            f"The video ends at {float(over):.2f} s, before the start of the chosen "
            f"part at {float(start):g} s.",
            clip.path,
        )
    first, last = (
        None if at is None else clip.origin + math.ceil(at / clip.time_base)
        for at in (start or None, end)
    )
    return Cut(first, last)


def _middle(clip: Clip, length: Fraction) -> Fraction:
    """Where a preview of that length begins, in seconds."""
    if clip.duration is None:
        raise AetherError(
            "The file does not say how long it is, so its middle is not known.",
            clip.path,
            "Say with --start where the preview begins.",
        )
    return clip.begin + max(clip.duration - length, Fraction(0)) / 2


def _exact(at: float | None) -> Fraction | None:
    """The number as written: 0.1 is a tenth, not the nearest binary fraction."""
    return None if at is None else Fraction(repr(float(at)))


def _expected_frames(clip: Clip, cut: Cut) -> int | None:
    """The number of frames in the cut, estimated; None where nothing is known."""
    if cut == Cut() or clip.frames is None or clip.duration is None:
        return clip.frames if cut == Cut() else None
    begin = clip.origin + round(clip.begin / clip.time_base)
    over = begin + round(clip.duration / clip.time_base)
    first = begin if cut.first is None else max(cut.first, begin)
    end = over if cut.end is None else min(cut.end, over)
    part = Fraction(end - first) * clip.time_base / clip.duration
    return max(round(clip.frames * part), 1)


def _frames(job: VideoJob, done: list[Segment]) -> Iterator[Frame]:
    """The frames of the cut that come after those of the segments."""
    clip, cut = job.clip, job.cut
    stores_captions = CODECS[job.encoding.codec].captions
    warn = _Latecomers(clip, stores_captions)
    for frame in _decoded_after(clip, cut, done):
        if cut.end is not None and frame.pts >= cut.end:
            return
        has_captions = warn.of(frame) and stores_captions
        planes = frame_to_rgb(frame, clip)
        captions = frame if has_captions else None
        yield Frame(planes, frame.pts, frame.duration, captions)


class _Latecomers:
    """Warns of what comes after the first frame, by which the clip was described."""

    def __init__(self, clip: Clip, stores_captions: bool) -> None:
        self._clip = clip
        self._known = {*clip.beside, *([CAPTIONS] if stores_captions else [])}
        self._interlaced = INTERLACED in clip.remarks
        self._stated = {*clip.stated.items()}

    def of(self, frame: Any) -> bool:
        """Look at a frame; returns whether it carries captions."""
        at = float((frame.pts - self._clip.origin) * self._clip.time_base)
        if frame.interlaced_frame and not self._interlaced:
            self._interlaced = True
            message = "%s: from %.2f s on, the clip %s."
            _log.warning(message, self._clip.path, at, INTERLACED)
        data = side_data(frame)
        names = names_beside(data, (frame.width, frame.height))
        if new := sorted(names - self._known):
            self._known.update(new)
            message = "%s: left out %s, from %.2f s on"
            _log.warning(message, self._clip.path, listed(new), at)
        if self._clip.stated:
            self._look_at_changes(stated_by(frame, data), at)
        return CAPTIONS in names

    def _look_at_changes(self, stated: Mapping[str, object], at: float) -> None:
        """Warn of what the target says by the first frame, once for each value."""
        if changed := sorted({*stated.items()} - self._stated):
            self._stated.update(changed)
            names = listed([name for name, _ in changed])
            message = "%s: from %.2f s on, the clip has other %s; the target does not"
            _log.warning(message, self._clip.path, at, names)


def _decoded_after(clip: Clip, cut: Cut, done: list[Segment]) -> Iterator[Any]:
    if not done:
        return frames_from(clip, cut.first)
    last = max(done[-1].pts)
    frames = frames_from(clip, last)
    if (frame := next(frames, None)) is not None and frame.pts == last:
        return frames
    # Seeking changed the timestamps, as it does in files that store none.
    count = sum(len(segment.pts) for segment in done)
    return itertools.islice(frames_from(clip, cut.first), count, None)
