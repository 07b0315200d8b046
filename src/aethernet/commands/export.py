"""`aethernet export`: write a checkpoint as an ONNX file or as ncnn files."""

import argparse
from pathlib import Path

from aethernet.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointOptions,
    load_checkpoint,
)
from aethernet.checkpoints.int8 import export_int8
from aethernet.checkpoints.layout import PRECISIONS
from aethernet.checkpoints.ncnn import PRECISIONS as NCNN_PRECISIONS
from aethernet.checkpoints.ncnn import check_ncnn_target
from aethernet.checkpoints.ncnn_export import NcnnExport, NcnnOptions, export_ncnn
from aethernet.checkpoints.onnx import (
    ExportOptions,
    OnnxExport,
    ShapeRange,
    check_export,
    export_onnx,
)
from aethernet.checkpoints.onnx_graph import (
    BFLOAT16_OPSET,
    NEWEST_OPSET,
    OLDEST_OPSET,
)
from aethernet.checkpoints.shipped import find_model
from aethernet.checkpoints.tolerances import MIN_PSNR
from aethernet.commands.conversion import (
    add_conversion,
    checkpoint_options,
    print_differences,
    print_img_range,
    print_source,
)
from aethernet.commands.values import size
from aethernet.errors import AetherError
from aethernet.files import parent_made

FORMATS = {"onnx": ".onnx", "ncnn": ".param"}


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "Export a checkpoint to ONNX or ncnn. The training form is fused first. The "
        "file is run in ONNX Runtime or ncnn and compared with the network; a file "
        "that differs is not kept."
    )
    parser.epilog = (
        "example: aethernet export my_2x.safetensors -o my_2x.onnx --precision float16"
    )
    add_conversion(parser, ".onnx; or .param for ncnn, with a .bin file beside it")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="default: by the suffix of OUT",
    )
    add_export_options(parser, "--opset")
    parser.add_argument(
        "--precision",
        choices=(*PRECISIONS, "int8"),
        default="float32",
        help="of weights and activations; LayerNorm is always in float32. float16 also "
        "has float16 input and output, see --io; int8 needs --calibrate; ncnn has "
        "float32 and float16 weights; default: float32",
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
        help="for int8: PSNR that each of these pictures has to reach; default: 40",
    )
    parser.add_argument(
        "--static",
        type=_fixed_size,
        metavar="WxH",
        help="one fixed LR size, e.g. 640x360; default: any batch, height and width",
    )
    parser.set_defaults(job=_export)


def add_export_options(parser: argparse.ArgumentParser, opset_flag: str) -> None:
    """Add the flags of an export that the command and the script share."""
    parser.add_argument(
        opset_flag,
        type=int,
        dest="opset",
        metavar="N",
        help=f"ONNX operator set, {OLDEST_OPSET} to {NEWEST_OPSET}; default: "
        f"{OLDEST_OPSET}, for bfloat16 {BFLOAT16_OPSET}",
    )
    parser.add_argument(
        "--io",
        choices=("float32",),
        help="float32: a float16 file gets float32 input and output, for programs with "
        "float32 buffers; all other files have that anyway",
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="licence of the weights for the metadata, e.g. CC0-1.0; default: the one "
        "in the checkpoint",
    )
    parser.add_argument(
        "--atol",
        type=float,
        metavar="A",
        help="|file - network| may be A + R * |network|; default: 1e-4, but a PSNR of "
        "50 dB for float16 and 40 dB for bfloat16",
    )
    parser.add_argument("--rtol", type=float, metavar="R", help="default: 1e-4")


def _fixed_size(text: str) -> ShapeRange:
    width, height = size(text)
    shape = (1, height, width)
    return ShapeRange(shape, shape, shape)


def _export(arguments: argparse.Namespace) -> None:
    _check_flags(arguments)
    source, target = arguments.checkpoint, arguments.output
    if _format(arguments) == "ncnn":
        with parent_made(target):
            return _export_ncnn(arguments)
    options = ExportOptions(
        dynamic=arguments.static is None,
        shapes=arguments.static or ShapeRange(),
        opset=arguments.opset,
        precision=arguments.precision,
        float32_io=arguments.io == "float32",
        license=arguments.license,
        atol=arguments.atol,
        rtol=arguments.rtol,
        verify=arguments.verify,
    )
    reading = checkpoint_options(arguments)
    if options.precision != "int8":
        return export(source, target, reading, options)
    with parent_made(target):
        done, checkpoint = _export_int8(arguments, reading, options)
    _print_export(checkpoint, target, options, done)


