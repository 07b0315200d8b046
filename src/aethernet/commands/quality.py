"""`aethernet quality`: measure models on HR pictures."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aethernet.checkpoints.layout import UPSAMPLE_FACTORS
from aethernet.commands.model_flags import add_runtime, add_values, asked_values
from aethernet.commands.values import not_negative
from aethernet.errors import AetherError, MissingExtraError, import_optional

if TYPE_CHECKING:
    from aethernet.quality.crops import CropPicker
    from aethernet.quality.measure import SampleSet, Table
    from aethernet.quality.perceptual import Perceptual
    from aethernet.runtimes.base import Model


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "Measure models on HR pictures by the protocol of published tables. LR "
        "pictures are made by MATLAB's bicubic; PSNR and SSIM are those of luma. LPIPS "
        "and DISTS are added if the extra `quality` is installed. Times are shown too. "
        "Bicubic and Lanczos are always included."
    )
    parser.epilog = (
        "examples: aethernet quality --model my_2x.safetensors DAT_light_x2.pth --data "
        "Set5 Set14 --json quality.json; aethernet quality --scale 4 --data Set5"
    )
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "type": Path}
    parser.add_argument(
        "--data",
        **several,
        required=True,
        metavar="DIR",
        help="folders of HR pictures; each gets a table",
    )
    parser.add_argument(
        "--model",
        **several,
        metavar="M",
        help="models of one scale: .safetensors, .pth, .onnx or .engine, of AetherNet "
        "or any architecture that spandrel knows, or names that `aethernet models` "
        "lists; default: the shipped 2x model, or none with --scale",
    )
    parser.add_argument(
        "--scale",
        type=int,
        choices=tuple(UPSAMPLE_FACTORS),
        help="without a model: measure only bicubic and Lanczos; with a model: stop "
        "if it has another scale",
    )
    parser.add_argument(
        "--lr",
        **several,
        default=[],
        metavar="DIR",
        help="folders of LR pictures, in the order of --data, paired by name: "
        "baby.png, babyx2.png, baby_LRBI_x2.png; default: LR is made from HR",
    )
    written = parser.add_argument_group("output files")
    for flag, metavar, text in (
        ("--json", "FILE", "all results, per picture and as means"),
        ("--csv", "FILE", "one line for each method on each picture"),
        ("--plot", "FILE", "plot of PSNR-Y and time, .png or .svg"),
        ("--crops", "DIR", "the best and the worst crop of each model, beside HR"),
    ):
        written.add_argument(flag, type=Path, metavar=metavar, help=text)
    running = parser.add_argument_group("running")
    add_runtime(running)
    add_values(running)
    running.add_argument(
        "--tile",
        type=not_negative,
        default=0,
        metavar="PX",
        help="LR pixels along each side of the tiles that a model processes one by "
        "one; default: 0, the whole picture, as for published figures",
    )
    parser.set_defaults(job=quality)


def quality(arguments: argparse.Namespace) -> None:
    """Job: measure `model` on `data`; print tables and write the files asked for."""
    from aethernet.quality import report
    from aethernet.quality.baselines import common_scale
    from aethernet.quality.crops import CropPicker, check_crop_names
    from aethernet.quality.measure import check_pictures

    logging.getLogger("pyvips").setLevel(logging.ERROR)
    targets = report.Targets(
        arguments.json, arguments.csv, arguments.plot, arguments.crops
    )
    targets.check()
    _check_folders(arguments.data, arguments.lr)
    files = _model_files(arguments)
    if targets.crops and not files:
        raise AetherError("--crops shows what models do, and there is no --model.")
    for folder in (*arguments.data, *arguments.lr):
        check_pictures(folder)
    models = {name: _opened(path, arguments) for name, path in files.items()}
    scale = common_scale(models, arguments.scale)
    sets = _sample_sets(arguments.data, arguments.lr, scale)
    pickers = [CropPicker([*models]) for _ in sets] if targets.crops else []
    if pickers:
        check_crop_names([each.name for each in sets], [*models])
    # PyTorch may not know the device of the models; these networks run anywhere.
    device = "cpu" if arguments.device == "cpu" else "auto"
    perceptual, missing = _perceptual(device)
    tables: list[Table] = []
    for number, sample_set in enumerate(sets):
        picker = pickers[number] if pickers else None
        tables.append(_measured(sample_set, models, perceptual, picker))
        print(f"{report.as_text(tables[-1])}\n", flush=True)
    for why in dict.fromkeys(missing.values()):
        names = [name for name, reason in missing.items() if reason == why]
        print(f"Without {' and '.join(names)}: {why}")
    report.write_all(
        tables, targets, report.Origin(arguments.command_line, files, missing)
    )
    for sample_set, picker in zip(sets, pickers, strict=False):
        picker.write(arguments.crops, sample_set.name)


def _check_folders(hr: Sequence[Path], lr: Sequence[Path]) -> None:
    if lr and len(lr) != len(hr):
        raise AetherError(
            f"There are {len(hr)} folders of HR and {len(lr)} of LR pictures.",
            hint="Name as many after --lr as after --data, in the same order.",
        )


def _model_files(arguments: argparse.Namespace) -> dict[str, Path]:
    """The model files by the names that the tables give them."""
    from aethernet.checkpoints.shipped import find_model, shipped_model
    from aethernet.quality.baselines import BICUBIC, HR, LANCZOS, model_names

    if arguments.model:
        paths = [*dict.fromkeys(map(find_model, arguments.model))]
    else:
        paths = [] if arguments.scale else [shipped_model()]
    return dict(zip(model_names(paths, (BICUBIC, LANCZOS, HR)), paths, strict=True))


def _opened(path: Path, arguments: argparse.Namespace) -> "Model":
    from aethernet.runtimes.registry import open_any
    from aethernet.runtimes.tiling import Tiled

    how = (arguments.runtime, arguments.device, arguments.precision)
    model = open_any(path, *how, asked=asked_values(arguments))
    return Tiled(model, arguments.tile)


def _sample_sets(
    hr: Sequence[Path], lr: Sequence[Path], scale: int
) -> "list[SampleSet]":
    """A set for each folder of HR pictures."""
    from aethernet.quality.measure import SampleSet, find_samples

    lr_of = dict(zip(hr, lr, strict=False))
    return [
        SampleSet(name, scale, find_samples(folder, scale, lr_of.get(folder)))
        for name, folder in zip(_set_names(hr), hr, strict=True)
    ]


def _perceptual(device: str) -> "tuple[list[Perceptual], dict[str, str]]":
    """As `open_perceptual`, where PyTorch may be missing, too."""
    try:
        import_optional("torch", "quality")
    except MissingExtraError as error:
        return [], dict.fromkeys(("LPIPS", "DISTS"), str(error))
    from aethernet.quality.perceptual import open_perceptual

    return open_perceptual(device)


def _set_names(folders: Sequence[Path]) -> list[str]:
    """Names for sets: of their folders, or whole paths if those are ambiguous."""
    names = [folder.resolve().name for folder in folders]
    if len({*names}) == len(names):
        return names
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise AetherError("A folder is named twice (--data).")
    return [str(folder) for folder in folders]


def _measured(
    sample_set: "SampleSet",
    models: "Mapping[str, Model]",
    perceptual: "Sequence[Perceptual]",
    picker: "CropPicker | None",
) -> "Table":
    """Measure a set, showing progress; `picker` looks at every picture."""
    from aethernet.commands.progress import steps_progress
    from aethernet.quality.baselines import baselines
    from aethernet.quality.measure import measure_samples

    methods = {**baselines(sample_set.scale), **models}
    on_picture = picker.look_at if picker else lambda *_: None
    with steps_progress(len(sample_set.samples) * len(methods)) as on_step:
        return measure_samples(sample_set, models, perceptual, on_step, on_picture)
