"""Run a benchmark: all contenders are loaded, then they run in turns.

The order is A B C ... A B C ..., so that other work on the machine slows all of them.
Figures are medians over the rounds; ratios are taken within each round.
"""

import gc
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aethernet.bench.ceiling import Ceiling, largest_product
from aethernet.bench.contenders import (
    FUSED,
    PLAIN,
    PUBLISHED,
    REWRITTEN,
    TRAINING,
    BenchPlan,
    Contender,
    Workshop,
    contenders,
    load,
)
from aethernet.bench.memory import peak_memory
from aethernet.checkpoints.verification import natural_image
from aethernet.devices import choose_device, describe_machine
from aethernet.errors import AetherError, first_line, import_optional
from aethernet.runtimes.base import PRECISIONS
from aethernet.runtimes.registry import runtime_distributions

_log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.1
"""Pause before each contender.

Idle threads of ONNX Runtime spin for up to 75 ms after a run, those of PyTorch for 10
(processor time seen while sleeping); after it the next contender has the machine.
"""

_LOADING_SECONDS = 120  # for a process to start and load, before its two runs


@dataclass
class Entry:
    """A contender and its results."""

    contender: Contender
    parameters: int = 0
    multiply_adds_per_pixel: float = math.nan
    """Per LR pixel."""
    description: str = ""
    """The runtime's own description."""
    precision: str = ""
    """Of the runtime, which chose it where the contender's is "auto"."""
    peak_bytes: int | None = None
    """Peak memory while running, beyond what was used before loading."""
    seconds: list[float | None] = field(default_factory=list)
    """By round; None where its time was used up."""
    cpu_seconds: list[float | None] = field(default_factory=list)
    """Of all threads of this process, by round."""
    reason: str = ""
    """Why there are no figures."""

    @property
    def times(self) -> list[float]:
        """Seconds of the rounds in which it ran."""
        return [second for second in self.seconds if second is not None]


@dataclass(frozen=True)
class Ratio:
    """The ratio of two contenders, round by round."""

    name: str
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class BenchReport:
    """All results of a benchmark."""

    plan: BenchPlan
    machine: dict[str, Any]
    """As `devices.describe_machine` returns it."""
    ceilings: dict[str, Ceiling]
    """By precision."""
    entries: list[Entry]
    ratios: list[Ratio]
    """Of times; then those of processor time, if the plan asks for them."""

    def ceiling(self, precision: str) -> float:
        """GFLOP/s in this precision, or in float32 where that is faster.

        It is faster on processors without units for the precision.
        """
        known = (self.ceilings[p] for p in ("float32", precision) if p in self.ceilings)
        return max(ceiling.gflops for ceiling in known)


def run_benchmark(plan: BenchPlan) -> BenchReport:
    """Build, load and time all contenders of a plan.

    A contender that cannot be built, exported, loaded or run gets an entry with the
    reason.

    Raises:
        AetherError: when the device is not available.
        MissingExtraError: when spandrel is missing, and peers are in the plan.
    """
    device = str(choose_device(plan.device))
    if plan.peers:
        import_optional("spandrel", "bench")
    machine = describe_machine(device, runtime_distributions())
    entries = [Entry(contender) for contender in contenders(plan)]
    try:
        image = natural_image(plan.height, plan.width)
    except RuntimeError as error:
        raise AetherError(
            f"There is no memory for an input of {plan.width}x{plan.height}.",
            hint="Choose a smaller --size.",
        ) from error
    calls: list[Callable[[], object] | None] = []
    with tempfile.TemporaryDirectory(prefix="aethernet_bench_") as folder:
        workshop = Workshop(plan, Path(folder), device)
        for number, entry in enumerate(entries, 1):
            _log.info("%d of %d: %s", number, len(entries), entry.contender)
            calls.append(_prepare(entry, workshop, image))
        # float32 in any case: it may be faster than a lower precision.
        used = {"float32", *(e.precision for e in entries if not e.reason)}
        products = {
            precision: largest_product(precision, device)
            for precision in PRECISIONS
            if precision in used
        }
        ceilings = take_turns(entries, calls, products, plan)
    found = ratios(entries)
    if plan.cpu_time:
        found += ratios(entries, cpu_time=True)
    return BenchReport(plan, machine, ceilings, entries, found)


def _prepare(
    entry: Entry, workshop: Workshop, image: np.ndarray
) -> Callable[[], object] | None:
    """Load an entry's contender and run it once.

    Returns:
        A call that runs it again; None where it fails, and the entry has the reason.
    """
    contender = entry.contender
    try:
        network, entry.multiply_adds_per_pixel = workshop.network(contender)
        entry.parameters = sum(p.numel() for p in network.parameters())
        file = workshop.file(contender)
        if contender.runtime == "auto":
            # The trial, whose result is kept, happens here and is not measured.
            load(contender, file, workshop.device)
        limit = workshop.plan.seconds
        if workshop.plan.memory:
            entry.peak_bytes = peak_memory(
                contender, file, workshop.device, image, _LOADING_SECONDS + 2 * limit
            )
        model = load(contender, file, workshop.device)
        start = time.perf_counter()
        output = model.run(image)
        took = time.perf_counter() - start
        if took > limit:
            raise AetherError(
                f"One run takes {took:.0f} seconds; the limit is {limit:g}."
            )
        expected = tuple(side * contender.scale for side in image.shape[2:])
        if output.shape[2:] != expected:
            raise AetherError(f"It makes {output.shape} of {image.shape}.")
        described = model.describe()
        entry.description = str(described)
        entry.precision = getattr(described, "precision", contender.precision)
    except Exception as error:  # of any library: the other contenders go on
        entry.reason = first_line(error)
        _log.info("  not run: %s", entry.reason)
        return None
    return lambda: model.run(image)


