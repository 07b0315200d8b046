"""Networks one would pick instead of AetherNet, built through spandrel.

They have random weights: speed, memory and arithmetic are compared, not pictures.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aethernet.checkpoints.onnx import DEFAULT_OPSET
from aethernet.errors import AetherError, import_optional
from aethernet.runtimes.spandrel import fold_span


@dataclass(frozen=True)
class Peer:
    """A published configuration."""

    name: str
    """As its authors write it."""
    module: str
    """Under `spandrel.architectures`."""
    architecture: str
    """Class in that module."""
    scale: str
    """Name of the argument that takes the scale."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Where spandrel's defaults are not the published configuration."""


_DIRECT = {"img_size": 64, "upsampler": "pixelshuffledirect"}

# The configurations of the papers; what they are is written out in docs/performance.md.
PEERS = {
    "compact": Peer("Compact", "Compact", "Compact", "upscale"),
    "span": Peer(
        "SPAN",
        "SPAN",
        "SPAN",
        "upscale",
        {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 52},
    ),
    "span_s": Peer(
        "SPAN-S",
        "SPAN",
        "SPAN",
        "upscale",
        {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 48},
    ),
    "plksr_tiny": Peer(
        "PLKSR-tiny",
        "PLKSR",
        "PLKSR",
        "upscaling_factor",
        {"ccm_type": "DCCM", "n_blocks": 12, "kernel_size": 13, "use_ea": False},
    ),
    "plksr": Peer("PLKSR", "PLKSR", "PLKSR", "upscaling_factor", {"ccm_type": "DCCM"}),
    "realplksr": Peer("RealPLKSR", "PLKSR", "RealPLKSR", "upscaling_factor"),
    "swinir_light": Peer(
        "SwinIR light",
        "SwinIR",
        "SwinIR",
        "upscale",
        {
            "embed_dim": 60,
            "depths": [6, 6, 6, 6],
            "num_heads": [6, 6, 6, 6],
            "window_size": 8,
            "mlp_ratio": 2,
            **_DIRECT,
        },
    ),
    "dat_light": Peer(
        "DAT light",
        "DAT",
        "DAT",
        "upscale",
        {
            "embed_dim": 60,
            "depth": [18],
            "num_heads": [6],
            "split_size": [8, 32],
            "expansion_factor": 2,
            "resi_connection": "3conv",
            **_DIRECT,
        },
    ),
    "omnisr": Peer("OmniSR", "OmniSR", "OmniSR", "up_scale", {"res_num": 5}),
}


def build_peer(key: str, scale: int) -> nn.Module:
    """The network of `PEERS[key]` in evaluation mode, always with the same weights.

    Raises:
        MissingExtraError: when spandrel is not installed.
        AetherError: when spandrel cannot build it at this scale.
    """
    peer = PEERS[key]
    module = import_optional(f"spandrel.architectures.{peer.module}", "bench")
    architecture = getattr(module, peer.architecture)
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(0)
        try:
            network = architecture(**peer.arguments, **{peer.scale: scale}).eval()
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            raise AetherError(
                f"spandrel cannot build {peer.name} at {scale}x: {error}"
            ) from error
    fold_span(network)
    return network


def count_multiply_adds(network: nn.Module, height: int, width: int) -> float:
    """Multiply-adds of one forward pass per LR pixel of an RGB image of this size.

    Counts convolutions and products, attention's included, as PyTorch performs them;
    what a network does to a padded margin counts too.
    """

    def count(counted: nn.Module, device: str) -> float:
        image = torch.zeros(1, 3, height, width, device=device)
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter, _quiet():
            counted(image)
        return counter.get_total_flops() / 2 / (height * width)

    try:  # shapes are enough for most
        return count(copy.deepcopy(network).to("meta"), "meta")
    except (NotImplementedError, RuntimeError):  # window masks are made of values
        return count(network, "cpu")


def peer_onnx(network: nn.Module, size: tuple[int, int, int]) -> bytes:
    """An ONNX export of fixed size `(batch, height, width)`, float32, RGB.

    Made by torch's newer exporter, which makes ours too, else by the older one.

    Raises:
        AetherError: when neither exports this network.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if type(module).__name__ == "PLKConv2d":
            # To be evaluated it writes into its input, which in ONNX takes a scatter
            # and transposes; for training it computes the same by split and concat.
            module.train()
    batch, height, width = size
    example = torch.zeros(batch, 3, height, width)
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
    with _quiet():
        with contextlib.suppress(Exception):  # whatever stops it, there is another
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=DEFAULT_OPSET,
                verbose=False,
                **names,
            )
            if program is not None:
                return program.model_proto.SerializeToString()
        # A file object is what the older exporter takes as well, and says it does not.
        content: Any = io.BytesIO()
        try:
            torch.onnx.export(
                network, (example,), content, dynamo=False, opset_version=17, **names
            )
        except Exception as error:  # the tracer passes on whatever the network raises
            raise AetherError(
                f"torch {torch.__version__} cannot export it to ONNX: {error}"
            ) from error
    return content.getvalue()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what is said about code that is not ours."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
