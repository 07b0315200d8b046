"""Write a folded network as an ONNX model, with the package `onnx` alone.

The graph is made of operators that every reader of ONNX has had for years: Conv,
Transpose, LayerNormalization, Erf, DepthToSpace and arithmetic. Free sizes need no
others: there is no Slice, Concat, Shape, Pad or Reshape in the graph.

The opset is 17, the first that has LayerNormalization. GELU became an operator in opset
20, which fewer programs read. Below that it is written in parts, in the order in which
ONNX Runtime finds them and computes GELU in one pass; ONNX Runtime 1.17 reads opset 20,
but computes its Gelu in six passes. Convolutions in bfloat16 need opset 22.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from aethernet.checkpoints.folded import (
    BLOCK_EPS,
    LEAKY_SLOPE,
    NORM_EPS,
    Block,
    Convolution,
    Folded,
    Tail,
)
from aethernet.checkpoints.layout import PRECISIONS, variant_name
from aethernet.errors import AetherError, import_optional
from aethernet.version import __version__

OLDEST_OPSET = 17
GELU_OPSET = 20
BFLOAT16_OPSET = 22
NEWEST_OPSET = 25

Norm = Literal["operator", "parts"]

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Writing:
    """How a network is written."""

    precision: str = "float32"
    """Of weights and activations, a member of `layout.PRECISIONS`. LayerNorm is in
    float32."""
    float32_io: bool = False
    """Input and output are float32 whatever the precision; with bfloat16 always."""
    opset: int | None = None
    """None: `OLDEST_OPSET`, or `BFLOAT16_OPSET` for bfloat16."""
    size: tuple[int, int, int] | None = None
    """Batch, height and width; None leaves them free."""
    norm: Norm = "operator"
    """"operator": LayerNormalization between two Transposes. "parts": as means and
    products over channels, which OpenVINO computes faster and ONNX Runtime slower."""
    half_weights: bool = False
    """Kernels of convolutions are stored in float16, and the rest in float32; a Cast
    that runtimes do once makes them float32. For small files; float32 only."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise AetherError(
                f"There is no precision {self.precision!r}.",
                hint=f"Choose one of {', '.join(PRECISIONS)}.",
            )
        oldest = BFLOAT16_OPSET if self.precision == "bfloat16" else OLDEST_OPSET
        if not oldest <= self.version <= NEWEST_OPSET:
            raise AetherError(
                f"A {self.precision} file can have opset {oldest} to {NEWEST_OPSET}, "
                f"not {self.version}."
            )
        if self.half_weights and self.precision != "float32":
            raise AetherError(
                f"Only a float32 file can store its weights in float16, not one in "
                f"{self.precision}."
            )
        if self.size and min(self.size) < 1:
            raise AetherError(f"Sizes start at 1, not {min(self.size)}.")

    @property
    def version(self) -> int:
        """The opset."""
        default = BFLOAT16_OPSET if self.precision == "bfloat16" else OLDEST_OPSET
        return default if self.opset is None else self.opset

    @property
    def io_precision(self) -> str:
        """Of input and output: "float32" or "float16"."""
        half = self.precision == "float16" and not self.float32_io
        return "float16" if half else "float32"


def to_onnx(
    folded: Folded, writing: Writing | None = None, properties: Mapping[str, str] = {}
) -> Any:
    """Write a folded network as an `onnx.ModelProto`.

    Input "input" `(batch, in_chans, height, width)`, 0..1; output "output"
    `(batch, in_chans, scale * height, scale * width)`, not clamped.

    Args:
        folded: in float32.
        writing: None for float32, free sizes.
        properties: metadata of the model, as `onnx_properties` makes it.

    Raises:
        AetherError: when a weight is too large for float16, or the installed onnx
            older than the opset.
        MissingExtraError: when `onnx` is not installed.
    """
    writing = writing or Writing()
    onnx = import_optional("onnx", "onnx")
    if writing.version > onnx.defs.onnx_opset_version():
        raise AetherError(
            f"The installed onnx {onnx.__version__} has no opset {writing.version}."
        )
    graph = _Graph(onnx, writing)
    _write(graph, folded)
    io, channels = writing.io_precision, folded.in_chans
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "AetherNet",
            [graph.value("input", channels, io, 1)],
            [graph.value("output", channels, io, folded.scale)],
            [*graph.weights.values()],
            value_info=graph.values,
        ),
        opset_imports=[onnx.helper.make_opsetid("", writing.version)],
        producer_name="aethernet",
        producer_version=__version__,
    )
    # As old as the opset allows: readers refuse a newer one than they know.
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    onnx.helper.set_model_props(model, dict(properties))
    return model


