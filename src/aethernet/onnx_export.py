"""Checkpoint in, ONNX file out, proven to compute the same."""

import contextlib
import copy
import io
import json
import logging
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import aethernet
from aethernet.checkpoint import Checkpoint, form_name, load_checkpoint
from aethernet.errors import AetherError, VerificationError, import_optional
from aethernet.files import replacing
from aethernet.verification import (
    Difference,
    compare,
    exact_float32,
    natural_image,
    noise_image,
    verification_frames,
)

_log = logging.getLogger(__name__)

# 18 is the oldest that torch's exporter writes itself; newer ones add nothing that this
# network needs, and every runtime of the last years reads it.
DEFAULT_OPSET = 18

# What a file may differ by from PyTorch float32. Float32 against float32 is rounding:
# 2e-6 on the shipped model, more on deeper ones; 1e-4 is 1/40 of an 8-bit step. In
# float16 rounding is part of the format: there 50 dB has to be reached instead.
FLOAT32_ATOL, FLOAT32_RTOL = 1e-4, 1e-4
FLOAT16_MIN_PSNR = 50.0
FLOAT16_MAX = torch.finfo(torch.float16).max

# LR sizes (batch, height, width) that a file with free sizes has to take.
_FREE_SIZES = ((1, 1, 1), (1, 7, 5), (2, 13, 17), (3, 33, 31), (1, 64, 96))
# What the exporter sees: none of them 1, which it would take for a constant.
_EXAMPLE_SIZE = (2, 24, 40)
_FRAME_SIZE = (64, 96)


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


@dataclass(frozen=True)
class OnnxExport:
    """What `export_onnx` found and proved."""

    source: Checkpoint
    differences: dict[str, Difference]
    """By frame and size: ONNX Runtime on the file against PyTorch float32."""
    trtexec: str
    """The command that builds a TensorRT engine of the file."""


class _PeakActivation(TorchDispatchMode):
    """Notes the largest absolute value that any operation puts out.

    ONNX Runtime computes chains of float16 operations on a CPU in float32, so that an
    overflow between two of them shows only on a GPU, as a black picture.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.peak = max(self.peak, tensor.abs().max().item())
        return result


class _Float32LayerNorm(nn.Module):
    """LayerNorm between two casts: sums of squares overflow float16 at 65504."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float()).to(x.dtype)


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
    opset: int = DEFAULT_OPSET,
    half: bool = False,
    atol: float | None = None,
    rtol: float | None = None,
    device: str | torch.device = "cpu",
) -> OnnxExport:
    """Write an ONNX file of a checkpoint: input "input", output "output", NCHW, 0..1.

    The file is run in ONNX Runtime and compared with the checkpoint's own network in
    PyTorch float32, on a photograph, noise and extreme frames, and with free sizes on
    five sizes down to 1x1; it takes its place only when all of them agree. A checkpoint
    in training form is fused on the way.

    Args:
        source: any checkpoint `load_checkpoint` reads.
        target: `.onnx`.
        model_type, scale, in_chans: what the user believes; None reads the weights.
        param_key: as for `load_checkpoint`.
        dynamic: leave batch, height and width free; else they are `shapes.typical`.
        shapes: fixed size, and range for the TensorRT command.
        opset: of the ONNX file, 17 or newer.
        half: float16 weights, activations, input and output, LayerNorm in float32.
        atol, rtol: limits `|out - expected| <= atol + rtol * |expected|`. By default
            `FLOAT32_ATOL`, `FLOAT32_RTOL` in float32, `FLOAT16_MIN_PSNR` in float16.
        device: where PyTorch computes what is expected.

    Raises:
        CheckpointError, ContradictionError: about the source.
        VerificationError: when the file would not compute the same; nothing is written.
        AetherError: when it cannot be exported or written.
    """
    target = Path(target)
    shapes = shapes or ShapeRange()
    if target.suffix.lower() != ".onnx":
        raise AetherError(f"Cannot write {target}: name it .onnx.")
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_optional(module, "onnx")
    checkpoint = load_checkpoint(source, param_key)
    checkpoint.expect(model_type, scale, in_chans)
    limits = _Limits(half, atol, rtol)
    _log.info("exporting")
    with replacing(target) as temporary:
        content = _to_onnx(
            checkpoint,
            _EXAMPLE_SIZE if dynamic else shapes.typical,
            dynamic,
            opset,
            half,
        )
        temporary.write_bytes(content)
        differences = _verify(
            temporary, checkpoint, None if dynamic else shapes.typical, limits, device
        )
    channels = checkpoint.hyperparameters["in_chans"]
    command = trtexec_command(target, channels, shapes if dynamic else None, half)
    return OnnxExport(checkpoint, differences, command)


