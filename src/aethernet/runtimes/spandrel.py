"""Checkpoints of other architectures: built by spandrel, executed by PyTorch.

They are read by our own rules, which run no code of the file; spandrel gets the state
dict only.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from aethernet.checkpoints.checkpoint import load_weights
from aethernet.devices import choose_device
from aethernet.errors import AetherError, CheckpointError, import_optional
from aethernet.runtimes.base import Description, Limits
from aethernet.runtimes.pytorch import failure_is_said

if TYPE_CHECKING:
    import numpy as np


class SpandrelModel:
    """A network of any architecture that spandrel knows, as a `Model`."""

    # Pictures too small for it, or no multiple of its windows, spandrel pads itself.
    limits = Limits()

    def __init__(self, descriptor: Any, device: torch.device, precision: str) -> None:
        """`descriptor` is spandrel's ImageModelDescriptor, as many channels out as in.

        Raises:
            AetherError: when spandrel's author found the precision not to suit it.
        """
        self.scale: int = descriptor.scale
        self.channels: int = descriptor.input_channels
        self.device, self.precision = device, precision
        self.dtype: torch.dtype = getattr(torch, precision)
        self.architecture: str = descriptor.architecture.name
        spandrel = import_optional("spandrel", "spandrel")
        fold_span(descriptor.model)
        try:
            self.descriptor = descriptor.to(device, self.dtype).eval()
        except spandrel.UnsupportedDtypeError as error:
            raise AetherError(
                f"{self.architecture} does not run in {precision}; take --precision "
                "float32."
            ) from error

    @classmethod
    def load(cls, path: Path, device: str, precision: str) -> Self:
        """As `Runtime.load`; "auto" is float32.

        Raises:
            MissingExtraError: when spandrel is not installed.
            CheckpointError: when spandrel does not know or load what the file holds, or
                it is no network from picture to picture.
            AetherError: as `Runtime.load`.
        """
        where = choose_device(device)
        state_dict = load_weights(path).state_dict
        spandrel = import_optional("spandrel", "spandrel")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on code that is not ours
                found = spandrel.ModelLoader().load_from_state_dict(state_dict)
        except spandrel.UnsupportedModelError as error:
            raise CheckpointError(
                f"{path} holds weights of no architecture that AetherNet or spandrel "
                f"{spandrel.__version__} knows."
            ) from error
        except Exception as error:  # a few keys decide, all others may be anything
            said = str(error).strip().partition("\n")[0].rstrip(".:")
            raise CheckpointError(
                f"spandrel does not load {path}: {type(error).__name__}: {said}."
            ) from error
        if (
            not isinstance(found, spandrel.ImageModelDescriptor)
            or found.input_channels != found.output_channels
        ):
            raise CheckpointError(
                f"{path} is {found.architecture.name}, which does not make pictures of "
                "pictures of as many channels."
            )
        return cls(found, where, "float32" if precision == "auto" else precision)

    def run(self, batch: "np.ndarray") -> "np.ndarray":
        """As `Model.run`, but clamped, which spandrel does."""
        with failure_is_said(self.describe(), batch):
            images = torch.from_numpy(batch).to(self.device, self.dtype)
            outputs = [self.descriptor(image[None]) for image in images]
            return torch.cat(outputs).float().cpu().numpy()

    def describe(self) -> Description:
        """As `Model.describe`."""
        return Description("PyTorch", str(self.device), self.precision)


def fold_span(network: nn.Module) -> None:
    """Keep of SPAN's blocks the one convolution they amount to.

    Left as they are they fold three convolutions into it again in every forward pass;
    nobody runs that.
    """
    for name, module in [*network.named_modules()]:
        if hasattr(module, "eval_conv"):
            module.update_params()
            network.set_submodule(name, module.eval_conv)
