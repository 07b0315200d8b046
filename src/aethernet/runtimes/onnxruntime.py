"""ONNX files and exports of checkpoints, executed by ONNX Runtime."""

import contextlib
import io
from pathlib import Path
from typing import Any, Self

import numpy as np

from aethernet.cache import cache_folder, make_folder
from aethernet.checkpoints.formats import is_checkpoint
from aethernet.checkpoints.onnx_check import rounding_session
from aethernet.devices import device_kind
from aethernet.errors import (
    AetherError,
    OutOfMemoryError,
    TooSlowError,
    import_optional,
)
from aethernet.runtimes.base import PRECISIONS, ModelFile
from aethernet.runtimes.onnx_files import (
    OnnxModel,
    allowed_threads,
    load_exported,
    read_graph,
)
from aethernet.runtimes.probing import loaded
from aethernet.runtimes.waiting import interruptible

# Device -> ONNX Runtime's provider, in the order in which "auto" prefers them.
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "dml": "DmlExecutionProvider",
    "cpu": "CPUExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}

# "auto" does not use these: TensorRT builds an engine for minutes, and CoreML is in
# every build for macOS, whether it helps or not.
_BY_NAME_ONLY = ("tensorrt", "coreml")

_NUMBERED = ("cuda", "dml", "tensorrt")

# Whether ONNX Runtime's threads wait for their next task in a loop. Without, it takes
# less CPU time, and on a busy machine less wall time, too (benchmarks/spinning.py).
SPINNING = False

