"""The command `aethernet`: parses words, calls the rooms, prints what they found.

The jobs `fuse` and `export` take parsed arguments, so that the two documented scripts
run them with flags of other names.
"""

import argparse
import io
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aethernet
from aethernet import quality_command, release_command, upscale_command
from aethernet.aether_core import UPSAMPLE_FACTORS, VARIANTS
from aethernet.checkpoint import DTYPES, WRAPPERS
from aethernet.errors import AetherError
from aethernet.onnx_export import (
    BFLOAT16_OPSET,
    DEFAULT_OPSET,
    MIN_PSNR,
    OnnxExport,
    ShapeRange,
    export_onnx,
)
from aethernet.progress import in_columns, printable
from aethernet.runtimes import PRECISIONS, RUNTIMES, open_model
from aethernet.runtimes.pytorch import choose_device, has_bfloat16_units
from aethernet.shipped import find_model, shipped_model, shipped_models

if TYPE_CHECKING:
    from aethernet.checkpoint import Checkpoint
    from aethernet.compare import Crop
    from aethernet.onnx_export import OnnxExport
    from aethernet.runtimes import Model
    from aethernet.verification import Difference

MODEL_TYPES = ("aether", *VARIANTS)
SCALES = tuple(UPSAMPLE_FACTORS)

HELP_CHECKPOINT = "AetherNet checkpoint: .safetensors, .pth, .pt or .ckpt, either form"
HELP_MODEL_TYPE = "stop unless the weights are of this variant; default: read from them"
HELP_SCALE = "stop unless the weights are of this scale; default: read from them"
HELP_PARAM_KEY = (
    "which state dict of the file to take, e.g. params or net_g.params; default: the "
    "first there is of " + ", ".join(WRAPPERS)
)
HELP_VERIFY_DEVICE = "where PyTorch checks the result: cpu (default), cuda, cuda:1, .."


def main(words: Sequence[str] | None = None) -> int:
    """Run the command with these words (default: `sys.argv`); return its exit code."""
    arguments = _parser().parse_args(words)
    arguments.words = sys.argv[1:] if words is None else [*words]
    return exit_code(arguments.job, arguments)


def exit_code(
    job: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace
) -> int:
    """Run a job: 0 when it ends well; 1, and a sentence on stderr, when it does not.

    A job that goes on where a part of it fails says so itself, and returns 1.

    What the rooms log on the way goes to stderr where somebody watches it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cleans up on the way
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console of few letters must not stop a job over a file's name.
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr and sys.stderr.isatty():
        watched = logging.getLogger("aethernet")
        watched.setLevel(logging.INFO)
        if not watched.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(_PlainLines())
            watched.addHandler(handler)
    try:
        code = job(arguments) or 0
        if sys.stdout:
            sys.stdout.flush()
    except AetherError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except MemoryError:
        print("error: out of memory.", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # of standard output: files have sentences of their own
        print(f"error: {printable(str(error))}.", file=sys.stderr)
        if sys.stdout:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing is left half written.", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells have it
    return code


class _PlainLines(logging.Formatter):
    """Of what is logged, names of files among it, only what is text on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def info(arguments: argparse.Namespace) -> None:
    """Job: facts about `file`."""
    from aethernet.info import describe_file

    facts = describe_file(find_model(arguments.file), arguments.param_key)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {printable(value)}")


def fuse(arguments: argparse.Namespace) -> None:
    """Job: `checkpoint` to `output`; the rest as `fusion.fuse_checkpoint` has it."""
    from aethernet.fusion import fuse_checkpoint

    result = fuse_checkpoint(
        find_model(arguments.checkpoint),
        arguments.output,
        model_type=arguments.model_type,
        scale=arguments.scale,
        param_key=arguments.param_key,
        dtype=DTYPES[arguments.dtype],
        device=choose_device(arguments.device),
    )
    _print_source(result.source)
    if result.was_fused:
        print("It is in fused form already: written again with bare keys and metadata.")
    img_range = result.source.hyperparameters.get("img_range", 1.0)
    if img_range != 1:
        print(f"img_range is {img_range}: spandrel cannot know, and takes it as 1.")
    _print_differences("Written file against the source", result.differences)
    print(f"Wrote {arguments.output} (fused form, {arguments.dtype}).")


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
    from aethernet.quantization import export_int8

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
    _print_source(result.source)
    if result.source.form == "training":
        print("It is in training form: fused for the export.")
    _print_differences("ONNX Runtime against PyTorch float32", result.differences)
    print(f"Wrote {arguments.output} (opset {result.opset}, {arguments.precision}).")
    print(f"To build a TensorRT engine of it:\n{result.trtexec}")


