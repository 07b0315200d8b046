"""What this computer has to run models on, found without importing a large library.

A GPU is found by its driver: the library that the driver of NVIDIA brings, what Linux
lists under /sys, or the display adapters in the registry of Windows.
"""

import ctypes
import functools
import importlib
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NVIDIA, APPLE, INTEL, AMD = "NVIDIA", "Apple", "Intel", "AMD"

_DISPLAYS = Path("/sys/class/drm")
_NVIDIA_CARDS = Path("/proc/driver/nvidia/gpus")
_PCI_MAKERS = {"0x10de": NVIDIA, "0x1002": AMD, "0x8086": INTEL}

# Windows lists its display adapters here, each under a number.
_ADAPTERS = (
    r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
)

# Names of cards; other names of these makers are of graphics inside a processor.
_CARD_OF_INTEL_OR_AMD = re.compile(r"\b(Arc\b.*[AB]\d{3}|RX|Pro|Instinct|Flex|Max)\b")

_SECONDS_FOR_NVIDIA_SMI = 10


@dataclass(frozen=True)
class FoundGpu:
    """A GPU whose driver is there."""

    maker: str
    """`NVIDIA`, `APPLE`, `INTEL` or `AMD`."""
    name: str
    """As its driver names it, or the maker's name."""
    found_by: str
    """What showed it, e.g. "libcuda.so.1"."""

    @property
    def is_a_card(self) -> bool:
        """Whether it surely is much faster than the processor beside it."""
        if self.maker in (NVIDIA, APPLE):
            return True
        return bool(_CARD_OF_INTEL_OR_AMD.search(self.name))

    def __str__(self) -> str:
        return self.name if self.maker in self.name else f"{self.maker} {self.name}"


@functools.cache
def find_gpus() -> tuple[FoundGpu, ...]:
    """The GPUs of this computer, NVIDIA's first; takes milliseconds."""
    found = [*_nvidia(), *_apple()]
    others = _windows_adapters() if sys.platform == "win32" else _linux_displays()
    found += (gpu for gpu in others if gpu.maker != NVIDIA)
    return tuple(dict.fromkeys(found))


def nvidia_cards() -> tuple[str, ...] | None:
    """Names of the cards that `nvidia-smi` lists, with the version of the driver.

    Empty where it finds none or fails, None where it is not installed.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = ["--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            [command, *query],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS_FOR_NVIDIA_SMI,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return tuple(
        ", driver ".join(part.strip() for part in line.rsplit(",", 1))
        for line in lines
        if line.strip()
    )


def driver_library() -> str | None:
    """The library that the driver of NVIDIA brings; None where it does not load."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError:
        return None
    return name


def _nvidia() -> Iterator[FoundGpu]:
    library = driver_library()
    if library is None:
        return
    names = [*_names_by_the_driver()] or ["GPU"]
    yield from (FoundGpu(NVIDIA, name, library) for name in names)


def _names_by_the_driver() -> Iterator[str]:
    """Names of NVIDIA's cards, where the driver lists them in a file (Linux)."""
    with suppress(OSError):
        for card in sorted(_NVIDIA_CARDS.iterdir()):
            text = (card / "information").read_text("utf-8", "replace")
            if found := re.search(r"^Model:\s*(.+?)\s*$", text, re.MULTILINE):
                yield found[1]


def _apple() -> Iterator[FoundGpu]:
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        yield FoundGpu(APPLE, "GPU", "macOS")


def _linux_displays() -> Iterator[FoundGpu]:
    with suppress(OSError):
        for display in sorted(_DISPLAYS.glob("card[0-9]*/device/vendor")):
            maker = _PCI_MAKERS.get(display.read_text("ascii", "replace").strip())
            if maker:
                yield FoundGpu(maker, "GPU", str(display.parents[1]))


def _windows_adapters() -> Iterator[FoundGpu]:
    winreg: Any = importlib.import_module("winreg")
    root = winreg.HKEY_LOCAL_MACHINE
    with suppress(OSError), winreg.OpenKey(root, _ADAPTERS) as adapters:
        for number in range(winreg.QueryInfoKey(adapters)[0]):
            key = winreg.EnumKey(adapters, number)
            yield from _windows_adapter(winreg, f"{_ADAPTERS}\\{key}")


def _windows_adapter(winreg: Any, key: str) -> Iterator[FoundGpu]:
    root = winreg.HKEY_LOCAL_MACHINE
    # Raised for a key that is no adapter, or not ours to read.
    with suppress(OSError), winreg.OpenKey(root, key) as adapter:
        name = str(winreg.QueryValueEx(adapter, "DriverDesc")[0])
        for maker in (NVIDIA, INTEL, AMD):
            if maker.lower() in name.lower():
                yield FoundGpu(maker, name, "the display adapters of Windows")
