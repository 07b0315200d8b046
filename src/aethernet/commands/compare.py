"""`aethernet compare`: write a page that shows models side by side."""

import argparse
import logging
from pathlib import Path

from aethernet.commands.model_flags import (
    add_runtime,
    add_values,
    model_loader,
    models_of,
)
from aethernet.commands.values import crop
from aethernet.text import in_columns


def compare(arguments: argparse.Namespace) -> None:
    """Job: write a page about `lr`, its HR pictures if there are any, and `model`."""
    from aethernet.quality.baselines import model_names
    from aethernet.quality.compare import (
        LARGE_PAGE,
        check_page,
        find_pairs,
        write_page,
    )

    logging.getLogger("pyvips").setLevel(logging.ERROR)
    check_page(arguments.output)
    pairs = find_pairs(arguments.lr, arguments.hr)
    paths = models_of(arguments)
    load = model_loader(arguments)
    models = {
        name: load(path) for name, path in zip(model_names(paths), paths, strict=True)
    }
    page = write_page(pairs, arguments.output, models, arguments.crop)
    if page.means:
        rows = [(name, str(figures)) for name, figures in page.means.items()]
        print(*in_columns(rows), sep="\n")
    count = f"{len(pairs)} picture{'s' * (len(pairs) != 1)}"
    print(f"Wrote {arguments.output} ({count}, {page.size / 1e6:.1f} MB).")
    if page.size > LARGE_PAGE:
        print(
            "A page of this size opens slowly. Compare fewer pictures, or a part of "
            "each (--crop)."
        )


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "Write one HTML file that shows bicubic and models side by side, with a slider "
        "and zoom, and PSNR-Y and SSIM-Y if the HR pictures are given. The file "
        "contains the pictures and opens without an internet connection."
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
        help="the HR pictures: as many as LR, in the same order, or a folder of "
        "pictures with the same names",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        type=Path,
        metavar="M",
        help="models of one scale: .safetensors, .pth, .onnx or .engine files, or "
        "names that `aethernet models` lists; default: 2x-small",
    )
    parser.add_argument(
        "--crop",
        type=crop,
        metavar="X,Y,W,H",
        help="compare this part of each LR picture: left, top, width, height in pixels",
    )
    add_runtime(parser)
    add_values(parser)
    parser.set_defaults(job=compare)
