"""Devices: names, what a processor can do, free memory."""

import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from aethernet.errors import AetherError

if TYPE_CHECKING:
    import torch

PYTORCH_KINDS = ("cpu", "cuda", "xpu", "mps")  # kinds of device that PyTorch may have


def device_kind(device: str) -> str:
    """What stands before the number: "cuda" of "cuda:1"."""
    return device.partition(":")[0]


def processor_facts() -> dict[str, str]:
    """What /proc/cpuinfo says of the first processor; nothing where it is not."""
    facts: dict[str, str] = {}
    with suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    return facts


def processor_name() -> str:
    """The processor's name, or its kind where no name can be read."""
    name = processor_facts().get("model name")
    return name or platform.processor() or platform.machine()


# What a processor has that multiplies bfloat16 in hardware, as torch.cpu names it. One
# without takes 15 to 30 times as long in it as in float32 (a Zen 3, torch 2.15).
_BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16")


def pytorch_devices() -> tuple[str, ...]:
    """Kinds of device that PyTorch has here, best first; the last is always "cpu"."""
    import torch

    gpus = (("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.backends.mps))
    return (*(name for name, gpu in gpus if gpu.is_available()), "cpu")


def choose_device(name: str) -> "torch.device":
    """The device of that name; "auto" is a GPU where PyTorch has one, else the CPU.

    Raises:
        AetherError: when PyTorch knows no such device or it is not there.
    """
    import torch

    if name == "auto":
        return torch.device(pytorch_devices()[0])
    try:
        device = torch.device(name if device_kind(name) in PYTORCH_KINDS else "")
        torch.empty(0, device=device)  # reaches for the driver
    except (RuntimeError, AssertionError) as error:
        raise AetherError(
            f"The device {name!r} is not available to PyTorch here; try --device cpu."
        ) from error
    return device


def has_bfloat16_units() -> bool:
    """Whether this processor computes bfloat16 faster than float32."""
    import torch

    ask: Any = getattr(torch.cpu, "get_capabilities", dict)  # newer than torch 2.9
    found = ask()
    return any(found.get(name) for name in _BFLOAT16_UNITS)


def free_memory(device: str) -> int:
    """Bytes that a model on that device may still take.

    Of a GPU that PyTorch does not reach this is the computer's memory, a guess; running
    out of it halves the tile.
    """
    if device_kind(device) == "cuda":
        import torch

        if torch.cuda.is_available():
            free, _ = torch.cuda.mem_get_info(device)
            return free
    free = psutil.virtual_memory().available
    # A container may have less than the machine (cgroup v2).
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return max(free, 0)
