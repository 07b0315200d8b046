"""Export an AetherNet checkpoint to ONNX: `python onnx/aether2onnx.py --help`.

Needs torch, onnx, onnxscript and onnxruntime; nothing of ours has to be installed.
"""

import argparse
import sys
from pathlib import Path

try:
    import aethernet  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from aethernet.checkpoints.onnx import ShapeRange
from aethernet.commands import conversion as flags
from aethernet.commands.export import add_export_limits, export
from aethernet.commands.run import exit_code

DEFAULTS = ShapeRange()
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Export an AetherNet checkpoint to ONNX. A checkpoint in training "
        "form is fused on the way. The file is run in ONNX Runtime and compared "
        "with PyTorch float32 on a photograph, noise and extreme frames; a file that "
        "differs is not kept. Ends with the trtexec line for the file.",
    )
    parser.add_argument(
        "--input_model_path",
        dest="checkpoint",
        type=Path,
        required=True,
        help=flags.HELP_CHECKPOINT,
    )
    parser.add_argument(
        "--output_onnx_path", dest="output", type=Path, required=True, help=".onnx"
    )
    parser.add_argument(
        "--model_type", choices=flags.MODEL_TYPES, help=flags.HELP_MODEL_TYPE
    )
    parser.add_argument(
        "--scale", type=int, choices=flags.SCALES, help=flags.HELP_SCALE
    )
    parser.add_argument(
        "--input_channels",
        dest="in_chans",
        type=int,
        help="stop unless the weights take this many; default: read from them",
    )
    parser.add_argument("--param_key", metavar="KEY", help=flags.HELP_PARAM_KEY)
    parser.add_argument(
        "--dynamic_shapes",
        dest="dynamic",
        action="store_true",
        help="leave batch, height and width free; otherwise they are the opt size",
    )
    for bound, sizes, use in (
        ("min", DEFAULTS.minimum, "smallest for TensorRT"),
        ("opt", DEFAULTS.typical, "typical for TensorRT, and the fixed size"),
        ("max", DEFAULTS.maximum, "largest for TensorRT"),
    ):
        for side, size in zip(("batch_size", "height", "width"), sizes, strict=True):
            flag = f"--{bound}_{side}"
            text = f"{use}, LR pixels; default: {size}"
            parser.add_argument(flag, type=int, default=size, metavar="N", help=text)
    add_export_limits(parser, "--opset_version")
    parser.add_argument(
        "--fp_mode",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="precision of weights and activations; LayerNorm is always in float32; "
        "fp16 also takes and gives float16; default: fp32",
    )
    parser.add_argument(
        "--verify_onnx",
        action="store_true",
        help="every file is verified, with or without this flag",
    )
    parser.add_argument("--device", default="cpu", help=flags.HELP_VERIFY_DEVICE)
    return exit_code(_export, parser.parse_args())


def _export(arguments: argparse.Namespace) -> None:
    arguments.precision = PRECISIONS[arguments.fp_mode]
    sizes = [
        tuple(
            getattr(arguments, f"{bound}_{side}")
            for side in ("batch_size", "height", "width")
        )
        for bound in ("min", "opt", "max")
    ]
    # A fixed size is the opt one, whatever the others are.
    arguments.shapes = ShapeRange(*(sizes if arguments.dynamic else [sizes[1]] * 3))
    export(arguments)


if __name__ == "__main__":
    sys.exit(main())
