"""Flags and output that `fuse`, `export` and the two scripts share."""

import argparse
from pathlib import Path

from aethernet.aether_core import UPSAMPLE_FACTORS, VARIANTS
from aethernet.checkpoints.checkpoint import WRAPPERS, Checkpoint, CheckpointOptions
from aethernet.checkpoints.verification import Difference
from aethernet.devices import choose_device
from aethernet.text import in_columns

MODEL_TYPES = ("aether", *VARIANTS)
SCALES = tuple(UPSAMPLE_FACTORS)

HELP_CHECKPOINT = "AetherNet checkpoint: .safetensors, .pth, .pt or .ckpt, either form"
HELP_MODEL_TYPE = "stop unless the weights are of this variant; default: read from them"
HELP_SCALE = "stop unless the weights have this scale; default: read from them"
HELP_PARAM_KEY = (
    "key of the state dict to read, e.g. params or net_g.params; default: the first "
    "that the file has of " + ", ".join(WRAPPERS)
)
HELP_DEVICE = "where PyTorch checks the result: cpu (default), cuda, cuda:1, .."


def add_conversion(parser: argparse.ArgumentParser, written: str) -> None:
    """Add the checkpoint, the output and the flags of `checkpoint_options`."""
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help=HELP_CHECKPOINT
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help=written
    )
    parser.add_argument("--model-type", choices=MODEL_TYPES, help=HELP_MODEL_TYPE)
    parser.add_argument("--scale", type=int, choices=SCALES, help=HELP_SCALE)
    parser.add_argument("--param-key", metavar="KEY", help=HELP_PARAM_KEY)
    parser.add_argument("--device", default="cpu", help=HELP_DEVICE)


def checkpoint_options(
    arguments: argparse.Namespace, in_chans: int | None = None
) -> CheckpointOptions:
    """The options in `param_key`, `model_type`, `scale` and `device` of arguments.

    Raises:
        AetherError: when PyTorch cannot use the device.
    """
    return CheckpointOptions(
        param_key=arguments.param_key,
        model_type=arguments.model_type,
        scale=arguments.scale,
        in_chans=in_chans,
        device=choose_device(arguments.device),
    )


def print_source(checkpoint: Checkpoint) -> None:
    """Print what was read."""
    wrapper = f", under {checkpoint.wrapper!r}" if checkpoint.wrapper else ""
    print(
        f"Read {checkpoint.path}: {checkpoint.variant or 'AetherNet'} "
        f"{checkpoint.scale}x, {checkpoint.form} form{wrapper}."
    )
    if checkpoint.other_wrappers:
        others = ", ".join(map(repr, checkpoint.other_wrappers))
        print(f"The file also holds {others}; the parameter key selects one.")


def print_img_range(checkpoint: Checkpoint) -> None:
    """Print a warning when `img_range` is not what spandrel assumes."""
    img_range = checkpoint.hyperparameters.get("img_range", 1.0)
    if img_range != 1:
        print(f"img_range is {img_range}: spandrel cannot read it and assumes 1.")


def print_differences(title: str, differences: dict[str, Difference]) -> None:
    """Print a title and a table of differences by picture."""
    print(f"{title}:")
    for line in in_columns([(name, str(each)) for name, each in differences.items()]):
        print(f"  {line}")
