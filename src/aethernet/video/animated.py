"""Animations (GIF, WebP, APNG) as frames of a video."""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from aethernet.pictures.animation import AnimationReader
from aethernet.pictures.metadata import Room, fitted
from aethernet.pictures.timing import Timing
from aethernet.video.libav import import_av

# Programs that show animations give frames of so few seconds a longer time.
_SHORTEST, _INSTEAD = Fraction(1, 100), Fraction(1, 10)

_FINEST = 90_000  # ticks per second, if the times have no smaller common measure

_NO_ROOM = Room(profile=False, exif=False, xmp=False, resolution=False)


def shown_seconds(timing: Timing) -> list[Fraction]:
    """How long viewers show each frame: 0.1 s where the file says 0.01 s or less."""
    return [_INSTEAD if each <= _SHORTEST else each for each in timing.seconds]


def time_base_of(timing: Timing) -> Fraction:
    """Seconds per tick, so that every frame begins at a whole tick, if possible."""
    ticks = math.lcm(*(each.denominator for each in shown_seconds(timing)))
    return Fraction(1, min(ticks, _FINEST))


def left_out(reader: AnimationReader) -> frozenset[str]:
    """Names of what an animation carries and a video does not."""
    header = reader.header
    names = fitted(header.metadata, _NO_ROOM, header.bands < 3)[1]
    if reader.timing.plays != 1:
        names.append("the number of repetitions")
    return frozenset(names)


def animation_frames(path: Path, time_base: Fraction) -> Iterator[Any]:
    """The frames of an animation as `av.VideoFrame`, with their times.

    Args:
        path: of the file.
        time_base: seconds per tick.

    Raises:
        ImageError: when the file is no animation, or damaged.
    """
    av = import_av()
    reader = AnimationReader(path)
    begin = Fraction(0)
    seconds = shown_seconds(reader.timing)
    formats = {1: "gray", 2: "ya8", 3: "rgb24", 4: "rgba"}
    for pixels, shown in zip(reader.frames(), seconds, strict=True):
        height, width, bands = pixels.shape
        frame = av.VideoFrame(width, height, formats[bands])
        plane = frame.planes[0]
        row = width * bands
        padded = bytearray(plane.buffer_size)
        for n in range(height):
            start = n * plane.line_size
            padded[start : start + row] = pixels[n].tobytes()
        plane.update(padded)
        frame.pts = round(begin / time_base)
        begin += shown
        frame.duration = max(round(begin / time_base) - frame.pts, 1)
        frame.time_base = time_base
        yield frame