def take_turns(
    entries: list[Entry],
    calls: list[Callable[[], object] | None],
    products: dict[str, tuple[int, Callable[[], object]]],
    plan: BenchPlan,
) -> dict[str, Ceiling]:
    """Time all contenders in rounds; the times are added to the entries.

    Args:
        entries: one for each contender.
        calls: that run them; None for those that failed.
        products: side and call of the largest product, by precision.
        plan: number of rounds, and seconds for each contender.

    Returns:
        The ceilings, by precision.
    """
    ceilings = {name: Ceiling(side, []) for name, (side, _) in products.items()}
    spent = [0.0] * len(entries)
    gc.collect()
    gc.disable()
    try:
        for number in range(1, plan.runs + 1):
            _log.info("round %d of %d", number, plan.runs)
            for name, (_, product) in products.items():
                ceilings[name].seconds.append(timed_turn(product)[0])
            for index, (entry, call) in enumerate(zip(entries, calls, strict=True)):
                if call is None or entry.reason:
                    continue
                if spent[index] > plan.seconds:
                    entry.seconds.append(None)
                    entry.cpu_seconds.append(None)
                    continue
                start = time.perf_counter()
                try:
                    seconds, cpu_seconds = timed_turn(call)
                    entry.seconds.append(seconds)
                    entry.cpu_seconds.append(cpu_seconds)
                except Exception as error:  # the other contenders go on
                    entry.reason = f"Failed in round {number}: {first_line(error)}"
                spent[index] += time.perf_counter() - start
    finally:
        gc.enable()
    return ceilings


def timed_turn(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call, after a first one that brings its weights into the caches.

    Returns:
        Seconds, and processor seconds of all threads of this process.
    """
    time.sleep(SETTLE_SECONDS)
    call()
    start, cpu_start = time.perf_counter(), time.process_time()
    call()
    cpu_seconds = time.process_time() - cpu_start
    return time.perf_counter() - start, cpu_seconds


def ratios(entries: Iterable[Entry], cpu_time: bool = False) -> list[Ratio]:
    """The ratios of interest, for the rounds in which both contenders ran.

    Args:
        entries: with their results.
        cpu_time: compare processor time. Other programs on the machine lengthen it
            less than the time that passes.
    """
    found: dict[tuple[str, ...], Entry] = {}
    names: dict[str, None] = {}
    for entry in entries:
        who = entry.contender
        found[who.network, who.form, who.runtime, who.precision] = entry
        if who.kind != "peer":
            names[who.network] = None
    ratios: list[Ratio] = []

    def add(name: str, top: Entry | None, bottom: Entry | None, unit: float) -> None:
        if top is None or bottom is None or top.reason or bottom.reason:
            return
        if cpu_time:
            pairs = zip(top.cpu_seconds, bottom.cpu_seconds, strict=False)
        else:
            pairs = zip(top.seconds, bottom.seconds, strict=False)
        values = [unit * a / b for a, b in pairs if a is not None and b is not None]
        if values:
            ratios.append(Ratio(name, values))

    time_of, rate = (
        ("CPU time of", "GFLOP per CPU second") if cpu_time else ("time of", "GFLOP/s")
    )
    for name in names:
        plain = found.get((name, PLAIN, "onnxruntime", "float32"))
        exported = found.get((name, REWRITTEN, "onnxruntime", "float32"))
        native = found.get((name, REWRITTEN, "native", "float32"))
        auto = found.get((name, REWRITTEN, "auto", "auto"))
        fused = found.get((name, FUSED, "pytorch", "float32"))
        training = found.get((name, TRAINING, "pytorch", "float32"))
        onnx = "in ONNX Runtime float32"
        add(f"{name}: {time_of} auto / plain export {onnx}", auto, plain, 1)
        add(f"{name}: {time_of} native / plain export {onnx}", native, plain, 1)
        add(f"{name}: {time_of} our export / plain export {onnx}", exported, plain, 1)
        add(f"{name}: {time_of} fused / training form in PyTorch", fused, training, 1)
        compact = found.get(("compact", PUBLISHED, "onnxruntime", "float32"))
        for ours, where in ((native, "in the native runtime "), (exported, "")):
            if compact and ours:
                # Of ours over theirs: their time over ours, by the arithmetic.
                unit = ours.multiply_adds_per_pixel / compact.multiply_adds_per_pixel
                what = f"{name}: {rate} {where}/ Compact's {onnx}"
                add(what, compact, ours, unit)
    return ratios
