"""`aethernet ui`: upscale in the browser, on this computer."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from aethernet.commands.model_flags import (
    add_runtime,
    add_values,
    asked_values,
    models_of,
)
from aethernet.commands.values import port
from aethernet.runtimes.registry import open_any

if TYPE_CHECKING:
    from aethernet.runtimes.base import Model


def ui(arguments: argparse.Namespace) -> None:
    """Job: serve a page on this computer that upscales with `model`."""
    from aethernet.ui.server import default_models, find_models, serve

    logging.getLogger("pyvips").setLevel(logging.ERROR)
    # Without a model here, `models_of` raises the error that says so.
    paths = models_of(arguments) if arguments.model else default_models()
    runtime, precision = arguments.runtime, arguments.precision
    asked = asked_values(arguments)

    def load(path: Path, device: str) -> "Model":
        # No trial delays the first picture.
        how = (runtime, device, precision)
        return open_any(path, *how, pixels=lambda: 0, asked=asked)

    serve(
        find_models(paths or models_of(arguments)),
        load,
        arguments.port,
        open_browser=arguments.browser,
        device=arguments.device,
    )


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "Open a page in the browser that upscales pictures, folders and videos, shows "
        "before and after, and has an API. Only this computer can reach it "
        "(127.0.0.1). Needs the extra `ui`, and `video` for videos."
    )
    parser.epilog = "example: aethernet ui --model models"
    parser.add_argument(
        "--model",
        nargs="+",
        type=Path,
        metavar="M",
        help="models to choose from: .safetensors, .pth, .onnx or .engine files, "
        "folders of them, or names that `aethernet models` lists; default: all that "
        "ship",
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
