"""ONNX files and exports of checkpoints, executed by OpenVINO."""

from pathlib import Path
from typing import Any, Self

import numpy as np

from aethernet.checkpoints.formats import is_checkpoint
from aethernet.errors import AetherError, import_optional
from aethernet.runtimes.base import ModelFile
from aethernet.runtimes.onnx_files import (
    OnnxModel,
    allowed_threads,
    load_exported,
    read_graph,
)
from aethernet.runtimes.probing import loaded
from aethernet.runtimes.waiting import interruptible

# Precision -> OpenVINO's name for it as a hint, and among a device's capabilities.
HINTS = {
    "float32": ("f32", "FP32"),
    "float16": ("f16", "FP16"),
    "bfloat16": ("bf16", "BF16"),
}

_DTYPES: dict[str, type[np.floating] | type[np.uint8]] = {
    "f32": np.float32,
    "f16": np.float16,
    "u8": np.uint8,
}


class OpenVINORuntime(OnnxModel):
    """An ONNX file compiled for the CPU or an Intel GPU ("xpu", as PyTorch calls it).

    A float32 file is computed in any precision the device has. By default OpenVINO
    uses a lower one on some devices; here float32 means float32.
    """

    library = "OpenVINO"

    def __init__(self, compiled: Any, path: Path, device: str, precision: str) -> None:
        """Check a compiled model, an `openvino.CompiledModel`; see `OnnxModel`."""
        self.compiled = compiled
        self._request = compiled.create_infer_request()
        shapes = [
            [side.get_length() if side.is_static else None for side in value]
            for value in (port.partial_shape for port in _ports(compiled))
            if value.rank.is_static
        ]
        super().__init__(path, shapes, _input_dtype(compiled), device, precision)

    @classmethod
    def load(cls, file: Path | ModelFile, device: str, precision: str) -> Self:
        file = ModelFile.of(file)
        device = cls.devices()[0] if device == "auto" else device
        if is_checkpoint(file.path):
            held = "float32" if precision == "auto" else precision
            _check(device, held)
            # OpenVINO itself converts a float32 export to the precision. It computes
            # LayerNorm in parts faster than as an operator.
            return load_exported(
                file,
                "float32",
                lambda export: cls.of_file(export, device, held),
                norm="parts",
            )
        return cls.of_file(file.path, device, precision)

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        found = _core().available_devices
        return ("xpu", "cpu") if any("GPU" in name for name in found) else ("cpu",)

    @classmethod
    def precisions(cls, path: Path, device: str) -> tuple[str, ...]:
        if not is_checkpoint(path) and _input_dtype(_read(path)) is not np.float32:
            return ("auto",)
        lower = [name for name in ("float16", "bfloat16") if _computes(device, name)]
        return ("float32", *lower)

    @classmethod
    def of_file(cls, path: Path, device: str, precision: str) -> Self:
        model = _read(path)
        held = "float16" if _input_dtype(model) is np.float16 else "float32"
        precision = held if precision == "auto" else precision
        if held == "float16" != precision:
            raise AetherError(
                f"The file is in float16, so it cannot run in {precision}.", path
            )
        if held == "float16" and not _computes(device, held):
            hint = "f32"  # with the float16 weights
        else:
            _check(device, precision)
            hint, _ = HINTS[precision]
        compiled = _compile(model, path, device, hint)
        return cls(compiled, path, device, precision)

    def _execute(self, batch: np.ndarray, seconds: float | None) -> np.ndarray:
        def run() -> np.ndarray:
            made = self._request.infer(batch, share_inputs=True)
            # A copy: the library uses its output's memory again for the next picture.
            return np.array(made[0])

        if self.device != "cpu":
            return run()
        return interruptible(run, self._request.cancel, seconds)


def _library() -> Any:
    return import_optional("openvino", "openvino")


def _core() -> Any:
    return _library().Core()


def _read(path: Path) -> Any:
    content = read_graph(path)
    try:
        # By its content, so that a file cannot make OpenVINO read other files.
        return _core().read_model(content)
    except RuntimeError as error:
        raise AetherError(
            "This is no ONNX model that OpenVINO can load.", path
        ) from error


def _compile(model: Any, path: Path, device: str, hint: str) -> Any:
    """Prepare a model for a device, in the precision of the hint or not at all."""
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if device == "cpu" and (threads := allowed_threads()):
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = loaded(
            path,
            device,
            lambda: _core().compile_model(model, _openvino_device(device), settings),
        )
    except RuntimeError as error:
        raise AetherError(
            f"OpenVINO cannot prepare this model for the device {device!r}.", path
        ) from error
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if used != hint:
        raise AetherError(f"OpenVINO uses {used} on {device}, not {hint}.")
    return compiled


def _ports(model: Any) -> list[Any]:
    return [*model.inputs, *model.outputs]


def _input_dtype(model: Any) -> type[np.floating] | type[np.uint8] | None:
    inputs = model.inputs
    return _DTYPES.get(inputs[0].element_type.get_type_name()) if inputs else None


def _openvino_device(device: str) -> str:
    """OpenVINO's name for a device."""
    kind, colon, index = device.partition(":")
    if kind == "cpu" and not colon:
        return "CPU"
    if kind == "xpu" and (not colon or index.isdecimal()):
        return f"GPU.{index}" if index else "GPU"
    raise AetherError(
        f"The device {device!r} is not available to OpenVINO.",
        hint="Try --device cpu.",
    )


def _check(device: str, precision: str) -> None:
    if not _computes(device, precision):
        raise AetherError(
            f"OpenVINO does not compute in {precision} on {device} here.",
            hint="Leave out --precision.",
        )


def _computes(device: str, precision: str) -> bool:
    """Whether a device has hardware for a precision; raises AetherError."""
    name = _openvino_device(device)
    try:
        capabilities = _core().get_property(name, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        raise AetherError(
            f"The device {device!r} is not available to OpenVINO here (it has "
            f"{', '.join(_core().available_devices)}).",
            hint="Try --device cpu.",
        ) from error
    return HINTS[precision][1] in capabilities
