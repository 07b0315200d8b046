"""Whether a network turns a photograph into that photograph, only larger."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from aethernet.checkpoints.checkpoint import Checkpoint
from aethernet.checkpoints.reference import evaluate
from aethernet.checkpoints.verification import natural_image

# What networks are trained with: pictures of 0..1 or 0..255.
IMG_RANGES = (1.0, 255.0)

RIGHT = 0.05
"""Largest mean difference of a picture from the photograph with its pixels repeated.

That of the trained network that ships is 0.02, and with a wrong `img_range` 0.15.
"""

_SIDE = 16  # LR pixels


def likely_img_range(checkpoint: Checkpoint) -> float | None:
    """Another `img_range` that a checkpoint was trained with, by all appearances.

    No weight tells it. A network that was trained with another one makes no picture of
    a photograph; one that is not trained makes none with any.

    Returns:
        A member of `IMG_RANGES`; None where the checkpoint's own fits as well.
    """
    if _fits(checkpoint):
        return None
    for img_range in IMG_RANGES:
        changed = {**checkpoint.hyperparameters, "img_range": img_range}
        if _fits(replace(checkpoint, hyperparameters=changed)):
            return img_range
    return None


def difference(made: np.ndarray, image: np.ndarray) -> float:
    """The mean difference of an enlarged picture from one with its pixels repeated.

    Args:
        made: `(B, C, scale * H, scale * W)`, of 0 to 1.
        image: of which it was made, `(B, C, H, W)`.

    Returns:
        Infinity where values are not finite.
    """
    scale = made.shape[2] // image.shape[2]
    wanted = image.repeat(scale, 2).repeat(scale, 3)
    made = np.nan_to_num(made, nan=np.inf, posinf=np.inf, neginf=np.inf)
    return float(np.abs(made - wanted).mean())


def enlarges(run: Callable[[np.ndarray], np.ndarray], channels: int) -> bool:
    """Whether a network makes a picture of a photograph.

    Args:
        run: as `Model.run`.
        channels: that the network takes.
    """
    image = natural_image(_SIDE, _SIDE, channels)
    return difference(run(image), image) < RIGHT


def _fits(checkpoint: Checkpoint) -> bool:
    return enlarges(partial(evaluate, checkpoint.folded), checkpoint.in_chans)
