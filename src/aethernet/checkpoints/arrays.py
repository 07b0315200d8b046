"""`.safetensors` files as NumPy arrays, read and written without PyTorch."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aethernet.checkpoints.formats import damaged_safetensors
from aethernet.errors import CheckpointError, import_optional

Array = npt.NDArray[Any]

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""Types that weights can have, as `Stored.dtype` names them."""

# As the header of a .safetensors file spells the types, and as NumPy reads them. NumPy
# has no bfloat16: its bits are the upper half of a float32.
_DTYPES = {
    "F64": ("float64", "<f8"),
    "F32": ("float32", "<f4"),
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    "I64": ("int64", "<i8"),
    "I32": ("int32", "<i4"),
    "I16": ("int16", "<i2"),
    "I8": ("int8", "i1"),
    "U64": ("uint64", "<u8"),
    "U32": ("uint32", "<u4"),
    "U16": ("uint16", "<u2"),
    "U8": ("uint8", "u1"),
    "BOOL": ("bool", "?"),
}


class Stored(NamedTuple):
    """An array, and the type in which its file holds it."""

    values: Array
    """In that type; bfloat16 as float32, which holds each of its values."""
    dtype: str


def read_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The arrays in a `.safetensors` file of any network, by key, and its metadata.

    Raises:
        CheckpointError: when the file is damaged, or holds a type that NumPy lacks.
        MissingExtraError: when `safetensors` is not installed.
    """
    safetensors = import_optional("safetensors")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
        entries = safetensors.deserialize(path.read_bytes())
        return _arrays(entries, path), metadata
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise damaged_safetensors(path, error) from error


def safetensors_bytes(
    state_dict: Mapping[str, Array], metadata: Mapping[str, str]
) -> bytes:
    """The content of a `.safetensors` file.

    Raises:
        MissingExtraError: when `safetensors` is not installed.
    """
    safetensors = import_optional("safetensors.numpy")
    # transformers and others look for "format" in the header.
    return safetensors.save(dict(state_dict), {"format": "pt", **metadata})


def _arrays(entries: Iterable[tuple[str, Any]], path: Path) -> dict[str, Stored]:
    """Arrays of the entries of a file; raises ValueError for impossible shapes."""
    arrays = {}
    for key, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(
                f"The key {key!r} holds {entry['dtype']}, not floating-point weights "
                "of 16 bits or more.",
                path,
            )
        name, kind = _DTYPES[entry["dtype"]]
        values: Array = np.frombuffer(entry["data"], kind)
        if name == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        arrays[key] = Stored(values.reshape(entry["shape"]), name)
    return arrays
