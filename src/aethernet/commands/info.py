"""`aethernet info`: describe a model file."""

import argparse
from pathlib import Path

from aethernet.checkpoints.info import describe_file
from aethernet.checkpoints.shipped import find_model
from aethernet.commands.conversion import HELP_PARAM_KEY
from aethernet.text import in_columns


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "Describe a checkpoint or an ONNX file: form, variant, scale, size, cost, "
        "wrapper and metadata."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint or .onnx")
    parser.add_argument("--param-key", metavar="KEY", help=HELP_PARAM_KEY)
    parser.set_defaults(job=_info)


def _info(arguments: argparse.Namespace) -> None:
    facts = describe_file(find_model(arguments.file), arguments.param_key)
    for line in in_columns(facts):
        print(line)
