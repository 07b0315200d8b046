"""What an author publishes of a checkpoint: model files, card, entry, pictures.

Everything is made in a folder of its own and checked against the checkpoint; the folder
takes its place when all of it is right.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aethernet.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from aethernet.checkpoints.fuse import fuse_checkpoint
from aethernet.checkpoints.info import describe_file
from aethernet.checkpoints.model_card import Card, File, as_markdown
from aethernet.checkpoints.onnx import export_onnx
from aethernet.checkpoints.shipped import ENDINGS, FUSED
from aethernet.checkpoints.verification import Difference, natural_image
from aethernet.errors import AetherError, ImageError, import_optional
from aethernet.files import command_line, replacing, replacing_folder
from aethernet.metrics import PROTOCOL, Figures
from aethernet.pictures.files import Picture, in_8_bits, read_picture
from aethernet.pictures.write import write_picture
from aethernet.publish import openmodeldb
from aethernet.quality.baselines import BICUBIC, Bicubic
from aethernet.quality.compare import MOST_MEGAPIXELS
from aethernet.quality.measure import find_samples, measure_models
from aethernet.runtimes.base import Model
from aethernet.runtimes.registry import open_model
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling.planes import upscale_picture

_log = logging.getLogger(__name__)

_WHAT = {
    FUSED: "fused form, float32: for spandrel and what loads through it",
    "_training.safetensors": "training form, float32: to train on from",
    ".pth": "fused form, float32: for what takes no .safetensors",
    "_fp32.onnx": "ONNX, float32, any size of input",
    "_fp16.onnx": "ONNX, float16 in and out, any size of input: for GPUs",
}

IMAGES = "images"

_FACTS_LEFT_OUT = ("file", "form", "dtype", "wrapper", "metadata", "scale", "variant")

_TRAINING_WORDS = {
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

# The picture shown when none is named.
_OURS, _CREDIT = "chelsea", ': "Chelsea" by Stéfan van der Walt (CC0)'

# Of a picture side by side with bicubic: LR pixels along each side, pixels between.
_CUT, _GAP = 256, 8


@dataclass(frozen=True)
class About:
    """What an author says of a model; the rest is read from it."""

    author: Sequence[str] = (openmodeldb.NOBODY,)
    """Ids in OpenModelDB."""
    license: str | None = None
    """SPDX identifier; None where it is not stated."""
    name: str | None = None
    """Of the files, after the scale; None takes the variant's."""
    description: str | None = None
    tags: Sequence[str] = ()
    """Ids in OpenModelDB; none: what the scale says."""
    date: str = field(default_factory=lambda: date.today().isoformat())
    """yyyy-mm-dd."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Optional fields of an entry (`trainingBatchSize`, `dataset`, ..) by their names;
    the iterations are read from the checkpoint where it counts them."""
    notes: str = ""
    """Markdown for the card, with headings from ## on."""
    url: str | None = None
    """Of the folder that the files will be downloaded from."""


@dataclass(frozen=True)
class Release:
    """What `release` made."""

    folder: Path
    name: str
    source: Checkpoint
    files: tuple[File, ...]
    """Model files, each with how it compares with the source."""
    figures: dict[str, dict[str, Figures]]
    """By set, then by method."""


