"""What a benchmark found: as a table, as JSON, as a plot."""

import functools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aethernet.bench.contenders import FUSED, PLAIN, PUBLISHED, REWRITTEN, TRAINING
from aethernet.bench.peers import PEERS
from aethernet.bench.rounds import Entry, Report
from aethernet.errors import AetherError, import_optional
from aethernet.files import PLOT_SUFFIXES, check_target, replacing
from aethernet.text import in_columns

_HEADER = (
    *("network", "form", "runtime", "precision", "ms", "quartiles", "least"),
    *("MP/s", "MiB", "MACs/px", "GFLOP/s", "of ceiling", "runs"),
)

_WORDS = 4  # columns of words, left-aligned; the others are numbers

# Colours that colour-blind people tell apart (Okabe and Ito), ours and theirs.
_OURS, _THEIRS, _LINES = "#0072B2", "#E69F00", "#999999"

_MARKERS = {"pytorch": "o", "onnxruntime": "s", "openvino": "^", "tensorrt": "P"}

_OTHER_MARKERS = {TRAINING: "v", FUSED: ">", PLAIN: "D"}


def check_targets(json_file: Path | None, plot_file: Path | None) -> None:
    """Say what is wrong with the files to write, before any work is done for them.

    Raises:
        AetherError: when one cannot be written, or is no picture's name.
        MissingExtraError: when there is nothing to draw with.
    """
    for target in filter(None, (json_file, plot_file)):
        check_target(target)
    if plot_file:
        if plot_file.suffix.lower() not in PLOT_SUFFIXES:
            raise AetherError(f"Cannot draw {plot_file}: name it .png or .svg.")
        import_optional("matplotlib", "bench")


def figures(entry: Entry, report: Report) -> dict[str, Any]:
    """An entry's figures in the units of the table; of a failed one only the reason."""
    who = entry.contender
    known: dict[str, Any] = {
        "network": _name(entry),
        "kind": who.kind,
        "form": who.form,
        "runtime": who.runtime,
        "precision": entry.precision or who.precision,
        "description": entry.description,
        "reason": entry.reason,
    }
    if entry.parameters:
        known["parameters"] = entry.parameters
    if math.isfinite(entry.multiply_adds_per_pixel):
        known["multiply_adds_per_pixel"] = entry.multiply_adds_per_pixel
    times = [1000 * second for second in entry.times]
    if entry.reason or not times:
        return known
    plan = report.plan
    median = statistics.median(times)
    lower, _, upper = (
        statistics.quantiles(times, method="inclusive")
        if len(times) > 1
        else [median] * 3
    )
    pixels = plan.width * plan.height
    gflops = 2 * entry.multiply_adds_per_pixel * pixels / median / 1e6
    return {
        **known,
        "ms": median,
        "ms_quartiles": [lower, upper],
        "ms_least": min(times),
        "ms_by_round": [s if s is None else 1000 * s for s in entry.seconds],
        "runs": len(times),
        "megapixels_per_second": pixels * plan.scale**2 / median / 1e3,
        "peak_mib": None if entry.peak_bytes is None else entry.peak_bytes / 2**20,
        "gflops": gflops,
        "of_ceiling": gflops / report.ceiling(entry.precision),
    }


