"""What a run says while it works: a bar, plain lines, JSON, or only its errors.

Results go to stdout, a line for each picture; everything else to stderr: the bar where
somebody watches it, errors as they come, a summary at the end. Names of files come from
anywhere, so nothing of them reaches a terminal or a line of JSON that would not be text
there.
"""

import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from json import dumps
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from aethernet.text import escaped, printable

if TYPE_CHECKING:
    from pathlib import Path

    from rich import progress as bars
    from rich.console import Console

    from aethernet.upscaling.folders import Job, Outcome


# How far back the estimate of the time left looks: over a few large pictures.
_ESTIMATE_SECONDS = 300


class Progress(Protocol):
    """Told by whoever works; a context manager around the whole run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def total(self, pictures: int, skipped: int) -> None:
        """Before the first: how many there are to do, and how many were done before."""

    def started(self, job: "Job") -> None:
        """What `advanced` is about from now on; others may not be finished yet."""

    def advanced(self, pixels_done: int, pixels_total: int) -> None:
        """How far the one that started last is, in pixels of its source."""

    def finished(self, outcome: "Outcome") -> None:
        """One picture is over; in any order, those done before too."""


def progress(quiet: bool, json: bool) -> Progress:
    """Choose what to say, and how, by the words given and by who listens.

    Args:
        quiet: nothing but errors, on stderr; and JSON, where that is asked for too.
        json: on stdout an object a line for each picture: source, target, status (done,
            skipped or failed), reason, size_before and size_after ([width, height] or
            null), seconds. Bytes of a name that are no UTF-8 stand as \\xNN.
    """
    # rich alone would draw into a pipe where FORCE_COLOR is set, as it is in many CIs.
    if not quiet and sys.stderr and sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_interactive:
            return _Bar(quiet, json, console)
    return _Lines(quiet, json)


@contextmanager
def frames_progress(
    quiet: bool, name: str
) -> Iterator[Callable[[int, int | None], None]]:
    """Show how far a video is, where somebody watches.

    Yields what is to be told of it: the frames done, of how many (None where nobody
    knows); the first time those that were done before.
    """
    if quiet or not sys.stderr or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console

    bar = _bar(Console(stderr=True))
    task = bar.add_task(printable(name), total=None, rate="")
    begun: tuple[float, int] | None = None

    def told(done: int, total: int | None) -> None:
        nonlocal begun
        since, first = begun = begun or (time.monotonic(), done)
        seconds = time.monotonic() - since
        rate = f"{(done - first) / seconds:.3g} frames/s" if done > first else ""
        bar.update(task, completed=done, total=total, rate=rate)

    with _shown(bar):
        yield told


@contextmanager
def steps_progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show which of so many steps is being done, where somebody watches.

    Yields what is told a step's name when it begins, which ends the one before.
    """
    if not sys.stderr or not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console

    bar = _bar(Console(stderr=True))
    task = bar.add_task("", total=total, rate="")
    begun = 0

    def told(name: str) -> None:
        nonlocal begun
        bar.update(task, description=printable(name), completed=begun)
        begun += 1

    with _shown(bar):
        yield told


class _Lines:
    """Results on stdout, errors and the summary on stderr."""

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
            self.say_error(f"error: {self.why(outcome)}")
        if self.json:
            self.say_result(_as_json(outcome))
        elif outcome.status == "done" and not self.quiet:
            self.say_result(printable(_as_line(outcome)))

    def say_result(self, line: str) -> None:
        _write(line, sys.stdout)

    def say_error(self, line: str) -> None:
        _write(line, sys.stderr)

    def why(self, outcome: "Outcome") -> str:
        """The reason, and the name where there are several and it does not say it."""
        name = _plain(outcome.job.source)
        named = self.pictures == 1 or name in outcome.reason
        return printable(outcome.reason if named else f"{name}: {outcome.reason}")

    def summary(self) -> Iterable[str]:
        """Lines; none for a single picture, of which everything has been said."""
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
    """The same, with a bar at the foot of the terminal while it lasts."""

    def __init__(self, quiet: bool, json: bool, console: "Console") -> None:
        super().__init__(quiet, json)
        self.console = console
        self.bar = _bar(console)
        self.task = self.bar.add_task("", total=None, rate="")
        self.pixels = 0  # of finished sources
        # Pixels done and in all of others: one is read while another is written.
        self.under_way: dict[Job, tuple[int, int]] = {}
        self.newest: Job | None = None
        self.since = time.monotonic()
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
        self.since = time.monotonic()
        self.bar.update(self.task, total=pictures)

    def started(self, job: "Job") -> None:
        self.newest = job
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
        seconds = time.monotonic() - self.since
        pixels = self.pixels + sum(done for done, _ in under_way)
        pictures = self.done + len(self.failed)
        self.bar.update(
            self.task,
            completed=pictures + sum(done / total for done, total in under_way),
            rate=f"{pixels / 1e6 / seconds:.3g} MP/s" if pixels and seconds else "",
        )

    def say_result(self, line: str) -> None:
        if sys.stdout and sys.stdout.isatty():
            self.say_error(line)  # the same terminal, of which the bar has the foot
        else:
            super().say_result(line)

    def say_error(self, line: str) -> None:
        from rich.text import Text

        self.console.print(Text(line), soft_wrap=True)

    def summary(self) -> Iterable[str]:
        """With the reasons again: in a terminal they may be a thousand lines away."""
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
        # What goes to stdout may go to a file.
        redirect_stdout=False,
        speed_estimate_period=_ESTIMATE_SECONDS,
    )


@contextmanager
def _shown(bar: "bars.Progress") -> Iterator[None]:
    """Draw a bar; what is logged meanwhile goes above it, not across it."""
    stderr = sys.stderr
    redirected = []
    with bar:  # sys.stderr now prints above the bar
        for name in (None, "aethernet"):
            for handler in logging.getLogger(name).handlers:
                # Of these each keeps the stream that it was made with.
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
    seconds = outcome.seconds
    return dumps(
        {
            "source": _text(_plain(outcome.job.source)),
            "target": _text(_plain(outcome.job.target)),
            "status": outcome.status,
            "reason": _text(outcome.reason),
            "size_before": outcome.size_before,
            "size_after": outcome.size_after,
            "seconds": None if seconds is None else round(seconds, 3),
        }
    )


def _text(name: str) -> str:
    r"""A name as text; JSON with halves of surrogate pairs is refused by many."""
    return re.sub("[\ud800-\udfff]", escaped, name)


def _plain(path: "Path") -> str:
    """Without the prefix of Windows' long paths."""
    text = str(path)
    if text.startswith("\\\\?\\UNC\\"):
        return "\\" + text[7:]
    return text.removeprefix("\\\\?\\")


def _count(pictures: int) -> str:
    return "1 picture" if pictures == 1 else f"{pictures} pictures"


def _write(line: str, stream: TextIO | None) -> None:
    if stream:  # a closed one is None, for which print takes stdout
        print(line, file=stream, flush=True)
