"""`aethernet models`: list the models that ship, download others."""

import argparse
import dataclasses
import json

from aethernet.checkpoints.shipped import (
    Download,
    Shipped,
    find_download,
    offered_downloads,
    shipped_models,
)
from aethernet.text import in_columns, printable


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "List the models that are here, with the names that --model accepts in every "
        "command, what each is for, and their paths. dB is PSNR-Y, from the model's "
        "card. Models that can be downloaded are listed below them."
    )
    parser.epilog = "example: aethernet upscale photo.jpg --model 2x-small-fp16"
    parser.add_argument(
        "--get",
        metavar="NAME",
        help="download this model; an interrupted download is continued",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(job=_models)


def _models(arguments: argparse.Namespace) -> None:
    if arguments.get:
        _get(find_download(arguments.get))
        return
    found = shipped_models()
    if arguments.json:
        rows = [dataclasses.asdict(model) for model in found]
        print(json.dumps(rows, default=str, indent=1))
        return
    for line in in_columns(_table(found)):
        print(line)
    for model in found:
        if model.form == "fused" and model.description:
            print(f"\n{model.name}: {printable(model.description)}")
    here = {model.name for model in found}
    for offer in offered_downloads():
        if offer.name not in here:
            print(
                f"\n{offer.name} ({offer.size / 1e6:.1f} MB, "
                f"aethernet models --get {offer.name}): {printable(offer.description)}"
            )


def _table(found: list[Shipped]) -> list[tuple[str, ...]]:
    sets = [*dict.fromkeys(name for model in found for name in model.psnr)]
    header = ("name", "variant", "scale", "form", "precision", "size")
    table = [(*header, *(f"{name} dB" for name in sets), "licence", "path")]
    for model in found:
        figures = [model.psnr.get(name) for name in sets]
        row = (
            *(model.name, model.variant, f"{model.scale}x", model.form),
            *(model.precision, f"{model.size / 1e6:.1f} MB"),
            *("-" if figure is None else f"{figure:.2f}" for figure in figures),
            *(model.license or "-", str(model.path)),
        )
        table.append(row)
    return table


def _get(model: Download) -> None:
    # They import urllib and rich, which the list does not need.
    from aethernet.checkpoints.downloads import download
    from aethernet.commands.progress import bytes_progress

    with bytes_progress(model.name, model.size) as report:
        path = download(model, report)
    print(f"{path}: {model.size / 1e6:.1f} MB, its SHA-256 is right.")
