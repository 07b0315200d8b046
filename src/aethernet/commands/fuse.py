"""`aethernet fuse`: turn a trained checkpoint into its fused form."""

import argparse

from aethernet.checkpoints.checkpoint import DTYPES
from aethernet.checkpoints.shipped import find_model
from aethernet.commands.conversion import (
    add_conversion,
    print_differences,
    print_source,
)
from aethernet.devices import choose_device


def fuse(arguments: argparse.Namespace) -> None:
    """Job: `checkpoint` to `output`; the rest as `fusion.fuse_checkpoint` has it."""
    from aethernet.checkpoints.fuse import fuse_checkpoint

    result = fuse_checkpoint(
        find_model(arguments.checkpoint),
        arguments.output,
        model_type=arguments.model_type,
        scale=arguments.scale,
        param_key=arguments.param_key,
        dtype=DTYPES[arguments.dtype],
        device=choose_device(arguments.device),
    )
    print_source(result.source)
    if result.was_fused:
        print("It is in fused form already: written again with bare keys and metadata.")
    img_range = result.source.hyperparameters.get("img_range", 1.0)
    if img_range != 1:
        print(f"img_range is {img_range}: spandrel cannot know, and takes it as 1.")
    print_differences("Written file against the source", result.differences)
    print(f"Wrote {arguments.output} (fused form, {arguments.dtype}).")


def define(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fuse a trained checkpoint: both depthwise kernels of a block become one. The "
        "written file is read again and compared with the training form; a file that "
        "differs is not kept."
    )
    parser.epilog = "example: aethernet fuse net_g_100000.pth -o my_2x.safetensors"
    add_conversion(parser, ".safetensors or .pth")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="float32", help="default: float32"
    )
    parser.set_defaults(job=fuse)
