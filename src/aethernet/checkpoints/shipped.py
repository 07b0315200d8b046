"""The models that ship with AetherNet or were downloaded: their names and files.

The file `models/2x_aether_small_fp16.onnx` has the name `2x-small-fp16`. The fused
checkpoint has the short name, `2x-small`. A model for a special purpose is called after
that instead of its size: `models/2x_aether_small_photo.safetensors` is `2x-photo`.

Models that are too large to ship are listed in `models/index.json`, each with a file
name of the same kind, a size, a SHA-256 and addresses. `downloads.download` fetches one
into the user's data folder; from then on its name works wherever a model is named.
"""

import difflib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from aethernet.cache import data_folder
from aethernet.checkpoints import formats
from aethernet.checkpoints.model_card import figures_of
from aethernet.errors import AetherError, first_line
from aethernet.version import PACKAGE

DEFAULT_MODEL = "2x-small"

FUSED = ".safetensors"
"""Ending of the fused form of a released model, after the model's name."""

ENDINGS = {
    "training": "_training.safetensors",
    "pth": ".pth",
    "fp32": "_fp32.onnx",
    "fp16": "_fp16.onnx",
    "ncnn": ".param",
}
"""Endings of its other files."""

NCNN_WEIGHTS = ".bin"
"""Ending of the file that belongs to that for ncnn."""

# Suffixes of the files that `--model` accepts.
_MODEL_SUFFIXES = (*formats.SUFFIXES, ".onnx", ".engine")

# Names of model files without suffix: scale, size of the network, purpose, kind.
_STEM = re.compile(r"(\d+x)_aether_([a-z]+)(?:_(photo))?(?:_(training|fp16|fp32))?")

_FORMS = {None: "fused", "training": "training", "fp16": "ONNX", "fp32": "ONNX"}


@dataclass(frozen=True)
class Download:
    """A model file that can be downloaded."""

    name: str
    """Name that `--model` accepts once it is here."""
    file: str
    size: int
    """In bytes."""
    sha256: str
    urls: tuple[str, ...]
    """Addresses of the same file, tried in this order."""
    description: str = ""
    """What the model is for, and what not."""
    license: str | None = None
    """SPDX identifier."""


@dataclass(frozen=True)
class Shipped:
    """A model file that ships or was downloaded."""

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
    description: str
    """What the model is for, and what not, from its entry; "" if it has none."""
    purpose: str
    """ "" for clean pictures of every kind, "photo" for photographs as people have."""


def shipped_model(scale: float | None = None) -> Path:
    """The fused file of the best model that ships for a scale.

    It is one of the smallest scale that reaches `scale`, else of the largest scale;
    among these the one with the highest mean PSNR on its card. Models for a special
    purpose have to be named.

    Args:
        scale: how much larger a picture should get; None for the default model.

    Raises:
        AetherError: when no model is installed.
    """
    known = _named_files([models_folder()])
    if scale is None and DEFAULT_MODEL in known:
        return known[DEFAULT_MODEL]
    fused = [_described(name, path) for name, path in known.items()]
    fused = [m for m in fused if m.form == "fused" and not m.purpose]
    if not fused or scale is None:
        raise AetherError(
            f"The default model {DEFAULT_MODEL} is not installed.",
            hint="Name a model with --model.",
        )
    scales = sorted({model.scale for model in fused})
    wanted = next((each for each in scales if each >= scale), scales[-1])

    def quality(model: Shipped) -> float:
        return sum(model.psnr.values()) / max(len(model.psnr), 1)

    return max((m for m in fused if m.scale == wanted), key=quality).path


