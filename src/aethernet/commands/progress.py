"""Progress of a run: a bar, plain lines or JSON.

Results go to stdout, one line per picture. Everything else goes to stderr: the bar if
stderr is a terminal, errors as they happen, and a summary at the end. File names can
contain anything, so they are escaped before they reach a terminal or JSON.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from json import dumps
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from aethernet.text import printable, without_surrogates

if TYPE_CHECKING:
    from pathlib import Path

    from rich import progress as bars
    from rich.console import Console

    from aethernet.upscaling.folders import Job, Outcome

# The time left is estimated from the last five minutes, over a few large pictures.
_ESTIMATE_SECONDS = 300


class Progress(Protocol):
    """What a run reports its progress to; a context manager around the whole run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def total(self, pictures: int, skipped: int) -> None:
        """Called first: how many pictures to upscale, and how many are done already."""

    def started(self, job: "Job") -> None:
        """Called when a job starts; earlier jobs may still be running."""

    def advanced(self, pixels_done: int, pixels_total: int) -> None:
        """Called for the job that started last, with pixels of its source."""

    def finished(self, outcome: "Outcome") -> None:
        """Called once for every job, in any order, also for those skipped."""


def progress(quiet: bool, json: bool) -> Progress:
    """Choose how to show progress: a bar on a terminal, else lines.

    Args:
        quiet: print only errors, on stderr; with `json`, print the JSON too.
        json: print a JSON object per picture on stdout: source, target, status (done,
            skipped or failed), reason, size_before and size_after ([width, height] or
            null), seconds. Bytes of a name that are not UTF-8 are written as \\xNN.
    """
    console = None if quiet else _console()
    if console and console.is_interactive:
        return _Bar(quiet, json, console)
    return _Lines(quiet, json)


@contextmanager
def frames_progress(
    quiet: bool, name: str
) -> Iterator[Callable[[int, int | None], None]]:
    """Show how far a video is, if stderr is a terminal.

    Yields a function to call with the number of frames done and in total (None if
    unknown); the first call gives those done by an earlier run.
    """
    console = None if quiet else _console()
    if console is None:
        yield lambda done, total: None
        return
    bar = _bar(console)
    task = bar.add_task(printable(name), total=None, rate="")
    begun: tuple[float, int] | None = None

    def report(done: int, total: int | None) -> None:
        nonlocal begun
        since, first = begun = begun or (time.monotonic(), done)
        seconds = time.monotonic() - since
        rate = f"{(done - first) / seconds:.3g} frames/s" if done > first else ""
        bar.update(task, completed=done, total=total, rate=rate)

    with _shown(bar):
        yield report


@contextmanager
def bytes_progress(name: str, size: int) -> Iterator[Callable[[int], None]]:
    """Show how far a download is, if stderr is a terminal.

    Yields a function to call with the number of bytes that are here, of `size`.
    """
    console = _console()
    if console is None:
        yield lambda done: None
        return
    bar = _bar(console)
    task = bar.add_task(printable(name), total=size / 1e6, rate="MB")
    with _shown(bar):
        yield lambda done: bar.update(task, completed=done / 1e6)


