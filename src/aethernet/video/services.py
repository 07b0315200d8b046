"""What a broadcast says of its services, that is of its channels.

Sources: ISO/IEC 13818-1 (programs), ETSI EN 300 468 (services and texts), ATSC A/65
(channels in America).
"""

import struct
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aethernet.video.transport import sections

# Numbers of packets, and of tables in them.
_PROGRAMS, _NETWORK, _SERVICES, _TIME, _CHANNELS = 0, 0x10, 0x11, 0x14, 0x1FFB
GUIDE = 0x12
"""The number of the packets with the titles of broadcasts."""
_PROGRAM_TABLE, _STREAM_TABLE, _SERVICE_TABLE = 0, 2, 0x42
_CHANNEL_TABLES = (0xC8, 0xC9)
_NAMED_TABLES = {
    (_NETWORK, 0x40): "the description of the network (NIT)",
    (_TIME, 0x70): "the time of the broadcast",
    (_TIME, 0x73): "the time of the broadcast",
    (_CHANNELS, 0xCD): "the time of the broadcast",
}

_SERVICE_DESCRIPTOR = 0x48
_NAME_LENGTH = 14  # bytes of a channel's name in UTF-16

# Networks in Japan and Brazil, whose texts are of another kind (ARIB).
_ARIB = (4, 6, 7, 10, *range(0x7880, 0x8000))

# The first byte of a text -> how what follows is coded; 0x10: two bytes more tell it.
_CODINGS = {
    **{1 + n: f"iso8859_{5 + n}" for n in range(11) if n != 7},
    0x11: "utf-16-be",
    0x12: "euc_kr",
    0x13: "gb2312",
    0x14: "utf-16-be",
    0x15: "utf-8",
}
_BY_NUMBER = 0x10
_OF_ISO_8859 = (*range(1, 12), *range(13, 16))

# Characters of ISO/IEC 6937 from 0xA0 and from 0xD0 on; a space where there is none.
_FROM_A0 = "\xa0¡¢£€¥ §¤‘“«←↑→↓°±²³×µ¶·÷’”»¼½¾¿"  # noqa: RUF001
_FROM_D0 = "—¹®©™♪¬¦    ⅛⅜⅝⅞ΩÆĐªĦ ĲĿŁØŒºÞŦŊŉĸæđðħıĳŀłøœßþŧŋ\xad"
# And marks from 0xC1 on, which come before their letter there and behind it in Unicode.
_MARKS = (
    "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308 \u030a\u0327 \u030b\u0328\u030c"
)
_FIRST_MARK = 0xC1


@dataclass
class Broadcast:
    """What a transport stream says beside its streams."""

    metadata: dict[str, str] = field(default_factory=dict)
    """Name and provider of the service to which a stream belongs, by libav's keys."""
    others: set[str] = field(default_factory=set)
    """Names of what else it says."""


def read_broadcast(path: Path, stream: int) -> Broadcast:
    """Read what the tables at the beginning of a transport stream say.

    Args:
        path: of the file; of another format, nothing is found.
        stream: the number (PID) of a stream.
    """
    found = Broadcast()
    programs: dict[int, set[int]] = {}
    services: dict[int, dict[str, str | None]] = {}
    wanted = {_PROGRAMS, _NETWORK, _SERVICES, _TIME, _CHANNELS}
    with path.open("rb") as file:
        for number, section in sections(file, wanted):
            table = section[0]
            if name := _NAMED_TABLES.get((number, table)):
                found.others.add(name)
            try:
                if number == _PROGRAMS and table == _PROGRAM_TABLE:
                    wanted |= _program_tables(section)
                elif table == _STREAM_TABLE:
                    (program,) = struct.unpack_from(">H", section, 3)
                    programs.setdefault(program, set()).update(_streams(section))
                elif number == _SERVICES and table == _SERVICE_TABLE:
                    services |= _services(section)
                elif number == _CHANNELS and table in _CHANNEL_TABLES:
                    services |= _channels(section)
            except (struct.error, IndexError):
                continue  # what was read is kept
    own = [program for program, streams in programs.items() if stream in streams]
    said = services.get(own[0], {}) if own else {}
    for key, text in said.items():
        if text:
            found.metadata[key] = text
        elif text is None:
            found.others.add(f"the {key.replace('_', ' ')}, of an unknown coding")
    if len(programs) > 1:
        found.others.add(f"the division into {len(programs)} programs")
    if any(any(texts.values()) for key, texts in services.items() if key not in own):
        found.others.add("names of other services")
    return found


