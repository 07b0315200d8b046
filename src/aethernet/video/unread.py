"""What a file holds and libav does not read, by name."""

from pathlib import Path
from typing import Any, BinaryIO

from aethernet.video.boxes import Box, boxes_of_pictures, inside, outermost
from aethernet.video.ebml import find_in_file
from aethernet.video.extras import SPHERE, has_mesh

_MOST_NAMES = 8

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

# Matroska's flag of an edition whose chapters play in an order of their own.
_ORDERED = (0x18538067, 0x1043A770, 0x45B9, 0x45DD)

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
        if has_mesh(file):
            names.add(SPHERE)
        if any(find_in_file(file, *_ORDERED) or b""):
            names.add("the order in which chapters play")
    found = sorted(name for name in names if name)
    return frozenset(found[:_MOST_NAMES] + ["more boxes"] * (len(found) > _MOST_NAMES))


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