def _export_int8(
    arguments: argparse.Namespace, reading: CheckpointOptions, options: ExportOptions
) -> tuple[OnnxExport, Checkpoint]:
    target = arguments.output
    check_export(target)
    checkpoint = load_checkpoint(find_model(arguments.checkpoint), reading)
    # Needs pyvips, which other exports do without.
    from aethernet.pictures.calibration import calibration_pictures

    pictures = calibration_pictures(
        arguments.calibrate, checkpoint.in_chans, options.fixed_size
    )
    usual = MIN_PSNR["int8"]
    min_psnr = usual if arguments.min_psnr is None else arguments.min_psnr
    done = export_int8(checkpoint, target, pictures, options, min_psnr)
    return done, checkpoint


def _format(arguments: argparse.Namespace) -> str:
    """The format that --format names, or else the suffix of the output."""
    if arguments.format:
        return arguments.format
    suffix = arguments.output.suffix.lower()
    for name, its_suffix in FORMATS.items():
        if suffix == its_suffix:
            return name
    known = " nor ".join(FORMATS.values())
    raise AetherError(
        f"Cannot be written: the suffix is neither {known}.", arguments.output
    )


def _export_ncnn(arguments: argparse.Namespace) -> None:
    target = arguments.output
    check_ncnn_target(target)
    options = NcnnOptions(
        arguments.precision, arguments.atol, arguments.rtol, arguments.verify
    )
    reading = checkpoint_options(arguments)
    checkpoint = load_checkpoint(find_model(arguments.checkpoint), reading)
    done = export_ncnn(checkpoint, target, options)
    _print_source(checkpoint)
    _print_ncnn(target, options, done)


def _print_ncnn(target: Path, options: NcnnOptions, done: NcnnExport) -> None:
    by = done.library or "The files computed with NumPy"
    print_differences(f"{by} against {done.reference}", done.differences)
    if done.library is None:
        print("The files were not run in ncnn. Install it to check that, too:")
        print("python -m pip install ncnn")
    weights = target.with_suffix(".bin")
    print(f"Wrote {target} and {weights} (ncnn, {options.precision} weights).")


def _check_flags(arguments: argparse.Namespace) -> None:
    """Check that the flags fit the format and the precision.

    Raises:
        AetherError: when they do not.
    """
    ncnn = _format(arguments) == "ncnn"
    for flag, value in (
        ("--opset", arguments.opset),
        ("--license", arguments.license),
        ("--static", arguments.static),
        ("--io", arguments.io),
    ):
        if ncnn and value is not None:
            raise AetherError(f"{flag} does not apply to ncnn.")
    if ncnn and arguments.precision not in NCNN_PRECISIONS:
        known = " and ".join(NCNN_PRECISIONS)
        raise AetherError(f"ncnn has {known} weights, no {arguments.precision}.")
    int8 = arguments.precision == "int8"
    for flag, value, applies in (
        ("--calibrate", arguments.calibrate, int8),
        ("--min-psnr", arguments.min_psnr, int8),
        ("--atol", arguments.atol, not int8),
        ("--rtol", arguments.rtol, not int8),
    ):
        if value is not None and not applies:
            raise AetherError(f"{flag} does not apply to {arguments.precision}.")
    if int8 and arguments.calibrate is None:
        raise AetherError(
            "int8 needs --calibrate FOLDER.",
            hint="The folder holds pictures like those the model will see.",
        )


def export(
    source: Path, target: Path, reading: CheckpointOptions, options: ExportOptions
) -> None:
    """Write a checkpoint as an ONNX file, and print what was verified.

    The folder of `target` is made if it is missing.

    Args:
        source: a path, or the name of a model that ships.
        target: `.onnx`.
        reading: how `source` is read, and where the result is checked.
        options: as for `export_onnx`.
    """
    with parent_made(target):
        check_export(target)
        checkpoint = load_checkpoint(find_model(source), reading)
        done = export_onnx(checkpoint, target, options)
    _print_export(checkpoint, target, options, done)


def _print_export(
    source: Checkpoint, target: Path, options: ExportOptions, done: OnnxExport
) -> None:
    _print_source(source)
    print_differences(f"ONNX Runtime against {done.reference}", done.differences)
    print(f"Wrote {target} (opset {done.opset}, {options.precision}).")
    print(f"To build a TensorRT engine from it:\n{done.trtexec}")


def _print_source(source: Checkpoint) -> None:
    print_source(source)
    if source.form == "training":
        print("It is in training form; it was fused for the export.")
    print_img_range(source)
