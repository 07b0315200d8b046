"""ONNX file in, TensorRT engine out, with a header of ours beside it."""

import hashlib
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aethernet.checkpoints.checkpoint import SUFFIXES as CHECKPOINT_SUFFIXES
from aethernet.checkpoints.onnx import ShapeRange
from aethernet.checkpoints.verification import Difference, compare, natural_image
from aethernet.errors import (
    AetherError,
    MissingExtraError,
    VerificationError,
    import_optional,
)
from aethernet.files import check_source, check_target, replacing
from aethernet.runtimes.tensorrt.header import (
    LIBRARIES,
    SUFFIX,
    EngineHeader,
    Shape,
    covers_gpu,
    header_path,
)
from aethernet.runtimes.tensorrt.library import Library, choose_gpu, open_library
from aethernet.runtimes.tensorrt.run import TensorRTRuntime
from aethernet.version import __version__

_log = logging.getLogger(__name__)

# What TensorRT for RTX builds for when nothing is said (its guide, "CPU-Only AOT");
# Turing, 7.5, has to be named.
PORTABLE = ("8.6+",)

# On a GPU, against ONNX Runtime: an engine in float32 multiplies in TF32, whose
# mantissa is float16's.
MIN_PSNR = {"float32": 50.0, "float16": 50.0, "bfloat16": 40.0, "int8": 40.0}

_MOST_WARNINGS = 10

_PROGRESS_SECONDS = 10.0

# Bytes. TensorRT for RTX 1.7 plans memory for tensors of 6.4 GB, and not for those of
# 8.5 GB: from there on it asks for less the larger the picture is.
_LARGEST_TENSOR = 8 * 10**9

_MOST_MEMORY = 288 * 10**9  # bytes, of the largest GPU there is (B300)

_CHECK_SIDE = 64  # LR pixels of the picture that a GPU is tried on


@dataclass(frozen=True)
class EngineBuild:
    """What `build_engine` wrote."""

    header: EngineHeader
    difference: Difference | None
    """The engine on this machine's GPU against ONNX Runtime; None where none was."""
    warnings: tuple[str, ...]
    """What was warned of, the library's own words among it, each once."""


def build_engine(
    source: str | Path,
    target: str | Path,
    shapes: ShapeRange | None = None,
    compute_capabilities: Sequence[str] = (),
) -> EngineBuild:
    """Build a TensorRT engine of an ONNX file, and write a header beside it.

    The engine computes in the types that the file states. TensorRT tunes it on this
    machine's GPU, for that GPU; TensorRT for RTX needs none, and its engines are for
    many. The library's own shape inference has to find every size of the range
    enlarged by one scale; on a GPU the engine is also run and compared.

    Args:
        source: `.onnx`, one input and one output `(batch, channels, height, width)`.
        target: `.engine`; the header is `target` with `.json` added.
        shapes: sizes it has to take; None for the file's own where it fixes them, and
            `ShapeRange()` where it does not.
        compute_capabilities: GPUs to build for, e.g. "7.5"; TensorRT for RTX only, by
            default `PORTABLE`.

    Raises:
        VerificationError: when a GPU does not compute what ONNX Runtime computes.
        AetherError: when the file or the range does not allow an engine, or it cannot
            be built or written. What was there before is kept.
    """
    source, target = Path(source), Path(target)
    _check_names(source, target)
    content = source.read_bytes()
    metadata = _metadata(source, content)
    library = _choose_library()
    library.messages.clear()
    builder = library.module.Builder(library.logger)
    network, parser = _parse(library, builder, source, content)
    fixed = _fixed_sides(library, network, source)
    profile = _profile(network.get_input(0).shape[1], fixed, shapes, source)
    scale, largest_tensor = _scale(library, network, profile, source)
    ours = metadata if metadata.get("architecture") == "AetherNet" else {}
    if ours.get("scale", str(scale)) != str(scale):
        raise AetherError(
            f"{source} says that its scale is {ours['scale']}, and enlarges by "
            f"{scale}; export it anew."
        )
    with (
        replacing(target) as engine_file,
        # Moved first. A crash before the engine follows leaves a header that its
        # checksum tells from the old engine's.
        replacing(header_path(target)) as header_file,
    ):
        config = builder.create_builder_config()
        if None in fixed:
            _set_profile(library, builder, config, network, profile)
        built_for = _set_compute_capabilities(library, config, compute_capabilities)
        plan = _build(library, builder, config, network, source)
        del parser  # it holds weights that the network refers to
        dtypes = _dtypes(library)
        given, made = network.get_input(0), network.get_output(0)
        memory = library.messages.activation_bytes
        told = ours.get("precision", "")
        header = EngineHeader(
            library=library.name,
            library_version=library.module.__version__,
            compute_capabilities=built_for,
            gpu=torch.cuda.get_device_name() if library.name == "tensorrt" else None,
            precision=told if told in MIN_PSNR else dtypes[given.dtype],
            scale=scale,
            channels=given.shape[1],
            input_name=given.name,
            input_dtype=dtypes[given.dtype],
            output_name=made.name,
            output_dtype=dtypes[made.dtype],
            profile=profile,
            activation_bytes=memory if largest_tensor < _LARGEST_TENSOR else None,
            onnx_name=source.name,
            onnx_sha256=hashlib.sha256(content).hexdigest(),
            onnx_metadata=metadata,
            engine_sha256=hashlib.sha256(plan).hexdigest(),
            aethernet_version=__version__,
        )
        warnings = [f"{library.title}: {text}" for text in library.messages.warnings]
        if largest_tensor >= _LARGEST_TENSOR:
            warnings.append(
                "At the largest size, {}x{}, a tensor inside takes {:.1f} GB, where "
                "TensorRT's plans were seen to go wrong: try a smaller --max, or a "
                "float16 file.".format(*profile[2][2:], largest_tensor / 1e9)
            )
        for warning in warnings[:_MOST_WARNINGS]:
            _log.warning("%s", warning)
        if len(warnings) > _MOST_WARNINGS:
            _log.warning(".. and %d warnings more.", len(warnings) - _MOST_WARNINGS)
        difference = _run_here(target, header, plan, content)
        engine_file.write_bytes(plan)
        header_file.write_bytes(header.to_json())
    return EngineBuild(header, difference, tuple(warnings))


