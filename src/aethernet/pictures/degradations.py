"""LR pictures as cameras and the web make them: soft, noisy, compressed.

The steps follow X. Wang et al., "Real-ESRGAN", 2021, arXiv 2107.10833, section 3, once
and much milder: blur, reduction, noise, compression. All that is random comes from the
generator that the caller gives, so the same generator makes the same picture.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import PIL.Image

from aethernet.pictures.resampling import reduce, whole_pixels

CLEAN_SHARE = 0.15
"""Part of the pictures that `draw` leaves clean, so that clean input stays sharp."""

SHARP_SHARE = 0.45
"""Part of the others that it does not blur."""

MOST_BLUR = 0.7
"""Largest standard deviation of the blur, in LR pixels."""

MOST_NOISE = 8.0
"""Largest standard deviation of Gaussian noise, in steps of 255."""

PHOTONS = (1_000, 20_000)
"""Photons that a white pixel counts under Poisson noise: 8 to 2 steps of it."""

QUALITIES = (60, 98)
"""Of JPEG and WebP; high ones are drawn more often."""

MARGIN = 24
"""LR pixels that a patch needs beyond a crop, for `placed`."""

_BLOCK = 16  # side of what JPEG codes as one at 4:2:0, WebP always
_EDGE = 4  # LR pixels at an edge, which blur and reduction cannot make right

Reduction = Literal["bicubic", "area", "bilinear"]
Codec = Literal["", "JPEG", "WEBP"]


@dataclass(frozen=True)
class Degradation:
    """How an HR picture becomes LR. Without arguments: by the published protocol."""

    blur: tuple[float, float] = (0.0, 0.0)
    """Standard deviations of a Gaussian along its axes, in LR pixels."""
    angle: float = 0.0
    """Of its first axis to the rows, in radians."""
    reduction: Reduction = "bicubic"
    """All three with antialiasing; bicubic is that of `resampling`."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise, in steps of 255."""
    gray: bool = False
    """Whether that noise is the same in all bands."""
    photons: float = 0.0
    """Photons that a white pixel counts, for Poisson noise; 0: no such noise."""
    codec: Codec = ""
    """What compresses the LR picture; "": nothing."""
    quality: int = 100
    """Of the codec, 0 to 100."""
    subsampling: Literal["4:4:4", "4:2:0"] = "4:2:0"
    """Of JPEG's colour; WebP always halves it."""

    def lr(self, hr: np.ndarray, scale: int, random: np.random.Generator) -> np.ndarray:
        """Make the LR picture.

        Args:
            hr: `(H, W, 3)`, uint8, at least one LR pixel large; cropped to whole LR
                pixels at the right and the bottom.
            scale: HR pixels per LR pixel along each side.
            random: what noise is drawn from.

        Returns:
            `(H // scale, W // scale, 3)`, uint8.
        """
        planes: np.ndarray = np.moveaxis(whole_pixels(hr, scale), 2, 0).astype(float)
        if any(self.blur):
            sigmas = (self.blur[0] * scale, self.blur[1] * scale)
            planes = blurred(planes, gaussian(sigmas, self.angle))
        planes = _reduced(planes, scale, self.reduction)
        if self.photons:
            counted = random.poisson(planes.clip(0, 255) / 255 * self.photons)
            planes = counted * (255 / self.photons)
        if self.noise:
            bands = 1 if self.gray else len(planes)
            planes = planes + random.normal(0, self.noise, (bands, *planes.shape[1:]))
        # Halves go up, as in `resampling.lr_pixels`.
        rounded = np.floor(planes.clip(0, 255) + 0.5).astype(np.uint8)
        pixels = np.ascontiguousarray(np.moveaxis(rounded, 0, 2))
        return self._compressed(pixels) if self.codec else pixels

    def _compressed(self, pixels: np.ndarray) -> np.ndarray:
        options = {"subsampling": self.subsampling} if self.codec == "JPEG" else {}
        file = BytesIO()
        PIL.Image.fromarray(pixels).save(
            file, self.codec, quality=self.quality, **options
        )
        with PIL.Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))


def draw(random: np.random.Generator, clean_share: float = CLEAN_SHARE) -> Degradation:
    """A random degradation of the kind that photographs of phones and the web have.

    Args:
        random: what it is drawn from.
        clean_share: probability of the published protocol instead.
    """
    if random.random() < clean_share:
        return Degradation()
    blur = (0.0, 0.0)
    if random.random() >= SHARP_SHARE:
        first, second = random.uniform(0.1, MOST_BLUR, 2)
        blur = (first, first if random.random() < 0.5 else second)
    noise = photons = 0.0
    kind = random.random()
    if kind < 0.5:
        noise = random.uniform(0, MOST_NOISE)
    elif kind < 0.7:
        photons = float(np.exp(random.uniform(*np.log(PHOTONS))))
    codec: Codec = ""
    kind = random.random()
    if kind < 0.75:
        codec = "JPEG"
    elif kind < 0.85:
        codec = "WEBP"
    least, most = QUALITIES
    return Degradation(
        blur=blur,
        angle=random.uniform(0, np.pi),
        reduction=("bicubic", "area", "bilinear")[int(random.integers(3))],
        noise=noise,
        gray=bool(random.random() < 0.4),
        photons=photons,
        codec=codec,
        quality=round(most - (most - least) * random.random() ** 1.5),
        subsampling="4:2:0" if random.random() < 0.6 else "4:4:4",
    )


def placed(random: np.random.Generator) -> tuple[int, int]:
    """Row and column of a crop in a degraded patch that is `MARGIN` LR pixels larger.

    The blocks of JPEG then lie anywhere in the crop, and the edge of the patch, where
    blur and reduction saw no picture, outside.
    """
    row, column = random.integers(_EDGE, _EDGE + _BLOCK, 2)
    return int(row), int(column)


def gaussian(sigmas: tuple[float, float], angle: float) -> np.ndarray:
    """The kernel of a Gaussian, `(K, K)` with K odd, float64, of sum 1.

    Args:
        sigmas: standard deviations along its axes, in pixels, above 0.
        angle: of its first axis to the rows, in radians.
    """
    reach = int(np.ceil(3 * max(sigmas)))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(float)
    along = np.cos(angle) * columns + np.sin(angle) * rows
    across = np.cos(angle) * rows - np.sin(angle) * columns
    kernel = np.exp(-((along / sigmas[0]) ** 2 + (across / sigmas[1]) ** 2) / 2)
    return kernel / kernel.sum()


def blurred(planes: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve `(.., H, W)`, float, with `(K, K)`, K odd; edge pixels are repeated."""
    reach = len(kernel) // 2
    margins = [(0, 0)] * (planes.ndim - 2) + [(reach, reach)] * 2
    continued = np.pad(planes, margins, mode="edge")
    size = continued.shape[-2:]
    spectrum = np.fft.rfft2(continued) * np.fft.rfft2(kernel, size)
    return np.fft.irfft2(spectrum, size)[..., 2 * reach :, 2 * reach :]


def _reduced(planes: np.ndarray, scale: int, reduction: Reduction) -> np.ndarray:
    if reduction == "bicubic":
        return reduce(planes, scale)
    filters = PIL.Image.Resampling
    by = filters.BOX if reduction == "area" else filters.BILINEAR
    size = (planes.shape[2] // scale, planes.shape[1] // scale)
    return np.stack(
        [
            np.asarray(PIL.Image.fromarray(plane.astype(np.float32)).resize(size, by))
            for plane in planes
        ]
    ).astype(np.float64)
