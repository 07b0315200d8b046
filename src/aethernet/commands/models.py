"""`aethernet models`: list the models that ship."""

import argparse
import json

from aethernet.checkpoints.shipped import shipped_models
from aethernet.text import in_columns, printable


def models(arguments: argparse.Namespace) -> None:
    """Job: what ships, as a table or, with `json`, for programs."""
    found = shipped_models()
    if arguments.json:
        print(json.dumps([vars(m) for m in found], default=str, indent=1))
        return
    sets = [*dict.fromkeys(name for model in found for name in model.psnr)]
    header = ("name", "variant", "scale", "form", "precision", "size")
    rows = [(*header, *(f"{name} dB" for name in sets), "licence", "path")]
    for model in found:
        figures = [model.psnr.get(name) for name in sets]
        said = (
            *(model.name, model.variant, f"{model.scale}x", model.form),
            *(model.precision, f"{model.size / 1e6:.1f} MB"),
            *("-" if figure is None else f"{figure:.2f}" for figure in figures),
            *(model.license or "-", str(model.path)),
        )
        rows.append(said)
    for line in in_columns(rows):
        print(printable(line))


def define(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List the models that ship with AetherNet: what --model takes by name in every "
        "command, and where the files lie. dB is PSNR-Y, as the model's card says."
    )
    parser.epilog = "example: aethernet upscale photo.jpg --model 2x-small-fp16"
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(job=models)
