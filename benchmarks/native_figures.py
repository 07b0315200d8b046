"""The native runtime's figures in docs/performance.md, as one table.

    python benchmarks/native_figures.py [--variants ..] [--sizes 128 256] [--rounds 7]
        [--seconds 60] [--json FILE] [--plot FILE]

Times are those of `aethernet bench --cpu-time`: contenders take turns, and ratios are
taken round by round, so that other work on the machine hits both. The command's CPU
time is that of whole processes, in turns as well. Errors are those of the network on
noise against NumPy in float64. The plot has the ratios of CPU time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from native_engine import peak_rate

from aethernet.aether_core import VARIANTS, AetherNet
from aethernet.bench.contenders import REWRITTEN, BenchPlan, Contender, Workshop
from aethernet.bench.memory import peak_memory
from aethernet.bench.plot import check_plot
from aethernet.bench.report import as_table, figures
from aethernet.bench.rounds import BenchReport, run_benchmark
from aethernet.checkpoints.folded import fold
from aethernet.checkpoints.reference import evaluate
from aethernet.checkpoints.verification import natural_image
from aethernet.runtimes.native.library import load_kernels
from aethernet.runtimes.native.run import NativeNetwork
from aethernet.version import PACKAGE

SAMPLE = PACKAGE.parents[1] / "assets/sample.png"
ERROR_SIZE = (24, 32)
_OTHER = "in ONNX Runtime float32"
GOALS = {
    "aether_small": 0.45,
    "aether_medium": 0.48,
    "aether_large": 0.55,
    "rate": 1.0,
    "command": 0.25,
    "memory": 60,
    "error": 2e-5,
}


def measure(given: argparse.Namespace, size: int) -> BenchReport:
    """Time native, our export and the plain export in ONNX Runtime, and Compact."""
    return run_benchmark(
        BenchPlan(
            width=size,
            height=size,
            variants=tuple(given.variants),
            peers=("compact",),
            runtimes=("native", "onnxruntime"),
            precisions=("float32",),
            runs=given.rounds,
            seconds=given.seconds,
            memory=False,
            cpu_time=True,
        )
    )


def error_of(variant: str) -> float:
    """Largest difference to float64, for outputs of about one."""
    torch.manual_seed(0)
    network = AetherNet(**VARIANTS[variant], scale=2).fuse().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:  # by fan-in, so that every weight shows
                parameter.normal_().div_(parameter[0].numel() ** 0.5)
    arrays = {key: value.numpy() for key, value in network.state_dict().items()}
    image = np.random.default_rng(0).random((1, 3, *ERROR_SIZE), np.float32)
    expected = evaluate(fold(arrays, dtype=np.float64), image)
    found = NativeNetwork(fold(arrays))(image)
    largest = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(found - expected).max()) / largest


def command_seconds(runtime: str, folder: Path) -> float:
    """CPU seconds of `aethernet upscale` on the sample picture."""
    before = os.times()
    words = ["upscale", str(SAMPLE), "-o", str(folder / f"{runtime}.png")]
    words += ["--runtime", runtime, "--device", "cpu", "--quiet"]
    subprocess.run([sys.executable, "-m", "aethernet", *words], check=True)
    after = os.times()
    user = after.children_user - before.children_user
    return user + after.children_system - before.children_system


def command_ratios(rounds: int) -> list[float]:
    """The command with native against that with PyTorch, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        for runtime in ("native", "pytorch"):  # proofs are kept
            command_seconds(runtime, Path(folder))
        return [
            command_seconds("native", Path(folder))
            / command_seconds("pytorch", Path(folder))
            for _ in range(rounds)
        ]


