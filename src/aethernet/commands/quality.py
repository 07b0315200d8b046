"""The command `aethernet quality`: its flags, and the job they ask for."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aethernet.aether_core import UPSAMPLE_FACTORS
from aethernet.commands.model_flags import add_runtime
from aethernet.commands.values import not_negative
from aethernet.errors import AetherError
from aethernet.files import command_line

if TYPE_CHECKING:
    from aethernet.quality.measure import Table
    from aethernet.runtimes.base import Model


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "Measure models on pictures whose HR picture is known, by the protocol of the "
        "published tables: LR by MATLAB's bicubic, PSNR and SSIM of luma, LPIPS and "
        "DISTS where the extra `quality` is installed, and the time. Bicubic and "
        "Lanczos are always among the rows."
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
        help="folders of HR pictures; a table for each",
    )
    parser.add_argument(
        "--model",
        **several,
        metavar="M",
        help="of one scale: .safetensors, .pth, .onnx or .engine, of AetherNet, or of "
        "any architecture that spandrel knows; default: the shipped 2x model, with "
        "--scale none",
    )
    parser.add_argument(
        "--scale",
        type=int,
        choices=tuple(UPSAMPLE_FACTORS),
        help="without a model: measure bicubic and Lanczos alone; with one: stop "
        "unless it is of this scale",
    )
    parser.add_argument(
        "--lr",
        **several,
        default=[],
        metavar="DIR",
        help="folders of LR pictures in the order of --data, paired by name: "
        "baby.png, babyx2.png, baby_LRBI_x2.png; default: they are made",
    )
    written = parser.add_argument_group("what is written")
    for flag, metavar, said in (
        ("--json", "FILE", "everything, per picture and means"),
        ("--csv", "FILE", "a line for each method on each picture"),
        ("--plot", "FILE", "draw PSNR-Y and time, .png or .svg"),
        ("--crops", "DIR", "the best and the worst crop of each model, beside HR"),
    ):
        written.add_argument(flag, type=Path, metavar=metavar, help=said)
    running = parser.add_argument_group("running")
    add_runtime(running)
    running.add_argument(
        "--tile",
        type=not_negative,
        default=0,
        metavar="PX",
        help="LR pixels along each side that a model makes at a time; default: 0, the "
        "whole picture, as published figures have it",
    )
    parser.set_defaults(job=quality)


def quality(arguments: argparse.Namespace) -> None:
    """Job: measure `model` on `data`; print, and write what was asked for."""
    from aethernet.commands.progress import steps_progress
    from aethernet.quality import report
    from aethernet.quality.baselines import BICUBIC, HR, LANCZOS, baselines, model_names
    from aethernet.quality.crops import Crops, check_crop_names
    from aethernet.quality.measure import (
        check_pictures,
        common_scale,
        find_samples,
        measure_samples,
    )
    from aethernet.quality.perceptual import open_perceptual

    logging.getLogger("pyvips").setLevel(logging.ERROR)
    written = (arguments.json, arguments.csv, arguments.plot)
    report.check_targets(*written, arguments.crops)
    folders: list[Path] = arguments.data
    lr_folders: list[Path] = arguments.lr
    if lr_folders and len(lr_folders) != len(folders):
        raise AetherError(
            f"There are {len(folders)} folders of HR and {len(lr_folders)} of LR "
            "pictures; name as many after --lr as after --data, in the same order."
        )
    paths = _model_paths(arguments)
    if arguments.crops and not paths:
        raise AetherError("--crops shows what models do, and there is no --model.")
    for folder in (*folders, *lr_folders):
        check_pictures(folder)
    files = dict(zip(model_names(paths, (BICUBIC, LANCZOS, HR)), paths, strict=True))
    models = {name: _opened(path, arguments) for name, path in files.items()}
    scale = common_scale(models, arguments.scale)
    lr_of = dict(zip(folders, lr_folders, strict=False))
    names = _set_names(folders)
    sets = [
        (name, find_samples(folder, scale, lr_of.get(folder)))
        for name, folder in zip(names, folders, strict=True)
    ]
    if arguments.crops:
        check_crop_names(names, [*models])
    # A device may be one that PyTorch does not know; networks of these run anywhere.
    device = "cpu" if arguments.device == "cpu" else "auto"
    perceptual, missing = open_perceptual(device)
    tables: list[Table] = []
    crops = []
    for name, samples in sets:
        found = Crops([*models])
        seen = found.seen if arguments.crops else lambda *_: None
        with steps_progress(len(samples) * len({**baselines(scale), **models})) as told:
            table = measure_samples(
                name, samples, models, scale, perceptual, told, seen
            )
        tables.append(table)
        crops.append(found)
        print(f"{report.as_text(table)}\n", flush=True)
    for why in dict.fromkeys(missing.values()):
        names = [name for name, reason in missing.items() if reason == why]
        print(f"Without {' and '.join(names)}: {why}")
    if arguments.json:
        line = command_line(["aethernet", *arguments.words])
        report.write_json(tables, arguments.json, line, files, missing)
    if arguments.csv:
        report.write_csv(tables, arguments.csv)
    if arguments.plot:
        report.draw(tables, arguments.plot)
    if arguments.crops:
        for (name, _), found in zip(sets, crops, strict=True):
            found.write(arguments.crops, name)


def _model_paths(arguments: argparse.Namespace) -> list[Path]:
    from aethernet.checkpoints.shipped import find_model, shipped_model

    if arguments.model:
        return [*dict.fromkeys(map(find_model, arguments.model))]
    return [] if arguments.scale else [shipped_model()]


def _opened(path: Path, arguments: argparse.Namespace) -> "Model":
    from aethernet.quality.measure import open_any
    from aethernet.runtimes.tiling import Tiled

    words = (arguments.runtime, arguments.device, arguments.precision)
    return Tiled(open_any(path, *words), arguments.tile)


def _set_names(folders: Sequence[Path]) -> list[str]:
    """What tables call sets: by their folders' names, where that tells them apart."""
    names = [folder.resolve().name for folder in folders]
    if len({*names}) == len(names):
        return names
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise AetherError("A folder is named twice (--data).")
    return [str(folder) for folder in folders]
