"""`aethernet engine`: build a TensorRT engine from an ONNX file."""

import argparse
from pathlib import Path

from aethernet.checkpoints.onnx import ShapeRange
from aethernet.checkpoints.shipped import find_model
from aethernet.commands.values import batch_sizes, size


def engine(arguments: argparse.Namespace) -> None:
    """Build an engine, and print what it is and what was checked."""
    from aethernet.runtimes.tensorrt.build import build_engine, shape_range
    from aethernet.runtimes.tensorrt.header import SUFFIX, header_path

    model = find_model(arguments.model)
    # The engine of a model that ships goes into the current folder.
    beside = model if model == arguments.model else Path(model.name)
    target = arguments.output or beside.with_suffix(SUFFIX)
    shapes = shape_range(
        _height_first(arguments.min),
        _height_first(arguments.opt),
        _height_first(arguments.max),
        arguments.batch,
    )
    result = build_engine(model, target, shapes, arguments.compute_capability)
    header = result.header
    low, typical, high = map(_batch_and_size, header.profile)
    print(f"Built with {header.library_title} for compute capability {header.gpus}:")
    print(f"{header.scale}x, {header.precision}, {header.channels} channels.")
    print(f"It takes images of {low} to {high}, and is tuned for {typical}.")
    if header.activation_bytes is not None:
        memory = header.activation_bytes / 2**30
        print(f"The largest takes {memory:.1f} GiB of GPU memory.")
    if result.difference:
        print(f"Compared with ONNX Runtime on this GPU: {result.difference}")
    else:
        print("Its sizes and types are checked; it was not run here.")
    print(f"Wrote {target} and {header_path(target).name}. Keep both together.")


def _height_first(size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Width and height, as in flags, as height and width, as in shapes."""
    return size and (size[1], size[0])


def _batch_and_size(shape: tuple[int, int, int, int]) -> str:
    """The batch, where it is more than 1, and WxH of a shape `(B, C, H, W)`."""
    batch, _, height, width = shape
    return f"{width}x{height}" if batch == 1 else f"{batch} x {width}x{height}"


def define(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Build a TensorRT engine from an ONNX file: with TensorRT where it is "
        "installed and there is a GPU, otherwise with TensorRT for RTX, which needs no "
        "GPU to build. The engine computes in the precision of the file. It takes "
        "images from --min to --max only. A file of fixed size needs no size flags."
    )
    parser.epilog = (
        "example: aethernet engine my_2x.onnx --min 32x32 --opt 960x540 --max 1920x1080"
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="an ONNX file")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT.engine",
        help="the engine; OUT.engine.json beside it describes it; default: "
        "MODEL.engine",
    )
    defaults = ShapeRange()
    for flag, use, (_, height, width) in (
        ("--min", "smallest", defaults.minimum),
        ("--opt", "typical", defaults.typical),
        ("--max", "largest", defaults.maximum),
    ):
        parser.add_argument(
            flag,
            type=size,
            metavar="WxH",
            help=f"{use} LR image, width x height; default: {width}x{height}, or the "
            "nearest that the other two allow",
        )
    parser.add_argument(
        "--batch",
        type=batch_sizes,
        metavar="N",
        help="images in a batch, or MIN,OPT,MAX; default: 1",
    )
    parser.add_argument(
        "--compute-capability",
        nargs="+",
        default=(),
        metavar="X.Y",
        help="of the GPUs that TensorRT for RTX builds for, e.g. 7.5 for Turing; "
        "default: 8.6 (RTX 30) and newer",
    )
    parser.set_defaults(job=engine)
