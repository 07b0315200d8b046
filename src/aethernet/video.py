"""Upscaling videos: file to file, and through pipes.

Decoding, the network and encoding overlap. A file is encoded in segments, kept in a
hidden folder beside the target until they are joined: a run that was killed is taken up
at the frame where the last whole segment ends.
"""

import argparse
import base64
import contextlib
import glob
import itertools
import json
import logging
import math
import queue
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

import aethernet
from aethernet.errors import AetherError
from aethernet.files import check_target, replacing
from aethernet.runtimes import Model
from aethernet.upscale import upscale_planes
from aethernet.video_io import (
    CONTAINERS,
    Clip,
    Cut,
    Encoding,
    Segment,
    SegmentEncoder,
    check_muxable,
    encoding_for,
    frame_to_rgb,
    frames_from,
    join,
    libav,
    read_clip,
)
from aethernet.y4m import (
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

# Frames in a segment: what a kill may cost, and how often a key frame comes; two
# seconds are a usual distance for streaming. Where the network is slow a segment ends
# after so many seconds of work, but not before a dozen frames: key frames take space.
SEGMENT_FRAMES = 48
SEGMENT_SECONDS = 60.0
_FEWEST_FRAMES = 12

# Decoded frames that may wait for the network, and upscaled ones for the encoder.
_READ_AHEAD, _WRITE_BEHIND = 3, 2
# A model is known again by what it makes of a small picture, to this difference: other
# weights are further away, another number of threads or another library is not.
_SAME_MODEL = 2e-3
_FINGERPRINT_SIDE = 16
# Of a source, what is hashed at its beginning and at its end.
_HASHED_BYTES = 2**20

# Seconds by which a clip may end before it says so without a word.
_EARLY = 1

# How long a reader is waited for that may hang in a pipe nobody writes to; seconds.
_PATIENCE = 2.0

A = TypeVar("A")
B = TypeVar("B")
_END = object()


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


@dataclass(frozen=True)
class _Frame:
    planes: np.ndarray
    pts: int
    duration: int


def seconds(text: str) -> float:
    """A time as people write it: 90, 5s, 1:30 or 0:01:30.5.

    Raises:
        argparse.ArgumentTypeError: when it is none.
    """
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)s?", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"expected seconds or [h:]m:s, e.g. 90, 5s, 1:30 or 0:01:30.5, not {text!r}"
        )
    hours, minutes, rest = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest)


def raw_format(text: str) -> RawFormat:
    """WxH of raw RGB frames, 8 bits per value, or WxH:48 for 16.

    Raises:
        argparse.ArgumentTypeError: when it is none.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})(?::(24|48))?", text.lower())
    if match is None or not int(match[1]) or not int(match[2]):
        raise argparse.ArgumentTypeError(
            f"expected WxH, or WxH:48 for 16 bits per value, not {text!r}"
        )
    bits = 16 if match[3] == "48" else 8
    return RawFormat(int(match[1]), int(match[2]), bits)


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
    parts = _Parts(target, _job(clip, encoding, cut, model))
    av = libav()
    try:
        resumed = sum(len(segment.pts) for segment in parts.segments)
        expected = _expected_frames(clip, cut)
        done = resumed
        report(done, expected)

        def upscaled(frame: _Frame) -> _Frame:
            nonlocal done
            planes = upscale_planes(frame.planes, model)
            done += 1
            report(done, max(done, expected) if expected else None)
            return replace(frame, planes=planes)

        def write(frames: Iterator[_Frame]) -> None:
            while (first := next(frames, None)) is not None:
                parts.write(_segment(first, frames), encoding)

        _overlapped(_planes(clip, cut, parts.segments), upscaled, write)
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


def _segment(first: _Frame, frames: Iterator[_Frame]) -> Iterator[_Frame]:
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

    _overlapped(frames, lambda planes: upscale_planes(planes, model), write_all)
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


def _planes(clip: Clip, cut: Cut, done: list[Segment]) -> Iterator[_Frame]:
    """The frames of the cut that come after those of the segments."""
    for frame in _frames_after(clip, cut, done):
        if cut.end is not None and frame.pts >= cut.end:
            return
        yield _Frame(frame_to_rgb(frame, clip), frame.pts, frame.duration)


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


def _job(clip: Clip, encoding: Encoding, cut: Cut, model: Model) -> dict[str, Any]:
    """All that decides what the segments hold; what json makes of it comes back."""
    stat = clip.path.stat()
    picture = np.random.default_rng(0).random((3, *[_FINGERPRINT_SIDE] * 2), np.float32)
    answer = upscale_planes(picture, model)
    job = {
        "source": [stat.st_size, stat.st_mtime_ns, _digest(clip.path)],
        "model": base64.b64encode(answer.astype("<f4").tobytes()).decode("ascii"),
        "encoding": asdict(encoding),
        "cut": asdict(cut),
        "segment_frames": SEGMENT_FRAMES,
        # Of a `Tiled`; the tile that was asked for, not what memory allowed.
        "tiles": [getattr(model, name, None) for name in ("asked_tile", "context")],
        "made with": [aethernet.__version__, libav().__version__],
    }
    return json.loads(json.dumps(job, default=str))


def _digest(path: Path) -> str:
    """Of a file's beginning and end: reading all of a film would take minutes."""
    digest = sha256()
    with path.open("rb") as file:
        digest.update(file.read(_HASHED_BYTES))
        file.seek(max(path.stat().st_size - _HASHED_BYTES, 0))
        digest.update(file.read(_HASHED_BYTES))
    return digest.hexdigest()