def find_model(name: str | Path) -> Path:
    """The file of a model, given by its path or by its name.

    Names are those of `shipped_models`. An existing file or folder with that name takes
    precedence. What looks like a path is returned even if there is no such file: its
    reader raises the error.

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
    if str(name) in {model.name for model in offered_downloads()}:
        hint = f"Download it: aethernet models --get {name}"
    else:
        names = ", ".join(known) or "none in this installation"
        hint = f"Shipped models: {names}."
        if near := difflib.get_close_matches(str(name), known, n=1):
            hint = f"Did you mean {near[0]}? {hint}"
    raise AetherError(
        "There is no such file, and no model of this name ships.", path, hint
    )


def shipped_models() -> list[Shipped]:
    """All model files that ship or were downloaded, by scale and name.

    The fused file of a model comes first.

    Only headers of checkpoints are read, and torch is not imported.

    Raises:
        CheckpointError: when a shipped checkpoint is damaged.
    """
    return [_described(name, path) for name, path in _named_files().items()]


def fused_models() -> list[Path]:
    """The fused files of all models that ship or were downloaded, the default first.

    Raises:
        CheckpointError: as `shipped_models`.
        AetherError: when the default model is not installed.
    """
    first = shipped_model()
    fused = [model.path for model in shipped_models() if model.form == "fused"]
    return [first, *(path for path in fused if path != first)]


def _described(name: str, path: Path) -> Shipped:
    stem = re.fullmatch(_STEM, path.stem)
    assert stem  # else it would have no name
    scale, variant, purpose, kind = stem.groups()
    words = filter(None, (scale, "aether", variant, purpose))
    base = path.with_name("_".join(words))
    precision = "float16" if kind == "fp16" else "float32"
    if kind not in ("fp16", "fp32"):
        precision = formats.stored_dtype(path)
    card = base.with_suffix(".md")
    figures = figures_of(card.read_text("utf-8")) if card.is_file() else {}
    entry = _entry(base.with_suffix(".json")) or _offered_as(path.name)
    return Shipped(
        *(name, path, int(scale[:-1]), f"aether_{variant}", _FORMS[kind], precision),
        size=path.stat().st_size,
        license=entry.get("license"),
        psnr=figures,
        description=entry.get("description", ""),
        purpose=purpose or "",
    )


def _offered_as(file: str) -> dict[str, Any]:
    """The fields of a downloaded file in the list of downloads."""
    offered = (asdict(each) for each in offered_downloads() if each.file == file)
    return next(offered, {})


def _entry(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _named_files(folders: Iterable[Path] | None = None) -> dict[str, Path]:
    """Model files by name, in the order of scale, size, purpose and kind.

    Args:
        folders: where to look, the most important first; None for all.
    """
    found: dict[str, tuple[int, str, str, str, Path]] = {}
    for path in chain.from_iterable(
        folder.glob("*") for folder in folders or _model_folders()
    ):
        stem = re.fullmatch(_STEM, path.stem)
        if stem and path.suffix in (".safetensors", ".onnx"):
            scale, variant, purpose, kind = stem.groups(default="")
            name = "-".join(filter(None, (scale, purpose or variant, kind)))
            found.setdefault(name, (int(scale[:-1]), variant, purpose, kind, path))
    return {name: found[name][-1] for name in sorted(found, key=lambda n: found[n])}


def _model_folders() -> list[Path]:
    try:
        return [models_folder(), data_folder()]
    except AetherError:  # no home folder, so nothing was downloaded into it
        return [models_folder()]


def models_folder() -> Path:
    """The folder with the models: in the package of a wheel, beside src/ in a clone."""
    inside = PACKAGE / "models"
    return inside if inside.is_dir() else PACKAGE.parents[1] / "models"


def offered_downloads() -> list[Download]:
    """The models that can be downloaded, in the order of the list.

    Raises:
        AetherError: when the list is damaged.
    """
    path = models_folder() / "index.json"
    if not path.is_file():
        return []
    try:
        return [
            _download_from(row) for row in json.loads(path.read_text("utf-8"))["models"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AetherError(
            f"The list of models is damaged: {first_line(error)}.",
            path,
            "Install AetherNet again.",
        ) from error


def _download_from(row: dict[str, Any]) -> Download:
    file = row["file"]
    if Path(file).name != file or file.startswith("."):
        raise ValueError(f"{file!r} is not a file name")
    return Download(
        *(row["name"], file, int(row["size"]), row["sha256"].lower()),
        urls=tuple(row["urls"]),
        description=row.get("description", ""),
        license=row.get("license"),
    )


def find_download(name: str) -> Download:
    """The model of this name in the list.

    Raises:
        AetherError: when it is not there.
    """
    offered = {model.name: model for model in offered_downloads()}
    if name in offered:
        return offered[name]
    names = ", ".join(offered)
    raise AetherError(
        f"No model {name} can be downloaded.",
        hint=f"These can: {names}." if names else "This version offers no downloads.",
    )
