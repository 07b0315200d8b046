"""Build a TensorRT engine from an ONNX file, and write our header beside it."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aethernet.checkpoints.formats import is_checkpoint
from aethernet.checkpoints.onnx import ShapeRange
from aethernet.checkpoints.verification import Difference, compare, natural_image
from aethernet.errors import (
    AetherError,
    MissingExtraError,
    VerificationError,
    import_optional,
)
from aethernet.files import (
    check_source,
    check_target,
    replacing,
    unwritable,
)
from aethernet.runtimes.onnx_files import read_graph
from aethernet.runtimes.tensorrt.header import (
    LIBRARIES,
    SUFFIX,
    EngineHeader,
    covers_gpu,
    header_path,
)
from aethernet.runtimes.tensorrt.library import (
    INSTALL_RTX,
    Library,
    current_gpu,
    open_library,
)
from aethernet.runtimes.tensorrt.network import ParsedNetwork, Profile
from aethernet.version import __version__

_log = logging.getLogger(__name__)

# In dB, against ONNX Runtime: on a GPU, a float32 engine multiplies in TF32, whose
# mantissa is float16's.
MIN_PSNR = {"float32": 50.0, "float16": 50.0, "bfloat16": 40.0, "int8": 40.0}

# Warnings that are logged; the result has all.
_MOST_WARNINGS = 10

# Bytes. TensorRT for RTX 1.7 plans memory for tensors of 6.4 GB, and not for those of
# 8.5 GB: from there on, the memory it asks for shrinks as pictures grow.
_LARGEST_TENSOR = 8 * 10**9

_CHECK_SIDE = 64  # LR pixels along each side of the picture that a GPU is checked with


@dataclass(frozen=True)
class EngineBuild:
    """What `build_engine` wrote."""

    header: EngineHeader
    difference: Difference | None
    """The engine on this machine's GPU against ONNX Runtime; None if it was not run."""
    warnings: tuple[str, ...]
    """Warnings of ours and of the library, each once."""


def build_engine(
    source: str | Path,
    target: str | Path,
    shapes: ShapeRange | None = None,
    compute_capabilities: Sequence[str] = (),
) -> EngineBuild:
    """Build a TensorRT engine from an ONNX file, and write a header beside it.

    The engine computes in the types of the file. TensorRT tunes it on this machine's
    GPU, for that GPU only; TensorRT for RTX needs no GPU and builds for many. The
    library's own shape inference must find every size of the range enlarged by one
    scale. Where there is a GPU for it, the engine is also run and compared.

    Args:
        source: `.onnx`, one input and one output `(batch, channels, height, width)`.
        target: `.engine`; the header is `target` with `.json` added.
        shapes: sizes that the engine must take; None for those that the file fixes,
            `ShapeRange()` where it fixes none.
        compute_capabilities: GPUs to build for, e.g. "7.5"; with TensorRT for RTX only,
            by default `network.PORTABLE`.

    Raises:
        VerificationError: when a GPU does not compute what ONNX Runtime computes.
        MissingExtraError: when neither library is installed.
        AetherError: when the file or the range does not allow an engine, or it cannot
            be built or written. Existing files are then kept.
    """
    source, target = Path(source), Path(target)
    content = _read(source, target)
    planned = _plan(source, content, shapes)
    with (
        replacing(target) as engine_file,
        # Moved before the engine. After a crash between the two, the checksum in the
        # header shows that the old engine is another one.
        replacing(header_path(target)) as header_file,
    ):
        engine, built_for = planned.network.build(planned.profile, compute_capabilities)
        header = planned.header(engine, built_for)
        warnings = planned.warnings()
        _show(warnings)
        difference = compare_here(target, header, engine, content)
        try:  # the header's temporary file is not what is too large for the disk
            engine_file.write_bytes(engine)
        except OSError as error:
            raise unwritable(error, target) from error
        header_file.write_bytes(header.to_json())
    return EngineBuild(header, difference, warnings)


