"""The header of JPEG XL: what its boxes and its codestream say of the picture.

Sources: ISO/IEC 18181-1 (codestream) and 18181-2 (boxes).
"""

import contextlib
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from aethernet.errors import ImageError

_CODESTREAM = b"\xff\x0a"
_CONTAINER = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))

# Bytes of the codestream that are read, and boxes that are looked at for them.
_MOST_BYTES, _MOST_BOXES = 2**16, 1000

_ALPHA, _SPOT, BLACK, _MOSAIC = 0, 2, 4, 5
# Kind of an extra channel -> its name.
_CHANNELS = {
    _ALPHA: "another alpha channel",
    1: "the depth map",
    _SPOT: "a channel of a spot colour",
    3: "a selection mask",
    BLACK: "the black channel",
    _MOSAIC: "a channel of a camera's colour filters",
    6: "the thermal channel",
}
_WHITE, _CORNERS, _TRANSFER = 1, 3, 1
_GRAY, _XYB, _CUSTOM = 1, 2, 2

# Frames that are shown, and kinds of blending them with what lies below.
_SHOWN = (0, 3)
_LF_FRAME = 32  # a flag: a smaller one of them was sent before
_REPLACE, _BLEND, _ADD_BY_ALPHA, _MULTIPLY = 0, 2, 3, 4


@dataclass
class JxlHeader:
    """The beginning of a JPEG XL file."""

    width: int
    height: int
    """Both as stored."""
    animated: bool = False
    bits: int = 8
    """Bits per value."""
    channels: list[int] = field(default_factory=list)
    """Kinds of the channels beside gray or RGB."""
    premultiplied: bool = False
    """Whether the colours are multiplied by alpha."""
    others: list[str] = field(default_factory=list)
    """Names of what else it says."""


def is_jxl(head: bytes) -> bool:
    """Whether a file that begins so is JPEG XL."""
    return head.startswith((_CODESTREAM, _CONTAINER))


def read_header(path: Path) -> JxlHeader:
    """Read the header of a JPEG XL file as far as it can be understood.

    Raises:
        ImageError: when there is no codestream in it, or not even a size.
    """
    with path.open("rb") as file:
        head = _codestream(file)
    if not head.startswith(_CODESTREAM):
        raise ImageError("The JPEG XL file has no picture.", path)
    bits = _Bits(head[2:])
    try:
        size = _size(bits)
    except ValueError as error:
        raise ImageError("The JPEG XL file has no picture.", path) from error
    found = JxlHeader(*size)
    with contextlib.suppress(ValueError):  # the decoder judges what is cut short
        _read_description(bits, found)
    found.others = list(dict.fromkeys(found.others))
    return found


def _codestream(file: BinaryIO) -> bytes:
    """The first bytes of the codestream, also of one that lies in several boxes."""
    head = file.read(_MOST_BYTES)
    if head.startswith(_CODESTREAM):
        return head
    file.seek(0)
    found = b""
    for _ in range(_MOST_BOXES):
        if len(box := file.read(8)) < 8:
            break
        size, kind = struct.unpack(">I4s", box)
        used = 8
        if size == 1:  # the size follows in 64 bits
            size, used = int.from_bytes(file.read(8), "big"), 16
        length = size - used if size else _MOST_BYTES
        if length < 0:
            break
        if kind in (b"jxlc", b"jxlp"):
            content = file.read(min(length, _MOST_BYTES))
            found += content[4 * (kind == b"jxlp") :]
            if kind == b"jxlc" or len(found) >= _MOST_BYTES:
                break
            length -= len(content)
        file.seek(length, 1)
    return found


