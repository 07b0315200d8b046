"""The yardstick: models against pictures whose HR picture is known.

As the tables of super-resolution papers have it: the HR picture, cropped at the right
and the bottom to a multiple of the scale, is reduced by MATLAB's bicubic `imresize`
with antialiasing and rounded to 8 bits, unless an LR picture is given; what a model
makes of that is clamped and rounded to 8 bits, and compared by `metrics`. Gray pictures
are colours of three equal values, 16 bits are reduced to 8, alpha is left out.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aethernet import metrics
from aethernet.aether_core import hyperparameters_from_state_dict
from aethernet.checkpoints.checkpoint import is_checkpoint, load_weights
from aethernet.errors import AetherError, ContradictionError, ImageError
from aethernet.files import files_in
from aethernet.metrics import Figures
from aethernet.pictures.files import READABLE, PictureReader, read_picture, rgb_8_bits
from aethernet.pictures.resampling import lr_pixels, whole_pixels
from aethernet.quality.baselines import baselines
from aethernet.quality.perceptual import Perceptual
from aethernet.runtimes.base import Description, Model
from aethernet.runtimes.registry import open_model
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling.planes import upscale_planes

PROTOCOL = (
    "LR: the HR picture, cropped to a multiple of the scale, reduced by MATLAB's "
    "bicubic imresize with antialiasing and rounded to 8 bits, unless it was given. "
    f"{metrics.PROTOCOL} seconds: of a run from float32 to float32, after one to warm "
    "up, the methods taking turns on each picture; per megapixel of output."
)

# Below this SSIM has no window, after the edge is left out.
_LEAST_SIDE = 11

# Read at a time where pixels are only looked at.
_ROWS = 256


@dataclass(frozen=True)
class Sample:
    """A picture of a set."""

    hr: Path
    lr: Path | None = None
    """None where it is made of the HR picture."""


@dataclass(frozen=True)
class Measured:
    """What a method made of a picture."""

    picture: str
    """The HR file's name."""
    figures: Figures
    perceptual: dict[str, float]
    """LPIPS and DISTS by their names, where they are measured; or NaN."""
    seconds: float
    megapixels: float
    """Of the output."""


@dataclass(frozen=True)
class Row:
    """A method on all pictures of a set."""

    method: str
    by: Description
    tile: int | None
    """LR pixels along each side, where pictures were divided; a figure of a divided
    picture is another figure."""
    pictures: list[Measured]

    @property
    def mean(self) -> Figures:
        return metrics.mean([each.figures for each in self.pictures])

    def mean_of(self, perceptual: str) -> float:
        return float(np.mean([each.perceptual[perceptual] for each in self.pictures]))

    @property
    def seconds_per_megapixel(self) -> float:
        """Of all pictures together, per megapixel of output."""
        seconds = sum(each.seconds for each in self.pictures)
        return seconds / sum(each.megapixels for each in self.pictures)


@dataclass(frozen=True)
class Table:
    """All methods on a set; bicubic and Lanczos are the first."""

    name: str
    scale: int
    perceptual: tuple[str, ...]
    """Names of the metrics that every row has."""
    rows: list[Row] = field(default_factory=list)


Seen = Callable[[str, np.ndarray, Mapping[str, np.ndarray]], None]
"""Told a picture's name, its HR pixels, and by method what was made of it."""


