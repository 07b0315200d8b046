"""Upscaling picture files in strips.

Reading, the model and writing run at the same time.
"""

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from aethernet.errors import AetherError, AnimatedError
from aethernet.files import check_target
from aethernet.pictures.animation import AnimationReader
from aethernet.pictures.files import (
    ANIMATED,
    Header,
    PictureEncoding,
    PictureReader,
    check_writable_as,
    stored_depth,
)
from aethernet.pictures.write import PictureWriter
from aethernet.pipeline import ahead
from aethernet.runtimes.base import Model
from aethernet.runtimes.tiling import Tiled, windows
from aethernet.text import listed
from aethernet.upscaling.animations import animated_frames
from aethernet.upscaling.folders import Job, Outcome
from aethernet.upscaling.planes import pixels_of, planes_and_alpha

_log = logging.getLogger(__name__)

PIECE_BYTES = 2**24
"""Rows of about so many bytes are read at a time."""
STRIP_BYTES = 2**28
"""A strip of the result takes at most about so many bytes as float32."""

MANY_RUNS = 1000
"""From so many runs of the model for a picture on, small tiles are worth a note."""

_PIECES_AHEAD = 4  # read before the model needs them
_HEADERS_READ = 20  # to estimate the work of a folder
_WAITING = 2  # pictures that may wait to be encoded, besides the one that is


