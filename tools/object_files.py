"""Read which functions a library exports and what it needs: ELF, PE and Mach-O.

Only what `build_wheels.py` asks of libraries for other machines, which cannot be loaded
here: 64 bits, little-endian.
"""

import struct
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Library:
    """What a library says of itself."""

    machine: str
    """One of "x86_64" and "arm64"."""
    exports: frozenset[str]
    needs: frozenset[str]
    """Functions or libraries that have to be there when it is loaded."""
    signed: bool = False
    """Whether a Mach-O file has a signature, which macOS wants on arm64."""


def read_library(content: bytes) -> Library:
    """Read the content of a library.

    Raises:
        ValueError: when it is none of the three formats, or is for another processor.
    """
    try:
        if content[:4] == b"\x7fELF":
            return _read_elf(content)
        if content[:2] == b"MZ":
            return _read_pe(content)
        if content[:4] == b"\xcf\xfa\xed\xfe":
            return _read_macho(content)
    except (struct.error, KeyError, IndexError) as error:
        raise ValueError(f"The library is damaged: {error!r}.") from error
    raise ValueError("This is no ELF, PE or Mach-O file.")


def _text(content: bytes, at: int) -> str:
    return content[at : content.index(b"\0", at)].decode()


def _unpack(form: str, content: bytes, at: int) -> tuple[Any, ...]:
    return struct.unpack_from("<" + form, content, at)


def _read_elf(content: bytes) -> Library:
    machine = {62: "x86_64", 183: "arm64"}[_unpack("H", content, 18)[0]]
    (start,) = _unpack("Q", content, 40)
    size, count = _unpack("HH", content, 58)
    # Each: name, type, flags, address, offset, size, link, info, alignment, entry size.
    sections = [_unpack("IIQQQQIIQQ", content, start + size * i) for i in range(count)]
    exports: set[str] = set()
    needs: set[str] = set()
    for section in sections:
        if section[1] == 11:  # SHT_DYNSYM
            names = sections[section[6]][4]
            for at in range(section[4], section[4] + section[5], 24):
                name, info, _, where = _unpack("IBBH", content, at)
                if name and info >> 4:  # not local
                    (exports if where else needs).add(_text(content, names + name))
        elif section[1] == 6:  # SHT_DYNAMIC
            names = sections[section[6]][4]
            for at in range(section[4], section[4] + section[5], 16):
                tag, value = _unpack("QQ", content, at)
                if tag == 1:  # DT_NEEDED
                    needs.add(_text(content, names + value))
    return Library(machine, frozenset(exports), frozenset(needs))


def _read_pe(content: bytes) -> Library:
    (header,) = _unpack("I", content, 60)
    kind, sections = _unpack("HH", content, header + 4)
    machine = {0x8664: "x86_64", 0xAA64: "arm64"}[kind]
    (optional,) = _unpack("H", content, header + 20)
    first = header + 24 + optional

    def place(address: int) -> int:
        """Where in the file a memory address is."""
        for i in range(sections):
            size, start, _, offset = _unpack("IIII", content, first + 40 * i + 8)
            if start <= address < start + size:
                return offset + address - start
        raise IndexError(address)

    exported, _, imported, _ = _unpack("IIII", content, header + 24 + 112)
    exports, needs = set(), set()
    if exported:
        table = place(exported)
        count, _, names = _unpack("III", content, table + 24)
        for i in range(count):
            (name,) = _unpack("I", content, place(names) + 4 * i)
            exports.add(_text(content, place(name)))
    at = place(imported) if imported else None
    while at is not None and (name := _unpack("I", content, at + 12)[0]):
        needs.add(_text(content, place(name)))
        at += 20
    return Library(machine, frozenset(exports), frozenset(needs))


def _read_macho(content: bytes) -> Library:
    machine = {0x1000007: "x86_64", 0x100000C: "arm64"}[_unpack("I", content, 4)[0]]
    (count,) = _unpack("I", content, 16)
    exports: set[str] = set()
    needs, signed, at = set(), False, 32
    for _ in range(count):
        command, size = _unpack("II", content, at)
        if command == 0xC:  # LC_LOAD_DYLIB
            needs.add(_text(content, at + _unpack("I", content, at + 8)[0]))
        elif command in (0x22, 0x80000022):  # LC_DYLD_INFO
            start, length = _unpack("II", content, at + 40)
            exports |= _names_in(content[start : start + length], 0, "")
        elif command == 0x80000033:  # LC_DYLD_EXPORTS_TRIE
            start, length = _unpack("II", content, at + 8)
            exports |= _names_in(content[start : start + length], 0, "")
        elif command == 0x1D:  # LC_CODE_SIGNATURE
            signed = True
        at += size
    plain = frozenset(name.removeprefix("_") for name in exports)
    return Library(machine, plain, frozenset(needs), signed)


def _names_in(trie: bytes, at: int, prefix: str) -> set[str]:
    """All names below a node of a tree of exported names."""
    if not trie:
        return set()
    size, at = _number(trie, at)
    found = {prefix} if size else set()
    at += size
    children, at = trie[at], at + 1
    for _ in range(children):
        part = _text(trie, at)
        child, at = _number(trie, at + len(part) + 1)
        found |= _names_in(trie, child, prefix + part)
    return found


def _number(content: bytes, at: int) -> tuple[int, int]:
    """A number in LEB128, and where the next thing is."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
