"""`aethernet info`: what a model file is."""

import argparse
from pathlib import Path

from aethernet.checkpoints.shipped import find_model
from aethernet.commands.conversion import HELP_PARAM_KEY
from aethernet.text import printable


def info(arguments: argparse.Namespace) -> None:
    """Job: facts about `file`."""
    from aethernet.checkpoints.info import describe_file

    facts = describe_file(find_model(arguments.file), arguments.param_key)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {printable(value)}")


def define(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Say what a checkpoint or an ONNX file is: form, variant, scale, size, cost, "
        "wrapper and metadata."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint or .onnx")
    parser.add_argument("--param-key", metavar="KEY", help=HELP_PARAM_KEY)
    parser.set_defaults(job=info)
