"""Checkpoint in, int8 ONNX file out, measured on the user's own pictures.

The 1x1 convolutions, two thirds and more of the work, compute in int8, between
QuantizeLinear and DequantizeLinear (QDQ), the form every runtime reads. The depthwise
and the 3x3 convolutions stay in float32: their activations span too many magnitudes,
and in int8 they cost more than 10 dB (docs/performance.md).
"""

import copy
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aethernet.checkpoints.onnx import (
    OnnxExport,
    ShapeRange,
    describe,
    open_for_export,
    opset_of,
    to_onnx,
    trtexec_command,
)
from aethernet.checkpoints.onnx_check import open_session, verification_images, verify
from aethernet.checkpoints.tolerances import MIN_PSNR, Limits
from aethernet.errors import AetherError, import_optional
from aethernet.files import replacing
from aethernet.pictures.calibration import calibration_pictures

_log = logging.getLogger(__name__)


def export_int8(
    source: str | Path,
    target: str | Path,
    pictures: str | Path,
    *,
    model_type: str | None = None,
    scale: int | None = None,
    param_key: str | None = None,
    dynamic: bool = True,
    shapes: ShapeRange | None = None,
    opset: int | None = None,
    license: str | None = None,
    min_psnr: float = MIN_PSNR["int8"],
    device: str | torch.device = "cpu",
) -> OnnxExport:
    """Write an int8 ONNX file of a checkpoint; input and output stay float32.

    Calibrated on pictures like those it will see: the largest absolute value of every
    activation there becomes 127 (symmetric, as TensorRT wants it); weights have one
    scale a channel. The file is then compared with PyTorch float32 on each of them.

    Args:
        source, model_type, scale, param_key, dynamic, shapes, opset, license, device:
            as for `onnx_export.export_onnx`.
        target: `.onnx`.
        pictures: a folder of LR pictures, searched deeply; the middle 128x128 pixels
            (or the fixed size) of up to 64 of them, spread evenly, are used.
        min_psnr: dB that every picture has to reach.

    Returns:
        `differences` has one entry for each picture, then for the extreme frames, on
        which the values only have to be finite.

    Raises:
        ImageError: when the folder holds no picture that can be used.
        VerificationError: when a picture stays below `min_psnr`; nothing is written.
        CheckpointError, ContradictionError, AetherError: as for `export_onnx`.
    """
    target = Path(target)
    shapes = shapes or ShapeRange()
    checkpoint = open_for_export(source, target, param_key)
    checkpoint.expect(model_type, scale)
    fixed = None if dynamic else shapes.typical
    images = dict(calibration_pictures(Path(pictures), checkpoint, fixed))
    _log.info("exporting")
    model = to_onnx(checkpoint, fixed, opset, "float32")
    _log.info("calibrating on %d pictures", len(images))
    nodes = convolutions(model)["1x1"]
    model = quantized(model, list(images.values()), nodes)
    with replacing(target) as temporary:
        describe(model, checkpoint, "int8", license)
        content = model.SerializeToString()
        temporary.write_bytes(content)
        session = open_session(content)
        limits = Limits(min_psnr)
        differences = verify(session, checkpoint, images.items(), limits, device)
        frames = verification_images(checkpoint, fixed)
        differences |= verify(session, checkpoint, frames, None, device)
    channels = checkpoint.hyperparameters["in_chans"]
    command = trtexec_command(target, channels, shapes if dynamic else None, "int8")
    return OnnxExport(checkpoint, opset_of(model), differences, command)


def convolutions(model: Any) -> dict[str, list[str]]:
    """Names of the convolutions of an exported network: 1x1, depthwise, others."""
    weights = {weight.name: weight.dims for weight in model.graph.initializer}
    found: dict[str, list[str]] = {"1x1": [], "depthwise": [], "others": []}
    for node in model.graph.node:
        if node.op_type == "Conv":
            _, inputs, rows, columns = weights[node.input[1]]
            kind = "depthwise" if inputs == 1 else "others"
            found["1x1" if rows == columns == 1 else kind].append(node.name)
    return found


def quantized(model: Any, images: Sequence[Tensor], nodes: Sequence[str]) -> Any:
    """An exported float32 model with these convolutions in int8 (QDQ).

    Args:
        images: `(B, in_chans, H, W)`, float32, 0..1, to calibrate on.
        nodes: as `convolutions` names them.

    Raises:
        AetherError: when a temporary file cannot be written.
    """
    onnx = import_optional("onnx", "onnx")
    quantization = import_optional("onnxruntime.quantization", "onnx")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.rest = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rest, None)
            return None if image is None else {"input": image.numpy()}

    # It gives advice on the root logger, which would make itself a handler for it.
    root, silence = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.setLevel(logging.ERROR)
    root.addHandler(silence)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "int8.onnx")
            quantization.quantize_static(
                copy.deepcopy(model),  # which it changes
                file,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                nodes_to_quantize=[*nodes],
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                # As TensorRT takes them: no zero points, biases left in float32.
                extra_options={"ActivationSymmetric": True, "QuantizeBias": False},
            )
            result = onnx.load(file)
    except OSError as error:
        raise AetherError(f"Cannot calibrate: {error.strerror or error}.") from error
    finally:
        root.setLevel(level)
        root.removeHandler(silence)
    used = {node.domain for node in result.graph.node}
    for entry in list(result.opset_import):
        if entry.domain not in used:
            result.opset_import.remove(entry)
    return result
