"""`aethernet compare`: write a page that shows models side by side."""

import argparse
import logging
from pathlib import Path

from aethernet.commands.model_flags import add_runtime, model_loader, models_of
from aethernet.commands.values import crop
from aethernet.text import printable


def compare(arguments: argparse.Namespace) -> None:
    """Job: a page about `lr` with `model` (may be None) and, if known, `hr`."""
    from aethernet.quality.baselines import model_names
    from aethernet.quality.compare import LARGE_PAGE, find_pairs, write_report

    logging.getLogger("pyvips").setLevel(logging.ERROR)
    pairs = find_pairs(arguments.lr, arguments.hr)
    paths = models_of(arguments)
    load = model_loader(arguments)
    models = {
        name: load(path) for name, path in zip(model_names(paths), paths, strict=True)
    }
    report = write_report(pairs, arguments.output, models, arguments.crop)
    width = max(map(len, report.means), default=0)
    for name, figures in report.means.items():
        print(f"{printable(name):<{width}}  {figures}")
    count = f"{len(pairs)} picture{'s' * (len(pairs) != 1)}"
    print(f"Wrote {arguments.output} ({count}, {report.size / 1e6:.1f} MB).")
    if report.size > LARGE_PAGE:
        print(
            "A page of this size is slow to open: compare fewer pictures, or a part of "
            "each (--crop)."
        )


def define(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write one HTML file that shows bicubic and models side by side, with a slider "
        "and zoom, and PSNR-Y and SSIM-Y where the HR picture is known. It holds the "
        "pictures itself and opens without internet."
    )
    parser.epilog = (
        "examples: aethernet compare photo.png -o report.html; aethernet compare LR "
        "--hr HR -o report.html --model 2x_mine.safetensors 2x_other.onnx"
    )
    parser.add_argument(
        "lr",
        nargs="+",
        type=Path,
        metavar="LR",
        help="pictures to upscale, or folders of them",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="the .html file"
    )
    parser.add_argument(
        "--hr",
        nargs="+",
        type=Path,
        default=(),
        metavar="HR",
        help="what they should become: as many pictures in the same order, or a folder "
        "with the same names",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        type=Path,
        metavar="M",
        help="of one scale; .safetensors, .pth, .onnx or .engine, or names that "
        "`aethernet models` lists; default: 2x-small",
    )
    parser.add_argument(
        "--crop",
        type=crop,
        metavar="X,Y,W,H",
        help="compare this part of each LR picture: left, top, width, height in pixels",
    )
    add_runtime(parser)
    parser.set_defaults(job=compare)
