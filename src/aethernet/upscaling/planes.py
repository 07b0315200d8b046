"""Upscaling pixels in memory: gray, colour and alpha."""

from dataclasses import replace

import numpy as np

from aethernet.errors import AetherError, ImageError
from aethernet.pictures.files import Picture, with_colours_spread
from aethernet.pictures.resampling import enlarge_sharply
from aethernet.runtimes.base import Model


def planes_and_alpha(
    planes: np.ndarray, has_alpha: bool, model: Model, alpha: str
) -> np.ndarray:
    """Upscale planes, the last of which may be alpha.

    Args:
        planes: `(bands, H, W)`, float32, 0..1; bands: gray or RGB, and alpha.
        has_alpha: whether the last plane is alpha.
        alpha: "network" or "bicubic", which upscales alpha.

    Returns:
        `(bands, scale * H, scale * W)`, float32, clamped to 0..1.

    Raises:
        AetherError: as `upscale_planes`.
    """
    if not has_alpha:
        upscaled = upscale_planes(planes, model)
        return np.clip(upscaled, 0, 1, out=upscaled)
    colours = upscale_planes(planes[:-1], model)
    opacity = planes[-1:]
    if opacity.min() == opacity.max():
        opacity = np.full_like(colours[:1], opacity.flat[0])
    elif alpha == "network":
        opacity = upscale_planes(opacity, model)
    else:
        opacity = enlarge_sharply(opacity, model.scale)
    together = np.concatenate((colours, opacity))
    return np.clip(together, 0, 1, out=together)


def pixels_of(planes: np.ndarray, depth: int) -> np.ndarray:
    """Convert `(bands, h, W)`, 0..1, to integers `(h, W, bands)` of 8 or 16 bits.

    The planes are overwritten.
    """
    planes *= np.float32(2**depth - 1)
    np.rint(planes, out=planes)
    dtype = np.uint16 if depth > 8 else np.uint8
    return planes.transpose(1, 2, 0).astype(dtype, order="C")


def upscale_picture(
    picture: Picture, model: Model, depth: int, alpha: str = "network"
) -> Picture:
    """Upscale colours and alpha; gray stays gray.

    Args:
        depth: of the result, 8 or 16 bits per value.
        alpha: "network" or "bicubic", which upscales alpha.

    Raises:
        AetherError: as `upscale_planes`.
    """
    pixels = with_colours_spread(picture).pixels
    planes = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
    planes /= np.float32(np.iinfo(pixels.dtype).max)
    upscaled = planes_and_alpha(planes, picture.has_alpha, model, alpha)
    return replace(picture, pixels=pixels_of(upscaled, depth))


def upscale_planes(planes: np.ndarray, model: Model) -> np.ndarray:
    """Run the model on one gray or three colour planes.

    An RGB model gets a gray plane as three equal ones, and its outputs are averaged. A
    gray model gets the three planes one by one.

    Args:
        planes: `(1 or 3, H, W)`, float32, 0..1.

    Returns:
        As many planes, `scale` times as large, float32, not clamped.

    Raises:
        ImageError: when the model takes neither 1 nor 3 channels.
        AetherError: when the model fails, or returns NaN or infinite values.
    """
    count = len(planes)
    if model.channels not in (1, 3):
        raise ImageError(
            f"The model takes {model.channels} channels; a picture has 1 or 3 (RGB)."
        )
    if model.channels == count:
        batches = [planes[np.newaxis]]
    elif model.channels == 3:
        batches = [np.repeat(planes, 3, axis=0)[np.newaxis]]
    else:
        batches = [plane[np.newaxis, np.newaxis] for plane in planes]
    output = np.concatenate([model.run(np.ascontiguousarray(b)) for b in batches])
    if not np.isfinite(output).all():
        raise AetherError(
            f"The model returned NaN or infinite values ({model.describe()}).",
            hint="float16 can overflow; try --precision float32 or the float32 model.",
        )
    if model.channels == 3 and count == 1:
        return output[0].mean(axis=0, keepdims=True)
    return output.reshape(count, *output.shape[2:])
