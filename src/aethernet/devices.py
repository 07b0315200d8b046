"""This machine: its devices, processor, free memory and installed libraries.

Only the functions about PyTorch's devices need PyTorch.
"""

import os
import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aethernet.errors import AetherError, MissingExtraError, import_optional
from aethernet.version import __version__

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")  # limits of a container, on Linux

PYTORCH_KINDS = ("cpu", "cuda", "xpu", "mps")
"""Kinds of device that PyTorch may have."""

# Features of a processor that multiplies bfloat16 in hardware, as Linux and torch.cpu
# name them, and float16. Without one, bfloat16 takes 15 to 30 times as long as float32
# (a Zen 3, torch 2.15).
_BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "svebf16", "sve_bf16")
_FLOAT16_UNITS = ("amx_fp16", "avx512_fp16", "asimdhp")

# Features that explain a benchmark's figures, as Linux names them.
_INSTRUCTIONS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8", "asimd", "asimdhp", "bf16", "sve"),
)

# Distributions whose versions belong to any measurement.
_LIBRARIES = (
    *("torch", "numpy", "pillow", "onnx", "spandrel", "torchvision", "torchmetrics"),
)


def device_kind(device: str) -> str:
    """The part of a device name before the number: "cuda" of "cuda:1"."""
    return device.partition(":")[0]


def pytorch_devices() -> tuple[str, ...]:
    """Kinds of device that PyTorch has here, best first; the last is always "cpu".

    Raises:
        MissingExtraError: when PyTorch is not installed.
    """
    torch: Any = import_optional("torch", "torch")
    gpus = (("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.backends.mps))
    return (*(name for name, gpu in gpus if gpu.is_available()), "cpu")


def choose_device(name: str) -> "torch.device":
    """The device of that name; "auto" is a GPU where PyTorch has one, else the CPU.

    Raises:
        MissingExtraError: when PyTorch is not installed.
        AetherError: when PyTorch does not know this device or cannot use it here.
    """
    torch: Any = import_optional("torch", "torch")
    if name == "auto":
        return torch.device(pytorch_devices()[0])
    try:
        device = torch.device(name if device_kind(name) in PYTORCH_KINDS else "")
        torch.empty(0, device=device)  # needs the driver
    except (RuntimeError, AssertionError) as error:
        raise AetherError(
            f"The device {name!r} is not available to PyTorch here.",
            hint="Try --device cpu.",
        ) from error
    return device


def free_memory(device: str) -> int:
    """Bytes that a model on that device may still take.

    For a GPU that PyTorch does not reach, this is the computer's free memory, a guess:
    if it proves too much, the tile is halved.
    """
    if device_kind(device) == "cuda":
        with suppress(MissingExtraError):
            torch: Any = import_optional("torch", "torch")
            if torch.cuda.is_available():
                return torch.cuda.mem_get_info(device)[0]
    import psutil  # here: the fuse script runs where only torch is installed

    # A container may have less than the machine.
    free = float(psutil.virtual_memory().available)
    for folder in own_cgroups():
        for most, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, now = cgroup_numbers(folder / most), cgroup_numbers(folder / used)
            if limit and now:
                free = min(free, limit[0] - now[0] + _reclaimable(folder))
    return max(0, int(free))


def _reclaimable(folder: Path) -> float:
    """Bytes of a cgroup's use that are cached files, which make room when asked."""
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text("ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                return float(value)
    return 0


def own_cgroups() -> list[Path]:
    """Folders of this process's cgroup and those above it, version 2 and 1."""
    found = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            names = ["", *controllers.split(",")] if controllers else [""]
            for name in names:
                folder = CGROUP / name / path.lstrip("/")
                found += [folder, *folder.parents]
    roots = (CGROUP, CGROUP / "cpu", CGROUP / "memory")
    inside = (f for f in (*found, *roots) if f.is_relative_to(CGROUP))
    return [*dict.fromkeys(inside)]


def cgroup_numbers(file: Path) -> list[float]:
    """Numbers in a file of one line; "max" is infinite, no file has none."""
    with suppress(OSError, ValueError):
        words = file.read_text("ascii").split()
        return [float("inf") if word == "max" else float(word) for word in words]
    return []


def processor_name() -> str:
    """The processor's name, or its kind where no name can be read."""
    name = _processor_facts().get("model name")
    return name or platform.processor() or platform.machine()


def has_bfloat16_units() -> bool:
    """Whether this processor computes bfloat16 faster than float32.

    Only Linux tells. Elsewhere PyTorch is asked, where it is loaded already.
    """
    flags = _processor_flags()
    torch: Any = sys.modules.get("torch")
    if not flags and torch:
        ask = getattr(torch.cpu, "get_capabilities", dict)  # newer than torch 2.9
        flags = {name for name, there in ask().items() if there is True}
    return not flags.isdisjoint(_BFLOAT16_UNITS)


def has_reduced_precision_units() -> bool:
    """Whether this processor computes bfloat16 or float16 faster than float32."""
    return has_bfloat16_units() or not _processor_flags().isdisjoint(_FLOAT16_UNITS)


def instructions() -> tuple[str, ...]:
    """Features of the processor that decide how fast a network runs, as Linux names
    them; empty on other systems."""
    flags = _processor_flags()
    return tuple(name for name in _INSTRUCTIONS if name in flags)


def _processor_flags() -> set[str]:
    facts = _processor_facts()
    return {*(facts.get("flags") or facts.get("Features") or "").split()}


def told_threads() -> int | None:
    """Threads that PyTorch uses, if it is loaded, or that OMP_NUM_THREADS allows.

    All runtimes keep to it: so a program sets one number for all. None: no limit.
    """
    torch = sys.modules.get("torch")  # not imported for this
    if torch:
        return torch.get_num_threads()
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(told) if told.isdecimal() and int(told) else None


def limit_threads(threads: int) -> None:
    """Let the runtimes of this process use so many threads from now on."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """The versions of those of these distributions that are installed."""
    found = {}
    for name in distributions:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def describe_machine(
    device: "str | torch.device", distributions: Iterable[str] = ()
) -> dict[str, Any]:
    """What one has to know of this machine to read figures measured on it.

    Args:
        device: where the figures are measured.
        distributions: whose versions to list beside those of the common libraries.

    Returns:
        Values for JSON: `system`, `cpu`, `cores` (that this process may use),
        `threads` (that runtimes may use), `instructions`, `device`, `versions`, and
        where they are known `load_before`, `pytorch_capability` and `gpu`. The last
        two are PyTorch's, if it is loaded.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    machine: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": processor_name(),
        "cores": cores,
        "threads": told_threads() or cores,
        "instructions": [*instructions()],
        "device": str(device),
        "versions": {
            "aethernet": __version__,
            "python": platform.python_version(),
            **installed_versions(dict.fromkeys((*_LIBRARIES, *distributions))),
        },
    }
    if hasattr(os, "getloadavg"):
        machine["load_before"] = round(os.getloadavg()[0], 2)
    if torch := sys.modules.get("torch"):  # not imported for this
        machine["pytorch_capability"] = torch.backends.cpu.get_cpu_capability()
        if device_kind(str(device)) == "cuda" and torch.cuda.is_available():
            machine["gpu"] = torch.cuda.get_device_name(device)
    return machine


def _processor_facts() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo; empty on other systems."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    return facts
