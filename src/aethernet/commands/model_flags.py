"""Flags that choose models and the runtime that executes them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aethernet.checkpoints.shipped import find_model, shipped_model
from aethernet.commands.values import positive
from aethernet.runtimes.base import PRECISIONS, AskedValues
from aethernet.runtimes.registry import RUNTIMES, device_kinds, open_any

if TYPE_CHECKING:
    from aethernet.runtimes.base import Model


def add_runtime(
    parser: "argparse.ArgumentParser | argparse._ArgumentGroup",
) -> None:
    """Add --runtime, --device and --precision, the arguments of `open_model`."""
    parser.add_argument(
        "--runtime",
        choices=("auto", *RUNTIMES),
        default="auto",
        help="library that executes the model; default: the fastest installed one "
        "(docs/runtimes.md)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help=f"{', '.join(device_kinds())}; a number may follow, as in cuda:1; "
        "default: a GPU if there is one",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default="auto",
        help="default: the fastest whose difference to float32 is invisible",
    )


def add_values(
    parser: "argparse.ArgumentParser | argparse._ArgumentGroup",
) -> None:
    """Add --range and --bgr, for `asked_values`."""
    parser.add_argument(
        "--range",
        type=positive(float),
        metavar="R",
        help="the model takes and makes values of 0 to R, e.g. 255; of an AetherNet, "
        "its img_range; default: found out with a photograph",
    )
    parser.add_argument(
        "--bgr",
        action="store_true",
        help="the model takes and makes BGR instead of RGB (not an AetherNet)",
    )


def asked_values(arguments: argparse.Namespace) -> AskedValues:
    """What the flags of `add_values` say."""
    return AskedValues(arguments.range, arguments.bgr)


def add_threads(
    parser: "argparse.ArgumentParser | argparse._ArgumentGroup",
) -> None:
    """Add --threads, for `devices.limit_threads`."""
    parser.add_argument(
        "--threads",
        type=positive(int),
        metavar="N",
        help="processor threads that the model uses at most; default: the physical "
        "cores that the process may use",
    )


def models_of(arguments: argparse.Namespace) -> list[Path]:
    """Paths of the models that --model names; the shipped model if it names none.

    Raises:
        AetherError: when a name is neither a file nor a shipped model.
    """
    return [*map(find_model, arguments.model or [])] or [shipped_model()]


def model_loader(arguments: argparse.Namespace) -> "Callable[[Path], Model]":
    """A function that opens a model file as the flags say, for pictures of any size.

    It makes no trial: a few pictures are not worth one.
    """
    # Imported here because it imports NumPy, which --help does not need.
    from aethernet.runtimes.tiling import Tiled

    how = (arguments.runtime, arguments.device, arguments.precision)
    asked = asked_values(arguments)
    return lambda path: Tiled(open_any(path, *how, pixels=lambda: 0, asked=asked))
