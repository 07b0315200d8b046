"""Keep the finished parts of a video beside its target, so that a killed run resumes.

A part is a segment: a file of encoded frames (see `encode.SegmentEncoder`) and a note
about them. They lie in a hidden folder until they are joined.
"""

import base64
import contextlib
import glob
import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout

from aethernet.errors import AetherError, system_reason
from aethernet.files import replacing, unreadable
from aethernet.runtimes.base import Model
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling.planes import upscale_planes
from aethernet.version import __version__
from aethernet.video.clip import Clip, Cut
from aethernet.video.encode import Segment, SegmentEncoder, VideoEncoding
from aethernet.video.libav import av_errors, import_av

_log = logging.getLogger(__name__)

# Frames in a segment: what a kill may cost, and how often a key frame comes. At 24
# frames a second these are two seconds, a usual distance of key frames for streaming.
SEGMENT_FRAMES = 48

# Where the network is slow, a segment ends after so many seconds of work, but not
# before a dozen frames: key frames take space.
SEGMENT_SECONDS = 60.0
_FEWEST_FRAMES = 12

# A model is the same if it makes the same of a small picture, up to this difference.
# Another number of threads or another library stays below it; other weights do not.
_SAME_MODEL = 2e-3
_FINGERPRINT_SIDE = 16

# Bytes of a source that are hashed at its beginning and at its end.
_HASHED_BYTES = 2**20


@dataclass(frozen=True)
class Frame:
    """A frame between decoder and encoder."""

    planes: np.ndarray
    """`(1 to 4, H, W)`, float32, 0..1: gray or RGB, and alpha."""
    pts: int
    """When it is shown, in ticks of the clip's clock."""
    duration: int
    """In ticks."""
    captions: Any | None = None
    """The decoded frame, where it carries captions."""


@dataclass(frozen=True)
class VideoJob:
    """All that decides what the segments hold."""

    clip: Clip
    cut: Cut
    """The part of the clip to upscale."""
    encoding: VideoEncoding
    model: Model

    def fingerprint(self) -> dict[str, Any]:
        """The job in values that JSON returns unchanged.

        Raises:
            AetherError: when the source cannot be read or the model fails.
        """
        shape = (3, _FINGERPRINT_SIDE, _FINGERPRINT_SIDE)
        picture = np.random.default_rng(0).random(shape, np.float32)
        answer = upscale_planes(picture, self.model)
        tiled = self.model if isinstance(self.model, Tiled) else None
        job = {
            "source": _source_facts(self.clip.path),
            "model": base64.b64encode(answer.astype("<f4").tobytes()).decode("ascii"),
            "encoding": asdict(self.encoding),
            "cut": asdict(self.cut),
            "segment_frames": SEGMENT_FRAMES,
            # The tile that was asked for, not the one that memory allowed.
            "tiles": [tiled.asked_tile, tiled.context] if tiled else [None, None],
            "made with": [__version__, import_av().__version__],
        }
        return json.loads(json.dumps(job, default=str))


def _source_facts(path: Path) -> list[Any]:
    """Size, time of change, and a digest of the beginning and the end.

    Reading all of a film would take minutes.
    """
    try:
        stat = path.stat()
        digest = sha256()
        with path.open("rb") as file:
            digest.update(file.read(_HASHED_BYTES))
            file.seek(max(stat.st_size - _HASHED_BYTES, 0))
            digest.update(file.read(_HASHED_BYTES))
    except OSError as error:
        raise unreadable(error, path) from error
    return [stat.st_size, stat.st_mtime_ns, digest.hexdigest()]


def _is_same_job(job: dict[str, Any], other: dict[str, Any]) -> bool:
    if {**job, "model": ""} != {**other, "model": ""}:
        return False
    answers = [
        np.frombuffer(base64.b64decode(each["model"]), "<f4") for each in (job, other)
    ]
    return answers[0].shape == answers[1].shape and bool(
        np.abs(answers[0] - answers[1]).max() < _SAME_MODEL
    )


