"""Make a release of a checkpoint: model files, card, entry and pictures.

Everything is made in a temporary folder and compared with the checkpoint. The folder is
renamed to the target when it is complete.
"""

import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aethernet.checkpoints.checkpoint import Checkpoint, write_checkpoint
from aethernet.checkpoints.fuse import fuse_checkpoint
from aethernet.checkpoints.model_card import Card, File, as_markdown
from aethernet.checkpoints.ncnn_export import NcnnOptions, export_ncnn
from aethernet.checkpoints.onnx import ExportOptions, check_libraries, export_onnx
from aethernet.checkpoints.shipped import ENDINGS, FUSED, NCNN_WEIGHTS
from aethernet.checkpoints.verification import Difference
from aethernet.errors import AetherError, MissingExtraError, import_optional
from aethernet.files import (
    check_target_folder,
    command_line,
    replacing,
    replacing_folder,
)
from aethernet.metrics import PROTOCOL, Figures
from aethernet.publish import openmodeldb
from aethernet.publish.about import About
from aethernet.publish.drawing import (
    CREDIT,
    IMAGES,
    default_picture,
    draw,
    read_pictures,
)
from aethernet.publish.entry import facts, make_entry
from aethernet.quality.baselines import BICUBIC
from aethernet.quality.measure import find_samples, measure_models
from aethernet.runtimes.base import Model
from aethernet.runtimes.registry import open_model
from aethernet.runtimes.tiling import Tiled

_log = logging.getLogger(__name__)

# Ending of a model file -> its description in the card.
_WHAT = {
    FUSED: "fused form, float32: for spandrel and programs that use it",
    ENDINGS["training"]: "training form, float32: to continue training",
    ENDINGS["pth"]: "fused form, float32: for programs that do not read .safetensors",
    ENDINGS["fp32"]: "ONNX, float32, inputs of any size",
    ENDINGS["fp16"]: "ONNX, float16 input and output of any size: for GPUs",
    ENDINGS["ncnn"]: "ncnn, the network: for Upscayl and other programs with Vulkan",
    NCNN_WEIGHTS: "ncnn, its weights in float16",
}


@dataclass(frozen=True)
class ReleaseOptions:
    """What a release contains, and whether it may replace an earlier one."""

    data: Sequence[Path] = ()
    """Folders of HR pictures; the card states the figures on each."""
    pictures: Sequence[Path] | None = None
    """LR pictures to show before and after. None: the photograph that the tools verify
    models with."""
    without: Sequence[str] = ()
    """Model files to leave out: keys of `ENDINGS`."""
    overwrite: bool = False
    """Replace a release in the target, if the folder holds nothing else."""


@dataclass(frozen=True)
class Release:
    """What `release` made."""

    folder: Path
    name: str
    files: tuple[File, ...]
    """Model files, each with its comparison with the source."""
    figures: dict[str, dict[str, Figures]]
    """By set, then by method."""


