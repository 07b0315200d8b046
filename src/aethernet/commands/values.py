"""Parsers of flag values. Each raises `argparse.ArgumentTypeError`."""

import argparse
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aethernet.quality.compare import Region
    from aethernet.video.y4m import RawFormat

LOSSLESS = "lossless"


def size(text: str) -> tuple[int, int]:
    """Width and height in pixels, written WxH."""
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text.lower())
    width, height = map(int, match.groups()) if match else (0, 0)
    if not (width and height):
        raise argparse.ArgumentTypeError(f"expected WxH, e.g. 640x360, not {text!r}")
    return width, height


def batch_sizes(text: str) -> tuple[int, int, int]:
    """Smallest, typical and largest batch; one number stands for all three."""
    numbers = text.split(",")
    if len(numbers) not in (1, 3) or not all(n.isdecimal() for n in numbers):
        raise argparse.ArgumentTypeError(f"expected 4 or 1,2,4, not {text!r}")
    low, typical, high = map(int, numbers * (3 // len(numbers)))
    return low, typical, high


def crop(text: str) -> "Region":
    """A part of a picture: left, top, width and height in pixels, written X,Y,W,H."""
    from aethernet.quality.compare import Region

    numbers = text.split(",")
    if len(numbers) != 4 or not all(n.isdecimal() for n in numbers):
        raise argparse.ArgumentTypeError(f"expected X,Y,W,H, not {text!r}")
    region = Region(*map(int, numbers))
    if not (region.width and region.height):
        raise argparse.ArgumentTypeError(f"{text!r} contains no pixels")
    return region


def port(text: str) -> int:
    """The number of a TCP port."""
    if not (text.isdecimal() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"expected 1 to 65535, not {text!r}")
    return int(text)


def positive(kind: type[float]) -> Callable[[str], float]:
    """A parser of numbers above 0: whole ones for `int`, any for `float`."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = kind(0)
        if not 0 < number < 1e9:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"expected {what} above 0 and below 1e9, not {text!r}"
            )
        return number

    return parse


def finite(text: str) -> float:
    """A number, neither NaN nor infinite."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, not {text!r}")
    return number


def not_negative(text: str) -> int:
    """A number of pixels, which may be 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected 0 or more pixels, not {text!r}")
    return int(text)


def quality(text: str) -> int | str:
    """1 to 100, or `LOSSLESS`."""
    if text == LOSSLESS:
        return text
    if not (text.isdecimal() and 1 <= int(text) <= 100):
        raise argparse.ArgumentTypeError(
            f"expected 1 to 100, or lossless, not {text!r}"
        )
    return int(text)


def seconds(text: str) -> float:
    """A time in seconds, written 90, 5s, 1:30 or 0:01:30.5."""
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)s?", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"expected seconds or [h:]m:s, e.g. 90, 5s, 1:30 or 0:01:30.5, not {text!r}"
        )
    hours, minutes, rest = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest)


def raw_format(text: str) -> "RawFormat":
    """Raw RGB frames: WxH with 8 bits per value, or WxH:48 with 16."""
    from aethernet.video.y4m import RawFormat

    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})(?::(24|48))?", text.lower())
    if match is None or not int(match[1]) or not int(match[2]):
        raise argparse.ArgumentTypeError(
            f"expected WxH, or WxH:48 for 16 bits per value, not {text!r}"
        )
    bits = 16 if match[3] == "48" else 8
    return RawFormat(int(match[1]), int(match[2]), bits)
