"""The entry of a release for OpenModelDB, and the table of facts in its card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aethernet.checkpoints.checkpoint import Checkpoint
from aethernet.checkpoints.info import describe_network
from aethernet.checkpoints.model_card import File
from aethernet.errors import AetherError
from aethernet.publish import openmodeldb
from aethernet.publish.about import About
from aethernet.publish.drawing import image_name

# Fields of an entry about the training, and their names in the card.
_TRAINING = {
    "trainingIterations": "iterations",
    "trainingEpochs": "epochs",
    "trainingBatchSize": "batch size",
    "trainingHRSize": "HR crops, pixels along each side",
    "trainingOTF": "degraded on the fly",
    "dataset": "data",
    "datasetSize": "pictures in the data",
    "pretrainedModelG": "trained from",
    "pretrainedModelD": "discriminator trained from",
}

# Facts about the network that the card states in its first row, or not at all.
_LEFT_OUT = ("form", "scale", "variant")


def make_entry(
    checkpoint: Checkpoint,
    name: str,
    about: About,
    folder: Path,
    files: Sequence[File],
    shown: Sequence[str],
) -> dict[str, Any]:
    """The entry of a release.

    Args:
        checkpoint: the source of the release.
        name: of the model.
        about: the author's statements.
        folder: with the files.
        files: model files in it.
        shown: names of the pictures in it.

    Raises:
        AetherError: when the entry is not valid.
    """
    hyperparameters, scale = checkpoint.hyperparameters, checkpoint.scale
    size = [f"{hyperparameters['embed_dim']}dim", f"{sum(hyperparameters['depths'])}nb"]
    if checkpoint.variant:
        size = [checkpoint.variant.removeprefix("aether_")]
    default_tag = "general-upscaler" if scale > 1 else "restoration"
    training = dict(about.training)
    if checkpoint.iterations:
        training.setdefault("trainingIterations", checkpoint.iterations)
    entry = {
        "name": name,
        "author": about.author[0] if len(about.author) == 1 else [*about.author],
        "license": about.license,
        "tags": sorted({*about.tags} or {default_tag}),
        "description": about.description or _default_description(checkpoint),
        "date": about.date,
        "architecture": openmodeldb.ARCHITECTURE,
        "size": size,
        "scale": scale,
        "inputChannels": checkpoint.in_chans,
        "outputChannels": checkpoint.in_chans,
        "resources": [
            openmodeldb.resource(folder / file.name, about.url)
            for file in files
            if openmodeldb.lists(file.name)
        ],
        **{name: training[name] for name in _TRAINING if name in training},
        "images": _images(about.url, shown),
    }
    if problems := openmodeldb.problems(entry):
        raise AetherError(f"The entry is not valid: {' '.join(problems)}")
    return entry


def _images(url: str | None, shown: Sequence[str]) -> list[dict[str, str]]:
    if not url:
        return []
    return [
        {
            "type": "paired",
            "LR": openmodeldb.url_of(url, image_name(picture, "lr")),
            "SR": openmodeldb.url_of(url, image_name(picture, "sr")),
        }
        for picture in shown
    ]


def _default_description(checkpoint: Checkpoint) -> str:
    kind = "RGB" if checkpoint.in_chans == 3 else "gray"
    if checkpoint.scale == 1:
        return f"AetherNet for restoring {kind} pictures at their own size."
    return f"AetherNet for making {kind} pictures {checkpoint.scale} times as large."


def facts(checkpoint: Checkpoint, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values for the card: the fused network, its training, its author."""
    variant = f", `{checkpoint.variant}`" if checkpoint.variant else ""
    rows = [("network", f"AetherNet{variant}, {checkpoint.scale}x")]
    rows += [
        (name if name != "parameters" else "parameters, fused", value)
        for name, value in describe_network(
            {**checkpoint.hyperparameters, "fused_init": True}
        )
        if name not in _LEFT_OUT
    ]
    rows += [
        (title, _as_text(entry[name]))
        for name, title in _TRAINING.items()
        if name in entry
    ]
    author = entry["author"]
    return [
        *rows,
        ("author", author if isinstance(author, str) else ", ".join(author)),
        ("licence of the weights", entry["license"] or "not stated"),
        ("date", entry["date"]),
    ]


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else value