@dataclass(frozen=True)
class Size:
    """The size of the result; with nothing set, the model's scale decides.

    If several are set, the smallest result of them is made. The ratio of the sides is
    kept.
    """

    scale: float | None = None
    """Times the sides of the source."""
    width: int | None = None
    """Largest width in pixels."""
    height: int | None = None
    """Largest height in pixels."""
    max_mp: float | None = None
    """Largest size in megapixels; it only reduces."""

    def of(self, width: int, height: int, model_scale: int) -> tuple[int, int]:
        """Width and height of the result for a source of that width and height."""
        wanted = []
        if self.scale:
            wanted.append(self.scale)
        if self.width:
            wanted.append(self.width / width)
        if self.height:
            wanted.append(self.height / height)
        factor = min(wanted, default=float(model_scale))
        size = max(round(width * factor), 1), max(round(height * factor), 1)
        if self.max_mp is None or size[0] * size[1] <= self.max_mp * 1e6:
            return size
        pixels = max(int(self.max_mp * 1e6), 1)
        factor = math.sqrt(pixels / (width * height))
        across = min(max(int(width * factor), 1), pixels)
        return across, min(max(int(height * factor), 1), pixels // across)


@dataclass(frozen=True)
class Options:
    """How pictures are upscaled."""

    size: Size = field(default_factory=Size)
    alpha: Literal["network", "bicubic"] = "network"
    """What upscales transparency."""
    encoding: PictureEncoding = field(default_factory=PictureEncoding)
    limit_mp: float | None = 500.0
    """Sources of more megapixels are refused; None: no limit."""


@dataclass(frozen=True)
class Upscaled:
    """The result of `upscale_file`; sizes are (width, height) in pixels."""

    target: Path
    size_before: tuple[int, int]
    size_after: tuple[int, int]
    left_out: tuple[str, ...] = ()
    """What the source carries and the target cannot hold, in words."""


def upscale_file(
    source: str | Path,
    target: str | Path,
    model: Model,
    options: Options | None = None,
) -> Upscaled:
    """Upscale one picture file.

    Args:
        source: a picture that `PictureReader` reads.
        target: its suffix chooses the format. An existing file is replaced.
        model: for gray or RGB pictures. Wrapped in `Tiled`, memory is bounded.

    Raises:
        ImageError: when the source cannot be read, or the format of the target cannot
            hold it.
        AetherError: when the model fails, memory is too small, or the target cannot be
            written or is the source itself.
    """
    job = Job(Path(source), Path(target))
    for outcome in _run([job], model, options or Options(), None):
        if outcome.error:
            raise outcome.error
        assert outcome.upscaled
        return outcome.upscaled
    raise AssertionError("a job has an outcome")


def upscale_files(
    jobs: Sequence[Job],
    model: Model,
    options: Options | None = None,
    advanced: Callable[[Job, int, int], None] | None = None,
) -> Generator[Outcome, None, None]:
    """Upscale picture files in order; one that fails does not stop the rest.

    While the model works on one picture, the next is read and the last is written.

    Args:
        advanced: called with a job, the pixels of its source that are done, and how
            many there are; the first time with 0 done.
    """
    for result in _run(jobs, model, options or Options(), advanced):
        job, done = result.job, result.upscaled
        if done:
            sizes = (done.size_before, done.size_after)
            yield Outcome(
                *(job, "done", "", *sizes, result.seconds), left_out=done.left_out
            )
        else:
            yield Outcome(job, "failed", str(result.error), error=result.error)


def total_pixels(jobs: Sequence[Job], limit_mp: float | None = None) -> float:
    """About how many pixels the sources have; those that cannot be read count as 0.

    Args:
        jobs: of which the headers of the first are read; the others are taken to be as
            large.
        limit_mp: as in `Options`.
    """
    some = jobs[:_HEADERS_READ]
    found = 0
    for job in some:
        with contextlib.suppress(AetherError):  # upscaling it reports the error
            width, height = PictureReader(job.source, limit_mp).header.size
            found += width * height
    return found * len(jobs) / max(len(some), 1)


@dataclass
class _Opened:
    """The first thing read of a picture."""

    header: Header
    abandoned: bool = False
    """Set when the picture failed, so that no more of it is read."""


# Of each picture: how large it is, then its rows; or what went wrong, at any time.
_Piece = _Opened | AnimationReader | np.ndarray | AetherError

_Report = Callable[[Job, int, int], None]


@dataclass(frozen=True)
class _Result:
    job: Job
    seconds: float
    upscaled: Upscaled | None = None
    error: AetherError | None = None


def _run(
    jobs: Sequence[Job], model: Model, options: Options, advanced: _Report | None
) -> Iterator[_Result]:
    """Upscale the jobs; yields results in the order of the jobs."""
    tiled = model if isinstance(model, Tiled) else Tiled(model, tile=0)
    report = advanced or (lambda *_: None)
    waiting: deque[Future[_Result]] = deque()  # for the encoder
    failed = None
    pieces = ahead(_read(jobs, options), _PIECES_AHEAD)
    with contextlib.closing(pieces), ThreadPoolExecutor(1) as encoder:
        for job, piece in pieces:
            if job is failed or isinstance(piece, np.ndarray):
                continue  # the rest of a picture that failed
            start = time.perf_counter()
            try:
                if isinstance(piece, AetherError):
                    raise piece
                if isinstance(piece, AnimationReader):
                    writer = _animate(job, piece, tiled, options, report)
                else:
                    writer = _upscale(job, piece.header, pieces, tiled, options, report)
            except AetherError as error:
                failed = job
                if isinstance(piece, _Opened):
                    piece.abandoned = True
                while waiting:
                    yield waiting.popleft().result()
                yield _Result(job, time.perf_counter() - start, error=error)
                continue
            done = Upscaled(
                *(job.target, piece.header.size, writer.final_size, writer.left_out)
            )
            waiting.append(encoder.submit(_finish, job, writer, done, start))
            while len(waiting) > _WAITING or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(jobs: Iterable[Job], options: Options) -> Iterator[tuple[Job, _Piece]]:
    """Read each picture in pieces; an error takes the place of what cannot be read."""
    for job in jobs:
        try:
            reader = PictureReader(job.source, options.limit_mp, spread_colours=True)
            header = reader.header
            opened = _Opened(header)
            yield job, opened
            row = header.width * header.bands * header.dtype.itemsize
            for _ in range(0, header.height, step := max(PIECE_BYTES // row, 1)):
                if opened.abandoned:
                    break
                yield job, reader.rows(step)
        except AnimatedError as error:
            if job.target.suffix.lower() not in ANIMATED:
                yield job, error
                continue
            try:
                yield job, AnimationReader(job.source, options.limit_mp)
            except AetherError as failure:
                yield job, failure
        except AetherError as error:
            yield job, error


def _upscale(
    job: Job,
    header: Header,
    pieces: Iterator[tuple[Job, _Piece]],
    model: Tiled,
    options: Options,
    report: _Report,
) -> PictureWriter:
    """Run the model on one picture; its rows come next from `pieces`.

    Returns:
        A writer that has all rows and still has to be finished.
    """
    _log.debug("upscaling %s", job.source)
    final = options.size.of(header.width, header.height, model.scale)
    times = passes(header.size, final, model.scale)
    factor = model.scale**times
    writer = _writer(job, header, factor, final, options)
    _note_runs(job, header.size, model, times)
    pixels = header.width * header.height
    strips = _planes(pieces, header.depth)
    sides = header.size
    for _ in range(times):
        strips = _strips(strips, sides, header.has_alpha, model, options.alpha)
        sides = sides[0] * model.scale, sides[1] * model.scale
    try:
        report(job, 0, pixels)
        done = 0
        for strip in strips:
            writer.write(pixels_of(strip, writer.header.depth))
            done += strip.shape[1] * strip.shape[2] // factor**2
            report(job, done, pixels)
    except BaseException:
        writer.discard()
        raise
    return writer


def _writer(
    job: Job, header: Header, factor: int, final: tuple[int, int], options: Options
) -> PictureWriter:
    """A writer of a picture that is `factor` times the source, resampled to `final`."""
    target = job.target
    check_writable_as(target, replace(header, width=final[0], height=final[1]))
    check_target(target, job.source)
    size = header.width * factor, header.height * factor
    _note_size(target, header.size, size, final)
    depth = stored_depth(target, header)
    rows = replace(
        header,
        width=size[0],
        height=size[1],
        # Resampling works on 16 bits, so that values are rounded to 8 only once.
        depth=depth if size == final else 16,
    )
    writer = PictureWriter(target, rows, options.encoding, final, depth)
    _note_left_out(writer)
    return writer


def _note_size(
    target: Path,
    before: tuple[int, int],
    upscaled: tuple[int, int],
    final: tuple[int, int],
) -> None:
    """Say so if the network makes only a part of the size, or less than it got."""
    if upscaled != final and max(final) > max(upscaled):
        _log.warning(
            "%s: %dx%d after two passes, the rest is resampling", target, *upscaled
        )
    if max(final) < max(before):
        _log.warning(
            *("%s: the result, %dx%d, is smaller than the picture, %dx%d", target),
            *(*final, *before),
        )


def _note_left_out(writer: PictureWriter) -> None:
    if writer.left_out:
        _log.warning("%s: left out %s", writer.path, listed(writer.left_out))


def _animate(
    job: Job, reader: AnimationReader, model: Tiled, options: Options, report: _Report
) -> PictureWriter:
    """Run the model on each frame of an animation; returns a writer as `_upscale`."""
    header = reader.header
    final = options.size.of(header.width, header.height, model.scale)
    times = passes(header.size, final, model.scale)
    factor = model.scale**times
    size = header.width * factor, header.height * factor
    _note_size(job.target, header.size, size, final)
    frames = len(reader.timing.seconds)
    pixels = header.width * header.height
    target = replace(header, width=final[0], height=final[1])
    check_target(job.target, job.source)
    writer = PictureWriter(job.target, target, options.encoding, timing=reader.timing)
    _note_left_out(writer)
    if job.target.suffix.lower() == ".gif" and reader.kind != "gif":
        _log.warning(
            "%s: a GIF has 256 colours in a frame, and pixels that are transparent or "
            "not",
            job.target,
        )
    report(job, 0, pixels * frames)
    try:
        upscaled = animated_frames(reader, model, times, final, options.alpha)
        for n, frame in enumerate(upscaled, 1):
            writer.write(frame)
            report(job, pixels * n, pixels * frames)
    except BaseException:
        writer.discard()
        raise
    return writer


def _note_runs(job: Job, size: tuple[int, int], model: Tiled, times: int) -> None:
    """Say so if the tiles the user asked for need very many runs of the model."""
    if not model.asked_tile or model.tile is None:
        return
    runs = 0
    for n in range(times):
        across, down = (side * model.scale**n for side in size)
        columns = len(windows(across, model.most(1) or across, model.context))
        rows = len(windows(down, model.most(0) or down, model.context))
        runs += rows * columns
    if runs >= MANY_RUNS:
        _log.warning(
            "%s: tiles of %d make %d runs of the model; larger ones take less time",
            *(job.source, model.tile, runs),
        )


def _planes(pieces: Iterator[tuple[Job, _Piece]], depth: int) -> Iterator[np.ndarray]:
    """The rows of one picture as strips `(bands, h, W)`, float32, 0..1."""
    peak = np.float32(2**depth - 1)
    for _, piece in pieces:
        if isinstance(piece, AetherError):
            raise piece
        assert isinstance(piece, np.ndarray)
        planes = piece.transpose(2, 0, 1).astype(np.float32, order="C")
        planes /= peak
        yield planes


def _finish(job: Job, writer: PictureWriter, done: Upscaled, start: float) -> _Result:
    try:
        writer.finish()
    except AetherError as error:
        return _Result(job, time.perf_counter() - start, error=error)
    return _Result(job, time.perf_counter() - start, done)


def passes(before: tuple[int, int], final: tuple[int, int], scale: int) -> int:
    """How often the model runs: twice if once is not enough.

    Args:
        before: width and height of the source.
        final: width and height of the result.
        scale: of the model.
    """
    # The longer side decides: rounding hides the factor in a side of a few pixels.
    enough = max(final) <= max(before) * scale
    return 1 if enough or scale == 1 else 2


def _strips(
    source: Iterator[np.ndarray],
    size: tuple[int, int],
    has_alpha: bool,
    model: Tiled,
    alpha: str,
) -> Iterator[np.ndarray]:
    """Upscale a picture that comes in strips `(bands, h, W)`, float32, 0..1.

    A strip of the result is as high as a tile, or less if `STRIP_BYTES` require it.
    """
    width, height = size
    most = model.most(0)
    if model.tile is None and most is None:
        most = height  # the user asked for the whole picture at once
    else:
        row = 4 * 4 * width * model.scale**2
        rows = max(STRIP_BYTES // row, 16) + 2 * model.context
        most = max(min(rows, most or rows), model.input_sizes.least[0])
    rows_of = _Rows(source)
    least = min(model.input_sizes.least[0], most)
    for window in windows(height, most, model.context, least):
        planes = rows_of.between(window.start, window.stop)
        upscaled = planes_and_alpha(planes, has_alpha, model, alpha)
        first = (window.keep_start - window.start) * model.scale
        last = (window.keep_stop - window.start) * model.scale
        yield upscaled[:, first:last]


class _Rows:
    """Strips `(bands, h, W)` of any heights as one picture; rows used are dropped."""

    def __init__(self, strips: Iterator[np.ndarray]) -> None:
        self._strips, self._first = strips, 0
        self._held: list[np.ndarray] = []

    def between(self, start: int, stop: int) -> np.ndarray:
        """Rows from `start` up to `stop`; neither may become smaller between calls."""
        while self._held and self._first + self._held[0].shape[1] <= start:
            self._first += self._held.pop(0).shape[1]
        have = self._first + sum(strip.shape[1] for strip in self._held)
        while have < stop:
            self._held.append(next(self._strips))
            have += self._held[-1].shape[1]
        together = np.concatenate(self._held, axis=1)
        return together[:, start - self._first : stop - self._first]