def release(
    source: str | Path,
    target: str | Path,
    about: About,
    *,
    data: Sequence[Path] = (),
    pictures: Sequence[Path] | None = None,
    without: Sequence[str] = (),
    param_key: str | None = None,
    device: str | torch.device = "cpu",
    overwrite: bool = False,
) -> Release:
    """Make a folder of everything that is published of a checkpoint.

    Args:
        source: any checkpoint `load_checkpoint` reads; of one in training form the
            training form is published too.
        target: a folder that does not exist, or is empty.
        data: folders of HR pictures, each a set whose figures the card states.
        pictures: shown before and after; None: the photograph the tools check with.
        without: keys of `ENDINGS` to leave out.
        param_key: as for `load_checkpoint`.
        device: where PyTorch checks the files and measures.
        overwrite: replace an earlier release in `target`, if that is all it holds.

    Raises:
        CheckpointError: about the source.
        VerificationError: when a file would not compute what the source does.
        MissingExtraError: when a library for ONNX is not installed.
        AetherError: when `about` is not right, a picture cannot be read, or the folder
            cannot be written. Whatever is raised, nothing is written.
    """
    source, target = Path(source), Path(target)
    _check_about(about)
    checkpoint = load_checkpoint(source, param_key)
    name = _name(about.name, checkpoint)
    _check_place(target, source, overwrite)
    _check_channels(checkpoint, show=pictures is None or len(pictures) > 0)
    if {"fp32", "fp16"} - {*without}:
        for module in ("onnx", "onnxscript", "onnxruntime"):
            import_optional(module, "onnx")
    shown = _pictures(pictures, checkpoint.scale)
    _check_data(data, checkpoint.scale)
    with replacing_folder(target) as folder:
        files = _model_files(
            checkpoint, folder / name, about, without, param_key, device
        )
        model = Tiled(
            open_model(folder / f"{name}{FUSED}", "pytorch", str(device), "float32")
        )
        figures = {each.resolve().name: _measured(name, model, each) for each in data}
        said = _draw(folder, shown, model, _CREDIT if pictures is None else "")
        entry = _entry(checkpoint, name, about, folder, files, [*shown])
        found = openmodeldb.problems(entry)
        if found:
            raise AetherError(f"The entry is not right: {' '.join(found)}")
        card = Card(
            name,
            entry["description"],
            _facts(folder / f"{name}{FUSED}", checkpoint, entry),
            files,
            about.notes,
            _protocol(name, data),
            figures,
            said,
        )
        _write(folder / f"{name}.md", as_markdown(card))
        _write(folder / f"{name}.json", openmodeldb.as_text(entry))
    return Release(target, name, checkpoint, tuple(files), figures)


def _check_about(about: About) -> None:
    said = {
        "author": [*about.author],
        "license": about.license,
        "tags": [*about.tags] or ["restoration"],
        "date": about.date,
        **about.training,
    }
    if about.description is not None:
        said["description"] = about.description
    for name, value in said.items():
        if problem := openmodeldb.problem_of(name, value):
            raise AetherError(f"The entry's {name} {problem}.")
    if about.url and (problem := openmodeldb.problem_of_url(about.url)):
        raise AetherError(f"The URL {problem}.")


def _name(said: str | None, checkpoint: Checkpoint) -> str:
    """What the files are called, without their suffixes."""
    name = said or checkpoint.variant or "aethernet"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise AetherError(
            f"The name {name!r} has other characters than letters, digits, -, _ and "
            "dots, which not every site takes in a file's name."
        )
    stated = re.match(r"(\d+)x", name, re.IGNORECASE)
    if stated is None:
        return f"{checkpoint.scale}x_{name}"
    if int(stated[1]) != checkpoint.scale:
        raise AetherError(
            f"The name {name} says {stated[1]}x, but the weights in {checkpoint.path} "
            f"are {checkpoint.scale}x."
        )
    return name


def _check_place(target: Path, source: Path, overwrite: bool) -> None:
    """Say why a release cannot take the place of what is there."""
    if not target.is_dir():
        return  # what else it may be is said where it is made
    inside = sorted(path.name for path in target.iterdir())
    if not inside:
        return
    if not overwrite:
        raise AetherError(
            f"The folder {target} exists; name another, or replace the release in it "
            "(--overwrite)."
        )
    endings = (FUSED, *ENDINGS.values(), ".md", ".json")
    names = [name.removesuffix(".json") for name in inside if name.endswith(".json")]
    ours = {IMAGES} | {name + ending for name in names[:1] for ending in endings}
    foreign = [name for name in inside if name not in ours]
    if foreign or not names:
        raise AetherError(
            f"The folder {target} holds {(foreign or inside)[0]}, which is of no "
            "release; name another folder."
        )
    if source.resolve().is_relative_to(target.resolve()):
        raise AetherError(f"{source} lies in the folder that would be replaced.")


def _check_channels(checkpoint: Checkpoint, show: bool) -> None:
    channels = checkpoint.hyperparameters["in_chans"]
    if problem := openmodeldb.problem_of("inputChannels", channels):
        raise AetherError(f"The entry's inputChannels {problem}.")
    if show and channels not in (1, 3):
        raise AetherError(
            f"The model takes {channels} channels, and pictures have 1 or 3: show none "
            "(a bare --picture)."
        )


