"""The pixel values that a network of others takes and makes: found out, and converted.

AetherNet takes and makes RGB of 0 to 1. Others may want 0 to 255, or BGR. A network
that gets the wrong values makes no picture of a photograph.
"""

import itertools
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aethernet.checkpoints.plausibility import RIGHT, difference
from aethernet.checkpoints.verification import natural_image
from aethernet.errors import AetherError
from aethernet.runtimes.base import AskedValues, Model

_log = logging.getLogger(__name__)

RANGES = (1.0, 255.0)
"""What white is, in networks."""

_SIDE = 16  # of the photograph, in LR pixels

# What a network makes is no picture of the photograph from this mean difference on, and
# is one below `RIGHT`. Between them are networks that change light and colours.
_WRONG = 2 * RIGHT

Pixels = TypeVar("Pixels", bound=Any)
"""A NumPy array or a PyTorch tensor."""


@dataclass(frozen=True)
class Values:
    """The values that a network takes and makes."""

    takes: float = 1.0
    """What white is in its input."""
    makes: float = 1.0
    """What white is in its output."""
    takes_bgr: bool = False
    makes_bgr: bool = False

    def given(self, pixels: Pixels) -> Pixels:
        """RGB of 0 to 1, `(B, C, H, W)`, as the network takes it."""
        pixels = _reversed(pixels) if self.takes_bgr else pixels
        return pixels if self.takes == 1 else pixels * self.takes

    def made(self, pixels: Pixels) -> Pixels:
        """What the network made, `(B, C, H, W)`, as RGB of 0 to 1."""
        pixels = _reversed(pixels) if self.makes_bgr else pixels
        return pixels if self.makes == 1 else pixels / self.makes

    def describe(self, channels: int) -> str:
        """The values in words, e.g. "takes BGR of 0 to 255 and makes the same"."""
        takes = _described(self.takes_bgr, self.takes, channels)
        makes = _described(self.makes_bgr, self.makes, channels)
        return f"takes {takes} and makes {'the same' if takes == makes else makes}"


class Foreign(Model, Protocol):
    """A model that converts pixels to and from what its network wants."""

    values: Values


def _reversed(pixels: Pixels) -> Pixels:
    """The three channels in the opposite order; others as they are."""
    return pixels[:, [2, 1, 0]] if pixels.shape[1] == 3 else pixels


def _described(bgr: bool, white: float, channels: int) -> str:
    colours = "values" if channels != 3 else "BGR" if bgr else "RGB"
    return f"{colours} of 0 to {white:g}"


def set_values(model: Foreign, path: Path, asked: AskedValues) -> None:
    """Let a model convert pixels as the user says, or as a photograph shows.

    If that finds something else than RGB of 0 to 1, a warning says it.

    Args:
        model: whose `values` are set.
        path: of its file.
        asked: by the user.

    Raises:
        AetherError: when it has no three channels, and BGR is asked for.
    """
    if asked.bgr and model.channels != 3:
        raise AetherError(
            f"The network has {model.channels} channels, so there is no BGR.",
            path,
            "Leave out --bgr.",
        )
    usual = replace(model.values, takes_bgr=asked.bgr, makes_bgr=asked.bgr)
    if asked.range is not None:
        model.values = replace(usual, takes=asked.range, makes=asked.range)
        return
    model.values = usual
    try:
        found = _found(model, usual, asked.bgr)
    except AetherError as error:  # the picture that follows fails with it, or does not
        _log.info("%s: its values are not found out: %s", path, error)
        found = usual
    model.values = found
    if found != usual:
        flag = f" (--range {found.takes:g})" if found == _both(found, asked) else ""
        _log.warning(
            "%s: the network %s, as a test with a photograph shows; pixels are "
            "converted%s.",
            *(path, found.describe(model.channels), flag),
        )


def _both(found: Values, asked: AskedValues) -> Values:
    """The values that --range asks for, with the range that was found."""
    return Values(found.takes, found.takes, asked.bgr, asked.bgr)


def _found(model: Foreign, usual: Values, bgr: bool) -> Values:
    """The values with which a model enlarges a photograph; the usual ones if none do.

    Raises:
        AetherError: when the model fails.
    """
    height, width = (max(side, _SIDE) for side in model.input_sizes.least)
    image = natural_image(height, width, model.channels)
    whites = [usual.takes, *(white for white in RANGES if white != usual.takes)]
    orders = [bgr] if bgr or model.channels != 3 else [False, True]
    far: dict[Values, float] = {}
    for takes_bgr, takes in itertools.product(orders, whites):
        # A wide output, because spandrel cuts off what is outside of it.
        model.values = Values(takes, max(RANGES), takes_bgr)
        made = model.run(image) * max(RANGES)
        for makes_bgr, makes in itertools.product(orders, RANGES):
            values = Values(takes, makes, takes_bgr, makes_bgr)
            far[values] = difference(values.made(made), image)
        if far[usual] < _WRONG:  # one of the first
            return usual
    best = min(far, key=lambda values: far[values])
    return best if far[best] < RIGHT else usual
