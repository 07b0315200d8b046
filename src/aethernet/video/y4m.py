"""Read and write frames in pipes: y4m (YUV4MPEG2) and raw RGB.

This does not use libav, which reads far ahead in a pipe and does not report a stream
that ends inside a frame.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from aethernet.errors import AetherError, system_reason
from aethernet.video.yuv import FULL, LIMITED, Colour, from_rgb, to_rgb, usual_colour

MAGIC = b"YUV4MPEG2"

# No header or frame line is longer; a stream without line breaks must not fill memory.
_LONGEST_LINE = 1024
_LARGEST_SIDE = 2**16  # pixels

# Layout -> luma samples per chroma sample, across and down.
_SUBSAMPLING = {"420": (2, 2), "422": (2, 1), "444": (1, 1), "mono": None}

# Layouts of 8-bit 4:2:0 -> where their chroma samples lie, a key of `yuv.SITINGS`.
_SITINGS = {"420jpeg": "center", "420mpeg2": "left", "420paldv": "topleft"}


@dataclass(frozen=True)
class RawFormat:
    """RGB frames without a header: R, G, B, R, G, B, ... from the top left."""

    width: int
    height: int
    bits: int = 8
    """Per value: 8, or 16 (little-endian)."""


@dataclass(frozen=True)
class Y4mHeader:
    """The first line of a y4m stream."""

    width: int
    height: int
    layout: str
    """Value of the C parameter, e.g. 420mpeg2 or 422p10."""
    bits: int
    """Per value; values of more than 8 bits are stored in 16, little-endian."""
    subsampling: tuple[int, int] | None
    """Luma samples per chroma sample, across and down; None without chroma."""
    other: tuple[str, ...]
    """All other parameters (rate, aspect, field order, remarks), unchanged."""

    @property
    def siting(self) -> str:
        """Place of the chroma samples, a key of `yuv.SITINGS`."""
        if self.layout == "420":  # the same as 420jpeg
            return "center"
        return _SITINGS.get(self.layout, "left")

    @property
    def is_interlaced(self) -> bool:
        """Whether some frames hold two fields: top or bottom first, or mixed."""
        return any(word in ("It", "Ib", "Im") for word in self.other)

    @property
    def colour(self) -> Colour:
        """What the values mean; the matrix follows from the height, y4m has none."""
        full = "XCOLORRANGE=FULL" in self.other
        if not self.subsampling:  # gray is full range unless the header says limited
            full = "XCOLORRANGE=LIMITED" not in self.other
        return usual_colour(self.height, FULL if full else LIMITED)

    @property
    def dtype(self) -> np.dtype:
        """Type of a stored value."""
        return np.dtype(np.uint8 if self.bits == 8 else "<u2")

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of each plane."""
        shapes = [(self.height, self.width)]
        if self.subsampling:
            across, down = self.subsampling
            shapes += [(-(-self.height // down), -(-self.width // across))] * 2
        return shapes

    def line(self) -> bytes:
        """The header as bytes, with its line break."""
        size = (f"W{self.width}", f"H{self.height}")
        line = " ".join([MAGIC.decode(), *size, *self.other, f"C{self.layout}"])
        return line.encode("latin-1") + b"\n"


def read_header(stream: BinaryIO) -> Y4mHeader:
    """Read the first line of a y4m stream.

    Raises:
        AetherError: when this is not a y4m stream, or its layout is not supported.
    """
    line = stream.readline(_LONGEST_LINE)
    if not line.startswith(MAGIC) or not line.endswith(b"\n"):
        found = "something else" if line else "nothing"
        raise AetherError(
            f"Expected a y4m stream, which begins with {MAGIC.decode()}, and found "
            f"{found}.",
            hint="Raw RGB needs its size: --raw WxH.",
        )
    sides = {"W": 0, "H": 0}
    layout = "420jpeg"
    other = []
    for word in line.decode("latin-1").split()[1:]:
        key, value = word[0], word[1:]
        if key in sides:
            sides[key] = int(value) if re.fullmatch("[0-9]{1,6}", value) else 0
        elif key == "C":
            layout = value
        else:
            other.append(word)
    if not all(0 < side < _LARGEST_SIDE for side in sides.values()):
        raise AetherError("The header of the y4m stream gives no valid frame size.")
    bits, subsampling = _bits_and_subsampling(layout)
    return Y4mHeader(sides["W"], sides["H"], layout, bits, subsampling, tuple(other))


def _bits_and_subsampling(layout: str) -> tuple[int, tuple[int, int] | None]:
    kind = re.fullmatch("(420|422|444|mono)(?:p?(9|10|12|14|16))?", layout)
    if layout not in _SITINGS and kind is None:
        raise AetherError(
            f"The y4m stream has the layout C{layout}, which is not supported; "
            "expected 420, 422, 444 or mono, with 8 to 16 bits."
        )
    name, bits = kind.groups() if kind else ("420", None)
    return int(bits or 8), _SUBSAMPLING[name]


def read_y4m(stream: BinaryIO, header: Y4mHeader) -> Iterator[np.ndarray]:
    """Yield the frames as planes `(1 or 3, H, W)`, float32, 0..1.

    Raises:
        AetherError: after the last whole frame, when the stream ends inside one.
    """
    count = 0
    while line := stream.readline(_LONGEST_LINE):
        if not line.startswith(b"FRAME") or not line.endswith(b"\n"):
            raise _broken_off(count)
        planes = []
        for rows, columns in header.shapes:
            size = rows * columns * header.dtype.itemsize
            content = _read(stream, size)
            if len(content) < size:
                raise _broken_off(count)
            planes.append(np.frombuffer(content, header.dtype).reshape(rows, columns))
        yield to_rgb(planes, header.bits, header.colour, header.siting)
        count += 1


def y4m_writer(
    stream: BinaryIO, header: Y4mHeader, scale: int
) -> Callable[[np.ndarray], None]:
    """Write the header of a stream `scale` times as large.

    The values mean the same as in the source. This includes the matrix, which follows
    from the height of the source: the program that reads the pipe has to be told it.

    Returns:
        A function that writes one frame: planes `(1 or 3, H, W)`, float32, 0..1.
    """
    larger = replace(header, width=header.width * scale, height=header.height * scale)
    stream.write(larger.line())

    def write(planes: np.ndarray) -> None:
        coded = from_rgb(
            planes,
            header.bits,
            header.colour,
            header.subsampling or (1, 1),
            header.siting,
        )
        stream.write(b"FRAME\n")
        for plane in coded:
            stream.write(plane.astype(header.dtype, copy=False).tobytes())
        stream.flush()

    return write


def read_raw(stream: BinaryIO, form: RawFormat) -> Iterator[np.ndarray]:
    """Yield the frames of raw RGB as planes `(3, H, W)`, float32, 0..1.

    Raises:
        AetherError: after the last whole frame, when the stream ends inside one.
    """
    dtype = _raw_dtype(form)
    size = form.height * form.width * 3 * dtype.itemsize
    count = 0
    while content := _read(stream, size):
        if len(content) < size:
            raise _broken_off(count)
        pixels = np.frombuffer(content, dtype).reshape(form.height, form.width, 3)
        planes = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
        planes /= np.float32(np.iinfo(dtype).max)
        yield planes
        count += 1


def raw_writer(stream: BinaryIO, form: RawFormat) -> Callable[[np.ndarray], None]:
    """Return a function that writes one frame with the bits of `form`, of any size.

    It takes planes `(3, H, W)`, float32; values beyond 0..1 are clipped.
    """
    dtype = _raw_dtype(form)
    peak = np.float32(np.iinfo(dtype).max)

    def write(planes: np.ndarray) -> None:
        values = np.rint(planes.clip(0, 1) * peak).transpose(1, 2, 0)
        stream.write(values.astype(dtype).tobytes())
        stream.flush()

    return write


def _raw_dtype(form: RawFormat) -> np.dtype:
    return np.dtype(np.uint8 if form.bits == 8 else "<u2")


def _read(stream: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, which may come in pieces; fewer at the end of the stream.

    Raises:
        AetherError: when the system does not let us read.
    """
    pieces = []
    try:
        while size and (piece := stream.read(size)):
            pieces.append(piece)
            size -= len(piece)
    except OSError as error:
        reason = system_reason(error)
        raise AetherError(f"The stream cannot be read: {reason}.") from error
    return b"".join(pieces)


def _broken_off(count: int) -> AetherError:
    return AetherError(
        "The stream ends inside a frame; the whole frames before it are done "
        f"({count})."
    )
