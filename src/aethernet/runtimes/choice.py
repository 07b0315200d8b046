"""Choose the runtime for a model: the usual one at once, another after a trial.

The runtimes that could run the model, each on each device and in each precision worth
trying, are *candidates*, in the order in which they are known to be fast. The first
that works is the *usual* one. For long work a trial may find a faster one; its result
is kept (`trial` measures).
"""

import functools
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aethernet.cache import code_version, file_of, read_json, write_json
from aethernet.checkpoints.formats import is_checkpoint
from aethernet.devices import (
    device_kind,
    has_reduced_precision_units,
    installed_versions,
    processor_name,
)
from aethernet.errors import AetherError, VerificationError
from aethernet.runtimes.base import (
    ONNX_RUNTIME_DISTRIBUTIONS,
    PRECISIONS,
    ModelFile,
    RuntimeSpec,
    TriedRuntime,
)
from aethernet.runtimes.hardware import find_gpus
from aethernet.runtimes.onnx_files import EXPORTING_CODE, allowed_threads
from aethernet.runtimes.support import may_use_gpu
from aethernet.runtimes.trial import (
    TRIAL_SECONDS,
    Candidate,
    Trial,
    Verdict,
    tried_class,
)
from aethernet.version import PACKAGE

_log = logging.getLogger(__name__)

# Runtimes, fastest first, as benchmarks found them; others come after these. GPUs of
# other kinds may be slower than the processor beside them, which only a trial shows.
ON_CPU = ("native", "onnxruntime", "openvino", "pytorch")
ON_GPU = ("pytorch", "onnxruntime", "openvino")
_FAST_GPUS = ("cuda", "mps")
_PRECISIONS_ON_GPU = ("float16", "float32", "auto", "bfloat16")

# Whether a trial is worth its time is estimated: multiply-adds per second on a
# processor and on a GPU, seconds to load a candidate, and the part of the time that
# another runtime saves at best. Each weight is used about once for a pixel of the
# input, and takes four bytes in the file.
_RATES = {True: 2e10, False: 2e12}
_LOADING_SECONDS = 3.0
_MOST_SAVED = 0.5
_BYTES_OF_WEIGHT = 4

# A trial whose rounds disagree is made again in later runs, until there were so many.
# The usual candidate then stays, unless the last trial found a clear win.
MOST_TRIALS = 5

# The code that decides which candidate wins; its change makes kept results invalid.
_DECIDING_CODE = (*EXPORTING_CODE, PACKAGE / "runtimes")

# Distributions of the libraries that compute what candidates are checked against.
_REFERENCE_DISTRIBUTIONS = ("numpy", *ONNX_RUNTIME_DISTRIBUTIONS)


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
    img_range: float | None = None
    """Of a checkpoint, as for `open_model`."""
    pixels: Callable[[], float] = lambda: math.inf
    """Finds how many LR pixels will be upscaled; called if a trial might be made."""


@dataclass(frozen=True)
class _Kept:
    """What an earlier run found."""

    candidate: Candidate
    why: str
    settled: bool
    """Whether no later trial can find something else."""
    trials: int


def choose(request: Request, specs: Sequence[RuntimeSpec]) -> TriedRuntime:
    """Load a model with the fastest of these runtimes whose output is right.

    Args:
        request: the file and what the user asks for.
        specs: runtimes that load such files; one where the user named it.

    Raises:
        AetherError: when none of them runs the model rightly.
    """
    return _Choice(request, specs).model()


def try_all(request: Request, specs: Sequence[RuntimeSpec]) -> Verdict:
    """Make a trial of all candidates now; later calls of `choose` use its result.

    Raises:
        AetherError: when none of them runs the model rightly.
    """
    return _Choice(request, specs).try_all()


