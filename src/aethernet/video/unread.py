"""What a file holds and libav does not read, by name."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from aethernet.text import listed
from aethernet.video.boxes import (
    Box,
    behind,
    boxes_of_pictures,
    has_encrypted_track,
    inside,
    outermost,
)
from aethernet.video.ebml import elements, find, find_in_file
from aethernet.video.extras import SPHERE, has_mesh
from aethernet.video.riff import names_in_avi
from aethernet.video.transport import is_scrambled
from aethernet.video.user_data import names_of_user_data

_MOST_NAMES, _KEY = 8, "the metadata "

# Bytes behind the boxes that mean nothing; some programs fill up blocks.
_MOST_FILLING = 64

_EMPTY = (b"free", b"skip", b"wide")

# Boxes beside coded pictures that libav reads, or that describe the old file only.
_READ = (
    *(b"avcC", b"hvcC", b"lhvC", b"hvcE", b"vvcC", b"av1C", b"vpcC", b"esds", b"d263"),
    *(b"glbl", b"strf", b"jp2h", b"wave", b"colr", b"gama", b"pasp", b"clap", b"fiel"),
    *(b"mdcv", b"clli", b"SmDm", b"CoLL", b"amve", b"st3d", b"sv3d", b"vexu", b"dvcC"),
    *(b"dvvC", b"dvwC", b"btrt", b"ccst", b"stsl", b"ACLR", b"APRG", b"ARES", b"AORD"),
    *(b"AALP", *_EMPTY),
)
_NAMES = {
    b"cclv": "the content colour volume",
    b"hfov": "the field of view",
}
# Boxes of a file that are read, or describe it only.
_OF_FILE = (
    *(b"ftyp", b"styp", b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"ssix", b"prft"),
    *(b"pdin", b"mvhd", b"trak", b"mvex", b"udta", b"meta", b"iods", b"cmov", *_EMPTY),
)
_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_CREDENTIALS = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_UUIDS = {_XMP: "XMP", _CREDENTIALS: "content credentials (C2PA)"}

# Matroska's numbers: chapters, an edition of them, its flag of an order of their own,
# a chapter, its names in each language, and whether players show it.
_SEGMENT, _CHAPTERS, _EDITION, _ORDERED, _CHAPTER, _DISPLAY, _HIDDEN = (
    *(0x18538067, 0x1043A770, 0x45B9, 0x45DD, 0xB6, 0x80, 0x98),
)
# What leads to files that continue this one, or belong to it.
_INFO, _LINKS = 0x1549A966, (0x3CB923, 0x3C83AB, 0x3EB923, 0x3E83BB, 0x4444, 0x6924)
# And tracks, one of them, and how its packets are changed: 1 means encrypted.
_TRACKS, _TRACK, _ENCODINGS, _ENCODING, _ENCODING_KIND = (
    *(0x1654AE6B, 0xAE, 0x6D80, 0x6240, 0x5033),
)

# What turns a sphere, and the projections of one that libav reads.
_PROJECTIONS = (b"prhd", b"cbmp", b"equi", *_EMPTY)


def unread(path: Path, stream: Any) -> frozenset[str]:
    """Names of what a file holds, beside its streams, and libav does not read.

    Args:
        path: of the file.
        stream: of libav, in this file, whose pictures are upscaled.
    """
    with path.open("rb") as file:
        names = {_name(file, box) for box in boxes_of_pictures(file, stream.id)}
        for box in outermost(file):
            names.add(_name_in_file(file, box))
            if box.kind == b"moov":
                names.update(_name_in_file(file, each) for each in inside(file, box))
        values, keys = _metadata(stream)
        names.update(names_of_user_data(file, values, keys))
        if has_mesh(file):
            names.add(SPHERE)
        names.update(_of_chapters(find_in_file(file, _SEGMENT, _CHAPTERS) or b""))
        names |= names_in_avi(file) | _of_links(file)
        if behind(file) > _MOST_FILLING:
            names.add("what lies behind the boxes")
    found = _shortened(name for name in names if name)
    return frozenset(found[:_MOST_NAMES] + ["more boxes"] * (len(found) > _MOST_NAMES))


def is_encrypted(path: Path) -> bool:
    """Whether MP4, MOV, Matroska or MPEG-TS is encrypted, or a track of it."""
    with path.open("rb") as file:
        if has_encrypted_track(file) or is_scrambled(file):
            return True
        tracks = find_in_file(file, _SEGMENT, _TRACKS) or b""
    path_to_kind = _ENCODINGS, _ENCODING, _ENCODING_KIND
    try:
        inside = [each.content for each in elements(tracks) if each.number == _TRACK]
        return any(any(find(track, *path_to_kind) or b"") for track in inside)
    except ValueError:  # damaged in a way that libav puts up with
        return False


def _of_links(file: BinaryIO) -> set[str]:
    """The name of what leads from a Matroska file to others."""
    info = find_in_file(file, _SEGMENT, _INFO) or b""
    try:
        linked = any(part.number in _LINKS for part in elements(info))
    except ValueError:
        linked = False
    return {"links to other files"} if linked else set()


def _of_chapters(chapters: bytes) -> Iterator[str]:
    """Names of what Matroska's chapters hold and libav does not read."""
    try:
        editions = [e.content for e in elements(chapters) if e.number == _EDITION]
        if len(editions) > 1:
            yield "which chapters belong to which of several editions"
        for edition in editions:
            if any(find(edition, _ORDERED) or b""):
                yield "the order in which chapters play"
            for chapter in elements(edition):
                if chapter.number == _CHAPTER:
                    parts = [each.number for each in elements(chapter.content)]
                    if _CHAPTER in parts:
                        yield "chapters inside of chapters"
                    if parts.count(_DISPLAY) > 1:
                        yield "names of chapters in other languages"
                    if any(find(chapter.content, _HIDDEN) or b""):
                        yield "that chapters are hidden"
    except ValueError:
        return


def _shortened(names: Iterable[str]) -> list[str]:
    """The names in order, with all keys of metadata in one of them."""
    names = sorted(names)
    keys = [name.removeprefix(_KEY) for name in names if name.startswith(_KEY)]
    if len(keys) > _MOST_NAMES:
        keys = [*keys[:_MOST_NAMES], f"{len(keys) - _MOST_NAMES} more"]
    others = [name for name in names if not name.startswith(_KEY)]
    return [*others, f"{_KEY}{listed(keys)}"] if keys else others


def _metadata(stream: Any) -> tuple[set[str], set[str]]:
    """Values and keys of all metadata that libav has read of a stream's file."""
    holders = (stream.container, *stream.container.streams)
    values = {value for holder in holders for value in holder.metadata.values()}
    return values, {key for holder in holders for key in holder.metadata}


def _name(file: BinaryIO, box: Box) -> str | None:
    if box.kind == b"sv3d":
        parts = [each for each in inside(file, box) if each.kind == b"proj"]
        kinds = {each.kind for part in parts for each in inside(file, part)}
        return SPHERE if kinds - {*_PROJECTIONS} else None
    return _NAMES.get(box.kind) or _unknown(box.kind, _READ)


def _name_in_file(file: BinaryIO, box: Box) -> str | None:
    if box.kind != b"uuid":
        return _unknown(box.kind, _OF_FILE)
    file.seek(box.first)
    return _UUIDS.get(file.read(16), "the box uuid")


def _unknown(kind: bytes, known: tuple[bytes, ...]) -> str | None:
    # Old entries of QuickTime end with bytes that are no boxes.
    if kind in known or not (kind.isascii() and kind.isalnum()):
        return None
    return f"the box {kind.decode()}"
