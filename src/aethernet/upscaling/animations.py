"""Upscaling the frames of animations."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyvips

from aethernet.pictures.animation import AnimationReader
from aethernet.pictures.files import Picture, in_8_bits
from aethernet.pictures.write import resampled
from aethernet.runtimes.base import Model
from aethernet.upscaling.planes import upscale_picture


def animated_frames(
    reader: AnimationReader,
    model: Model,
    passes: int,
    final: tuple[int, int],
    alpha: str,
) -> Iterator[np.ndarray]:
    """The frames of an animation upscaled, `(H, W, bands)`, uint8.

    A frame that equals the one before it is not upscaled again.

    Args:
        reader: of the animation.
        model: for pictures of any size.
        passes: how often the model runs on each frame.
        final: width and height of the result; Lanczos makes what is missing.
        alpha: "network" or "bicubic", which upscales alpha.

    Raises:
        ImageError: when the file is damaged.
        AetherError: when the model fails.
    """
    before: np.ndarray | None = None
    upscaled = np.empty(0)
    for pixels in reader.frames():
        if before is None or not np.array_equal(before, pixels):
            upscaled = _upscaled(pixels, model, passes, final, alpha)
            before = pixels
        yield upscaled


def _upscaled(
    pixels: np.ndarray, model: Model, passes: int, final: tuple[int, int], alpha: str
) -> np.ndarray:
    picture = Picture(pixels)
    for _ in range(passes):
        picture = upscale_picture(picture, model, 16, alpha)
    if picture.header.size != final:
        image = pyvips.Image.new_from_array(picture.pixels)
        pixels = resampled(image, final, picture.header).numpy()
        picture = replace(picture, pixels=pixels.reshape(final[1], final[0], -1))
    return in_8_bits(picture).pixels
