"""Pictures that int8 quantization is calibrated with."""

import logging
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aethernet.checkpoints.checkpoint import Checkpoint
from aethernet.errors import ImageError
from aethernet.pictures.files import READABLE, read_picture

_log = logging.getLogger(__name__)

MAX_PICTURES = 64

_CROP = 128  # LR pixels of each side that are looked at, from the middle


def calibration_pictures(
    folder: Path, checkpoint: Checkpoint, fixed: tuple[int, int, int] | None
) -> list[tuple[str, Tensor]]:
    """The middle of up to `MAX_PICTURES` pictures of a folder, by their names in it.

    Returns:
        `(batch, in_chans, H, W)`, float32, 0..1, without alpha; of the fixed size,
        mirrored to fill it, or up to 128x128.

    Raises:
        ImageError: when there is none of the network's number of channels, or one
            cannot be read.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder} is no folder: int8 is calibrated on pictures.")
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in READABLE and file.is_file()
    )
    every = max(1, math.ceil(len(files) / MAX_PICTURES))
    channels = checkpoint.hyperparameters["in_chans"]
    batch, height, width = fixed or (1, _CROP, _CROP)
    found = []
    for file in files[::every]:
        pixels = read_picture(file).pixels
        colours = pixels[:, :, : 3 if pixels.shape[2] >= 3 else 1]
        if colours.shape[2] != channels:
            _log.warning(
                "%s is left out: the network takes %d channels.", file, channels
            )
            continue
        rows, columns = colours.shape[:2]
        if fixed:
            missing = (max(0, height - rows), max(0, width - columns))
            colours = np.pad(colours, [(0, n) for n in (*missing, 0)], "symmetric")
        top, left = max(0, (rows - height) // 2), max(0, (columns - width) // 2)
        crop = colours[top : top + height, left : left + width]
        values = crop.astype(np.float32) / np.iinfo(pixels.dtype).max
        image = torch.from_numpy(values).permute(2, 0, 1).contiguous()
        found.append((str(file.relative_to(folder)), image.expand(batch, -1, -1, -1)))
    if not found:
        raise ImageError(
            f"{folder} holds no {', '.join(READABLE)} picture of {channels} channels "
            "to calibrate int8 on."
        )
    return found
