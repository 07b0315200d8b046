"""Compare runtimes on a model: first the check of their output, then the clock.

A *candidate* is a runtime on a device in a precision. All run one small tile, whose
right output is known. Those that pass are timed in turns on a larger one, beside the
*usual* candidate. Another one wins when it clearly saves time.
"""

import functools
import logging
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from aethernet.checkpoints.formats import is_checkpoint
from aethernet.checkpoints.reference import evaluate
from aethernet.checkpoints.tolerances import FLOAT32_ATOL, FLOAT32_RTOL, MIN_PSNR
from aethernet.checkpoints.verification import compare, natural_image
from aethernet.devices import device_kind
from aethernet.errors import AetherError, VerificationError, first_line
from aethernet.runtimes.base import ModelFile, RuntimeSpec, TriedRuntime
from aethernet.runtimes.onnxruntime import OnnxRuntime

_log = logging.getLogger(__name__)

# LR pixels along the sides of the tile that is checked, height first: the reference of
# a checkpoint is computed by NumPy, in half a second for `aether_small`. And of the
# tile that is timed. An ONNX file may fix other sizes.
CHECK_SIZE = (32, 48)
TILE = 128

# Rounds in which every candidate runs once, after one run to warm up. No round begins
# once TRIAL_SECONDS are spent, but there are LEAST_ROUNDS.
ROUNDS = 5
LEAST_ROUNDS = 3
TRIAL_SECONDS = 10.0

# Before a run, for the threads of another runtime to stop waiting for work.
PAUSE = 0.05

# A candidate that takes this many times as long as the usual one in the first round is
# not run again.
HOPELESS = 3.0

# The part of the usual candidate's time that another has to stay below.
CLEAR = 0.9

# What "auto" may lose in a picture. A reduced precision adds noise to the output; of a
# model with PSNR q against the truth it leaves q - 10 log10(1 + 10^((q - r) / 10)),
# where r is the PSNR of reduced against float32, as long as both errors are
# independent. A loss of 0.05 dB at q = 37 dB (Set5 2x) needs r = 56.3 dB.
MAX_LOSS = 0.05
USUAL_PSNR = 37.0
AUTO_MIN_PSNR = USUAL_PSNR - 10 * math.log10(10 ** (MAX_LOSS / 10) - 1)


def tried_class(spec: RuntimeSpec) -> type[TriedRuntime]:
    """The class of a runtime that is tried; its library may be missing."""
    return cast("type[TriedRuntime]", spec.import_class())


@dataclass(frozen=True)
class Candidate:
    """A runtime on a device in a precision."""

    spec: RuntimeSpec
    device: str
    precision: str
    """One of `PRECISIONS`, or "auto": what the file holds."""

    def load(self, file: ModelFile) -> TriedRuntime:
        return tried_class(self.spec).load(file, self.device, self.precision)

    @property
    def on_cpu(self) -> bool:
        return device_kind(self.device) == "cpu"

    @property
    def is_plain(self) -> bool:
        """Whether it computes in no lower precision than the file asks for."""
        return self.precision in ("float32", "auto")

    def __str__(self) -> str:
        precision = "" if self.precision == "auto" else f" in {self.precision}"
        return f"{self.spec.name}{precision} on {self.device}"


@dataclass(frozen=True)
class Cost:
    """What one run took, in seconds."""

    wall: float
    cpu: float
    """Of all threads of this process."""


@dataclass(frozen=True)
class TrialRow:
    """A candidate beside the usual one; medians over the rounds."""

    candidate: Candidate
    cost: Cost
    ratio: Cost
    """To the usual candidate, round by round."""
    clear: bool
    """Whether it clearly saves time."""
    agreed: bool
    """Whether the rounds agree about that."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a trial."""

    winner: Candidate
    why: str
    """For `Description.why`."""
    agreed: bool
    """Whether the rounds agree. If not, another trial may find something else."""
    rows: tuple[TrialRow, ...]
    """The usual candidate first."""