def _check_data(data: Sequence[Path], scale: int) -> None:
    if data and scale == 1:
        raise AetherError(
            "A 1x model restores, and pictures to restore cannot be made of HR ones: "
            "measure it with `aethernet quality --lr`, and write that into the notes."
        )
    names = [each.resolve().name for each in data]
    if len({*names}) < len(names):
        raise AetherError(f"Two sets have one name: {', '.join(names)}.")
    for each in data:
        find_samples(each, scale)


def _pictures(paths: Sequence[Path] | None, scale: int) -> dict[str, Picture]:
    """Pictures to show, by the names they get, of 8 bits and with nothing but ICC."""
    if paths is None:
        planes = natural_image(64, 96)[0].permute(1, 2, 0).numpy()
        return {_OURS: Picture((planes * 255).round().astype(np.uint8))}
    found: dict[str, Picture] = {}
    for path in paths:
        picture = in_8_bits(read_picture(path))
        height, width = picture.pixels.shape[:2]
        megapixels = height * width * scale**2 / 1e6
        if megapixels > MOST_MEGAPIXELS:
            raise ImageError(
                f"{path} becomes {megapixels:.0f} megapixels at {scale}x, too large to "
                f"be shown ({MOST_MEGAPIXELS}); cut a part out of it."
            )
        if path.stem in found:
            raise AetherError(f"Two pictures are called {path.stem}; rename one.")
        # A photograph's metadata may say where its author lives.
        profile = "icc-profile-data"
        kept = {k: v for k, v in picture.metadata.items() if k == profile}
        found[path.stem] = Picture(picture.pixels, kept)
    return found


def _model_files(
    checkpoint: Checkpoint,
    base: Path,
    about: About,
    without: Sequence[str],
    param_key: str | None,
    device: str | torch.device,
) -> list[File]:
    """Write the model files `base` and an ending, each checked against the source."""

    def training(path: Path) -> str:
        save_checkpoint(checkpoint.build(), path)  # reads it back and compares
        return "the same weights"

    def fused(path: Path) -> str:
        made = fuse_checkpoint(
            checkpoint.path, path, param_key=param_key, device=device
        )
        return _worst(made.differences.values())

    def onnx(precision: str) -> Callable[[Path], str]:
        def write(path: Path) -> str:
            made = export_onnx(
                *(checkpoint.path, path),
                param_key=param_key,
                dynamic=True,
                precision=precision,
                license=about.license,
                device=device,
            )
            return _worst(made.differences.values())

        return write

    makers: dict[str, Callable[[Path], str]] = {FUSED: fused, ENDINGS["pth"]: fused}
    makers |= {ENDINGS["fp32"]: onnx("float32"), ENDINGS["fp16"]: onnx("float16")}
    if checkpoint.form == "training":
        makers[ENDINGS["training"]] = training
    files = []
    for ending, make in makers.items():
        if ending in [ENDINGS[word] for word in without]:
            continue
        path = base.with_name(base.name + ending)
        _log.info("making %s", path.name)
        check = make(path)
        files.append(File(path.name, _WHAT[ending], path.stat().st_size, check))
    return files


def _worst(differences: Any) -> str:
    """The largest error and the lowest PSNR over all pictures compared."""
    each: list[Difference] = [*differences]
    error = max(difference.max_abs_error for difference in each)
    psnr = min(difference.psnr for difference in each)
    if not error:
        return "equal"
    return f"largest error {error:.1e}, PSNR {psnr:.1f} dB at least"


def _entry(
    checkpoint: Checkpoint,
    name: str,
    about: About,
    folder: Path,
    files: Sequence[File],
    shown: Sequence[str],
) -> dict[str, Any]:
    hyperparameters, scale = checkpoint.hyperparameters, checkpoint.scale
    size = [f"{hyperparameters['embed_dim']}dim", f"{sum(hyperparameters['depths'])}nb"]
    if checkpoint.variant:
        size = [checkpoint.variant.removeprefix("aether_")]
    usual = "general-upscaler" if scale > 1 else "restoration"
    training = dict(about.training)
    if checkpoint.iterations:
        training.setdefault("trainingIterations", checkpoint.iterations)
    pairs = [(_image(picture, "lr"), _image(picture, "sr")) for picture in shown]
    return {
        "name": name,
        "author": about.author[0] if len(about.author) == 1 else [*about.author],
        "license": about.license,
        "tags": sorted({*about.tags} or {usual}),
        "description": about.description or _usual_description(checkpoint),
        "date": about.date,
        "architecture": openmodeldb.ARCHITECTURE,
        "size": size,
        "scale": scale,
        "inputChannels": hyperparameters["in_chans"],
        "outputChannels": hyperparameters["in_chans"],
        "resources": [
            openmodeldb.resource(folder / file.name, about.url) for file in files
        ],
        **{name: training[name] for name in _TRAINING_WORDS if name in training},
        "images": [
            {
                "type": "paired",
                "LR": openmodeldb.url_of(about.url, lr),
                "SR": openmodeldb.url_of(about.url, sr),
            }
            for lr, sr in pairs
            if about.url
        ],
    }


