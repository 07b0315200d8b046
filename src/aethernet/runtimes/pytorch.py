"""Checkpoints, executed by PyTorch in float32."""

from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from aethernet.aether_core import AetherNet
from aethernet.checkpoint import load_checkpoint
from aethernet.errors import AetherError

if TYPE_CHECKING:
    import numpy as np


DEVICES = ("cpu", "cuda", "mps", "xpu")


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA, then Apple's MPS, then the CPU.

    Raises:
        AetherError: when PyTorch knows no such device or it is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name if name.partition(":")[0] in DEVICES else "")
        torch.empty(0, device=device)  # reaches for the driver
    except (RuntimeError, AssertionError) as error:
        raise AetherError(
            f"The device {name!r} is not available to PyTorch here; try --device cpu."
        ) from error
    return device


class PyTorchRuntime:
    """An AetherNet checkpoint on a device, in fused form whatever the file's form."""

    def __init__(self, network: AetherNet, device: torch.device) -> None:
        # Channels last is the layout the blocks work in: on a CPU it takes half the
        # time of contiguous weights (benchmarks/pytorch_runtime.py).
        network.fuse().to(memory_format=torch.channels_last)
        self.network = network.to(device)
        self.device = device
        self.scale: int = network.hyperparameters["scale"]
        self.in_chans: int = network.hyperparameters["in_chans"]

    @classmethod
    def load(cls, path: Path, device: str) -> Self:
        return cls(load_checkpoint(path).build(), choose_device(device))

    @torch.inference_mode()
    def run(self, image: "np.ndarray") -> "np.ndarray":
        try:
            tensor = torch.from_numpy(image).to(
                self.device, memory_format=torch.channels_last
            )
            return self.network(tensor).contiguous().cpu().numpy()
        except (MemoryError, RuntimeError) as error:
            # torch.OutOfMemoryError on a GPU; on a CPU a bare RuntimeError.
            if "memory" not in str(error):
                raise
            height, width = image.shape[-2:]
            raise AetherError(
                f"Out of memory on {self.device} for a picture of {width}x{height}."
            ) from error

    def describe(self) -> str:
        return f"PyTorch float32 on {self.device}"
