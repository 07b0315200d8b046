"""What a benchmark compares, and the files that it is loaded from."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from aethernet.aether_core import VARIANTS, AetherNet
from aethernet.bench.peer_networks import build_peer, count_multiply_adds, peer_onnx
from aethernet.bench.peers import PEERS
from aethernet.bench.torch_exporter import plain_onnx
from aethernet.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from aethernet.checkpoints.info import multiply_adds_per_pixel
from aethernet.checkpoints.onnx import (
    ExportOptions,
    ShapeRange,
    export_onnx,
)
from aethernet.checkpoints.rewrites import exact_float32, fold_network, rewritten
from aethernet.devices import device_kind
from aethernet.errors import AetherError
from aethernet.runtimes.registry import (
    RUNTIMES,
    open_model,
    runtime_class,
    runtimes_for,
)
from aethernet.runtimes.tensorrt.build import build_engine

# Forms of a network. The first two are PyTorch eager, channels last; the plain export
# has no rewrites; rewritten is what `aethernet upscale` runs.
TRAINING, FUSED, PLAIN = "training form", "fused form", "plain export"
REWRITTEN, PUBLISHED = "rewritten", "as published"


@dataclass(frozen=True)
class BenchPlan:
    """What to compare, and for how long."""

    scale: int = 2
    width: int = 128
    height: int = 128
    """Of the LR image, in pixels."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    peers: tuple[str, ...] = tuple(PEERS)
    runtimes: tuple[str, ...] = field(default_factory=lambda: runtimes_for("cpu"))
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    model: Checkpoint | None = None
    """Compared in every form, and as --runtime auto runs it; RGB, of `scale`."""
    runs: int = 10
    """Rounds, at most."""
    seconds: float = 30
    """A contender that has run for so long is left out of the later rounds."""
    device: str = "cpu"
    memory: bool = True
    """Measure peak memory too, in one process for each contender (some seconds)."""
    cpu_time: bool = False
    """Show processor time too, and ratios of it."""

    def __post_init__(self) -> None:
        sizes = (self.width, self.height, self.runs)
        if min(sizes) < 1 or not 0 < self.seconds < math.inf:
            raise AetherError(
                "Size, runs and seconds must be above 0, not "
                f"{self.width}x{self.height}, {self.runs} and {self.seconds:g}."
            )


@dataclass(frozen=True)
class Contender:
    """A network in one form on one runtime."""

    network: str
    """Variant, key of `PEERS`, or name of the model's file."""
    kind: str
    """One of "variant", "model" and "peer"."""
    form: str
    runtime: str
    """A name in `RUNTIMES`, or "auto"."""
    precision: str
    scale: int

    def __str__(self) -> str:
        return f"{self.network}, {self.form}, {self.runtime} {self.precision}"


class TimedModel(Protocol):
    """The part of a `runtimes.base.Model` that a benchmark uses."""

    def run(self, batch: np.ndarray) -> np.ndarray: ...
    def describe(self) -> Any: ...


