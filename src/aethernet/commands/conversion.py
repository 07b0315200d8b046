"""Flags and output that `fuse`, `export` and the two scripts share."""

import argparse
from pathlib import Path

from aethernet.checkpoints.checkpoint import WRAPPERS, Checkpoint, CheckpointOptions
from aethernet.checkpoints.comparison import VERIFICATIONS
from aethernet.checkpoints.layout import UPSAMPLE_FACTORS, VARIANTS
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
HELP_DEVICE = (
    "check the result with PyTorch, on cpu, cuda, cuda:1, ..; default: with NumPy, or "
    "with PyTorch on the CPU if it is loaded to read the checkpoint"
)
HELP_VERIFY = (
    "quick (default): check small pictures, in seconds; full: larger ones of more "
    "sizes, with PyTorch if it is installed"
)


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
    add_checking(parser)


def add_checking(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how the result is checked."""
    parser.add_argument("--device", help=HELP_DEVICE)
    parser.add_argument(
        "--verify", choices=VERIFICATIONS, default=VERIFICATIONS[0], help=HELP_VERIFY
    )


def checkpoint_options(
    arguments: argparse.Namespace, in_chans: int | None = None
) -> CheckpointOptions:
    """The options in `param_key`, `model_type`, `scale` and `device` of arguments.

    Raises:
        AetherError: when PyTorch cannot use the device.
    """
    device = arguments.device and str(choose_device(arguments.device))
    return CheckpointOptions(
        param_key=arguments.param_key,
        model_type=arguments.model_type,
        scale=arguments.scale,
        in_chans=in_chans,
        device=device,
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
    if checkpoint.img_range != 1:
        print(
            f"img_range is {checkpoint.img_range}: spandrel cannot read it and "
            "assumes 1."
        )


def print_differences(title: str, differences: dict[str, Difference]) -> None:
    """Print a title and a table of differences by picture."""
    print(f"{title}:")
    for line in in_columns([(name, str(each)) for name, each in differences.items()]):
        print(f"  {line}")
