"""The plot of a benchmark: speed against arithmetic."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aethernet.bench.contenders import FUSED, PLAIN, PUBLISHED, REWRITTEN, TRAINING
from aethernet.bench.report import figures
from aethernet.bench.rounds import BenchReport
from aethernet.errors import AetherError, import_optional
from aethernet.files import PLOT_SUFFIXES, check_target, replacing
from aethernet.runtimes.registry import RUNTIMES

# Colours that colour-blind people can distinguish (Okabe and Ito), ours and the peers'.
_OURS, _PEERS, _LINES = "#0072B2", "#E69F00", "#999999"

# Matplotlib's markers: for the runtimes in their order, and for other forms.
_RUNTIME_MARKERS = "os^Pphd"
_FORM_MARKERS = {TRAINING: "v", FUSED: ">", PLAIN: "D"}


def check_plot(target: Path) -> None:
    """Check that a plot can be drawn and written, before any work is done for it.

    Raises:
        AetherError: when the file cannot be written, or is no picture by its name.
        MissingExtraError: when matplotlib is not installed.
    """
    check_target(target)
    if target.suffix.lower() not in PLOT_SUFFIXES:
        raise AetherError(
            "Cannot be drawn: the name is not that of a plot.",
            target,
            f"Name it {' or '.join(PLOT_SUFFIXES)}.",
        )
    import_optional("matplotlib", "bench")


def draw(report: BenchReport, target: Path) -> None:
    """Draw speed against arithmetic, both logarithmic, with lines of equal GFLOP/s.

    Raises:
        MissingExtraError: when matplotlib is not installed.
        AetherError: when there is nothing to draw, or it cannot be written.
    """
    import_optional("matplotlib", "bench")
    from matplotlib.figure import Figure  # needs no display

    points = [f for f in (figures(e, report) for e in report.entries) if "ms" in f]
    if not points:
        raise AetherError("There is nothing to draw: no contender could be run.")
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    work = [point["multiply_adds_per_pixel"] for point in points]
    speed = [point["megapixels_per_second"] for point in points]
    axes.set_xlim(min(work) / 1.6, max(work) * 1.6)
    axes.set_ylim(min(speed) / 1.8, max(speed) * 1.8)
    _draw_lines(axes, report)
    _draw_points(axes, points)
    _draw_names(axes, points)
    _label_axes(axes, report)
    figure.legend(
        loc="outside right upper",
        fontsize=8,
        title="hollow: less than float32",
        title_fontsize=8,
    )
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=150)


def _draw_points(axes: Any, points: Sequence[dict[str, Any]]) -> None:
    seen: set[str] = set()
    for point in points:
        ours = point["kind"] != "peer"
        marker, label = _mark(point)
        reduced = point["precision"] != "float32"
        colour = _OURS if ours else _PEERS
        axes.plot(
            point["multiply_adds_per_pixel"],
            point["megapixels_per_second"],
            marker,
            color=colour,
            markerfacecolor="white" if reduced else colour,
            markersize=8 if ours else 6,
            label=None if label in seen else label,
        )
        seen.add(label)


def _label_axes(axes: Any, report: BenchReport) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    plan, machine = report.plan, report.machine
    for axis, unit in ((axes.xaxis, 1e3), (axes.yaxis, 1)):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(functools.partial(_tick, unit))
    axes.set_xlabel("thousand multiply-adds per input pixel")
    axes.set_ylabel("megapixels out per second")
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    axes.set_title(f"{plan.scale}x, input {plan.width}x{plan.height}, {where}")


def _tick(unit: float, value: float, _: int) -> str:
    return f"{value / unit:g}"


def _draw_lines(axes: Any, report: BenchReport) -> None:
    """Draw lines of equal GFLOP/s, for round numbers and for the ceilings."""
    factor = 1e3 * report.plan.scale**2 / 2  # MP/s x multiply-adds per px / GFLOP/s
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    reach = [low * left / factor, high * right / factor]
    rates = [
        (step * 10.0**power, "", ":")
        for power in range(math.floor(math.log10(reach[0])), 7)
        for step in (1, 3)
    ]
    ceilings = {report.ceiling(p): p for p in reversed(report.ceilings)}
    rates += [(rate, f"ceiling in {p}, ", "-") for rate, p in ceilings.items()]
    for rate, name, style in rates:
        if not reach[0] < rate < reach[1]:
            continue
        ends = [factor * rate / left, factor * rate / right]
        axes.plot([left, right], ends, style, color=_LINES, linewidth=1, zorder=0)
        # A line has its name where it enters the frame, a ceiling where it leaves it:
        # both may be close to each other.
        start, end = max(left, factor * rate / high), min(right, factor * rate / low)
        at = end if name else start
        axes.annotate(
            f"{name}{rate:,.0f} GFLOP/s" if rate >= 1 else f"{rate:g} GFLOP/s",
            (at, factor * rate / at),
            xytext=(-4, 10) if name else (4, -10),
            textcoords="offset points",
            ha="right" if name else "left",
            fontsize=7,
            color="#555555",
        )


def _draw_names(axes: Any, points: Sequence[dict[str, Any]]) -> None:
    """Write each network's name once, above its fastest point or below its slowest."""
    columns: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        columns.setdefault(point["network"], []).append(point)
    by_work = sorted(columns, key=lambda n: columns[n][0]["multiply_adds_per_pixel"])
    above, last = False, 0.0
    for name in by_work:
        column = columns[name]
        work = column[0]["multiply_adds_per_pixel"]
        # Neighbours alternate, so that their names do not overlap.
        above = not above if work < 1.4 * last else True
        last = work
        pick = max if above else min
        speed = pick(point["megapixels_per_second"] for point in column)
        ours = column[0]["kind"] != "peer"
        axes.annotate(
            name,
            (work, speed),
            xytext=(0, 9 if above else -9),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=9,
            fontweight="bold" if ours else "normal",
            color=_OURS if ours else "black",
        )


def _mark(point: dict[str, Any]) -> tuple[str, str]:
    """Marker of a point, and its text in the legend."""
    who = "AetherNet" if point["kind"] != "peer" else "peers"
    runtime, form = point["runtime"], point["form"]
    if runtime == "auto":
        return "*", f"{who}, auto"
    how = "" if form in (REWRITTEN, PUBLISHED) else f" ({form})"
    number = list(RUNTIMES).index(runtime) % len(_RUNTIME_MARKERS)
    marker = _FORM_MARKERS.get(form, _RUNTIME_MARKERS[number])
    return marker, f"{who}, {runtime}{how}"