def trtexec_command(
    model: Path, in_chans: int, shapes: ShapeRange | None, half: bool
) -> str:
    """The line that builds a TensorRT 10 engine of an ONNX file of ours.

    A file of one fixed size takes no shapes (`shapes` None). `--stronglyTyped` keeps
    the precisions written in a float16 file, where LayerNorm is float32; `--fp16` would
    let TensorRT compute it in float16, where it overflows.
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
    if half:
        words.append("--stronglyTyped")
    return shlex.join(words)


@dataclass(frozen=True)
class _Limits:
    """When a file counts as the same network."""

    half: bool
    atol: float | None
    rtol: float | None

    def __post_init__(self) -> None:
        for limit in (self.atol, self.rtol):
            if limit is not None and not limit >= 0:  # NaN is not
                raise AetherError(f"atol and rtol start at 0, {limit} is no limit.")

    def problem(self, output: Tensor, expected: Tensor) -> str | None:
        """Why the output is not close enough, or None."""
        if self.half and self.atol is None and self.rtol is None:
            if compare(output, expected).psnr >= FLOAT16_MIN_PSNR:
                return None
            return f"less than {FLOAT16_MIN_PSNR:.0f} dB"
        atol = FLOAT32_ATOL if self.atol is None else self.atol
        rtol = FLOAT32_RTOL if self.rtol is None else self.rtol
        if torch.allclose(output.double(), expected.double(), rtol=rtol, atol=atol):
            return None
        return f"more than atol {atol:g} + rtol {rtol:g}"


def _to_onnx(
    checkpoint: Checkpoint,
    size: tuple[int, int, int],
    dynamic: bool,
    opset: int,
    half: bool,
) -> bytes:
    onnx = import_optional("onnx", "onnx")
    network = checkpoint.build().fuse()
    if half:
        network.half()
        for name, module in list(network.named_modules()):
            if isinstance(module, nn.LayerNorm):
                network.set_submodule(name, _Float32LayerNorm(module))
    dtype = torch.float16 if half else torch.float32
    batch, height, width = size
    example = torch.zeros(batch, network.in_chans, height, width, dtype=dtype)
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
                dynamic_shapes=(free,) if dynamic else None,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise AetherError(
                f"torch {torch.__version__} cannot export this network with opset "
                f"{opset}; leave it at {DEFAULT_OPSET}."
            ) from error
    assert program is not None  # as only a path for it to write to would make it
    model = program.model_proto
    written = {entry.domain: entry.version for entry in model.opset_import}
    if written != {"": opset}:
        raise AetherError(
            f"torch {torch.__version__} wrote opset {written.get('', written)} where "
            f"{opset} was asked for; leave it at {DEFAULT_OPSET}."
        )
    _forget_origin(model)
    # As old as the opset allows: readers refuse a newer one than they know.
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    metadata = {
        "architecture": "AetherNet",
        "hyperparameters": json.dumps(network.hyperparameters),
        "form": form_name(network.is_fused),
        "scale": str(checkpoint.scale),
        "precision": "float16" if half else "float32",
        "aethernet_version": aethernet.__version__,
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


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


def _verify(
    file: Path,
    checkpoint: Checkpoint,
    fixed: tuple[int, int, int] | None,
    limits: _Limits,
    device: str | torch.device,
) -> dict[str, Difference]:
    ort = import_optional("onnxruntime", "onnx")
    # By its content: a session that holds the file would keep Windows from moving it.
    providers = ["CPUExecutionProvider"]
    session = ort.InferenceSession(file.read_bytes(), providers=providers)
    dtype = torch.float16 if limits.half else torch.float32
    # Channels last halves the time on a CPU.
    reference = checkpoint.build().to(memory_format=torch.channels_last).to(device)
    fused = copy.deepcopy(reference).fuse()
    differences: dict[str, Difference] = {}
    for name, image in _test_images(reference.in_chans, fixed):
        _log.info("checking %s", name)
        with torch.inference_mode(), exact_float32():
            expected = reference(image.to(device)).cpu()
        if limits.half:
            with torch.no_grad(), _PeakActivation() as activation:
                fused(image.to(device))
            if activation.peak > FLOAT16_MAX:
                raise VerificationError(
                    f"Activations reach {activation.peak:.1e} on {name}, and float16 "
                    f"ends at {FLOAT16_MAX:.0f}: export float32; nothing was written."
                )
        result = session.run(["output"], {"input": image.to(dtype).numpy()})[0]
        output = torch.from_numpy(result)
        for what, values in (("ONNX file", output), ("network itself", expected)):
            if not torch.isfinite(values).all():
                raise VerificationError(
                    f"The {what} makes NaN or infinite values on {name}; nothing was "
                    "written."
                )
        if output.shape != expected.shape:
            raise VerificationError(
                f"The ONNX file makes {[*output.shape]} where PyTorch makes "
                f"{[*expected.shape]} ({name}); nothing was written."
            )
        differences[name] = compare(output, expected)
        problem = limits.problem(output, expected)
        if problem:
            raise VerificationError(
                f"The ONNX file differs from PyTorch on {name}: {differences[name]}, "
                f"{problem}; nothing was written."
            )
    return differences


def _test_images(
    channels: int, fixed: tuple[int, int, int] | None
) -> Iterator[tuple[str, Tensor]]:
    batch, height, width = fixed or (1, *_FRAME_SIZE)
    for name, frame in verification_frames(height, width, channels).items():
        yield name, frame.expand(batch, -1, -1, -1)
    for count, rows, columns in () if fixed else _FREE_SIZES:
        images = [natural_image, noise_image]
        batch_of = [images[i % 2](rows, columns, channels) for i in range(count)]
        yield f"{count} x {columns}x{rows}", torch.cat(batch_of)