_DTYPES: dict[str, type[np.floating] | type[np.uint8]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


class OnnxRuntime(OnnxModel):
    """An ONNX file in a session on one device.

    The CPU executes the operators that the device does not have.
    """

    library = "ONNX Runtime"

    def __init__(self, session: Any, path: Path, device: str) -> None:
        """Check a session, an `onnxruntime.InferenceSession`; see `OnnxModel`."""
        self.session = session
        inputs, outputs = session.get_inputs(), session.get_outputs()
        dtype = _DTYPES.get(inputs[0].type) if inputs else None
        shapes = [
            # A number where the file fixes that side, a name or None where it is free.
            [side if isinstance(side, int) else None for side in value.shape]
            for value in (*inputs, *outputs)
        ]
        try:
            self.metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError as error:
            raise AetherError("The metadata is no valid UTF-8.", path) from error
        stated = self.metadata.get("precision", "")  # other programs may write anything
        known = stated in (*PRECISIONS, "int8")
        half = dtype is np.float16
        precision = stated if known else "float16" if half else "float32"
        super().__init__(path, shapes, dtype, device, precision)

    @classmethod
    def load(cls, file: Path | ModelFile, device: str, precision: str) -> Self:
        file = ModelFile.of(file)
        device = cls.devices()[0] if device == "auto" else device
        _provider(device)
        if is_checkpoint(file.path):
            held = "float32" if precision == "auto" else precision
            if (device, held) == ("cpu", "bfloat16"):
                raise AetherError(
                    "ONNX Runtime has no bfloat16 on the CPU.",
                    hint="Use --runtime pytorch or openvino.",
                )
            return load_exported(file, held, lambda f: cls.of_file(f, device, held))
        return cls.of_file(file.path, device, precision)

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        available = _library().get_available_providers()
        return tuple(
            device
            for device, provider in PROVIDERS.items()
            if provider in available and device not in _BY_NAME_ONLY
        )

    @classmethod
    def precisions(cls, path: Path, device: str) -> tuple[str, ...]:
        if not is_checkpoint(path):
            return ("auto",)
        return ("float32",) if device == "cpu" else ("float32", "float16")

    @classmethod
    def of_file(cls, path: Path, device: str, precision: str) -> Self:
        model = cls(_session(path, device), path, device)
        if precision not in ("auto", model.precision):
            raise AetherError(
                f"The file is in {model.precision}, and ONNX Runtime runs a file as it "
                "is.",
                path,
                f"`aethernet export` makes one in {precision} from the checkpoint.",
            )
        return model

    @classmethod
    def reference(cls, path: Path) -> Self:
        """Load an .onnx file on the CPU as it is written, without any optimisation.

        Raises:
            AetherError: when ONNX Runtime cannot load it, or it is no picture model.
        """
        try:
            session = _session(path, "cpu", optimised=False)
        except AetherError:
            if not _is_bfloat16(path):
                raise
            try:
                session = rounding_session(path.read_bytes())
            except Exception as error:  # the metadata of the file may be wrong
                raise AetherError("This is no complete ONNX model.", path) from error
        return cls(session, path, "cpu")

    def _execute(self, batch: np.ndarray, seconds: float | None) -> np.ndarray:
        name = self.session.get_inputs()[0].name
        options = _library().RunOptions()

        def run() -> np.ndarray:
            return self.session.run(None, {name: batch}, options)[0]

        def stop() -> None:
            options.terminate = True

        if self.device != "cpu":  # others keep things for each thread that calls them
            return run()
        return interruptible(run, stop, seconds)


def _library() -> Any:
    return import_optional("onnxruntime")


def _provider(device: str) -> str:
    """The provider for a device; raises AetherError where it is not available."""
    available = _library().get_available_providers()
    kind, colon, index = device.partition(":")
    provider = PROVIDERS.get(kind, "")
    well_numbered = not colon or (kind in _NUMBERED and index.isdecimal())
    if provider not in available or not well_numbered:
        raise AetherError(
            f"The device {device!r} is not available to ONNX Runtime here (it has "
            f"{', '.join(available)}).",
            hint="Try --device cpu.",
        )
    return provider


def _is_bfloat16(path: Path) -> bool:
    """Whether the file is an export of ours in bfloat16."""
    onnx = import_optional("onnx")
    try:
        entries = onnx.load_from_string(path.read_bytes()).metadata_props
    except Exception:  # protobuf's, for a file that is not ONNX; loading reports it
        return False
    stated = {entry.key: entry.value for entry in entries}
    ours = stated.get("architecture") == "AetherNet"
    return ours and stated.get("precision") == "bfloat16"


def _session(path: Path, device: str, optimised: bool = True) -> Any:
    """Load an .onnx file on a device; raises AetherError where that fails."""
    ort = _library()
    provider = _provider(device)
    content = read_graph(path)
    settings, providers = _settings(ort, device, optimised)
    if device_kind(device) in ("cuda", "tensorrt"):
        _load_cuda(ort)
    try:
        session = loaded(
            path,
            device,
            lambda: ort.InferenceSession(content, settings, providers),
            lambda: settings.set_load_cancellation_flag(True),
        )
    except (OutOfMemoryError, TooSlowError):
        raise
    except Exception as error:  # its errors have no base class of their own
        if device == "cpu" and _is_bfloat16(path):
            raise AetherError(
                "The file is in bfloat16, which ONNX Runtime does not have on the CPU.",
                path,
                "Use a GPU, or export float32.",
            ) from error
        raise AetherError(
            f"This is no ONNX model that ONNX Runtime {ort.__version__} can load on "
            f"{device}.",
            path,
        ) from error
    if session.get_providers()[0] != provider:  # it uses the CPU without an error
        raise AetherError(
            f"ONNX Runtime could not start {provider} for the device {device!r}. Its "
            "libraries or driver are missing or of another version."
        )
    return session


def _load_cuda(ort: Any) -> None:
    """Load the libraries of CUDA that pip installed, if it did.

    ONNX Runtime itself looks only where the system keeps libraries. PyTorch, once it is
    imported, has loaded its own.
    """
    load = getattr(ort, "preload_dlls", None)  # newer than 1.20
    if load:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what is not there
            load()


def _settings(ort: Any, device: str, optimised: bool) -> tuple[Any, list[Any]]:
    """Options of a session, and its providers with their options."""
    kind, _, index = device.partition(":")
    options: dict[str, str] = {"device_id": index} if index else {}
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # failures are raised as well
    settings.intra_op_num_threads = allowed_threads()  # 0: its own choice
    spinning = str(int(SPINNING))
    settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    if not optimised:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if kind == "cuda":
        options["use_tf32"] = "0"  # float32 means float32
    if kind == "dml":  # its documentation requires both
        settings.enable_mem_pattern = False
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    if kind == "tensorrt":
        engines = cache_folder() / "tensorrt"
        make_folder(engines)
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(engines),
        }
    # Each provider in the list executes what those before it cannot.
    chain = {"tensorrt": ("tensorrt", "cuda", "cpu"), "cpu": ("cpu",)}
    providers = [
        (PROVIDERS[name], options if name in (kind, "cuda") else {})
        for name in chain.get(kind, (kind, "cpu"))
    ]
    return settings, providers
