"""Which runtime takes a model: a short trial, checked, whose outcome is kept."""

import hashlib
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from aethernet.cache import cache_folder, code_version, read_json, write_json
from aethernet.checkpoints.checkpoint import is_checkpoint, load_checkpoint
from aethernet.checkpoints.tolerances import FLOAT32_ATOL, FLOAT32_RTOL, MIN_PSNR
from aethernet.checkpoints.verification import compare, exact_float32, natural_image
from aethernet.devices import device_kind, processor_name
from aethernet.errors import AetherError, VerificationError, import_optional
from aethernet.files import sha256_of
from aethernet.runtimes.base import PRECISIONS, TriedRuntime
from aethernet.runtimes.registry import DEVICES, runtime_class

if TYPE_CHECKING:
    from aethernet.runtimes.onnxruntime import OnnxRuntime


_log = logging.getLogger(__name__)

# LR pixels along each side of what is tried, and of what is only checked because there
# is nothing to choose from; an ONNX file may fix another size.
TILE = 128

CHECK_TILE = 64

# Timed runs of each after one to warm up, less where `TRIAL_SECONDS` are spent before.
ROUNDS = 3

TRIAL_SECONDS = 5.0

# Who takes this many times as long as the best in its first timed run is not run again.
HOPELESS = 3.0

# What "auto" may lose in a picture. A reduced precision adds noise to the output; of a
# model with PSNR q against the truth it leaves q - 10 log10(1 + 10^((q - r) / 10)),
# where r is the PSNR of reduced against float32, as long as both errors are
# independent. A loss of 0.05 dB at q = 37 dB (Set5 2x) needs r = 56.3 dB.
MAX_LOSS = 0.05

USUAL_PSNR = 37.0

AUTO_MIN_PSNR = USUAL_PSNR - 10 * math.log10(10 ** (MAX_LOSS / 10) - 1)

# Distributions that bring a runtime's library; any one will do.
_LIBRARIES = {
    "pytorch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"),
    "openvino": ("openvino",),
}

# What else it takes to run a checkpoint in one that takes ONNX files.
_EXPORTER = ("onnx", "onnxscript")


@dataclass(frozen=True)
class Candidate:
    """What can be loaded: a key of `RUNTIMES`, a device, a precision."""

    runtime: str
    device: str
    precision: str

    def load(self, path: Path) -> TriedRuntime:
        cls = _tried_class(self.runtime)
        return cls.load(path, self.device, self.precision)

    def __str__(self) -> str:
        precision = "" if self.precision == "auto" else f" in {self.precision}"
        return f"{self.runtime}{precision} on {self.device}"


def choose(
    path: Path, runtimes: Sequence[str], device: str, precision: str, named: bool
) -> TriedRuntime:
    """Load a model with the fastest of these runtimes that computes it rightly.

    Args:
        path: a checkpoint or an .onnx file.
        runtimes: keys of `RUNTIMES` that load such files.
        device, precision: as for `open_model`.
        named: the user named the one runtime, which is not left for another.

    Raises:
        AetherError: when none of them does.
    """
    names = list(runtimes) if named else _installed(path, runtimes)
    if names == ["pytorch"]:
        sole = [*_candidates(path, names, device, precision)]
        if sole == [Candidate("pytorch", "cpu", "float32")]:
            why = "as asked" if named else "no other is installed"
            return _explained(sole[0].load(path), why)
    facts = _facts(path, names, device, precision, named)
    kept = _kept_outcome(facts)
    found = _outcome(read_json(kept), names) if kept else None
    if found:
        candidate, why = found
        try:
            return _explained(candidate.load(path), why)
        except AetherError as error:
            level = logging.INFO if named else logging.WARNING
            _log.log(level, "%s was taken before, and fails now: %s", candidate, error)
    candidates = _candidates(path, names, device, precision)
    candidate, model = _Trial(path, candidates, precision == "auto").outcome()
    outcome = {**asdict(candidate), "why": model.why, "facts": facts}
    try:
        if kept:
            write_json(kept, outcome)
    except AetherError as error:  # then it is tried again next time
        _log.info("the outcome is not kept: %s", error)
    return model


def _kept_outcome(facts: dict[str, Any]) -> Path | None:
    """Where the outcome of a trial is kept; None where there is no place for it."""
    try:
        return cache_folder() / "trials" / f"{_digest(facts)}.json"
    except AetherError as error:
        _log.info("the outcome is not kept: %s", error)
        return None


