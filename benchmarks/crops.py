"""Training pairs for benchmarks and tests: random crops of pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aethernet.images import SUFFIXES, read_picture


def pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)


def bicubic_pair(path: Path, scale: int) -> tuple[Tensor, Tensor]:
    """LR and HR of a picture, `(3, H, W)` uint8, HR cropped to a multiple of the scale.

    The reduction is the one papers use: bicubic with a = -0.5, antialiased.
    """
    pixels = torch.from_numpy(read_picture(path).pixels[:, :, :3].copy())
    height, width = (side - side % scale for side in pixels.shape[:2])
    hr = pixels.permute(2, 0, 1)[:, :height, :width].contiguous()
    lr = torch.nn.functional.interpolate(
        hr[None].float(),
        size=(height // scale, width // scale),
        mode="bicubic",
        antialias=True,
    )
    return lr[0].round().clamp(0, 255).to(torch.uint8), hr


class Crops:
    """Aligned LR and HR crops; LR is the whole picture's bicubic reduction, 8 bit.

    `paths` are HR pictures, RGB; the last `held_out` of them are not trained on.
    Raises ValueError where that leaves none.
    """

    def __init__(self, paths: Sequence[Path], scale: int, held_out: int = 0) -> None:
        if len(paths) <= held_out:
            raise ValueError(f"{held_out + 1} pictures are needed, not {len(paths)}.")
        self._scale = scale
        pairs = [bicubic_pair(path, scale) for path in paths]
        first = len(pairs) - held_out
        self._train, self._held_out = pairs[:first], pairs[first:]

    def batch(self, count: int, size: int, random: np.random.Generator) -> list[Tensor]:
        """LR `(count, 3, size, size)` and HR, float32 in 0..1, flipped and turned."""
        return self._stack(
            [self._crop(self._train, size, random) for _ in range(count)]
        )

    def held_out(self, count: int, size: int) -> list[Tensor]:
        """The same crops of held-out pictures every time."""
        random = np.random.default_rng(0)
        crops = [self._crop(self._held_out, size, random) for _ in range(count)]
        return self._stack(crops)

    def _crop(
        self,
        pairs: list[tuple[Tensor, Tensor]],
        size: int,
        random: np.random.Generator,
    ) -> tuple[Tensor, ...]:
        lr, hr = pairs[random.integers(len(pairs))]
        top, left = (int(random.integers(side - size + 1)) for side in lr.shape[1:])
        turns, flip = int(random.integers(4)), bool(random.integers(2))
        crops = []
        for image, factor in ((lr, 1), (hr, self._scale)):
            rows = slice(top * factor, (top + size) * factor)
            columns = slice(left * factor, (left + size) * factor)
            crop = image[:, rows, columns].rot90(turns, (1, 2))
            crops.append(crop.flip(2) if flip else crop)
        return tuple(crops)

    @staticmethod
    def _stack(crops: list[tuple[Tensor, ...]]) -> list[Tensor]:
        return [torch.stack(side).float() / 255 for side in zip(*crops, strict=True)]