class Trial:
    """Candidates for one model file; what is loaded or fails is remembered."""

    def __init__(self, file: ModelFile, cautious: bool) -> None:
        """Prepare a trial; nothing is read or loaded yet.

        Args:
            file: the model.
            cautious: no precision below that of the file may be visible in a picture.
        """
        self.file, self.cautious = file, cautious
        self.able: dict[Candidate, TriedRuntime] = {}
        self.failures: dict[Candidate, AetherError] = {}

    @functools.cached_property
    def reference(self) -> "_Reference":
        """The tile that is checked; raises AetherError where the file is no model."""
        return _Reference.of(self.file)

    def first(self, candidates: Sequence[Candidate]) -> tuple[Candidate, TriedRuntime]:
        """The first of these candidates that works, loaded.

        Raises:
            AetherError: when none does: the failure of the first.
        """
        for candidate in candidates:
            if self.works(candidate):
                return candidate, self.able[candidate]
        raise next(iter(self.failures.values()))

    def works(self, candidate: Candidate) -> bool:
        """Load a candidate and check its output, unless that was done before.

        Raises:
            AetherError: when the file is no model.
        """
        if candidate in self.able or candidate in self.failures:
            return candidate in self.able
        if self._is_superfluous(candidate):
            return False
        if not candidate.spec.proven:
            _ = self.reference  # before anything is loaded: the file may be no model
        _log.info("trying %s", candidate)
        try:
            model = candidate.load(self.file)
            if not candidate.spec.proven:
                self._check(candidate, model, self.reference)
        except AetherError as error:
            self.failures[candidate] = error
        except Exception as error:  # from a library: the other candidates may work
            reason = f"{type(error).__name__}: {first_line(error)}"
            self.failures[candidate] = AetherError(reason)
        else:
            self.able[candidate] = model
        return candidate in self.able

    def _is_superfluous(self, candidate: Candidate) -> bool:
        """Whether others already show that this one is not needed."""
        better_device_works = candidate.on_cpu and any(
            candidate.spec == other.spec and not other.on_cpu for other in self.able
        )
        does_not_start_there = any(
            candidate.spec == other.spec and candidate.device == other.device
            for other, failure in self.failures.items()
            if not isinstance(failure, VerificationError)
        )
        return better_device_works or does_not_start_there

    def _check(
        self, candidate: Candidate, model: TriedRuntime, reference: "_Reference"
    ) -> None:
        """Compare an output; raises VerificationError where it is wrong."""
        expected, output = reference.expected, model.run(reference.tile)
        if output.shape != expected.shape:
            raise VerificationError(
                f"{candidate} is not used: its output has the shape {[*output.shape]}, "
                f"the reference has {[*expected.shape]}."
            )
        precision = model.describe().precision
        # Networks of others may make values of 0 to 255.
        peak = max(float(np.abs(expected).max(initial=0)), 1.0)
        found = compare(output / peak, expected / peak)
        if reference.ours and precision == reference.precision == "float32":
            allowed = FLOAT32_ATOL + FLOAT32_RTOL * np.abs(expected)
            right = bool((np.abs(output - expected) <= allowed).all())
            limit = f"atol {FLOAT32_ATOL:g}"
        else:
            least = self._least_psnr(precision, reference.precision)
            right = found.psnr >= least
            limit = f"{least:.1f} dB"
        if not right:
            raise VerificationError(
                f"{candidate} is not used: its output differs from the reference on a "
                f"tile, {found}, and the limit is {limit}."
            )

    def _least_psnr(self, precision: str, held: str) -> float:
        """The PSNR in dB that a candidate in this precision must reach.

        A precision that the user or the file chose has a limit of its own.
        """
        chosen = {held}
        if not self.cautious:
            chosen.add(precision)
        limits = [MIN_PSNR[name] for name in chosen if name in MIN_PSNR]
        return min(limits, default=AUTO_MIN_PSNR)

    def is_no_defect(self, candidate: Candidate) -> bool:
        """Whether a candidate failed because the model does not suit its precision."""
        failure = self.failures[candidate]
        lower = candidate.precision in MIN_PSNR and self.cautious
        return lower and isinstance(failure, VerificationError)

    def race(self, usual: Candidate) -> Verdict:
        """Time the candidates that work, one of which is the usual one."""
        plain = next((each for each in self.able if each.is_plain), usual)
        larger = self.reference.larger(self.able[plain], TILE)
        for candidate in [*self.able]:
            if candidate == plain:
                continue
            try:  # this run also warms it up
                self._check(candidate, self.able[candidate], larger)
            except AetherError as error:
                self.failures[candidate] = error
                del self.able[candidate]
        usual = usual if usual in self.able else plain
        costs = self._costs(usual, larger.tile)
        rows = [_row(candidate, costs, usual) for candidate in costs]
        rows.sort(key=lambda row: (row.candidate != usual, row.cost.wall))
        clear = [row for row in rows if row.clear]
        best = min(clear, key=lambda row: row.ratio.wall, default=rows[0])
        return Verdict(
            best.candidate,
            self._why(best, usual, larger.tile),
            all(row.agreed for row in rows),
            tuple(rows),
        )

    def _costs(self, usual: Candidate, tile: np.ndarray) -> dict[Candidate, list[Cost]]:
        """What each took in each round; hopeless ones have fewer rounds."""
        costs: dict[Candidate, list[Cost]] = {c: [] for c in self.able}
        running, spent = [*self.able], 0.0
        for number in range(ROUNDS):
            if number >= LEAST_ROUNDS and spent >= TRIAL_SECONDS:
                break
            # Every other round backwards: none always runs after the same one.
            for candidate in running[:: -1 if number % 2 else 1]:
                costs[candidate].append(measure(self.able[candidate], tile))
                spent += costs[candidate][-1].wall
            limit = HOPELESS * costs[usual][0].wall
            running = [c for c in running if costs[c][0].wall <= limit]
        return costs

    def _why(self, best: TrialRow, usual: Candidate, tile: np.ndarray) -> str:
        height, width = tile.shape[-2:]
        place = f"tried on a {width}x{height} tile"
        if len(self.able) == 1:
            return "the only one that works here"
        if best.candidate == usual:
            return f"none of {len(self.able) - 1} others {place} is clearly faster"
        than = self.able[usual].describe()
        return (
            f"fastest of {len(self.able)} {place}, {best.ratio.wall:.2f} of the time "
            f"of {than.runtime} {than.precision} on {than.device}"
        )


