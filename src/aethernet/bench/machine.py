"""What the figures of a benchmark were measured on, and the best it could do."""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from aethernet.devices import processor_facts, processor_name
from aethernet.version import __version__

# Sides of the square products among which the best is the ceiling; doubled while one
# product takes less than this.
_PRODUCT_SIDES, _PRODUCT_SECONDS = (512, 1024, 2048, 4096, 8192), 0.1

_INSTRUCTIONS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8", "asimd", "asimdhp", "bf16", "sve"),
)

_PACKAGES = (
    *("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt-rtx"),
    *("spandrel", "torchvision", "torchmetrics", "numpy", "pillow"),
)


@dataclass(frozen=True)
class Ceiling:
    """The best large matrix product of PyTorch, timed in the same rounds."""

    side: int
    seconds: list[float]

    @property
    def gflops(self) -> float:
        return 2 * self.side**3 / statistics.median(self.seconds) / 1e9


def largest_product(precision: str, device: str) -> tuple[int, Callable[[], object]]:
    """Side and call of the square product with the most arithmetic per second."""
    best, found = 0.0, None
    for side in _PRODUCT_SIDES:
        factor = torch.rand(side, side, device=device).to(getattr(torch, precision))

        def product(factor: torch.Tensor = factor) -> object:
            return (factor @ factor)[0, 0].item()  # waits for a GPU

        product()  # the first one sets things up
        start = time.perf_counter()
        product()
        seconds = time.perf_counter() - start
        if found is None or side**3 / seconds > best:
            best, found = side**3 / seconds, (side, product)
        if seconds > _PRODUCT_SECONDS:
            break
    assert found is not None
    return found


def describe_machine(device: str) -> dict[str, Any]:
    """What one has to know of a machine to read its figures."""
    versions = {"aethernet": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    facts = processor_facts()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    machine: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": processor_name(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "instructions": [flag for flag in _INSTRUCTIONS if flag in flags],
        "pytorch_capability": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "versions": versions,
    }
    if hasattr(os, "getloadavg"):
        machine["load_before"] = round(os.getloadavg()[0], 2)
    if torch.device(device).type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return machine
