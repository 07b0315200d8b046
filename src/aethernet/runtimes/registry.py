"""The runtimes by name, and `open_model`, which loads a file with one of them."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from aethernet.checkpoints.formats import SUFFIXES as CHECKPOINT_SUFFIXES
from aethernet.checkpoints.formats import is_checkpoint
from aethernet.devices import PYTORCH_KINDS, device_kind
from aethernet.errors import AetherError, CheckpointError, import_optional
from aethernet.files import check_source
from aethernet.runtimes.base import (
    NOTHING_ASKED,
    ONNX_RUNTIME_DISTRIBUTIONS,
    PRECISIONS,
    AskedValues,
    Model,
    Runtime,
    RuntimeSpec,
)

if TYPE_CHECKING:
    from aethernet.checkpoints.checkpoint import Weights
    from aethernet.runtimes.spandrel import SpandrelModel
    from aethernet.runtimes.trial import Verdict
    from aethernet.runtimes.values import Foreign

_log = logging.getLogger(__name__)

RUNTIMES: dict[str, RuntimeSpec] = {}
"""Every runtime by its name."""


def register(spec: RuntimeSpec) -> None:
    """Add a runtime; flags, `auto`, the cache's keys and `bench` know it from then on.

    Raises:
        ValueError: when there is a runtime of that name already.
    """
    if spec.name in RUNTIMES or spec.name == "auto":
        raise ValueError(f"There is a runtime {spec.name!r} already.")
    RUNTIMES[spec.name] = spec


# A runtime of ONNX files runs a checkpoint through an export, which is checked in ONNX
# Runtime.
_EXPORTER = (ONNX_RUNTIME_DISTRIBUTIONS, ("onnx",))

register(
    RuntimeSpec(
        name="pytorch",
        load="aethernet.runtimes.pytorch:PyTorchRuntime",
        suffixes=CHECKPOINT_SUFFIXES,
        devices=PYTORCH_KINDS,
        distributions=("torch",),
        extra="torch",
        lower_on_cpu=True,
    )
)
register(
    RuntimeSpec(
        name="onnxruntime",
        load="aethernet.runtimes.onnxruntime:OnnxRuntime",
        suffixes=(".onnx", *CHECKPOINT_SUFFIXES),
        devices=("cpu", "cuda", "tensorrt", "dml", "coreml"),
        distributions=ONNX_RUNTIME_DISTRIBUTIONS,
        extra=None,
        checkpoint_needs=_EXPORTER,
    )
)
register(
    RuntimeSpec(
        name="openvino",
        load="aethernet.runtimes.openvino:OpenVINORuntime",
        suffixes=(".onnx", *CHECKPOINT_SUFFIXES),
        devices=("cpu", "xpu"),
        distributions=("openvino",),
        extra="openvino",
        checkpoint_needs=_EXPORTER,
        converts=True,
        lower_on_cpu=True,
    )
)
register(
    RuntimeSpec(
        name="tensorrt",
        load="aethernet.runtimes.tensorrt.run:TensorRTRuntime",
        suffixes=(".engine",),
        devices=("cuda",),
        distributions=("tensorrt-rtx-cu13", "tensorrt-rtx", "tensorrt"),
        extra="tensorrt",
        tried=False,  # nothing else executes an engine
    )
)
register(
    RuntimeSpec(
        name="native",
        load="aethernet.runtimes.native.runtime:NativeRuntime",
        suffixes=(".safetensors",),
        devices=("cpu",),
        distributions=("numpy",),  # the kernels are ours
        extra=None,
        precisions=("float32",),
        proven=True,  # compared with NumPy, once for a model and a machine
    )
)


def model_suffixes() -> tuple[str, ...]:
    """Suffixes of all files that a runtime loads."""
    return tuple(dict.fromkeys(s for spec in RUNTIMES.values() for s in spec.suffixes))


def device_kinds() -> tuple[str, ...]:
    """Kinds of device that a runtime may have."""
    return tuple(dict.fromkeys(d for spec in RUNTIMES.values() for d in spec.devices))


def runtime_distributions() -> tuple[str, ...]:
    """Distributions that bring the libraries of the runtimes."""
    found = (name for spec in RUNTIMES.values() for name in spec.distributions)
    return tuple(dict.fromkeys(found))


def runtimes_for(device: str) -> tuple[str, ...]:
    """Names of the runtimes that "auto" may take for a device of this kind."""
    kind = device_kind(device)
    return tuple(
        name
        for name, spec in RUNTIMES.items()
        if spec.automatic and kind in spec.devices
    )


def open_model(
    path: str | Path,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    pixels: Callable[[], float] | None = None,
    img_range: float | None = None,
) -> Runtime:
    """Load a model file with the fastest runtime here, or with the one that is named.

    "auto" takes what is known to be fastest; for long work it may make a short trial,
    once for a model and a machine, whose result is kept in the user's cache. The output
    of the returned model has been checked on a tile, with two exceptions: PyTorch
    float32 on the CPU where no other runtime is installed, and TensorRT engines, which
    have no reference.

    Args:
        path: a checkpoint, any .onnx file of a picture model, or an .engine file.
        runtime: "auto" or a name in `RUNTIMES`.
        device: "auto" or a device of one of `device_kinds()`, if need be with a
            number: "cuda:1".
        precision: "auto" or one of `PRECISIONS`.
        pixels: finds how many LR pixels will be upscaled; None: the work is long.
        img_range: of a checkpoint, as in `CheckpointOptions`.

    Raises:
        AetherError: when the file is missing or is no model, or nothing here executes
            it as asked.
    """
    path = Path(path)
    specs = _usable(path, runtime, device, precision)
    for spec in specs:
        if not spec.tried:
            return spec.import_class().load(path, device, precision)
    # Imports NumPy.
    from aethernet.runtimes.choice import Request, choose

    img_range = img_range if is_checkpoint(path) else None
    request = Request(path, device, precision, runtime != "auto", img_range)
    return choose(replace(request, pixels=pixels) if pixels else request, specs)


def open_any(
    path: str | Path,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    pixels: Callable[[], float] | None = None,
    asked: AskedValues = NOTHING_ASKED,
) -> Model:
    """Open a model like `open_model`, or of any architecture that spandrel knows.

    Its `run` takes and makes RGB of 0 to 1, whatever the network wants. If a photograph
    shows that it wants other values, a warning says so.

    Args:
        path: as for `open_model`, like the other arguments; or a checkpoint of any
            network.
        runtime: as above.
        device: as above.
        precision: as above.
        pixels: as above.
        asked: what the user says about the values that the network wants.

    Raises:
        MissingExtraError: when the checkpoint is of another architecture, and spandrel
            is not installed.
        AetherError: as `open_model` and `SpandrelModel.load`; also when a runtime other
            than PyTorch is asked for and the checkpoint is not of AetherNet.
    """
    # Imported here because it imports NumPy.
    from aethernet.runtimes.values import set_values

    path = Path(path)
    how = (runtime, device, precision, pixels)
    model: Model
    try:
        model = open_model(path, *how, asked.range)
    except CheckpointError:
        # Imported here because for most files it is not needed.
        from aethernet.checkpoints.checkpoint import is_aethernet, load_weights

        if not is_checkpoint(path) or is_aethernet(weights := load_weights(path)):
            raise
        model = _other_network(weights, runtime, device, precision)
    else:
        if is_checkpoint(path):
            return _in_its_range(model, path, asked, how)
    set_values(cast("Foreign", model), path, asked)
    return model


def _other_network(
    weights: "Weights", runtime: str, device: str, precision: str
) -> "SpandrelModel":
    """A network of another architecture, as `open_any`."""
    if runtime not in ("auto", "pytorch"):
        raise AetherError(
            f"This is no AetherNet checkpoint, so {runtime} cannot run it; only "
            "PyTorch runs it.",
            weights.path,
            "Other runtimes need an .onnx file, made by the network's own tools.",
        )
    import_optional("spandrel", "spandrel")
    # Imported here because it imports PyTorch, which spandrel brings.
    from aethernet.runtimes.spandrel import SpandrelModel

    return SpandrelModel.load(weights, device, precision)


def _in_its_range(
    model: Model,
    path: Path,
    asked: AskedValues,
    how: tuple[str, str, str, Callable[[], float] | None],
) -> Model:
    """An AetherNet, opened again if it was trained with another `img_range`."""
    from aethernet.checkpoints.checkpoint import load_checkpoint
    from aethernet.checkpoints.plausibility import enlarges, likely_img_range

    if asked.bgr:
        raise AetherError(
            "This is an AetherNet, which takes RGB.", path, "Leave out --bgr."
        )
    if asked.range is not None or enlarges(model.run, model.channels):
        return model
    likely = likely_img_range(load_checkpoint(path))
    if likely is None:
        return model
    opened = model
    try:
        opened = open_model(path, *how, likely)
    except CheckpointError:  # the file states another one
        done = "but the file states another"
    else:
        done = f"so it is used (--range {likely:g})"
    _log.warning(
        "%s: a test with a photograph shows that the network was trained with an "
        "img_range of %g, %s.",
        *(path, likely, done),
    )
    return opened


def try_runtimes(
    path: str | Path,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> "Verdict":
    """Compare the speed of all runtimes for a model now; the result is kept.

    Args:
        path: a checkpoint or any .onnx file of a picture model.
        runtime: as for `open_model`, as the next two.
        device: where to compare.
        precision: in which to compare.

    Raises:
        AetherError: as `open_model`; also for a file that only one runtime loads.
    """
    path = Path(path)
    specs = _usable(path, runtime, device, precision)
    if not all(spec.tried for spec in specs):
        name = specs[0].name
        raise AetherError(f"Only {name} runs such a file: nothing to compare.", path)
    from aethernet.runtimes.choice import Request, try_all

    return try_all(Request(path, device, precision, runtime != "auto"), specs)


def _usable(path: Path, runtime: str, device: str, precision: str) -> list[RuntimeSpec]:
    """The runtimes for a file, when what is asked for exists."""
    check_source(path, "a model file")
    check_known(runtime, ("auto", *RUNTIMES), "runtime")
    check_known(precision, ("auto", *PRECISIONS), "precision")
    return _on_device(_fitting(path, runtime), device)


def runtime_class(name: str) -> type[Runtime]:
    """The class of the runtime of that name; the library it needs may be missing."""
    return RUNTIMES[name].import_class()


def check_known(value: str, known: tuple[str, ...], what: str) -> None:
    """Raise an AetherError for a name of `what` that is not one of those known."""
    if value not in known:
        raise AetherError(f"There is no {what} {value!r}, only {', '.join(known)}.")


def _fitting(path: Path, runtime: str) -> list[RuntimeSpec]:
    """The runtimes that load a file of this name: the one that is named, or all.

    All are those that "auto" may take.
    """
    suffix = path.suffix.lower()
    fitting = [spec for spec in RUNTIMES.values() if suffix in spec.suffixes]
    if not fitting:
        raise AetherError(
            "The name is not that of a model; expected one of "
            f"{', '.join(model_suffixes())}.",
            path,
        )
    if runtime == "auto":
        return [spec for spec in fitting if spec.automatic]
    if RUNTIMES[runtime] not in fitting:
        names = " and ".join(spec.name for spec in fitting)
        raise AetherError(
            f"The runtime {runtime} does not load {suffix} files; {names} would.",
            path,
            "`aethernet fuse` makes a .safetensors file of a checkpoint, `aethernet "
            "export` an .onnx file, `aethernet engine` an .engine file of that.",
        )
    return [RUNTIMES[runtime]]


def _on_device(specs: list[RuntimeSpec], device: str) -> list[RuntimeSpec]:
    """Those of these runtimes that may have this device."""
    kind = device_kind(device)
    able = [spec for spec in specs if kind == "auto" or kind in spec.devices]
    if not able:
        known = dict.fromkeys(kind for spec in specs for kind in spec.devices)
        names = " and ".join(spec.name for spec in specs)
        raise AetherError(
            f"The device {device!r} is none of {', '.join(known)}, which {names} may "
            "have."
        )
    return able
