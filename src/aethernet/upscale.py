"""Upscaling pictures: file in, file out."""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import aethernet
from aethernet.errors import AetherError, ImageError
from aethernet.files import check_target
from aethernet.images import (
    Picture,
    bit_depth,
    check_writable_as,
    read_picture,
    write_picture,
)
from aethernet.runtimes import Runtime

_log = logging.getLogger(__name__)

DEFAULT_MODEL = "2x_aether_small.safetensors"


@dataclass(frozen=True)
class Upscaled:
    """What `upscale_file` did; sizes are (width, height) in pixels."""

    target: Path
    size_before: tuple[int, int]
    size_after: tuple[int, int]


def shipped_model() -> Path:
    """The model used when none is named.

    Raises:
        AetherError: when the installation has none.
    """
    package = Path(aethernet.__file__).parent
    # Inside the package when installed from a wheel, beside src/ in a clone.
    for folder in (package / "models", package.parents[1] / "models"):
        if (folder / DEFAULT_MODEL).is_file():
            return folder / DEFAULT_MODEL
    raise AetherError(
        f"The shipped model {DEFAULT_MODEL} is not installed; name one with --model."
    )


def default_target(source: Path, scale: int) -> Path:
    """Beside the source, in its format: photo.jpg becomes photo_2x.jpg."""
    return source.with_name(f"{source.stem}_{scale}x{source.suffix}")


def upscale_file(
    source: str | Path, target: str | Path | None, model: Runtime
) -> Upscaled:
    """Upscale one picture file.

    Args:
        source: PNG, JPEG or WebP; gray, RGB, with or without alpha, 8 or 16 bit.
        target: its suffix chooses the format; an existing file is replaced. None for
            `default_target`, which is not replaced.
        model: for gray or RGB pictures.

    Raises:
        ImageError: when the source cannot be read or the target's format not hold it.
        AetherError: when model and memory do not allow it, the target cannot be
            written, or is the source itself.
    """
    source = Path(source)
    picture = read_picture(source)
    if target is not None:
        target = Path(target)
    else:
        target = default_target(source, model.scale)
        if os.path.exists(target):
            raise AetherError(f"{target} exists; name the output to replace it.")
    check_writable_as(target, picture)
    check_target(target, source)
    _log.info("upscaling %s", source)
    upscaled = upscale_picture(picture, model, bit_depth(target, picture))
    write_picture(upscaled, target)
    return Upscaled(target, _size(picture), _size(upscaled))


def upscale_picture(picture: Picture, model: Runtime, depth: int) -> Picture:
    """Upscale colours and alpha; gray stays gray. `depth` is 8 or 16 bits per value.

    Raises:
        AetherError: as `upscale_planes`.
    """
    peak = np.iinfo(picture.pixels.dtype).max
    planes = picture.pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(peak)
    colours = len(planes) - picture.has_alpha
    parts = [upscale_planes(planes[:colours], model)]
    if picture.has_alpha:
        parts.append(upscale_planes(planes[colours:], model))
    values = np.concatenate(parts).transpose(1, 2, 0).clip(0, 1)
    dtype = np.uint16 if depth == 16 else np.uint8
    pixels = np.rint(values * np.iinfo(dtype).max).astype(dtype)
    return replace(picture, pixels=np.ascontiguousarray(pixels))


def upscale_planes(planes: np.ndarray, model: Runtime) -> np.ndarray:
    """Run the model on one gray or three colour planes.

    An RGB model sees a gray plane as three equal ones, whose outputs are averaged; a
    gray model sees three planes one by one.

    Args:
        planes: `(1 or 3, H, W)`, float32, 0..1.

    Returns:
        As many planes, `scale` times as large, float32, not clamped.

    Raises:
        AetherError: when the model is for other channels, returns NaN or infinity, or
            the runtime raises it.
    """
    count = len(planes)
    if model.channels not in (1, 3):
        raise ImageError(
            f"The model takes {model.channels} channels; a picture has 1 or 3 (RGB)."
        )
    if model.channels == count:
        batch = planes[np.newaxis]
    elif model.channels == 3:
        batch = np.repeat(planes, 3, axis=0)[np.newaxis]
    else:
        batch = planes[:, np.newaxis]
    output = model.run(np.ascontiguousarray(batch))
    if not np.isfinite(output).all():
        raise AetherError(
            f"The model returned NaN or infinite values ({model.describe()}); "
            "float16 can overflow, try --precision float32 or the float32 model."
        )
    if model.channels == 3 and count == 1:
        return output[0].mean(axis=0, keepdims=True)
    return output.reshape(count, *output.shape[2:])


def _size(picture: Picture) -> tuple[int, int]:
    return picture.pixels.shape[1], picture.pixels.shape[0]
