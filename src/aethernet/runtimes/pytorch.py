"""Checkpoints, executed by PyTorch."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from aethernet.checkpoints.folded import Block, Folded
from aethernet.checkpoints.rewrites import ProductBlock, exact_float32, rewritten
from aethernet.devices import (
    choose_device,
    device_kind,
    has_bfloat16_units,
    pytorch_devices,
)
from aethernet.runtimes.base import (
    Description,
    InputSizes,
    ModelFile,
    library_failures,
)

if TYPE_CHECKING:
    import numpy as np


class PyTorchRuntime:
    """An AetherNet checkpoint on a device, in fused form whatever the file's form."""

    def __init__(
        self,
        folded: Folded,
        device: torch.device,
        precision: str = "float32",
        compiled: bool = False,
    ) -> None:
        """Make a module of a folded network for one device and precision.

        Args:
            folded: the network.
            device: where to run it.
            precision: one of `base.PRECISIONS`.
            compiled: use torch.compile, which takes a minute and saves about 5% (CPU,
                bfloat16).
        """
        self.scale: int = folded.scale
        self.channels: int = folded.in_chans
        self.input_sizes = InputSizes()
        self.device, self.precision, self.why = device, precision, ""
        block_type: Callable[[Block], nn.Module] = ProductBlock
        self.libraries = "PyTorch"
        if device.type == "cuda" and precision != "float32" and not compiled:
            block_type, self.libraries = fastest_block(folded, precision, device)
        # The blocks work in channels last: on a CPU it takes half the time of
        # contiguous weights (benchmarks/pytorch_runtime.py).
        module = rewritten(folded, precision, block_type).to(device)
        module = module.to(memory_format=torch.channels_last)
        self.module: Callable[[torch.Tensor], torch.Tensor] = (
            torch.compile(module, dynamic=True) if compiled else module
        )

    @classmethod
    def load(
        cls,
        file: Path | ModelFile,
        device: str,
        precision: str,
        compiled: bool = False,
    ) -> Self:
        where = choose_device(device)
        folded = ModelFile.of(file).checkpoint.folded
        precision = "float32" if precision == "auto" else precision
        return cls(folded, where, precision, compiled)

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        return pytorch_devices()

    @classmethod
    def precisions(cls, path: Path, device: str) -> tuple[str, ...]:
        kind = device_kind(device)
        if kind == "cpu":
            return ("float32", "bfloat16") if has_bfloat16_units() else ("float32",)
        if kind == "xpu" or (
            kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        ):
            return ("float32", "float16", "bfloat16")
        return ("float32", "float16")

    @torch.inference_mode()
    def run(self, batch: "np.ndarray") -> "np.ndarray":
        with (
            library_failures(self.describe(), batch.shape, (RuntimeError,)),
            exact_float32(),  # leaves reduced precisions alone
        ):
            tensor = torch.from_numpy(batch).to(
                self.device, memory_format=torch.channels_last
            )
            return self.module(tensor).contiguous().cpu().numpy()

    def describe(self) -> Description:
        return Description(self.libraries, str(self.device), self.precision, self.why)


def fastest_block(
    folded: Folded, precision: str, device: torch.device
) -> tuple[Callable[[Block], nn.Module], str]:
    """Blocks on the Triton kernels if they prove right here, and the libraries' names.

    The name says what kept Triton from being used, where it is installed.
    """
    if torch.version.hip or find_spec("triton") is None:
        return ProductBlock, "PyTorch"
    try:
        from aethernet.runtimes.triton.block import MOST_ERROR, TritonBlock, run_error

        error = run_error(folded, precision, device)
    except Exception as problem:  # of a compiler and a driver, in many classes
        return ProductBlock, f"PyTorch (Triton failed: {type(problem).__name__})"
    if not error <= MOST_ERROR:
        return ProductBlock, f"PyTorch (Triton was off by {error:.2g})"
    return TritonBlock, "PyTorch and Triton"
