"""ONNX files, and checkpoints exported on the way, executed by ONNX Runtime."""

from pathlib import Path
from typing import Any, Self

import numpy as np

from aethernet.cache import cache_folder, make_folder
from aethernet.checkpoints.checkpoint import is_checkpoint
from aethernet.checkpoints.onnx_check import rounding_session
from aethernet.errors import AetherError, import_optional
from aethernet.runtimes.base import PRECISIONS
from aethernet.runtimes.onnx_files import OnnxModel, allowed_threads, load_exported

# Device -> provider, in the order "auto" prefers. TensorRT, which builds an engine for
# minutes, and CoreML, which is in every macOS build, are taken by name only.
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "dml": "DmlExecutionProvider",
    "cpu": "CPUExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}

_BY_NAME_ONLY = ("tensorrt", "coreml")

_NUMBERED = ("cuda", "dml", "tensorrt")

_DTYPES: dict[str, type[np.floating]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


class OnnxRuntime(OnnxModel):
    """An ONNX file in a session on one device; the CPU takes what that one lacks."""

    library = "ONNX Runtime"

    def __init__(self, session: Any, path: Path, device: str) -> None:
        self._session = session
        inputs, outputs = session.get_inputs(), session.get_outputs()
        dtype = _DTYPES.get(inputs[0].type) if inputs else None
        shapes = [
            # A number where the file fixes that side, a name or None where it is free.
            [side if isinstance(side, int) else None for side in value.shape]
            for value in (*inputs, *outputs)
        ]
        self.metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        told = self.metadata.get("precision", "")  # by ours; anyone may write anything
        held = told if told in (*PRECISIONS, "int8") else np.dtype(dtype).name
        super().__init__(path, shapes, dtype, device, held)

    @classmethod
    def load(cls, path: Path, device: str, precision: str) -> Self:
        device = cls.devices()[0] if device == "auto" else device
        _provider(device)
        if is_checkpoint(path):
            held = "float32" if precision == "auto" else precision
            if (device, held) == ("cpu", "bfloat16"):
                raise AetherError(
                    "ONNX Runtime has no bfloat16 on the CPU; try --runtime pytorch or "
                    "openvino."
                )
            return load_exported(path, held, lambda f: cls.of_file(f, device, held))
        return cls.of_file(path, device, precision)

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        available = import_optional("onnxruntime", "onnx").get_available_providers()
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
                f"{path} is in {model.precision}, and ONNX Runtime takes a file as it "
                f"is: `aethernet export` makes one in {precision} of the checkpoint."
            )
        return model

    @classmethod
    def reference(cls, path: Path) -> Self:
        """An .onnx file on the CPU as it is written, without any optimisation."""
        try:
            session = _session(path, "cpu", optimised=False)
        except AetherError:
            if not _is_bfloat16(path):
                raise
            try:
                session = rounding_session(path.read_bytes())
            except Exception as error:  # it only says that it is ours
                raise AetherError(f"{path} is no whole ONNX model.") from error
        return cls(session, path, "cpu")

    def _execute(self, batch: np.ndarray) -> np.ndarray:
        name = self._session.get_inputs()[0].name
        return self._session.run(None, {name: batch})[0]


def _provider(device: str) -> str:
    """What a device is called there; raises AetherError where it is not there."""
    available = import_optional("onnxruntime", "onnx").get_available_providers()
    kind, colon, index = device.partition(":")
    provider = PROVIDERS.get(kind, "")
    well_numbered = not colon or (kind in _NUMBERED and index.isdecimal())
    if provider not in available or not well_numbered:
        raise AetherError(
            f"The device {device!r} is not available to ONNX Runtime here "
            f"(it has {', '.join(available)}); try --device cpu."
        )
    return provider


def _is_bfloat16(path: Path) -> bool:
    """Whether it is a file of ours in bfloat16."""
    onnx = import_optional("onnx", "onnx")
    try:
        metadata = onnx.load_from_string(path.read_bytes()).metadata_props
    except Exception:  # protobuf's, for what is no ONNX file: loading will say so
        return False
    told = {entry.key: entry.value for entry in metadata}
    return (
        told.get("architecture") == "AetherNet" and told.get("precision") == "bfloat16"
    )


def _session(path: Path, device: str, optimised: bool = True) -> Any:
    ort = import_optional("onnxruntime", "onnx")
    provider = _provider(device)
    kind, _, index = device.partition(":")
    options: dict[str, str] = {"device_id": index} if index else {}
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # what fails is raised as well
    settings.intra_op_num_threads = allowed_threads()  # 0: as many as it likes
    if not optimised:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if kind == "cuda":
        options["use_tf32"] = "0"  # float32 means float32
    if kind == "dml":  # its documentation asks for both
        settings.enable_mem_pattern = False
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    if kind == "tensorrt":
        engines = cache_folder() / "tensorrt"
        make_folder(engines)
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(engines),
        }
    # What a device lacks is taken by the next in the list.
    chain = {"tensorrt": ("tensorrt", "cuda", "cpu"), "cpu": ("cpu",)}
    providers = [
        (PROVIDERS[name], options if name in (kind, "cuda") else {})
        for name in chain.get(kind, (kind, "cpu"))
    ]
    try:
        session = ort.InferenceSession(path.read_bytes(), settings, providers)
    except Exception as error:  # its errors share no base class of their own
        if device == "cpu" and _is_bfloat16(path):
            raise AetherError(
                f"{path} is in bfloat16, which ONNX Runtime does not have on the CPU; "
                "take a GPU, or export float32."
            ) from error
        raise AetherError(
            f"{path} is no ONNX model that ONNX Runtime {ort.__version__} can load "
            f"on {device}."
        ) from error
    if session.get_providers()[0] != provider:  # it falls back without a word
        raise AetherError(
            f"ONNX Runtime could not start {provider} for the device {device!r}; its "
            "libraries or driver are missing or of another version."
        )
    return session