def seconds(model: TriedRuntime, tile: np.ndarray) -> float:
    start = time.perf_counter()
    model.run(tile)
    return time.perf_counter() - start


class _Trial:
    """Candidates on one tile: first whether they are right, then how fast."""

    def __init__(
        self, path: Path, candidates: Sequence[Candidate], cautious: bool
    ) -> None:
        """`cautious` where the user asked for no precision, so that none may show."""
        self.path, self.candidates, self.cautious = path, candidates, cautious
        side = TILE if len(candidates) > 1 else CHECK_TILE
        if is_checkpoint(path):
            self.held, self.ours = "float32", True
            network = load_checkpoint(path).build()
            network.to(memory_format=torch.channels_last)
            image = natural_image(side, side, network.in_chans)
            with torch.inference_mode(), exact_float32():
                self.expected = network(image)
            self.tile = image.numpy()
            return
        reference = _reference(path)
        # Ours say in which precision they are; in a file of others anything may hide.
        self.held = reference.precision
        self.ours = reference.metadata.get("architecture") == "AetherNet"
        batch, channels, height, width = reference.size(1, side, side)
        image = natural_image(height, width, channels).expand(batch, -1, -1, -1)
        self.tile = image.contiguous().numpy()
        self.expected = torch.from_numpy(reference.run(self.tile))

    def outcome(self) -> tuple[Candidate, TriedRuntime]:
        """The fastest of those that are right, with its reason.

        Raises:
            AetherError: when none is: what stopped the first.
        """
        able: dict[Candidate, TriedRuntime] = {}
        failures: list[tuple[Candidate, AetherError]] = []
        for candidate in self.candidates:
            if any(
                candidate.runtime == other.runtime and candidate.device != other.device
                for other in able
            ):
                continue  # the same library works on a better device
            if any(
                candidate.runtime == other.runtime and candidate.device == other.device
                for other, failure in failures
                if not isinstance(failure, VerificationError)
            ):
                continue  # it does not start there, in whatever precision
            _log.info("trying %s", candidate)
            try:
                model = candidate.load(self.path)
                self._check(model, candidate)
            except AetherError as error:
                failures.append((candidate, error))
            except Exception as error:  # of a library: the others may still do
                failure = AetherError(f"{type(error).__name__}: {error}")
                failures.append((candidate, failure))
            else:
                able[candidate] = model
        if not able:
            raise failures[0][1]
        for candidate, failure in failures:
            # That a reduced precision does not suit a model is no defect of anything.
            unsuited = (
                isinstance(failure, VerificationError)
                and candidate.precision in MIN_PSNR
                and self.cautious
            )
            level = logging.INFO if unsuited else logging.WARNING
            _log.log(level, "%s is left out: %s", candidate, failure)
        if len(able) == 1:
            (candidate, model) = next(iter(able.items()))
            alone = len(self.candidates) == 1
            why = "nothing else to try" if alone else "the only one that works here"
            return candidate, _explained(model, why)
        times = self._time(able)
        ranking = sorted(able, key=times.__getitem__)
        best, other = ranking[0], ranking[1]
        for candidate in ranking:
            usual = (candidate.runtime, candidate.precision)
            if candidate != best and usual == ("onnxruntime", "float32"):
                other = candidate  # what most people would have run
        than = able[other].describe()
        height, width = self.tile.shape[-2:]
        why = (
            f"fastest of {len(able)} tried on a {width}x{height} tile, "
            f"{times[best] / times[other]:.2f} of the time of {than.runtime} "
            f"{than.precision} on {than.device}"
        )
        return best, _explained(able[best], why)

    def _check(self, model: TriedRuntime, candidate: Candidate) -> None:
        """Run the tile for the first time, and look at what comes out."""
        output = torch.from_numpy(model.run(self.tile))
        if output.shape != self.expected.shape:
            raise VerificationError(
                f"{candidate} makes {[*output.shape]} where {[*self.expected.shape]} "
                "is right."
            )
        difference = compare(output, self.expected)
        precision = model.describe().precision
        if self.ours and precision == self.held == "float32":
            allowed = FLOAT32_ATOL + FLOAT32_RTOL * self.expected.abs()
            close = (output - self.expected).abs() <= allowed
            right, limit = bool(close.all()), f"atol {FLOAT32_ATOL:g}"
        else:
            # The user chose what the file holds, and what was asked for by name.
            chosen = {self.held} if self.cautious else {self.held, precision}
            bars = [MIN_PSNR[name] for name in chosen if name in MIN_PSNR]
            least = min(bars, default=AUTO_MIN_PSNR)
            right, limit = difference.psnr >= least, f"{least:.1f} dB"
        if not right:
            raise VerificationError(
                f"{candidate} differs from the reference on a tile: {difference}, "
                f"where {limit} is the limit; it is not used."
            )

    def _time(self, able: dict[Candidate, TriedRuntime]) -> dict[Candidate, float]:
        """Median seconds of each, run in turns so that a busy machine hits all."""
        times = {c: [seconds(model, self.tile)] for c, model in able.items()}
        best = min(first for (first,) in times.values())
        fast = [c for c, (first,) in times.items() if first <= HOPELESS * best]
        spent = sum(first for (first,) in times.values())
        rounds = 1
        while len(fast) > 1 and rounds < ROUNDS and spent < TRIAL_SECONDS:
            for candidate in fast:
                times[candidate].append(seconds(able[candidate], self.tile))
                spent += times[candidate][-1]
            rounds += 1
        medians = {c: statistics.median(values) for c, values in times.items()}
        for candidate, median in medians.items():
            _log.info("%s: %.0f ms", candidate, 1000 * median)
        return medians