def trial_facts(
    request: Request, specs: Sequence[RuntimeSpec], file: ModelFile
) -> dict[str, Any]:
    """All that the result of a trial depends on; the key of the kept file.

    Args:
        request: what the user asks for.
        specs: the runtimes that take part.
        file: the model, which gives its digest.
    """
    versions = {"aethernet": code_version(_DECIDING_CODE), **_versions(specs)}
    gpus = map(str, find_gpus())
    return {
        "model": file.digest,
        "kind": file.path.suffix.lower(),
        "runtimes": [spec.name for spec in specs],
        "asked": [request.device, request.precision, request.named],
        "machine": [processor_name(), os.cpu_count(), allowed_threads(), *gpus],
        "versions": versions,
    }


class _Choice:
    """The choice for one request."""

    def __init__(self, request: Request, specs: Sequence[RuntimeSpec]) -> None:
        able = [*specs] if request.named else _installed(request, specs)
        self.request, self.specs = request, able
        self.file = ModelFile(request.path, request.img_range)
        self.candidates = _candidates(request, able)
        # Whether lower precisions on the processor may be missing from these: asking
        # for them imports libraries, and is put off until a trial may be worth it.
        self.may_lower = (
            request.precision == "auto"
            and not request.named
            and has_reduced_precision_units()
            and any(map(_may_lower, self.candidates))
        )
        # Where the user asked for no precision, none may be visible in a picture.
        self.trial = Trial(self.file, request.precision == "auto")

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        return trial_facts(self.request, self.specs, self.file)

    @functools.cached_property
    def kept_file(self) -> Path | None:
        """Where the result is kept; None where there is no place for it."""
        try:
            return file_of("trials", self.facts)
        except AetherError as error:
            _log.info("the result of the trial is not kept: %s", error)
            return None

    def _add_lower_precisions(self) -> None:
        """Ask the libraries for lower precisions on the processor, once."""
        if not self.may_lower:
            return
        self.may_lower = False
        for each in [*filter(_may_lower, self.candidates)]:
            self.candidates += _lowered(each, self.request.path)
        self.candidates.sort(key=_order)

    def model(self) -> TriedRuntime:
        if self._nothing_to_check():
            why = "as asked" if self.request.named else "no other is installed"
            return _explained(self.candidates[0].load(self.file), why)
        kept = self._kept()
        # Without a trial, what checks itself is taken, although something else was
        # kept when it did not work.
        if (
            kept
            and (kept.trials or not self._first_proves_itself())
            and (kept.settled or not self._is_long(kept.candidate))
            and (found := self._load(kept))
        ):
            self._report_failures()
            return found
        usual, model = self.trial.first(self.candidates)
        if self._is_long(usual):
            verdict = self._try(usual, self._rivals(usual), kept.trials if kept else 0)
            return _explained(self.trial.able[verdict.winner], verdict.why)
        self._report_failures()
        may_be_beaten = self._may_be_beaten(usual)
        why = self._why_usual(may_be_beaten)
        if not usual.spec.proven:  # or nothing was found out
            self._keep(_Kept(usual, why, not may_be_beaten, 0))
        return _explained(model, why)

    def _first_proves_itself(self) -> bool:
        """Whether the first candidate works and has a proof of its own."""
        first = self.candidates[0]
        return first.spec.proven and self.trial.works(first)

    def try_all(self) -> Verdict:
        self._add_lower_precisions()
        usual, _ = self.trial.first(self.candidates)
        others = [each for each in self.candidates if each != usual]
        return self._try(usual, others, 0)

    def _nothing_to_check(self) -> bool:
        """Whether there is only what computes the network as it stands.

        Or what checks itself, and is an error for the user who named it.
        """
        if len(self.candidates) == 1:  # whose library is imported anyway
            self._add_lower_precisions()
        if len(self.candidates) != 1:
            return False
        (only,) = self.candidates
        plain = (only.spec.name, *(only.device, only.precision))
        named = self.request.named and only.spec.proven
        return named or plain == ("pytorch", "cpu", "float32")

    def _is_long(self, usual: Candidate) -> bool:
        """Whether another than this candidate could save more than a trial takes."""
        if not self._may_be_beaten(usual):
            return False
        try:
            weights = self.file.path.stat().st_size / _BYTES_OF_WEIGHT
        except OSError:  # loading it reports that
            return False
        saved = self.request.pixels() * weights / _RATES[usual.on_cpu] * _MOST_SAVED
        if saved <= _trial_seconds(2):  # with one rival
            return False
        self._add_lower_precisions()
        rivals = self._rivals(usual)
        return bool(rivals) and saved > _trial_seconds(len(rivals) + 1)

    def _may_be_beaten(self, usual: Candidate) -> bool:
        """Whether a candidate may be faster than the usual one; imports no library."""
        on_fast_gpu = device_kind(usual.device) in _FAST_GPUS
        return (self.may_lower and not on_fast_gpu) or bool(self._rivals(usual))

    def _rivals(self, usual: Candidate) -> list[Candidate]:
        """Candidates that may work and be faster than the usual one."""
        others = [
            each
            for each in self.candidates
            if each != usual and each not in self.trial.failures
        ]
        if usual.spec.proven:  # what a processor computes fastest
            return [each for each in others if not (each.on_cpu and each.is_plain)]
        if device_kind(usual.device) in _FAST_GPUS:
            return [each for each in others if not each.on_cpu]
        return others

    def _why_usual(self, may_be_beaten: bool) -> str:
        if may_be_beaten:
            return "the fastest known here; no trial for so little work"
        if len(self.candidates) == 1:
            return "nothing else to try"
        if self.trial.failures:
            return "the only one that works here"
        return "the fastest known here"

    def _try(
        self, usual: Candidate, others: Sequence[Candidate], trials: int
    ) -> Verdict:
        """Make a trial and keep its result."""
        seconds = _trial_seconds(len(others) + 1)
        _log.warning(
            "comparing the speed of %d runtimes for this model, once (up to %.0f s)",
            *(len(others) + 1, seconds),
        )
        for candidate in others:
            self.trial.works(candidate)
        verdict = self.trial.race(usual)
        self._report_failures()
        trials += 1
        settled = verdict.agreed or trials >= MOST_TRIALS
        self._keep(_Kept(verdict.winner, verdict.why, settled, trials))
        return verdict

    def _report_failures(self) -> None:
        for candidate, failure in self.trial.failures.items():
            text = f"{candidate} is skipped: {failure}"
            if self.trial.is_no_defect(candidate):
                _log.info(text)
            elif candidate.spec.proven and not isinstance(failure, VerificationError):
                warn_once(text)  # the same for every model
            else:
                _log.warning(text)

    def _kept(self) -> _Kept | None:
        """What is kept for these facts; None where that is nothing usable."""
        found = read_json(self.kept_file) if self.kept_file else {}
        texts = [found.get(key) for key in ("runtime", "device", "precision", "why")]
        settled, trials = found.get("settled"), found.get("trials")
        if not (
            all(isinstance(text, str) for text in texts)
            and isinstance(settled, bool)
            and isinstance(trials, int)
        ):
            return None
        name, device, precision, why = map(str, texts)
        for spec in self.specs:
            device_fits = device_kind(device) in spec.devices
            known = device_fits and precision in ("auto", *PRECISIONS)
            if spec.name == name and known:
                return _Kept(Candidate(spec, device, precision), why, settled, trials)
        return None

    def _load(self, kept: _Kept) -> TriedRuntime | None:
        """The model as it was found best; None where it fails now."""
        try:
            return _explained(kept.candidate.load(self.file), kept.why)
        except AetherError as error:
            level = logging.INFO if self.request.named else logging.WARNING
            text = "%s was chosen before and fails now: %s"
            _log.log(level, text, kept.candidate, error)
            return None

    def _keep(self, result: _Kept) -> None:
        if self.kept_file is None:
            return
        content = {
            "runtime": result.candidate.spec.name,
            "device": result.candidate.device,
            "precision": result.candidate.precision,
            "why": result.why,
            "settled": result.settled,
            "trials": result.trials,
            "facts": self.facts,
        }
        try:
            write_json(self.kept_file, content)
        except AetherError as error:  # the next call finds it out again
            _log.info("the result of the trial is not kept: %s", error)


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning, the first time that it is given."""
    _log.warning(text)


def _trial_seconds(candidates: int) -> float:
    return candidates * _LOADING_SECONDS + TRIAL_SECONDS


def _explained(model: TriedRuntime, why: str) -> TriedRuntime:
    model.why = why
    return model


def _candidates(request: Request, specs: Sequence[RuntimeSpec]) -> list[Candidate]:
    """What may run the model, in the order in which it is known to be fast.

    Without lower precisions on the processor that the user has not asked for.
    """
    # A library that is named is asked, since it is loaded anyway.
    ask = request.named or may_use_gpu(spec.name for spec in specs)
    found = [
        Candidate(spec, *pair)
        for spec in specs
        for pair in _devices_and_precisions(request, spec, ask)
    ]
    return sorted(found, key=_order)


def _devices_and_precisions(
    request: Request, spec: RuntimeSpec, ask: bool
) -> list[tuple[str, str]]:
    """Pairs worth trying.

    Args:
        request: what the user asks for.
        spec: the runtime.
        ask: ask its library for its devices.
    """
    plain = "float32" if is_checkpoint(request.path) else "auto"
    try:
        devices: Sequence[str] = (request.device,)
        if request.device == "auto":
            devices = tried_class(spec).devices() if ask else ("cpu",)
        pairs = []
        for device in devices:
            precisions: Sequence[str] = (plain,)
            on_gpu = device_kind(device) != "cpu"
            if request.precision != "auto":
                precisions = (request.precision,)
            elif request.named or on_gpu:
                precisions = tried_class(spec).precisions(request.path, device)
            pairs += [(device, precision) for precision in precisions]
    except AetherError:  # loading will raise it again, and the trial notes it
        return [(request.device, request.precision)]
    return pairs


def _may_lower(candidate: Candidate) -> bool:
    return candidate.on_cpu and candidate.spec.lower_on_cpu


def _lowered(candidate: Candidate, path: Path) -> list[Candidate]:
    """A candidate in the lower precisions that its library has for this file."""
    try:
        precisions = tried_class(candidate.spec).precisions(path, candidate.device)
    except AetherError:  # the candidate itself fails, too, which the trial notes
        return []
    found = [replace(candidate, precision=precision) for precision in precisions]
    return [each for each in found if not each.is_plain]


def _order(candidate: Candidate) -> tuple[int, int, int]:
    kind, name = device_kind(candidate.device), candidate.spec.name
    group = 0 if kind in _FAST_GPUS else 1 if kind == "cpu" else 2
    known = ON_CPU if kind == "cpu" else ON_GPU
    place = known.index(name) if name in known else len(known)
    if kind == "cpu":
        return group, 0 if candidate.is_plain else 1, place
    return group, place, _PRECISIONS_ON_GPU.index(candidate.precision)


def _versions(specs: Sequence[RuntimeSpec]) -> dict[str, str]:
    """Versions of the installed distributions that decide the result of a trial."""
    names = [*_REFERENCE_DISTRIBUTIONS]
    for spec in specs:
        names += spec.distributions
        names += (name for group in spec.checkpoint_needs for name in group)
    return installed_versions(dict.fromkeys(names))


def _installed(request: Request, specs: Sequence[RuntimeSpec]) -> list[RuntimeSpec]:
    """The runtimes whose libraries are installed; the first where none are.

    The first then raises the error that says what to install.
    """
    versions = _versions(specs)
    found = []
    for spec in specs:
        if request.precision not in ("auto", *spec.precisions):
            continue
        needs = [spec.distributions]
        if is_checkpoint(request.path):
            needs += spec.checkpoint_needs
        if all(any(name in versions for name in group) for group in needs):
            found.append(spec)
        elif spec.extra:
            _log.debug("%s needs the extra %r to be tried", spec.name, spec.extra)
    return found or [specs[0]]
