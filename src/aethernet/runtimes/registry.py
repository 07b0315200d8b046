"""The runtimes by name, and `open_model`, which loads a file with one of them."""

import importlib
from pathlib import Path

from aethernet.checkpoints.checkpoint import SUFFIXES as CHECKPOINT_SUFFIXES
from aethernet.devices import PYTORCH_KINDS, device_kind
from aethernet.errors import AetherError
from aethernet.files import check_source
from aethernet.runtimes.base import PRECISIONS, Runtime

# Name -> (module and class of ours, suffixes of the files it loads). The first of those
# that load a file is what the others are held against.
RUNTIMES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "pytorch": ("aethernet.runtimes.pytorch", "PyTorchRuntime", CHECKPOINT_SUFFIXES),
    "onnxruntime": (
        "aethernet.runtimes.onnxruntime",
        "OnnxRuntime",
        (".onnx", *CHECKPOINT_SUFFIXES),
    ),
    "openvino": (
        "aethernet.runtimes.openvino",
        "OpenVINORuntime",
        (".onnx", *CHECKPOINT_SUFFIXES),
    ),
    "tensorrt": ("aethernet.runtimes.tensorrt.run", "TensorRTRuntime", (".engine",)),
}

# Name -> kinds of device. Where there can be several a number may follow: cuda:1.
DEVICES: dict[str, tuple[str, ...]] = {
    "pytorch": PYTORCH_KINDS,
    "onnxruntime": ("cpu", "cuda", "tensorrt", "dml", "coreml"),
    "openvino": ("cpu", "xpu"),
    "tensorrt": ("cuda",),
}


def open_model(
    path: str | Path,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> Runtime:
    """Load a model file with what executes it fastest here, or as the words say.

    Each "auto" leaves a choice to a short trial on one tile, made once for a model and
    a machine and kept in the user's cache. Whatever is returned has been checked on
    that tile, except PyTorch float32 on the CPU where there is nothing else, and
    TensorRT's engines, which have nothing to be checked against.

    Args:
        path: a checkpoint, an .onnx file of anyone, or an .engine file.
        runtime: "auto" or a key of `RUNTIMES`.
        device: "auto" or of a kind in `DEVICES`, with a number if need be: "cuda:1".
        precision: "auto" or one of `PRECISIONS`.

    Raises:
        AetherError: when the file is missing or no model, or nothing here executes it
            as asked.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    check_source(path, "a model file")
    fitting = [name for name, (*_, suffixes) in RUNTIMES.items() if suffix in suffixes]
    if not fitting:
        known = dict.fromkeys(s for *_, suffixes in RUNTIMES.values() for s in suffixes)
        raise AetherError(
            f"{path} is no model by its name; expected one of {', '.join(known)}."
        )
    for word, known_words in (
        (runtime, ("auto", *RUNTIMES)),
        (precision, ("auto", *PRECISIONS)),
    ):
        if word not in known_words:
            raise AetherError(f"There is no {word!r}, only {', '.join(known_words)}.")
    if runtime != "auto" and runtime not in fitting:
        raise AetherError(
            f"The runtime {runtime} does not load {suffix} files, "
            f"{' and '.join(fitting)} would; `aethernet export` makes an .onnx file of "
            "a checkpoint, `aethernet engine` an .engine file of that."
        )
    names = fitting if runtime == "auto" else [runtime]
    able = [name for name in names if device_kind(device) in ("auto", *DEVICES[name])]
    if not able:
        known = dict.fromkeys(kind for name in names for kind in DEVICES[name])
        raise AetherError(
            f"The device {device!r} is none of {', '.join(known)}, which is what "
            f"{' and '.join(names)} may have."
        )
    if suffix == ".engine":
        return runtime_class("tensorrt").load(path, device, precision)
    from aethernet.runtimes.choice import choose

    return choose(path, able, device, precision, named=runtime != "auto")


def runtime_class(name: str) -> type[Runtime]:
    """The class of that key of `RUNTIMES`; the library it needs may be missing."""
    module, class_name, _ = RUNTIMES[name]
    return getattr(importlib.import_module(module), class_name)
