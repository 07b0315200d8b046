"""ONNX files, executed by ONNX Runtime."""

from pathlib import Path
from typing import Any, Self

import numpy as np

from aethernet.errors import AetherError, import_optional

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxRuntime:
    """An ONNX model of one input and one output `(B, C, H, W)`, float32 or float16."""

    def __init__(self, session: Any, path: Path) -> None:
        self._session = session
        inputs, outputs = session.get_inputs(), session.get_outputs()
        shape = inputs[0].shape if len(inputs) == len(outputs) == 1 else []
        if (
            len(shape) != 4
            or not isinstance(shape[1], int)
            or inputs[0].type not in _DTYPES
        ):
            raise AetherError(
                f"{path} is no picture model: expected one input (batch, channels, "
                "height, width), float32 or float16, with a fixed number of channels, "
                "and one output."
            )
        self._input = inputs[0].name
        self._dtype = _DTYPES[inputs[0].type]
        # A number where the file fixes that side, a name or None where it is free.
        self._fixed = [side if isinstance(side, int) else None for side in shape]
        self.in_chans: int = shape[1]
        # What comes out tells the scale of any file, whoever wrote it.
        probe = [
            side or default
            for side, default in zip(self._fixed, (1, 1, 8, 8), strict=True)
        ]
        out = self._run(np.zeros(probe, np.float32)).shape
        self.scale: int = out[2] // probe[2] if len(out) == 4 and probe[2] else 0
        if not self.scale or out != (
            *probe[:2],
            probe[2] * self.scale,
            probe[3] * self.scale,
        ):
            raise AetherError(
                f"{path} is no upscaler: it makes {out} of {tuple(probe)}."
            )

    @classmethod
    def load(cls, path: Path, device: str) -> Self:
        ort = import_optional("onnxruntime", "onnx")
        available = ort.get_available_providers()
        kind, _, index = device.partition(":")
        if kind == "auto":
            kind = "cuda" if PROVIDERS["cuda"] in available else "cpu"
        provider = PROVIDERS.get(kind)
        if provider not in available or (":" in device and not index.isdecimal()):
            raise AetherError(
                f"The device {device!r} is not available to ONNX Runtime here "
                f"(it has {', '.join(available)}); try --device cpu."
            )
        options = {"device_id": index} if index else {}
        quiet = ort.SessionOptions()
        quiet.log_severity_level = 4  # what fails is raised as well
        try:
            # CUDA may lack an operation; the CPU then takes that one.
            providers = [(provider, options), PROVIDERS["cpu"]][: 1 + (kind != "cpu")]
            session = ort.InferenceSession(path.read_bytes(), quiet, providers)
        except Exception as error:  # its errors share no base class of their own
            raise AetherError(
                f"{path} is no ONNX model that ONNX Runtime {ort.__version__} can load."
            ) from error
        return cls(session, path)

    def run(self, image: np.ndarray) -> np.ndarray:
        for side, fixed, what in zip(
            image.shape,
            self._fixed,
            ("batch", "channels", "height", "width"),
            strict=True,
        ):
            if fixed not in (None, side):
                raise AetherError(
                    f"This ONNX file takes a {what} of {fixed} only, not {side}; "
                    "export it with free sizes."
                )
        return self._run(image)

    def _run(self, image: np.ndarray) -> np.ndarray:
        feed = {self._input: image.astype(self._dtype, copy=False)}
        try:
            output = self._session.run(None, feed)[0]
        except Exception as error:  # its errors share no base class of their own
            raise AetherError(
                f"ONNX Runtime failed on an image of shape {[*image.shape]}: out of "
                "memory, or no picture model."
            ) from error
        return np.asarray(output).astype(np.float32, copy=False)

    def describe(self) -> str:
        provider = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        return f"ONNX Runtime {np.dtype(self._dtype).name} on {provider}"