def onnx_properties(
    hyperparameters: Mapping[str, Any],
    precision: str,
    opset: int,
    license: str | None = None,
) -> dict[str, str]:
    """What an ONNX file of ours says of itself.

    Args:
        hyperparameters: arguments of `AetherNet`, of either form.
        precision: a member of `layout.PRECISIONS`, or "int8".
        opset: of the file.
        license: of the weights, an SPDX identifier.
    """
    return {
        "architecture": "AetherNet",
        "hyperparameters": json.dumps({**hyperparameters, "fused_init": True}),
        "variant": variant_name(hyperparameters) or "of none of the named sizes",
        "form": "fused",
        "scale": str(hyperparameters["scale"]),
        "precision": precision,
        "opset": str(opset),
        "license": license or "not stated",
        "aethernet_version": __version__,
    }


class _Graph:
    """Nodes and weights so far. A value has the name of the node that makes it.

    The shapes of convolutions' results are stored. ONNX infers none of free sizes, and
    unless ONNX Runtime knows that two values have the same shape, it does not add or
    multiply them in the layout in which it convolves.
    """

    def __init__(self, onnx: Any, writing: Writing) -> None:
        self.onnx, self.writing = onnx, writing
        self.body = writing.precision
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}
        self.values: list[Any] = []
        self.enlarged = 1  # how many times larger the features are than the picture
        types = onnx.TensorProto
        self.kinds = {
            "float32": types.FLOAT,
            "float16": types.FLOAT16,
            "bfloat16": types.BFLOAT16,
        }

    def value(self, name: str, channels: int, precision: str, factor: int) -> Any:
        """The description of a value that is `factor` times larger than the picture."""
        batch, *sides = self.writing.size or ("batch", "height", "width")
        shape = [batch, channels, *(_times(factor, side) for side in sides)]
        make = self.onnx.helper.make_tensor_value_info
        return make(name, self.kinds[precision], shape)

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        make = self.onnx.helper.make_node
        self.nodes.append(make(operator, inputs, [name], name, **attributes))
        return name

    def weight(self, name: str, values: npt.ArrayLike, precision: str) -> str:
        array = np.asarray(values, np.float32)
        if precision == "float16":
            with np.errstate(over="ignore"):
                content = array.astype("<f2")
            if not np.isfinite(content).all():
                raise AetherError(
                    f"The weight {name} is too large for float16, which ends at 65504.",
                    hint="Write float32 or bfloat16.",
                )
        elif precision == "bfloat16":
            content = _bfloat16_bits(array)
        else:
            content = array.astype("<f4")
        self.weights[name] = self.onnx.helper.make_tensor(
            name, self.kinds[precision], array.shape, content.tobytes(), raw=True
        )
        return name

    def cast(self, x: str, name: str, before: str, after: str) -> str:
        if before == after:
            return x
        return self.node("Cast", name, x, to=self.kinds[after])

    def convolution(
        self, name: str, x: str, convolution: Convolution, groups: int = 1
    ) -> str:
        weight, bias = convolution.weight, convolution.bias
        sides = weight.shape[2:]
        margins = [side // 2 for side in sides]
        kernel = self.kernel(f"{name}.weight", weight)
        self.values.append(self.value(name, len(weight), self.body, self.enlarged))
        return self.node(
            "Conv",
            name,
            x,
            kernel,
            self.weight(f"{name}.bias", bias, self.body),
            kernel_shape=sides,
            pads=margins * 2,
            group=groups,
        )

    def kernel(self, name: str, values: npt.ArrayLike) -> str:
        """The weights of a convolution, in the type in which it computes."""
        if not self.writing.half_weights:
            return self.weight(name, values, self.body)
        stored = self.weight(f"{name}.half", values, "float16")
        return self.cast(stored, name, "float16", self.body)

    def mean(self, name: str, x: str) -> str:
        """Over channels."""
        if self.writing.version < 18:
            return self.node("ReduceMean", name, x, axes=[1], keepdims=1)
        axes = self.onnx.numpy_helper.from_array(np.array([1]), "channels")
        self.weights["channels"] = axes
        return self.node("ReduceMean", name, x, "channels", keepdims=1)


def _write(graph: _Graph, folded: Folded) -> None:
    body, io = graph.body, graph.writing.io_precision
    x = "input"
    if folded.mean:
        x = graph.node("Sub", "centred", x, graph.weight("mean", folded.mean, io))
    x = first = graph.convolution(
        "first", graph.cast(x, "narrowed", io, body), folded.first
    )
    channels = len(folded.norm_weight)
    ones, zeros = np.ones(channels), np.zeros(channels)
    for index, block in enumerate(folded.blocks):
        name = f"blocks.{index}"
        branch = graph.convolution(f"{name}.depthwise", x, block.depthwise, channels)
        branch = _normalised(graph, f"{name}.norm", branch, ones, zeros, BLOCK_EPS)
        x = graph.node("Add", name, x, _gated(graph, name, branch, block))
    norm = folded.norm_weight, folded.norm_bias
    x = _normalised(graph, "norm", x, *norm, NORM_EPS)
    x = graph.convolution("after_body", x, folded.after_body)
    x = graph.node("Add", "body", x, first)
    x = graph.convolution("before_upsample", x, folded.before_upsample)
    x = graph.node("LeakyRelu", "leaky", x, alpha=LEAKY_SLOPE)
    for index, (convolution, factor) in enumerate(folded.steps):
        x = graph.convolution(f"upsample.{index}", x, convolution)
        x = _shuffled(graph, f"upsample.{index}.shuffled", x, factor)
        graph.enlarged *= factor
    x = _tail(graph, x, folded.tail)
    x = graph.cast(x, "widened", body, io)
    if folded.mean:
        x = graph.node("Add", "lifted", x, "mean")
    graph.values = [value for value in graph.values if value.name != x]
    graph.nodes[-1].output[0] = "output"


def _normalised(
    graph: _Graph, name: str, x: str, weight: Array, bias: Array, eps: float
) -> str:
    """LayerNorm over channels, in float32: sums of squares overflow float16."""
    body = graph.body
    if graph.writing.norm == "parts":
        x = graph.cast(x, f"{name}.wide", body, "float32")
        x = _norm_in_parts(graph, name, x, eps)
        if not (weight == 1).all() or not (bias == 0).all():
            scale, shift = (
                graph.weight(f"{name}.{kind}", values[:, None, None], "float32")
                for kind, values in (("weight", weight), ("bias", bias))
            )
            x = graph.node("Mul", f"{name}.scaled", x, scale)
            x = graph.node("Add", f"{name}.shifted", x, shift)
        return graph.cast(x, f"{name}.narrow", "float32", body)
    x = graph.node("Transpose", f"{name}.last", x, perm=[0, 2, 3, 1])
    x = graph.node(
        "LayerNormalization",
        name,
        graph.cast(x, f"{name}.wide", body, "float32"),
        graph.weight(f"{name}.weight", weight, "float32"),
        graph.weight(f"{name}.bias", bias, "float32"),
        axis=-1,
        epsilon=eps,
    )
    x = graph.cast(x, f"{name}.narrow", "float32", body)
    return graph.node("Transpose", f"{name}.first", x, perm=[0, 3, 1, 2])


def _norm_in_parts(graph: _Graph, name: str, x: str, eps: float) -> str:
    centred = graph.node("Sub", f"{name}.centred", x, graph.mean(f"{name}.mean", x))
    square = graph.node("Mul", f"{name}.square", centred, centred)
    variance = graph.mean(f"{name}.variance", square)
    small = graph.weight(f"{name}.eps", eps, "float32")
    variance = graph.node("Add", f"{name}.raised", variance, small)
    deviation = graph.node("Sqrt", f"{name}.deviation", variance)
    return graph.node("Div", name, centred, deviation)


def _gated(graph: _Graph, name: str, x: str, block: Block) -> str:
    gate = graph.convolution(f"{name}.gate", x, block.gate)
    main = graph.convolution(f"{name}.main", x, block.main)
    product = graph.node("Mul", f"{name}.product", _gelu(graph, name, gate), main)
    return graph.convolution(f"{name}.last", product, block.last)


def _gelu(graph: _Graph, name: str, x: str) -> str:
    if graph.writing.version >= GELU_OPSET:
        return graph.node("Gelu", f"{name}.gelu", x, approximate="none")
    constants = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    root, one, half = (
        graph.weight(f"gelu.{key}", value, graph.body)
        for key, value in constants.items()
    )
    # In this order runtimes find it again.
    t = graph.node("Div", f"{name}.gelu.divided", x, root)
    t = graph.node("Erf", f"{name}.gelu.erf", t)
    t = graph.node("Add", f"{name}.gelu.raised", t, one)
    t = graph.node("Mul", f"{name}.gelu.weighted", x, t)
    return graph.node("Mul", f"{name}.gelu", t, half)


def _shuffled(graph: _Graph, name: str, x: str, factor: int) -> str:
    return graph.node("DepthToSpace", name, x, blocksize=factor, mode="CRD")


def _tail(graph: _Graph, x: str, tail: Tail) -> str:
    """The tail without `mean`, exact at the edges of the picture, see `folded.Edges`.

    The outermost rows and columns are found without a Slice: a plane of ones is
    convolved with a kernel that looks one position beyond, where padding is zero.
    """
    whole = graph.convolution("tail", x, tail.whole)
    if tail.edges is None:
        return whole
    plane = np.zeros((1, tail.whole.weight.shape[1], 1, 1))
    ones = graph.convolution("tail.ones", x, Convolution(plane, np.ones(1)))
    at_rows, at_columns = (
        graph.convolution(f"tail.at_{kind}", ones, edge_mask(tail, kind))
        for kind in ("rows", "columns")
    )
    # Added, not subtracted: ONNX Runtime adds inside its convolutions.
    rows = graph.convolution("tail.rows", x, _negative(tail.edges.rows))
    columns = graph.convolution("tail.columns", x, _negative(tail.edges.columns))
    corners = graph.convolution("tail.corners", x, tail.edges.corners)
    corners = graph.node("Mul", "tail.corners.masked", corners, at_rows)
    columns = graph.node("Add", "tail.columns.with_corners", columns, corners)
    columns = graph.node("Mul", "tail.columns.masked", columns, at_columns)
    rows = graph.node("Mul", "tail.rows.masked", rows, at_rows)
    inner = graph.node("Add", "tail.with_rows", whole, rows)
    inner = graph.node("Add", "tail.with_columns", inner, columns)
    return _shuffled(graph, "tail.shuffled", inner, tail.factor)


def _negative(convolution: Convolution) -> Convolution:
    return Convolution(-convolution.weight, -convolution.bias)


def edge_mask(tail: Tail, kind: Literal["rows", "columns"]) -> Convolution:
    """The convolution that makes a mask of a plane of ones, `(1, H, W)`.

    The mask has the channels of `tail.whole`: 1 at the positions where `tail.edges`
    counts for that pixel of a position, else 0.
    """
    factor = tail.factor
    out = (len(tail.whole.bias) // factor**2, factor, factor)
    kernel, bias = np.zeros((*out, 3), np.float32), np.zeros(out, np.float32)
    pixels = np.moveaxis(kernel, 2, 1) if kind == "columns" else kernel
    edges = np.moveaxis(bias, 2, 1) if kind == "columns" else bias
    for pixel, beyond in ((0, 0), (factor - 1, 2)):
        pixels[:, pixel, :, beyond] = -1
        edges[:, pixel] = 1
    sides = (1, 3) if kind == "columns" else (3, 1)
    return Convolution(kernel.reshape(-1, 1, *sides), bias.ravel())


def _times(scale: int, side: int | str) -> int | str:
    if isinstance(side, int):
        return scale * side
    return f"{scale}*{side}" if scale > 1 else side


def _bfloat16_bits(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper half of the bits, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(array, "<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
