"""The best and the worst crop of each model, drawn side by side."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from aethernet import metrics
from aethernet.errors import AetherError, system_reason
from aethernet.pictures.files import Picture
from aethernet.pictures.write import write_picture
from aethernet.quality.baselines import BICUBIC, HR
from aethernet.text import printable

CROP = 96
"""Pixels along each side of a crop."""

# How many times a crop is enlarged; pixels around it; pixels of a line of text.
_ZOOM, _MARGIN, _LINE = 3, 8, 20


@dataclass(frozen=True)
class ChosenCrop:
    """A part of a picture, as made by each method."""

    picture: str
    """File name of the HR picture."""
    left: int
    top: int
    score: float
    """The value that it was chosen by, in squared 8-bit steps of luma."""
    parts: dict[str, np.ndarray]
    """HR, bicubic, then the models: `(CROP, CROP, 3)`, uint8, or less."""


def check_crop_names(sets: Sequence[str], models: Sequence[str]) -> None:
    """Check that the crops of all models and sets get different file names.

    Raises:
        AetherError: when they do not.
    """
    stems = [_crop_stem(name, model).lower() for name in sets for model in models]
    twice = [stem for stem in stems if stems.count(stem) > 1]
    if twice:
        raise AetherError(
            f"Two crops would be called {twice[0]}.", hint="Rename a model or a folder."
        )


def _crop_stem(name: str, model: str) -> str:
    return re.sub(r"[^\w.-]+", "_", f"{name}_{model}")


@dataclass
class CropPicker:
    """Picks each model's best and worst crop among all pictures of a set.

    The best crop is where the model's squared error is furthest below that of bicubic,
    the worst is where the model's squared error is largest. The error is that of luma,
    as a mean over the crop.
    """

    models: Sequence[str]
    best: dict[str, ChosenCrop] = field(default_factory=dict)
    worst: dict[str, ChosenCrop] = field(default_factory=dict)

    def look_at(
        self, picture: str, hr: np.ndarray, results: Mapping[str, np.ndarray]
    ) -> None:
        """Compare the crops of a picture with those picked so far.

        Args:
            picture: its file name.
            hr: `(H, W, 3)`, uint8.
            results: by method, of the same shape; bicubic and all models.
        """
        shown = {HR: hr, BICUBIC: results[BICUBIC]}
        shown |= {model: results[model] for model in self.models}
        luma = metrics.luma(hr)
        size = min(CROP, *luma.shape)
        errors = {
            name: _means(np.square(metrics.luma(pixels) - luma), size)
            for name, pixels in shown.items()
        }
        for model in self.models:
            gain = errors[BICUBIC] - errors[model]
            for kept, scores in ((self.best, gain), (self.worst, errors[model])):
                top, left = np.unravel_index(int(np.argmax(scores)), scores.shape)
                score = float(scores[top, left])
                if model not in kept or score > kept[model].score:
                    parts = {
                        name: pixels[top : top + size, left : left + size].copy()
                        for name, pixels in shown.items()
                    }
                    kept[model] = ChosenCrop(picture, int(left), int(top), score, parts)

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write `SET_MODEL_best.png` and `SET_MODEL_worst.png` for each model.

        Args:
            folder: made if it does not exist.
            name: of the set.

        Raises:
            AetherError: when they cannot be written.
        """
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise AetherError(
                f"Cannot make the folder: {system_reason(error)}.", folder
            ) from error
        written = []
        for what, kept in (("best", self.best), ("worst", self.worst)):
            for model, crop in kept.items():
                target = folder / f"{_crop_stem(name, model)}_{what}.png"
                write_picture(Picture(_drawn(crop, f"{name}, {model}: {what}")), target)
                written.append(target)
        return written


def _means(values: np.ndarray, size: int) -> np.ndarray:
    """Means over every square of that size, `(H - size + 1, W - size + 1)`."""
    total = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[size:, size:] - total[:-size, size:] - total[size:, :-size]
    return (sums + total[:-size, :-size]) / size**2


def _drawn(crop: ChosenCrop, title: str) -> np.ndarray:
    """The parts side by side, enlarged without smoothing, with names and PSNR."""
    height, width = (_ZOOM * side for side in crop.parts[HR].shape[:2])
    step = width + _MARGIN
    top = 3 * _LINE + _MARGIN
    canvas = Image.new(
        "RGB", (_MARGIN + step * len(crop.parts), top + height + _MARGIN), "white"
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_LINE * 0.7)
    where = f"{title}; {crop.picture} at {crop.left},{crop.top}"
    lines = [((_MARGIN, _MARGIN), where, canvas.width - 2 * _MARGIN)]
    reference = metrics.luma(crop.parts[HR])
    for column, (name, pixels) in enumerate(crop.parts.items()):
        left = _MARGIN + step * column
        part = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(part, (left, top))
        lines.append(((left, _MARGIN + _LINE), name, width))
        if name != HR:
            psnr = metrics.psnr(metrics.luma(pixels), reference)
            lines.append(((left, _MARGIN + 2 * _LINE), f"{psnr:.2f} dB", width))
    for at, text, most in lines:
        draw.text(at, _fitting(printable(text), font, most), "black", font)
    return np.asarray(canvas)


def _fitting(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, most: int
) -> str:
    """The text, or as much of its end as fits into so many pixels."""
    shown = text
    while len(shown) > 1 and font.getlength(shown) > most:
        text = text[1:]
        shown = f"..{text}"
    return shown
