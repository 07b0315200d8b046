"""Write checkpoints as ONNX files, and verify that these compute the same."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aethernet.aether_core import AetherNet
from aethernet.checkpoints.checkpoint import Checkpoint
from aethernet.checkpoints.onnx_check import (
    open_session,
    rounding_session,
    verification_images,
    verify,
)
from aethernet.checkpoints.rewrites import PRECISIONS, ConvolutionBlock, rewritten
from aethernet.checkpoints.tolerances import Tolerance
from aethernet.checkpoints.verification import Difference
from aethernet.errors import AetherError, import_optional
from aethernet.files import command_line, replacing
from aethernet.version import __version__

_log = logging.getLogger(__name__)

# The first opset with GELU as one operator: ONNX Runtime does not fuse its parts.
DEFAULT_OPSET = 20
# The first opset whose convolution takes bfloat16.
BFLOAT16_OPSET = 22

# Largest batch, height and width. The tensors of an image still have to fit in memory.
_LARGEST = 1 << 20

# Size of the image that the exporter traces; a 1 would become a constant.
_EXAMPLE_SIZE = (2, 24, 40)


@dataclass(frozen=True)
class ShapeRange:
    """Smallest, typical and largest `(batch, height, width)` in LR pixels."""

    minimum: tuple[int, int, int] = (1, 32, 32)
    typical: tuple[int, int, int] = (1, 256, 256)
    maximum: tuple[int, int, int] = (1, 1080, 1920)

    def __post_init__(self) -> None:
        sides = ("batch size", "height", "width")
        for side, low, middle, high in zip(
            sides, self.minimum, self.typical, self.maximum, strict=True
        ):
            if not 1 <= low <= middle <= high:
                raise AetherError(
                    f"The {side} must not fall from min to opt to max, or be below 1: "
                    f"min {low}, opt {middle}, max {high}."
                )
            if high > _LARGEST:
                raise AetherError(f"The {side} is at most {_LARGEST}, not {high}.")


@dataclass(frozen=True)
class ExportOptions:
    """How an ONNX file is written, and how close to PyTorch it has to compute."""

    dynamic: bool = False
    """Leave batch, height and width free; else they are `shapes.typical`."""
    shapes: ShapeRange = field(default_factory=ShapeRange)
    """The fixed size, and the range for the TensorRT command."""
    opset: int | None = None
    """17 or newer. None: `DEFAULT_OPSET`, or `BFLOAT16_OPSET` for bfloat16."""
    precision: str = "float32"
    """ "float32"; "float16", with input and output in float16; "bfloat16", with input
    and output in float32. LayerNorm is always in float32."""
    license: str | None = None
    """SPDX identifier of the weights' licence, for the metadata. None: the one in the
    metadata of the checkpoint, if any."""
    atol: float | None = None
    rtol: float | None = None
    """Limits: `|output - expected| <= atol + rtol * |expected|`. If both are None, the
    limits are `FLOAT32_ATOL` and `FLOAT32_RTOL` in float32, else `MIN_PSNR` dB."""

    @property
    def fixed_size(self) -> tuple[int, int, int] | None:
        """Batch, height and width that the file takes; None if they are free."""
        return None if self.dynamic else self.shapes.typical


@dataclass(frozen=True)
class OnnxExport:
    """What was written, and how it was verified."""

    opset: int
    differences: dict[str, Difference]
    """By frame and size: ONNX Runtime on the file against PyTorch float32."""
    trtexec: str
    """The command that builds a TensorRT engine from the file."""


def export_onnx(
    source: Checkpoint, target: str | Path, options: ExportOptions | None = None
) -> OnnxExport:
    """Write a checkpoint as an ONNX file: "input" to "output", NCHW, 0..1.

    The file holds the rewritten network (`checkpoints.rewrites`), fused. It is run in
    ONNX Runtime and compared with the checkpoint's own network in PyTorch float32 on a
    photograph, noise and extreme frames, and with free sizes on five sizes down to 1x1.
    It is kept only if all of them agree.

    Args:
        source: either form; PyTorch computes on its `device`.
        target: `.onnx`.
        options: None is `ExportOptions()`.

    Raises:
        VerificationError: when the file would not compute the same; nothing is written.
        MissingExtraError: when a library for ONNX is not installed.
        AetherError: when the network cannot be exported or the file not written.
    """
    target, options = Path(target), options or ExportOptions()
    tolerance = Tolerance.of(options.precision, options.atol, options.rtol)
    check_export(target)
    _log.info("exporting")
    with replacing(target) as temporary:
        model = to_onnx(source, options.fixed_size, options.opset, options.precision)
        describe(model, source, options.precision, options.license)
        temporary.write_bytes(model.SerializeToString())
        content = temporary.read_bytes()
        half = options.precision in ("float16", "bfloat16")
        session = rounding_session(content) if half else open_session(content)
        images = [*verification_images(source, options.fixed_size)]
        differences = verify(session, source, images, tolerance)
        if options.precision == "float16":  # the file itself, too; bfloat16 needs a GPU
            verify(open_session(content), source, images[:1], tolerance)
    return export_result(model, source, target, options, differences)


def check_export(target: Path) -> None:
    """Check that an ONNX file can be written, before any work is done for it.

    Raises:
        MissingExtraError: when a library for ONNX is not installed.
        AetherError: when `target` has another suffix than `.onnx`.
    """
    if target.suffix.lower() != ".onnx":
        raise AetherError("Cannot be written: the suffix is not .onnx.", target)
    check_libraries()


def check_libraries() -> None:
    """Import the libraries that an export needs.

    Raises:
        MissingExtraError: when one is not installed.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_optional(module, "onnx")


