"""Compute a pair of ncnn files with NumPy: a second opinion on what was written.

It knows the layers that `checkpoints.ncnn` writes, and reads them from the two files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aethernet.checkpoints.folded import Convolution
from aethernet.checkpoints.reference import (
    convolve,
    convolve_depthwise,
    erf,
    pixel_shuffle,
)
from aethernet.errors import VerificationError

Array = npt.NDArray[np.floating]

_BINARY = {0: np.add, 1: np.subtract, 2: np.multiply, 3: np.divide, 6: np.power}


@dataclass(frozen=True, eq=False)
class _Layer:
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: Mapping[int, float]
    """Parameters by their number."""
    convolution: Convolution | None


@dataclass(frozen=True, eq=False)
class NcnnModel:
    """The layers of an ncnn model, with their weights."""

    layers: Sequence[_Layer]

    def run(self, image: Array, rounded: bool = False) -> Array:
        """Compute "output" of "data" in float32.

        Args:
            image: `(C, H, W)`, 0..1.
            rounded: round each result to float16, as Vulkan clients store them.

        Returns:
            `(C, scale * H, scale * W)`, not clamped; NaN or infinite where float16
            overflows.
        """
        blobs = {"data": _stored(image, rounded)}
        with np.errstate(all="ignore"):  # what overflows shows in the result
            for layer in self.layers:
                if layer.kind == "Input":
                    continue
                inputs = [blobs.pop(name) for name in layer.inputs]
                result = _stored(_result(layer, inputs), rounded)
                blobs |= dict.fromkeys(layer.outputs, result)
        return blobs["output"]


def read_ncnn(param: Path, weights: Path) -> NcnnModel:
    """Read a `.param` file and its `.bin` file.

    Raises:
        VerificationError: when the `.bin` file has another size than its layers.
    """
    content = memoryview(weights.read_bytes())
    layers, start = [], 0
    for line in param.read_text("utf-8").splitlines()[2:]:
        kind, _, inputs, outputs, *words = line.split()
        first = int(inputs)
        last = first + int(outputs)
        pairs = (word.split("=") for word in words[last:])
        numbers = {int(key): float(value) for key, value in pairs}
        convolution = None
        if kind.startswith("Convolution"):
            convolution, start = _convolution(numbers, content, start)
        names = tuple(words[:first]), tuple(words[first:last])
        layers.append(_Layer(kind, *names, numbers, convolution))
    if start != len(content):
        raise VerificationError(
            f"The .bin file has {len(content)} bytes, but its layers take {start}."
        )
    return NcnnModel(layers)


def _convolution(
    numbers: Mapping[int, float], content: memoryview, start: int
) -> tuple[Convolution, int]:
    """A convolution whose weights begin at `start`, and where they end."""
    out, columns, rows, count = (int(numbers[key]) for key in (0, 1, 11, 6))
    tag = np.frombuffer(content, "<u4", 1, start)[0]  # 0 for float32
    start += 4
    weight = np.frombuffer(content, "<f2" if tag else "<f4", count, start)
    start += math.ceil(weight.nbytes / 4) * 4
    bias = np.frombuffer(content, "<f4", out, start)
    shape = (out, -1, rows, columns)
    return Convolution(weight.astype("f4").reshape(shape), bias), start + bias.nbytes


def _result(layer: _Layer, inputs: Sequence[Array]) -> Array:
    (x, *others), numbers = inputs, layer.numbers
    match layer.kind:
        case "Convolution":
            assert layer.convolution is not None
            return convolve(x, layer.convolution)
        case "ConvolutionDepthWise":
            assert layer.convolution is not None
            return convolve_depthwise(x, layer.convolution)
        case "BinaryOp":
            other = others[0] if others else np.float32(numbers[2])
            return np.asarray(_BINARY[int(numbers[0])](x, other))
        case "GELU":
            return np.asarray(x * (0.5 * (1 + erf(x * math.sqrt(0.5)))))
        case "ReLU":
            return np.where(x < 0, x * np.float32(numbers[0]), x)
        case "PixelShuffle":
            return pixel_shuffle(x, int(numbers[0]))
        case "Split":
            return x
    raise VerificationError(f"The layer {layer.kind} is not known.")


def _stored(x: Array, rounded: bool) -> Array:
    return x.astype(np.float16).astype(np.float32) if rounded else x