def release(
    source: Checkpoint,
    target: str | Path,
    about: About,
    options: ReleaseOptions | None = None,
) -> Release:
    """Make a folder with everything that is published of a checkpoint.

    Args:
        source: its training form is published, too, if it is in that form. The files
            are checked and measured on its `device`.
        target: a folder that does not exist, or is empty.
        about: the author's statements.
        options: None is `ReleaseOptions()`.

    Raises:
        VerificationError: when a file would not compute what the source does.
        MissingExtraError: when a library for ONNX is not installed.
        AetherError: when the statements do not fit the model, a picture cannot be read,
            or the folder cannot be written.
            After any error, nothing is written.
    """
    target, options = Path(target), options or ReleaseOptions()
    name = _name(about.name, source)
    check_place(target, source.path, options.overwrite)
    _check_channels(source, options)
    if {"fp32", "fp16"} - {*options.without}:
        check_libraries()
    _check_data(options.data, source.scale)
    if options.pictures is None:
        shown, credit = default_picture(), f": {CREDIT}"
    else:
        shown, credit = read_pictures(options.pictures, source.scale), ""
    without = _left_out(options)
    with replacing_folder(target) as folder:
        files = _write_models(source, folder / name, about, without)
        runtime = _runtime_for(source.device)
        how = (runtime, source.device or "cpu", "float32")
        model = Tiled(open_model(folder / f"{name}{FUSED}", *how))
        figures = {
            path.resolve().name: _measure(name, model, path) for path in options.data
        }
        comparisons = draw(folder, shown, model)
        first = "The picture" if source.scale == 1 else "Bicubic"
        caption = f"{first} beside the model's result{credit}."
        entry = make_entry(source, name, about, folder, files, [*shown])
        card = Card(
            name=name,
            description=entry["description"],
            facts=facts(source, entry),
            files=files,
            notes=about.notes,
            protocol=_protocol(name, options.data, how),
            figures=figures,
            pictures=[(path, caption) for path in comparisons],
        )
        _write(folder / f"{name}.md", as_markdown(card))
        _write(folder / f"{name}.json", openmodeldb.as_text(entry))
    return Release(target, name, tuple(files), figures)


def _left_out(options: ReleaseOptions) -> list[str]:
    """Kinds of files that are not made: as asked, and .pth files without PyTorch."""
    without = [*options.without]
    if "pth" not in without:
        try:
            import_optional("torch", "torch")
        except MissingExtraError as error:
            _log.warning("No .pth file is made. %s", error)
            without.append("pth")
    return without


def _name(given: str | None, checkpoint: Checkpoint) -> str:
    """The name of the files, without endings."""
    name = given or checkpoint.variant or "aethernet"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise AetherError(
            f"The name {name!r} has characters other than letters, digits, hyphens, "
            "underscores and dots, which some sites do not accept in file names."
        )
    stated = re.match(r"(\d+)x", name, re.IGNORECASE)
    if stated is None:
        return f"{checkpoint.scale}x_{name}"
    if int(stated[1]) != checkpoint.scale:
        raise AetherError(
            f"The name {name} states {stated[1]}x, but the weights are "
            f"{checkpoint.scale}x.",
            checkpoint.path,
        )
    return name


def check_place(target: Path, source: Path, overwrite: bool) -> None:
    """Check that a release can take the place of what is there.

    Raises:
        AetherError: when it is a file or a folder with other files in it, or its own
            folder is missing or not writable.
    """
    check_target_folder(target)
    if not target.is_dir():
        return
    inside = sorted(path.name for path in target.iterdir())
    if not inside:
        return
    if not overwrite:
        raise AetherError(
            "This folder is not empty.",
            target,
            "Name another one, or replace the release in it with --overwrite.",
        )
    endings = (FUSED, *ENDINGS.values(), NCNN_WEIGHTS, ".md", ".json")
    names = [name.removesuffix(".json") for name in inside if name.endswith(".json")]
    ours = {IMAGES} | {name + ending for name in names[:1] for ending in endings}
    foreign = [name for name in inside if name not in ours]
    if foreign or not names:
        raise AetherError(
            f"This folder holds {(foreign or inside)[0]}, which is not part of a "
            "release.",
            target,
            "Name another folder.",
        )
    if source.resolve().is_relative_to(target.resolve()):
        raise AetherError("It is in the folder that would be replaced.", source)


def _check_channels(checkpoint: Checkpoint, options: ReleaseOptions) -> None:
    channels = checkpoint.in_chans
    if problem := openmodeldb.problem_of("inputChannels", channels):
        raise AetherError(f"The entry's inputChannels {problem}.")
    shows = options.pictures is None or len(options.pictures) > 0
    if shows and channels not in (1, 3):
        raise AetherError(
            f"The model takes {channels} channels, but pictures have 1 or 3.",
            checkpoint.path,
            "Show none: give --picture without a file.",
        )


