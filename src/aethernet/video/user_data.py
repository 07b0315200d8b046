"""Metadata of MP4 and MOV that libav does not read, by name.

It lies in the boxes udta and meta of the file, of the movie and of tracks. Sources:
ISO/IEC 14496-12, Apple's QuickTime File Format, and the list of iTunes.
"""

import struct
from collections.abc import Container, Iterator
from typing import BinaryIO

from aethernet.video.boxes import Box, inside, outermost, tracks_of

_EMPTY = (b"free", b"skip", b"wide")

# What wrote the old file.
_PROGRAMS = (b"\xa9too", b"\xa9enc", b"\xa9swr")

# Kinds of tracks that are copied. What others say goes with them.
_COPIED = (b"vide", b"soun", b"sbtl", b"subt", b"text", b"clcp")

# In a track: what is read, or describes it. Chapters and timecode are written anew.
_OF_TRACK = (b"tkhd", b"edts", b"mdia", b"udta", b"meta", b"tref", b"tapt", *_EMPTY)
_OF_REFERENCES = (b"chap", b"tmcd")

# In udta: chapters, places of windows, and what libav reads in a form of its own.
_OF_USER_DATA = (
    *(b"meta", b"chpl", b"kind", b"WLOC", b"SelO", b"AllF", b"LOOP", b"loci", b"hnti"),
    *(b"hinf", *_PROGRAMS, *_EMPTY),
)
# In iTunes' list: covers, and numbers -> the keys by which libav tells them.
_COVER, _OTHER = b"covr", b"----"
_NUMBERS = {
    b"trkn": "track",
    b"disk": "disc",
    b"gnre": "genre",
    b"cpil": "compilation",
    b"pgap": "gapless_playback",
    b"hdvd": "hd_video",
    b"stik": "media_type",
    b"rtng": "rating",
    b"pcst": "podcast",
    b"tmpo": "tempo",
    b"tves": "episode_sort",
    b"tvsn": "season_number",
}
_NAMES = {
    b"XMP_": "XMP",
    b"thmb": "the thumbnail",
    b"Xtra": "the metadata of Windows (Xtra)",
    b"GPMF": "the settings of the camera (GPMF)",
}

_LARGEST, _MOST_KEYS = 2**20, 1000


def names_of_user_data(
    file: BinaryIO, values: Container[str], keys: Container[str]
) -> Iterator[str]:
    """Names of metadata that libav does not read.

    Args:
        file: open for reading; of another format, nothing is found.
        values: of all metadata that libav has read.
        keys: of the same.
    """
    for box in outermost(file):
        if box.kind in (b"udta", b"meta"):
            yield from _of_holder(file, box, values, keys)
        if box.kind == b"moov":
            for part in inside(file, box):
                if part.kind in (b"udta", b"meta"):
                    yield from _of_holder(file, part, values, keys)
    for track, handler in tracks_of(file):
        if handler in _COPIED:
            for part in inside(file, track):
                yield from _of_part(file, part, values, keys)


def _of_part(
    file: BinaryIO, part: Box, values: Container[str], keys: Container[str]
) -> Iterator[str]:
    if part.kind in (b"udta", b"meta"):
        yield from _of_holder(file, part, values, keys)
    elif part.kind == b"tref":
        for each in inside(file, part):
            if each.kind not in _OF_REFERENCES:
                yield "which tracks belong together"
    elif part.kind == b"tapt":
        # Its boxes state sides by which players may show less than the whole frame.
        if len({_content(file, each) for each in inside(file, part)}) > 1:
            yield "the apertures of the picture"
    elif part.kind not in _OF_TRACK:
        yield f"the box {_text(part.kind)}"


def _content(file: BinaryIO, box: Box) -> bytes:
    file.seek(box.first)
    return file.read(min(box.end - box.first, _LARGEST))


def _of_holder(
    file: BinaryIO, box: Box, values: Container[str], keys: Container[str]
) -> Iterator[str]:
    """Names in a box udta or meta."""
    if box.kind == b"meta":
        yield from _of_meta(file, box, values, keys)
        return
    for each in inside(file, box):
        if each.kind == b"meta":
            yield from _of_meta(file, each, values, keys)
        elif each.kind not in _OF_USER_DATA and not _is_read(file, each, values):
            yield _NAMES.get(each.kind, f"the metadata {_text(each.kind)}")


def _of_meta(
    file: BinaryIO, box: Box, values: Container[str], keys: Container[str]
) -> Iterator[str]:
    file.seek(box.first)
    # QuickTime has no version and flags there, but a box: the first is hdlr.
    plain = file.read(8)[4:] == b"hdlr"
    parts = {each.kind: each for each in inside(file, box, 0 if plain else 4)}
    kind = b""
    if b"hdlr" in parts:
        file.seek(parts[b"hdlr"].first + 8)
        kind = file.read(4)
    if kind == b"mdta":
        for key in _stated_keys(file, parts.get(b"keys")):
            if key not in keys:
                yield f"the metadata {key}"
    elif kind == b"mdir" and b"ilst" in parts:
        for each in inside(file, parts[b"ilst"]):
            if not _is_of_list_read(file, each, values, keys):
                yield f"the metadata {_key(file, each)}"
    elif {*parts} - {b"hdlr", *_EMPTY}:
        yield f"metadata of the type {_text(kind)}"


def _is_of_list_read(
    file: BinaryIO, box: Box, values: Container[str], keys: Container[str]
) -> bool:
    """Whether libav has read what a box of iTunes' list says, or it says nothing."""
    if box.kind in (_COVER, *_PROGRAMS, *_EMPTY):
        return True
    if box.kind == _OTHER:
        return _key(file, box) in keys
    if box.kind in _NUMBERS:
        file.seek(box.first + 16)
        number = file.read(min(box.end - box.first - 16, 8))
        return _NUMBERS[box.kind] in keys or not any(number)
    return _is_read(file, box, values)


def _key(file: BinaryIO, box: Box) -> str:
    """The name of a box, or the one that it states itself."""
    for part in inside(file, box) if box.kind == _OTHER else ():
        if part.kind == b"name":
            file.seek(part.first + 4)
            return file.read(min(part.end - part.first - 4, 256)).decode(
                "utf-8", "replace"
            )
    return _text(box.kind)


def _stated_keys(file: BinaryIO, box: Box | None) -> Iterator[str]:
    """The keys that a box lists."""
    if box is None:
        return
    content, at = _content(file, box), 8
    for _ in range(_MOST_KEYS):
        if at + 8 > len(content):
            return
        (size,) = struct.unpack_from(">I", content, at)
        if size < 8:
            return
        yield content[at + 8 : at + size].decode("utf-8", "replace")
        at += size


def _is_read(file: BinaryIO, box: Box, values: Container[str]) -> bool:
    """Whether what a box says is among the values that libav has read."""
    content = _content(file, box)
    # A text begins behind its length and language, its flags, or in a box of its own.
    for start in (4, 6, 0, 16):
        data = content[start:]
        if data[:2] == b"\xfe\xff":
            text = data[2:].decode("utf-16-be", "replace")
        else:
            text = data.decode("utf-8", "replace")
        if text.strip("\0").split("\0")[0] in values:
            return True
    return not content.strip(b"\0")


def _text(kind: bytes) -> str:
    return kind.decode("latin-1").strip()
