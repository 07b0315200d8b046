"""Write checkpoints as int8 ONNX files, calibrated and verified on given pictures.

The 1x1 convolutions of the blocks, at least two thirds of the work, compute in int8,
between QuantizeLinear and DequantizeLinear (QDQ), which every runtime reads. The
depthwise and the 3x3 convolutions stay in float32: their activations span too many
magnitudes, and in int8 they cost more than 10 dB (docs/performance.md).
"""

import copy
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from aethernet.checkpoints.checkpoint import Checkpoint
from aethernet.checkpoints.comparison import (
    Network,
    network_of,
    verification_images,
)
from aethernet.checkpoints.onnx import (
    ExportOptions,
    OnnxExport,
    check_export,
    describe,
    export_result,
)
from aethernet.checkpoints.onnx_check import open_session, session_run, verify
from aethernet.checkpoints.onnx_graph import to_onnx
from aethernet.checkpoints.tolerances import MIN_PSNR, Tolerance
from aethernet.errors import AetherError, import_optional, system_reason
from aethernet.files import replacing

_log = logging.getLogger(__name__)

# The last part of the name of a block's convolution, see `onnx_graph`.
_KINDS = {
    "depthwise": "depthwise",
    "gate": "projections",
    "main": "projections",
    "last": "projections",
}


def export_int8(
    source: Checkpoint,
    target: str | Path,
    pictures: Mapping[str, np.ndarray],
    options: ExportOptions | None = None,
    min_psnr: float = MIN_PSNR["int8"],
) -> OnnxExport:
    """Write a checkpoint as an int8 ONNX file; input and output stay float32.

    The largest absolute value of each activation on the pictures becomes 127
    (symmetric, as TensorRT requires); weights have one scale per channel. The file is
    then compared on each picture with the same graph in float32, which is itself
    compared with the network as `export_onnx` does.

    Args:
        source: either form.
        target: `.onnx`.
        pictures: by name, `(batch, in_chans, H, W)`, float32, 0..1, of the fixed size
            if the file has one: pictures like those the model will see
            (`pictures.calibration`).
        options: `precision`, `float32_io`, `atol` and `rtol` do not apply.
        min_psnr: dB that the file has to reach on each picture.

    Returns:
        `differences` has an entry for each picture and for each extreme frame. On the
        frames, the values only have to be finite.

    Raises:
        VerificationError: when a picture stays below `min_psnr`; nothing is written.
        MissingExtraError, AetherError: as for `export_onnx`.
    """
    target = Path(target)
    options = replace(options or ExportOptions(), precision="int8")
    check_export(target)
    _log.info("exporting")
    plain = _plain(source, options)
    model = to_onnx(source.folded, options.writing)
    _log.info("calibrating on %d pictures", len(pictures))
    nodes = convolutions(model)["projections"]
    model = quantized(model, [*pictures.values()], nodes)
    frames = verification_images(source.in_chans, options.verify, options.fixed_size)
    with replacing(target) as temporary:
        describe(model, source, "int8", options.license)
        content = model.SerializeToString()
        temporary.write_bytes(content)
        session = open_session(content)
        cases = plain.cases(pictures.items())
        differences = verify(session, cases, Tolerance(min_psnr))
        differences |= verify(session, plain.cases(frames), None)
    return export_result(model, source, target, options, differences, plain.by)


def _plain(source: Checkpoint, options: ExportOptions) -> Network:
    """The float32 graph with free sizes in ONNX Runtime, compared with the network."""
    writing = replace(options, dynamic=True).writing
    session = open_session(to_onnx(source.folded, writing).SerializeToString())
    images = verification_images(source.in_chans, options.verify)
    cases = network_of(source, options.verify).cases(images)
    verify(session, cases, Tolerance.of("float32"))
    return Network("the same file in float32", session_run(session))


def convolutions(model: Any) -> dict[str, list[str]]:
    """Names of an exported network's convolutions, by kind.

    "projections" are the 1x1 convolutions of the blocks. The tail's own 1x1 convolution
    is among the "others": it corrects the edges of the picture.
    """
    found: dict[str, list[str]] = {"projections": [], "depthwise": [], "others": []}
    for node in model.graph.node:
        if node.op_type == "Conv":
            block, _, part = node.name.rpartition(".")
            in_block = block.startswith("blocks.")
            found[_KINDS[part] if in_block else "others"].append(node.name)
    return found


def quantized(model: Any, images: Sequence[np.ndarray], nodes: Sequence[str]) -> Any:
    """A copy of an exported float32 model with some convolutions in int8 (QDQ).

    Args:
        model: is not changed.
        images: `(B, in_chans, H, W)`, float32, 0..1, to calibrate on.
        nodes: names of these convolutions.

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
            return None if image is None else {"input": image}

    # ONNX Runtime logs advice on the root logger, which would then print it.
    root, silence = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.setLevel(logging.ERROR)
    root.addHandler(silence)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "int8.onnx")
            quantization.quantize_static(
                copy.deepcopy(model),  # it changes its argument
                file,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                nodes_to_quantize=[*nodes],
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                # As TensorRT requires: no zero points, biases in float32.
                extra_options={"ActivationSymmetric": True, "QuantizeBias": False},
            )
            result = onnx.load(file)
    except OSError as error:
        detail = system_reason(error)
        raise AetherError(f"Cannot calibrate: {detail}.") from error
    finally:
        root.setLevel(level)
        root.removeHandler(silence)
    used = {node.domain for node in result.graph.node}
    for entry in list(result.opset_import):
        if entry.domain not in used:
            result.opset_import.remove(entry)
    return result
