"""How files of a model are named; the models that ship, and the names they go by.

A file `2x_aether_small_fp16.onnx` in `models/` is called `2x-small-fp16`; the fused
checkpoint has the short name, `2x-small`.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aethernet.checkpoints.checkpoint import SUFFIXES as CHECKPOINT_SUFFIXES
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.model_card import figures_of
from aethernet.errors import AetherError
from aethernet.version import PACKAGE

DEFAULT_MODEL = "2x-small"

FUSED = ".safetensors"
"""How the name of a released model goes on for its fused form."""

ENDINGS = {
    "training": "_training.safetensors",
    "pth": ".pth",
    "fp32": "_fp32.onnx",
    "fp16": "_fp16.onnx",
}
"""Likewise for its other files."""

# What our tools take as a model, by its name.
_MODEL_SUFFIXES = (*CHECKPOINT_SUFFIXES, ".onnx", ".engine")

# Of the files of a model: scale, what stands for its size, what kind of file it is.
_STEM = re.compile(r"(\d+x)_aether_([a-z]+)(?:_(training|fp16|fp32))?")

_FORMS = {None: "fused", "training": "training", "fp16": "ONNX", "fp32": "ONNX"}


@dataclass(frozen=True)
class Shipped:
    """A file that ships."""

    name: str
    """What `--model` takes, e.g. "2x-small"."""
    path: Path
    scale: int
    variant: str
    form: str
    """ "fused", "training", or "ONNX", which is fused too."""
    precision: str
    """ "float32" or "float16"."""
    size: int
    """In bytes."""
    license: str | None
    """SPDX identifier, as the model's entry says; None where there is no entry."""
    psnr: dict[str, float]
    """By set, in dB, as the model's card says."""


def shipped_model() -> Path:
    """The model used when none is named.

    Raises:
        AetherError: when the installation has none.
    """
    known = _named_files()
    if DEFAULT_MODEL not in known:
        raise AetherError(
            f"The shipped model {DEFAULT_MODEL} is not installed; name one with "
            "--model."
        )
    return known[DEFAULT_MODEL]


def find_model(words: str | Path) -> Path:
    """A model file by its path, or by the name it ships under.

    A file or folder that exists wins over a shipped name; what looks like a path is
    returned as it is, for its reader to judge.

    Raises:
        AetherError: when it is neither.
    """
    path, known = Path(words), _named_files()
    if os.path.exists(path):
        return path
    if str(words) in known:
        return known[str(words)]
    if path.suffix.lower() in _MODEL_SUFFIXES or len(path.parts) != 1:
        return path
    names = ", ".join(known) or "none in this installation"
    raise AetherError(
        f"There is no file {path}, and no shipped model of that name; those are: "
        f"{names}."
    )


def shipped_models() -> list[Shipped]:
    """Everything that ships, by scale and name; of each model the fused file first.

    Raises:
        CheckpointError: when a shipped checkpoint is damaged.
    """
    return [_described(name, path) for name, path in _named_files().items()]


def _described(name: str, path: Path) -> Shipped:
    stem = re.fullmatch(_STEM, path.stem)
    assert stem  # or it would have no name
    scale, variant, kind = stem.groups()
    base = path.with_name(f"{scale}_aether_{variant}")
    precision = "float16" if kind == "fp16" else "float32"
    if kind not in ("fp16", "fp32"):
        precision = str(load_checkpoint(path).dtype).removeprefix("torch.")
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
    """Model files by the names they go by: by scale, model and kind."""
    found = []
    for path in _folder().glob("*"):
        stem = re.fullmatch(_STEM, path.stem)
        if stem and path.suffix in (".safetensors", ".onnx"):
            scale, variant, kind = stem.groups(default="")
            name = "-".join(filter(None, (scale, variant, kind)))
            found.append((int(scale[:-1]), variant, kind, name, path))
    return {name: path for *_, name, path in sorted(found)}


def _folder() -> Path:
    # Inside the package when installed from a wheel, beside src/ in a clone.
    inside = PACKAGE / "models"
    return inside if inside.is_dir() else PACKAGE.parents[1] / "models"
