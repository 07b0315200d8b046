"""Fuse an AetherNet checkpoint: `python fuse_script/fuse_aether.py --help`.

Needs NumPy, safetensors for files of that format, and torch for all others. AetherNet
does not have to be installed.
"""

import argparse
import os
import sys
from pathlib import Path

try:
    import aethernet  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

# As the command does, before NumPy is imported: commands/main.py says why.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from aethernet.commands import conversion
from aethernet.commands.fuse import add_dtype, fuse
from aethernet.commands.run import exit_code


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Fuse a trained AetherNet checkpoint: both depthwise kernels of "
        "each block become one. The written file is read again and compared with the "
        "training form on a photograph and on noise; a file that differs is not kept."
    )
    parser.add_argument(
        "--model_path", type=Path, required=True, help=conversion.HELP_CHECKPOINT
    )
    parser.add_argument(
        "--output_path", type=Path, required=True, help=".safetensors or .pth"
    )
    parser.add_argument(
        "--model_type", choices=conversion.MODEL_TYPES, help=conversion.HELP_MODEL_TYPE
    )
    parser.add_argument(
        "--upscale",
        dest="scale",
        type=int,
        choices=conversion.SCALES,
        help=conversion.HELP_SCALE,
    )
    parser.add_argument("--param_key", metavar="KEY", help=conversion.HELP_PARAM_KEY)
    conversion.add_img_range(parser, "--img_range")
    add_dtype(parser)
    conversion.add_checking(parser)
    return exit_code(_fuse, parser.parse_args())


def _fuse(arguments: argparse.Namespace) -> None:
    options = conversion.checkpoint_options(arguments)
    fuse(
        arguments.model_path,
        arguments.output_path,
        options,
        arguments.dtype,
        arguments.verify,
    )


if __name__ == "__main__":
    sys.exit(main())
