"""The command `aethernet`: the list of its commands, one module each."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from aethernet.commands.run import exit_code
from aethernet.version import __version__

# Each is a module of this package with `define`, which adds flags and sets the job.
COMMANDS = {
    "upscale": "upscale pictures or a video",
    "models": "list the models that ship with AetherNet",
    "info": "describe a model file",
    "fuse": "fuse a trained checkpoint",
    "export": "export a checkpoint to ONNX",
    "engine": "build a TensorRT engine from an ONNX file",
    "bench": "compare the speed of networks",
    "compare": "write a page that shows models side by side",
    "release": "make a folder to publish a model",
    "quality": "measure the quality of models on HR pictures",
    "ui": "upscale in the browser, on this computer",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command with these words (default: `sys.argv`); return its exit code."""
    words = sys.argv[1:] if words is None else words
    arguments = command_parser(words).parse_args(words)
    return exit_code(arguments.job, arguments)


def command_parser(words: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser, with the flags of those commands whose names are among the words.

    Only their modules are imported, with the libraries that their flags need. The other
    commands are just listed. Jobs find the words themselves as `arguments.words`.
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
            if command.get_default("verbose") is None:  # or it has a --verbose already
                command.add_argument(
                    "--verbose",
                    action="store_true",
                    help="show the traceback of an unexpected error",
                )
            command.set_defaults(words=(*words,))
    return parser
