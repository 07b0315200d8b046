"""The boxes of which MP4 and MOV files are made (ISO/IEC 14496-12)."""

import struct
from typing import BinaryIO

# Boxes that hold boxes -> how many bytes of their own come before these.
_PARENTS = {
    **dict.fromkeys((b"moov", b"trak", b"mdia", b"minf", b"stbl"), 0),
    b"stsd": 8,
    **dict.fromkeys((b"avc1", b"hvc1", b"hev1", b"av01", b"vp09"), 78),
}


def hide_boxes(file: BinaryIO, name: bytes) -> None:
    """Make boxes that describe a video stream free space, in the file itself.

    Args:
        file: open for reading and writing; of MP4 or MOV, else nothing is changed.
        name: of the boxes, four letters.
    """
    end = file.seek(0, 2)
    file.seek(4)
    if file.read(4) == b"ftyp":
        _hide(file, name, 0, end)


def _hide(file: BinaryIO, name: bytes, at: int, end: int) -> None:
    while at + 8 <= end:
        file.seek(at)
        size, kind = struct.unpack(">I4s", file.read(8))
        first = at + 8
        if size == 1:  # the size follows in 64 bits
            (size,) = struct.unpack(">Q", file.read(8))
            first += 8
        stop = at + size if size else end
        if not first <= stop <= end:
            return
        if kind == name:
            file.seek(at + 4)
            file.write(b"free")
        elif kind in _PARENTS:
            _hide(file, name, first + _PARENTS[kind], stop)
        at = stop
