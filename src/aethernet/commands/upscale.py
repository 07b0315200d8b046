"""`aethernet upscale`: upscale pictures, folders of them, or a video."""

import argparse
import logging
from pathlib import Path

from aethernet.commands.model_flags import add_runtime, add_threads, add_values
from aethernet.commands.values import (
    finite,
    not_negative,
    positive,
    quality,
    raw_format,
    seconds,
)
from aethernet.devices import limit_threads
from aethernet.video.encode import CODECS


def define(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Upscale pictures, folders of pictures, or a video. Pictures can be PNG, JPEG, "
        "WebP, TIFF, AVIF, BMP or JPEG XL, and GIF or HEIC as input. Folders are "
        "searched with all folders in them. Gray stays gray, 16 bits stay 16 bits, and "
        "alpha is upscaled too. Animations stay animated, or become videos. EXIF "
        "orientation is applied; colour profile and metadata are kept, or a warning "
        "names what the format cannot hold. "
        "Outputs are written completely or not at all, and existing ones are skipped, "
        "so running the same command again continues an interrupted run."
    )
    parser.epilog = (
        "examples: aethernet upscale photo.jpg -o photo_2x.png; aethernet upscale "
        "scans -o scans_2x --format webp; aethernet upscale clip.mp4 -o clip_2x.mkv"
    )
    parser.add_argument(
        "input",
        nargs="+",
        metavar="IN",
        help="pictures, folders, patterns such as 'scans/*.tif', one video, or - for "
        "standard input (a picture, or video frames as y4m)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="output file; its suffix chooses the format, and an existing picture is "
        "replaced. For several inputs: output folder. - is standard output. Default: "
        "new files beside the inputs, e.g. photo_2x.jpg",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="M",
        help="a .safetensors, .pth, .onnx or .engine file, or a name from `aethernet "
        "models`; default: 2x-small, or 4x-small for a --scale above 2",
    )
    _define_size(parser.add_argument_group("size of the result"))
    _define_files(parser.add_argument_group("files"))
    _define_running(parser.add_argument_group("running"))
    _define_video(parser.add_argument_group("video (needs the extra `video`)"))
    parser.set_defaults(job=upscale)


def _define_size(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--scale",
        type=positive(float),
        metavar="S",
        help="factor for width and height, e.g. 3 or 1.5. The model runs once, or "
        "twice if that is not enough; then Lanczos resamples to the exact size. "
        "Default: the model's scale",
    )
    for side in ("width", "height"):
        group.add_argument(
            f"--{side}",
            type=positive(int),
            metavar="PX",
            help=f"largest {side} in pixels; the aspect ratio is kept",
        )
    group.add_argument(
        "--max-mp",
        type=positive(float),
        metavar="MP",
        help="largest size in megapixels",
    )


def _define_files(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--format",
        metavar="EXT",
        help="format of all outputs: png, jpg, webp, tif, avif, bmp or jxl; default: "
        "that of each input, and png on standard output",
    )
    group.add_argument(
        "--quality",
        type=quality,
        metavar="Q",
        help="1 to 100 for JPEG, WebP, AVIF and JPEG XL, or `lossless`, not for JPEG; "
        "default: 95, and 90 for AVIF",
    )
    group.add_argument(
        "--alpha",
        choices=("network", "bicubic"),
        default="network",
        help="method that upscales transparency; default: network",
    )
    group.add_argument(
        "--suffix",
        metavar="TEXT",
        help="text added to the names of outputs, e.g. _2x; default: none in an output "
        "folder, the scale beside the inputs",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing outputs instead of skipping them",
    )
    group.add_argument(
        "--limit",
        type=positive(float),
        default=500.0,
        metavar="MP",
        help="refuse pictures of more megapixels than this; default: 500",
    )


def _define_running(group: "argparse._ArgumentGroup") -> None:
    add_runtime(group)
    add_values(group)
    add_threads(group)
    group.add_argument(
        "--tile",
        type=not_negative,
        metavar="PX",
        help="side of the tiles, in input pixels, that the model upscales one by one; "
        "0: the whole picture at once; default: as large as memory allows",
    )
    group.add_argument(
        "--context",
        type=not_negative,
        metavar="PX",
        help="pixels around each tile that the model also sees; default: 16, with no "
        "visible seams (docs/upscaling.md)",
    )
    group.add_argument(
        "--cluster",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="upscale a folder (also s3://..) on a Ray cluster; without an address, on "
        "a cluster that is started on this machine (needs the extra `cluster`)",
    )
    amount = group.add_mutually_exclusive_group()
    amount.add_argument("--quiet", action="store_true", help="print only errors")
    amount.add_argument(
        "--verbose",
        action="store_true",
        help="also print how much of the time the network ran, and the traceback of an "
        "unexpected error",
    )
    group.add_argument(
        "--json", action="store_true", help="print a line of JSON for each picture"
    )


def _define_video(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--codec",
        choices=tuple(CODECS),
        help="default: libx264 for 8 bits, libx265 for more, libsvtav1 in .webm; for "
        "transparency libvpx-vp9 or ffv1, prores_ks in .mov",
    )
    group.add_argument(
        "--crf",
        type=finite,
        help="constant rate factor; lower is better; default: the codec's",
    )
    group.add_argument(
        "--pixel-format", metavar="F", help="e.g. yuv420p10le; default: the input's"
    )
    group.add_argument(
        "--preview",
        type=seconds,
        metavar="TIME",
        help="upscale only a part of this length, e.g. 5s, from --start or else from "
        "the middle",
    )
    group.add_argument(
        "--start",
        type=seconds,
        metavar="TIME",
        help="where to start, e.g. 90, 1:30 or 0:01:30.5",
    )
    group.add_argument("--end", type=seconds, metavar="TIME", help="where to stop")
    group.add_argument(
        "--raw",
        type=raw_format,
        metavar="WxH",
        help="standard input is raw RGB frames of this size, and so is the output; "
        "WxH:48 for 16 bits per value; y4m needs no flag",
    )


def upscale(arguments: argparse.Namespace) -> int:
    """Job: everything `aethernet upscale` does; its exit code."""
    # Imported here because they import NumPy, libvips and torch.
    from aethernet.commands.upscale_request import request_from
    from aethernet.commands.upscale_run import run_upscale

    # Warnings of libvips are harmless, or repeated by an error message of ours.
    logging.getLogger("pyvips").setLevel(logging.ERROR)
    ours = logging.getLogger("aethernet")
    level = ours.level
    if arguments.quiet:
        ours.setLevel(logging.ERROR)
    if arguments.threads:
        limit_threads(arguments.threads)
    try:
        return run_upscale(request_from(arguments))
    finally:
        ours.setLevel(level)