def _check_data(data: Sequence[Path], scale: int) -> None:
    if data and scale == 1:
        raise AetherError(
            "LR pictures for a 1x model cannot be made from HR pictures.",
            hint="Measure it with `aethernet quality --lr`, and put the figures into "
            "the notes.",
        )
    names = [each.resolve().name for each in data]
    if len({*names}) < len(names):
        raise AetherError(f"Two sets have the same name: {', '.join(names)}.")
    for each in data:
        find_samples(each, scale)


def _write_models(
    checkpoint: Checkpoint, base: Path, about: About, without: Sequence[str]
) -> list[File]:
    """Write the model files: `base` and an ending, each compared with the source."""

    def training(path: Path) -> str:
        # It is read back and compared.
        write_checkpoint(checkpoint.state_dict, checkpoint.hyperparameters, path)
        return "the same weights"

    def fused(path: Path) -> str:
        done = fuse_checkpoint(checkpoint, path, verify="full")
        return _worst([*done.differences.values()])

    def onnx(precision: str) -> Callable[[Path], str]:
        options = ExportOptions(
            dynamic=True, precision=precision, license=about.license, verify="full"
        )

        def write(path: Path) -> str:
            done = export_onnx(checkpoint, path, options)
            return _worst([*done.differences.values()])

        return write

    def ncnn(path: Path) -> str:
        done = export_ncnn(
            checkpoint, path, NcnnOptions(precision="float16", verify="full")
        )
        return _worst([*done.differences.values()])

    writers: dict[str, Callable[[Path], str]] = {
        FUSED: fused,
        ENDINGS["pth"]: fused,
        ENDINGS["fp32"]: onnx("float32"),
        ENDINGS["fp16"]: onnx("float16"),
        ENDINGS["ncnn"]: ncnn,
    }
    if checkpoint.form == "training":
        writers[ENDINGS["training"]] = training
    files = []
    for ending, write in writers.items():
        if ending in [ENDINGS[kind] for kind in without]:
            continue
        path = base.with_name(base.name + ending)
        _log.info("making %s", path.name)
        check = write(path)
        written = [ending, *([NCNN_WEIGHTS] if write is ncnn else [])]
        for each in written:
            made = base.with_name(base.name + each)
            files.append(File(made.name, _WHAT[each], made.stat().st_size, check))
    return files


def _worst(differences: Sequence[Difference]) -> str:
    """The largest error and the lowest PSNR over all pictures compared."""
    error = max(difference.max_abs_error for difference in differences)
    psnr = min(difference.psnr for difference in differences)
    if not error:
        return "equal"
    return f"largest error {error:.1e}, PSNR {psnr:.1f} dB or more"


def _measure(name: str, model: Model, folder: Path) -> dict[str, Figures]:
    """The mean figures of the model and of bicubic on a set."""
    _log.info("measuring on %s", folder)
    table = measure_models({name: model}, folder, model.scale)
    means = {row.method: row.mean for row in table.rows}
    return {method: means[method] for method in (name, BICUBIC)}


def _runtime_for(device: str | None) -> str:
    """What measures and draws: PyTorch on a device that was asked for, or if loaded."""
    return "pytorch" if device or "torch" in sys.modules else "onnxruntime"


def _protocol(name: str, data: Sequence[Path], how: tuple[str, str, str]) -> str:
    """How the figures were measured, with the command that measures them again.

    Args:
        name: of the model.
        data: folders of the sets.
        how: runtime, device and precision.
    """
    sets = [each.resolve().name for each in data]
    words = ["aethernet", "quality", "--model", f"{name}{FUSED}", "--data", *sets]
    for flag, value in zip(("--runtime", "--device", "--precision"), how, strict=True):
        words += [flag, value]
    return (
        f"{PROTOCOL} LR by MATLAB's bicubic reduction. Measured by "
        f"`{command_line(words)}`:"
    )


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
