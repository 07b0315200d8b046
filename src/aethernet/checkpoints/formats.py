"""Formats of checkpoints, and what a file tells without torch."""

from pathlib import Path

from aethernet.errors import CheckpointError, first_line, import_optional

PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt")
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)

# As the header of a .safetensors file spells the types that weights can have.
_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint by its suffix."""
    return path.suffix.lower() in SUFFIXES


def stored_dtype(path: Path) -> str:
    """The type of the weights in a .safetensors file of AetherNet, e.g. "float32".

    Reads the header only.

    Raises:
        CheckpointError: when the file cannot be read or has no such weights.
    """
    safetensors = import_optional("safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return _DTYPES[file.get_slice("conv_first.weight").get_dtype()]
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise damaged_safetensors(path, error) from error


def damaged_safetensors(path: Path, error: Exception) -> CheckpointError:
    """The error to raise for a .safetensors file that its library does not read."""
    detail = first_line(error).rstrip(".")
    return CheckpointError(
        f"Not a .safetensors file, or a truncated one ({detail}).", path
    )