def engine(arguments: argparse.Namespace) -> None:
    """Job: `model` to `output` (may be None), for the sizes asked for, if any are."""
    from aethernet.engine_header import SUFFIX, header_path
    from aethernet.tensorrt import build_engine, shape_range

    model = find_model(arguments.model)
    # Of a model that ships it goes into the current folder.
    beside = model if model == arguments.model else Path(model.name)
    target = arguments.output or beside.with_suffix(SUFFIX)
    result = build_engine(
        model,
        target,
        shape_range(arguments.min, arguments.opt, arguments.max, arguments.batch),
        arguments.compute_capability,
    )
    header = result.header
    low, typical, high = ("x".join(map(str, shape)) for shape in header.profile)
    print(f"Built with {header.library_title} for compute capability {header.gpus}:")
    print(f"{header.scale}x, {header.precision}, {header.channels} channels.")
    print(f"It takes inputs of {low} to {high}, and is tuned for {typical}.")
    if header.activation_bytes is not None:
        size = header.activation_bytes / 2**30
        print(f"The largest takes {size:.1f} GiB of GPU memory.")
    if result.difference:
        print(f"Run here against ONNX Runtime: {result.difference}")
    else:
        print("Its sizes and types are checked; it has not been run here.")
    print(f"Wrote {target} and {header_path(target).name}, which belong together.")


def bench(arguments: argparse.Namespace) -> None:
    """Job: compare `variants`, `model`, `peers`; print, and write `json`, `plot`."""
    from aethernet.bench.contenders import Plan
    from aethernet.bench.report import as_table, check_targets, draw, write_json
    from aethernet.bench.rounds import run_benchmark
    from aethernet.checkpoint import load_checkpoint

    check_targets(arguments.json, arguments.plot)
    device = choose_device(arguments.device)
    runtimes, precisions = arguments.runtimes, arguments.precisions
    if runtimes is None:
        gpu = device.type == "cuda"
        runtimes = [name for name in RUNTIMES if gpu or name != "tensorrt"]
    if precisions is None:
        # A processor without units for a precision takes many times as long in it.
        precisions = PRECISIONS
        if device.type == "cpu":
            precisions = ("float32", "bfloat16")[: 1 + has_bfloat16_units()]
    scale, model = arguments.scale, arguments.model
    if model:
        model = find_model(model)
    if scale is None:
        scale = load_checkpoint(model).scale if model else 2
    _, height, width = arguments.size.typical
    plan = Plan(
        scale=scale,
        width=width,
        height=height,
        variants=tuple(arguments.variants),
        peers=tuple(arguments.peers),
        runtimes=tuple(runtimes),
        precisions=tuple(precisions),
        model=model,
        runs=arguments.runs,
        seconds=arguments.seconds,
        device=str(device),
        memory=arguments.memory,
    )
    report = run_benchmark(plan)
    print(as_table(report))
    if arguments.json:
        write_json(report, arguments.json, shlex.join(["aethernet", *arguments.words]))
    if arguments.plot:
        draw(report, arguments.plot)


def compare(arguments: argparse.Namespace) -> None:
    """Job: a page about `lr` with `model` (may be None) and, if known, `hr`."""
    from aethernet.compare import LARGE_PAGE, find_pairs, model_names, write_report

    logging.getLogger("pyvips").setLevel(logging.ERROR)
    pairs = find_pairs(arguments.lr, arguments.hr)
    paths = _models(arguments)
    load = _model_loader(arguments)
    models = {
        name: load(path) for name, path in zip(model_names(paths), paths, strict=True)
    }
    report = write_report(pairs, arguments.output, models, arguments.crop)
    width = max(map(len, report.means), default=0)
    for name, figures in report.means.items():
        print(f"{printable(name):<{width}}  {figures}")
    count = f"{len(pairs)} picture{'s' * (len(pairs) != 1)}"
    print(f"Wrote {arguments.output} ({count}, {report.size / 1e6:.1f} MB).")
    if report.size > LARGE_PAGE:
        print(
            "A page of this size is slow to open: compare fewer pictures, or a part of "
            "each (--crop)."
        )


