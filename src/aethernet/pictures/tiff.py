"""Metadata in TIFF files: read as EXIF and colours, and added to a written file.

Source: TIFF 6.0, its supplements, and EXIF 2.32.
"""

import io
import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np

from aethernet.pictures import ifd
from aethernet.pictures.colour import StatedColour
from aethernet.pictures.metadata import (
    Metadata,
    iim_of,
    more_pictures,
    photoshop_of,
    resources_by_pixels,
)

_XMP, _IIM, _PHOTOSHOP, _PROFILE = 700, 33723, 34377, 34675
_TRANSFER, _WHITE, _CORNERS = 301, 318, 319
# Tags that describe how the pixels are stored.
_STRUCTURE = (
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 274, 277, 278, 279),
    *(280, 281, 284, 288, 289, 290, 291, 292, 293, 301, 317, 318),
    *(319, 320, 321, 322, 323, 324, 325, 330, 332, 334, 336, 338, 339, 340, 341),
    *(342, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
    *(32997, 32998, 34016, 34017, 34019, 34020, 34021, 37724),
)
_RESOLUTION = (ifd.X_RESOLUTION, ifd.Y_RESOLUTION, ifd.RESOLUTION_UNIT)
_CARRIED = (_XMP, _IIM, _PHOTOSHOP, _PROFILE)
# Tags of the picture as a whole: as in EXIF's first directory, and copyright.
_DESCRIBING = (
    *(
        11,
        269,
        270,
        271,
        272,
        285,
        305,
        306,
        315,
        316,
        33432,
        40091,
        40092,
        40093,
        40094,
    ),
    *(40095, 18246, 18249, 50341),
)
# Tags of EXIF's own directory, which some programs put into the first one.
_OF_EXIF = (range(33434, 33438), range(36864, 37523), range(40960, 42241))
_LAYERS, _SUB_DIRECTORIES, _SUBFILE_TYPE = 37724, 330, 254
_MOST_PICTURES = 100
_SAMPLES, _PHOTOMETRIC, _EXTRA = 277, 262, 338
_CMYK = 5
_IS_ALPHA = (1, 2)
_NAMES = {
    frozenset((33550, 33922, 34264, 34735, 34736, 34737)): (
        "the geographic position (GeoTIFF)"
    ),
    frozenset((286, 287)): "the place on the page",
    frozenset((297,)): "the number of the page",
    frozenset((343, 344, 345, 346)): "the clipping path",
    frozenset((50838, 50839)): "ImageJ's metadata",
}


def read(path: Path, known: Metadata) -> Metadata:
    """Add what the first directory of a TIFF file says.

    Args:
        path: of the file.
        known: the profile and XMP as libvips read them.
    """
    with path.open("rb") as file:
        try:
            found = ifd.Structure(file)
            first = found.directory(found.first)
        except (ValueError, struct.error):
            return known
        tags, order = first.tags, found.order
        inside = ifd.tree_of(found, tags).inside
        others = more_pictures(_more(found, tags))
    described = {
        tag: value
        for tag, value in tags.items()
        if tag in _DESCRIBING or any(tag in some for some in _OF_EXIF)
    }
    block = None
    if described or inside:
        whole = ifd.Tree(described, inside)
        block = ifd.header(order) + ifd.serialised(whole, order)
    taken = (*_STRUCTURE, *_RESOLUTION, *_CARRIED, *described, *inside)
    unknown = sorted(tag for tag in tags if tag not in taken)
    others += [name for some, name in _NAMES.items() if not some.isdisjoint(unknown)]
    if _is_doubtful(tags, order):
        others.append("the kind of the last channel (unknown, now transparency)")
    if _LAYERS in tags:
        others.append("Photoshop's layers")
    colour = _colour(tags, order)
    if _TRANSFER in tags and colour.gamma is None:
        others.append("the transfer function")
    named = frozenset[int]().union(*_NAMES)
    numbers = ", ".join(str(tag) for tag in unknown if tag not in named)
    if numbers:
        others.append(f"the TIFF tags {numbers}")
    photoshop = tags[_PHOTOSHOP].data if _PHOTOSHOP in tags else b""
    others += resources_by_pixels(photoshop)
    if _IIM in tags and not (photoshop and iim_of(photoshop)):
        photoshop += photoshop_of(_iim(tags[_IIM], order)) or b""
    return replace(
        known,
        colour=colour,
        exif=block,
        photoshop=photoshop_of(photoshop),
        unitless=_unitless(tags, order),
        others=tuple(others),
    )


def _is_doubtful(tags: ifd.Tags, order: str) -> bool:
    """Whether there is a channel beside the colours that is not said to be alpha."""
    if _EXTRA in tags:
        return tags[_EXTRA].numbers(order)[0] not in _IS_ALPHA
    if not {_SAMPLES, _PHOTOMETRIC} <= tags.keys():
        return False
    channels, kind = (tags[tag].numbers(order)[0] for tag in (_SAMPLES, _PHOTOMETRIC))
    return channels in (2, 4) and kind != _CMYK


