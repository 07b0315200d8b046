"""What a file says of its pictures and libav does not read, by name."""

from pathlib import Path
from typing import Any, BinaryIO

from aethernet.video.boxes import Box, boxes_of_pictures, inside
from aethernet.video.extras import SPHERE, has_mesh

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
# What turns a sphere, and the projections of one that libav reads.
_PROJECTIONS = (b"prhd", b"cbmp", b"equi", *_EMPTY)


def unread(path: Path, stream: Any) -> frozenset[str]:
    """Names of what a file says of a video stream's pictures and libav does not read.

    Args:
        path: of the file.
        stream: of libav, in this file.
    """
    with path.open("rb") as file:
        names = {_name(file, box) for box in boxes_of_pictures(file, stream.id)}
        if has_mesh(file):
            names.add(SPHERE)
    return frozenset(name for name in names if name)


def _name(file: BinaryIO, box: Box) -> str | None:
    if box.kind == b"sv3d":
        parts = [each for each in inside(file, box) if each.kind == b"proj"]
        kinds = {each.kind for part in parts for each in inside(file, part)}
        return SPHERE if kinds - {*_PROJECTIONS} else None
    # Old entries of QuickTime end with bytes that are no boxes.
    if box.kind in _READ or not (box.kind.isascii() and box.kind.isalnum()):
        return None
    return _NAMES.get(box.kind, f"the box {box.kind.decode()}")
