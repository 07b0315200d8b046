"""Fuse an AetherNet checkpoint: `python fuse_script/fuse_aether.py --help`.

Needs torch, and safetensors for files of that format; nothing of ours has to be
installed.
"""

import argparse
import sys
from pathlib import Path

try:
    import aethernet  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from aethernet.checkpoints.checkpoint import DTYPES
from aethernet.commands import conversion as flags
from aethernet.commands.fuse import fuse
from aethernet.commands.run import exit_code


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Fuse a trained AetherNet checkpoint: both depthwise kernels of a "
        "block become one. The written file is read again and compared with the "
        "training form on a photograph and on noise; a file that differs is not kept."
    )
    parser.add_argument(
        "--model_path",
        dest="checkpoint",
        type=Path,
        required=True,
        help=flags.HELP_CHECKPOINT,
    )
    parser.add_argument(
        "--output_path",
        dest="output",
        type=Path,
        required=True,
        help=".safetensors or .pth",
    )
    parser.add_argument(
        "--model_type", choices=flags.MODEL_TYPES, help=flags.HELP_MODEL_TYPE
    )
    parser.add_argument(
        "--upscale",
        dest="scale",
        type=int,
        choices=flags.SCALES,
        help=flags.HELP_SCALE,
    )
    parser.add_argument("--param_key", metavar="KEY", help=flags.HELP_PARAM_KEY)
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="float32", help="default: float32"
    )
    parser.add_argument("--device", default="cpu", help=flags.HELP_VERIFY_DEVICE)
    return exit_code(fuse, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