def ui(arguments: argparse.Namespace) -> None:
    """Job: a page on this computer that upscales with `model` (may be None)."""
    from aethernet.ui import find_models, serve

    logging.getLogger("pyvips").setLevel(logging.ERROR)
    serve(
        find_models(_models(arguments)),
        _model_loader(arguments),
        arguments.port,
        open_browser=arguments.browser,
    )


def _models(arguments: argparse.Namespace) -> list[Path]:
    return [*map(find_model, arguments.model or [])] or [shipped_model()]


def models(arguments: argparse.Namespace) -> None:
    """Job: what ships, as a table or, with `json`, for programs."""
    found = shipped_models()
    if arguments.json:
        print(json.dumps([vars(m) for m in found], default=str, indent=1))
        return
    sets = [*dict.fromkeys(name for model in found for name in model.psnr)]
    header = ("name", "variant", "scale", "form", "precision", "size")
    rows = [(*header, *(f"{name} dB" for name in sets), "licence", "path")]
    for model in found:
        figures = [model.psnr.get(name) for name in sets]
        said = (
            *(model.name, model.variant, f"{model.scale}x", model.form),
            *(model.precision, f"{model.size / 1e6:.1f} MB"),
            *("-" if figure is None else f"{figure:.2f}" for figure in figures),
            *(model.license or "-", str(model.path)),
        )
        rows.append(said)
    for line in in_columns(rows):
        print(printable(line))


def _model_loader(arguments: argparse.Namespace) -> "Callable[[Path], Model]":
    """What opens a model file with `runtime`, `device`, `precision`, for any size."""
    from aethernet.tiling import Tiled

    words = (arguments.runtime, arguments.device, arguments.precision)
    return lambda path: Tiled(open_model(path, *words))


def _print_source(checkpoint: "Checkpoint") -> None:
    wrapper = f", under {checkpoint.wrapper!r}" if checkpoint.wrapper else ""
    print(
        f"Read {checkpoint.path}: {checkpoint.variant or 'AetherNet'} "
        f"{checkpoint.scale}x, {checkpoint.form} form{wrapper}."
    )
    if checkpoint.other_wrappers:
        others = ", ".join(map(repr, checkpoint.other_wrappers))
        print(f"The file also has {others}, which the parameter key can choose.")


def _print_differences(title: str, differences: "dict[str, Difference]") -> None:
    print(f"{title}:")
    width = max(map(len, differences))
    for name, difference in differences.items():
        print(f"  {printable(name):<{width}}  {difference}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aethernet",
        description="Upscale pictures with AetherNet; inspect, fuse, export models.",
    )
    parser.add_argument("--version", action="version", version=aethernet.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name, summary, define in (
        ("upscale", "make pictures or a video larger", upscale_command.define),
        ("models", "list the models that ship", _define_models),
        ("info", "say what a model file is", _define_info),
        ("fuse", "fuse a trained checkpoint", _define_fuse),
        ("export", "export a checkpoint to ONNX", _define_export),
        ("engine", "build a TensorRT engine of an ONNX file", _define_engine),
        ("bench", "compare speed with other networks", _define_bench),
        ("compare", "write a page that shows models side by side", _define_compare),
        ("release", "make a folder to publish a model", release_command.define),
        ("quality", "measure models on HR pictures", quality_command.define),
        ("ui", "upscale in the browser, on this computer", _define_ui),
    ):
        define(commands.add_parser(name, help=summary))
    return parser


def _define_models(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List the models that ship with AetherNet: what --model takes by name in every "
        "command, and where the files lie. dB is PSNR-Y, as the model's card says."
    )
    parser.epilog = "example: aethernet upscale photo.jpg --model 2x-small-fp16"
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(job=models)


def _define_info(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Say what a checkpoint or an ONNX file is: form, variant, scale, size, cost, "
        "wrapper and metadata."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint or .onnx")
    parser.add_argument("--param-key", metavar="KEY", help=HELP_PARAM_KEY)
    parser.set_defaults(job=info)


def _define_fuse(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fuse a trained checkpoint: both depthwise kernels of a block become one. The "
        "written file is read again and compared with the training form; a file that "
        "differs is not kept."
    )
    parser.epilog = "example: aethernet fuse net_g_100000.pth -o my_2x.safetensors"
    _add_conversion(parser, ".safetensors or .pth")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="float32", help="default: float32"
    )
    parser.set_defaults(job=fuse)


def _define_export(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Export a checkpoint to ONNX, fused on the way. The file is run in ONNX "
        "Runtime and compared with PyTorch; a file that differs is not kept."
    )
    parser.epilog = (
        "example: aethernet export my_2x.safetensors -o my_2x.onnx --precision float16"
    )
    _add_conversion(parser, ".onnx")
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
        type=_static_size,
        dest="shapes",
        metavar="WxH",
        help="one fixed LR size, e.g. 640x360; default: batch, height, width are free",
    )
    parser.set_defaults(job=_export_command, in_chans=None)