def _program_tables(section: bytes) -> set[int]:
    """Numbers of the packets with a table of streams."""
    rows = struct.iter_unpack(">2H", _rows(section, 8, 4))
    return {number & 0x1FFF for program, number in rows if program}


def _rows(section: bytes, start: int, size: int) -> bytes:
    """Rows of one size between a place in a section and its checksum."""
    end = len(section) - 4
    return section[start : max(end - (end - start) % size, start)]


def _streams(section: bytes) -> Iterator[int]:
    """Numbers of the streams of a program."""
    at = 12 + (struct.unpack_from(">H", section, 10)[0] & 0xFFF)
    while at + 5 <= len(section) - 4:
        number, length = struct.unpack_from(">2H", section, at + 1)
        yield number & 0x1FFF
        at += 5 + (length & 0xFFF)


def _services(section: bytes) -> dict[int, dict[str, str | None]]:
    """The texts of each service, by its number; None: of an unknown coding."""
    (network,) = struct.unpack_from(">H", section, 8)
    found: dict[int, dict[str, str | None]] = {}
    at = 11
    while at + 5 <= len(section) - 4:
        number, _, length = struct.unpack_from(">HBH", section, at)
        end = at + 5 + (length & 0xFFF)
        for kind, content in _descriptors(section[at + 5 : end]):
            if kind == _SERVICE_DESCRIPTOR:
                provider = content[2 : 2 + content[1]]
                name = content[2 + len(provider) :]
                texts = provider, name[1 : 1 + name[0]]
                keys = "service_provider", "service_name"
                read = [None if network in _ARIB and t else _text(t) for t in texts]
                found[number] = dict(zip(keys, read, strict=True))
        at = end
    return found


def _descriptors(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 2:
        yield data[0], data[2 : 2 + data[1]]
        data = data[2 + data[1] :]


def _channels(section: bytes) -> dict[int, dict[str, str | None]]:
    """As `_services`, of channels in America."""
    found: dict[int, dict[str, str | None]] = {}
    at = 10
    for _ in range(section[9]):
        name = section[at : at + _NAME_LENGTH]
        (program,) = struct.unpack_from(">H", section, at + 24)
        (length,) = struct.unpack_from(">H", section, at + 30)
        text = name.decode("utf-16-be", "replace").rstrip("\0 ")
        found[program] = {"service_name": text}
        at += 32 + (length & 0x3FF)
    return found


def _text(data: bytes) -> str | None:
    """A text, by the coding that it begins with; None where that is not known."""
    first = data[0] if data else 0x20
    coding: str | None = None
    if first < 0x20:
        coding, data = _CODINGS.get(first), data[1:]
        if first == _BY_NUMBER and len(data) > 2:
            part = int.from_bytes(data[:2], "big")
            coding = f"iso8859_{part}" if part in _OF_ISO_8859 else None
            data = data[2:]
        if coding is None:
            return None
    try:
        text = data.decode(coding) if coding else _usual(data)
    except UnicodeDecodeError:
        return None
    # From 0x80 on there are marks of emphasis, and in UTF-16 at 0xE080.
    controls: Mapping[int, str | None] = {
        **{base + n: None for base in (0x80, 0xE080) for n in range(32)},
        **dict.fromkeys(range(32)),
        **dict.fromkeys((0x8A, 0xE08A), " "),
    }
    return text.translate(controls).strip()


def _usual(data: bytes) -> str:
    """A text without a stated coding: ISO/IEC 6937, as the standard says, or UTF-8.

    Some programs write UTF-8 so. What is UTF-8 beyond ASCII has marks of ISO/IEC 6937
    before what is no letter.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    made, mark = "", ""
    for value in data:
        if 0 <= value - _FIRST_MARK < len(_MARKS):
            mark = _MARKS[value - _FIRST_MARK].strip()
            continue
        character = chr(value)
        if 0xA0 <= value < 0xC0:
            character = _FROM_A0[value - 0xA0]
        elif value >= 0xD0:
            character = _FROM_D0[value - 0xD0]
        made += character + mark
        mark = ""
    return unicodedata.normalize("NFC", made)
