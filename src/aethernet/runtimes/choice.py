"""Choose the runtime for a model: a short trial with a check, whose result is kept.

The runtimes that could run the model, each on each device and in each precision worth
trying, are *candidates*. All run one tile; those whose output is right are timed.
"""

import logging
import math
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from aethernet.aether_core import AetherNet
from aethernet.cache import code_version, file_of, read_json, write_json
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.formats import is_checkpoint
from aethernet.checkpoints.rewrites import run_network
from aethernet.checkpoints.tolerances import FLOAT32_ATOL, FLOAT32_RTOL, MIN_PSNR
from aethernet.checkpoints.verification import compare, natural_image
from aethernet.devices import device_kind, installed_versions, processor_name
from aethernet.errors import AetherError, VerificationError, first_line
from aethernet.files import sha256_of
from aethernet.runtimes.base import (
    ONNX_RUNTIME_DISTRIBUTIONS,
    PRECISIONS,
    RuntimeSpec,
    TriedRuntime,
)
from aethernet.runtimes.onnx_files import EXPORTING_CODE
from aethernet.runtimes.onnxruntime import OnnxRuntime
from aethernet.version import PACKAGE

_log = logging.getLogger(__name__)

# LR pixels along each side of the tile, and of the smaller tile that checks a single
# candidate. An ONNX file may fix another size.
TILE = 128
CHECK_TILE = 64

# Timed runs of each candidate after one to warm up, fewer once TRIAL_SECONDS are spent.
ROUNDS = 3
TRIAL_SECONDS = 5.0

# A candidate that takes this many times as long as the best in its first timed run is
# not run again.
HOPELESS = 3.0

# What "auto" may lose in a picture. A reduced precision adds noise to the output; of a
# model with PSNR q against the truth it leaves q - 10 log10(1 + 10^((q - r) / 10)),
# where r is the PSNR of reduced against float32, as long as both errors are
# independent. A loss of 0.05 dB at q = 37 dB (Set5 2x) needs r = 56.3 dB.
MAX_LOSS = 0.05
USUAL_PSNR = 37.0
AUTO_MIN_PSNR = USUAL_PSNR - 10 * math.log10(10 ** (MAX_LOSS / 10) - 1)

# The code that decides which candidate wins; its change makes kept results invalid.
_DECIDING_CODE = (*EXPORTING_CODE, PACKAGE / "runtimes")

# Distributions of the libraries that compute what candidates are checked against.
_REFERENCE_DISTRIBUTIONS = ("torch", *ONNX_RUNTIME_DISTRIBUTIONS)


@dataclass(frozen=True)
class Request:
    """What the user asks for."""

    path: Path
    """A checkpoint or an .onnx file."""
    device: str = "auto"
    precision: str = "auto"
    """Both as for `open_model`."""
    named: bool = False
    """Whether the user named the runtime, which then is not replaced by another."""


@dataclass(frozen=True)
class Candidate:
    """A runtime on a device in a precision."""

    spec: RuntimeSpec
    device: str
    precision: str

    def load(self, path: Path) -> TriedRuntime:
        return _tried_class(self.spec).load(path, self.device, self.precision)

    def __str__(self) -> str:
        precision = "" if self.precision == "auto" else f" in {self.precision}"
        return f"{self.spec.name}{precision} on {self.device}"


def choose(request: Request, specs: Sequence[RuntimeSpec]) -> TriedRuntime:
    """Load a model with the fastest of these runtimes whose output is right.

    Args:
        request: the file and what the user asks for.
        specs: runtimes that load such files; one where the user named it.

    Raises:
        AetherError: when none of them runs the model rightly.
    """
    specs = list(specs) if request.named else _installed(request.path, specs)
    if [spec.name for spec in specs] == ["pytorch"]:
        found = _candidates(request, specs)
        if found == [Candidate(specs[0], "cpu", "float32")]:
            why = "as asked" if request.named else "no other is installed"
            return _explained(found[0].load(request.path), why)
    facts = trial_facts(request, specs)
    kept = _kept_file(facts)
    return _load_kept(request, kept, specs) or _try(request, specs, kept, facts)