def _define_engine(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Build a TensorRT engine of an ONNX file: with TensorRT where it is installed "
        "and there is a GPU, else with TensorRT for RTX, which builds without one. The "
        "engine computes in the precision of the file, and takes the sizes from --min "
        "to --max only. A file of fixed size takes no size flags."
    )
    parser.epilog = (
        "example: aethernet engine my_2x.onnx --min 32x32 --opt 540x960 --max 1080x1920"
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="an ONNX file")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT.engine",
        help="a plain plan, and OUT.engine.json beside it, which says what it is; "
        "default: MODEL.engine",
    )
    defaults = ShapeRange()
    for flag, use, (_, height, width) in (
        ("--min", "smallest", defaults.minimum),
        ("--opt", "typical", defaults.typical),
        ("--max", "largest", defaults.maximum),
    ):
        parser.add_argument(
            flag,
            type=_height_x_width,
            metavar="HxW",
            help=f"{use} LR image, height first; default: {height}x{width}, or what "
            "the other two allow",
        )
    parser.add_argument(
        "--batch",
        type=_batch_sizes,
        metavar="N",
        help="images at a time, or MIN,OPT,MAX; default: 1",
    )
    parser.add_argument(
        "--compute-capability",
        nargs="+",
        default=(),
        metavar="X.Y",
        help="GPUs that TensorRT for RTX builds for, e.g. 7.5 for Turing; default: 8.6 "
        "(RTX 30) and newer",
    )
    parser.set_defaults(job=engine)


def _height_x_width(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"expected HxW, e.g. 360x640, not {text!r}")
    return int(height), int(width)


def _batch_sizes(text: str) -> tuple[int, int, int]:
    numbers = text.split(",")
    if len(numbers) not in (1, 3) or not all(n.isdecimal() for n in numbers):
        raise argparse.ArgumentTypeError(f"expected 4 or 1,2,4, not {text!r}")
    low, typical, high = map(int, numbers * (3 // len(numbers)))
    return low, typical, high


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


def _add_conversion(parser: argparse.ArgumentParser, written: str) -> None:
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help=HELP_CHECKPOINT
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help=written
    )
    parser.add_argument("--model-type", choices=MODEL_TYPES, help=HELP_MODEL_TYPE)
    parser.add_argument("--scale", type=int, choices=SCALES, help=HELP_SCALE)
    parser.add_argument("--param-key", metavar="KEY", help=HELP_PARAM_KEY)
    parser.add_argument("--device", default="cpu", help=HELP_VERIFY_DEVICE)


def _define_bench(parser: argparse.ArgumentParser) -> None:
    from aethernet.bench.peers import PEERS

    parser.description = (
        "Time AetherNet in all its forms, and other networks of the same scale on the "
        "same input, side by side: each is loaded, then all take turns. Also measures "
        "memory and the share of the machine's arithmetic that each one reaches."
    )
    parser.epilog = (
        "example: aethernet bench --model my_2x.safetensors --variants --peers compact "
        "--json bench.json --plot bench.png"
    )
    parser.add_argument(
        "--scale", type=int, choices=SCALES, help="default: the model's, else 2"
    )
    parser.add_argument(
        "--size",
        type=_static_size,
        default="128x128",
        metavar="WxH",
        help="of the LR image; default: 128x128",
    )
    names: tuple[tuple[str, Sequence[str], Sequence[str] | None, str], ...] = (
        ("--variants", tuple(VARIANTS), tuple(VARIANTS), "all; none after it: none"),
        ("--peers", tuple(PEERS), tuple(PEERS), "all; none after it: none"),
        ("--runtimes", tuple(RUNTIMES), None, "all that suit the device"),
        ("--precisions", PRECISIONS, None, "all, on a CPU those it is made for"),
    )
    for flag, choices, default, said in names:
        parser.add_argument(
            flag, nargs="*", choices=choices, default=default, help=f"default: {said}"
        )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="CHECKPOINT",
        help="compare this one too, also with what --runtime auto makes of it",
    )
    parser.add_argument(
        "--runs", type=int, default=10, metavar="N", help="rounds, at most; default: 10"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=30,
        metavar="S",
        help="a contender that has run for so long leaves later rounds; default: 30",
    )
    parser.add_argument(
        "--device", default="auto", help="default: a GPU where there is one"
    )
    parser.add_argument(
        "--no-memory",
        dest="memory",
        action="store_false",
        help="do not measure memory, which takes a process for each contender",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw speed and work, .png or .svg"
    )
    parser.set_defaults(job=bench)


