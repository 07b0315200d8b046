"""PyTorch's own files, `.pth`, `.pt` and `.ckpt`: the only ones that need PyTorch.

They are zip files or pickles, which can hold programs. They are read with
`weights_only=True`, which runs none.
"""

import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from aethernet.checkpoints.arrays import Array, Stored
from aethernet.errors import CheckpointError, MissingExtraError, import_optional


def read_pickle(path: Path) -> dict[Any, Any]:
    """The content of a file: tensors and plain values, by key.

    Raises:
        CheckpointError: when it is truncated, is no such file, or holds other objects.
        MissingExtraError: when PyTorch is not installed.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"PK\x03\x04" and magic[:1] != b"\x80":  # zip, or a bare pickle
        raise CheckpointError("Not a PyTorch checkpoint, despite its suffix.", path)
    torch = _pytorch(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript, which is refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # RuntimeError, EOFError, KeyError and others
        raise _unpickling_error(path, error) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"The file holds a {type(content).__name__}, not a dict of weights.", path
        )
    return dict(content)


def pickle_bytes(
    state_dict: Mapping[str, Array], metadata: Mapping[str, str], path: Path
) -> bytes:
    """The content of a file that neosr, traiNNer-redux and spandrel read.

    Args:
        state_dict: by key, float32 or float16.
        metadata: of the file.
        path: that it gets, for messages.

    Raises:
        MissingExtraError: when PyTorch is not installed.
    """
    torch = _pytorch(path)
    tensors = {key: torch.tensor(values) for key, values in state_dict.items()}
    buffer = io.BytesIO()
    torch.save({"params": tensors, "metadata": dict(metadata)}, buffer)
    return buffer.getvalue()


def as_stored(value: object) -> Stored:
    """A tensor of a file as an array.

    Of a value that has none, a number or a sparse tensor for instance, `dtype` says
    what it is, and the array only has its shape.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        return Stored(np.zeros(0, np.float32), type(value).__name__)
    plain = value.layout == torch.strided and not value.is_meta
    if not plain or value.dtype not in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    ):
        name = str(value.dtype).removeprefix("torch.")
        if not plain:
            name = f"a {'meta' if value.is_meta else value.layout} tensor"
        return Stored(np.broadcast_to(np.float32(0), tuple(value.shape)), name)
    name = str(value.dtype).removeprefix("torch.")
    value = value.detach()
    return Stored((value.float() if name == "bfloat16" else value).numpy(), name)


def _pytorch(path: Path) -> ModuleType:
    try:
        return import_optional("torch", "torch")
    except MissingExtraError as error:
        raise MissingExtraError(
            f"{path.suffix} files need PyTorch. {error.reason}",
            path,
            f"{error.hint} .safetensors files do without it.",
        ) from error


def _unpickling_error(path: Path, error: Exception) -> CheckpointError:
    """What is wrong with a file that torch refuses.

    The message of torch is left out: it advises to load with weights_only=False.
    """
    if "TorchScript" in str(error):
        return CheckpointError("A TorchScript archive, not a state dict.", path)
    if isinstance(error, pickle.UnpicklingError) and "truncated" not in str(error):
        return CheckpointError(
            "The file holds Python objects other than tensors. They could run code "
            "when loaded, so the file was not loaded.",
            path,
            "Ask its author for the bare state dict.",
        )
    return CheckpointError(
        "The file is truncated or damaged.", path, "Download or copy it again."
    )
