"""Training pairs: aligned crops of HR pictures and of their LR pictures."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aethernet.errors import AetherError, ImageError
from aethernet.pictures.degradations import CLEAN_SHARE, MARGIN, draw, placed
from aethernet.pictures.files import read_picture, rgb_8_bits
from aethernet.pictures.resampling import lr_pixels, whole_pixels

TrainingPair = tuple[Tensor, Tensor]
"""LR and HR, `(3, H, W)`, uint8."""

_TRIES = 20  # to draw a crop with detail
_AT_ONCE = 8  # pictures; each takes 40 bytes a pixel while it is reduced
# The same picture at another size has 0.99, and two pictures of 576 photographs and
# the 19 of Set5 and Set14 have 0.9 at most.
_SAME = 0.95


def training_pair(path: Path, scale: int) -> TrainingPair:
    """Read an HR picture; return the published protocol's LR picture and the HR crop.

    Gray becomes RGB, 16 bits become 8, alpha is left out.

    Raises:
        ImageError: when the picture cannot be read, or is smaller than one LR pixel.
    """
    hr = whole_pixels(rgb_8_bits(read_picture(path)), scale)
    if not hr.size:
        raise ImageError(f"The picture is smaller than one LR pixel at {scale}x.", path)
    lr = lr_pixels(hr, scale)
    return _planes(lr), _planes(hr)


def degraded_pair(
    hr: Tensor,
    scale: int,
    random: np.random.Generator,
    clean_share: float = CLEAN_SHARE,
) -> TrainingPair:
    """Make a degraded LR picture, drawn by `degradations.draw`.

    Args:
        hr: `(3, H, W)`, uint8, whose sides are multiples of the scale.
        scale: HR pixels per LR pixel along each side.
        random: what the degradation and its noise are drawn from.
        clean_share: probability of a clean LR picture instead.
    """
    pixels = np.ascontiguousarray(hr.permute(1, 2, 0).numpy())
    return _planes(draw(random, clean_share).lr(pixels, scale, random)), hr


class TrainingCrops:
    """Random aligned crops, flipped and turned by multiples of 90 degrees.

    All pictures are kept decoded in memory. LR is made of whole pictures, so the edge
    of a crop looks like the inside of a picture. Degraded LR is made of a larger part
    of the picture each time, and never the same twice.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        scale: int,
        held_out: int = 0,
        least_detail: float = 0,
        degrade: bool = False,
    ) -> None:
        """Read and reduce the pictures, several at a time.

        Args:
            paths: of HR pictures; the last `held_out` of them are not trained on.
            scale: HR pixels per LR pixel along each side.
            held_out: how many pictures the method `held_out` draws from.
            least_detail: draw again when neighbouring HR pixels differ by less, as a
                mean over the crop's green, in 8-bit steps. Skies teach nothing.
            degrade: blur, noise and compression for the LR crops of `batch`.

        Raises:
            AetherError: when a picture cannot be read, or none is left to train on.
        """
        if len(paths) <= held_out:
            raise AetherError(
                f"Training needs at least {held_out + 1} pictures, not {len(paths)}."
            )
        self._scale, self._least_detail = scale, least_detail
        self._degrade = degrade
        with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
            pairs = [*pool.map(lambda path: training_pair(path, scale), paths)]
        first = len(pairs) - held_out
        self._train, self._held_out = pairs[:first], pairs[first:]
        self._paths = paths[:first]

    @property
    def largest_size(self) -> int:
        """Side of the largest square crop that fits every picture, in LR pixels."""
        margin = MARGIN if self._degrade else 0
        pairs = [*self._train, *self._held_out]
        return min(min(lr.shape[1:]) for lr, _ in pairs) - margin

    def same_as(self, hr: Tensor) -> Path | None:
        """The picture to train on that shows the same as `hr`, whatever its size.

        Figures on such a picture say nothing about others. A part of a picture is not
        found.

        Args:
            hr: `(3, H, W)`, uint8.
        """
        wanted = _pattern(hr)
        for path, (_, other) in zip(self._paths, self._train, strict=True):
            if float(wanted @ _pattern(other)) > _SAME:
                return path
        return None

    def batch(self, count: int, size: int, random: np.random.Generator) -> TrainingPair:
        """Random crops: LR `(count, 3, size, size)` and HR, float32, 0..1."""
        crop = self._degraded if self._degrade else self._detailed
        return _stack([crop(size, random) for _ in range(count)])

    def held_out(self, count: int, size: int) -> TrainingPair:
        """Like `batch`, but always the same crops, of held-out pictures."""
        random = np.random.default_rng(0)
        return _stack([self._crop(self._held_out, size, random) for _ in range(count)])

    def _degraded(self, size: int, random: np.random.Generator) -> TrainingPair:
        """A crop of a degraded part of a picture."""
        _, hr = self._detailed(size + MARGIN, random)
        lr, hr = degraded_pair(hr, self._scale, random)
        return _part(lr, hr, *placed(random), size)

    def _detailed(self, size: int, random: np.random.Generator) -> TrainingPair:
        """A crop with enough detail, or the last one tried."""
        for _ in range(_TRIES):
            crop = self._crop(self._train, size, random)
            if not self._least_detail or detail(crop[1]) >= self._least_detail:
                break
        return crop

    def _crop(
        self, pairs: Sequence[TrainingPair], size: int, random: np.random.Generator
    ) -> TrainingPair:
        lr, hr = pairs[int(random.integers(len(pairs)))]
        top, left = (int(random.integers(side - size + 1)) for side in lr.shape[1:])
        turns, flip = int(random.integers(4)), bool(random.integers(2))

        def turned(image: Tensor) -> Tensor:
            crop = image.rot90(turns, (1, 2))
            return crop.flip(2) if flip else crop

        lr, hr = _part(lr, hr, top, left, size)
        return turned(lr), turned(hr)


def detail(image: Tensor) -> float:
    """Mean difference of neighbours in the green of `(3, H, W)`, in 8-bit steps."""
    green = image[1].float()
    return float((green.diff(dim=0).abs().mean() + green.diff(dim=1).abs().mean()) / 2)


def _pattern(image: Tensor) -> Tensor:
    """What is brighter and what darker: 16 x 16 values, of length 1, their mean 0."""
    small = torch.nn.functional.adaptive_avg_pool2d(image.float().mean(0)[None], 16)
    return torch.nn.functional.normalize((small - small.mean()).flatten(), dim=0)


def _part(lr: Tensor, hr: Tensor, row: int, column: int, size: int) -> TrainingPair:
    """The square at a place of LR, and what belongs to it of HR."""
    scale = hr.shape[1] // lr.shape[1]

    def part(image: Tensor, factor: int) -> Tensor:
        rows = slice(row * factor, (row + size) * factor)
        columns = slice(column * factor, (column + size) * factor)
        return image[:, rows, columns]

    return part(lr, 1), part(hr, scale)


def _planes(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _stack(crops: Sequence[TrainingPair]) -> TrainingPair:
    lr, hr = (torch.stack(side).float() / 255 for side in zip(*crops, strict=True))
    return lr, hr
