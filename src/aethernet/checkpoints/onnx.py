"""Write checkpoints as ONNX files, and verify that these compute the same."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aethernet.checkpoints.checkpoint import Checkpoint
from aethernet.checkpoints.comparison import (
    VERIFICATIONS,
    network_of,
    verification_images,
)
from aethernet.checkpoints.onnx_check import (
    open_session,
    rounding_session,
    verify,
)
from aethernet.checkpoints.onnx_graph import Norm, Writing, onnx_properties, to_onnx
from aethernet.checkpoints.tolerances import Tolerance
from aethernet.checkpoints.verification import Difference
from aethernet.errors import AetherError, VerificationError, import_optional
from aethernet.files import check_target, command_line, replacing

_log = logging.getLogger(__name__)

# Largest batch, height and width. The tensors of an image still have to fit in memory.
_LARGEST = 1 << 20


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
    """How an ONNX file is written, and how close to its network it has to compute."""

    dynamic: bool = False
    """Leave batch, height and width free; else they are `shapes.typical`."""
    shapes: ShapeRange = field(default_factory=ShapeRange)
    """The fixed size, and the range for the TensorRT command."""
    opset: int | None = None
    """None: the oldest that has the operators, see `onnx_graph.Writing`."""
    precision: str = "float32"
    """ "float32"; "float16", with input and output in float16; "bfloat16", with input
    and output in float32. LayerNorm is always in float32."""
    float32_io: bool = False
    """Input and output are float32 also with "float16"."""
    norm: Norm = "operator"
    """How LayerNorm is written, see `onnx_graph.Writing`."""
    half_weights: bool = False
    """A float32 file stores its kernels in float16, see `onnx_graph.Writing`. It has to
    be as close to the network as a float16 file."""
    license: str | None = None
    """SPDX identifier of the weights' licence, for the metadata. None: the one in the
    metadata of the checkpoint, if any."""
    atol: float | None = None
    rtol: float | None = None
    """Limits: `|output - expected| <= atol + rtol * |expected|`. If both are None, the
    limits are `FLOAT32_ATOL` and `FLOAT32_RTOL` in float32, else `MIN_PSNR` dB."""
    verify: str = "quick"
    """How much is compared, a member of `comparison.VERIFICATIONS`."""

    def __post_init__(self) -> None:
        if self.verify not in VERIFICATIONS:
            raise AetherError(f"There is no verification {self.verify!r}.")

    @property
    def fixed_size(self) -> tuple[int, int, int] | None:
        """Batch, height and width that the file takes; None if they are free."""
        return None if self.dynamic else self.shapes.typical

    @property
    def writing(self) -> Writing:
        """How the graph is written; int8 is made of a float32 graph."""
        precision = "float32" if self.precision == "int8" else self.precision
        return Writing(
            precision,
            self.float32_io,
            self.opset,
            self.fixed_size,
            self.norm,
            self.half_weights,
        )


@dataclass(frozen=True)
class OnnxExport:
    """What was written, and how it was verified."""

    opset: int
    differences: dict[str, Difference]
    """By frame and size: ONNX Runtime on the file against the reference."""
    reference: str
    """What computed the reference, e.g. "NumPy float32"."""
    trtexec: str
    """The command that builds a TensorRT engine from the file."""


def export_onnx(
    source: Checkpoint, target: str | Path, options: ExportOptions | None = None
) -> OnnxExport:
    """Write a checkpoint as an ONNX file: "input" to "output", NCHW, 0..1.

    The file holds the folded network (`checkpoints.folded`). It is run in ONNX Runtime
    and compared with the checkpoint's own network (`comparison.network_of`) on a
    photograph, noise, extreme frames and sizes down to 1x1. It is kept only if all of
    them agree. A quick verification of a fixed size compares the same graph with free
    sizes on small pictures.

    Args:
        source: either form.
        target: `.onnx`.
        options: None is `ExportOptions()`.

    Raises:
        VerificationError: when the file would not compute the same; nothing is written.
        MissingExtraError: when a library for ONNX is not installed.
        AetherError: when the network cannot be exported or the file not written.
    """
    target, options = Path(target), options or ExportOptions()
    stored = "float16" if options.half_weights else options.precision
    tolerance = Tolerance.of(stored, options.atol, options.rtol)
    check_export(target)
    _log.info("exporting")
    with replacing(target) as temporary:
        model = to_onnx(source.folded, options.writing)
        describe(model, source, options.precision, options.license)
        temporary.write_bytes(model.SerializeToString())
        content, size = temporary.read_bytes(), options.fixed_size
        if size and options.verify == "quick":
            content, size = _with_free_sizes(content, source, options), None
        network = network_of(source, options.verify)
        images = verification_images(source.in_chans, options.verify, size)
        cases = network.cases(images)
        half = options.precision in ("float16", "bfloat16")
        session = rounding_session(content) if half else open_session(content)
        differences = verify(session, cases, tolerance)
        if options.precision == "float16":  # the file itself, too; bfloat16 needs a GPU
            verify(open_session(content), cases[:1], tolerance)
    return export_result(model, source, target, options, differences, network.by)


def _with_free_sizes(
    content: bytes, source: Checkpoint, options: ExportOptions
) -> bytes:
    """The content of an ONNX file of a fixed size, with free sizes.

    Raises:
        VerificationError: when the file has other nodes or weights than that.
    """
    onnx = import_optional("onnx", "onnx")
    model = to_onnx(source.folded, replace(options, dynamic=True).writing)
    fixed, free = onnx.load_from_string(content).graph, model.graph
    if [*fixed.node] != [*free.node] or [*fixed.initializer] != [*free.initializer]:
        raise VerificationError(
            "The ONNX file of a fixed size differs from that of free sizes. Nothing "
            "was written."
        )
    return model.SerializeToString()


def check_export(target: Path) -> None:
    """Check that an ONNX file can be written, before any work is done for it.

    Raises:
        MissingExtraError: when a library for ONNX is not installed.
        AetherError: when `target` has another suffix than `.onnx`, or cannot be
            written.
    """
    if target.suffix.lower() != ".onnx":
        raise AetherError("Cannot be written: the suffix is not .onnx.", target)
    check_target(target)
    check_libraries()


def check_libraries() -> None:
    """Import the libraries that an export needs.

    Raises:
        MissingExtraError: when one is not installed.
    """
    for module in ("onnx", "onnxruntime"):
        import_optional(module, "onnx")


def export_result(
    model: Any,
    source: Checkpoint,
    target: Path,
    options: ExportOptions,
    differences: dict[str, Difference],
    reference: str,
) -> OnnxExport:
    """The result of writing an ONNX model to `target`."""
    shapes = options.shapes if options.dynamic else None
    command = trtexec_command(target, source.in_chans, shapes, options.precision)
    return OnnxExport(opset_of(model), differences, reference, command)


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
    properties = onnx_properties(
        checkpoint.hyperparameters, precision, opset_of(model), stated
    )
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)


def opset_of(model: Any) -> int:
    """The version of the standard operators in an ONNX model."""
    return next(e.version for e in model.opset_import if e.domain == "")