def _more(found: ifd.Structure, tags: ifd.Tags) -> int:
    """How many pictures lie beneath the first one that are no smaller copies of it."""
    if _SUB_DIRECTORIES not in tags:
        return 0
    count = 0
    for place in tags[_SUB_DIRECTORIES].numbers(found.order)[:_MOST_PICTURES]:
        try:
            kind = found.directory(place).tags.get(_SUBFILE_TYPE)
        except (ValueError, struct.error):
            continue
        smaller = kind is not None and kind.numbers(found.order)[0] & 1
        count += not smaller
    return count


def _unitless(tags: ifd.Tags, order: str) -> tuple[int, int] | None:
    """The resolution in integers, if it is one without a unit."""
    across, down, unit = (tags.get(tag) for tag in _RESOLUTION)
    if not (across and down and unit) or unit.numbers(order)[0] != 1:
        return None
    (a, b), (c, d) = _pairs(across.numbers(order))[0], _pairs(down.numbers(order))[0]
    shared = math.gcd(a * d, c * b) or 1
    return a * d // shared, c * b // shared


def _iim(value: ifd.Value, order: str) -> bytes:
    """IPTC records; some programs store them as numbers of 32 bits, big-endian."""
    data = value.data
    return data if data[:1] == b"\x1c" else value.in_order(order, ">")


def _colour(tags: ifd.Tags, order: str) -> StatedColour:
    """White point, primaries, and a transfer function that is a power."""
    numbers = [
        round(numerator / max(denominator, 1) * 100_000)
        for tag in (_WHITE, _CORNERS)
        if tag in tags and tags[tag].kind == 5
        for numerator, denominator in _pairs(tags[tag].numbers(order))
    ]
    gamma = None
    if _TRANSFER in tags and tags[_TRANSFER].kind == 3:
        gamma = _power(tags[_TRANSFER].numbers(order))
    return StatedColour(
        gamma=gamma, chromaticities=tuple(numbers) if len(numbers) == 8 else None
    )


def _pairs(numbers: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip(numbers[::2], numbers[1::2], strict=False))


def _power(table: tuple[int, ...]) -> int | None:
    """The exponent, as in PNG's gAMA, of a table of linear values, if it is a power."""
    values = np.array(table, np.float64) / 65535
    curves = values.reshape(3, -1) if len(table) % 3 == 0 else values.reshape(1, -1)
    length = curves.shape[1]
    if length < 16 or not 0 < curves[0, length // 2] < 1:
        return None
    stored = np.arange(length) / (length - 1)
    exponent = np.log(curves[0, length // 2]) / np.log(stored[length // 2])
    if exponent <= 0 or np.abs(curves - stored**exponent).max() > 1e-3:
        return None
    return round(100_000 / exponent)


def add(path: Path, metadata: Metadata) -> None:
    """Add metadata to a TIFF file that libvips has written.

    A new first directory is put at the end of the file.
    """
    with path.open("r+b") as file:
        found = ifd.Structure(file)
        first = found.directory(found.first)
        tree = _exif_tree(metadata.exif, found.order)
        tags = {**tree.tags, **first.tags}
        if metadata.resolution:
            tags |= ifd.resolution_tags(metadata.resolution, found.order)
        else:  # libvips has made one up
            tags |= ifd.shape_tags(metadata.unitless or (1, 1), found.order)
        added = {
            _PROFILE: (7, metadata.profile),
            _XMP: (1, metadata.xmp),
            _PHOTOSHOP: (7, metadata.photoshop),
            _IIM: (7, iim_of(metadata.photoshop) if metadata.photoshop else None),
        }
        tags |= {
            tag: ifd.Value(kind, data) for tag, (kind, data) in added.items() if data
        }
        end = file.seek(0, 2)
        start = end + end % 2
        whole = ifd.Tree(tags, tree.inside)
        file.write(
            bytes(end % 2) + ifd.serialised(whole, found.order, start, found.big)
        )
        file.seek(found.first_field)
        file.write(struct.pack(found.order + ("Q" if found.big else "I"), start))


def _exif_tree(block: bytes | None, order: str) -> ifd.Tree:
    """The directories of an EXIF block, without what describes stored pixels."""
    if block is None:
        return ifd.Tree({})
    found = ifd.Structure(io.BytesIO(block))
    try:
        first = found.directory(found.first)
    except ValueError:
        return ifd.Tree({})
    left = (*_STRUCTURE, *_RESOLUTION, *_CARRIED)
    tags = {tag: value for tag, value in first.tags.items() if tag not in left}
    return ifd.tree_of(found, tags).in_order(found.order, order)