@contextmanager
def steps_progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show which of `total` steps is running, if stderr is a terminal.

    Yields a function to call with the name of each step when it starts.
    """
    console = _console()
    if console is None:
        yield lambda name: None
        return
    bar = _bar(console)
    task = bar.add_task("", total=total, rate="")
    begun = 0

    def report(name: str) -> None:
        nonlocal begun
        bar.update(task, description=printable(name), completed=begun)
        begun += 1

    with _shown(bar):
        yield report


def _console() -> "Console | None":
    """A console on stderr, None if that is not a terminal."""
    # rich alone would draw into a pipe if FORCE_COLOR is set, as it is in many CIs.
    if not sys.stderr or not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(stderr=True)


class _Lines:
    """Print results to stdout, errors and the summary to stderr."""

    def __init__(self, quiet: bool, json: bool) -> None:
        self.quiet, self.json = quiet, json
        self.pictures = self.skipped = self.done = 0
        self.failed: list[Outcome] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.quiet:
            for line in self.summary():
                _write(line, sys.stderr)

    def total(self, pictures: int, skipped: int) -> None:
        self.pictures, self.skipped = pictures, skipped

    def started(self, job: "Job") -> None:
        pass

    def advanced(self, pixels_done: int, pixels_total: int) -> None:
        pass

    def finished(self, outcome: "Outcome") -> None:
        if outcome.status == "done":
            self.done += 1
        elif outcome.status == "failed":
            self.failed.append(outcome)
            self.print_error(f"error: {self.why(outcome)}")
        if self.json:
            self.print_result(_as_json(outcome))
        elif outcome.status == "done" and not self.quiet:
            self.print_result(printable(_as_line(outcome)))

    def print_result(self, line: str) -> None:
        _write(line, sys.stdout)

    def print_error(self, line: str) -> None:
        _write(line, sys.stderr)

    def why(self, outcome: "Outcome") -> str:
        """The reason of a failure; it names the file if there are several."""
        name = _plain(outcome.job.source)
        named = self.pictures == 1 or name in outcome.reason
        return printable(outcome.reason if named else f"{name}: {outcome.reason}")

    def summary(self) -> Iterable[str]:
        """Lines to print at the end; none after a single picture."""
        skipped = "were" if self.skipped > 1 else "was"
        skipped = f"{self.skipped} {skipped} there already (--overwrite to replace)"
        parts = []
        if self.pictures:
            parts.append(f"Upscaled {self.done} of {_count(self.pictures)}")
        if self.skipped:
            parts.append(skipped if parts else skipped.capitalize())
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if self.pictures + self.skipped > 1 or self.skipped:
            yield f"{'; '.join(parts)}."


class _Bar(_Lines):
    """As `_Lines`, with a bar on the last line of the terminal during the run."""

    def __init__(self, quiet: bool, json: bool, console: "Console") -> None:
        super().__init__(quiet, json)
        self.console = console
        self.bar = _bar(console)
        self.task = self.bar.add_task("", total=None, rate="")
        self.pixels = 0  # of finished sources
        # Pixels done and in total of running jobs: one is read, another written.
        self.under_way: dict[Job, tuple[int, int]] = {}
        self.newest: Job | None = None
        self.since: float | None = None
        """When the first picture was begun: opening the model does not count."""
        self.shown = ExitStack()

    def __enter__(self) -> Self:
        self.shown.enter_context(_shown(self.bar))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shown.close()
        super().__exit__(kind, error, trace)

    def total(self, pictures: int, skipped: int) -> None:
        super().total(pictures, skipped)
        self.bar.update(self.task, total=pictures)

    def started(self, job: "Job") -> None:
        self.newest = job
        self.since = self.since or time.monotonic()
        self.bar.update(self.task, description=printable(job.source.name))

    def advanced(self, pixels_done: int, pixels_total: int) -> None:
        if self.newest:
            self.under_way[self.newest] = pixels_done, max(pixels_total, 1)
            self._update()

    def finished(self, outcome: "Outcome") -> None:
        super().finished(outcome)
        if outcome.status == "skipped":
            return
        width, height = outcome.size_before or (0, 0)
        self.pixels += width * height if outcome.status == "done" else 0
        self.under_way.pop(outcome.job, None)
        self._update()

    def _update(self) -> None:
        under_way = [*self.under_way.values()]
        seconds = time.monotonic() - (self.since or time.monotonic())
        pixels = self.pixels + sum(done for done, _ in under_way)
        pictures = self.done + len(self.failed)
        self.bar.update(
            self.task,
            completed=pictures + sum(done / total for done, total in under_way),
            rate=f"{pixels / 1e6 / seconds:.3g} MP/s" if pixels and seconds else "",
        )

    def print_result(self, line: str) -> None:
        if sys.stdout and sys.stdout.isatty():
            self.print_error(line)  # above the bar, which is on the same terminal
        else:
            super().print_result(line)

    def print_error(self, line: str) -> None:
        from rich.text import Text

        self.console.print(Text(line), soft_wrap=True)

    def summary(self) -> Iterable[str]:
        """As for `_Lines`, with all errors, which may be far up in the terminal."""
        lines = [*super().summary()]
        if lines:
            lines += [f"  {self.why(outcome)}" for outcome in self.failed]
        return lines


def _bar(console: "Console") -> "bars.Progress":
    from rich import progress as bars
    from rich.table import Column

    return bars.Progress(
        bars.TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", max_width=32),
        ),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}", markup=False),
        bars.TimeRemainingColumn(),
        bars.TextColumn("left", markup=False),
        console=console,
        transient=True,
        redirect_stdout=False,  # stdout may be a file
        speed_estimate_period=_ESTIMATE_SECONDS,
    )


@contextmanager
def _shown(bar: "bars.Progress") -> Iterator[None]:
    """Draw a bar; log messages are printed above it."""
    stderr = sys.stderr
    redirected = []
    with bar:  # replaces sys.stderr by a stream that prints above the bar
        for name in (None, "aethernet"):
            for handler in logging.getLogger(name).handlers:
                # A handler keeps the stream that it was made with.
                if (
                    isinstance(handler, logging.StreamHandler)
                    and handler.stream is stderr
                ):
                    handler.setStream(sys.stderr)
                    redirected.append(handler)
        try:
            yield
        finally:
            for handler in redirected:
                handler.setStream(stderr)


def _as_line(outcome: "Outcome") -> str:
    sides = (
        (outcome.job.source, outcome.size_before),
        (outcome.job.target, outcome.size_after),
    )
    return " -> ".join(
        _plain(path) + (f" ({size[0]}x{size[1]})" if size else "")
        for path, size in sides
    )


def _as_json(outcome: "Outcome") -> str:
    """The outcome as one line of JSON.

    Many readers refuse JSON with halves of surrogate pairs, so those are escaped.
    """
    seconds = outcome.seconds
    return dumps(
        {
            "source": without_surrogates(_plain(outcome.job.source)),
            "target": without_surrogates(_plain(outcome.job.target)),
            "status": outcome.status,
            "reason": without_surrogates(outcome.reason),
            "size_before": outcome.size_before,
            "size_after": outcome.size_after,
            "seconds": None if seconds is None else round(seconds, 3),
        }
    )


def _plain(path: "Path") -> str:
    """A path without the prefix of long paths on Windows."""
    text = str(path)
    if text.startswith("\\\\?\\UNC\\"):
        return "\\" + text[7:]
    return text.removeprefix("\\\\?\\")


def _count(pictures: int) -> str:
    return "1 picture" if pictures == 1 else f"{pictures} pictures"


def _write(line: str, stream: TextIO | None) -> None:
    if stream:  # None if it is closed, for which `print` would take stdout
        print(line, file=stream, flush=True)
