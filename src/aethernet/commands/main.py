"""The command `aethernet`: the list of its commands, one module each."""

import importlib
import os
import sys
from collections.abc import Sequence

from aethernet.commands.parser import CommandParser, did_you_mean
from aethernet.commands.run import exit_code
from aethernet.files import command_line
from aethernet.version import __version__

# Each is a module of this package with `define`, which adds flags and sets the job.
COMMANDS = {
    "upscale": "upscale pictures or a video",
    "models": "list the models that ship with AetherNet",
    "info": "describe a model file",
    "fuse": "fuse a trained checkpoint",
    "export": "export a checkpoint to ONNX or ncnn",
    "engine": "build a TensorRT engine from an ONNX file",
    "runtimes": "list what runs models on this computer, and what would",
    "bench": "compare the speed of networks",
    "compare": "write a page that shows models side by side",
    "release": "make a folder to publish a model",
    "quality": "measure the quality of models on HR pictures",
    "ui": "upscale in the browser, on this computer",
    "web": "write a web page that upscales in the visitor's browser",
}

# argcomplete sets it for the program whose line is completed.
_COMPLETED = "_ARGCOMPLETE"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, those of the process by default.

    Returns:
        The exit code.
    """
    given = sys.argv[1:] if arguments is None else arguments
    # NumPy's products are small here. More threads than one would wait for each other
    # in a loop: the proof of a model took 0.6 to 1.1 s of CPU time instead of 0.17.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if _COMPLETED in os.environ:
        return _complete()
    parser = command_parser(given)
    if not given:
        parser.print_help(sys.stderr)
        return 2
    if not given[0].startswith("-") and given[0] not in COMMANDS:
        meant = did_you_mean(given[0], COMMANDS)
        parser.error(f"There is no command {given[0]}.{meant}")
    parsed = parser.parse_args(given)
    return exit_code(parsed.job, parsed)


def _complete() -> int:
    """Print what may follow on the line that a shell completes (docs/upscaling.md)."""
    import argcomplete

    line = os.environ.get("COMP_LINE", "")
    argcomplete.autocomplete(command_parser(line.split()))
    return 0


def command_parser(arguments: Sequence[str] = tuple(COMMANDS)) -> CommandParser:
    """The parser, with the flags of those commands that the arguments name.

    Only their modules are imported, with the libraries that their flags need. The other
    commands are just listed. The parsed arguments have the function to run as `job`,
    and all arguments as a line for a shell as `command_line`.
    """
    parser = CommandParser(
        prog="aethernet",
        description="Upscale pictures with AetherNet; inspect, fuse, export models.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name in arguments:
            importlib.import_module(f"aethernet.commands.{name}").define(command)
            if command.get_default("verbose") is None:  # or it has a --verbose already
                command.add_argument(
                    "--verbose",
                    action="store_true",
                    help="show the traceback of an unexpected error",
                )
            command.set_defaults(command_line=command_line(["aethernet", *arguments]))
    return parser
