"""The models that ship with AetherNet, their names and their files.

The file `models/2x_aether_small_fp16.onnx` has the name `2x-small-fp16`. The fused
checkpoint has the short name, `2x-small`.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aethernet.checkpoints import formats
from aethernet.checkpoints.model_card import figures_of
from aethernet.errors import AetherError
from aethernet.version import PACKAGE

DEFAULT_MODEL = "2x-small"

FUSED = ".safetensors"
"""Ending of the fused form of a released model, after the model's name."""

ENDINGS = {
    "training": "_training.safetensors",
    "pth": ".pth",
    "fp32": "_fp32.onnx",
    "fp16": "_fp16.onnx",
}
"""Endings of its other files."""

# Suffixes of the files that `--model` accepts.
_MODEL_SUFFIXES = (*formats.SUFFIXES, ".onnx", ".engine")

# Names of model files without suffix: scale, size of the network, kind of file.
_STEM = re.compile(r"(\d+x)_aether_([a-z]+)(?:_(training|fp16|fp32))?")

_FORMS = {None: "fused", "training": "training", "fp16": "ONNX", "fp32": "ONNX"}


@dataclass(frozen=True)
class Shipped:
    """A model file that ships."""

    name: str
    """Name that `--model` accepts, e.g. "2x-small"."""
    path: Path
    scale: int
    variant: str
    form: str
    """ "fused", "training", or "ONNX" (fused, too)."""
    precision: str
    """ "float32" or "float16"."""
    size: int
    """In bytes."""
    license: str | None
    """SPDX identifier, from the model's entry; None if it has none."""
    psnr: dict[str, float]
    """In dB by set, from the model's card."""


def shipped_model() -> Path:
    """The file of the default model.

    Raises:
        AetherError: when it is not installed.
    """
    known = _named_files()
    if DEFAULT_MODEL not in known:
        raise AetherError(
            f"The default model {DEFAULT_MODEL} is not installed.",
            hint="Name a model with --model.",
        )
    return known[DEFAULT_MODEL]


def find_model(name: str | Path) -> Path:
    """The file of a model, given by its path or by the name of a model that ships.

    An existing file or folder with that name takes precedence. What looks like a path
    is returned even if there is no such file: its reader raises the error.

    Raises:
        AetherError: when `name` is neither.
    """
    path, known = Path(name), _named_files()
    if os.path.exists(path):
        return path
    if str(name) in known:
        return known[str(name)]
    if path.suffix.lower() in _MODEL_SUFFIXES or len(path.parts) != 1:
        return path
    names = ", ".join(known) or "none in this installation"
    raise AetherError(
        "There is no such file, and no model of this name ships.",
        path,
        f"Shipped models: {names}.",
    )


def shipped_models() -> list[Shipped]:
    """All model files that ship, by scale and name; the fused file of a model first.

    Only headers of checkpoints are read, and torch is not imported.

    Raises:
        CheckpointError: when a shipped checkpoint is damaged.
    """
    return [_described(name, path) for name, path in _named_files().items()]


def _described(name: str, path: Path) -> Shipped:
    stem = re.fullmatch(_STEM, path.stem)
    assert stem  # else it would have no name
    scale, variant, kind = stem.groups()
    base = path.with_name(f"{scale}_aether_{variant}")
    precision = "float16" if kind == "fp16" else "float32"
    if kind not in ("fp16", "fp32"):
        precision = formats.stored_dtype(path)
    card = base.with_suffix(".md")
    figures = figures_of(card.read_text("utf-8")) if card.is_file() else {}
    return Shipped(
        *(name, path, int(scale[:-1]), f"aether_{variant}", _FORMS[kind], precision),
        size=path.stat().st_size,
        license=_entry(base.with_suffix(".json")).get("license"),
        psnr=figures,
    )


def _entry(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _named_files() -> dict[str, Path]:
    """Model files by name, in the order of scale, model and kind."""
    found = []
    for path in models_folder().glob("*"):
        stem = re.fullmatch(_STEM, path.stem)
        if stem and path.suffix in (".safetensors", ".onnx"):
            scale, variant, kind = stem.groups(default="")
            name = "-".join(filter(None, (scale, variant, kind)))
            found.append((int(scale[:-1]), variant, kind, name, path))
    return {name: path for *_, name, path in sorted(found)}


def models_folder() -> Path:
    """The folder with the models: in the package of a wheel, beside src/ in a clone."""
    inside = PACKAGE / "models"
    return inside if inside.is_dir() else PACKAGE.parents[1] / "models"
