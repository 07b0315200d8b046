"""`aethernet models`: list the models that ship."""

import argparse
import dataclasses
import json

from aethernet.checkpoints.shipped import shipped_models
from aethernet.text import in_columns


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "List the models that ship with AetherNet, with the names that --model accepts "
        "in every command, and their paths. dB is PSNR-Y, from the model's card."
    )
    parser.epilog = "example: aethernet upscale photo.jpg --model 2x-small-fp16"
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(job=_models)


def _models(arguments: argparse.Namespace) -> None:
    found = shipped_models()
    if arguments.json:
        rows = [dataclasses.asdict(model) for model in found]
        print(json.dumps(rows, default=str, indent=1))
        return
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
    for line in in_columns(table):
        print(line)
