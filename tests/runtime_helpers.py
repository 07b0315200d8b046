"""Networks, headers and ONNX files that the tests of runtimes share."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers import lively_arrays, lively_network

from aethernet.checkpoints.checkpoint import write_checkpoint
from aethernet.errors import AetherError
from aethernet.runtimes.native.library import load_kernels
from aethernet.runtimes.tensorrt.header import EngineHeader, header_path
from aethernet.version import __version__

if TYPE_CHECKING:
    from aethernet.aether_core import AetherNet

SMALLEST = {"embed_dim": 4, "depths": (1,), "lk_kernel": 3}


def _without_kernels() -> str:
    """Why the native runtime does not run here, and what to do; else empty."""
    try:
        load_kernels()
    except AetherError as error:
        return f"{error.reason} {error.hint}"
    return ""


NEEDS_KERNELS = pytest.mark.skipif(
    bool(_without_kernels()), reason=_without_kernels() or "built"
)
"""For tests that run the native kernels."""

PICTURE = ["b", 3, "h", "w"]
"""The shape of an ONNX value: RGB pictures of free size."""


def picture_file(path: Path, **arguments: Any) -> Path:
    """Write the checkpoint of a lively network whose output is in 0..1, mostly."""
    weights, hyperparameters = lively_arrays(**arguments)
    weights["conv_last.weight"] *= np.float32(0.1)
    write_checkpoint(weights, hyperparameters, path)
    return path


def picture_network(**arguments: Any) -> "AetherNet":
    """The network of `picture_file` in PyTorch."""
    import torch

    network = lively_network(**arguments)
    with torch.no_grad():
        network.conv_last.weight.mul_(0.1)
    return network


def node(op: str, *names: str, **attributes: Any) -> Any:
    """A node "n1" of an ONNX graph; the last name is its output."""
    import onnx

    return onnx.helper.make_node(op, names[:-1], names[-1:], name="n1", **attributes)


def write_model(
    path: Path,
    nodes: list[Any],
    shapes: dict[str, list[Any]],
    dtype: int = 1,
    weights: Any = (),
) -> Path:
    """Write an ONNX file of these nodes; `shapes` by name, the last is the output."""
    import onnx

    values = [
        onnx.helper.make_tensor_value_info(name, dtype, shape)
        for name, shape in shapes.items()
    ]
    made = onnx.helper.make_graph(nodes, "g", values[:-1], values[-1:], weights)
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(made, opset_imports=[opset]), path)
    return path


def engine_header(**changes: Any) -> EngineHeader:
    """The header of an engine whose content is `b"a plan"`."""
    facts = {
        "library": "tensorrt_rtx",
        "library_version": "1.7.1.116",
        "compute_capabilities": ("8.6+",),
        "gpu": None,
        "precision": "float16",
        "scale": 2,
        "channels": 3,
        "input_name": "input",
        "input_dtype": "float16",
        "output_name": "output",
        "output_dtype": "float16",
        "profile": ((1, 3, 8, 8), (1, 3, 16, 16), (2, 3, 32, 48)),
        "activation_bytes": 1000,
        "onnx_name": "my 2x.onnx",
        "onnx_sha256": "0" * 64,
        "onnx_metadata": {"scale": "2"},
        "engine_sha256": hashlib.sha256(b"a plan").hexdigest(),
        "aethernet_version": __version__,
    }
    return EngineHeader(**{**facts, **changes})


def write_engine(folder: Path, content: bytes = b"a plan", **changes: Any) -> Path:
    """Write an engine and its header; `changes` are of the header."""
    path = folder / "my 2x.engine"
    path.write_bytes(content)
    header_path(path).write_bytes(engine_header(**changes).to_json())
    return path