def open_any(
    path: str | Path,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> Model:
    """Open a model as `open_model`, and also what spandrel knows besides AetherNet.

    Raises:
        AetherError: as `open_model` and `SpandrelModel.load`.
    """
    path = Path(path)
    if not is_checkpoint(path) or _holds_aethernet(path):
        return open_model(path, runtime, device, precision)
    if runtime not in ("auto", "pytorch"):
        raise AetherError(
            f"{path} is no AetherNet: PyTorch runs it, {runtime} would need an .onnx "
            "file made by its own tools."
        )
    from aethernet.runtimes.spandrel import SpandrelModel

    return SpandrelModel.load(path, device, precision)


def _holds_aethernet(path: Path) -> bool:
    try:
        hyperparameters_from_state_dict(load_weights(path).state_dict)
    except ValueError:
        return False
    return True


def common_scale(models: Mapping[str, Model], asked: int | None = None) -> int:
    """The scale of all models; without a model the one asked for.

    Raises:
        ContradictionError: when a model is of another one than asked for.
        AetherError: when they are of several, or there is neither.
    """
    scales = {model.scale for model in models.values()}
    each = ", ".join(f"{name} {model.scale}x" for name, model in models.items())
    if len(scales) > 1:
        raise AetherError(f"Models of one scale can be measured together, not {each}.")
    if asked and scales - {asked}:
        raise ContradictionError(
            f"The scale was given as {asked}, but it is {each}. Leave --scale out: it "
            "is read from the models."
        )
    if not scales and not asked:
        raise AetherError("Without a model there is no scale; name one with --scale.")
    return asked or scales.pop()


def check_pictures(folder: Path) -> None:
    """Decode every picture of a folder, so that none stops a long run half way.

    Raises:
        ImageError: when one cannot be read.
        AetherError: when there is none.
    """
    paths = files_in(folder, READABLE, "pictures")
    for path in paths:  # all headers before any pixels: most of what is wrong is there
        PictureReader(path)
    for path in paths:
        reader = PictureReader(path)
        for _ in range(0, reader.header.height, _ROWS):
            reader.rows(_ROWS)


def find_samples(data: Path, scale: int, lr: Path | None = None) -> list[Sample]:
    """The pictures of a folder, and the LR pictures that belong to them.

    Args:
        data: folder of HR pictures.
        scale: at which they are to be made again.
        lr: folder of LR pictures named like the HR ones, or with what data sets add:
            `x2`, `_x2`, `_LR`, `_LRBI_x2`, `_SRF_2_LR`; None: they are made.

    Raises:
        ImageError: when a picture's header cannot be read, it is too small, or its LR
            picture is of another size.
        AetherError: when there is no picture, or not one LR picture of each.
    """
    if scale == 1 and lr is None:
        raise AetherError(
            "A 1x model restores, and pictures to restore cannot be made of the HR "
            "ones: name their folder with --lr."
        )
    paths = files_in(data, READABLE, "pictures")
    partners: Sequence[Path | None] = [None] * len(paths)
    if lr:
        partners = _partners(paths, lr, scale)
    samples = [Sample(*both) for both in zip(paths, partners, strict=True)]
    for sample in samples:
        _check_size(sample, scale)
    return samples


def _partners(paths: Sequence[Path], lr: Path, scale: int) -> list[Path]:
    known: dict[str, list[Path]] = {}
    for path in files_in(lr, READABLE, "pictures"):
        for key in {path.stem, _bare(path.stem, scale)}:
            known.setdefault(key, []).append(path)
    found = []
    for path in paths:
        # The very name wins; else what is left of both without such endings.
        fitting = [p for p in known.get(path.stem, []) if p.stem == path.stem]
        fitting = fitting or known.get(_bare(path.stem, scale), [])
        if len(fitting) != 1:
            several = f"{len(fitting)} of them" if fitting else "none"
            raise AetherError(
                f"{lr} should have one LR picture of {path.name} at {scale}x, named "
                f"like {path.stem}.png or {path.stem}x{scale}.png; it has {several}."
            )
        found += fitting
    return found


def _bare(stem: str, scale: int) -> str:
    """A name without what data sets add to say what a picture is."""
    words = rf"[-_. ]?x{scale}|[-_. ](?:{scale}x|SRF[-_]{scale}|LRBI|LR|HR|GT)"
    return re.sub(rf"(?<=.)(?:{words})+$", "", stem, flags=re.IGNORECASE)


def _check_size(sample: Sample, scale: int) -> None:
    size = PictureReader(sample.hr).header.size
    least = (_LEAST_SIDE + 2 * scale + scale - 1) // scale * scale
    if min(size) < least:
        raise ImageError(
            f"{sample.hr} has {size[0]}x{size[1]} pixels; it takes {least} along each "
            f"side to be measured at {scale}x."
        )
    if sample.lr:
        found = PictureReader(sample.lr).header.size
        right = size[0] // scale, size[1] // scale
        if found != right:
            raise ImageError(
                f"{sample.lr} has {found[0]}x{found[1]} pixels; the LR picture of "
                f"{sample.hr} ({size[0]}x{size[1]}) has {right[0]}x{right[1]} at "
                f"{scale}x."
            )


def measure_models(
    models: Mapping[str, Model], data: Path, scale: int, lr: Path | None = None
) -> Table:
    """Measure models, bicubic and Lanczos on a folder of HR pictures.

    Args:
        models: by name, all of this scale.
        data, scale, lr: as for `find_samples`.

    Raises:
        AetherError: as `find_samples` and `measure_samples`.
    """
    samples = find_samples(data, scale, lr)
    return measure_samples(data.resolve().name, samples, models, scale)


def measure_samples(
    name: str,
    samples: Sequence[Sample],
    models: Mapping[str, Model],
    scale: int,
    perceptual: Sequence[Perceptual] = (),
    told: Callable[[str], None] = lambda step: None,
    seen: Seen = lambda picture, hr, results: None,
) -> Table:
    """Measure models, bicubic and Lanczos on pictures; the models take turns on each.

    Args:
        name: of the set.
        samples: as `find_samples` made them, at least one.
        models: by name, all of this scale.
        scale: of them.
        perceptual: what is measured besides PSNR-Y and SSIM-Y.
        told: called with a name before each step; a step is a method on a picture.
        seen: called after each picture.

    Raises:
        ImageError: when a picture cannot be read.
        AetherError: when a model fails.
    """
    methods = {**baselines(scale), **models}
    found: dict[str, list[Measured]] = {method: [] for method in methods}
    smallest = min(samples, key=lambda s: math.prod(PictureReader(s.hr).header.size))
    lr, _ = read_pair(smallest, scale)
    for model in methods.values():  # so that none is timed while it sets things up
        upscale_planes(_planes(lr), model)
    for sample in samples:
        lr, hr = read_pair(sample, scale)
        results = {}
        for method, model in methods.items():
            told(f"{method}, {sample.hr.name}")
            planes = _planes(lr)
            start = time.perf_counter()
            output = upscale_planes(planes, model)
            seconds = time.perf_counter() - start
            pixels = results[method] = _pixels(output)
            found[method].append(
                Measured(
                    sample.hr.name,
                    metrics.measure(pixels, hr, scale),
                    {p.name: p.measure(pixels, hr, scale) for p in perceptual},
                    seconds,
                    pixels.shape[0] * pixels.shape[1] / 1e6,
                )
            )
        seen(sample.hr.name, hr, results)
    rows = [
        Row(
            method,
            model.describe(),
            model.tile if isinstance(model, Tiled) else None,
            found[method],
        )
        for method, model in methods.items()
    ]
    return Table(name, scale, tuple(p.name for p in perceptual), rows)


def read_pair(sample: Sample, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """LR and HR pixels, `(H, W, 3)`, uint8; HR cropped to a multiple of the scale.

    Raises:
        ImageError: when a picture cannot be read.
    """
    hr = whole_pixels(rgb_8_bits(read_picture(sample.hr)), scale)
    if sample.lr:
        return rgb_8_bits(read_picture(sample.lr)), hr
    return lr_pixels(hr, scale), hr


def _planes(pixels: np.ndarray) -> np.ndarray:
    """`(H, W, 3)`, uint8, as `(3, H, W)`, float32, 0..1."""
    return pixels.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(255)


def _pixels(planes: np.ndarray) -> np.ndarray:
    """`(3, H, W)` as `(H, W, 3)`, uint8, clamped and rounded."""
    values = np.rint(np.clip(planes, 0, 1) * np.float32(255))
    return values.transpose(1, 2, 0).astype(np.uint8, order="C")
