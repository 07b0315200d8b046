"""Checkpoints in `.safetensors` files, read into NumPy arrays without PyTorch."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aethernet.checkpoints.layout import hyperparameters_from_shapes, variant_name
from aethernet.errors import CheckpointError, first_line, import_optional
from aethernet.files import check_source

Array = npt.NDArray[np.floating]

# What DataParallel, torch.compile, AveragedModel and GAN trainers put before every key.
PREFIXES = ("module.", "_orig_mod.", "netG.")

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
    except CheckpointError as error:
        raise error.about(path) from None
    told = _told_by_metadata(path, metadata, found)
    return ArrayCheckpoint(path, state_dict, {**found, **told}, metadata)


def without_prefixes(state_dict: Mapping[str, Array]) -> dict[str, Array]:
    """The same state dict without what trainers put before every key."""
    # AveragedModel counts its updates in "n_averaged", with or without a prefix.
    left = {k: v for k, v in state_dict.items() if k.split(".")[-1] != "n_averaged"}
    while left:
        prefix = next((p for p in PREFIXES if all(k.startswith(p) for k in left)), None)
        if prefix is None:
            break
        left = {key.removeprefix(prefix): value for key, value in left.items()}
    return left


def _read(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    safetensors = import_optional("safetensors")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
        entries = safetensors.deserialize(path.read_bytes())
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"Not a .safetensors file, or a truncated one: {first_line(error)}.", path
        ) from error
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
    return arrays, metadata


def _told_by_metadata(
    path: Path, metadata: Mapping[str, str], found: Mapping[str, Any]
) -> dict[str, Any]:
    """Hyper-parameters that no weight tells: `img_range`, drop rates, `sk_kernel`."""
    stored: Mapping[str, Any] = metadata
    told: dict[str, Any] = {}
    try:
        # Ours, and traiNNer-redux's.
        for key in ("hyperparameters", "metadata"):
            if metadata.get(key, "").startswith("{"):
                stored = json.loads(metadata[key])
        for key in ("img_range", "drop_rate", "drop_path_rate"):
            if key in stored:
                told[key] = float(stored[key])
        if found["fused_init"] and "sk_kernel" in stored:
            told["sk_kernel"] = int(stored["sk_kernel"])  # fused weights lost it
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"The metadata is damaged: {first_line(error)}.", path
        ) from error
    small = told.get("sk_kernel", 1)
    rules = {
        "img_range": 0 < told.get("img_range", 1.0) < math.inf,
        "drop_rate": 0 <= told.get("drop_rate", 0.0) < 1,
        "drop_path_rate": 0 <= told.get("drop_path_rate", 0.0) < 1,
        "sk_kernel": small % 2 == 1 and 1 <= small <= found["lk_kernel"],
    }
    for key, holds in rules.items():
        if not holds:
            raise CheckpointError(
                f"The metadata is damaged: {key} cannot be {told[key]}.", path
            )
    return told