@dataclass(frozen=True, eq=False)
class _Reference:
    """A tile and the right output for it."""

    tile: np.ndarray
    """`(B, channels, H, W)`, float32, 0..1."""
    expected: np.ndarray
    precision: str
    """What the model file holds."""
    ours: bool
    """Whether the file is of AetherNet, so that its precision can be believed."""
    fixed: tuple[int | None, ...] = (None,) * 4
    """Sides of the input that the file fixes."""

    @classmethod
    def of(cls, file: ModelFile) -> "_Reference":
        """Run a model plainly: in NumPy, or without optimisation in ONNX Runtime."""
        if is_checkpoint(file.path):
            folded = file.checkpoint.folded
            tile = _photograph((1, folded.in_chans, *CHECK_SIZE))
            return cls(tile, evaluate(folded, tile), "float32", True)
        plain = OnnxRuntime.reference(file.path)
        tile = _photograph(plain.size(1, *CHECK_SIZE))
        ours = plain.metadata.get("architecture") == "AetherNet"
        return cls(tile, plain.run(tile), plain.precision, ours, plain.fixed)

    def larger(self, model: TriedRuntime, side: int) -> "_Reference":
        """A square tile, if the file takes it, and what a checked model makes of it."""
        wanted = (*self.tile.shape[:2], side, side)
        sides = [f or s for f, s in zip(self.fixed, wanted, strict=True)]
        tile = _photograph(tuple(sides))
        precision = model.describe().precision
        return _Reference(tile, model.run(tile), precision, self.ours, self.fixed)


def measure(model: TriedRuntime, tile: np.ndarray) -> Cost:
    """What a model takes for a tile."""
    time.sleep(PAUSE)
    wall, cpu = time.perf_counter(), time.process_time()
    model.run(tile)
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def _row(
    candidate: Candidate, costs: dict[Candidate, list[Cost]], usual: Candidate
) -> TrialRow:
    own = costs[candidate]
    cost = Cost(
        statistics.median(one.wall for one in own),
        statistics.median(one.cpu for one in own),
    )
    _log.info(
        "%s: %.0f ms, %.0f ms of CPU time",
        *(candidate, 1000 * cost.wall, 1000 * cost.cpu),
    )
    pairs = [*zip(own, costs[usual], strict=False)]
    walls = [_ratio(one.wall, other.wall) for one, other in pairs]
    cpus = [_ratio(one.cpu, other.cpu) for one, other in pairs]
    # What a processor spends on waiting for a GPU says nothing.
    counted = [walls, cpus] if candidate.on_cpu and usual.on_cpu else [walls]
    clear = all(statistics.median(ratios) <= CLEAR for ratios in counted)
    agreed = not any(map(_disagree, counted))
    ratio = Cost(statistics.median(walls), statistics.median(cpus))
    return TrialRow(candidate, cost, ratio, clear and candidate != usual, agreed)


def _ratio(own: float, usual: float) -> float:
    return own / usual if usual else 1.0  # a clock of coarse steps may say 0


def _disagree(ratios: Sequence[float]) -> bool:
    """Whether some rounds show a clear win and others a loss; of many, two may err."""
    middle = sorted(ratios)
    if len(middle) > LEAST_ROUNDS:
        middle = middle[1:-1]
    return middle[0] <= CLEAR and middle[-1] >= 1


def _photograph(shape: tuple[int, ...]) -> np.ndarray:
    """A part of one, `(B, channels, H, W)`, float32, 0..1."""
    batch, channels, height, width = shape
    return np.repeat(natural_image(height, width, channels), batch, 0)
