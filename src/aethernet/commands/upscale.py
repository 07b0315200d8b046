"""The command `aethernet upscale`: its flags, and which job they ask for."""

import argparse
import logging
from pathlib import Path

from aethernet.commands.model_flags import add_runtime
from aethernet.commands.upscale_run import run_upscale
from aethernet.commands.values import finite, not_negative, positive, quality


def define(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.description = (
        "Make pictures or a video larger. Pictures: PNG, JPEG, WebP, TIFF, AVIF, BMP "
        "(and GIF to read); folders are searched through and through. Gray stays gray, "
        "16 bits stay 16 bits, alpha is upscaled too; EXIF orientation is applied, "
        "colour profile and metadata are kept. What is finished already is skipped, so "
        "the same command goes on where it was interrupted."
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
        "standard input (a picture, or y4m)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="a file, whose suffix chooses the format and which is replaced; for "
        "several inputs a folder; - for standard output; default: new files beside the "
        "inputs, e.g. photo_2x.jpg",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="M",
        help=".safetensors, .pth, .onnx or .engine, or a name that `aethernet models` "
        "lists; default: 2x-small",
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
        help="times the sides of the input, e.g. 3 or 1.5: the model runs, twice if "
        "once is not enough, then one resampling step (Lanczos); default: the model's",
    )
    for side in ("width", "height"):
        group.add_argument(
            f"--{side}", type=positive(int), metavar="PX", help="at most; keeps ratio"
        )
    group.add_argument(
        "--max-mp", type=positive(float), metavar="MP", help="megapixels at most"
    )


def _define_files(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--format",
        metavar="EXT",
        help="of all outputs: png, jpg, webp, tif, avif, bmp; default: the input's, on "
        "standard output png",
    )
    group.add_argument(
        "--quality",
        type=quality,
        metavar="Q",
        help="1 to 100 for JPEG, WebP, AVIF, or `lossless` (WebP, AVIF); default: 95, "
        "95, 90",
    )
    group.add_argument(
        "--alpha",
        choices=("network", "bicubic"),
        default="network",
        help="what upscales transparency; default: network",
    )
    group.add_argument(
        "--suffix",
        metavar="TEXT",
        help="added to the names in a folder of outputs, e.g. _2x; default: none there",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="do again what is finished already"
    )
    group.add_argument(
        "--limit",
        type=positive(float),
        default=500.0,
        metavar="MP",
        help="refuse inputs of more megapixels; default: 500",
    )


def _define_running(group: "argparse._ArgumentGroup") -> None:
    add_runtime(group)
    group.add_argument(
        "--tile",
        type=not_negative,
        metavar="PX",
        help="input pixels along each side that the model makes at a time; 0: the "
        "whole picture; default: what memory allows",
    )
    group.add_argument(
        "--context",
        type=not_negative,
        metavar="PX",
        help="real pixels around a tile that the model sees too; default: 16, "
        "whose seams nobody sees (docs/upscaling.md)",
    )
    group.add_argument(
        "--cluster",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="spread the pictures of a folder (also s3://..) over a Ray cluster; "
        "without an address over this machine (needs the extra `cluster`)",
    )
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="print errors only")
    loudness.add_argument(
        "--verbose", action="store_true", help="say what happens, and how busy it was"
    )
    group.add_argument(
        "--json", action="store_true", help="print a line of JSON for each file"
    )


def _define_video(group: "argparse._ArgumentGroup") -> None:
    from aethernet.commands.values import raw_format, seconds
    from aethernet.video.encode import CODECS

    group.add_argument(
        "--codec",
        choices=tuple(CODECS),
        help="default: libx264 for 8 bits, libx265 for more, libsvtav1 in .webm",
    )
    group.add_argument(
        "--crf", type=finite, help="less is better; default: the codec's"
    )
    group.add_argument(
        "--pixel-format", metavar="F", help="e.g. yuv420p10le; default: the source's"
    )
    group.add_argument(
        "--preview", type=seconds, metavar="TIME", help="only so much, e.g. 5s"
    )
    group.add_argument(
        "--start", type=seconds, metavar="TIME", help="e.g. 90, 1:30 or 0:01:30.5"
    )
    group.add_argument("--end", type=seconds, metavar="TIME", help="likewise")
    group.add_argument(
        "--raw",
        type=raw_format,
        metavar="WxH",
        help="standard input is raw RGB frames of that size, as is the output; WxH:48 "
        "for 16 bits per value; y4m needs no flag",
    )


def upscale(arguments: argparse.Namespace) -> int:
    """Job: everything `aethernet upscale` does; its exit code."""
    # What libvips warns of on the way is either in the error's sentence or harmless.
    logging.getLogger("pyvips").setLevel(logging.ERROR)
    ours = logging.getLogger("aethernet")
    level = ours.level
    if arguments.quiet:
        ours.setLevel(logging.ERROR)
    try:
        return run_upscale(arguments)
    finally:
        ours.setLevel(level)
