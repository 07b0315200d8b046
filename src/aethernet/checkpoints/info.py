"""Facts about checkpoints and ONNX files, for people to read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aethernet.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointOptions,
    form_name,
    load_checkpoint,
)
from aethernet.checkpoints.formats import SUFFIXES
from aethernet.checkpoints.layout import (
    MOST_BLOCKS,
    UPSAMPLE_FACTORS,
    check_arguments,
    expected_shapes,
    receptive_radius,
    variant_name,
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
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return _describe_onnx(path)
    if suffix not in SUFFIXES:
        check_source(path, "a model file")
        known = ", ".join((*SUFFIXES, ".onnx"))
        raise AetherError(f"Files that can be described have the suffix {known}.", path)
    options = CheckpointOptions(param_key=param_key)
    return _describe_checkpoint(load_checkpoint(path, options))


def multiply_adds_per_pixel(hyperparameters: Mapping[str, Any]) -> int:
    """Multiply-adds of one forward pass per LR pixel.

    Each weight of a convolution or a product is used once per position. Positions are
    LR pixels up to the first PixelShuffle; a PixelShuffle multiplies their number by
    its factor squared. The small kernel of the training form is added to the large one
    before it is used.

    Args:
        hyperparameters: arguments of `AetherNet`, as `Checkpoint` has them.
    """
    total, positions = 0, 1
    factors = iter(UPSAMPLE_FACTORS[hyperparameters["scale"]])
    for key, shape in expected_shapes(hyperparameters).items():
        if len(shape) > 1 and "sk_conv" not in key:
            total += math.prod(shape) * positions
            if key.startswith("upsample."):
                positions *= next(factors) ** 2
    return total


def describe_network(hyperparameters: Mapping[str, Any]) -> Facts:
    """Facts about the network that `AetherNet(**hyperparameters)` makes.

    Args:
        hyperparameters: as `Checkpoint` has them.

    Raises:
        LookupError, TypeError, ArithmeticError, ValueError: when it is impossible.
    """
    check_arguments(hyperparameters)
    depths = tuple(hyperparameters["depths"])
    kernels, fused = str(hyperparameters["lk_kernel"]), hyperparameters["fused_init"]
    if not fused:
        kernels += f" and {hyperparameters['sk_kernel']}"
    scale = hyperparameters["scale"]
    variant = variant_name({**hyperparameters, "depths": depths})
    count = sum(map(math.prod, expected_shapes(hyperparameters).values()))
    cost = multiply_adds_per_pixel(hyperparameters)
    radius = receptive_radius(hyperparameters)
    return [
        ("form", form_name(fused)),
        ("variant", variant or "not a named one"),
        ("scale", f"{scale}x" + (" (restoration)" if scale == 1 else "")),
        ("image channels", str(hyperparameters["in_chans"])),
        ("width", f"{hyperparameters['embed_dim']} channels"),
        ("depth", f"{sum(depths)} blocks in {len(depths)} groups {depths}"),
        ("depthwise kernels", kernels),
        ("parameters", f"{count:,}"),
        ("multiply-adds", f"{cost:,} per input pixel"),
        ("receptive radius", f"{radius} input pixels on each side"),
    ]


def _describe_checkpoint(checkpoint: Checkpoint) -> Facts:
    wrapper = checkpoint.wrapper or "none, bare weights"
    if checkpoint.other_wrappers:
        wrapper += f" (the file also has {', '.join(checkpoint.other_wrappers)})"
    return [
        ("file", str(checkpoint.path)),
        *describe_network(checkpoint.hyperparameters),
        ("dtype", checkpoint.dtype),
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
    try:
        metadata = {entry.key: entry.value for entry in model.metadata_props}
    except UnicodeDecodeError as error:
        raise AetherError("The metadata is no valid UTF-8.", path) from error
    facts: Facts = [("file", str(path))]
    if metadata.get("architecture") == "AetherNet":
        try:
            arguments = json.loads(metadata["hyperparameters"])
            if sum(arguments["depths"]) > min(len(model.graph.node), MOST_BLOCKS):
                raise ValueError("more blocks than the graph has nodes")
            facts += describe_network(arguments)
        except (
            LookupError,
            TypeError,
            ArithmeticError,
            ValueError,
            RecursionError,
        ) as error:
            raise AetherError("The AetherNet metadata is damaged.", path) from error
    else:
        facts.append(("architecture", "unknown, not exported by AetherNet"))
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            sides = [d.dim_param or str(d.dim_value) for d in tensor.shape.dim]
            try:
                dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
            except ValueError as error:
                raise AetherError(
                    f"The {kind} has the type {tensor.elem_type}, which ONNX lacks.",
                    path,
                ) from error
            facts.append((kind, f"{value.name} ({', '.join(sides)}) {dtype}"))
    opsets = [f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import]
    return [*facts, ("opset", ", ".join(opsets)), *_metadata(metadata)]


def _metadata(metadata: dict[str, str]) -> Facts:
    if not metadata:
        return [("metadata", "none")]
    return [("metadata", f"{key} = {value}") for key, value in metadata.items()]
