"""Measuring models on pictures whose HR picture is known.

The protocol is that of the tables in super-resolution papers. The HR picture is cropped
at the right and the bottom to a multiple of the scale. It is reduced by MATLAB's
bicubic `imresize` with antialiasing and rounded to 8 bits, unless an LR picture is
given. The output of the model is clamped, rounded to 8 bits and compared by `metrics`.
Gray pictures count as colours of three equal values, 16 bits are reduced to 8, and
alpha is left out.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aethernet import metrics
from aethernet.checkpoints.checkpoint import load_weights
from aethernet.checkpoints.formats import is_checkpoint
from aethernet.checkpoints.layout import hyperparameters_from_shapes
from aethernet.errors import (
    AetherError,
    CheckpointError,
    ImageError,
    import_optional,
)
from aethernet.files import files_in
from aethernet.metrics import Figures
from aethernet.pictures.files import READABLE, PictureReader, read_picture, rgb_8_bits
from aethernet.pictures.resampling import lr_pixels, whole_pixels
from aethernet.quality.baselines import baselines
from aethernet.runtimes.base import Description, Model
from aethernet.runtimes.registry import open_model
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling.planes import upscale_planes

if TYPE_CHECKING:
    from aethernet.quality.perceptual import Perceptual

PROTOCOL = (
    "LR: the HR picture, cropped to a multiple of the scale, reduced by MATLAB's "
    "bicubic imresize with antialiasing and rounded to 8 bits, unless it was given. "
    f"{metrics.PROTOCOL} seconds: of a run from float32 to float32, after one to warm "
    "up, the methods taking turns on each picture; per megapixel of output."
)

# Window of SSIM: the shortest side that can be measured once the edge is left out.
_LEAST_SIDE = 11

# Rows to decode at a time when pictures are only checked.
_ROWS = 256


@dataclass(frozen=True)
class Sample:
    """A picture of a set."""

    hr: Path
    lr: Path | None = None
    """None if LR is made of the HR picture."""


@dataclass(frozen=True)
class SampleSet:
    """Pictures that are measured together."""

    name: str
    scale: int
    samples: Sequence[Sample]
    """At least one, as `find_samples` returns them."""


@dataclass(frozen=True)
class Measured:
    """The result of one method on one picture."""

    picture: str
    """File name of the HR picture."""
    figures: Figures
    perceptual: dict[str, float]
    """LPIPS and DISTS by name, if they are measured; NaN where that failed."""
    seconds: float
    """Time to compute the output."""
    megapixels: float
    """Size of the output."""


@dataclass(frozen=True)
class Row:
    """The results of one method on all pictures of a set."""

    method: str
    by: Description
    tile: int | None
    """LR pixels along each side of a tile; None if pictures were not divided. Tiles can
    change the figures."""
    pictures: list[Measured]

    @property
    def mean(self) -> Figures:
        """Mean PSNR-Y and SSIM-Y over the pictures."""
        return metrics.mean([each.figures for each in self.pictures])

    def mean_of(self, perceptual: str) -> float:
        """Mean of "LPIPS" or "DISTS" over the pictures."""
        return float(np.mean([each.perceptual[perceptual] for each in self.pictures]))

    @property
    def seconds_per_megapixel(self) -> float:
        """The time of all pictures over the size of all outputs."""
        seconds = sum(each.seconds for each in self.pictures)
        return seconds / sum(each.megapixels for each in self.pictures)


@dataclass(frozen=True)
class Table:
    """The results of all methods on a set; bicubic and Lanczos come first."""

    name: str
    scale: int
    perceptual: tuple[str, ...]
    """Names of the perceptual metrics that every row has."""
    rows: list[Row] = field(default_factory=list)


OnStep = Callable[[str], None]
"""Called with a text before each step; a step is one method on one picture."""

OnPicture = Callable[[str, np.ndarray, Mapping[str, np.ndarray]], None]
"""Called after each picture with its name, its HR pixels and the output by method."""


def open_any(
    path: str | Path,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> Model:
    """Open a model like `open_model`, or of any architecture that spandrel knows.

    Raises:
        MissingExtraError: when the checkpoint is of another architecture, and spandrel
            is not installed.
        AetherError: as `open_model` and `SpandrelModel.load`; also when a runtime other
            than PyTorch is asked for and the checkpoint is not of AetherNet.
    """
    path = Path(path)
    if not is_checkpoint(path):
        return open_model(path, runtime, device, precision)
    weights = load_weights(path)
    if _is_aethernet(weights.state_dict):
        return open_model(path, runtime, device, precision)
    if runtime not in ("auto", "pytorch"):
        raise AetherError(
            f"This is no AetherNet checkpoint, so {runtime} cannot run it; only "
            "PyTorch runs it.",
            path,
            "Other runtimes need an .onnx file, made by the network's own tools.",
        )
    import_optional("spandrel", "spandrel")
    # Imported here because it imports PyTorch, which spandrel brings.
    from aethernet.runtimes.spandrel import SpandrelModel

    return SpandrelModel.load(weights, device, precision)


def _is_aethernet(state_dict: Mapping[str, Any]) -> bool:
    shapes = {key: getattr(value, "shape", ()) for key, value in state_dict.items()}
    try:
        hyperparameters_from_shapes(shapes)
    except CheckpointError:
        return False
    return True


def check_pictures(folder: Path) -> None:
    """Decode every picture of a folder, so that no damaged one stops a long run.

    Raises:
        ImageError: when one cannot be read.
        AetherError: when there is none.
    """
    paths = files_in(folder, READABLE, "pictures")
    for path in paths:  # headers first: they take little time and show most errors
        PictureReader(path)
    for path in paths:
        reader = PictureReader(path)
        for _ in range(0, reader.header.height, _ROWS):
            reader.rows(_ROWS)


def find_samples(data: Path, scale: int, lr: Path | None = None) -> list[Sample]:
    """Find the HR pictures of a folder and their LR pictures.

    Args:
        data: folder of HR pictures.
        scale: HR pixels per LR pixel along each side.
        lr: folder of LR pictures named like the HR ones, or with the endings of data
            sets: `x2`, `_x2`, `_LR`, `_LRBI_x2`, `_SRF_2_LR`. None: LR is made of HR.

    Raises:
        ImageError: when a picture cannot be read or is too small, or its LR picture has
            the wrong size.
        AetherError: when there is no picture, or a picture does not have exactly one LR
            picture.
    """
    if scale == 1 and lr is None:
        raise AetherError(
            "A 1x model restores pictures, and those cannot be made of HR pictures.",
            hint="Name their folder with --lr.",
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
        # The same name takes precedence over names that differ in such endings.
        fitting = [p for p in known.get(path.stem, []) if p.stem == path.stem]
        fitting = fitting or known.get(_bare(path.stem, scale), [])
        if len(fitting) != 1:
            several = f"{len(fitting)} of them" if fitting else "none"
            raise AetherError(
                f"Expected one LR picture of {path.name} at {scale}x, named "
                f"{path.stem}.png, {path.stem}x{scale}.png or alike; the folder has "
                f"{several}.",
                lr,
            )
        found += fitting
    return found


def _bare(stem: str, scale: int) -> str:
    """A file name without the endings that data sets add to it."""
    endings = rf"[-_. ]?x{scale}|[-_. ](?:{scale}x|SRF[-_]{scale}|LRBI|LR|HR|GT)"
    return re.sub(rf"(?<=.)(?:{endings})+$", "", stem, flags=re.IGNORECASE)


def _check_size(sample: Sample, scale: int) -> None:
    size = PictureReader(sample.hr).header.size
    least = (_LEAST_SIDE + 2 * scale + scale - 1) // scale * scale
    if min(size) < least:
        raise ImageError(
            f"The picture has {size[0]}x{size[1]} pixels; measuring at {scale}x takes "
            f"at least {least} along each side.",
            sample.hr,
        )
    if sample.lr:
        found = PictureReader(sample.lr).header.size
        needed = size[0] // scale, size[1] // scale
        if found != needed:
            raise ImageError(
                f"The picture has {found[0]}x{found[1]} pixels; as the LR picture of "
                f"{sample.hr} ({size[0]}x{size[1]}) it needs {needed[0]}x{needed[1]} "
                f"at {scale}x.",
                sample.lr,
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
    return measure_samples(SampleSet(data.resolve().name, scale, samples), models)


def measure_samples(
    sample_set: SampleSet,
    models: Mapping[str, Model],
    perceptual: "Sequence[Perceptual]" = (),
    on_step: OnStep = lambda step: None,
    on_picture: OnPicture = lambda picture, hr, results: None,
) -> Table:
    """Measure models, bicubic and Lanczos; the methods take turns on each picture.

    Args:
        sample_set: the pictures.
        models: by name, all of the scale of the set.
        perceptual: metrics besides PSNR-Y and SSIM-Y.
        on_step: called before each step.
        on_picture: called after each picture.

    Raises:
        ImageError: when a picture cannot be read.
        AetherError: when a model fails.
    """
    scale = sample_set.scale
    methods = {**baselines(scale), **models}
    found: dict[str, list[Measured]] = {method: [] for method in methods}
    _warm_up(methods, sample_set)
    for sample in sample_set.samples:
        name = sample.hr.name
        lr, hr = read_pair(sample, scale)
        results = {}
        for method, model in methods.items():
            on_step(f"{method}, {name}")
            results[method], seconds = _timed(model, lr)
            pixels = results[method]
            found[method].append(
                Measured(
                    name,
                    metrics.measure(pixels, hr, scale),
                    {p.name: p.measure(pixels, hr, scale) for p in perceptual},
                    seconds,
                    pixels.shape[0] * pixels.shape[1] / 1e6,
                )
            )
        on_picture(name, hr, results)
    rows = [
        Row(
            method,
            model.describe(),
            model.tile if isinstance(model, Tiled) else None,
            found[method],
        )
        for method, model in methods.items()
    ]
    return Table(sample_set.name, scale, tuple(p.name for p in perceptual), rows)


def _warm_up(methods: Mapping[str, Model], sample_set: SampleSet) -> None:
    """Run every method once, so that no time includes what it sets up at first."""
    smallest = min(
        sample_set.samples, key=lambda s: math.prod(PictureReader(s.hr).header.size)
    )
    lr, _ = read_pair(smallest, sample_set.scale)
    for model in methods.values():
        _timed(model, lr)


def _timed(model: Model, lr: np.ndarray) -> tuple[np.ndarray, float]:
    """The output for an LR picture, both `(H, W, 3)`, uint8, and the seconds taken."""
    planes = _planes(lr)
    start = time.perf_counter()
    output = upscale_planes(planes, model)
    seconds = time.perf_counter() - start
    return _pixels(output), seconds


def read_pair(sample: Sample, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Read LR and HR as `(H, W, 3)`, uint8; HR is cropped to a multiple of the scale.

    Raises:
        ImageError: when a picture cannot be read.
    """
    hr = whole_pixels(rgb_8_bits(read_picture(sample.hr)), scale)
    if sample.lr:
        return rgb_8_bits(read_picture(sample.lr)), hr
    return lr_pixels(hr, scale), hr


def _planes(pixels: np.ndarray) -> np.ndarray:
    """Convert `(H, W, 3)`, uint8, to `(3, H, W)`, float32, 0..1."""
    return pixels.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(255)


def _pixels(planes: np.ndarray) -> np.ndarray:
    """Convert `(3, H, W)`, float32, to `(H, W, 3)`, uint8, clamped and rounded."""
    values = np.rint(np.clip(planes, 0, 1) * np.float32(255))
    return values.transpose(1, 2, 0).astype(np.uint8, order="C")
