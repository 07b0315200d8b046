"""The networks of `peers`, built with spandrel.

They have random weights: speed, memory and arithmetic are compared, not pictures.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aethernet.bench.peers import PEERS
from aethernet.bench.torch_exporter import EXPORTER_OPSET
from aethernet.errors import AetherError, first_line, import_optional
from aethernet.runtimes.spandrel import fold_span


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
                f"spandrel cannot build {peer.name} at {scale}x: {first_line(error)}"
            ) from error
    fold_span(network)
    return network


def count_multiply_adds(network: nn.Module, height: int, width: int) -> float:
    """Multiply-adds of one forward pass per LR pixel of an RGB image of this size.

    Counts convolutions and products, also in attention, as PyTorch executes them.
    Work on padded margins counts too.
    """

    def count(counted: nn.Module, device: str) -> float:
        image = torch.zeros(1, 3, height, width, device=device)
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter, _quiet():
            counted(image)
        return counter.get_total_flops() / 2 / (height * width)

    try:  # most networks can be counted without computing values
        return count(copy.deepcopy(network).to("meta"), "meta")
    except (NotImplementedError, RuntimeError):  # window masks depend on values
        return count(network, "cpu")


def peer_onnx(network: nn.Module, size: tuple[int, int, int]) -> bytes:
    """An ONNX export of fixed size `(batch, height, width)`, float32, RGB.

    Made by torch's newer exporter, as our plain exports are, or where that fails by
    the older one.

    Raises:
        AetherError: when neither can export this network.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if type(module).__name__ == "PLKConv2d":
            # In evaluation mode it writes into its input, which takes a scatter and
            # transposes in ONNX; in training mode it splits and concatenates.
            module.train()
    batch, height, width = size
    example = torch.zeros(batch, 3, height, width)
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
    with _quiet():
        with contextlib.suppress(Exception):  # of any kind: the older one may work
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=EXPORTER_OPSET,
                verbose=False,
                **names,
            )
            if program is not None:
                return program.model_proto.SerializeToString()
        # The older exporter accepts a file object too, although its types do not.
        content: Any = io.BytesIO()
        try:
            torch.onnx.export(
                network, (example,), content, dynamo=False, opset_version=17, **names
            )
        except Exception as error:  # the network itself may raise anything
            raise AetherError(
                f"torch {torch.__version__} cannot export it to ONNX: "
                f"{first_line(error)}"
            ) from error
    return content.getvalue()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings and output about code that is not ours."""
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