def _static_size(text: str) -> ShapeRange:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"expected WxH, e.g. 640x360, not {text!r}")
    size = (1, int(height), int(width))
    return ShapeRange(size, size, size)


def _define_compare(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write one HTML file that shows bicubic and models side by side, with a slider "
        "and zoom, and PSNR-Y and SSIM-Y where the HR picture is known. It holds the "
        "pictures itself and opens without internet."
    )
    parser.epilog = (
        "examples: aethernet compare photo.png -o report.html; aethernet compare LR "
        "--hr HR -o report.html --model 2x_mine.safetensors 2x_other.onnx"
    )
    parser.add_argument(
        "lr",
        nargs="+",
        type=Path,
        metavar="LR",
        help="pictures to upscale, or folders of them",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="the .html file"
    )
    parser.add_argument(
        "--hr",
        nargs="+",
        type=Path,
        default=(),
        metavar="HR",
        help="what they should become: as many pictures in the same order, or a folder "
        "with the same names",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        type=Path,
        metavar="M",
        help="of one scale; .safetensors, .pth, .onnx or .engine, or names that "
        "`aethernet models` lists; default: 2x-small",
    )
    parser.add_argument(
        "--crop",
        type=_crop,
        metavar="X,Y,W,H",
        help="compare this part of each LR picture: left, top, width, height in pixels",
    )
    upscale_command.add_runtime(parser)
    parser.set_defaults(job=compare)


def _crop(text: str) -> "Crop":
    from aethernet.compare import Crop

    numbers = text.split(",")
    if len(numbers) != 4 or not all(n.isdecimal() for n in numbers):
        raise argparse.ArgumentTypeError(f"expected X,Y,W,H, not {text!r}")
    crop = Crop(*map(int, numbers))
    if not (crop.width and crop.height):
        raise argparse.ArgumentTypeError(f"{text!r} holds no pixel")
    return crop


def _define_ui(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Open a page in the browser: drop a picture, choose a model, compare, "
        "download. It is served on this computer for this computer only (127.0.0.1). "
        "Needs the extra `ui`."
    )
    parser.epilog = "example: aethernet ui --model models"
    parser.add_argument(
        "--model",
        nargs="+",
        type=Path,
        metavar="M",
        help="to choose from: .safetensors, .pth, .onnx or .engine files, or folders "
        "of them, or names that `aethernet models` lists; default: 2x-small",
    )
    parser.add_argument(
        "--port",
        type=_port,
        metavar="N",
        help="default: the first free one from 7860 on",
    )
    parser.add_argument(
        "--no-browser",
        dest="browser",
        action="store_false",
        help="print the address, and leave opening it to you",
    )
    upscale_command.add_runtime(parser)
    parser.set_defaults(job=ui)


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"expected 1 to 65535, not {text!r}")
    return int(text)
