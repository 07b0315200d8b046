"""Export an AetherNet checkpoint to ONNX: `python onnx/aether2onnx.py --help`.

Needs NumPy, onnx and onnxruntime; safetensors for files of that format, and torch for
all other checkpoints. AetherNet does not have to be installed.
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

from aethernet.checkpoints.onnx import ExportOptions, ShapeRange
from aethernet.commands import conversion
from aethernet.commands.export import add_export_options, export
from aethernet.commands.run import exit_code

DEFAULTS = ShapeRange()
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
SIDES = ("batch_size", "height", "width")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Export an AetherNet checkpoint to ONNX. A checkpoint in training "
        "form is fused first. The file is run in ONNX Runtime and compared with "
        "the network on a photograph, noise and extreme frames; a file that "
        "differs is not kept. The last line printed is a trtexec command for the file.",
    )
    add_flags(parser)
    return exit_code(_export, parser.parse_args())


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input_model_path", type=Path, required=True, help=conversion.HELP_CHECKPOINT
    )
    parser.add_argument("--output_onnx_path", type=Path, required=True, help=".onnx")
    parser.add_argument(
        "--model_type", choices=conversion.MODEL_TYPES, help=conversion.HELP_MODEL_TYPE
    )
    parser.add_argument(
        "--scale", type=int, choices=conversion.SCALES, help=conversion.HELP_SCALE
    )
    parser.add_argument(
        "--input_channels",
        type=int,
        help="stop unless the weights take so many channels; default: read from them",
    )
    parser.add_argument("--param_key", metavar="KEY", help=conversion.HELP_PARAM_KEY)
    conversion.add_img_range(parser, "--img_range")
    parser.add_argument(
        "--dynamic_shapes",
        action="store_true",
        help="leave batch, height and width free; otherwise they are the opt size",
    )
    for bound, sizes, use in (
        ("min", DEFAULTS.minimum, "smallest for TensorRT"),
        ("opt", DEFAULTS.typical, "typical for TensorRT, and the fixed size"),
        ("max", DEFAULTS.maximum, "largest for TensorRT"),
    ):
        for side, size in zip(SIDES, sizes, strict=True):
            flag = f"--{bound}_{side}"
            text = f"{use}, LR pixels; default: {size}"
            parser.add_argument(flag, type=int, default=size, metavar="N", help=text)
    add_export_options(parser, "--opset_version")
    parser.add_argument(
        "--fp_mode",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="precision of weights and activations; LayerNorm is always in float32; "
        "fp16 also has float16 input and output, see --io; default: fp32",
    )
    parser.add_argument(
        "--verify_onnx",
        action="store_true",
        help="has no effect: every file is verified",
    )
    conversion.add_checking(parser)


def _export(arguments: argparse.Namespace) -> None:
    options = ExportOptions(
        dynamic=arguments.dynamic_shapes,
        shapes=_shapes(arguments),
        opset=arguments.opset,
        precision=PRECISIONS[arguments.fp_mode],
        float32_io=arguments.io == "float32",
        license=arguments.license,
        atol=arguments.atol,
        rtol=arguments.rtol,
        verify=arguments.verify,
    )
    reading = conversion.checkpoint_options(arguments, arguments.input_channels)
    export(arguments.input_model_path, arguments.output_onnx_path, reading, options)


def _shapes(arguments: argparse.Namespace) -> ShapeRange:
    given = vars(arguments)
    least, typical, most = (
        (given[f"{b}_batch_size"], given[f"{b}_height"], given[f"{b}_width"])
        for b in ("min", "opt", "max")
    )
    if arguments.dynamic_shapes:
        return ShapeRange(least, typical, most)
    return ShapeRange(typical, typical, typical)  # min and max do not matter then


if __name__ == "__main__":
    sys.exit(main())
