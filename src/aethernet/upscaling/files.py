"""Upscaling pictures: files in, files out, in strips; reading, the network and writing
at the same time.
"""

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from aethernet.errors import AetherError
from aethernet.files import check_target
from aethernet.pictures.files import (
    Encoding,
    Header,
    PictureReader,
    check_writable_as,
    stored_depth,
)
from aethernet.pictures.write import PictureWriter
from aethernet.pipeline import ahead
from aethernet.runtimes.base import Model
from aethernet.runtimes.tiling import Tiled, windows
from aethernet.upscaling.folders import Job, Outcome
from aethernet.upscaling.planes import pixels_of, planes_and_alpha

_log = logging.getLogger(__name__)

# What is read at a time, how many such pieces ahead, and what a strip of output may
# take as float32. Pictures waiting to be encoded beside the one that is.
_PIECE_BYTES, _PIECES_AHEAD = 2**24, 4

_STRIP_BYTES = 2**28

_WAITING = 2


@dataclass(frozen=True)
class Size:
    """What the result's size should be; nothing set: the model's scale.

    Several together: the smallest of what they say. The ratio of the sides is kept.
    """

    scale: float | None = None
    """Times the source's sides."""
    width: int | None = None
    """Pixels, at most."""
    height: int | None = None
    """Pixels, at most."""
    max_mp: float | None = None
    """Megapixels, at most; never enlarges."""

    def of(self, width: int, height: int, model_scale: int) -> tuple[int, int]:
        """Width and height of the result for a source of that size."""
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
    encoding: Encoding = field(default_factory=Encoding)
    limit_mp: float | None = 500.0
    """Sources of more megapixels are refused."""


@dataclass(frozen=True)
class Upscaled:
    """What `upscale_file` did; sizes are (width, height) in pixels."""

    target: Path
    size_before: tuple[int, int]
    size_after: tuple[int, int]


