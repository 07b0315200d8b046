"""Which library runs models on which GPU, whether it is installed, and how to get it.

Nothing is imported to find out: distributions say their version, and PyTorch has a file
that says for which GPUs it was built.
"""

import importlib.util
import logging
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from aethernet.cache import cache_folder, read_json, write_json
from aethernet.devices import installed_versions
from aethernet.errors import AetherError, install_line
from aethernet.runtimes.hardware import (
    AMD,
    APPLE,
    INTEL,
    NVIDIA,
    FoundGpu,
    find_gpus,
    nvidia_cards,
)

_log = logging.getLogger(__name__)

# PyTorch's own index has a folder for each kind of GPU. What is installed without one
# from there is replaced: pip takes builds of one version for the same.
_PYTORCH = "python -m pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/"


@dataclass(frozen=True)
class Support:
    """A library, as built for some GPUs."""

    runtime: str
    """As `--runtime` takes it."""
    device: str
    """As `--device` takes it."""
    title: str
    makers: tuple[str, ...]
    """Of the GPUs that it runs on."""
    systems: tuple[str, ...]
    """Where it exists, as `sys.platform` has them."""
    installed: Callable[[], bool]
    install: tuple[str, ...]
    """Lines that install it."""
    remark: str = ""
    """What else it needs."""
    chosen: bool = False
    """Whether nobody has it without wanting it: then a GPU is looked for with it, even
    where none was found."""

    def suits(self, gpu: FoundGpu) -> bool:
        return gpu.maker in self.makers and sys.platform in self.systems


def pytorch_builds() -> frozenset[str]:
    """For which GPUs the installed PyTorch was built: "cuda", "hip", "xpu".

    Empty where it is not installed or only for processors.
    """
    with suppress(ImportError, ValueError, OSError):
        spec = importlib.util.find_spec("torch")
        if spec and spec.origin:
            text = Path(spec.origin).with_name("version.py").read_text("utf-8")
            pattern = r"^(cuda|hip|xpu)\b[^=\n]*= *['\"]"
            return frozenset(re.findall(pattern, text, re.MULTILINE))
    return frozenset()


def _has(*distributions: str) -> Callable[[], bool]:
    return lambda: bool(installed_versions(distributions))


def _without_onnxruntime(distribution: str) -> tuple[str, ...]:
    # All builds of ONNX Runtime share a folder.
    return (
        "python -m pip uninstall -y onnxruntime",
        f"python -m pip install {distribution}",
    )


SUPPORT = (
    Support(
        *("pytorch", "cuda", "PyTorch with CUDA", (NVIDIA,), ("linux", "win32")),
        installed=lambda: "cuda" in pytorch_builds(),
        install=(f"{_PYTORCH}cu130",),
        remark="for older drivers see https://pytorch.org/get-started/locally/",
    ),
    Support(
        *("onnxruntime", "cuda", "ONNX Runtime for CUDA", (NVIDIA,)),
        systems=("linux", "win32"),
        installed=_has("onnxruntime-gpu"),
        install=_without_onnxruntime('"onnxruntime-gpu[cuda,cudnn]"'),
        remark="with CUDA 13 and cuDNN; the driver has to be new enough for them",
    ),
    Support(
        *("tensorrt", "cuda", "TensorRT for RTX", (NVIDIA,), ("linux", "win32")),
        installed=_has("tensorrt-rtx-cu13", "tensorrt-rtx", "tensorrt"),
        install=(install_line("tensorrt"),),
        remark="runs the engines of `aethernet engine`, with PyTorch",
    ),
    Support(
        *("onnxruntime", "dml", "ONNX Runtime for DirectML", (NVIDIA, AMD, INTEL)),
        systems=("win32",),
        installed=_has("onnxruntime-directml"),
        install=_without_onnxruntime("onnxruntime-directml"),
        chosen=True,
    ),
    Support(
        *("openvino", "xpu", "OpenVINO", (INTEL,), ("linux", "win32")),
        installed=_has("openvino"),
        install=("python -m pip install openvino",),
    ),
    Support(
        *("pytorch", "xpu", "PyTorch for Intel GPUs", (INTEL,), ("linux", "win32")),
        installed=lambda: "xpu" in pytorch_builds(),
        install=(f"{_PYTORCH}xpu",),
        chosen=True,
    ),
    Support(
        *("pytorch", "cuda", "PyTorch with ROCm", (AMD,), ("linux",)),
        installed=lambda: "hip" in pytorch_builds(),
        install=(f"{_PYTORCH}rocm6.4",),
        remark="for newer drivers see https://pytorch.org/get-started/locally/",
        chosen=True,
    ),
    Support(
        *("pytorch", "mps", "PyTorch", (APPLE,), ("darwin",)),
        installed=_has("torch"),
        install=("python -m pip install torch",),
    ),
)
"""In the order in which they are recommended."""


def supports_of(gpu: FoundGpu) -> list[Support]:
    """What exists for a GPU on this system, installed or not."""
    return [support for support in SUPPORT if support.suits(gpu)]


def idle_gpus(gpus: Iterable[FoundGpu]) -> list[FoundGpu]:
    """Those of these GPUs that no installed library uses, although one exists."""
    found = []
    for gpu in gpus:
        supports = supports_of(gpu)
        if supports and not any(support.installed() for support in supports):
            found.append(gpu)
    return found


def hint_at_idle_gpu() -> None:
    """Warn, once a day, of a card that no installed library uses."""
    cards = [gpu for gpu in idle_gpus(find_gpus()) if gpu.is_a_card]
    if not cards or not _first_today():
        return
    # The driver may be there without a card, as in containers.
    if cards[0].maker == NVIDIA and nvidia_cards() == ():
        return
    _log.warning(
        "%s is not used, no installed library runs models on it: `aethernet runtimes` "
        "lists what does",
        cards[0],
    )


def _first_today() -> bool:
    """Whether this is asked for the first time today; False if that cannot be kept."""
    today = date.today().isoformat()
    try:
        stamp = cache_folder() / "hints" / "gpu.json"
        if read_json(stamp).get("day") == today:
            return False
        write_json(stamp, {"day": today})
    except AetherError:
        return False
    return True


def may_use_gpu(runtimes: Iterable[str]) -> bool:
    """Whether one of these runtimes may find a GPU here, by what is installed.

    False is certain enough to leave their libraries alone, which take seconds to load.
    """
    names, gpus = {*runtimes}, find_gpus()
    return any(
        support.installed()
        for support in SUPPORT
        if support.runtime in names
        and sys.platform in support.systems
        and (support.chosen or any(map(support.suits, gpus)))
    )
