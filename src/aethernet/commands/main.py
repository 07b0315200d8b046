"""The command `aethernet`: the list of its commands, one module each."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from aethernet.commands.run import exit_code
from aethernet.version import __version__

# Each is a module of this package with `define`, which adds flags and sets the job.
COMMANDS = {
    "upscale": "make pictures or a video larger",
    "models": "list the models that ship",
    "info": "say what a model file is",
    "fuse": "fuse a trained checkpoint",
    "export": "export a checkpoint to ONNX",
    "engine": "build a TensorRT engine from an ONNX file",
    "bench": "compare speed with other networks",
    "compare": "write a page that shows models side by side",
    "release": "make a folder to publish a model",
    "quality": "measure models on HR pictures",
    "ui": "upscale in the browser, on this computer",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command with these words (default: `sys.argv`); return its exit code."""
    words = sys.argv[1:] if words is None else [*words]
    arguments = command_parser(words).parse_args(words)
    arguments.words = words
    return exit_code(arguments.job, arguments)


def command_parser(words: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser, with the flags of the commands that are among the words.

    A command's module is imported with the libraries that its flags need; the others
    are listed only.
    """
    parser = argparse.ArgumentParser(
        prog="aethernet",
        description="Upscale pictures with AetherNet; inspect, fuse, export models.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name in words:
            importlib.import_module(f"aethernet.commands.{name}").define(command)
    return parser