def _usual_description(checkpoint: Checkpoint) -> str:
    kind = "RGB" if checkpoint.hyperparameters["in_chans"] == 3 else "gray"
    if checkpoint.scale == 1:
        return f"AetherNet for restoring {kind} pictures at their own size."
    return f"AetherNet for making {kind} pictures {checkpoint.scale} times as large."


def _facts(
    fused: Path, checkpoint: Checkpoint, entry: Mapping[str, Any]
) -> list[tuple[str, str]]:
    variant = f", `{checkpoint.variant}`" if checkpoint.variant else ""
    facts = [("network", f"AetherNet{variant}, {checkpoint.scale}x")]
    facts += [
        (name if name != "parameters" else "parameters, fused", value)
        for name, value in describe_file(fused)
        if name not in _FACTS_LEFT_OUT
    ]
    for name, words in _TRAINING_WORDS.items():
        if name in entry:
            value = entry[name]
            number = type(value) is int
            facts.append((words, f"{value:,}" if number else _yes_or_no(value)))
    author = entry["author"]
    return [
        *facts,
        ("author", author if isinstance(author, str) else ", ".join(author)),
        ("licence of the weights", entry["license"] or "not stated"),
        ("date", entry["date"]),
    ]


def _yes_or_no(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _measured(name: str, model: Model, folder: Path) -> dict[str, Figures]:
    """The model's mean figures on a set, and bicubic's."""
    _log.info("measuring on %s", folder)
    table = measure_models({name: model}, folder, model.scale)
    means = {row.method: row.mean for row in table.rows}
    return {method: means[method] for method in (name, BICUBIC)}


def _protocol(name: str, data: Sequence[Path]) -> str:
    sets = [each.resolve().name for each in data]
    words = ["aethernet", "quality", "--model", f"{name}{FUSED}", "--data", *sets]
    return (
        f"{PROTOCOL} LR by MATLAB's bicubic reduction. `{command_line(words)}`, "
        "float32 in PyTorch:"
    )


def _draw(
    folder: Path, shown: Mapping[str, Picture], model: Model, credit: str
) -> list[tuple[str, str]]:
    """Write pictures before and after; what the card shows, each with its caption."""
    if shown:
        (folder / IMAGES).mkdir()
    said = []
    for name, lr in shown.items():
        _log.info("drawing %s", name)
        sr = upscale_picture(lr, model, 8)
        write_picture(lr, folder / _image(name, "lr"))
        write_picture(sr, folder / _image(name, "sr"))
        scale = model.scale
        before = lr if scale == 1 else upscale_picture(lr, Bicubic(scale), 8)
        target = _image(name, "comparison")
        write_picture(_side_by_side(before, sr, scale), folder / target)
        first = "The picture" if scale == 1 else "Bicubic"
        said.append((target, f"{first} beside the model's result{credit}."))
    return said


def _image(name: str, kind: str) -> str:
    return f"{IMAGES}/{name}_{kind}.png"


def _side_by_side(left: Picture, right: Picture, scale: int) -> Picture:
    """The middle of two pictures of one size, white between them."""
    height, width, bands = left.pixels.shape
    rows, columns = min(height, _CUT * scale), min(width, _CUT * scale)
    top, begin = (height - rows) // 2, (width - columns) // 2
    part = (slice(top, top + rows), slice(begin, begin + columns))
    gap = np.full((rows, _GAP, bands), 255, np.uint8)
    pixels = np.concatenate((left.pixels[part], gap, right.pixels[part]), axis=1)
    return Picture(pixels, left.metadata)


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
