"""The parts of a video that are finished, so that a killed run goes on."""

import base64
import contextlib
import glob
import json
import logging
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from aethernet.errors import AetherError
from aethernet.files import replacing
from aethernet.runtimes.base import Model
from aethernet.upscaling.planes import upscale_planes
from aethernet.version import __version__
from aethernet.video.clip import Clip, Cut, Segment, libav
from aethernet.video.encode import Encoding, SegmentEncoder

_log = logging.getLogger(__name__)

# Frames in a segment: what a kill may cost, and how often a key frame comes; two
# seconds are a usual distance for streaming. Where the network is slow a segment ends
# after so many seconds of work, but not before a dozen frames: key frames take space.
SEGMENT_FRAMES = 48

# A model is known again by what it makes of a small picture, to this difference: other
# weights are further away, another number of threads or another library is not.
_SAME_MODEL = 2e-3

_FINGERPRINT_SIDE = 16

# Of a source, what is hashed at its beginning and at its end.
_HASHED_BYTES = 2**20


@dataclass(frozen=True)
class Frame:
    planes: np.ndarray
    pts: int
    duration: int


def job_of(clip: Clip, encoding: Encoding, cut: Cut, model: Model) -> dict[str, Any]:
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
        "made with": [__version__, libav().__version__],
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


class Parts:
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

    def write(self, frames: Iterable[Frame], encoding: Encoding) -> None:
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