class Parts:
    """The folder of segments beside a target; a context manager that locks the target.

    `job.json` is the fingerprint of the job that the segments belong to. The frames of
    the first segment are in `000000.mkv`, and their times in `000000.json`. That note
    is written last: a segment without it does not count.
    """

    def __init__(self, target: Path, job: VideoJob) -> None:
        """Write nothing yet.

        Args:
            target: the video to be made.
            job: what it is made of.
        """
        self._target, self._encoding = target, job.encoding
        self._fingerprint = job.fingerprint()
        self._folder = target.with_name(f".{target.name}.parts")
        self._lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=0)
        self.segments: list[Segment] = []

    def __enter__(self) -> Self:
        """Lock the target and find the segments of an earlier run.

        Raises:
            AetherError: when another run has locked the target.
        """
        try:
            self._lock.acquire()
        except Timeout as error:
            raise AetherError(
                "Another run is making this file.",
                self._target,
                "Wait until it ends, or name another output.",
            ) from error
        except OSError as error:
            raise AetherError(
                f"It cannot be locked: {system_reason(error)}.",
                self._target,
            ) from error
        try:
            self._remove_unfinished_target()
            self._find_segments()
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Keep the folder if it holds a segment, and unlock the target."""
        if not self.segments:
            self._remove_folder()
        self._unlock()

    @property
    def frames(self) -> int:
        """How many frames the segments hold."""
        return sum(len(segment.pts) for segment in self.segments)

    def write(self, frames: Iterator[Frame]) -> None:
        """Encode upscaled frames as further segments, until there are no more.

        Raises:
            AetherError: when a segment cannot be encoded or written.
        """
        while (first := next(frames, None)) is not None:
            try:
                self._write_segment(_first_frames(first, frames))
            except AetherError as error:
                inside = error.path and error.path.is_relative_to(self._folder)
                raise (error.about(self._target) if inside else error) from error

    def remove(self) -> None:
        """Remove all segments, when they have been joined."""
        self.segments.clear()
        self._remove_folder()

    def _remove_unfinished_target(self) -> None:
        """Remove what a run that was killed while it joined left."""
        stem = glob.escape(self._target.stem)
        pattern = f".{stem}.????????.part{self._target.suffix}"
        for unfinished in self._target.parent.glob(pattern):
            unfinished.unlink(missing_ok=True)

    def _find_segments(self) -> None:
        if not self._folder.exists():
            return
        try:
            before = json.loads((self._folder / "job.json").read_text("utf-8"))
            same = _is_same_job(self._fingerprint, before)
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            _log.warning(
                "%s holds part of another job (source, model or options differ); "
                "starting again",
                self._folder,
            )
            self._remove_folder()
            return
        for unfinished in self._folder.glob(".*.part.*"):
            unfinished.unlink(missing_ok=True)
        while (segment := self._noted(len(self.segments))) is not None:
            self.segments.append(segment)
        # Segments after a damaged one must not count later, when it has been replaced.
        for note in sorted(self._folder.glob("*.json")):
            if note.stem.isdecimal() and int(note.stem) >= len(self.segments):
                note.unlink()
                note.with_suffix(".mkv").unlink(missing_ok=True)

    def _noted(self, number: int) -> Segment | None:
        """The segment of that number; None where it is missing or damaged."""
        frames, note = self._paths(number)
        try:
            content = json.loads(note.read_text("utf-8"))
            if frames.stat().st_size != content["bytes"]:
                return None
            return Segment(frames, tuple(content["pts"]), content["end"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _paths(self, number: int) -> tuple[Path, Path]:
        """Of the frames and of the note."""
        stem = self._folder / f"{number:06}"
        return stem.with_suffix(".mkv"), stem.with_suffix(".json")

    def _write_segment(self, frames: Iterator[Frame]) -> None:
        if not self.segments:
            self._folder.mkdir(exist_ok=True)
            with replacing(self._folder / "job.json") as temporary:
                temporary.write_text(json.dumps(self._fingerprint), "utf-8")
        path, note = self._paths(len(self.segments))
        with (
            replacing(path) as temporary,
            av_errors("The segment cannot be written", temporary),
        ):
            encoder = SegmentEncoder(temporary, self._encoding)
            for frame in frames:
                encoder.write(frame.planes, frame.pts, frame.duration, frame.captions)
            segment = replace(encoder.close(), path=path)
        with replacing(note) as temporary:
            facts = {
                "bytes": path.stat().st_size,
                "pts": segment.pts,
                "end": segment.end,
            }
            temporary.write_text(json.dumps(facts), "utf-8")
        self.segments.append(segment)

    def _remove_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _unlock(self) -> None:
        path = Path(self._lock.lock_file)
        # Once the lock is released, the file may be another process's. Windows keeps a
        # file that a process has open, and so cannot remove it before that.
        if os.name != "nt":
            path.unlink(missing_ok=True)
        self._lock.release()
        if os.name == "nt":
            with contextlib.suppress(OSError):
                path.unlink()


def _first_frames(first: Frame, frames: Iterator[Frame]) -> Iterator[Frame]:
    """As many frames as make a segment."""
    begun = time.monotonic()
    yield first
    for count, frame in enumerate(itertools.islice(frames, SEGMENT_FRAMES - 1), 2):
        yield frame
        late = time.monotonic() - begun > SEGMENT_SECONDS
        if late and count >= _FEWEST_FRAMES:
            return
