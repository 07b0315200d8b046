"""PyAV, the Python binding of FFmpeg's libraries: open files, name pixel formats.

PyAV is optional, so its objects are `Any` in annotations: a container, a stream, a
packet, a frame (`av.VideoFrame`) or a pixel format (`av.VideoFormat`).
"""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from aethernet.errors import AetherError, import_optional

# Luma samples per chroma sample, across and down -> how libav's format names call it.
_CHROMA = {
    (1, 1): "444",
    (2, 1): "422",
    (2, 2): "420",
    (1, 2): "440",
    (4, 1): "411",
    (4, 4): "410",
}


def import_av() -> ModuleType:
    """Import PyAV.

    Raises:
        MissingExtraError: when it is not installed.
    """
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints past libav's own log
    return import_optional("av", "video")


def open_container(path: Path) -> Any:
    """Open a video file for reading.

    Raises:
        av.FFmpegError: when it is not a video or cannot be read.
    """
    av = import_av()
    arguments: dict[str, Any] = {}
    if int(av.__version__.partition(".")[0]) < 19:
        # PyAV 19 replaces bytes of a title that are not UTF-8 without being asked to,
        # and no longer has this argument.
        arguments["metadata_errors"] = "replace"
    # The prefix makes any name a file name; the list forbids references to anything
    # but files.
    options = {"protocol_whitelist": "file"}
    return av.open(f"file:{path}", container_options=options, **arguments)


def entries(side_data: Any) -> list[Any]:
    """All entries of a frame's side data (`av.sidedata.SideData`), in their order.

    By number until there are no more: what iterating gives depends on PyAV's version,
    and PyAV 19 counts entries of one kind once.
    """
    found: list[Any] = []
    with contextlib.suppress(IndexError):
        while True:
            found.append(side_data[len(found)])
    return found


@contextlib.contextmanager
def usual_priority() -> Iterator[None]:
    """Give all threads of this process the caller's scheduling policy at the end.

    SVT-AV1, run by root, makes its own threads and the one that opens it real-time
    threads. They and whatever they start later would take the processor from all other
    programs.
    """
    if not hasattr(os, "sched_setscheduler"):  # not Linux
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread in map(int, os.listdir("/proc/self/task")):
            # A thread can end meanwhile.
            with contextlib.suppress(ProcessLookupError):
                if os.sched_getscheduler(thread) != policy:
                    os.sched_setscheduler(thread, policy, parameters)


def av_reason(error: Exception) -> str:
    """What libav says went wrong, without the error's number and the file's name."""
    return str(getattr(error, "strerror", None) or error).rstrip(".")


@contextlib.contextmanager
def av_errors(what: str, path: Path) -> Iterator[None]:
    """Turn PyAV's errors in the block into errors about `path`: "WHAT: REASON."."""
    av = import_av()
    try:
        yield
    except av.FFmpegError as error:
        raise AetherError(f"{what}: {av_reason(error)}.", path) from error


def as_fraction(ratio: Any) -> Fraction | None:
    """A ratio of libav, which may be absent, 0/1 or n/0: those three give None."""
    return Fraction(ratio.numerator, ratio.denominator) if ratio else None


def is_cover(stream: Any) -> bool:
    """Whether a video stream is a cover picture, as music players show it."""
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def pixel_format(name: str) -> Any:
    """The pixel format (`av.VideoFormat`) of that name.

    Raises:
        AetherError: when there is none.
    """
    av = import_av()
    try:
        return av.VideoFormat(name)
    except ValueError as error:
        raise AetherError(
            f"There is no pixel format {name!r}.",
            hint="Use one of libav's names, e.g. yuv420p, yuv420p10le or yuv444p.",
        ) from error


def planar_name(pixel_format: Any) -> str:
    """Name of the format that stores the same values, one plane for each component.

    Gray with alpha has no such format: "ya8" stores the two in turn.
    """
    bits = bit_depth(pixel_format)
    ending = "" if bits <= 8 else f"{min(bits, 16)}le"
    alpha = has_alpha(pixel_format)
    if pixel_format.is_rgb or pixel_format.has_palette:
        return f"gbr{'a' if alpha else ''}p{ending}"
    if colour_components(pixel_format) == 1:
        return f"ya{ending or 8}" if alpha else f"gray{ending}"
    chroma = _CHROMA[chroma_subsampling(pixel_format)]
    return f"yuv{'a' if alpha else ''}{chroma}p{ending}"


def colour_components(pixel_format: Any) -> int:
    """1 for gray, else 3."""
    return sum(not component.is_alpha for component in pixel_format.components)


def bit_depth(pixel_format: Any) -> int:
    """Bits per value, of the deepest component."""
    return max(component.bits for component in pixel_format.components)


def chroma_subsampling(pixel_format: Any) -> tuple[int, int]:
    """Luma samples per chroma sample, across and down."""
    return 16 // pixel_format.chroma_width(16), 16 // pixel_format.chroma_height(16)


def has_alpha(pixel_format: Any) -> bool:
    """Whether the format stores transparency."""
    return any(component.is_alpha for component in pixel_format.components)


def planes_of(frame: Any) -> list[np.ndarray]:
    """The planes of a planar frame as writable views `(H, W)`, uint8 or uint16.

    The planes of RGB come in the order R, G, B. Alpha is the last.
    """
    dtype = np.dtype(np.uint8 if bit_depth(frame.format) <= 8 else "<u2")
    in_turn = len(frame.format.components) // len(frame.planes)  # gray with alpha: 2
    planes = [
        np.ndarray(
            (plane.height, plane.width),
            dtype,
            buffer=plane,
            offset=n * dtype.itemsize,
            strides=(plane.line_size, dtype.itemsize * in_turn),
        )
        for plane in frame.planes
        for n in range(in_turn)
    ]
    if frame.format.is_rgb:
        green, blue, red, *alpha = planes
        return [red, green, blue, *alpha]
    return planes
