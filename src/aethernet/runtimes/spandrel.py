"""Checkpoints of other architectures, built by spandrel and executed by PyTorch.

AetherNet's own reader opens the file, so that no code in it runs; spandrel receives the
state dict only.
"""

import warnings
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from aethernet.checkpoints.checkpoint import Weights
from aethernet.checkpoints.rewrites import as_tensors, exact_float32
from aethernet.devices import choose_device
from aethernet.errors import AetherError, CheckpointError, first_line, import_optional
from aethernet.runtimes.base import Description, InputSizes, library_failures
from aethernet.runtimes.values import Values

if TYPE_CHECKING:
    import numpy as np


class SpandrelModel:
    """A network of any architecture that spandrel knows, as a `Model`."""

    # spandrel itself pads pictures that are too small or no multiple of a window.
    input_sizes = InputSizes()

    def __init__(self, descriptor: Any, device: torch.device, precision: str) -> None:
        """Prepare a loaded network.

        Args:
            descriptor: spandrel's ImageModelDescriptor, with as many output channels
                as input channels.
            device: where to run it.
            precision: one of `base.PRECISIONS`.

        Raises:
            AetherError: when spandrel says that the architecture does not support the
                precision.
        """
        self.scale: int = descriptor.scale
        self.channels: int = descriptor.input_channels
        self.device, self.precision = device, precision
        self.dtype: torch.dtype = getattr(torch, precision)
        self.values = Values()
        """As `values.Foreign`."""
        self.architecture: str = descriptor.architecture.name
        spandrel = import_optional("spandrel", "spandrel")
        fold_span(descriptor.model)
        try:
            self.descriptor = descriptor.to(device, self.dtype).eval()
        except spandrel.UnsupportedDtypeError as error:
            raise AetherError(
                f"{self.architecture} does not run in {precision}.",
                hint="Use --precision float32.",
            ) from error
        # Inside of what spandrel calls, because it clamps the result to 0..1.
        self.descriptor.model.register_forward_pre_hook(self._given)
        self.descriptor.model.register_forward_hook(self._made)

    @classmethod
    def load(cls, weights: Weights, device: str, precision: str) -> Self:
        """As `Runtime.load`, of weights that were read before; "auto" is float32.

        Raises:
            MissingExtraError: when spandrel is not installed.
            CheckpointError: when spandrel does not know or cannot load what the file
                holds, or the network does not turn a picture into a picture.
            AetherError: as `Runtime.load`.
        """
        where = choose_device(device)
        path, state_dict = weights.path, as_tensors(weights.state_dict)
        spandrel = import_optional("spandrel", "spandrel")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about code that is not ours
                found = spandrel.ModelLoader().load_from_state_dict(state_dict)
        except spandrel.UnsupportedModelError as error:
            raise CheckpointError(
                "The weights are of no architecture that AetherNet or spandrel "
                f"{spandrel.__version__} knows.",
                path,
            ) from error
        except Exception as error:  # a few keys decide, all others may be anything
            reason = first_line(error).rstrip(".:")
            raise CheckpointError(
                f"spandrel cannot load this file: {type(error).__name__}: {reason}.",
                path,
            ) from error
        if (
            not isinstance(found, spandrel.ImageModelDescriptor)
            or found.input_channels != found.output_channels
        ):
            raise CheckpointError(
                f"This is {found.architecture.name}, which does not turn a picture "
                "into a picture with as many channels.",
                path,
            )
        return cls(found, where, "float32" if precision == "auto" else precision)

    def run(self, batch: "np.ndarray") -> "np.ndarray":
        """As `Model.run`, but spandrel clamps the result to 0..1."""
        with (
            library_failures(self.describe(), batch.shape, (RuntimeError,)),
            exact_float32(),
        ):
            images = torch.from_numpy(batch).to(self.device, self.dtype)
            outputs = [self.descriptor(image[None]) for image in images]
            return torch.cat(outputs).float().cpu().numpy()

    def _given(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.values.given(inputs[0]), *inputs[1:])

    def _made(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, list | tuple):  # the picture comes first
            return (self.values.made(output[0]), *output[1:])
        return self.values.made(output)

    def describe(self) -> Description:
        """As `Model.describe`."""
        return Description("PyTorch", str(self.device), self.precision)


def fold_span(network: nn.Module) -> None:
    """Replace each block of a SPAN by the one convolution it is equal to.

    SPAN's own class folds three convolutions into it again in every forward pass, which
    nobody would run. Other networks stay as they are.
    """
    for name, module in [*network.named_modules()]:
        if hasattr(module, "eval_conv"):
            module.update_params()
            network.set_submodule(name, module.eval_conv)
