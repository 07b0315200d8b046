"""Facts about checkpoints and ONNX files, for people to read."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aethernet.aether_core import AetherNet, variant_name
from aethernet.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointOptions,
    form_name,
    load_checkpoint,
)
from aethernet.errors import AetherError, import_optional
from aethernet.files import check_source

# Names and values, in reading order.
Facts = list[tuple[str, str]]


def describe_file(path: str | Path, param_key: str | None = None) -> Facts:
    """Facts about a checkpoint or an ONNX file.

    Args:
        path: of the file.
        param_key: of a checkpoint, as in `CheckpointOptions`.

    Raises:
        MissingExtraError: for an ONNX file when onnx is not installed.
        AetherError: when the file is neither, or is damaged.
    """
    path = Path(path)
    if path.suffix.lower() == ".onnx":
        return _describe_onnx(path)
    options = CheckpointOptions(param_key=param_key)
    return _describe_checkpoint(load_checkpoint(path, options))


def multiply_adds_per_pixel(network: AetherNet) -> int:
    """Multiply-adds of one forward pass per LR pixel.

    Each weight of a convolution or a product is used once per position. Positions are
    LR pixels up to the first PixelShuffle; a PixelShuffle multiplies their number by
    its factor squared. The small kernel of the training form is added to the large one
    before it is used.
    """
    total, positions = 0, 1
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.endswith("sk_conv"):
            total += module.weight.numel() * positions
        elif isinstance(module, nn.PixelShuffle):
            positions *= module.upscale_factor**2
    return total


def describe_network(hyperparameters: dict[str, Any]) -> Facts:
    """Facts about the network that `AetherNet(**hyperparameters)` makes.

    Raises:
        TypeError, ValueError, ArithmeticError, RuntimeError: when it is impossible.
    """
    with torch.device("meta"):  # takes no memory
        network = AetherNet(**hyperparameters)
    hyperparameters = network.hyperparameters
    depths = hyperparameters["depths"]
    kernels = str(hyperparameters["lk_kernel"])
    if not network.is_fused:
        kernels += f" and {hyperparameters['sk_kernel']}"
    scale = hyperparameters["scale"]
    return [
        ("form", form_name(network.is_fused)),
        ("variant", variant_name(hyperparameters) or "not a named one"),
        ("scale", f"{scale}x" + (" (restoration)" if scale == 1 else "")),
        ("image channels", str(network.in_chans)),
        ("width", f"{hyperparameters['embed_dim']} channels"),
        ("depth", f"{sum(depths)} blocks in {len(depths)} groups {depths}"),
        ("depthwise kernels", kernels),
        ("parameters", f"{sum(p.numel() for p in network.parameters()):,}"),
        ("multiply-adds", f"{multiply_adds_per_pixel(network):,} per input pixel"),
        ("receptive radius", f"{network.receptive_radius} input pixels on each side"),
    ]


def _describe_checkpoint(checkpoint: Checkpoint) -> Facts:
    wrapper = checkpoint.wrapper or "none, bare weights"
    if checkpoint.other_wrappers:
        wrapper += f" (the file also has {', '.join(checkpoint.other_wrappers)})"
    return [
        ("file", str(checkpoint.path)),
        *describe_network(checkpoint.hyperparameters),
        ("dtype", str(checkpoint.dtype).removeprefix("torch.")),
        ("wrapper", wrapper),
        *_metadata(checkpoint.metadata),
    ]


def _describe_onnx(path: Path) -> Facts:
    onnx = import_optional("onnx", "onnx")
    check_source(path, "an ONNX file")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's errors share no base
        raise AetherError("Not a valid ONNX file.", path) from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    facts: Facts = [("file", str(path))]
    if metadata.get("architecture") == "AetherNet":
        try:
            arguments = json.loads(metadata["hyperparameters"])
            if sum(arguments["depths"]) > len(model.graph.node):
                raise ValueError("more blocks than the graph has nodes")
            facts += describe_network(arguments)
        except (
            LookupError,
            TypeError,
            ArithmeticError,
            ValueError,
            RuntimeError,
        ) as error:
            raise AetherError("The AetherNet metadata is damaged.", path) from error
    else:
        facts.append(("architecture", "unknown, not exported by AetherNet"))
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            sides = [d.dim_param or str(d.dim_value) for d in tensor.shape.dim]
            dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
            facts.append((kind, f"{value.name} ({', '.join(sides)}) {dtype}"))
    opsets = [f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import]
    return [*facts, ("opset", ", ".join(opsets)), *_metadata(metadata)]


def _metadata(metadata: dict[str, str]) -> Facts:
    if not metadata:
        return [("metadata", "none")]
    return [("metadata", f"{key} = {value}") for key, value in metadata.items()]
