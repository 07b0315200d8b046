"""Pictures to calibrate int8 quantization on."""

import logging
import math
from pathlib import Path

import numpy as np

from aethernet.errors import ImageError
from aethernet.pictures.files import READABLE, read_picture

_log = logging.getLogger(__name__)

MAX_PICTURES = 64

_CROP = 128  # LR pixels of each side that are used, from the middle of a picture


def calibration_pictures(
    folder: Path, channels: int, fixed: tuple[int, int, int] | None
) -> dict[str, np.ndarray]:
    """Read the middle of up to `MAX_PICTURES` pictures in a folder and below it.

    Args:
        folder: with pictures like those that the model will see. If it holds more than
            `MAX_PICTURES`, they are chosen at even distances in the order of names.
        channels: 1 for gray, 3 for RGB; other pictures are skipped with a warning.
        fixed: batch, height and width of the result. None is 1, and at most 128x128.

    Returns:
        By path relative to the folder: `(batch, channels, H, W)`, float32, 0..1,
        without alpha, mirrored to fill a fixed size.

    Raises:
        ImageError: when there is no picture with so many channels, or one cannot be
            read.
    """
    if not folder.is_dir():
        raise ImageError("There is no such folder of pictures.", folder)
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in READABLE and file.is_file()
    )
    every = max(1, math.ceil(len(files) / MAX_PICTURES))
    batch, height, width = fixed or (1, _CROP, _CROP)
    found = {}
    for file in files[::every]:
        pixels = read_picture(file).pixels
        colours = pixels[:, :, : 3 if pixels.shape[2] >= 3 else 1]
        if colours.shape[2] != channels:
            _log.warning("skipping %s: the network takes %d channels", file, channels)
            continue
        values = colours.astype(np.float32) / np.iinfo(pixels.dtype).max
        middle = _middle(values, height, width, fill=fixed is not None)
        image = middle.transpose(2, 0, 1)[None]  # (H, W, C) -> (1, C, H, W)
        found[str(file.relative_to(folder))] = image.repeat(batch, axis=0)
    if not found:
        raise ImageError(
            f"There is no picture ({', '.join(READABLE)}) of {channels} channels to "
            "calibrate int8 on.",
            folder,
        )
    return found


def _middle(pixels: np.ndarray, height: int, width: int, fill: bool) -> np.ndarray:
    """The middle of a picture, up to this size, or mirrored to fill it."""
    rows, columns = pixels.shape[:2]
    if fill:
        missing = (max(0, height - rows), max(0, width - columns))
        pixels = np.pad(pixels, [(0, n) for n in (*missing, 0)], "symmetric")
    top, left = max(0, (rows - height) // 2), max(0, (columns - width) // 2)
    return pixels[top : top + height, left : left + width]
