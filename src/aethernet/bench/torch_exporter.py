"""ONNX files as torch's exporter writes them, for comparisons.

`aethernet export` writes its files without it, see `checkpoints.onnx_graph`.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from aethernet.aether_core import AetherNet
from aethernet.errors import AetherError, import_optional

# The first opset with GELU as one operator: ONNX Runtime does not fuse the parts that
# torch's exporter writes for older ones.
EXPORTER_OPSET = 20

# Size of the image that the exporter traces; a 1 would become a constant.
_EXAMPLE_SIZE = (2, 24, 40)


def plain_onnx(network: AetherNet, size: tuple[int, int, int]) -> bytes:
    """An ONNX file of one `(batch, height, width)` in float32, without rewriting.

    Benchmarks compare with it. `network` is exported in the form that it has.
    """
    model = exported(network, network.in_chans, size, EXPORTER_OPSET, torch.float32)
    return model.SerializeToString()


def exported(
    network: nn.Module,
    in_chans: int,
    fixed: tuple[int, int, int] | None,
    opset: int,
    dtype: torch.dtype,
) -> Any:
    """Any network for pictures as an ONNX model, from "input" to "output".

    Args:
        network: takes `(batch, in_chans, height, width)`.
        in_chans: channels of its input.
        fixed: batch, height and width; None leaves them free.
        opset: of the file.
        dtype: of the input.

    Raises:
        AetherError: when it cannot be exported with this opset.
        MissingExtraError: when onnx or onnxscript is not installed.
    """
    onnx = import_optional("onnx")
    import_optional("onnxscript", "bench")
    example = _example_input(in_chans, fixed or _EXAMPLE_SIZE, dtype)
    free = {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings(), _quiet_exporter():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=None if fixed else (free,),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise AetherError(
                f"torch {torch.__version__} cannot export this network with opset "
                f"{opset}.",
                hint="Use the default opset.",
            ) from error
    assert program is not None  # it is None only when torch writes the file itself
    model = program.model_proto
    written = {entry.domain: entry.version for entry in model.opset_import}
    if written != {"": opset}:
        raise AetherError(
            f"torch {torch.__version__} wrote opset {written.get('', written)} "
            f"instead of {opset}.",
            hint="Use the default opset.",
        )
    _forget_origin(model)
    # The oldest that the opset allows: readers refuse versions that they do not know.
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    return model


def _example_input(
    in_chans: int, size: tuple[int, int, int], dtype: torch.dtype
) -> torch.Tensor:
    batch, height, width = size
    try:
        return torch.zeros(batch, in_chans, height, width, dtype=dtype)
    except RuntimeError as error:
        raise AetherError(
            f"Not enough memory for an input of {batch}x{in_chans}x{height}x{width}.",
            hint="Choose a smaller size.",
        ) from error


def _forget_origin(model: Any) -> None:
    """Drop the exporter's stack traces: they contain the author's folders."""
    graph = model.graph
    for part in (
        graph,
        *graph.node,
        *graph.initializer,
        *graph.value_info,
        *graph.input,
        *graph.output,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide the exporter's progress messages; its errors are exceptions."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
