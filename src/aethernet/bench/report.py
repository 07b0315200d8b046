"""The results of a benchmark, as a table and as JSON."""

import dataclasses
import json
import math
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aethernet.bench.peers import PEERS
from aethernet.bench.rounds import BenchReport, Entry
from aethernet.files import replacing
from aethernet.text import in_columns

_HEADER = (
    *("network", "form", "runtime", "precision", "ms", "quartiles", "least"),
    *("MP/s", "MiB", "MACs/px", "GFLOP/s", "of ceiling", "runs"),
)

_AFTER_LEAST = 7  # where `--cpu-time` adds a column

_TEXT_COLUMNS = 4  # aligned left, before the numbers


def figures(entry: Entry, report: BenchReport) -> dict[str, Any]:
    """The figures of an entry, in the units of the table, for JSON.

    An entry that failed has its reason and none of the figures measured.
    """
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
    cpu_times = [second for second in entry.cpu_seconds if second is not None]
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
        "cpu_ms": None if not cpu_times else 1000 * statistics.median(cpu_times),
        "cpu_ms_by_round": [s if s is None else 1000 * s for s in entry.cpu_seconds],
        "runs": len(times),
        "megapixels_per_second": pixels * plan.scale**2 / median / 1e3,
        "peak_mib": None if entry.peak_bytes is None else entry.peak_bytes / 2**20,
        "gflops": gflops,
        "of_ceiling": gflops / report.ceiling(entry.precision),
    }


def as_table(report: BenchReport) -> str:
    """The report for people, as lines of text."""
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
            f"PyTorch was told to use {machine['threads']} threads; other runtimes may "
            f"use all {machine['cores']} cores, so that times may not compare."
        )
    for precision, ceiling in report.ceilings.items():
        lines.append(
            f"ceiling in {precision}: {ceiling.gflops:.0f} GFLOP/s, PyTorch's product "
            f"of {ceiling.side} x {ceiling.side}"
        )
    found = [figures(entry, report) for entry in report.entries]
    rows = [_row(f) for f in found if "ms" in f]
    if rows:
        table = [[*_HEADER], *map(list, rows)]
        if plan.cpu_time:
            cpu = [f"{f['cpu_ms']:.1f}" for f in found if "ms" in f]
            for row, cell in zip(table, ["CPU ms", *cpu], strict=True):
                row.insert(_AFTER_LEAST, cell)
        lines += ["", *in_columns(table, range(_TEXT_COLUMNS, len(table[0])))]
    for f in found:
        if f["runtime"] == "auto" and "ms" in f:
            lines += ["", f"auto chose {f['description']}"]
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


def write_json(report: BenchReport, target: Path, command: str) -> None:
    """Write all results as JSON, with the times of every round.

    Args:
        report: the results.
        target: file to write.
        command: the command line that measured them.

    Raises:
        AetherError: when it cannot be written.
    """
    model = report.plan.model
    plan = asdict(dataclasses.replace(report.plan, model=None))
    plan["model"] = model.path.name if model else None
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
