"""Pictures of a release: before and after, and beside bicubic interpolation."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from aethernet.checkpoints.verification import natural_image
from aethernet.errors import AetherError, ImageError
from aethernet.pictures.files import Picture, in_8_bits, read_picture
from aethernet.pictures.metadata import Metadata
from aethernet.pictures.write import write_picture
from aethernet.quality.baselines import Bicubic
from aethernet.quality.compare import MOST_MEGAPIXELS
from aethernet.runtimes.base import Model
from aethernet.upscaling.planes import upscale_picture

_log = logging.getLogger(__name__)

IMAGES = "images"
"""Name of the folder with the pictures."""

CREDIT = '"Chelsea" by Stéfan van der Walt (CC0)'
"""Title, author and licence of the default picture."""

_DEFAULT_NAME = "chelsea"

# A comparison shows this many LR pixels of each side, and a gap in output pixels.
_CUT, _GAP = 256, 8


def default_picture() -> dict[str, Picture]:
    """The photograph that the tools verify models with, by its name."""
    planes = natural_image(64, 96)[0].transpose(1, 2, 0)  # -> (H, W, C)
    return {_DEFAULT_NAME: Picture((planes * 255).round().astype(np.uint8))}


def read_pictures(paths: Sequence[Path], scale: int) -> dict[str, Picture]:
    """Read LR pictures to show, by name: 8 bits, and no metadata but the ICC profile.

    Raises:
        ImageError: when one cannot be read or is too large to be shown at this scale.
        AetherError: when two have the same name.
    """
    found: dict[str, Picture] = {}
    for path in paths:
        picture = in_8_bits(read_picture(path))
        height, width = picture.pixels.shape[:2]
        megapixels = height * width * scale**2 / 1e6
        if megapixels > MOST_MEGAPIXELS:
            raise ImageError(
                f"At {scale}x it has {megapixels:.0f} megapixels; at most "
                f"{MOST_MEGAPIXELS} can be shown.",
                path,
                "Cut out a part of it.",
            )
        if path.stem in found:
            raise AetherError(
                f"Two pictures have the name {path.stem}.", path, "Rename one."
            )
        # The metadata of a photograph may contain where its author lives.
        known = picture.metadata
        kept = Metadata(profile=known.profile, colour=known.colour)
        found[path.stem] = Picture(picture.pixels, kept)
    return found


def image_name(picture: str, kind: str) -> str:
    """The file of a picture in the release; `kind` is "lr", "sr" or "comparison"."""
    return f"{IMAGES}/{picture}_{kind}.png"


def draw(folder: Path, pictures: Mapping[str, Picture], model: Model) -> list[str]:
    """Write each picture before and after, and a comparison with bicubic.

    At 1x, the comparison shows the picture itself instead of bicubic.

    Returns:
        The files of the comparisons, relative to the folder.
    """
    if pictures:
        (folder / IMAGES).mkdir()
    comparisons = []
    for name, lr in pictures.items():
        _log.info("drawing %s", name)
        sr = upscale_picture(lr, model, 8)
        write_picture(lr, folder / image_name(name, "lr"))
        write_picture(sr, folder / image_name(name, "sr"))
        scale = model.scale
        before = lr if scale == 1 else upscale_picture(lr, Bicubic(scale), 8)
        comparison = image_name(name, "comparison")
        write_picture(_side_by_side(before, sr, scale), folder / comparison)
        comparisons.append(comparison)
    return comparisons


def _side_by_side(left: Picture, right: Picture, scale: int) -> Picture:
    """The middle of two pictures of one size, with a white gap between them."""
    height, width, bands = left.pixels.shape
    rows, columns = min(height, _CUT * scale), min(width, _CUT * scale)
    top, begin = (height - rows) // 2, (width - columns) // 2
    part = (slice(top, top + rows), slice(begin, begin + columns))
    gap = np.full((rows, _GAP, bands), 255, np.uint8)
    pixels = np.concatenate((left.pixels[part], gap, right.pixels[part]), axis=1)
    return Picture(pixels, left.metadata)
