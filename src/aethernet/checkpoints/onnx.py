"""Checkpoint in, ONNX file out, proven to compute the same."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aethernet.aether_core import AetherNet
from aethernet.checkpoints.checkpoint import Checkpoint, load_checkpoint
from aethernet.checkpoints.onnx_check import (
    open_session,
    rounding_session,
    verification_images,
    verify,
)
from aethernet.checkpoints.rewrites import PRECISIONS, ConvolutionBlock, rewritten
from aethernet.checkpoints.tolerances import Limits
from aethernet.checkpoints.verification import Difference
from aethernet.errors import AetherError, import_optional
from aethernet.files import command_line, replacing
from aethernet.version import __version__

_log = logging.getLogger(__name__)

# The first that has GELU as one operator: ONNX Runtime does not put its parts together
# again. The first whose convolution takes bfloat16 is 22.
DEFAULT_OPSET = 20

BFLOAT16_OPSET = 22

_LARGEST = 1 << 20  # of batch, height and width; what comes of it still has to fit

# What the exporter sees: none of them 1, which it would take for a constant.
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
                    f"The {side} must rise from 1: min {low}, opt {middle}, max {high}."
                )
            if high > _LARGEST:
                raise AetherError(f"The {side} ends at {_LARGEST}, {high} is beyond.")


@dataclass(frozen=True)
class OnnxExport:
    """What `export_onnx` found and proved."""

    source: Checkpoint
    opset: int
    differences: dict[str, Difference]
    """By frame and size: ONNX Runtime on the file against PyTorch float32."""
    trtexec: str
    """The command that builds a TensorRT engine of the file."""


def export_onnx(
    source: str | Path,
    target: str | Path,
    *,
    model_type: str | None = None,
    scale: int | None = None,
    in_chans: int | None = None,
    param_key: str | None = None,
    dynamic: bool = False,
    shapes: ShapeRange | None = None,
    opset: int | None = None,
    precision: str = "float32",
    license: str | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    device: str | torch.device = "cpu",
) -> OnnxExport:
    """Write an ONNX file of a checkpoint: input "input", output "output", NCHW, 0..1.

    What is exported is the rewritten network (`aethernet.rewrites`), fused on the way.
    The file is run in ONNX Runtime and compared with the checkpoint's own network in
    PyTorch float32, on a photograph, noise and extreme frames, and with free sizes on
    five sizes down to 1x1; it takes its place only when all of them agree.

    Args:
        source: any checkpoint `load_checkpoint` reads.
        target: `.onnx`.
        model_type, scale, in_chans: what the user believes; None reads the weights.
        param_key: as for `load_checkpoint`.
        dynamic: leave batch, height and width free; else they are `shapes.typical`.
        shapes: fixed size, and range for the TensorRT command.
        opset: of the ONNX file, 17 or newer; None is `DEFAULT_OPSET`, or
            `BFLOAT16_OPSET` for bfloat16.
        precision: "float32"; "float16" with input and output in float16; "bfloat16"
            with input and output in float32. LayerNorm is always in float32.
        license: of the weights, an SPDX identifier, for the metadata; None takes what
            the checkpoint says of itself.
        atol, rtol: limits `|out - expected| <= atol + rtol * |expected|`. By default
            `FLOAT32_ATOL`, `FLOAT32_RTOL` in float32, else `MIN_PSNR` dB.
        device: where PyTorch computes what is expected.

    Raises:
        CheckpointError, ContradictionError: about the source.
        VerificationError: when the file would not compute the same; nothing is written.
        AetherError: when it cannot be exported or written.
    """
    target = Path(target)
    shapes = shapes or ShapeRange()
    checkpoint = open_for_export(source, target, param_key)
    checkpoint.expect(model_type, scale, in_chans)
    limits = Limits.of(precision, atol, rtol)
    fixed = None if dynamic else shapes.typical
    _log.info("exporting")
    with replacing(target) as temporary:
        model = to_onnx(checkpoint, fixed, opset, precision)
        describe(model, checkpoint, precision, license)
        temporary.write_bytes(model.SerializeToString())
        content = temporary.read_bytes()
        half = precision in ("float16", "bfloat16")
        session = rounding_session(content) if half else open_session(content)
        images = [*verification_images(checkpoint, fixed)]
        differences = verify(session, checkpoint, images, limits, device)
        if precision == "float16":  # the file itself, too; bfloat16 needs a GPU
            verify(open_session(content), checkpoint, images[:1], limits, device)
    channels = checkpoint.hyperparameters["in_chans"]
    command = trtexec_command(target, channels, shapes if dynamic else None, precision)
    return OnnxExport(checkpoint, opset_of(model), differences, command)


def open_for_export(
    source: str | Path, target: Path, param_key: str | None
) -> Checkpoint:
    """Load a checkpoint, once it is clear that exporting it to `target` can begin."""
    if target.suffix.lower() != ".onnx":
        raise AetherError(f"Cannot write {target}: name it .onnx.")
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_optional(module, "onnx")
    return load_checkpoint(source, param_key)


def trtexec_command(
    model: Path, in_chans: int, shapes: ShapeRange | None, precision: str
) -> str:
    """The line that builds an engine of an ONNX file of ours, TensorRT 10 or 11.

    A file of one fixed size takes no shapes (`shapes` None). `--stronglyTyped` keeps
    the precisions written in a file, where LayerNorm is float32; `--fp16` would let
    TensorRT compute it in float16, where it overflows.
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
    """The rewritten network as an ONNX model; batch, height, width free unless `fixed`.

    Raises:
        AetherError: when it cannot be exported with this opset.
    """
    oldest = BFLOAT16_OPSET if precision == "bfloat16" else DEFAULT_OPSET
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise AetherError(f"There is no precision {precision!r}, only {known}.")
    if precision == "bfloat16" and opset is not None and opset < oldest:
        raise AetherError(
            f"Opset {opset} has no convolution in bfloat16; {oldest} is the first."
        )
    network = rewritten(checkpoint.build(), precision, ConvolutionBlock)
    dtype = torch.float16 if precision == "float16" else torch.float32
    opset = oldest if opset is None else opset
    return exported(network, network.in_chans, fixed, opset, dtype)


