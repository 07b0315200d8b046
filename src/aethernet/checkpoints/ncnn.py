"""Write a folded network for ncnn: a `.param` file (text) and a `.bin` file (weights).

They are written directly, in ncnn's own format (Tencent/ncnn, docs/developer-guide:
param-and-model-file-structure, operators). Input blob "data", output blob "output", as
Upscayl and realesrgan-ncnn-vulkan expect. Sizes are free; ncnn has no batches.

The layers are those that run on Vulkan and that Upscayl builds ncnn with (upscayl-ncnn,
src/CMakeLists.txt, which leaves out UnaryOp and Scale): matrix products are 1x1
convolutions, and so are LayerNorm's means over channels. A blob that two layers read
needs a Split in between. realesrgan-ncnn-vulkan and realesrgan-ncnn-py are built
without ConvolutionDepthWise, so they cannot load any network of this kind.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

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
from aethernet.checkpoints.onnx_graph import edge_mask
from aethernet.checkpoints.reference import largest_deviations
from aethernet.checkpoints.verification import verification_frames
from aethernet.errors import AetherError
from aethernet.files import check_target, replacing

PRECISIONS = ("float32", "float16")

_MAGIC = 7767517  # of .param files
_FLOAT32_TAG = np.array([0], "<u4").tobytes()
_FLOAT16_TAG = np.array([0x01306B47], "<u4").tobytes()
_ADD, _SUBTRACT, _MULTIPLY, _DIVIDE, _POWER = 0, 1, 2, 3, 6  # BinaryOp

_LARGEST_DEVIATION = 64  # see _parts
_FRAME = (16, 17)  # of the pictures there

Array = npt.NDArray[np.floating]


@dataclass
class _Files:
    """Layers and weights so far."""

    half: bool
    lines: list[str] = field(default_factory=list)
    blobs: int = 0
    weights: list[bytes] = field(default_factory=list)

    def layer(
        self, kind: str, name: str, inputs: list[str], outputs: list[str], **values: str
    ) -> None:
        """Add a layer; `values` are its parameters by number, as `_3="1"`."""
        parameters = [f"{key[1:]}={value}" for key, value in values.items()]
        counts = [str(len(inputs)), str(len(outputs))]
        words = [f"{kind:<24}", f"{name:<24}", *counts, *inputs, *outputs, *parameters]
        self.lines.append(" ".join(words))
        self.blobs += len(outputs)

    def split(self, x: str, count: int = 2) -> list[str]:
        copies = [f"{x}_{index}" for index in range(count)]
        self.layer("Split", f"{x}_split", [x], copies)
        return copies

    def binary(self, name: str, a: str, b: str | float, operator: int) -> str:
        if isinstance(b, float):
            scalar = {"_1": "1", "_2": f"{b:.9e}"}
            self.layer("BinaryOp", name, [a], [name], _0=str(operator), **scalar)
        else:
            self.layer("BinaryOp", name, [a, b], [name], _0=str(operator))
        return name

    def convolution(
        self, name: str, x: str, convolution: Convolution, groups: int = 1
    ) -> str:
        weight, bias = convolution.weight, convolution.bias
        rows, columns = weight.shape[2:]
        values = {
            "_0": str(len(weight)),
            "_1": str(columns),
            "_11": str(rows),
            "_4": str(columns // 2),
            "_14": str(rows // 2),
            "_5": "1",
            "_6": str(weight.size),
        }
        kind = "Convolution"
        if groups > 1:
            kind, values["_7"] = "ConvolutionDepthWise", str(groups)
        self.layer(kind, name, [x], [name], **values)
        self.weights += [_tagged(name, weight, self.half), _plain(bias)]
        return name


def check_ncnn_target(target: Path) -> None:
    """Check that ncnn files can have this name, before any work is done for them.

    Raises:
        AetherError: when they cannot.
    """
    if target.suffix.lower() != ".param":
        raise AetherError("Cannot be written: the suffix is not .param.", target)
    for file in (target, target.with_suffix(".bin")):
        check_target(file)


def write_ncnn(
    folded: Folded,
    target: Path,
    precision: str = "float32",
    check: Callable[[Path, Path], None] | None = None,
) -> None:
    """Write a folded network as `target` (`.param`) and, beside it, its `.bin` file.

    Args:
        folded: in float32.
        target: ends in `.param`; the other file has the same name with `.bin`.
        precision: of the weights, "float32" or "float16"; biases are float32 always.
        check: called with the paths of both files before they are moved to their
            places. An error that it raises is passed on, and no file is kept.

    Raises:
        AetherError: when `target` has another suffix, a weight is too large for
            float16, or the files cannot be written.
    """
    check_ncnn_target(target)
    text, content = to_ncnn(folded, precision)
    written = text.encode()  # without the line ends of Windows
    before = target.read_bytes() if target.is_file() else None
    try:
        with replacing(target.with_suffix(".bin")) as weights:
            weights.write_bytes(content)
            with replacing(target) as layers:
                layers.write_bytes(written)
                if check:
                    check(layers, weights)
    except BaseException:
        # The layers may be in their place when moving the weights there fails.
        if target.is_file() and target.read_bytes() == written != before:
            _put_back(target, before)
        raise


def _put_back(target: Path, before: bytes | None) -> None:
    if before is None:
        target.unlink()
        return
    with replacing(target) as temporary:
        temporary.write_bytes(before)


def to_ncnn(folded: Folded, precision: str = "float32") -> tuple[str, bytes]:
    """The content of a `.param` file and of a `.bin` file, see `write_ncnn`."""
    if precision not in PRECISIONS:
        raise AetherError(
            f"ncnn files are {' or '.join(PRECISIONS)}, not {precision!r}."
        )
    files = _Files(half=precision == "float16")
    files.layer("Input", "data", [], ["data"])
    x = "data"
    if folded.mean:
        x = files.binary("centred", x, folded.mean, _SUBTRACT)
    first, x = files.split(files.convolution("first", x, folded.first))
    *parts, last = _parts(folded)
    for index, (block, part) in enumerate(zip(folded.blocks, parts, strict=True)):
        x = _block(files, f"block{index}", x, block, part)
    if last < 1:
        x = files.binary("norm_part", x, last, _MULTIPLY)
    x = _normalised(files, "norm", x, len(folded.norm_weight), NORM_EPS * last**2)
    scale = Convolution(folded.norm_weight[:, None, None, None], folded.norm_bias)
    x = files.convolution("norm_scaled", x, scale, len(folded.norm_bias))
    x = files.convolution("after_body", x, folded.after_body)
    x = files.binary("body", x, first, _ADD)
    x = files.convolution("before_upsample", x, folded.before_upsample)
    files.layer("ReLU", "leaky", [x], ["leaky"], _0=f"{LEAKY_SLOPE:.9e}")
    x = "leaky"
    for index, (convolution, factor) in enumerate(folded.steps):
        x = files.convolution(f"upsample{index}", x, convolution)
        x = _shuffled(files, f"shuffle{index}", x, factor)
    x = _tail(files, x, folded.tail)
    # One more layer whatever `mean` is, to give the result its name.
    files.binary("output", x, folded.mean, _ADD)
    head = [str(_MAGIC), f"{len(files.lines)} {files.blobs}"]
    return "\n".join([*head, *files.lines, ""]), b"".join(files.weights)


def _parts(folded: Folded) -> list[float]:
    """Of each block, the part of its convolution that is computed: 1, 1/2, 1/4, ..

    The last one is that of the norm after the blocks. LayerNorm gives the same for all
    of them. Programs that use Vulkan keep its squares in float16, which ends at 65504:
    the part keeps them below 64 squared on the pictures that files are verified with.
    """
    frames = verification_frames(*_FRAME, folded.in_chans).values()
    found = [largest_deviations(folded, frame[0]) for frame in frames]
    return [
        2.0 ** -max(0, math.ceil(math.log2(max(each) / _LARGEST_DEVIATION)))
        if 0 < max(each) < math.inf
        else 1.0
        for each in zip(*found, strict=True)
    ]


def _block(files: _Files, name: str, x: str, block: Block, part: float) -> str:
    x, branch = files.split(x)
    channels = len(block.depthwise.bias)
    weight, bias = block.depthwise.weight * part, block.depthwise.bias * part
    branch = files.convolution(
        f"{name}_depthwise", branch, Convolution(weight, bias), channels
    )
    branch = _normalised(files, f"{name}_norm", branch, channels, BLOCK_EPS * part**2)
    gate, main = files.split(branch)
    gate = files.convolution(f"{name}_gate", gate, block.gate)
    files.layer("GELU", f"{name}_gelu", [gate], [f"{name}_gelu"], _0="0")  # the exact
    main = files.convolution(f"{name}_main", main, block.main)
    product = files.binary(f"{name}_product", f"{name}_gelu", main, _MULTIPLY)
    branch = files.convolution(f"{name}_last", product, block.last)
    return files.binary(f"{name}_sum", x, branch, _ADD)


def _normalised(files: _Files, name: str, x: str, channels: int, eps: float) -> str:
    """LayerNorm over channels without scale and shift; means are 1x1 convolutions."""
    weights = np.full((1, channels, 1, 1), 1 / channels)
    x, copy = files.split(x)
    mean = files.convolution(f"{name}_mean", copy, Convolution(weights, np.zeros(1)))
    x = files.binary(f"{name}_centred", x, mean, _SUBTRACT)
    x, copy, other = files.split(x, 3)
    square = files.binary(f"{name}_square", copy, other, _MULTIPLY)
    raised = Convolution(weights, np.array([eps]))
    variance = files.convolution(f"{name}_variance", square, raised)
    deviation = files.binary(f"{name}_deviation", variance, 0.5, _POWER)
    return files.binary(name, x, deviation, _DIVIDE)


def _tail(files: _Files, x: str, tail: Tail) -> str:
    """As `onnx_graph` writes it: masks are found by what padding does to ones."""
    if tail.edges is None:
        return files.convolution("tail", x, tail.whole)
    inputs = files.split(x, 5)
    whole = files.convolution("tail", inputs[0], tail.whole)
    rows = files.convolution("tail_rows", inputs[1], tail.edges.rows)
    columns = files.convolution("tail_columns", inputs[2], tail.edges.columns)
    corners = files.convolution("tail_corners", inputs[3], tail.edges.corners)
    plane = np.zeros((1, tail.whole.weight.shape[1], 1, 1))
    ones = files.convolution("ones", inputs[4], Convolution(plane, np.ones(1)))
    one, other = files.split(ones)
    at_rows = files.convolution("at_rows", one, edge_mask(tail, "rows"))
    at_columns = files.convolution("at_columns", other, edge_mask(tail, "columns"))
    at_rows, again = files.split(at_rows)
    corners = files.binary("corners_masked", corners, at_rows, _MULTIPLY)
    columns = files.binary("columns_less", columns, corners, _SUBTRACT)
    columns = files.binary("columns_masked", columns, at_columns, _MULTIPLY)
    rows = files.binary("rows_masked", rows, again, _MULTIPLY)
    inner = files.binary("less_rows", whole, rows, _SUBTRACT)
    inner = files.binary("less_columns", inner, columns, _SUBTRACT)
    return _shuffled(files, "tail_shuffled", inner, tail.factor)


def _shuffled(files: _Files, name: str, x: str, factor: int) -> str:
    files.layer("PixelShuffle", name, [x], [name], _0=str(factor))
    return name


def _plain(values: Array) -> bytes:
    return values.astype("<f4").tobytes()


def _tagged(name: str, values: Array, half: bool) -> bytes:
    """Weights after the word that says what they are, in a multiple of four bytes."""
    if not half:
        return _FLOAT32_TAG + _plain(values)
    with np.errstate(over="ignore"):
        narrow = values.astype("<f2")
    if not np.isfinite(narrow).all():
        raise AetherError(
            f"The weight {name} is too large for float16, which ends at 65504.",
            hint="Write float32.",
        )
    content = narrow.tobytes()
    return _FLOAT16_TAG + content + b"\0" * (-len(content) % 4)