def written(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


Ratios = dict[int, dict[str, list[float]]]
"""By size and name, the values of all rounds."""


def ratios_of(reports: dict[int, BenchReport]) -> Ratios:
    return {
        size: {ratio.name: ratio.values for ratio in report.ratios}
        for size, report in reports.items()
    }


def draw_ratios(ratios: Ratios, variants: list[str], target: Path) -> None:
    """Draw native's CPU time as a part of the plain export's: median and range."""
    from matplotlib.figure import Figure

    found = []
    for name in reversed(variants):
        for size, known in reversed(ratios.items()):
            values = known.get(f"{name}: CPU time of native / plain export {_OTHER}")
            if values:
                found.append((f"{name}, {size}x{size}", values, GOALS[name]))
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, (_, values, goal) in enumerate(found):
        median = statistics.median(values)
        reach = [[median - min(values)], [max(values) - median]]
        axes.barh(place, median, 0.6, xerr=reach, color="#0072B2", ecolor="black")
        label = "goal" if place == 0 else None
        axes.plot([goal] * 2, [place - 0.4, place + 0.4], color="#E69F00", label=label)
    axes.set_yticks(range(len(found)), [label for label, _, _ in found])
    axes.axvline(1, color="#999999")
    axes.set_xlim(0, 1.05)
    axes.set_xlabel("CPU time of the native runtime / plain export in ONNX Runtime")
    axes.legend(loc="upper right")
    figure.savefig(target, dpi=120)


def rows_of(ratios: Ratios, variants: list[str]) -> list[list[str]]:
    """Lines of the table: what, time, CPU time, goal."""
    lines = [
        (
            f"`{name}`",
            f"{name}: time of native / plain export {_OTHER}",
            f"{name}: CPU time of native / plain export {_OTHER}",
            f"<= {GOALS[name]:g}",
        )
        for name in variants
    ]
    per = "in the native runtime / Compact's"
    lines.append(
        (
            f"rate of `{variants[0]}` against Compact's",
            f"{variants[0]}: GFLOP/s {per} {_OTHER}",
            f"{variants[0]}: GFLOP per CPU second {per} {_OTHER}",
            f">= {GOALS['rate']:g}",
        )
    )
    rows = []
    for what, time, cpu_time, goal in lines:
        for size, known in ratios.items():
            cells = [
                written(known[name]) if name in known else "-"
                for name in (time, cpu_time)
            ]
            rows.append([f"{what}, {size}x{size}", *cells, goal])
    return rows


def memory_of(variant: str, size: int) -> str:
    """Peak memory of a process that runs it, beyond the libraries."""
    plan = BenchPlan(width=size, height=size)
    who = Contender(variant, "variant", REWRITTEN, "native", "float32", plan.scale)
    with tempfile.TemporaryDirectory() as folder:
        file = Workshop(plan, Path(folder), "cpu").file(who)
        peak = peak_memory(who, file, "cpu", natural_image(size, size))
    return "-" if peak is None else f"{peak / 2**20:.0f} MiB"


def table(given: argparse.Namespace, reports: dict[int, BenchReport]) -> str:
    """The whole table, in Markdown."""
    rows = rows_of(ratios_of(reports), given.variants)
    command = command_ratios(min(given.rounds, 3))
    rows.append(
        [
            "`aethernet upscale assets/sample.png` against PyTorch",
            "",
            written(command),
            f"<= {GOALS['command']:g}",
        ]
    )
    first = given.variants[0]
    peak = memory_of(first, given.sizes[0])
    what = f"peak memory of `{first}`, {given.sizes[0]}x{given.sizes[0]}"
    rows.append([what, peak, "", f"<= {GOALS['memory']:g} MiB"])
    error = max(error_of(variant) for variant in given.variants)
    goal = f"<= {GOALS['error']:g}"
    rows.append(["largest error against float64", f"{error:.1e}", "", goal])
    header = [["native against the plain export", "time", "CPU time", "goal"]]
    header += [["---"] * 4]
    return "\n".join(f"| {' | '.join(row)} |" for row in header + rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS], default=None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", type=Path, help="all figures of all rounds")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    given.variants = given.variants or [*VARIANTS]
    if given.plot:
        check_plot(given.plot)
    reports = {}
    for size in given.sizes:
        reports[size] = measure(given, size)
        print(as_table(reports[size]), end="\n\n", flush=True)
    kernels = load_kernels()
    peak = peak_rate(kernels)
    print(f"peak of one thread ({kernels.variant}): {peak / 1e9:.1f} G multiply-adds/s")
    load = ", ".join(f"{each:.1f}" for each in psutil.getloadavg())
    print(f"load of the machine at the end: {load}\n")
    lines = table(given, reports)
    print(lines)
    if given.plot:
        draw_ratios(ratios_of(reports), given.variants, given.plot)
    if given.json:
        content: dict[str, Any] = {"table": lines.splitlines(), "peak": peak}
        content["sizes"] = {
            size: {
                "contenders": [figures(entry, report) for entry in report.entries],
                "ratios": [[r.name, r.values] for r in report.ratios],
            }
            for size, report in reports.items()
        }
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
