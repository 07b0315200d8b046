"""The Python API: load a model, upscale pictures in memory or in files, convert models.

Every name is exported by the package:

    import aethernet
    model = aethernet.load("2x-small")
    big = model.upscale(image)
    aethernet.upscale_file("a.jpg", "b.png", model=model)
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from aethernet.checkpoints import fuse as fusing
from aethernet.checkpoints import ncnn_export, onnx
from aethernet.checkpoints.checkpoint import (
    DTYPES,
    Checkpoint,
    CheckpointOptions,
    load_checkpoint,
)
from aethernet.checkpoints.layout import PRECISIONS
from aethernet.checkpoints.plausibility import likely_img_range
from aethernet.checkpoints.shipped import find_model, shipped_model
from aethernet.errors import AetherError, ImageError
from aethernet.pictures.files import Picture
from aethernet.runtimes.base import AskedValues
from aethernet.runtimes.registry import check_known, open_any
from aethernet.runtimes.tiling import DEFAULT_CONTEXT, Tiled
from aethernet.upscaling import files
from aethernet.upscaling.planes import planes_and_alpha, upscale_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from aethernet.aether_core import AetherNet

_log = logging.getLogger(__name__)

Alpha = Literal["network", "bicubic"]
"""What upscales transparency."""

_Pixels = TypeVar("_Pixels", "Image", np.ndarray)

# Modes of PIL that have the same pixels as an array, and what others are turned into.
_PIL_MODES = ("L", "LA", "RGB", "RGBA", "I;16")
_PIL_TURNED = {"1": "L", "RGBX": "RGB"}

# float32 values may leave 0..1 by so much, which rounding does.
_ROUNDING = 1e-4


class Upscaler:
    """A loaded model; made by `load`."""

    def __init__(self, model: Tiled) -> None:
        """Wrap an opened model.

        Args:
            model: for gray or RGB pictures of any size.
        """
        self.model = model

    @property
    def scale(self) -> int:
        """Output pixels per input pixel along each side."""
        return self.model.scale

    @property
    def channels(self) -> int:
        """3 if the network sees RGB, 1 if it sees gray; both upscale either."""
        return self.model.channels

    def __repr__(self) -> str:
        return f"<{self.scale}x model, {self.model.describe()}>"

    def upscale(self, image: _Pixels, *, alpha: Alpha = "network") -> _Pixels:
        """Upscale a picture in memory, in tiles if it is large.

        Args:
            image: a PIL image, or an array `(H, W)`, `(H, W, 1)` gray, `(H, W, 2)` gray
                and alpha, `(H, W, 3)` RGB or `(H, W, 4)` RGB and alpha; uint8, uint16,
                or float32 with values from 0 to 1.
            alpha: "network" or "bicubic", which upscales transparency.

        Returns:
            The same kind as `image`, `scale` times as large along each side: an array
            of the same dtype and number of channels, or a PIL image of the same mode
            (a palette becomes RGB or RGBA, one bit becomes gray) with the same ICC
            profile. Floats are clamped to 0..1; those with alpha are computed with 16
            bits.

        Raises:
            ImageError: when `image` is something else; the message says what.
            AetherError: when the model fails, or memory is too small.
        """
        if isinstance(image, np.ndarray):
            return _upscaled_array(image, self.model, alpha)
        return _upscaled_image(image, self.model, alpha)


def load(
    model: str | Path | None = None,
    *,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    tile: int | None = None,
    value_range: float | None = None,
    bgr: bool = False,
) -> Upscaler:
    """Open a model.

    Args:
        model: a path (checkpoint of any network that spandrel knows, .onnx or .engine
            file), or a name that `aethernet models` lists, such as "2x-small"; None for
            the default model.
        runtime: "auto", or a name that `--runtime` takes, e.g. "onnxruntime".
        device: "auto", "cpu", "cuda", "cuda:1", ..
        precision: "auto", "float32", "float16" or "bfloat16".
        tile: pixels along each side of a tile; 0: pictures are not divided; None: as
            large as the free memory allows.
        value_range: what white is to the network, e.g. 255; of an AetherNet, its
            `img_range`. None: it is found out with a photograph, and a warning says it
            where it is not 1.
        bgr: whether the network takes and makes BGR instead of RGB.

    Raises:
        AetherError: when the file is missing or is no model, or nothing here runs it
            as asked.
    """
    path = find_model(model) if model else shipped_model()
    asked = AskedValues(value_range, bgr)
    how = (runtime, device, precision)
    # How much work follows is not known: no trial delays the first picture.
    opened = open_any(path, *how, pixels=lambda: 0, asked=asked)
    return Upscaler(Tiled(opened, tile, DEFAULT_CONTEXT))


def upscale_file(
    source: str | Path,
    target: str | Path,
    *,
    model: Upscaler | str | Path | None = None,
    scale: float | None = None,
    alpha: Alpha = "network",
) -> files.Upscaled:
    """Upscale one picture file in strips, with its metadata and colour profile.

    Args:
        source: PNG, JPEG, WebP, TIFF, AVIF, GIF or BMP.
        target: its suffix chooses the format. An existing file is replaced when the
            new one is complete.
        model: from `load`, or what `load` takes; None for the best shipped model for
            `scale`. A model from `load` saves the time of opening it for each file.
        scale: times the sides of the source; None for the model's scale.
        alpha: "network" or "bicubic", which upscales transparency.

    Returns:
        The target, and the sizes before and after, (width, height) in pixels.

    Raises:
        ImageError: when the source cannot be read, or the format of the target cannot
            hold it.
        AetherError: when the scale is not above 0, the model fails, or the target
            cannot be written.
    """
    if scale is not None and not 0 < scale < math.inf:
        raise AetherError(f"The scale has to be a number above 0, not {scale!r}.")
    if not isinstance(model, Upscaler):
        model = load(model or shipped_model(scale))
    options = files.Options(files.Size(scale), alpha)
    return files.upscale_file(source, target, model.model, options)


def load_network(source: str | Path, *, img_range: float | None = None) -> "AetherNet":
    """Build the network of a checkpoint, in training or fused form, as it is stored.

    Args:
        source: a checkpoint (`.safetensors`, `.pth`, ..), or the name of a shipped one.
        img_range: with which the network was trained; None: as the file says, else 1. A
            warning is logged where another one fits a photograph.

    Returns:
        A `torch.nn.Module` in evaluation mode on the CPU, for float32 images
        `(B, C, H, W)` from 0 to 1.

    Raises:
        CheckpointError: when the file is no checkpoint of AetherNet.
        AetherError: when PyTorch is not installed.
    """
    checkpoint = _checkpoint(source, img_range)
    if img_range is None and (likely := likely_img_range(checkpoint)) is not None:
        _log.warning(
            "%s: a test with a photograph shows that the network was trained with an "
            "img_range of %g.",
            *(checkpoint.path, likely),
        )
    return checkpoint.build()


def fuse(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str = "float32",
    img_range: float | None = None,
) -> Path:
    """Write the fused form of a checkpoint; the written file is checked against it.

    Args:
        source: a checkpoint in either form, or the name of a shipped one.
        target: `.safetensors` or `.pth`.
        dtype: of the written weights, "float32" or "float16".
        img_range: as for `load_network`; the written file has 1.

    Returns:
        The target.

    Raises:
        VerificationError: when the file would differ; nothing is written.
        AetherError: when `source` is no checkpoint, or the target cannot be written.
    """
    check_known(dtype, DTYPES, "dtype")
    fusing.fuse_checkpoint(_checkpoint(source, img_range), target, dtype)
    return Path(target)


def export(
    source: str | Path,
    target: str | Path,
    *,
    precision: str = "float32",
    size: tuple[int, int] | None = None,
    img_range: float | None = None,
) -> Path:
    """Write a checkpoint as an ONNX file or as ncnn files, checked against it.

    Args:
        source: a checkpoint in either form, or the name of a shipped one.
        target: `.onnx`; or `.param` for ncnn, which gets a `.bin` beside it.
        precision: "float32", "float16", or for ONNX "bfloat16".
        size: for ONNX, the fixed (width, height) of its input; None for free sizes.
        img_range: as for `load_network`.

    Returns:
        The target.

    Raises:
        VerificationError: when the file would differ; nothing is written.
        AetherError: when `source` is no checkpoint, or the target cannot be written.
    """
    path = Path(target)
    if path.suffix.lower() == ".param":
        if size is not None:
            raise AetherError("ncnn files take any size; size is for ONNX.")
        options = ncnn_export.NcnnOptions(precision)
        ncnn_export.export_ncnn(_checkpoint(source, img_range), path, options)
        return path
    onnx.check_export(path)
    check_known(precision, PRECISIONS, "precision")
    shapes = onnx.ShapeRange()
    if size is not None:
        if not (isinstance(size, Sequence) and len(size) == 2 and min(size) > 0):
            raise AetherError(
                f"The size has to be (width, height), both above 0, not {size!r}."
            )
        fixed = (1, size[1], size[0])
        shapes = onnx.ShapeRange(fixed, fixed, fixed)
    onnx.export_onnx(
        _checkpoint(source, img_range),
        path,
        onnx.ExportOptions(dynamic=size is None, shapes=shapes, precision=precision),
    )
    return path


def _checkpoint(source: str | Path, img_range: float | None) -> Checkpoint:
    options = CheckpointOptions(img_range=img_range)
    return load_checkpoint(find_model(source), options)


def _upscaled_array(array: np.ndarray, model: Tiled, alpha: Alpha) -> np.ndarray:
    _check_array(array)
    pixels = array[..., np.newaxis] if array.ndim == 2 else array
    has_alpha = pixels.shape[2] in (2, 4)
    if array.dtype != np.float32:
        picture = Picture(np.ascontiguousarray(pixels))
        depth = 8 * array.dtype.itemsize
        result = upscale_picture(picture, model, depth, alpha).pixels
    elif has_alpha:
        deep = Picture(np.rint(pixels.clip(0, 1) * 65535).astype(np.uint16))
        result = upscale_picture(deep, model, 16, alpha).pixels / np.float32(65535)
    else:
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        upscaled = planes_and_alpha(planes, False, model, alpha)
        result = np.ascontiguousarray(upscaled.transpose(1, 2, 0))
    return result[..., 0] if array.ndim == 2 else result


def _check_array(array: np.ndarray) -> None:
    """Check that an array is a picture.

    Raises:
        ImageError: when it is none.
    """
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise ImageError(
            f"The array holds {array.dtype}; uint8, uint16, or float32 with values "
            "from 0 to 1 is expected."
        )
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and not 1 <= shape[2] <= 4):
        hint = ""
        if array.ndim == 3 and shape[0] <= 4:
            hint = "The channels come last: array.transpose(1, 2, 0)."
        elif array.ndim == 4:
            hint = "Upscale the pictures of a batch one by one."
        raise ImageError(
            f"The array has the shape {shape}; (height, width) or (height, width, "
            "channels) with 1 to 4 channels is expected.",
            hint=hint,
        )
    if not array.size:
        raise ImageError(f"The array of shape {shape} holds no pixel.")
    if array.dtype == np.float32:
        low, high = float(array.min()), float(array.max())
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN fails both
            raise ImageError(
                f"The values go from {low:.4g} to {high:.4g}; in float32 they have to "
                "be from 0 to 1.",
                hint="Divide by 255 or clip them." if high > 1 else "",
            )


def _upscaled_image(image: Any, model: Tiled, alpha: Alpha) -> "Image":
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise ImageError(
            f"This is a {type(image).__name__}; a PIL image or a NumPy array is "
            "expected."
        )
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode in _PIL_TURNED:
        image = image.convert(_PIL_TURNED[image.mode])
    if image.mode not in _PIL_MODES:
        raise ImageError(
            f"The PIL image has the mode {image.mode}, not one of "
            f"{', '.join(_PIL_MODES)}.",
            hint='Convert it first, for instance with image.convert("RGB").',
        )
    result = Image.fromarray(_upscaled_array(np.asarray(image), model, alpha))
    if "icc_profile" in image.info:
        result.info["icc_profile"] = image.info["icc_profile"]
    return result
