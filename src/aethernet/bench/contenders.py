"""Who takes part in a benchmark, and what each of them is loaded from."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from aethernet.aether_core import VARIANTS, AetherNet
from aethernet.bench.peers import PEERS, build_peer, count_multiply_adds, peer_onnx
from aethernet.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from aethernet.checkpoints.info import multiply_adds_per_pixel
from aethernet.checkpoints.onnx import ShapeRange, export_onnx, plain_onnx
from aethernet.checkpoints.rewrites import rewritten
from aethernet.checkpoints.verification import exact_float32
from aethernet.errors import AetherError
from aethernet.runtimes.registry import open_model, runtime_class

# What is done with a network. The first two are PyTorch as it is, channels last; the
# plain export has no rewrites; rewritten is what `aethernet upscale` runs.
TRAINING, FUSED, PLAIN = "training form", "fused form", "plain export"


REWRITTEN, PUBLISHED = "rewritten", "as published"


@dataclass(frozen=True)
class Plan:
    """What to compare, and how long."""

    scale: int = 2
    width: int = 128
    height: int = 128
    variants: tuple[str, ...] = tuple(VARIANTS)
    peers: tuple[str, ...] = tuple(PEERS)
    runtimes: tuple[str, ...] = ("pytorch", "onnxruntime", "openvino")
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    model: Path | None = None
    """A checkpoint, compared in every form, and with what runtime auto makes of it."""
    runs: int = 10
    """Rounds, at most."""
    seconds: float = 30
    """After this much time of its own a contender leaves the later rounds."""
    device: str = "cpu"
    memory: bool = True
    """Measure peak memory too, each in a process of its own (seconds for each)."""

    def __post_init__(self) -> None:
        sizes = (self.width, self.height, self.runs)
        if min(sizes) < 1 or not 0 < self.seconds < math.inf:
            raise AetherError(
                f"Sides, runs and seconds must be positive, not {self.width}x"
                f"{self.height}, {self.runs} and {self.seconds:g}."
            )


@dataclass(frozen=True)
class Contender:
    """A network in some form on a runtime."""

    network: str
    """Variant, key of `PEERS`, or name of the model file."""
    kind: str
    """"variant", "model" or "peer"."""
    form: str
    runtime: str
    precision: str
    scale: int

    def __str__(self) -> str:
        return f"{self.network}, {self.form}, {self.runtime} {self.precision}"


class Model(Protocol):
    """The part of `runtimes.Runtime` that is timed."""

    def run(self, batch: np.ndarray) -> np.ndarray: ...
    def describe(self) -> Any: ...


class _EagerModel:
    """A network in PyTorch float32 as it is, with the interface of a runtime."""

    def __init__(self, network: nn.Module, device: str, layout: Any) -> None:
        self._network = network.to(memory_format=layout).to(device)
        self._device, self._layout = device, layout

    @torch.inference_mode()
    def run(self, batch: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(batch).to(self._device, memory_format=self._layout)
        with exact_float32():
            return self._network(image).contiguous().cpu().numpy()

    def describe(self) -> str:
        last = self._layout is torch.channels_last
        layout = "channels last" if last else "contiguous"
        return f"PyTorch float32 on {self._device}: eager, {layout}"


def contenders(plan: Plan) -> list[Contender]:
    """Who takes part, in the order of the rounds and of the table."""
    found: list[Contender] = []

    def add(name: str, kind: str, form: str, runtime: str, precision: str) -> None:
        found.append(Contender(name, kind, form, runtime, precision, plan.scale))

    networks = [(name, "variant") for name in plan.variants]
    if plan.model:
        networks.append((plan.model.name, "model"))
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
    for name in plan.peers:
        for runtime in plan.runtimes:
            if runtime != "tensorrt":
                add(name, "peer", PUBLISHED, runtime, "float32")
    return found


def load(contender: Contender, file: Path | None, device: str) -> Model:
    """The contender, ready to run; `file` is what `Workshop.file` made for it."""
    eager = contender.runtime == "pytorch"
    if eager and contender.kind == "peer":
        network = build_peer(contender.network, contender.scale)
        return _EagerModel(network, device, torch.contiguous_format)
    assert file is not None  # the others are loaded from one
    if eager and contender.form in (TRAINING, FUSED):
        network = load_checkpoint(file).build()
        if contender.form == FUSED:
            network.fuse()
        elif network.is_fused:
            raise AetherError("the file is in fused form, which cannot be undone")
        return _EagerModel(network, device, torch.channels_last)
    if contender.runtime == "auto":
        return open_model(file, "auto", device, "auto")
    # Not by `open_model`, which would run a reference for comparison beside it.
    return runtime_class(contender.runtime).load(file, device, contender.precision)


class Workshop:
    """Makes the files that contenders are loaded from, each once."""

    def __init__(self, plan: Plan, folder: Path, device: str) -> None:
        self.plan, self.device = plan, device
        self._folder = folder
        self._networks: dict[tuple[str, str, bool], tuple[nn.Module, float]] = {}
        self._files: dict[tuple[str, ...], Path | Exception] = {}

    def network(self, contender: Contender) -> tuple[nn.Module, float]:
        """The network on the CPU, and the multiply-adds per LR pixel that are done."""
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
                count = multiply_adds_per_pixel(network)
                if is_rewritten:  # less work, and the edges twice
                    less = rewritten(network)
                    count = count_multiply_adds(less, plan.height, plan.width)
            self._networks[key] = network, count
        return self._networks[key]

    def _build(self, contender: Contender) -> AetherNet:
        if contender.kind == "model":
            assert self.plan.model is not None
            return load_checkpoint(self.plan.model).build()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            arguments = VARIANTS[contender.network]
            return AetherNet(**arguments, scale=self.plan.scale).eval()

    def file(self, contender: Contender) -> Path | None:
        """What to load it from; None where it is built by name."""
        form, runtime, precision = self._kind_of_file(contender)
        if contender.kind == "peer" and runtime == "pytorch":
            return None
        key = (contender.kind, contender.network, form, runtime, precision)
        if key not in self._files:
            try:
                self._files[key] = self._make(contender, form, runtime, precision)
            except Exception as error:  # once is enough to learn that it fails
                self._files[key] = error
        made = self._files[key]
        if isinstance(made, Exception):
            raise made
        return made

    @staticmethod
    def _kind_of_file(contender: Contender) -> tuple[str, str, str]:
        """Form, runtime and precision in which contenders may share a file."""
        runtime, precision = contender.runtime, contender.precision
        if runtime in ("pytorch", "auto"):
            return "", "pytorch", ""
        if runtime == "openvino":  # is told its precision, and reads the same file
            return contender.form, "onnxruntime", "float32"
        return contender.form, runtime, precision

    def _make(
        self, contender: Contender, form: str, runtime: str, precision: str
    ) -> Path:
        plan = self.plan
        size = (1, plan.height, plan.width)
        stem = str(len(self._files))
        network, _ = self.network(contender)
        file = self._folder / f"{stem}.onnx"
        if contender.kind == "peer":
            file.write_bytes(peer_onnx(network, size))
            return file
        assert isinstance(network, AetherNet)
        checkpoint = plan.model if contender.kind == "model" else None
        if checkpoint is None:
            checkpoint = self._folder / f"{contender.network}.safetensors"
            if not checkpoint.exists():
                save_checkpoint(network, checkpoint)
        if runtime == "pytorch":
            return checkpoint
        if form == PLAIN:
            fused = load_checkpoint(checkpoint).build().fuse()
            file.write_bytes(plain_onnx(fused, size))
            return file
        shapes = ShapeRange(size, size, size)
        export_onnx(checkpoint, file, shapes=shapes, precision=precision)
        if runtime != "tensorrt":
            return file
        from aethernet.runtimes.tensorrt.build import build_engine

        engine = self._folder / f"{stem}.engine"
        build_engine(file, engine, shapes)
        return engine
