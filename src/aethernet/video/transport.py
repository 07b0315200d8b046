"""Sections of tables in an MPEG transport stream (ISO/IEC 13818-1)."""

import functools
from collections.abc import Iterator
from typing import BinaryIO

_SYNC = 0x47
_PACKET = 188

# Bytes from one packet to the next -> bytes of others before each: plain, with the
# times of a disc (M2TS), with a code behind that corrects errors.
_STEPS = {188: 0, 192: 4, 204: 0}

# Packets that have to follow each other where the first one is looked for.
_IN_A_ROW = 4

# Bytes that are read of a file: tables that describe it come every two seconds or
# sooner. Bytes of a section, and different sections that are looked at.
_MOST_BYTES, _LARGEST_SECTION, _MOST_SECTIONS = 2**23, 4098, 1000

# Bytes by which to tell whether a file is encrypted.
_A_FEW = 2**18

_POLYNOMIAL = 0x04C11DB7


def sections(file: BinaryIO, streams: set[int]) -> Iterator[tuple[int, bytes]]:
    """Whole sections at the beginning of a file, in their order, each once.

    Args:
        file: open for reading; of another format, nothing is found.
        streams: numbers (PID) of the packets that are looked at; may grow meanwhile.

    Yields:
        The number of the packets, and the section from its table's number to the end;
        none whose checksum is wrong.
    """
    seen: set[tuple[int, bytes]] = set()
    for number, section in _all_sections(file, streams):
        if len(seen) == _MOST_SECTIONS:
            return
        if (number, section) not in seen:
            seen.add((number, section))
            # Only those of the time of day come without a checksum.
            if not section[1] & 0x80 or _checksum(section) == 0:
                yield number, section


def is_scrambled(file: BinaryIO) -> bool:
    """Whether most of the packets at the beginning of a file are encrypted.

    Args:
        file: open for reading; of another format, none are.
    """
    count = scrambled = 0
    for packet in _packets(file, _A_FEW):
        count += 1
        scrambled += bool(packet[3] & 0xC0)
    return 2 * scrambled > count


def _all_sections(file: BinaryIO, streams: set[int]) -> Iterator[tuple[int, bytes]]:
    begun: dict[int, bytes] = {}
    latest: dict[int, int] = {}
    for packet in _packets(file):
        number = (packet[1] & 0x1F) << 8 | packet[2]
        content = _payload(packet) if number in streams else b""
        if not content:
            continue
        counter, before = packet[3] & 0xF, latest.get(number)
        if counter == before:
            continue  # sent twice
        if before is not None and counter != (before + 1) & 0xF:
            begun.pop(number, None)  # one is missing
        latest[number] = counter
        if packet[1] & 0x40:  # a section begins in it, behind so many bytes
            first = 1 + content[0]
            if number in begun:
                for section in _whole(begun.pop(number) + content[1:first])[0]:
                    yield number, section
            content = content[first:]
        elif number not in begun:
            continue
        found, rest = _whole(begun.get(number, b"") + content)
        for section in found:
            yield number, section
        begun[number] = rest[:_LARGEST_SECTION]


def _whole(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole sections at the beginning of the data, and what follows them."""
    found = []
    while len(data) >= 3 and data[0] != 0xFF:  # which fills up packets
        length = 3 + ((data[1] & 0xF) << 8 | data[2])
        if length > len(data):
            break
        found.append(data[:length])
        data = data[length:]
    return found, data


def _packets(file: BinaryIO, most: int = _MOST_BYTES) -> Iterator[bytes]:
    file.seek(0)
    data = file.read(most)
    at, step = _first(data, 0)
    while at + _PACKET <= len(data):
        if data[at] == _SYNC:
            yield data[at : at + _PACKET]
            at += step
        else:  # some bytes are missing
            at, step = _first(data, at)


def _first(data: bytes, start: int) -> tuple[int, int]:
    """Where packets begin to follow each other, and bytes from one to the next.

    Behind the end of the data, where none do.
    """
    at = data.find(_SYNC, start)
    while at >= 0:
        for step, before in _STEPS.items():
            end = at + (_IN_A_ROW - 1) * step + 1
            if at >= before and data[at:end:step] == bytes([_SYNC]) * _IN_A_ROW:
                return at, step
        at = data.find(_SYNC, at + 1)
    return len(data), _PACKET


def _payload(packet: bytes) -> bytes:
    """The content of a packet; empty where it is damaged, scrambled or has none."""
    damaged, scrambled, kind = packet[1] & 0x80, packet[3] & 0xC0, packet[3] >> 4 & 3
    if damaged or scrambled or not kind & 1:
        return b""
    return packet[5 + packet[4] :] if kind == 3 else packet[4:]


def _checksum(data: bytes) -> int:
    """CRC-32 of MPEG-2; 0 of data with its own behind it."""
    table, value = _table(), 0xFFFFFFFF
    for byte in data:
        value = (value << 8 ^ table[value >> 24 ^ byte]) & 0xFFFFFFFF
    return value


@functools.cache
def _table() -> tuple[int, ...]:
    """What each byte does to the checksum."""

    def of(value: int) -> int:
        value <<= 24
        for _ in range(8):
            value = value << 1 ^ (_POLYNOMIAL if value & 0x80000000 else 0)
        return value & 0xFFFFFFFF

    return tuple(of(value) for value in range(256))