def export_result(
    model: Any,
    source: Checkpoint,
    target: Path,
    options: ExportOptions,
    differences: dict[str, Difference],
) -> OnnxExport:
    """The result of writing an ONNX model to `target`."""
    shapes = options.shapes if options.dynamic else None
    command = trtexec_command(target, source.in_chans, shapes, options.precision)
    return OnnxExport(opset_of(model), differences, command)


def trtexec_command(
    model: Path, in_chans: int, shapes: ShapeRange | None, precision: str
) -> str:
    """The command line that builds an engine from an ONNX file with TensorRT 10 or 11.

    `--stronglyTyped` keeps the types of the file, in which LayerNorm is float32. With
    `--fp16`, TensorRT could compute it in float16, where it overflows.

    Args:
        model: the ONNX file.
        in_chans: channels of its input.
        shapes: sizes that the engine takes; None for a file of one fixed size.
        precision: of the file.
    """
    engine = model.with_suffix(".engine")
    words = ["trtexec", f"--onnx={model}", f"--saveEngine={engine}"]
    if shapes:
        for name, (batch, height, width) in (
            ("min", shapes.minimum),
            ("opt", shapes.typical),
            ("max", shapes.maximum),
        ):
            words.append(f"--{name}Shapes=input:{batch}x{in_chans}x{height}x{width}")
    if precision != "float32":
        words.append("--stronglyTyped")
    return command_line(words)


def to_onnx(
    checkpoint: Checkpoint,
    fixed: tuple[int, int, int] | None,
    opset: int | None,
    precision: str,
) -> Any:
    """The rewritten network as an ONNX model.

    Args:
        checkpoint: either form.
        fixed: batch, height and width; None leaves them free.
        opset, precision: as in `ExportOptions`.

    Raises:
        AetherError: when it cannot be exported with this opset.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise AetherError(f"There is no precision {precision!r}, only {known}.")
    default = BFLOAT16_OPSET if precision == "bfloat16" else DEFAULT_OPSET
    if precision == "bfloat16" and opset is not None and opset < BFLOAT16_OPSET:
        raise AetherError(
            f"Opset {opset} has no convolution in bfloat16; {BFLOAT16_OPSET} is the "
            "first that has one."
        )
    network = rewritten(checkpoint.build(), precision, ConvolutionBlock)
    dtype = torch.float16 if precision == "float16" else torch.float32
    return exported(network, network.in_chans, fixed, opset or default, dtype)


def plain_onnx(network: AetherNet, size: tuple[int, int, int]) -> bytes:
    """An ONNX file of one `(batch, height, width)` in float32, without rewriting.

    Benchmarks compare with it. `network` is exported in the form that it has.
    """
    model = exported(network, network.in_chans, size, DEFAULT_OPSET, torch.float32)
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
    """
    onnx = import_optional("onnx", "onnx")
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


def describe(
    model: Any, checkpoint: Checkpoint, precision: str, license: str | None
) -> None:
    """Add metadata to an ONNX model, and check it with onnx.

    Args:
        model: in float32, or what `precision` names.
        checkpoint: its source.
        precision: of its weights and activations.
        license: as in `ExportOptions`.

    Raises:
        onnx.checker.ValidationError: when the model is not valid.
    """
    onnx = import_optional("onnx", "onnx")
    stated = license or checkpoint.metadata.get("license")
    metadata = {
        "architecture": "AetherNet",
        "hyperparameters": json.dumps(
            {**checkpoint.hyperparameters, "fused_init": True}
        ),
        "variant": checkpoint.variant or "of none of the named sizes",
        "form": "fused",
        "scale": str(checkpoint.scale),
        "precision": precision,
        "opset": str(opset_of(model)),
        "license": stated or "not stated",
        "aethernet_version": __version__,
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)


def opset_of(model: Any) -> int:
    """The version of the standard operators in an ONNX model."""
    return next(e.version for e in model.opset_import if e.domain == "")


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
