"""Checkpoint in, ONNX file out, proven to compute the same."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

import aethernet
from aethernet.aether_core import AetherNet
from aethernet.checkpoint import Checkpoint, load_checkpoint
from aethernet.errors import AetherError, VerificationError, import_optional
from aethernet.files import command_line, replacing
from aethernet.rewrites import PRECISIONS, ConvolutionBlock, rewritten
from aethernet.verification import (
    Difference,
    compare,
    exact_float32,
    natural_image,
    noise_image,
    verification_frames,
)

_log = logging.getLogger(__name__)

# The first that has GELU as one operator: ONNX Runtime does not put its parts together
# again. The first whose convolution takes bfloat16 is 22.
DEFAULT_OPSET = 20
BFLOAT16_OPSET = 22

# What a file may differ by from PyTorch float32. Float32 against float32 is rounding:
# 2e-6 on the shipped model, more on deeper ones; 1e-4 is 1/40 of an 8-bit step. Others
# round as part of the format, with 11, 8 and 8 bits, and have to reach a PSNR in dB.
FLOAT32_ATOL, FLOAT32_RTOL = 1e-4, 1e-4
MIN_PSNR = {"float16": 50.0, "bfloat16": 40.0, "int8": 40.0}

_LARGEST = 1 << 20  # of batch, height and width; what comes of it still has to fit
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


@dataclass(frozen=True)
class Limits:
    """When a file counts as the same network: by PSNR in dB, else by atol and rtol."""

    min_psnr: float | None = None
    atol: float = FLOAT32_ATOL
    rtol: float = FLOAT32_RTOL

    @classmethod
    def of(cls, precision: str, atol: float | None, rtol: float | None) -> Self:
        """What a precision has to reach unless the user named another limit.

        Raises:
            AetherError: when one of them is below 0 or NaN.
        """
        for limit in (atol, rtol):
            if limit is not None and not limit >= 0:  # NaN is not
                raise AetherError(f"atol and rtol start at 0, {limit} is no limit.")
        if atol is None and rtol is None:
            return cls(MIN_PSNR.get(precision))
        atol = FLOAT32_ATOL if atol is None else atol
        return cls(None, atol, FLOAT32_RTOL if rtol is None else rtol)

    def problem(self, output: Tensor, expected: Tensor) -> str | None:
        """Why the output is not close enough, or None."""
        if self.min_psnr is not None:
            if compare(output, expected).psnr >= self.min_psnr:
                return None
            return f"less than {self.min_psnr:g} dB"
        output, expected = output.double(), expected.double()
        if torch.allclose(output, expected, rtol=self.rtol, atol=self.atol):
            return None
        return f"more than atol {self.atol:g} + rtol {self.rtol:g}"


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
        "aethernet_version": aethernet.__version__,
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)


def opset_of(model: Any) -> int:
    return next(e.version for e in model.opset_import if e.domain == "")


def verification_images(
    checkpoint: Checkpoint, fixed: tuple[int, int, int] | None
) -> Iterator[tuple[str, Tensor]]:
    """Frames `(batch, in_chans, H, W)` by name; if sizes are free, several of them."""
    channels = checkpoint.hyperparameters["in_chans"]
    batch, height, width = fixed or (1, *_FRAME_SIZE)
    for name, frame in verification_frames(height, width, channels).items():
        yield name, frame.expand(batch, -1, -1, -1)
    for count, rows, columns in () if fixed else _FREE_SIZES:
        images = [natural_image, noise_image]
        batch_of = [images[i % 2](rows, columns, channels) for i in range(count)]
        yield f"{count} x {columns}x{rows}", torch.cat(batch_of)


def open_session(content: bytes) -> Any:
    """The content of an ONNX file in ONNX Runtime on the CPU.

    Not its path: a session that holds the file would keep Windows from moving it.
    """
    ort = import_optional("onnxruntime", "onnx")
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"])


def rounding_session(content: bytes) -> Any:
    """As `open_session`, every result inside rounded to the type that the file states.

    This is what a processor does that multiplies in half precision and sums in float32.
    ONNX Runtime on a CPU has no bfloat16, and computes chains of float16 operators in
    float32, where an overflow between two of them would not show: a GPU would make a
    black picture of it.
    """
    ort = import_optional("onnxruntime", "onnx")
    options = ort.SessionOptions()
    # As written: optimising could take a Cast and its inverse for nothing.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    return ort.InferenceSession(_rounding(content), options, providers=providers)


def verify(
    session: Any,
    checkpoint: Checkpoint,
    images: Iterable[tuple[str, Tensor]],
    limits: Limits | None,
    device: str | torch.device,
) -> dict[str, Difference]:
    """Run an ONNX file in ONNX Runtime and the checkpoint in PyTorch float32.

    Args:
        session: as `open_session` gives it.
        images: by name, `(B, in_chans, H, W)`, float32, 0..1.
        limits: None asks for finite values of the right shape only.

    Raises:
        VerificationError: at the first image on which they are not the same.
    """
    half = session.get_inputs()[0].type == "tensor(float16)"
    # Channels last halves the time on a CPU.
    reference = checkpoint.build().to(memory_format=torch.channels_last).to(device)
    differences: dict[str, Difference] = {}
    for name, image in images:
        _log.info("checking %s", name)
        with torch.inference_mode(), exact_float32():
            expected = reference(image.to(device)).cpu()
        feed = (image.half() if half else image).numpy()
        output = torch.from_numpy(session.run(["output"], {"input": feed})[0])
        for what, values in (("ONNX file", output), ("network itself", expected)):
            if not torch.isfinite(values).all():
                raise VerificationError(
                    f"The {what} makes NaN or infinite values on {name}"
                    f"{', float16 ends at 65504' if half else ''}; nothing was written."
                )
        if output.shape != expected.shape:
            raise VerificationError(
                f"The ONNX file makes {[*output.shape]} where PyTorch makes "
                f"{[*expected.shape]} ({name}); nothing was written."
            )
        differences[name] = compare(output, expected)
        problem = limits and limits.problem(output, expected)
        if problem:
            raise VerificationError(
                f"The ONNX file differs from PyTorch on {name}: {differences[name]}, "
                f"{problem}; nothing was written."
            )
    return differences


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


def _rounding(content: bytes) -> bytes:
    """The same graph in float32 operators, half-precision results cast to and fro."""
    onnx = import_optional("onnx", "onnx")
    helper, arrays = onnx.helper, onnx.numpy_helper
    kinds = onnx.TensorProto
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    graph = model.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    half = {kinds.FLOAT16, kinds.BFLOAT16}

    def widen(tensor: Any) -> None:
        if tensor.data_type in half:
            wide = arrays.to_array(tensor).astype("float32")
            tensor.CopyFrom(arrays.from_array(wide, tensor.name))

    for weight in graph.initializer:
        widen(weight)
    inputs = {i.name: f"{i.name} wide" for i in graph.input if types[i.name] in half}
    nodes = [
        helper.make_node("Cast", [narrow], [wide], to=kinds.FLOAT)
        for narrow, wide in inputs.items()
    ]
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in half:
                attribute.i = kinds.FLOAT
            widen(attribute.t)
        node.input[:] = [inputs.get(name, name) for name in node.input]
        for index, name in enumerate(node.output):
            if types.get(name) not in half:
                continue
            exact = node.output[index] = f"{name} exact"
            rounded = name if name in outputs else f"{name} rounded"
            nodes.append(helper.make_node("Cast", [exact], [rounded], to=types[name]))
            if rounded != name:
                cast = helper.make_node("Cast", [rounded], [name], to=kinds.FLOAT)
                nodes.append(cast)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model.SerializeToString()
