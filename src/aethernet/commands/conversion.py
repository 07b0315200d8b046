"""Flags and printed lines that `fuse` and `export` share, also with the two scripts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aethernet.aether_core import UPSAMPLE_FACTORS, VARIANTS
from aethernet.checkpoints.checkpoint import WRAPPERS
from aethernet.text import printable

if TYPE_CHECKING:
    from aethernet.checkpoints.checkpoint import Checkpoint
    from aethernet.checkpoints.verification import Difference


MODEL_TYPES = ("aether", *VARIANTS)

SCALES = tuple(UPSAMPLE_FACTORS)

HELP_CHECKPOINT = "AetherNet checkpoint: .safetensors, .pth, .pt or .ckpt, either form"

HELP_MODEL_TYPE = "stop unless the weights are of this variant; default: read from them"

HELP_SCALE = "stop unless the weights are of this scale; default: read from them"

HELP_PARAM_KEY = (
    "which state dict of the file to take, e.g. params or net_g.params; default: the "
    "first there is of " + ", ".join(WRAPPERS)
)

HELP_VERIFY_DEVICE = "where PyTorch checks the result: cpu (default), cuda, cuda:1, .."


def print_source(checkpoint: "Checkpoint") -> None:
    wrapper = f", under {checkpoint.wrapper!r}" if checkpoint.wrapper else ""
    print(
        f"Read {checkpoint.path}: {checkpoint.variant or 'AetherNet'} "
        f"{checkpoint.scale}x, {checkpoint.form} form{wrapper}."
    )
    if checkpoint.other_wrappers:
        others = ", ".join(map(repr, checkpoint.other_wrappers))
        print(f"The file also has {others}, which the parameter key can choose.")


def print_differences(title: str, differences: "dict[str, Difference]") -> None:
    print(f"{title}:")
    width = max(map(len, differences))
    for name, difference in differences.items():
        print(f"  {printable(name):<{width}}  {difference}")


def add_conversion(parser: argparse.ArgumentParser, written: str) -> None:
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help=HELP_CHECKPOINT
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help=written
    )
    parser.add_argument("--model-type", choices=MODEL_TYPES, help=HELP_MODEL_TYPE)
    parser.add_argument("--scale", type=int, choices=SCALES, help=HELP_SCALE)
    parser.add_argument("--param-key", metavar="KEY", help=HELP_PARAM_KEY)
    parser.add_argument("--device", default="cpu", help=HELP_VERIFY_DEVICE)
