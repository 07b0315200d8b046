"""`aethernet export`: write a checkpoint as ONNX."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aethernet.checkpoints.onnx import BFLOAT16_OPSET, DEFAULT_OPSET, export_onnx
from aethernet.checkpoints.shipped import find_model
from aethernet.checkpoints.tolerances import MIN_PSNR
from aethernet.commands.conversion import (
    add_conversion,
    print_differences,
    print_source,
)
from aethernet.commands.values import fixed_size
from aethernet.devices import choose_device
from aethernet.errors import AetherError
from aethernet.runtimes.base import PRECISIONS

if TYPE_CHECKING:
    from aethernet.checkpoints.onnx import OnnxExport


def export(arguments: argparse.Namespace) -> None:
    """Job: `checkpoint` to `output`; the rest as `onnx_export.export_onnx` has it."""
    result = export_onnx(
        find_model(arguments.checkpoint),
        arguments.output,
        in_chans=arguments.in_chans,
        precision=arguments.precision,
        atol=arguments.atol,
        rtol=arguments.rtol,
        **_export_options(arguments),
    )
    _print_export(arguments, result)


def _export_command(arguments: argparse.Namespace) -> None:
    arguments.dynamic = arguments.shapes is None
    int8 = arguments.precision == "int8"
    for flag, applies in (
        ("--calibrate", int8),
        ("--min-psnr", int8),
        ("--atol", not int8),
        ("--rtol", not int8),
    ):
        if getattr(arguments, flag[2:].replace("-", "_")) is not None and not applies:
            raise AetherError(f"{flag} does not go with {arguments.precision}.")
    if not int8:
        return export(arguments)
    if arguments.calibrate is None:
        raise AetherError(
            "int8 needs --calibrate FOLDER: pictures like those the model will see."
        )
    from aethernet.checkpoints.int8 import export_int8

    bar = MIN_PSNR["int8"] if arguments.min_psnr is None else arguments.min_psnr
    result = export_int8(
        find_model(arguments.checkpoint),
        arguments.output,
        arguments.calibrate,
        min_psnr=bar,
        **_export_options(arguments),
    )
    _print_export(arguments, result)


def _export_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What an export takes in every precision."""
    names = ("model_type", "scale", "param_key", "dynamic", "shapes", "opset")
    options = {name: getattr(arguments, name) for name in (*names, "license")}
    return {**options, "device": choose_device(arguments.device)}


def _print_export(arguments: argparse.Namespace, result: OnnxExport) -> None:
    print_source(result.source)
    if result.source.form == "training":
        print("It is in training form: fused for the export.")
    print_differences("ONNX Runtime against PyTorch float32", result.differences)
    print(f"Wrote {arguments.output} (opset {result.opset}, {arguments.precision}).")
    print(f"To build a TensorRT engine of it:\n{result.trtexec}")


def define(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Export a checkpoint to ONNX, fused on the way. The file is run in ONNX "
        "Runtime and compared with PyTorch; a file that differs is not kept."
    )
    parser.epilog = (
        "example: aethernet export my_2x.safetensors -o my_2x.onnx --precision float16"
    )
    add_conversion(parser, ".onnx")
    add_export_limits(parser, "--opset")
    parser.add_argument(
        "--precision",
        choices=(*PRECISIONS, "int8"),
        default="float32",
        help="of weights and activations; LayerNorm is always in float32. float16 also "
        "takes and gives float16; int8 needs --calibrate; default: float32",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FOLDER",
        help="for int8: LR pictures like those the model will see",
    )
    parser.add_argument(
        "--min-psnr",
        type=float,
        metavar="DB",
        help="for int8: what each of these pictures has to reach; default: 40",
    )
    parser.add_argument(
        "--static",
        type=fixed_size,
        dest="shapes",
        metavar="WxH",
        help="one fixed LR size, e.g. 640x360; default: batch, height, width are free",
    )
    parser.set_defaults(job=_export_command, in_chans=None)


def add_export_limits(parser: argparse.ArgumentParser, opset_flag: str) -> None:
    """Add the flags of an export that the command and the script share."""
    parser.add_argument(
        opset_flag,
        type=int,
        dest="opset",
        metavar="N",
        help=f"ONNX operator set, 17 or newer; default: {DEFAULT_OPSET}, for bfloat16 "
        f"{BFLOAT16_OPSET}",
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="of the weights, for the metadata, e.g. CC0-1.0; default: what the "
        "checkpoint says",
    )
    parser.add_argument(
        "--atol",
        type=float,
        metavar="A",
        help="|ONNX - PyTorch| may be A + R * |PyTorch|; default: 1e-4, and a PSNR "
        "instead for float16 (50 dB) and bfloat16 (40 dB)",
    )
    parser.add_argument("--rtol", type=float, metavar="R", help="default: 1e-4")
