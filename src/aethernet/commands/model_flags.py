"""Flags that choose a model and the runtime that executes it."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aethernet.checkpoints.shipped import find_model, shipped_model
from aethernet.runtimes.base import PRECISIONS
from aethernet.runtimes.registry import RUNTIMES, open_model

if TYPE_CHECKING:
    from aethernet.runtimes.base import Model


def models_of(arguments: argparse.Namespace) -> list[Path]:
    return [*map(find_model, arguments.model or [])] or [shipped_model()]


def model_loader(arguments: argparse.Namespace) -> "Callable[[Path], Model]":
    """What opens a model file with `runtime`, `device`, `precision`, for any size."""
    from aethernet.runtimes.tiling import Tiled

    words = (arguments.runtime, arguments.device, arguments.precision)
    return lambda path: Tiled(open_model(path, *words))


def add_runtime(
    parser: "argparse.ArgumentParser | argparse._ArgumentGroup",
) -> None:
    """Add the words for `open_model`."""
    parser.add_argument(
        "--runtime",
        choices=("auto", *RUNTIMES),
        default="auto",
        help="what executes the model; default: the fastest, found out once by a short "
        "trial",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, mps, xpu; tensorrt, dml, coreml (ONNX Runtime); "
        "default: a GPU where there is one",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default="auto",
        help="default: the fastest that no picture shows",
    )
