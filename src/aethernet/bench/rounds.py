"""A benchmark: everybody is loaded, then all take turns.

A B C .. A B C .., so that whatever else the machine does meets each of them. Figures
are medians over the rounds, ratios are taken within each round.
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

from aethernet.bench.contenders import (
    FUSED,
    PLAIN,
    PUBLISHED,
    REWRITTEN,
    TRAINING,
    Contender,
    Plan,
    Workshop,
    contenders,
    load,
)
from aethernet.bench.machine import Ceiling, describe_machine, largest_product
from aethernet.bench.memory import peak_memory
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.verification import natural_image
from aethernet.devices import choose_device
from aethernet.errors import AetherError, import_optional
from aethernet.runtimes.base import PRECISIONS

_log = logging.getLogger(__name__)

# Idle threads of ONNX Runtime spin for up to 75 ms after a run, those of PyTorch for 10
# (processor time seen while sleeping); by then the next contender has the machine.
_SETTLE_SECONDS = 0.1

# What a process may take to start and load, before its two runs.
_LOADING_SECONDS = 120


@dataclass
class Entry:
    """A contender and what was found about it."""

    contender: Contender
    parameters: int = 0
    multiply_adds_per_pixel: float = math.nan
    """Per LR pixel."""
    description: str = ""
    """What the runtime says of itself."""
    precision: str = ""
    """What it computes in, where that was left to the runtime."""
    peak_bytes: int | None = None
    """Most memory held while running, beyond what was held before loading."""
    seconds: list[float | None] = field(default_factory=list)
    """By round; None where it was over its time."""
    reason: str = ""
    """Why there are no figures."""

    @property
    def times(self) -> list[float]:
        return [second for second in self.seconds if second is not None]


@dataclass(frozen=True)
class Ratio:
    """Of two contenders, round by round."""

    name: str
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Report:
    """Everything a run found."""

    plan: Plan
    machine: dict[str, Any]
    ceilings: dict[str, Ceiling]
    """By precision."""
    entries: list[Entry]
    ratios: list[Ratio]

    def ceiling(self, precision: str) -> float:
        """GFLOP/s: where a precision has no units of its own, float32 is faster."""
        known = (self.ceilings[p] for p in ("float32", precision) if p in self.ceilings)
        return max(ceiling.gflops for ceiling in known)


def run_benchmark(plan: Plan) -> Report:
    """Build, load and time everything in the plan.

    A contender that cannot be built, exported, loaded or run is an entry with a reason.

    Raises:
        AetherError: when the model is no checkpoint of ours or of another scale, the
            device is not there, or spandrel is missing and peers were asked for.
    """
    device = str(choose_device(plan.device))
    if plan.peers:
        import_optional("spandrel", "bench")
    if plan.model:
        load_checkpoint(plan.model).expect(None, plan.scale, 3)
    machine = describe_machine(device)
    entries = [Entry(contender) for contender in contenders(plan)]
    try:
        image = natural_image(plan.height, plan.width).numpy()
    except RuntimeError as error:
        raise AetherError(
            f"No memory for an input of {plan.width}x{plan.height}; choose a smaller "
            "size."
        ) from error
    calls: list[Callable[[], object] | None] = []
    with tempfile.TemporaryDirectory(prefix="aethernet_bench_") as folder:
        workshop = Workshop(plan, Path(folder), device)
        for number, entry in enumerate(entries, 1):
            _log.info("%d of %d: %s", number, len(entries), entry.contender)
            calls.append(_prepare(entry, workshop, image))
        # float32 in any case: what a lower precision may be beaten by.
        used = {"float32", *(e.precision for e in entries if not e.reason)}
        products = {
            precision: largest_product(precision, device)
            for precision in PRECISIONS
            if precision in used
        }
        ceilings = _take_turns(entries, calls, products, plan)
    return Report(plan, machine, ceilings, entries, ratios(entries))


def _prepare(
    entry: Entry, workshop: Workshop, image: np.ndarray
) -> Callable[[], object] | None:
    """Load an entry's contender and run it once; None, and a reason, where it fails."""
    contender = entry.contender
    try:
        network, entry.multiply_adds_per_pixel = workshop.network(contender)
        entry.parameters = sum(p.numel() for p in network.parameters())
        file = workshop.file(contender)
        if contender.runtime == "auto":
            # Its trial, whose outcome is kept, is not what it takes from then on.
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
                f"one run takes {took:.0f} seconds, the limit is {limit:g}"
            )
        expected = tuple(side * contender.scale for side in image.shape[2:])
        if output.shape[2:] != expected:
            raise AetherError(f"it makes {output.shape} of {image.shape}")
        described = model.describe()
        entry.description = str(described)
        entry.precision = getattr(described, "precision", contender.precision)
    except Exception as error:  # whatever it is, the others go on
        lines = str(error).strip().splitlines() or [type(error).__name__]
        entry.reason = lines[0]
        _log.info("  not run: %s", entry.reason)
        return None
    return lambda: model.run(image)


def _take_turns(
    entries: list[Entry],
    calls: list[Callable[[], object] | None],
    products: dict[str, tuple[int, Callable[[], object]]],
    plan: Plan,
) -> dict[str, Ceiling]:
    """Rounds in which everybody runs twice in a row, the second time by the clock."""
    ceilings = {name: Ceiling(side, []) for name, (side, _) in products.items()}
    spent = [0.0] * len(entries)
    gc.collect()
    gc.disable()
    try:
        for number in range(1, plan.runs + 1):
            _log.info("round %d of %d", number, plan.runs)
            for name, (_, product) in products.items():
                ceilings[name].seconds.append(_turn(product))
            for index, (entry, call) in enumerate(zip(entries, calls, strict=True)):
                if call is None or entry.reason:
                    continue
                if spent[index] > plan.seconds:
                    entry.seconds.append(None)
                    continue
                start = time.perf_counter()
                try:
                    entry.seconds.append(_turn(call))
                except Exception as error:  # the others go on
                    entry.reason = f"failed in round {number}: {error}"
                spent[index] += time.perf_counter() - start
    finally:
        gc.enable()
    return ceilings


def _turn(call: Callable[[], object]) -> float:
    """Seconds of a call, after one that brings its weights back into the caches."""
    time.sleep(_SETTLE_SECONDS)
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ratios(entries: Iterable[Entry]) -> list[Ratio]:
    """What the comparison is made for; each is the median over rounds both were in."""
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
        pairs = zip(top.seconds, bottom.seconds, strict=False)
        values = [unit * a / b for a, b in pairs if a is not None and b is not None]
        if values:
            ratios.append(Ratio(name, values))

    for name in names:
        plain = found.get((name, PLAIN, "onnxruntime", "float32"))
        exported = found.get((name, REWRITTEN, "onnxruntime", "float32"))
        auto = found.get((name, REWRITTEN, "auto", "auto"))
        fused = found.get((name, FUSED, "pytorch", "float32"))
        training = found.get((name, TRAINING, "pytorch", "float32"))
        onnx = "in ONNX Runtime float32"
        add(f"{name}: time of auto / plain export {onnx}", auto, plain, 1)
        add(f"{name}: time of our export / plain export {onnx}", exported, plain, 1)
        add(f"{name}: time of fused / training form in PyTorch", fused, training, 1)
        compact = found.get(("compact", PUBLISHED, "onnxruntime", "float32"))
        if compact and exported:
            # GFLOP/s of ours over theirs: their time over ours, by the arithmetic.
            unit = exported.multiply_adds_per_pixel / compact.multiply_adds_per_pixel
            add(f"{name}: GFLOP/s / Compact's {onnx}", compact, exported, unit)
    return ratios
