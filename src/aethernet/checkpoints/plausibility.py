"""Whether a network turns a photograph into that photograph, only larger."""

from dataclasses import replace

import numpy as np

from aethernet.checkpoints.checkpoint import Checkpoint
from aethernet.checkpoints.reference import evaluate
from aethernet.checkpoints.verification import natural_image

# What networks are trained with: pictures of 0..1 or 0..255.
IMG_RANGES = (1.0, 255.0)

# Largest mean difference from the photograph with its pixels repeated. That of the
# trained network that ships is 0.02, and with a wrong `img_range` 0.08 or 0.17.
_RIGHT = 0.05

_SIDE = 16  # LR pixels


def likely_img_range(checkpoint: Checkpoint) -> float | None:
    """Another `img_range` that a checkpoint was trained with, by all appearances.

    No weight tells it. A network that was trained with another one makes no picture of
    a photograph; one that is not trained makes none with any.

    Returns:
        A member of `IMG_RANGES`; None where the checkpoint's own fits as well.
    """
    if _difference(checkpoint) < _RIGHT:
        return None
    for img_range in IMG_RANGES:
        changed = {**checkpoint.hyperparameters, "img_range": img_range}
        if _difference(replace(checkpoint, hyperparameters=changed)) < _RIGHT:
            return img_range
    return None


def _difference(checkpoint: Checkpoint) -> float:
    image = natural_image(_SIDE, _SIDE, checkpoint.in_chans)
    made = evaluate(checkpoint.folded, image)
    wanted = image.repeat(checkpoint.scale, 2).repeat(checkpoint.scale, 3)
    difference = np.abs(np.nan_to_num(made, nan=np.inf) - wanted)
    return float(difference.mean())
