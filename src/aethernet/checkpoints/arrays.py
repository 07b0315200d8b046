"""Checkpoints in `.safetensors` files, read into NumPy arrays without PyTorch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aethernet.checkpoints.layout import (
    arguments_from_metadata,
    hyperparameters_from_shapes,
    variant_name,
    without_prefixes,
)
from aethernet.checkpoints.limits import check_keys
from aethernet.errors import CheckpointError, first_line, import_optional
from aethernet.files import check_source

Array = npt.NDArray[np.floating]

# NumPy has no bfloat16: its bits are the upper half of a float32.
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class ArrayCheckpoint:
    """An AetherNet checkpoint as NumPy arrays."""

    path: Path
    state_dict: dict[str, Array]
    """float64, float32 or float16 as in the file; bfloat16 as float32."""
    hyperparameters: dict[str, Any]
    """Arguments of `AetherNet`: from the shapes, and from what the metadata says."""
    metadata: dict[str, str]

    @property
    def variant(self) -> str | None:
        """ "aether_small", "aether_medium", "aether_large", or None for other sizes."""
        return variant_name(self.hyperparameters)


def load_arrays(path: str | Path) -> ArrayCheckpoint:
    """Read an AetherNet checkpoint from a `.safetensors` file.

    Raises:
        CheckpointError: when it is not a `.safetensors` file, is damaged, holds another
            network, or weights that are not finite floating-point numbers.
        AetherError: when there is no such file, or it cannot be read.
    """
    path = Path(path)
    check_source(path, "a checkpoint")
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(
            f"Only .safetensors files are read without PyTorch, not {path.suffix!r}.",
            path,
            "Install PyTorch: pip install torch.",
        )
    tensors, metadata = _read(path)
    state_dict = without_prefixes(tensors)
    for key, array in state_dict.items():
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"Key {key!r} holds NaN or infinite weights, so the training diverged.",
                path,
                "Use an earlier checkpoint.",
            )
    shapes = {key: array.shape for key, array in state_dict.items()}
    try:
        found = hyperparameters_from_shapes(shapes)
        told = arguments_from_metadata(metadata, found)
    except CheckpointError as error:
        raise error.about(path) from None
    return ArrayCheckpoint(path, state_dict, {**found, **told}, metadata)


def _read(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    safetensors = import_optional("safetensors")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            check_keys(file.keys())
            metadata: dict[str, str] = file.metadata() or {}
        entries = safetensors.deserialize(path.read_bytes())
        return _arrays(entries, path), metadata
    except CheckpointError as error:
        raise error.about(path) from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"Not a .safetensors file, or a truncated one: {first_line(error)}.", path
        ) from error


def _arrays(entries: Iterable[tuple[str, Any]], path: Path) -> dict[str, Array]:
    """Arrays of the entries of a file; raises ValueError for impossible shapes."""
    arrays = {}
    for key, entry in entries:
        kind = entry["dtype"]
        if kind not in _DTYPES:
            counter = key.split(".")[-1] == "n_averaged"
            if counter:
                continue
            raise CheckpointError(f"Key {key!r} holds {kind}, not float weights.", path)
        array = np.frombuffer(bytes(entry["data"]), _DTYPES[kind])
        if kind == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        arrays[key] = array.reshape(entry["shape"])
    return arrays