def shape_range(
    low: tuple[int, int] | None = None,
    typical: tuple[int, int] | None = None,
    high: tuple[int, int] | None = None,
    batch: tuple[int, int, int] | None = None,
) -> ShapeRange | None:
    """The range that a user means who gives some bounds of `(height, width)`.

    A bound that is not given is `ShapeRange`'s, or the nearest that the given ones
    allow. None when nothing is given.

    Raises:
        AetherError: when the given ones do not rise.
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


def _check_names(source: Path, target: Path) -> None:
    check_source(source, "an ONNX file")
    if source.suffix.lower() in CHECKPOINT_SUFFIXES:
        raise AetherError(
            f"{source} is a checkpoint, and engines are built from ONNX files; "
            f"`aethernet export {source} -o {source.with_suffix('.onnx')}` makes one."
        )
    if source.suffix.lower() != ".onnx":
        raise AetherError(f"{source} is no ONNX file by its name; expected .onnx.")
    if target.suffix.lower() != SUFFIX:
        raise AetherError(f"Cannot write {target}: name it {SUFFIX}.")
    check_target(target, source)


def _metadata(source: Path, content: bytes) -> dict[str, str]:
    onnx = import_optional("onnx", "tensorrt")
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's errors share no base class with others
        raise AetherError(f"{source} is no valid ONNX file.") from error
    return {entry.key: entry.value for entry in model.metadata_props}


def _choose_library() -> Library:
    """TensorRT where it can build, else TensorRT for RTX."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = open_library(name)
        except MissingExtraError as error:
            _log.info("%s", error)
    if "tensorrt" in found and torch.cuda.is_available():
        version = found["tensorrt"].module.__version__
        if int(version.partition(".")[0]) >= 10:
            return found["tensorrt"]
        _log.warning("TensorRT %s is too old, 10 is the first that fits.", version)
    if "tensorrt_rtx" in found:
        return found["tensorrt_rtx"]
    if "tensorrt" in found:
        raise AetherError(
            f"{found['tensorrt'].title} cannot build here: it takes TensorRT 10 or "
            "newer and an NVIDIA GPU. TensorRT for RTX takes none: "
            "pip install tensorrt-rtx-cu13."
        )
    raise MissingExtraError(
        "Neither TensorRT nor TensorRT for RTX is installed: pip install "
        "tensorrt-rtx-cu13; in AetherNet's folder pip install -e '.[tensorrt]' brings "
        "all."
    )