def upscale_file(
    source: str | Path,
    target: str | Path,
    model: Model,
    options: Options | None = None,
) -> Upscaled:
    """Upscale one picture file.

    Args:
        source: a picture that `PictureReader` reads.
        target: its suffix chooses the format; an existing file is replaced.
        model: for gray or RGB pictures. Wrapped in `Tiled` it bounds the memory.

    Raises:
        ImageError: when the source cannot be read or the target's format not hold it.
        AetherError: when model and memory do not allow it, the target cannot be
            written, or is the source itself.
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
) -> Iterator[Outcome]:
    """Upscale picture files one after another; one that fails does not stop the rest.

    While the network works on one, the next is read and the last is written.

    Args:
        advanced: called with a job and its pixels of the source done, of how many; with
            0 when it begins.
    """
    for result in _run(jobs, model, options or Options(), advanced):
        job, done = result.job, result.upscaled
        if done:
            sizes = (done.size_before, done.size_after)
            yield Outcome(job, "done", "", *sizes, result.seconds)
        else:
            yield Outcome(job, "failed", str(result.error))


# What is read of a picture, in this order: how large it is, its rows, what went wrong.
_Piece = PictureReader | np.ndarray | AetherError


@dataclass(frozen=True)
class _Result:
    job: Job
    seconds: float
    upscaled: Upscaled | None = None
    error: AetherError | None = None


def _run(
    jobs: Sequence[Job],
    model: Model,
    options: Options,
    advanced: Callable[[Job, int, int], None] | None,
) -> Iterator[_Result]:
    tiled = model if isinstance(model, Tiled) else Tiled(model, tile=0)
    waiting: deque[Future[_Result]] = deque()
    pieces = ahead(_read(jobs, options), _PIECES_AHEAD)
    with contextlib.closing(pieces), ThreadPoolExecutor(1) as encoder:
        given_up = None
        for job, piece in pieces:
            if job is given_up or isinstance(piece, np.ndarray):
                continue
            start = time.perf_counter()
            try:
                if isinstance(piece, AetherError):
                    raise piece
                report = advanced or (lambda *_: None)
                header = piece.header
                writer = _upscale(job, header, pieces, tiled, options, report)
            except AetherError as error:
                given_up = job  # what else was read of it goes by
                if isinstance(piece, PictureReader):
                    piece.given_up = True
                while waiting:  # in the order of the jobs
                    yield waiting.popleft().result()
                yield _Result(job, time.perf_counter() - start, error=error)
                continue
            done = Upscaled(job.target, header.size, writer.final_size)
            waiting.append(encoder.submit(_finish, job, writer, done, start))
            while len(waiting) > _WAITING or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(jobs: Iterable[Job], options: Options) -> Iterator[tuple[Job, _Piece]]:
    """Of each job its reader, then its rows in pieces; or what went wrong, instead."""
    for job in jobs:
        try:
            reader = PictureReader(job.source, options.limit_mp, spread_colours=True)
            header = reader.header
            yield job, reader
            row = header.width * header.bands * header.dtype.itemsize
            for _ in range(0, header.height, step := max(_PIECE_BYTES // row, 1)):
                if reader.given_up:
                    break
                yield job, reader.rows(step)
        except AetherError as error:
            yield job, error


def _upscale(
    job: Job,
    header: Header,
    pieces: Iterator[tuple[Job, _Piece]],
    model: Tiled,
    options: Options,
    report: Callable[[Job, int, int], None],
) -> PictureWriter:
    """Run one picture, whose rows come next; what remains is to finish the writer."""
    _log.debug("upscaling %s", job.source)
    target, scale = job.target, model.scale
    final = options.size.of(header.width, header.height, scale)
    passes = _passes(header.size, final, scale)
    factor = scale**passes
    size = (header.width * factor, header.height * factor)
    check_writable_as(target, replace(header, width=final[0], height=final[1]))
    check_target(target, job.source)
    depth = stored_depth(target, header)
    if size != final and max(final) > max(size):
        _log.warning(
            "%s: %dx%d after two passes, the rest is resampling", target, *size
        )
    rows = replace(
        header,
        width=size[0],
        height=size[1],
        depth=depth if size == final else 16,  # rounded once, after resampling
    )
    writer = PictureWriter(target, rows, options.encoding, final, depth)
    report(job, 0, header.width * header.height)

    def source() -> Iterator[np.ndarray]:
        peak = np.float32(2**header.depth - 1)
        for _, piece in pieces:
            if isinstance(piece, AetherError):
                raise piece
            assert isinstance(piece, np.ndarray)
            planes = piece.transpose(2, 0, 1).astype(np.float32, order="C")
            planes /= peak
            yield planes

    strips: Iterator[np.ndarray] = source()
    sides = header.size
    for _ in range(passes):
        strips = _strips(strips, sides, header.has_alpha, model, options.alpha)
        sides = sides[0] * scale, sides[1] * scale
    try:
        done = 0
        for strip in strips:
            writer.write(pixels_of(strip, rows.depth))
            done += strip.shape[1] * strip.shape[2] // factor**2
            report(job, done, header.width * header.height)
    except BaseException:
        writer.discard()
        raise
    return writer


def _finish(job: Job, writer: PictureWriter, done: Upscaled, start: float) -> _Result:
    try:
        writer.finish()
    except AetherError as error:
        return _Result(job, time.perf_counter() - start, error=error)
    return _Result(job, time.perf_counter() - start, done)


def _passes(before: tuple[int, int], final: tuple[int, int], scale: int) -> int:
    """How often the model runs: twice where once is not enough."""
    # A side of a few pixels says little of the factor, the longer one does.
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

    A strip of the result is as high as a tile, or as `_STRIP_BYTES` allow.
    """
    width, height = size
    most = model.most(0)
    if model.tile is None and most is None:
        most = height  # the user wants it whole
    else:
        row = 4 * 4 * width * model.scale**2
        rows = max(_STRIP_BYTES // row, 16) + 2 * model.context
        most = max(min(rows, most or rows), model.limits.least[0])
    rows_of = _Rows(source)
    least = min(model.limits.least[0], most)
    for window in windows(height, most, model.context, least):
        planes = rows_of.between(window.start, window.stop)
        upscaled = planes_and_alpha(planes, has_alpha, model, alpha)
        first = (window.keep_start - window.start) * model.scale
        last = (window.keep_stop - window.start) * model.scale
        yield upscaled[:, first:last]


class _Rows:
    """Strips `(bands, h, W)` of any heights as one picture; what is past is dropped."""

    def __init__(self, strips: Iterator[np.ndarray]) -> None:
        self._strips, self._first = strips, 0
        self._held: list[np.ndarray] = []

    def between(self, start: int, stop: int) -> np.ndarray:
        """Rows from `start` up to `stop`; neither may go back."""
        while self._held and self._first + self._held[0].shape[1] <= start:
            self._first += self._held.pop(0).shape[1]
        have = self._first + sum(strip.shape[1] for strip in self._held)
        while have < stop:
            self._held.append(next(self._strips))
            have += self._held[-1].shape[1]
        together = np.concatenate(self._held, axis=1)
        return together[:, start - self._first : stop - self._first]
