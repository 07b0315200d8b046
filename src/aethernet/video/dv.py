"""When DV was recorded, which each frame of it tells (IEC 61834, SMPTE 314M)."""

from collections.abc import Iterator
from pathlib import Path

from aethernet.video.libav import open_container

_BLOCK, _PACK = 80, 5
# Kind of a block -> where its packs begin, from one to the next, and how many it has.
_PACKS = {1: (6, 8, 6), 2: (3, 5, 15)}
_DATE, _TIME = 0x62, 0x63

# A frame is no larger than this.
_LARGEST = 2**20


def recorded(path: Path, stream: int) -> dict[str, str]:
    """The time of the recording as metadata; empty where a file does not tell it.

    Args:
        path: of the file.
        stream: index of a stream in it.

    Raises:
        av.FFmpegError: when it cannot be read.
    """
    with open_container(path) as container:
        chosen = container.streams[stream]
        if chosen.codec_context is None or chosen.codec_context.name != "dvvideo":
            return {}
        packets = container.demux(chosen)
        frame = next((bytes(packet) for packet in packets if packet.size), b"")
    date, time = None, None
    for pack in _packs(frame[:_LARGEST]):
        if pack[0] == _DATE:
            date = date or _numbers(pack[2:], (0x3F, 0x1F, 0xFF))
        elif pack[0] == _TIME:
            time = time or _numbers(pack[2:], (0x7F, 0x7F, 0x3F))
    if date is None:
        return {}
    day, month, year = date
    year += 1900 if year >= 70 else 2000
    if not 1 <= month <= 12 or not 1 <= day <= 31 or year < 1980:
        return {}  # programs write the beginning of 1970 where they do not know
    text = f"{year}-{month:02}-{day:02}"
    if time:
        second, minute, hour = time
        text += f"T{hour:02}:{minute:02}:{second:02}"
    return {"date": text}


def _packs(frame: bytes) -> Iterator[bytes]:
    for at in range(0, len(frame) - _BLOCK + 1, _BLOCK):
        start, step, count = _PACKS.get(frame[at] >> 5, (0, 0, 0))
        for n in range(count):
            first = at + start + n * step
            yield frame[first : first + _PACK]


def _numbers(data: bytes, masks: tuple[int, ...]) -> tuple[int, ...] | None:
    """Numbers of two decimal digits each; None where one is none."""
    digits = [
        ((value & mask) >> 4, value & mask & 0xF)
        for value, mask in zip(data, masks, strict=True)
    ]
    if any(digit > 9 for pair in digits for digit in pair):
        return None
    return tuple(10 * tens + ones for tens, ones in digits)
