"""Bicubic and models side by side: one page that needs nothing besides itself.

The pictures lie in the page as lossless WebP (PNG where a side is beyond WebP's), the
program around them is `compare.html`. It asks nothing of the network, and its policy
forbids it to.
"""

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from aethernet import metrics
from aethernet.errors import AetherError, ImageError
from aethernet.files import check_target, files_in, replacing
from aethernet.metrics import Figures
from aethernet.pictures.files import (
    FORMATS,
    READABLE,
    Picture,
    PictureReader,
    in_8_bits,
)
from aethernet.pictures.write import for_browsers
from aethernet.quality.baselines import BICUBIC, HR, Bicubic
from aethernet.runtimes.base import Model
from aethernet.upscaling.planes import upscale_picture
from aethernet.version import __version__

_log = logging.getLogger(__name__)

LARGE_PAGE = 50 * 10**6
"""Bytes beyond which browsers become slow to open a page."""

MOST_MEGAPIXELS = 64
"""Of a result; what a browser holds decoded without trouble."""

_PLACE = "{{comparison}}"


@dataclass(frozen=True)
class Pair:
    """A picture to upscale, and what it should become where that is known."""

    lr: Path
    hr: Path | None = None


@dataclass(frozen=True)
class Crop:
    """The part of an LR picture to compare, in its pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Report:
    """What `write_report` wrote."""

    size: int
    """Of the page, in bytes."""
    means: dict[str, Figures]
    """By method, over the pictures that have an HR picture; empty where none has."""


def find_pairs(lr: Sequence[Path], hr: Sequence[Path]) -> list[Pair]:
    """Pair LR with HR pictures: one by one, or a folder by names.

    Args:
        lr: files, and folders that stand for the pictures in them.
        hr: none; as many files as there are LR pictures, in their order; or one folder
            with pictures of the same names (suffixes may differ).

    Raises:
        AetherError: when there is no picture, or one has no partner.
    """
    pictures = [path for each in lr for path in _pictures(each)]
    if not hr:
        return [Pair(path) for path in pictures]
    if len(hr) == 1 and hr[0].is_dir():
        known = {path.stem: path for path in _pictures(hr[0])}
        missing = [path.name for path in pictures if path.stem not in known]
        if missing:
            raise AetherError(f"{hr[0]} has no HR picture for {missing[0]}.")
        return [Pair(path, known[path.stem]) for path in pictures]
    if len(hr) != len(pictures):
        raise AetherError(
            f"There are {len(pictures)} LR and {len(hr)} HR pictures; name as many HR "
            "pictures in the same order, or a folder that has them by the same names."
        )
    return [Pair(*both) for both in zip(pictures, hr, strict=True)]


def _pictures(path: Path) -> list[Path]:
    return files_in(path, READABLE, "pictures") if path.is_dir() else [path]


def write_report(
    pairs: Sequence[Pair],
    target: Path,
    models: Mapping[str, Model],
    crop: Crop | None = None,
) -> Report:
    """Write the page. Every picture's size is checked before the first model runs.

    Args:
        pairs: at least one. An HR picture is as large as the LR picture times the
            scale, or larger by less than the scale, and then cut.
        target: an .html file; an existing one is replaced.
        models: by the names that the page shows; at least one, all of one scale.
        crop: compare this part of each LR picture; None: the whole.

    Raises:
        ImageError: when a picture cannot be read or is too large to be shown, or LR and
            HR do not fit.
        AetherError: when the models have different scales, one cannot do it, or the
            page cannot be written.
    """
    scale = _common_scale(models)
    if target.suffix.lower() not in (".html", ".htm"):
        raise AetherError(f"A page is an .html file; name it so, not {target}.")
    check_target(target)
    for pair in pairs:
        _check_pair(pair, scale, crop)
    methods: dict[str, Model] = {BICUBIC: Bicubic(scale), **models}
    figures: dict[str, list[Figures]] = {name: [] for name in methods}
    shown = [_compared(pair, methods, scale, crop, figures) for pair in pairs]
    means = {name: metrics.mean(found) for name, found in figures.items() if found}
    page = {
        "version": __version__,
        "protocol": metrics.PROTOCOL,
        "measured": len(figures[BICUBIC]),
        "methods": [
            {
                "name": name,
                "by": str(replace(model.describe(), why="")),
                "mean": _in_words(means[name]) if means else None,
            }
            for name, model in methods.items()
        ],
        "pictures": shown,
    }
    with replacing(target) as temporary:
        size = temporary.write_bytes(_page(page))
    return Report(size, means)


def _compared(
    pair: Pair,
    methods: Mapping[str, Model],
    scale: int,
    crop: Crop | None,
    figures: Mapping[str, list[Figures]],
) -> dict[str, Any]:
    """What the page shows of a pair; what was measured is added to `figures`."""
    _log.info("comparing %s", pair.lr)
    lr = _read(pair.lr, crop)
    height, width = (side * scale for side in lr.pixels.shape[:2])
    hr = None
    if pair.hr:
        left, top = (crop.left * scale, crop.top * scale) if crop else (0, 0)
        hr = in_8_bits(_read(pair.hr, Crop(left, top, width, height)))
    images = []
    for name, model in methods.items():
        result = upscale_picture(lr, model, 8)
        entry = {"name": name, "source": _data_uri(result)}
        if hr:
            measured = metrics.measure(result.pixels, hr.pixels, scale)
            figures[name].append(measured)
            entry.update(_in_words(measured))
        images.append(entry)
    if hr:
        images.append({"name": HR, "source": _data_uri(hr)})
    return {"name": pair.lr.name, "width": width, "height": height, "images": images}


def _common_scale(models: Mapping[str, Model]) -> int:
    scales = {model.scale for model in models.values()}
    if len(scales) > 1:
        each = ", ".join(f"{name} {model.scale}x" for name, model in models.items())
        raise AetherError(f"Models of one scale can be compared, not {each}.")
    return scales.pop()


def _check_pair(pair: Pair, scale: int, crop: Crop | None) -> None:
    width, height = PictureReader(pair.lr).header.size
    if pair.hr:
        found = PictureReader(pair.hr).header.size
        beyond = found[0] - width * scale, found[1] - height * scale
        if not all(0 <= pixels < scale for pixels in beyond):
            raise ImageError(
                f"{pair.hr} has {found[0]}x{found[1]} pixels; the HR picture of "
                f"{pair.lr} ({width}x{height}) has {width * scale}x{height * scale} "
                f"at {scale}x."
            )
    if crop:
        if crop.left + crop.width > width or crop.top + crop.height > height:
            raise ImageError(
                f"{pair.lr} has {width}x{height} pixels; {crop.width}x{crop.height} at "
                f"{crop.left},{crop.top} is not all inside (--crop)."
            )
        width, height = crop.width, crop.height
    megapixels = width * height * scale**2 / 1e6
    if megapixels > MOST_MEGAPIXELS:
        raise ImageError(
            f"{pair.lr} becomes {megapixels:.0f} megapixels, a page shows "
            f"{MOST_MEGAPIXELS} at most; compare a part of it (--crop)."
        )


def _read(path: Path, crop: Crop | None) -> Picture:
    reader = PictureReader(path)
    header = reader.header
    crop = crop or Crop(0, 0, *header.size)
    # Never more than a few rows beside the part, which may be small in a large picture.
    for _ in range(crop.top):
        reader.rows(1)
    pixels = np.empty((crop.height, crop.width, header.bands), header.dtype)
    for row in range(crop.height):
        pixels[row] = reader.rows(1)[0, crop.left : crop.left + crop.width]
    return Picture(pixels, header.metadata)


def _in_words(figures: Figures) -> dict[str, str]:
    # JSON has neither infinity nor NaN.
    psnr = "equal" if figures.psnr == np.inf else f"{figures.psnr:.2f} dB"
    words = {"psnr": psnr, "ssim": f"{figures.ssim:.4f}"}
    return {key: "too small" if "nan" in word else word for key, word in words.items()}


def _data_uri(picture: Picture) -> str:
    image = for_browsers(picture)
    if max(image.width, image.height) > (FORMATS[".webp"].largest_side or 0):
        kind, content = "png", image.pngsave_buffer(keep="icc")
    else:
        kind, content = "webp", image.webpsave_buffer(lossless=True, keep="icc")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _page(content: Mapping[str, Any]) -> bytes:
    template = (
        resources.files("aethernet.quality").joinpath("compare.html").read_text("utf-8")
    )
    # A file's name may hold </script>; JSON has < in its texts only.
    written = json.dumps(content).replace("<", "\\u003c")
    return template.replace(_PLACE, written).encode()
