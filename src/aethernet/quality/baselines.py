"""Bicubic and Lanczos as models, and the names that tables use."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aethernet.pictures.resampling import enlarge
from aethernet.runtimes.base import Description, Limits, Model

BICUBIC, HR = "bicubic", "HR"


def model_names(
    paths: Sequence[Path], taken: Sequence[str] = (BICUBIC, HR)
) -> list[str]:
    """What models are called: by their files' names, where that tells them apart.

    `taken` are other names on the same page.
    """
    stems = [path.stem for path in paths]
    if len({*stems, *taken}) == len(stems) + len(taken):
        return stems
    return [str(path) for path in paths]


LANCZOS = "Lanczos"


def baselines(scale: int) -> dict[str, Model]:
    """What every table begins with."""
    return {BICUBIC: Bicubic(scale), LANCZOS: Lanczos(scale)}


class Bicubic:
    """Bicubic enlargement as a `Model`: what every table starts with."""

    channels = 3
    limits = Limits()

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def run(self, batch: np.ndarray) -> np.ndarray:
        """As `Model.run`."""
        return enlarge(torch.from_numpy(batch), self.scale).numpy()

    def describe(self) -> Description:
        """As `Model.describe`."""
        return Description("PyTorch", "cpu", "float32")


class Lanczos:
    """Lanczos enlargement, three lobes, by Pillow, as a `Model`."""

    channels = 3
    limits = Limits()

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def run(self, batch: np.ndarray) -> np.ndarray:
        """As `Model.run`."""
        height, width = (side * self.scale for side in batch.shape[2:])
        enlarged = np.empty((*batch.shape[:2], height, width), np.float32)
        for index in np.ndindex(batch.shape[:2]):
            plane = Image.fromarray(batch[index])
            enlarged[index] = plane.resize((width, height), Image.Resampling.LANCZOS)
        return enlarged

    def describe(self) -> Description:
        """As `Model.describe`."""
        return Description("Pillow", "cpu", "float32")
