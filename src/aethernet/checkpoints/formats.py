"""Formats of checkpoints, and what a file tells without torch."""

import json
from pathlib import Path

from aethernet.errors import CheckpointError, first_line

PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt")
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)

# Bytes, by the format's definition.
_LONGEST_HEADER = 100_000_000

# As the header of a .safetensors file spells the types that weights can have.
_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint by its suffix."""
    return path.suffix.lower() in SUFFIXES


def stored_dtype(path: Path) -> str:
    """The type of the weights in a .safetensors file of AetherNet, e.g. "float32".

    Reads the header only, which is JSON, and not by its library, which would import
    NumPy.

    Raises:
        CheckpointError: when the file cannot be read or has no such weights.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, _LONGEST_HEADER)))
        return _DTYPES[header["conv_first.weight"]["dtype"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged_safetensors(path, error) from error


def damaged_safetensors(path: Path, error: Exception) -> CheckpointError:
    """The error to raise for a .safetensors file that its library does not read."""
    detail = first_line(error).rstrip(".")
    return CheckpointError(
        f"Not a .safetensors file, or a truncated one ({detail}).", path
    )
