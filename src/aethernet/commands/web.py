"""`aethernet web`: write a web page that upscales in the visitor's browser."""

import argparse
from pathlib import Path

from aethernet.checkpoints.formats import SUFFIXES
from aethernet.checkpoints.shipped import find_model, fused_models
from aethernet.files import command_line, files_in


def web(arguments: argparse.Namespace) -> None:
    """Job: write the page for the models that --model names."""
    from aethernet.publish.web import write_page

    models: list[Path] = []
    for path in map(find_model, arguments.model or fused_models()):
        models += files_in(path, SUFFIXES, "models") if path.is_dir() else [path]
    target = arguments.output
    names = write_page(models, target)
    print(f"Wrote {target} (models: {', '.join(names)}).")
    print("Put the folder on any web server. To try it on this computer, run")
    print(command_line(["python", "-m", "http.server", "-d", target]))
    print("and open http://localhost:8000 in a browser.")


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "Write a folder with a web page that upscales pictures in the visitor's "
        "browser, on any graphics card. No picture leaves the visitor's device. In a "
        "clone of the repository it needs Node.js, to build the page the first time."
    )
    parser.epilog = "example: aethernet web -o page --model my_2x.safetensors"
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="a new or empty folder, or an earlier page, which is replaced",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        type=Path,
        metavar="M",
        help="models to choose from: .safetensors or .pth files, folders of them, or "
        "names that `aethernet models` lists; default: all of these that are fused",
    )
    parser.set_defaults(job=web)