def trial_facts(request: Request, specs: Sequence[RuntimeSpec]) -> dict[str, Any]:
    """All that the result of a trial depends on; the key of the kept file."""
    path = request.path
    gpus = [
        torch.cuda.get_device_name(i)
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    versions = {"aethernet": code_version(_DECIDING_CODE), **_versions(specs)}
    return {
        "model": sha256_of(path),
        "kind": path.suffix.lower(),
        "runtimes": [spec.name for spec in specs],
        "asked": [request.device, request.precision, request.named],
        "machine": [processor_name(), os.cpu_count(), torch.get_num_threads(), *gpus],
        "versions": versions,
    }


def seconds(model: TriedRuntime, tile: np.ndarray) -> float:
    """The time that a model takes for a tile."""
    start = time.perf_counter()
    model.run(tile)
    return time.perf_counter() - start


def _load_kept(
    request: Request, kept: Path | None, specs: Sequence[RuntimeSpec]
) -> TriedRuntime | None:
    """The model loaded as an earlier trial found best; None where that is not known."""
    found = _kept_result(read_json(kept), specs) if kept else None
    if found is None:
        return None
    candidate, why = found
    try:
        return _explained(candidate.load(request.path), why)
    except AetherError as error:
        level = logging.INFO if request.named else logging.WARNING
        _log.log(level, "%s was chosen before and fails now: %s", candidate, error)
        return None


def _try(
    request: Request,
    specs: Sequence[RuntimeSpec],
    kept: Path | None,
    facts: dict[str, Any],
) -> TriedRuntime:
    """The model loaded with the winner of a trial, whose result is kept."""
    candidate, model = _Trial(request, _candidates(request, specs)).winner()
    result = {
        "runtime": candidate.spec.name,
        "device": candidate.device,
        "precision": candidate.precision,
        "why": model.why,
        "facts": facts,
    }
    try:
        if kept:
            write_json(kept, result)
    except AetherError as error:  # the next call makes another trial
        _log.info("the result of the trial is not kept: %s", error)
    return model


def _kept_file(facts: dict[str, Any]) -> Path | None:
    """Where the result of a trial is kept; None where there is no place for it."""
    try:
        return file_of("trials", facts)
    except AetherError as error:
        _log.info("the result of the trial is not kept: %s", error)
        return None


def _kept_result(
    kept: dict[str, Any], specs: Sequence[RuntimeSpec]
) -> tuple[Candidate, str] | None:
    """The candidate and the reason in a kept file; None where they are not usable."""
    texts = [kept.get(key) for key in ("runtime", "device", "precision", "why")]
    if not all(isinstance(text, str) for text in texts):
        return None
    runtime, device, precision, why = cast("list[str]", texts)
    for spec in specs:
        if spec.name == runtime and device_kind(device) in spec.devices:
            known = precision in (*PRECISIONS, "auto")
            return (Candidate(spec, device, precision), why) if known else None
    return None


@dataclass(frozen=True)
class _Reference:
    """A tile and the right output for it."""

    tile: np.ndarray
    """`(B, channels, H, W)`, float32, 0..1."""
    expected: np.ndarray
    precision: str
    """What the model file holds."""
    ours: bool
    """Whether the file is of AetherNet, so that its precision can be believed."""

    @classmethod
    def of(cls, path: Path, side: int) -> "_Reference":
        """Run a model plainly: in PyTorch, or without optimisation in ONNX Runtime."""
        if is_checkpoint(path):
            return cls._of_network(load_checkpoint(path).build(), side)
        reference = OnnxRuntime.reference(path)
        batch, channels, height, width = reference.size(1, side, side)
        tile = np.repeat(natural_image(height, width, channels), batch, 0)
        ours = reference.metadata.get("architecture") == "AetherNet"
        return cls(tile, reference.run(tile), reference.precision, ours)

    @classmethod
    def _of_network(cls, network: AetherNet, side: int) -> "_Reference":
        tile = natural_image(side, side, network.in_chans)
        return cls(tile, run_network(network, tile), "float32", True)


class _Trial:
    """Candidates on one tile: first the check of their output, then the clock."""

    def __init__(self, request: Request, candidates: Sequence[Candidate]) -> None:
        self.path, self.candidates = request.path, candidates
        # Where the user asked for no precision, none may be visible in a picture.
        self.cautious = request.precision == "auto"
        side = TILE if len(candidates) > 1 else CHECK_TILE
        self.reference = _Reference.of(request.path, side)
        self.able: dict[Candidate, TriedRuntime] = {}
        self.failures: dict[Candidate, AetherError] = {}

    def winner(self) -> tuple[Candidate, TriedRuntime]:
        """The fastest candidate whose output is right, loaded, with its reason.

        Raises:
            AetherError: when there is none: the failure of the first candidate.
        """
        for candidate in self.candidates:
            if not self._is_superfluous(candidate):
                self._check(candidate)
        if not self.able:
            raise next(iter(self.failures.values()))
        self._report_failures()
        if len(self.able) > 1:
            return self._fastest()
        (candidate, model) = next(iter(self.able.items()))
        alone = len(self.candidates) == 1
        why = "nothing else to try" if alone else "the only one that works here"
        return candidate, _explained(model, why)

    def _is_superfluous(self, candidate: Candidate) -> bool:
        """Whether earlier candidates already show that this one is not needed."""
        better_device_works = any(
            candidate.spec == other.spec and candidate.device != other.device
            for other in self.able
        )
        does_not_start_there = any(
            candidate.spec == other.spec and candidate.device == other.device
            for other, failure in self.failures.items()
            if not isinstance(failure, VerificationError)
        )
        return better_device_works or does_not_start_there

    def _check(self, candidate: Candidate) -> None:
        """Load a candidate and compare its output for the tile with the reference."""
        _log.info("trying %s", candidate)
        try:
            model = candidate.load(self.path)
            self._check_output(candidate, model)
        except AetherError as error:
            self.failures[candidate] = error
        except Exception as error:  # from a library: the other candidates may work
            reason = f"{type(error).__name__}: {first_line(error)}"
            self.failures[candidate] = AetherError(reason)
        else:
            self.able[candidate] = model

    def _check_output(self, candidate: Candidate, model: TriedRuntime) -> None:
        expected = self.reference.expected
        output = model.run(self.reference.tile)
        if output.shape != expected.shape:
            raise VerificationError(
                f"{candidate} is not used: its output has the shape {[*output.shape]}, "
                f"the reference has {[*expected.shape]}."
            )
        precision = model.describe().precision
        if self.reference.ours and precision == self.reference.precision == "float32":
            allowed = FLOAT32_ATOL + FLOAT32_RTOL * np.abs(expected)
            right = bool((np.abs(output - expected) <= allowed).all())
            limit = f"atol {FLOAT32_ATOL:g}"
        else:
            least = self._least_psnr(precision)
            right = compare(output, expected).psnr >= least
            limit = f"{least:.1f} dB"
        if not right:
            raise VerificationError(
                f"{candidate} is not used: its output differs from the reference on a "
                f"tile, {compare(output, expected)}, and the limit is {limit}."
            )

    def _least_psnr(self, precision: str) -> float:
        """The PSNR in dB that a candidate in this precision must reach.

        A precision that the user or the file chose has a limit of its own.
        """
        chosen = {self.reference.precision}
        if not self.cautious:
            chosen.add(precision)
        limits = [MIN_PSNR[name] for name in chosen if name in MIN_PSNR]
        return min(limits, default=AUTO_MIN_PSNR)

    def _report_failures(self) -> None:
        for candidate, failure in self.failures.items():
            # A reduced precision that does not suit a model is no defect.
            unsuited = (
                isinstance(failure, VerificationError)
                and candidate.precision in MIN_PSNR
                and self.cautious
            )
            level = logging.INFO if unsuited else logging.WARNING
            _log.log(level, "%s is skipped: %s", candidate, failure)

    def _fastest(self) -> tuple[Candidate, TriedRuntime]:
        times = self._time()
        ranking = sorted(self.able, key=times.__getitem__)
        best, other = ranking[0], ranking[1]
        for candidate in ranking:
            usual = (candidate.spec.name, candidate.precision)
            if candidate != best and usual == ("onnxruntime", "float32"):
                other = candidate  # what most people would have run
        than = self.able[other].describe()
        height, width = self.reference.tile.shape[-2:]
        why = (
            f"fastest of {len(self.able)} tried on a {width}x{height} tile, "
            f"{times[best] / times[other]:.2f} of the time of {than.runtime} "
            f"{than.precision} on {than.device}"
        )
        return best, _explained(self.able[best], why)

    def _time(self) -> dict[Candidate, float]:
        """Median seconds of each, run in turns so that a busy machine slows all."""
        tile = self.reference.tile
        times = {c: [seconds(model, tile)] for c, model in self.able.items()}
        best = min(first for (first,) in times.values())
        fast = [c for c, (first,) in times.items() if first <= HOPELESS * best]
        spent = sum(first for (first,) in times.values())
        rounds = 1
        while len(fast) > 1 and rounds < ROUNDS and spent < TRIAL_SECONDS:
            for candidate in fast:
                times[candidate].append(seconds(self.able[candidate], tile))
                spent += times[candidate][-1]
            rounds += 1
        medians = {c: statistics.median(values) for c, values in times.items()}
        for candidate, median in medians.items():
            _log.info("%s: %.0f ms", candidate, 1000 * median)
        return medians


def _tried_class(spec: RuntimeSpec) -> type[TriedRuntime]:
    return cast("type[TriedRuntime]", spec.import_class())


def _explained(model: TriedRuntime, why: str) -> TriedRuntime:
    model.why = why
    return model


def _candidates(request: Request, specs: Iterable[RuntimeSpec]) -> list[Candidate]:
    found = []
    device, precision = request.device, request.precision
    for spec in specs:
        cls = _tried_class(spec)
        try:
            pairs = [
                (where, one)
                for where in (cls.devices() if device == "auto" else (device,))
                for one in (
                    cls.precisions(request.path, where)
                    if precision == "auto"
                    else (precision,)
                )
            ]
        except AetherError:  # loading will raise it again, and the trial notes it
            pairs = [(device, precision)]
        found += [Candidate(spec, *pair) for pair in pairs]
    return found


def _versions(specs: Iterable[RuntimeSpec]) -> dict[str, str]:
    """Versions of the installed distributions that decide the result of a trial."""
    names = [*_REFERENCE_DISTRIBUTIONS]
    for spec in specs:
        names += spec.distributions
        names += (name for group in spec.checkpoint_needs for name in group)
    return installed_versions(dict.fromkeys(names))


def _installed(path: Path, specs: Sequence[RuntimeSpec]) -> list[RuntimeSpec]:
    """The runtimes whose libraries are installed; the first where none are.

    The first then raises the error that says what to install.
    """
    versions = _versions(specs)
    found = []
    for spec in specs:
        needs = [spec.distributions]
        if is_checkpoint(path):
            needs += spec.checkpoint_needs
        if all(any(name in versions for name in group) for group in needs):
            found.append(spec)
        elif spec.extra:
            _log.debug("%s needs the extra %r to be tried", spec.name, spec.extra)
    return found or [specs[0]]