class _Bits:
    """Bits of a codestream, the least significant one first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> int:
        """The next bits as a number; raises ValueError behind the end."""
        first, end = self._at // 8, (self._at + count + 7) // 8
        if end > len(self._data):
            raise ValueError("The header is cut short.")
        number = int.from_bytes(self._data[first:end], "little") >> self._at % 8
        self._at += count
        return number & ((1 << count) - 1)

    def flag(self) -> bool:
        return bool(self.take(1))

    def choice(self, *options: tuple[int, int]) -> int:
        """A number in one of four ways: so many bits, added to another number."""
        count, offset = options[self.take(2)]
        return self.take(count) + offset

    def kind(self) -> int:
        """A number of a list."""
        return self.choice((0, 0), (0, 1), (4, 2), (6, 18))

    def long(self) -> int:
        """A number of up to 64 bits."""
        selector = self.take(2)
        if selector < 3:
            return self.take((0, 4, 8)[selector]) + (0, 1, 17)[selector]
        number, shift = self.take(12), 12
        while self.flag():
            if shift == 60:
                return number | self.take(4) << shift
            number |= self.take(8) << shift
            shift += 8
        return number

    def to_next_byte(self) -> None:
        self._at = -(-self._at // 8) * 8


def _size(bits: _Bits) -> tuple[int, int]:
    """Width and height."""
    small = bits.flag()

    def side() -> int:
        if small:
            return (bits.take(5) + 1) * 8
        return bits.choice((9, 1), (13, 1), (18, 1), (30, 1))

    height, ratio = side(), bits.take(3)
    if ratio:
        across, down = _RATIOS[ratio - 1]
        return height * across // down, height
    return side(), height


def _read_description(bits: _Bits, found: JxlHeader) -> None:
    """Read what follows the size; what is known when it cannot go on counts.

    Args:
        bits: of the codestream, from there on.
        found: gets what is read.

    Raises:
        ValueError: when it is cut short.
    """
    encoded, has_profile, preview = True, False, False
    if not bits.flag():  # else: 8 bits, sRGB, no extra channel
        more = bits.flag()
        if more:
            bits.take(3)  # the orientation, which the decoder applies
            if bits.flag():
                _size(bits)
                found.others.append("the size on a display")
            preview = bits.flag()
            if preview:
                _skip_preview(bits)
                found.others.append("the preview")
            found.animated = bits.flag()
            if found.animated:
                return
        found.bits = _depth(bits)
        bits.take(1)
        _read_channels(bits, found)
        encoded, has_profile = bits.flag(), _skip_colours(bits)
        if more:
            _skip_light(bits)
        if bits.long():  # extensions, behind which we do not look
            return
    if not has_profile and not preview and bits.flag():  # behind these neither
        bits.to_next_byte()
        if _has_layers(bits, len(found.channels), encoded):
            found.others.append("the layers")


def _read_channels(bits: _Bits, found: JxlHeader) -> None:
    count = bits.choice((0, 0), (0, 1), (4, 2), (12, 1))
    channels = [_channel(bits) for _ in range(count)]
    found.channels = [kind for kind, _ in channels]
    alphas = [associated for kind, associated in channels if kind == _ALPHA]
    found.premultiplied = bool(alphas and alphas[0])
    rest = found.channels.copy()
    if _ALPHA in rest:
        rest.remove(_ALPHA)
    found.others += [_CHANNELS.get(kind, "an extra channel") for kind in rest]


def _skip_preview(bits: _Bits) -> None:
    eighths = bits.flag()

    def skip_side() -> None:
        if eighths:
            bits.choice((0, 16), (0, 32), (5, 1), (9, 33))
        else:
            bits.choice((6, 1), (8, 65), (10, 321), (12, 1345))

    skip_side()
    if not bits.take(3):  # a ratio
        skip_side()


def _depth(bits: _Bits) -> int:
    """Bits per value; of floating point, which is refused, 8."""
    if bits.flag():
        bits.choice((0, 32), (0, 16), (0, 24), (6, 1))
        bits.take(4)
        return 8
    return bits.choice((0, 8), (0, 10), (0, 12), (6, 1))


def _channel(bits: _Bits) -> tuple[int, bool]:
    """Kind of an extra channel, and whether it is alpha that colours hold already."""
    if bits.flag():
        return _ALPHA, False
    kind = bits.kind()
    _depth(bits)
    bits.choice((0, 0), (0, 3), (0, 4), (3, 1))  # by how much it is smaller
    for _ in range(bits.choice((0, 0), (4, 0), (5, 16), (10, 48))):
        bits.take(8)  # a character of its name
    associated = False
    if kind == _ALPHA:
        associated = bits.flag()
    elif kind == _SPOT:
        bits.take(64)
    elif kind == _MOSAIC:
        bits.choice((0, 1), (2, 0), (4, 3), (8, 19))
    return kind, associated


def _skip_colours(bits: _Bits) -> bool:
    """Returns whether an ICC profile follows behind the header."""
    if bits.flag():  # sRGB
        return False
    has_profile, space = bits.flag(), bits.kind()
    if has_profile:
        return True
    if space != _XYB:
        _skip_points(bits, _WHITE)
    if space not in (_GRAY, _XYB):
        _skip_points(bits, _CORNERS)
    if space != _XYB:
        if bits.flag():
            bits.take(24)  # the exponent
        else:
            bits.kind()
    bits.kind()  # the rendering intent
    return False


def _skip_points(bits: _Bits, count: int) -> None:
    if bits.kind() == _CUSTOM:
        for _ in range(2 * count):
            bits.choice((19, 0), (19, 2**19), (20, 2**20), (21, 2**21))


def _skip_light(bits: _Bits) -> None:
    """Skip the light of the display that the picture was made for."""
    if not bits.flag():
        bits.take(32)
        bits.take(17)


def _has_layers(bits: _Bits, extra: int, encoded: bool) -> bool:
    """Whether the first frame is one of several that lie on each other.

    Args:
        bits: of the codestream, from the frame on.
        extra: how many extra channels there are.
        encoded: whether the colours are XYB.
    """
    if bits.flag():  # a usual frame, and the last one
        return False
    kind, modular, flags = bits.take(2), bits.flag(), bits.long()
    if kind not in _SHOWN:
        return False  # it helps to decode others; how many follow, we do not know
    components = False if encoded else bits.flag()
    if not flags & _LF_FRAME:
        bits.take(6 * components + 2 + 2 * extra)  # how much smaller planes are
    bits.take(2 if modular else 6 * encoded)
    passes = bits.choice((0, 1), (0, 2), (0, 3), (3, 4))
    if passes > 1:
        fewer = bits.choice((0, 0), (0, 1), (0, 2), (1, 3))
        bits.take(2 * (passes - 1) + 2 * fewer)
        for _ in range(fewer):
            bits.choice((0, 0), (0, 1), (0, 2), (3, 0))
    cropped = bits.flag()
    if cropped:
        for _ in range(4):
            bits.choice((8, 0), (11, 256), (14, 2304), (30, 18688))
    for _ in range(1 + extra):
        _skip_blending(bits, extra, cropped)
    return not bits.flag()


def _skip_blending(bits: _Bits, extra: int, cropped: bool) -> None:
    mode = bits.choice((0, 0), (0, 1), (0, 2), (2, 3))
    by_alpha = extra and mode in (_BLEND, _ADD_BY_ALPHA)
    if by_alpha:
        bits.choice((0, 0), (0, 1), (0, 2), (3, 3))
    if by_alpha or mode == _MULTIPLY:
        bits.take(1)
    if mode != _REPLACE or cropped:
        bits.take(2)