def _same_job(job: dict[str, Any], other: dict[str, Any]) -> bool:
    if {**job, "model": ""} != {**other, "model": ""}:
        return False
    answers = [
        np.frombuffer(base64.b64decode(each["model"]), "<f4") for each in (job, other)
    ]
    return answers[0].shape == answers[1].shape and bool(
        np.abs(answers[0] - answers[1]).max() < _SAME_MODEL
    )


class _Parts:
    """The folder of segments beside a target, and which of them are whole.

    `job.json` says what they belong to. Of each segment the frames are in `000000.mkv`
    and what was noted of them in `000000.json`, written last: a segment without its
    note does not count.
    """

    def __init__(self, target: Path, job: dict[str, Any]) -> None:
        """Looks for what an earlier run left; nothing is written yet."""
        self._folder = target.with_name(f".{target.name}.parts")
        self._job = job
        self._lock = _Lock(target)
        self.segments: list[Segment] = []
        stem = glob.escape(target.stem)
        for unfinished in target.parent.glob(f".{stem}.????????.part{target.suffix}"):
            unfinished.unlink(missing_ok=True)  # of a run killed while it joined
        if not self._folder.exists():
            return
        try:
            before = json.loads((self._folder / "job.json").read_text("utf-8"))
            same = _same_job(job, before)
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            _log.warning(
                "%s holds part of another job (source, model or options); it is begun "
                "anew",
                self._folder,
            )
            self.remove()
            return
        for unfinished in self._folder.glob(".*.part.*"):
            unfinished.unlink(missing_ok=True)
        while (segment := self._noted(len(self.segments))) is not None:
            self.segments.append(segment)
        # Beyond a damaged one nothing counts, now or later.
        for note in sorted(self._folder.glob("*.json")):
            if note.stem.isdecimal() and int(note.stem) >= len(self.segments):
                note.unlink()
                note.with_suffix(".mkv").unlink(missing_ok=True)

    def _paths(self, number: int) -> tuple[Path, Path]:
        stem = self._folder / f"{number:06}"
        return stem.with_suffix(".mkv"), stem.with_suffix(".json")

    def _noted(self, number: int) -> Segment | None:
        frames, note = self._paths(number)
        try:
            content = json.loads(note.read_text("utf-8"))
            if frames.stat().st_size != content["bytes"]:
                return None
            return Segment(frames, tuple(content["pts"]), content["end"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, frames: Iterable[_Frame], encoding: Encoding) -> None:
        """Encode frames as the next segment."""
        if not self.segments:
            self._folder.mkdir(exist_ok=True)
            with replacing(self._folder / "job.json") as temporary:
                temporary.write_text(json.dumps(self._job), "utf-8")
        path, note = self._paths(len(self.segments))
        with replacing(path) as temporary:
            encoder = SegmentEncoder(temporary, encoding)
            for frame in frames:
                encoder.write(frame.planes, frame.pts, frame.duration)
            pts, end = encoder.close()
        with replacing(note) as temporary:
            facts = {"bytes": path.stat().st_size, "pts": pts, "end": end}
            temporary.write_text(json.dumps(facts), "utf-8")
        self.segments.append(Segment(path, pts, end))

    def tidy(self) -> None:
        """Remove the folder unless it holds something worth keeping."""
        if not self.segments:
            self.remove()
        self._lock.release()

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class _Lock:
    """Held by one run for a target; the system frees it when that run is killed."""

    def __init__(self, target: Path) -> None:
        self._path = target.with_name(f".{target.name}.lock")
        try:
            self._file = self._path.open("ab")
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AetherError(
                f"Another run is making {target}, or its folder cannot be locked "
                f"({error.strerror})."
            ) from error

    def release(self) -> None:
        with contextlib.suppress(OSError):  # Windows removes nothing that is open
            self._path.unlink()
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _overlapped(
    source: Iterable[A], work: Callable[[A], B], sink: Callable[[Iterator[B]], None]
) -> None:
    """Read, work and write at the same time, in three threads; the work in this one.

    What was read before the source failed is worked on and written; when reading or
    the work fails, `sink` sees an end and finishes what it has. The first error comes
    out of here.
    """
    stop, written = threading.Event(), threading.Event()
    coming: queue.Queue[Any] = queue.Queue(_READ_AHEAD)
    going: queue.Queue[Any] = queue.Queue(_WRITE_BEHIND)
    failures: list[BaseException] = []

    def read() -> None:
        last: Any = _END
        try:
            for item in source:
                if not _put(coming, item, stop):
                    break
        except BaseException as error:
            last = _Failure(error)
        _put(coming, last, stop)

    def results() -> Iterator[B]:
        while (item := going.get()) is not _END:
            yield item

    def write() -> None:
        try:
            sink(results())
        except BaseException as error:
            failures.append(error)
        finally:
            written.set()

    reader = threading.Thread(target=read, daemon=True)
    writer = threading.Thread(target=write, daemon=True)
    reader.start()
    writer.start()
    try:
        while (item := coming.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            if not _put(going, work(item), written):
                break
    finally:
        stop.set()
        _put(going, _END, written)
        writer.join()
        reader.join(_PATIENCE)
        if failures:
            raise failures[0]


def _put(to: "queue.Queue[Any]", item: Any, ended: threading.Event) -> bool:
    """Whether the item was taken before nobody takes items any more."""
    while not ended.is_set():
        with contextlib.suppress(queue.Full):
            to.put(item, timeout=0.1)
            return True
    return False