def _parse(
    library: Library, builder: Any, source: Path, content: bytes
) -> tuple[Any, Any]:
    trt = library.module
    # TensorRT 11 and TensorRT for RTX know no other networks and ignore the flag.
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, library.logger)
    # The path is for weights that a file of others may keep beside it.
    if not parser.parse(content, str(source)):
        words = library.messages.reason()
        if parser.num_errors:
            error = parser.get_error(0)
            node = f"node {error.node_name()!r}, {error.node_operator()}: "
            words = (node if error.node_operator() else "") + error.desc()
            words = f"{' '.join(words.split()).rstrip('.')} ({error.code().name})"
        raise AetherError(f"{library.title} does not read {source}: {words}.")
    return network, parser


def _dtypes(library: Library) -> dict[Any, str]:
    types = library.module.DataType
    return {types.FLOAT: "float32", types.HALF: "float16", types.BF16: "bfloat16"}


def _fixed_sides(
    library: Library, network: Any, source: Path
) -> tuple[int | None, int | None, int | None]:
    """Batch, height and width where the file fixes them, None where they are free."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    if (
        (network.num_inputs, network.num_outputs) != (1, 1)
        or any(len(tensor.shape) != 4 for tensor in tensors)
        or tensors[0].shape[1] < 1
        or any(tensor.dtype not in _dtypes(library) for tensor in tensors)
    ):
        raise AetherError(
            f"{source} is no picture model: expected one input (batch, channels, "
            "height, width) with a fixed number of channels, and one output, both in "
            "float32, float16 or bfloat16."
        )
    batch, _, height, width = (side if side > 0 else None for side in tensors[0].shape)
    return batch, height, width


def _profile(
    channels: int,
    fixed: tuple[int | None, int | None, int | None],
    shapes: ShapeRange | None,
    source: Path,
) -> tuple[Shape, Shape, Shape]:
    """Smallest, typical and largest input: what was asked for, as the file allows."""
    asked = shapes or ShapeRange()
    bounds: list[list[int]] = []
    for number, *wanted in zip(
        fixed, asked.minimum, asked.typical, asked.maximum, strict=True
    ):
        if number is not None and shapes and set(wanted) != {number}:
            side = ("batch size", "height", "width")[len(bounds)]
            raise AetherError(
                f"{source} takes a {side} of {number} only, and {wanted[0]} to "
                f"{wanted[2]} was asked for; leave the sizes away, or export it with "
                "free sizes."
            )
        bounds.append(wanted if number is None else [number] * 3)
    low, typical, high = (
        (batch, channels, height, width)
        for batch, height, width in zip(*bounds, strict=True)
    )
    return low, typical, high


def _scale(
    library: Library, network: Any, profile: tuple[Shape, Shape, Shape], source: Path
) -> tuple[int, int]:
    """By what the network enlarges, and its largest tensor for the largest input.

    Both by the library's own shape inference; the tensor in bytes.
    """
    given, made = network.get_input(0), network.get_output(0)
    free = tuple(given.shape)
    scale = 0
    for shape in profile:
        given.shape = shape
        out, (batch, channels, height, width) = tuple(made.shape), shape
        scale = scale or max(out[2] // height, 0)
        if not scale or out != (batch, channels, height * scale, width * scale):
            raise AetherError(
                f"{source} is no upscaler: it makes {out} of {shape}."
                if not library.messages.errors
                else f"{library.title} finds no size for the output of {source}: "
                f"{library.messages.reason()}."
            )
    largest = 0  # at the largest size, which is the last
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        for tensor in (layer.get_output(i) for i in range(layer.num_outputs)):
            volume = math.prod(max(side, 0) for side in tensor.shape)
            largest = max(largest, volume * tensor.dtype.itemsize)
    given.shape = free
    if largest > _MOST_MEMORY:
        raise AetherError(
            f"No GPU holds what inputs of {profile[2]} take: a tensor inside has "
            f"{largest / 1e9:.0f} GB; choose a smaller --max or --batch."
        )
    return scale, largest


def _set_profile(
    library: Library,
    builder: Any,
    config: Any,
    network: Any,
    profile: tuple[Shape, Shape, Shape],
) -> None:
    name = network.get_input(0).name
    own = builder.create_optimization_profile()
    own.set_shape(name, *profile)
    taken = tuple(tuple(shape) for shape in own.get_shape(name))
    if config.add_optimization_profile(own) < 0 or taken != profile:
        raise AetherError(
            f"{library.title} does not take inputs of {profile[0]} to {profile[2]}: "
            f"{library.messages.reason()}."
        )


def _set_compute_capabilities(
    library: Library, config: Any, names: Sequence[str]
) -> tuple[str, ...]:
    if library.name == "tensorrt":
        if names:
            raise AetherError(
                f"{library.title} builds for the GPU of this machine only; leave the "
                "compute capability away, or take TensorRT for RTX."
            )
        return ("{}.{}".format(*torch.cuda.get_device_capability()),)
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in library.module.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    for name in names:
        if name not in known:
            raise AetherError(
                f"{library.title} builds for no compute capability {name}, it knows "
                f"{', '.join(known)}."
            )
    chosen = sorted(set(names), key=list(known).index)
    config.num_compute_capabilities = len(chosen)
    for index, name in enumerate(chosen):
        config.set_compute_capability(known[name], index)
    return tuple(chosen) or PORTABLE


class _Progress:
    """Says what the builder is at, and stops it when it shall."""

    def __init__(self) -> None:
        self.stop = False
        self._phases: dict[str, int] = {}
        self._said = time.monotonic()

    def start(self, phase: str, steps: int) -> None:
        if phase not in self._phases:
            _log.info("%s", phase)
        self._phases[phase] = steps

    def step(self, phase: str, number: int) -> bool:
        """Whether to go on."""
        if time.monotonic() - self._said > _PROGRESS_SECONDS:
            self._said = time.monotonic()
            _log.info("%s: %d of %d", phase, number + 1, self._phases[phase])
        return not self.stop


def _build(
    library: Library, builder: Any, config: Any, network: Any, source: Path
) -> bytes:
    progress = _Progress()
    monitor = type(
        "Monitor",
        (library.module.IProgressMonitor,),
        {
            "phase_start": lambda _, name, parent, steps: progress.start(name, steps),
            "phase_finish": lambda _, name: None,
            "step_complete": lambda _, name, step: progress.step(name, step),
        },
    )()
    config.progress_monitor = monitor
    # In a thread of its own: Ctrl-C reaches the main thread, and would otherwise be
    # raised in one of our methods that the library calls, which only prints it.
    with ThreadPoolExecutor(max_workers=1) as pool:
        build = pool.submit(builder.build_serialized_network, network, config)
        try:
            plan = build.result()
        except BaseException:
            progress.stop = True
            raise
    if plan is None:
        raise AetherError(
            f"{library.title} cannot build an engine of {source}: "
            f"{library.messages.reason()}."
        )
    for warning in library.messages.warnings:
        if "values are not self-consistent" in warning:  # built, but for smaller ones
            raise AetherError(
                f"{library.title} does not take inputs that large: {warning}."
            )
    return bytes(plan)


def _run_here(
    target: Path, header: EngineHeader, plan: bytes, content: bytes
) -> Difference | None:
    """Compare the engine with ONNX Runtime on this machine's GPU, if there is one.

    Written without one at hand: it has not been run.
    """
    if not torch.cuda.is_available():
        return None
    if not covers_gpu(header.compute_capabilities, torch.cuda.get_device_capability()):
        return None
    try:
        runtime = TensorRTRuntime(target, header, plan, choose_gpu("auto"))
        ort = import_optional("onnxruntime", "onnx")
    except AetherError as error:  # the engine may be meant for another machine
        _log.warning("The engine is not compared: %s", error)
        return None
    if header.input_dtype == "bfloat16":  # which NumPy has no word for
        _log.warning("The engine is not compared: ONNX Runtime takes no bfloat16.")
        return None
    low, _, high = header.profile
    height, width = (min(max(_CHECK_SIDE, low[i]), high[i]) for i in (2, 3))
    picture = natural_image(height, width, header.channels)
    image = picture.expand(low[0], -1, -1, -1).contiguous().numpy()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    expected = session.run(None, {header.input_name: image.astype(header.input_dtype)})
    output = torch.from_numpy(runtime.run(image))
    difference = compare(output, torch.from_numpy(expected[0]).float())
    if not difference.psnr >= MIN_PSNR.get(header.precision, min(MIN_PSNR.values())):
        raise VerificationError(
            f"The engine differs from ONNX Runtime: {difference}; nothing was written."
        )
    return difference
