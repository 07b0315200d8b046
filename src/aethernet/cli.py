"""The command `aethernet`: parses words, calls the rooms, prints what they found.

The jobs `fuse` and `export` take parsed arguments, so that the two documented scripts
run them with flags of other names.
"""

import argparse
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import aethernet
from aethernet.aether_core import UPSAMPLE_FACTORS, VARIANTS
from aethernet.checkpoint import DTYPES, WRAPPERS
from aethernet.errors import AetherError
from aethernet.onnx_export import DEFAULT_OPSET, ShapeRange, export_onnx
from aethernet.runtimes import RUNTIMES, load_model
from aethernet.runtimes.pytorch import choose_device

if TYPE_CHECKING:
    from aethernet.checkpoint import Checkpoint
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
    return exit_code(arguments.job, arguments)


def exit_code(
    job: Callable[[argparse.Namespace], None], arguments: argparse.Namespace
) -> int:
    """Run a job: 0 when it ends well; 1, and a sentence on stderr, when it does not.

    What the rooms log on the way goes to stderr where somebody watches it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cleans up on the way
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console of few letters must not stop a job over a file's name.
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr and sys.stderr.isatty():
        watched = logging.getLogger("aethernet")
        watched.addHandler(logging.StreamHandler())
        watched.setLevel(logging.INFO)
    try:
        job(arguments)
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
    except KeyboardInterrupt:
        print("error: interrupted; nothing is left half written.", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells have it
    return 0


def printable(text: str) -> str:
    """One line of at most 1,000 characters, whatever a file put into it."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], text)
    return line if len(line) <= 1000 else f"{line[:1000]}.."


def upscale(arguments: argparse.Namespace) -> None:
    """Job: `input` to `output`, with `model`, `runtime` (all may be None), `device`."""
    from aethernet.upscale import shipped_model, upscale_file

    # What libvips warns of on the way is either in the error's sentence or harmless.
    logging.getLogger("pyvips").setLevel(logging.ERROR)
    path = arguments.model or shipped_model()
    model = load_model(path, arguments.runtime, arguments.device)
    done = upscale_file(arguments.input, arguments.output, model)
    before, after = ("x".join(map(str, s)) for s in (done.size_before, done.size_after))
    print(f"{arguments.input} ({before}) -> {done.target} ({after})")
    print(f"with {path.name}: {model.describe()}")


def info(arguments: argparse.Namespace) -> None:
    """Job: facts about `file`."""
    from aethernet.info import describe_file

    facts = describe_file(arguments.file, arguments.param_key)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {printable(value)}")


def fuse(arguments: argparse.Namespace) -> None:
    """Job: `checkpoint` to `output`; the rest as `fusion.fuse_checkpoint` has it."""
    from aethernet.fusion import fuse_checkpoint

    result = fuse_checkpoint(
        arguments.checkpoint,
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
        arguments.checkpoint,
        arguments.output,
        model_type=arguments.model_type,
        scale=arguments.scale,
        in_chans=arguments.in_chans,
        param_key=arguments.param_key,
        dynamic=arguments.dynamic,
        shapes=arguments.shapes,
        opset=arguments.opset,
        half=arguments.half,
        atol=arguments.atol,
        rtol=arguments.rtol,
        device=choose_device(arguments.device),
    )
    _print_source(result.source)
    if result.source.form == "training":
        print("It is in training form: fused for the export.")
    _print_differences("ONNX Runtime against PyTorch float32", result.differences)
    precision = "float16" if arguments.half else "float32"
    print(f"Wrote {arguments.output} (opset {arguments.opset}, {precision}).")
    print(f"To build a TensorRT engine of it:\n{result.trtexec}")


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
        print(f"  {name:<{width}}  {difference}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aethernet",
        description="Upscale pictures with AetherNet; inspect, fuse, export models.",
    )
    parser.add_argument("--version", action="version", version=aethernet.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name, summary, define in (
        ("upscale", "make a picture larger", _define_upscale),
        ("info", "say what a model file is", _define_info),
        ("fuse", "fuse a trained checkpoint", _define_fuse),
        ("export", "export a checkpoint to ONNX", _define_export),
    ):
        define(commands.add_parser(name, help=summary))
    return parser


def _define_upscale(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a picture larger. Gray stays gray, alpha is kept, 16-bit PNG stays "
        "16-bit; EXIF orientation is applied, the colour profile is kept."
    )
    parser.epilog = "example: aethernet upscale photo.jpg -o photo_2x.png"
    parser.add_argument("input", type=Path, metavar="IN", help="PNG, JPEG or WebP")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="its suffix chooses the format, an existing file is replaced; default: a "
        "new file beside IN, e.g. photo_2x.jpg",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="M",
        help="AetherNet .safetensors, .pth or .onnx; default: the shipped 2x model",
    )
    parser.add_argument(
        "--runtime",
        choices=tuple(RUNTIMES),
        help="what executes the model; default: the one for the model's file type",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, mps; default: a GPU where there is one",
    )
    parser.set_defaults(job=upscale)


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
    parser.epilog = "example: aethernet export my_2x.safetensors -o my_2x.onnx --fp16"
    _add_conversion(parser, ".onnx")
    add_export_limits(parser, "--opset")
    parser.add_argument(
        "--fp16",
        dest="half",
        action="store_true",
        help="float16 weights, input and output; LayerNorm stays in float32",
    )
    parser.add_argument(
        "--static",
        type=_static_size,
        dest="shapes",
        metavar="WxH",
        help="one fixed LR size, e.g. 640x360; default: batch, height, width are free",
    )
    parser.set_defaults(job=_export_command, in_chans=None)


def _export_command(arguments: argparse.Namespace) -> None:
    arguments.dynamic = arguments.shapes is None
    export(arguments)


def add_export_limits(parser: argparse.ArgumentParser, opset_flag: str) -> None:
    """Add the flags of an export that the command and the script share."""
    parser.add_argument(
        opset_flag,
        type=int,
        default=DEFAULT_OPSET,
        dest="opset",
        metavar="N",
        help=f"ONNX operator set, 17 or newer; default: {DEFAULT_OPSET}",
    )
    parser.add_argument(
        "--atol",
        type=float,
        metavar="A",
        help="|ONNX - PyTorch| may be A + R * |PyTorch|; default: 1e-4, and for fp16 "
        "files 50 dB PSNR instead",
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


def _static_size(text: str) -> ShapeRange:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"expected WxH, e.g. 640x360, not {text!r}")
    size = (1, int(height), int(width))
    return ShapeRange(size, size, size)