def _tried_class(name: str) -> type[TriedRuntime]:
    return cast("type[TriedRuntime]", runtime_class(name))


def _explained(model: TriedRuntime, why: str) -> TriedRuntime:
    model.why = why
    return model


def _reference(path: Path) -> "OnnxRuntime":
    """An .onnx file in ONNX Runtime on the CPU, nothing optimised."""
    import_optional("onnxruntime", "onnx")
    from aethernet.runtimes.onnxruntime import OnnxRuntime

    return OnnxRuntime.reference(path)


def _candidates(
    path: Path, names: Sequence[str], device: str, precision: str
) -> list[Candidate]:
    found = []
    for name in names:
        cls = _tried_class(name)
        try:
            pairs = [
                (where, one)
                for where in (cls.devices() if device == "auto" else (device,))
                for one in (
                    cls.precisions(path, where) if precision == "auto" else (precision,)
                )
            ]
        except AetherError:  # which loading will raise again, for the trial to judge
            pairs = [(device, precision)]
        found += [Candidate(name, *pair) for pair in pairs]
    return found


def _versions() -> dict[str, str]:
    """Of the libraries that decide what there is to try, those installed."""
    found = {}
    for name in (*(n for names in _LIBRARIES.values() for n in names), *_EXPORTER):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _installed(path: Path, runtimes: Sequence[str]) -> list[str]:
    """Those of the runtimes whose libraries are there; the first where none are."""
    versions = _versions()

    def has(name: str) -> bool:
        return any(library in versions for library in _LIBRARIES[name])

    found = [name for name in runtimes if has(name)]
    if is_checkpoint(path):
        can_export = has("onnxruntime") and all(e in versions for e in _EXPORTER)
        found = [name for name in found if name == "pytorch" or can_export]
    return found or [runtimes[0]]


def _facts(
    path: Path, names: Sequence[str], device: str, precision: str, named: bool
) -> dict[str, Any]:
    """All that the outcome of a trial depends on."""
    gpus = [
        torch.cuda.get_device_name(i)
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    return {
        "model": sha256_of(path),
        "kind": path.suffix.lower(),
        "runtimes": [*names],
        "asked": [device, precision, named],
        "machine": [processor_name(), os.cpu_count(), torch.get_num_threads(), *gpus],
        "versions": {"aethernet": code_version(), **_versions()},
    }


def _digest(facts: dict[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _outcome(
    kept: dict[str, Any], names: Sequence[str]
) -> tuple[Candidate, str] | None:
    """What a kept file says, or None where it says nothing of use."""
    words = [kept.get(key) for key in ("runtime", "device", "precision", "why")]
    if not all(isinstance(word, str) for word in words):
        return None
    runtime, device, precision, why = cast("list[str]", words)
    known = runtime in names and device_kind(device) in DEVICES[runtime]
    if not known or precision not in (*PRECISIONS, "auto"):
        return None
    return Candidate(runtime, device, precision), why
