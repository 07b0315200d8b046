"""Bicubic and Lanczos as models, and what tables and pages of several models share."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from aethernet.errors import AetherError, ContradictionError
from aethernet.pictures.resampling import enlarge
from aethernet.runtimes.base import Description, InputSizes, Model

# Names in tables, on pages and in files of results.
BICUBIC, LANCZOS, HR = "bicubic", "Lanczos", "HR"


class Bicubic:
    """Bicubic enlargement like MATLAB's, as a `Model`."""

    channels = 3
    input_sizes = InputSizes()

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def run(self, batch: np.ndarray) -> np.ndarray:
        """As `Model.run`."""
        return enlarge(batch, self.scale)

    def describe(self) -> Description:
        """As `Model.describe`."""
        return Description("NumPy", "cpu", "float32")


class Lanczos:
    """Lanczos enlargement (three lobes) by Pillow, as a `Model`."""

    channels = 3
    input_sizes = InputSizes()

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


def baselines(scale: int) -> dict[str, Model]:
    """The first rows of every table."""
    return {BICUBIC: Bicubic(scale), LANCZOS: Lanczos(scale)}


def model_names(
    paths: Sequence[Path], taken: Sequence[str] = (BICUBIC, HR)
) -> list[str]:
    """Names for models: of their files without suffix, or whole paths if ambiguous.

    Args:
        paths: of the model files.
        taken: other names in the same table or on the same page.
    """
    stems = [path.stem for path in paths]
    if len({*stems, *taken}) == len(stems) + len(taken):
        return stems
    return [str(path) for path in paths]


def common_scale(models: Mapping[str, Model], expected: int | None = None) -> int:
    """The scale of all models; without a model, the expected one.

    Raises:
        ContradictionError: when a model has another scale than expected.
        AetherError: when the models have several scales, or there is neither a model
            nor an expected scale.
    """
    scales = {model.scale for model in models.values()}
    each = ", ".join(f"{name} {model.scale}x" for name, model in models.items())
    if len(scales) > 1:
        raise AetherError(f"Only models of one scale can be compared, not {each}.")
    if expected and scales - {expected}:
        raise ContradictionError(
            f"The scale was given as {expected}, but the models are {each}.",
            hint="Leave --scale out: it is read from the models.",
        )
    if not scales and not expected:
        raise AetherError(
            "Without a model the scale is unknown.", hint="Name it with --scale."
        )
    return expected or scales.pop()