def plain_onnx(network: AetherNet, size: tuple[int, int, int]) -> bytes:
    """A float32 file of one `(batch, height, width)` without any rewriting.

    What benchmarks compare with; `network` is exported in the form it has.
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
    """A network of pictures as an ONNX model, with our names for input and output.

    Args:
        network: takes `(batch, in_chans, height, width)` of this dtype.
        fixed: batch, height and width; None leaves them free.

    Raises:
        AetherError: when it cannot be exported with this opset.
    """
    onnx = import_optional("onnx", "onnx")
    batch, height, width = fixed or _EXAMPLE_SIZE
    try:
        example = torch.zeros(batch, in_chans, height, width, dtype=dtype)
    except RuntimeError as error:
        raise AetherError(
            f"No memory for an input of {batch}x{in_chans}x{height}x{width}; choose a "
            "smaller size."
        ) from error
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
                f"{opset}; leave it at its default."
            ) from error
    assert program is not None  # as only a path for it to write to would make it
    model = program.model_proto
    written = {entry.domain: entry.version for entry in model.opset_import}
    if written != {"": opset}:
        raise AetherError(
            f"torch {torch.__version__} wrote opset {written.get('', written)} where "
            f"{opset} was asked for; leave it at its default."
        )
    _forget_origin(model)
    # As old as the opset allows: readers refuse a newer one than they know.
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    return model


def describe(
    model: Any, checkpoint: Checkpoint, precision: str, license: str | None
) -> None:
    """Write down in an ONNX model what it is, and have it checked by onnx.

    Raises:
        onnx.checker.ValidationError: when the model is not a valid one.
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
    return next(e.version for e in model.opset_import if e.domain == "")


def _forget_origin(model: Any) -> None:
    """Drop the stack traces the exporter notes down: they name the author's folders."""
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
    """Hold back the exporter's progress; its errors are exceptions anyway."""
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