def as_table(report: Report) -> str:
    """The report for people, in plain text."""
    plan, machine = report.plan, report.machine
    where = machine.get("gpu", machine["device"])
    has = ", ".join(machine["instructions"]) or machine["pytorch_capability"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    lines = [
        f"{plan.scale}x, input {plan.width}x{plan.height}, on {where}",
        f"{machine['cpu']} ({has}), {machine['cores']} cores",
        versions,
    ]
    if machine["device"] == "cpu" and machine["threads"] != machine["cores"]:
        lines.append(
            f"PyTorch was given {machine['threads']} threads, other runtimes take what "
            f"cores there are ({machine['cores']}): their times may not compare."
        )
    for precision, ceiling in report.ceilings.items():
        lines.append(
            f"ceiling in {precision}: {ceiling.gflops:.0f} GFLOP/s, PyTorch's product "
            f"of {ceiling.side} x {ceiling.side}"
        )
    found = [figures(entry, report) for entry in report.entries]
    rows = [_row(f) for f in found if "ms" in f]
    if rows:
        lines += ["", *in_columns([_HEADER, *rows], range(_WORDS, len(_HEADER)))]
    for f in found:
        if f["runtime"] == "auto" and "ms" in f:
            lines += ["", f"auto took {f['description']}"]
    failed = [f for f in found if "ms" not in f]
    if failed:
        lines += ["", "Without figures:"]
        for f in failed:
            who = f"{f['network']}, {f['form']}, {f['runtime']} {f['precision']}"
            lines.append(f"  {who}: {f['reason']}")
    if report.ratios:
        lines += ["", "Ratios, median and range over the rounds:"]
        for ratio in report.ratios:
            low, high = min(ratio.values), max(ratio.values)
            figure = f"{ratio.median:.2f} ({low:.2f} to {high:.2f})"
            lines.append(f"  {figure}  {ratio.name}")
    return "\n".join(lines)


def write_json(report: Report, target: Path, command: str) -> None:
    """Write everything, the times of every round too.

    Raises:
        AetherError: when it cannot be written.
    """
    plan = asdict(report.plan)
    plan["model"] = report.plan.model.name if report.plan.model else None
    content = {
        "command": command,
        "machine": report.machine,
        "plan": plan,
        "ceilings": {
            precision: {
                "side": ceiling.side,
                "gflops": ceiling.gflops,
                "ms_by_round": [1000 * second for second in ceiling.seconds],
            }
            for precision, ceiling in report.ceilings.items()
        },
        "contenders": [figures(entry, report) for entry in report.entries],
        "ratios": [
            {"name": r.name, "median": r.median, "by_round": r.values}
            for r in report.ratios
        ],
    }
    with replacing(target) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def draw(report: Report, target: Path) -> None:
    """Draw speed against arithmetic, both logarithmic, with lines of equal GFLOP/s.

    Raises:
        MissingExtraError: when matplotlib is not installed.
        AetherError: when there is nothing to draw, or it cannot be written.
    """
    import_optional("matplotlib", "bench")
    from matplotlib.figure import Figure  # draws without a display
    from matplotlib.ticker import LogLocator, NullLocator

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
    seen: set[str] = set()
    for point in points:
        ours = point["kind"] != "peer"
        marker, label = _mark(point)
        reduced = point["precision"] != "float32"
        colour = _OURS if ours else _THEIRS
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
    _draw_names(axes, points)
    plan, machine = report.plan, report.machine
    for axis, unit in ((axes.xaxis, 1e3), (axes.yaxis, 1)):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(functools.partial(_tick, unit))
    axes.set_xlabel("thousand multiply-adds per input pixel")
    axes.set_ylabel("megapixels out per second")
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    axes.set_title(f"{plan.scale}x, input {plan.width}x{plan.height}, {where}")
    figure.legend(
        loc="outside right upper",
        fontsize=8,
        title="hollow: less than float32",
        title_fontsize=8,
    )
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=150)


def _tick(unit: float, value: float, _: int) -> str:
    return f"{value / unit:g}"


def _draw_lines(axes: Any, report: Report) -> None:
    """Where a rate of arithmetic leads, for round ones and for the ceilings."""
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
        # Where the line enters the frame, and a ceiling where it leaves: they may be
        # close to each other.
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
    """Each network's name once, above its fastest point or below its slowest."""
    columns: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        columns.setdefault(point["network"], []).append(point)
    by_work = sorted(columns, key=lambda n: columns[n][0]["multiply_adds_per_pixel"])
    above, last = False, 0.0
    for name in by_work:
        column = columns[name]
        work = column[0]["multiply_adds_per_pixel"]
        # Neighbours take turns, or their names would lie on each other.
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
    """Marker of a point, and what the legend says of it."""
    who = "AetherNet" if point["kind"] != "peer" else "peers"
    runtime, form = point["runtime"], point["form"]
    if runtime == "auto":
        return "*", f"{who}, auto"
    said = "" if form in (REWRITTEN, PUBLISHED) else f" ({form})"
    marker = _OTHER_MARKERS.get(form, _MARKERS.get(runtime, "X"))
    return marker, f"{who}, {runtime}{said}"


def _name(entry: Entry) -> str:
    who = entry.contender
    return PEERS[who.network].name if who.kind == "peer" else who.network


def _row(f: dict[str, Any]) -> tuple[str, ...]:
    low, high = f["ms_quartiles"]
    peak = f["peak_mib"]
    return (
        *(f["network"], f["form"], f["runtime"], f["precision"]),
        f"{f['ms']:.1f}",
        f"{low:.1f} .. {high:.1f}",
        f"{f['ms_least']:.1f}",
        f"{f['megapixels_per_second']:.3g}",
        "-" if peak is None else f"{peak:.0f}",
        f"{f['multiply_adds_per_pixel']:,.0f}",
        f"{f['gflops']:.3g}",
        f"{f['of_ceiling']:.0%}",
        str(f["runs"]),
    )
