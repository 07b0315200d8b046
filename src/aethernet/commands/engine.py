"""`aethernet engine`: build a TensorRT engine from an ONNX file."""

import argparse
from pathlib import Path

from aethernet.checkpoints.onnx import ShapeRange
from aethernet.checkpoints.shipped import find_model
from aethernet.commands.values import batch_sizes, height_x_width


def engine(arguments: argparse.Namespace) -> None:
    """Job: `model` to `output` (may be None), for the sizes asked for, if any are."""
    from aethernet.runtimes.tensorrt.build import build_engine, shape_range
    from aethernet.runtimes.tensorrt.header import SUFFIX, header_path

    model = find_model(arguments.model)
    # Of a model that ships it goes into the current folder.
    beside = model if model == arguments.model else Path(model.name)
    target = arguments.output or beside.with_suffix(SUFFIX)
    result = build_engine(
        model,
        target,
        shape_range(arguments.min, arguments.opt, arguments.max, arguments.batch),
        arguments.compute_capability,
    )
    header = result.header
    low, typical, high = ("x".join(map(str, shape)) for shape in header.profile)
    print(f"Built with {header.library_title} for compute capability {header.gpus}:")
    print(f"{header.scale}x, {header.precision}, {header.channels} channels.")
    print(f"It takes inputs of {low} to {high}, and is tuned for {typical}.")
    if header.activation_bytes is not None:
        size = header.activation_bytes / 2**30
        print(f"The largest takes {size:.1f} GiB of GPU memory.")
    if result.difference:
        print(f"Run here against ONNX Runtime: {result.difference}")
    else:
        print("Its sizes and types are checked; it has not been run here.")
    print(f"Wrote {target} and {header_path(target).name}, which belong together.")


def define(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Build a TensorRT engine of an ONNX file: with TensorRT where it is installed "
        "and there is a GPU, else with TensorRT for RTX, which builds without one. The "
        "engine computes in the precision of the file, and takes the sizes from --min "
        "to --max only. A file of fixed size takes no size flags."
    )
    parser.epilog = (
        "example: aethernet engine my_2x.onnx --min 32x32 --opt 540x960 --max 1080x1920"
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="an ONNX file")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT.engine",
        help="a plain plan, and OUT.engine.json beside it, which says what it is; "
        "default: MODEL.engine",
    )
    defaults = ShapeRange()
    for flag, use, (_, height, width) in (
        ("--min", "smallest", defaults.minimum),
        ("--opt", "typical", defaults.typical),
        ("--max", "largest", defaults.maximum),
    ):
        parser.add_argument(
            flag,
            type=height_x_width,
            metavar="HxW",
            help=f"{use} LR image, height first; default: {height}x{width}, or what "
            "the other two allow",
        )
    parser.add_argument(
        "--batch",
        type=batch_sizes,
        metavar="N",
        help="images at a time, or MIN,OPT,MAX; default: 1",
    )
    parser.add_argument(
        "--compute-capability",
        nargs="+",
        default=(),
        metavar="X.Y",
        help="GPUs that TensorRT for RTX builds for, e.g. 7.5 for Turing; default: 8.6 "
        "(RTX 30) and newer",
    )
    parser.set_defaults(job=engine)