@dataclass(frozen=True)
class _Planned:
    """An ONNX file with all that is known before its engine is built."""

    network: ParsedNetwork
    profile: Profile
    scale: int
    largest_tensor: int
    """Bytes of the largest tensor inside, for the largest input."""
    onnx_sha256: str
    onnx_metadata: dict[str, str]

    def header(self, engine: bytes, built_for: tuple[str, ...]) -> EngineHeader:
        """The header of the engine, whose content and GPUs are given."""
        network, library, gpu = self.network, self.network.library, current_gpu()
        reliable = self.largest_tensor < _LARGEST_TENSOR
        stated = _of_aethernet(self.onnx_metadata).get("precision", "")
        return EngineHeader(
            library=library.name,
            library_version=library.module.__version__,
            compute_capabilities=built_for,
            gpu=gpu.name if gpu and library.name == "tensorrt" else None,
            precision=stated if stated in MIN_PSNR else network.input_dtype,
            scale=self.scale,
            channels=network.channels,
            input_name=network.input_name,
            input_dtype=network.input_dtype,
            output_name=network.output_name,
            output_dtype=network.output_dtype,
            profile=self.profile,
            activation_bytes=library.messages.activation_bytes if reliable else None,
            onnx_name=network.source.name,
            onnx_sha256=self.onnx_sha256,
            onnx_metadata=self.onnx_metadata,
            engine_sha256=hashlib.sha256(engine).hexdigest(),
            aethernet_version=__version__,
        )

    def warnings(self) -> tuple[str, ...]:
        """Warnings of the library, and of ours, about the engine."""
        library = self.network.library
        warnings = [f"{library.title}: {text}" for text in library.messages.warnings]
        if self.largest_tensor >= _LARGEST_TENSOR:
            *_, height, width = self.profile[2]
            warnings.append(
                f"At the largest size, {width}x{height}, a tensor inside takes "
                f"{self.largest_tensor / 1e9:.1f} GB. Engines of TensorRT with tensors "
                "that large have given wrong results: use a smaller --max, or a "
                "float16 file."
            )
        return tuple(warnings)


def _plan(source: Path, content: bytes, shapes: ShapeRange | None) -> _Planned:
    metadata = _metadata(content)
    library = choose_library()
    library.messages.clear()
    network = ParsedNetwork.parse(library, source, content)
    profile = network.profile(shapes)
    scale, largest_tensor = network.measure(profile)
    stated = _of_aethernet(metadata).get("scale", str(scale))
    if stated != str(scale):
        raise AetherError(
            f"Its metadata gives the scale {stated}, but it enlarges by {scale}.",
            source,
            "Export it again.",
        )
    digest = hashlib.sha256(content).hexdigest()
    return _Planned(network, profile, scale, largest_tensor, digest, metadata)


def _of_aethernet(metadata: dict[str, str]) -> dict[str, str]:
    """The metadata of an ONNX file of ours; empty for files of other programs."""
    return metadata if metadata.get("architecture") == "AetherNet" else {}


def shape_range(
    low: tuple[int, int] | None = None,
    typical: tuple[int, int] | None = None,
    high: tuple[int, int] | None = None,
    batch: tuple[int, int, int] | None = None,
) -> ShapeRange | None:
    """The range of sizes for an engine of which only some bounds are given.

    A bound that is not given is that of `ShapeRange()`, or the nearest to it that the
    given ones allow.

    Args:
        low, typical, high: `(height, width)` in LR pixels.
        batch: smallest, typical and largest; None is always 1.

    Returns:
        None when nothing is given.

    Raises:
        AetherError: when the given bounds do not rise.
    """
    given = [bound for bound in (low, typical, high) if bound]
    if not given and not batch:
        return None
    default = ShapeRange()
    bounds = []
    for i in (0, 1):
        sides = [bound[i] for bound in given]
        lowest = low[i] if low else min([default.minimum[i + 1], *sides])
        highest = high[i] if high else max([default.maximum[i + 1], *sides])
        middle = default.typical[i + 1]
        usual = typical[i] if typical else max(lowest, min(middle, highest))
        bounds.append((lowest, usual, highest))
    sizes = zip(batch or (1, 1, 1), *bounds, strict=True)
    return ShapeRange(*sizes)