class _EagerModel:
    """A network in PyTorch as it is, with the interface of a runtime."""

    def __init__(
        self, network: nn.Module, device: str, layout: Any, precision: str = "float32"
    ) -> None:
        self._dtype = getattr(torch, precision)
        self._network = network.to(memory_format=layout).to(device, self._dtype)
        self._device, self._layout, self._precision = device, layout, precision

    @torch.inference_mode()
    def run(self, batch: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(batch).to(
            self._device, self._dtype, memory_format=self._layout
        )
        with exact_float32():
            return self._network(image).float().contiguous().cpu().numpy()

    def describe(self) -> str:
        last = self._layout is torch.channels_last
        layout = "channels last" if last else "contiguous"
        return f"PyTorch {self._precision} on {self._device}: eager, {layout}"


def contenders(plan: BenchPlan) -> list[Contender]:
    """All contenders of a plan, in the order of the rounds and of the table."""
    found: list[Contender] = []

    def add(name: str, kind: str, form: str, runtime: str, precision: str) -> None:
        found.append(Contender(name, kind, form, runtime, precision, plan.scale))

    networks = [(name, "variant") for name in plan.variants]
    if plan.model:
        networks.append((plan.model.path.name, "model"))
    for name, kind in networks:
        if kind == "model":
            add(name, kind, REWRITTEN, "auto", "auto")
        if "onnxruntime" in plan.runtimes:
            add(name, kind, PLAIN, "onnxruntime", "float32")
        if "pytorch" in plan.runtimes:
            add(name, kind, TRAINING, "pytorch", "float32")
            add(name, kind, FUSED, "pytorch", "float32")
        for runtime in plan.runtimes:
            for precision in plan.precisions:
                add(name, kind, REWRITTEN, runtime, precision)
    on_gpu = device_kind(plan.device) != "cpu"
    for name in plan.peers:
        for runtime in plan.runtimes:
            if runtime == "pytorch" and on_gpu:
                for precision in plan.precisions:
                    add(name, "peer", PUBLISHED, runtime, precision)
            elif runtime == "pytorch" or _file_suffix(runtime) == ".onnx":
                add(name, "peer", PUBLISHED, runtime, "float32")
    return found


def load(contender: Contender, file: Path | None, device: str) -> TimedModel:
    """Load a contender from the file that `Workshop.file` made for it.

    Raises:
        AetherError: when it cannot be built or loaded.
    """
    eager = contender.runtime == "pytorch"
    if eager and contender.kind == "peer":
        network = build_peer(contender.network, contender.scale)
        layout = torch.contiguous_format
        return _EagerModel(network, device, layout, contender.precision)
    assert file is not None  # all others are loaded from one
    if eager and contender.form in (TRAINING, FUSED):
        network = load_checkpoint(file).build()
        if contender.form == FUSED:
            network.fuse()
        elif network.is_fused:
            raise AetherError("The file holds the fused form, which has no way back.")
        return _EagerModel(network, device, torch.channels_last)
    if contender.runtime == "auto":
        return open_model(file, "auto", device, "auto")
    # Not `open_model`, which would also run the reference in this process.
    return runtime_class(contender.runtime).load(file, device, contender.precision)


class Workshop:
    """Makes the files that contenders are loaded from, each once."""

    def __init__(self, plan: BenchPlan, folder: Path, device: str) -> None:
        """Prepare for a plan; files are written to `folder`."""
        self.plan, self.device = plan, device
        self._folder = folder
        self._checkpoints: dict[str, Checkpoint] = {}
        self._networks: dict[tuple[str, str, bool], tuple[nn.Module, float]] = {}
        self._files: dict[tuple[str, ...], Path | Exception] = {}

    def network(self, contender: Contender) -> tuple[nn.Module, float]:
        """The contender's network on the CPU, and its multiply-adds per LR pixel."""
        is_rewritten = contender.form == REWRITTEN
        key = contender.kind, contender.network, is_rewritten
        if key not in self._networks:
            plan = self.plan
            network: nn.Module
            if contender.kind == "peer":
                network = build_peer(contender.network, plan.scale)
                count = count_multiply_adds(network, plan.height, plan.width)
            else:
                network = self._build(contender)
                count = multiply_adds_per_pixel(network.hyperparameters)
                if is_rewritten:  # fewer, although the edges are computed twice
                    fewer = rewritten(fold_network(network))
                    count = count_multiply_adds(fewer, plan.height, plan.width)
            self._networks[key] = network, count
        return self._networks[key]

    def _build(self, contender: Contender) -> AetherNet:
        if contender.kind == "model":
            assert self.plan.model is not None
            return self.plan.model.build()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            arguments = VARIANTS[contender.network]
            return AetherNet(**arguments, scale=self.plan.scale).eval()

    def file(self, contender: Contender) -> Path | None:
        """The file to load a contender from; None where it is built by its name.

        Raises:
            Exception: any that making it raised, also the first time.
        """
        form, suffix, precision = _kind_of_file(contender)
        if contender.kind == "peer" and suffix != ".onnx":
            return None
        key = (contender.kind, contender.network, form, suffix, precision)
        if key not in self._files:
            try:
                self._files[key] = self._make(contender, suffix, precision)
            except Exception as error:  # it would fail again
                self._files[key] = error
        made = self._files[key]
        if isinstance(made, Exception):
            raise made
        return made

    def _make(self, contender: Contender, suffix: str, precision: str) -> Path:
        plan = self.plan
        size = (1, plan.height, plan.width)
        file = self._folder / f"{len(self._files)}.onnx"
        if contender.kind == "peer":
            network, _ = self.network(contender)
            file.write_bytes(peer_onnx(network, size))
            return file
        checkpoint = self._checkpoint(contender)
        if suffix == ".safetensors":
            return checkpoint.path
        if contender.form == PLAIN:
            file.write_bytes(plain_onnx(checkpoint.build().fuse(), size))
            return file
        shapes = ShapeRange(size, size, size)
        export_onnx(checkpoint, file, ExportOptions(shapes=shapes, precision=precision))
        if suffix == ".onnx":
            return file
        engine = file.with_suffix(suffix)
        build_engine(file, engine, shapes)
        return engine

    def _checkpoint(self, contender: Contender) -> Checkpoint:
        """The model's checkpoint, or one that is written for a variant."""
        if contender.kind == "model":
            assert self.plan.model is not None
            return self.plan.model
        name = contender.network
        if name not in self._checkpoints:
            network, _ = self.network(contender)
            assert isinstance(network, AetherNet)
            path = self._folder / f"{name}.safetensors"
            save_checkpoint(network, path)
            self._checkpoints[name] = load_checkpoint(path)
        return self._checkpoints[name]


def _kind_of_file(contender: Contender) -> tuple[str, str, str]:
    """Form, suffix and precision of the file that a contender is loaded from."""
    suffix = _file_suffix(contender.runtime)
    if suffix == ".safetensors":
        return "", suffix, ""  # all forms and precisions are made from one
    if contender.runtime in RUNTIMES and RUNTIMES[contender.runtime].converts:
        return contender.form, suffix, "float32"
    return contender.form, suffix, contender.precision


def _file_suffix(runtime: str) -> str:
    """The suffix of the files from which a runtime is loaded for a benchmark."""
    suffixes = RUNTIMES[runtime].suffixes if runtime in RUNTIMES else ()
    for suffix in (".onnx", ".engine"):
        if suffix in suffixes:
            return suffix
    return ".safetensors"
