"""`aethernet fuse`: write the fused form of a trained checkpoint."""

import argparse
from pathlib import Path

from aethernet.checkpoints.checkpoint import (
    DTYPES,
    CheckpointOptions,
    check_checkpoint_target,
    load_checkpoint,
)
from aethernet.checkpoints.fuse import fuse_checkpoint
from aethernet.checkpoints.shipped import find_model
from aethernet.commands.conversion import (
    add_conversion,
    checkpoint_options,
    print_differences,
    print_img_range,
    print_source,
)


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "Fuse a trained checkpoint: both depthwise kernels of each block become one. "
        "The written file is read again and compared with the training form; a file "
        "that differs is not kept."
    )
    parser.epilog = "example: aethernet fuse net_g_100000.pth -o my_2x.safetensors"
    add_conversion(parser, ".safetensors or .pth")
    add_dtype(parser)
    parser.set_defaults(job=_fuse)


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add `--dtype`, which the command and the script share."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="type of the written weights; default: float32",
    )


def _fuse(arguments: argparse.Namespace) -> None:
    options = checkpoint_options(arguments)
    fuse(
        arguments.checkpoint,
        arguments.output,
        options,
        arguments.dtype,
        arguments.verify,
    )


def fuse(
    source: Path, target: Path, options: CheckpointOptions, dtype: str, verify: str
) -> None:
    """Write the fused form of a checkpoint, and print what was verified.

    Args:
        source: a path, or the name of a model that ships.
        target: `.safetensors` or `.pth`.
        options: how `source` is read, and where the result is checked.
        dtype: a member of `DTYPES`.
        verify: a member of `comparison.VERIFICATIONS`.
    """
    path = find_model(source)
    check_checkpoint_target(target, path)
    checkpoint = load_checkpoint(path, options)
    done = fuse_checkpoint(checkpoint, target, dtype, verify)
    print_source(checkpoint)
    if checkpoint.form == "fused":
        print("It is already fused; it was written with bare keys and metadata.")
    print_img_range(checkpoint)
    print_differences(
        f"Written file against the source, in {done.reference}", done.differences
    )
    print(f"Wrote {target} (fused form, {dtype}).")