def choose_library() -> Library:
    """TensorRT where it can build, otherwise TensorRT for RTX.

    Raises:
        MissingExtraError: when neither is installed.
        AetherError: when TensorRT alone is installed and cannot build here.
    """
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = open_library(name)
        except MissingExtraError as error:
            _log.info("%s", error)
    if "tensorrt" in found and current_gpu():
        version = found["tensorrt"].module.__version__
        if int(version.partition(".")[0]) >= 10:
            return found["tensorrt"]
        _log.warning("TensorRT %s is too old; 10 or newer is needed.", version)
    if "tensorrt_rtx" in found:
        return found["tensorrt_rtx"]
    if "tensorrt" in found:
        raise AetherError(
            f"{found['tensorrt'].title} cannot build here: this takes TensorRT 10 or "
            "newer and an NVIDIA GPU. TensorRT for RTX needs no GPU.",
            hint=INSTALL_RTX,
        )
    raise MissingExtraError(
        "Neither TensorRT nor TensorRT for RTX is installed.", hint=INSTALL_RTX
    )


def compare_here(
    target: Path, header: EngineHeader, engine: bytes, content: bytes
) -> Difference | None:
    """Compare an engine with ONNX Runtime on this machine's GPU, if there is one.

    Args:
        target: path of the engine, for messages.
        header: of the engine.
        engine: content of the engine's file.
        content: content of the ONNX file.

    Returns:
        None when the engine or ONNX Runtime cannot be run here.

    Raises:
        VerificationError: when the results differ too much.
    """
    gpu = current_gpu()
    if gpu is None or not covers_gpu(header.compute_capabilities, gpu.capability):
        return None
    # Imported here because it imports PyTorch, which is there where it found a GPU.
    from aethernet.runtimes.tensorrt.run import TensorRTRuntime, choose_gpu

    try:
        runtime = TensorRTRuntime(target, header, engine, choose_gpu("auto"))
        ort = import_optional("onnxruntime")
    except AetherError as error:  # the engine may be meant for another machine
        _log.warning("The engine is not compared: %s", error)
        return None
    if header.input_dtype == "bfloat16":  # NumPy does not have it
        _log.warning("The engine is not compared: ONNX Runtime takes no bfloat16.")
        return None
    low, _, high = header.profile
    height, width = (min(max(_CHECK_SIDE, low[i]), high[i]) for i in (2, 3))
    picture = natural_image(height, width, header.channels)
    image = np.repeat(picture, low[0], 0)
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    expected = session.run(None, {header.input_name: image.astype(header.input_dtype)})
    difference = compare(runtime.run(image), expected[0])
    if not difference.psnr >= MIN_PSNR.get(header.precision, min(MIN_PSNR.values())):
        raise VerificationError(
            f"The engine differs from ONNX Runtime: {difference}. Nothing was written.",
            target,
        )
    return difference


def _read(source: Path, target: Path) -> bytes:
    """The content of the ONNX file, once both names are checked."""
    check_source(source, "an ONNX file")
    if is_checkpoint(source):
        raise AetherError(
            "This is a checkpoint, and engines are built from ONNX files.",
            source,
            f"Make one: aethernet export {source} -o {source.with_suffix('.onnx')}",
        )
    if source.suffix.lower() != ".onnx":
        raise AetherError("The name is not that of an ONNX file (.onnx).", source)
    if target.suffix.lower() != SUFFIX:
        raise AetherError(
            "Cannot be written: the name is not that of an engine.",
            target,
            f"Name it {SUFFIX}.",
        )
    check_target(target, source)
    return read_graph(source)


def _metadata(content: bytes) -> dict[str, str]:
    model = import_optional("onnx").load_model_from_string(content)
    return {entry.key: entry.value for entry in model.metadata_props}


def _show(warnings: Sequence[str]) -> None:
    for warning in warnings[:_MOST_WARNINGS]:
        _log.warning("%s", warning)
    if len(warnings) > _MOST_WARNINGS:
        _log.warning("... and %d more warnings.", len(warnings) - _MOST_WARNINGS)
