"""`aethernet ui`: upscale in the browser, on this computer."""

import argparse
import logging
from pathlib import Path

from aethernet.commands.model_flags import (
    add_runtime,
    add_values,
    model_loader,
    models_of,
)
from aethernet.commands.values import port


def ui(arguments: argparse.Namespace) -> None:
    """Job: serve a page on this computer that upscales with `model`."""
    from aethernet.upscaling.ui import find_models, serve

    logging.getLogger("pyvips").setLevel(logging.ERROR)
    serve(
        find_models(models_of(arguments)),
        model_loader(arguments),
        arguments.port,
        open_browser=arguments.browser,
    )


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "Open a page in the browser to drop a picture, choose a model, compare and "
        "download. Only this computer can reach it (127.0.0.1). Needs the extra `ui`."
    )
    parser.epilog = "example: aethernet ui --model models"
    parser.add_argument(
        "--model",
        nargs="+",
        type=Path,
        metavar="M",
        help="models to choose from: .safetensors, .pth, .onnx or .engine files, "
        "folders of them, or names that `aethernet models` lists; default: 2x-small",
    )
    parser.add_argument(
        "--port",
        type=port,
        metavar="N",
        help="default: the first free one from 7860 on",
    )
    parser.add_argument(
        "--no-browser",
        dest="browser",
        action="store_false",
        help="print the address without opening the page",
    )
    add_runtime(parser)
    add_values(parser)
    parser.set_defaults(job=ui)
