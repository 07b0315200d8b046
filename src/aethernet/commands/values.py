"""Parsers of single flag values; each raises argparse.ArgumentTypeError."""

import argparse
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from aethernet.checkpoints.onnx import ShapeRange
from aethernet.video.y4m import RawFormat

if TYPE_CHECKING:
    from aethernet.quality.compare import Crop


def height_x_width(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"expected HxW, e.g. 360x640, not {text!r}")
    return int(height), int(width)


def batch_sizes(text: str) -> tuple[int, int, int]:
    numbers = text.split(",")
    if len(numbers) not in (1, 3) or not all(n.isdecimal() for n in numbers):
        raise argparse.ArgumentTypeError(f"expected 4 or 1,2,4, not {text!r}")
    low, typical, high = map(int, numbers * (3 // len(numbers)))
    return low, typical, high


def fixed_size(text: str) -> ShapeRange:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"expected WxH, e.g. 640x360, not {text!r}")
    size = (1, int(height), int(width))
    return ShapeRange(size, size, size)


def crop(text: str) -> "Crop":
    from aethernet.quality.compare import Crop

    numbers = text.split(",")
    if len(numbers) != 4 or not all(n.isdecimal() for n in numbers):
        raise argparse.ArgumentTypeError(f"expected X,Y,W,H, not {text!r}")
    crop = Crop(*map(int, numbers))
    if not (crop.width and crop.height):
        raise argparse.ArgumentTypeError(f"{text!r} holds no pixel")
    return crop


def port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"expected 1 to 65535, not {text!r}")
    return int(text)


LOSSLESS = "lossless"


def positive(kind: type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = kind(0)
        if not 0 < number < 1e9:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {what} above 0, not {text!r}")
        return number

    return parse


def finite(text: str) -> float:
    """A number as `argparse` wants it: neither NaN nor infinite."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, not {text!r}")
    return number


def not_negative(text: str) -> int:
    """Pixels of a flag, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected 0 or more pixels, not {text!r}")
    return int(text)


def quality(text: str) -> int | str:
    if text == LOSSLESS:
        return text
    if not (text.isdecimal() and 1 <= int(text) <= 100):
        raise argparse.ArgumentTypeError(
            f"expected 1 to 100, or lossless, not {text!r}"
        )
    return int(text)


def seconds(text: str) -> float:
    """A time as people write it: 90, 5s, 1:30 or 0:01:30.5.

    Raises:
        argparse.ArgumentTypeError: when it is none.
    """
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)s?", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"expected seconds or [h:]m:s, e.g. 90, 5s, 1:30 or 0:01:30.5, not {text!r}"
        )
    hours, minutes, rest = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest)


def raw_format(text: str) -> RawFormat:
    """WxH of raw RGB frames, 8 bits per value, or WxH:48 for 16.

    Raises:
        argparse.ArgumentTypeError: when it is none.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})(?::(24|48))?", text.lower())
    if match is None or not int(match[1]) or not int(match[2]):
        raise argparse.ArgumentTypeError(
            f"expected WxH, or WxH:48 for 16 bits per value, not {text!r}"
        )
    bits = 16 if match[3] == "48" else 8
    return RawFormat(int(match[1]), int(match[2]), bits)
