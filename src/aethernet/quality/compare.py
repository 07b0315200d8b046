"""Bicubic and models side by side on one HTML page that needs nothing else.

The page contains the pictures as lossless WebP (PNG where a side is too long for WebP).
Its program is `compare.html`. It makes no network requests, and its content security
policy forbids them.
"""

import base64
import dataclasses
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
from aethernet.quality.baselines import BICUBIC, HR, Bicubic, common_scale
from aethernet.runtimes.base import Model
from aethernet.upscaling.planes import upscale_picture
from aethernet.version import __version__

_log = logging.getLogger(__name__)

LARGE_PAGE = 50 * 10**6
"""Bytes from which on browsers take long to open a page."""

MOST_MEGAPIXELS = 64
"""Largest result; browsers can hold several decoded pictures of this size."""

_PLACE = "{{comparison}}"


@dataclass(frozen=True)
class PicturePair:
    """A picture to upscale, and its HR picture if there is one."""

    lr: Path
    hr: Path | None = None


@dataclass(frozen=True)
class Region:
    """A part of a picture, in its pixels."""

    left: int
    top: int
    width: int
    height: int

    def scaled(self, scale: int) -> "Region":
        """The same part of a picture whose sides are `scale` times as long."""
        return Region(*(scale * each for each in dataclasses.astuple(self)))


@dataclass(frozen=True)
class WrittenPage:
    """The result of `write_page`."""

    size: int
    """Of the page, in bytes."""
    means: dict[str, Figures]
    """By method, over the pictures that have an HR picture; empty if none has one."""


@dataclass(frozen=True)
class _Comparison:
    """What is the same for all pictures of a page."""

    scale: int
    methods: Mapping[str, Model]
    region: Region | None


def find_pairs(lr: Sequence[Path], hr: Sequence[Path]) -> list[PicturePair]:
    """Pair LR with HR pictures, one by one or by the names in a folder.

    Args:
        lr: files, and folders that stand for the pictures in them.
        hr: empty; or as many files as there are LR pictures, in the same order; or one
            folder with pictures of the same names (suffixes may differ).

    Raises:
        AetherError: when there is no picture, or an LR picture has no HR picture.
    """
    pictures = [path for each in lr for path in _pictures(each)]
    if not hr:
        return [PicturePair(path) for path in pictures]
    if len(hr) == 1 and hr[0].is_dir():
        known = {path.stem: path for path in _pictures(hr[0])}
        missing = [path.name for path in pictures if path.stem not in known]
        if missing:
            raise AetherError(f"There is no HR picture for {missing[0]} here.", hr[0])
        return [PicturePair(path, known[path.stem]) for path in pictures]
    if len(hr) != len(pictures):
        raise AetherError(
            f"There are {len(pictures)} LR and {len(hr)} HR pictures.",
            hint="Name as many HR pictures in the same order, or a folder with the "
            "same names.",
        )
    return [PicturePair(*both) for both in zip(pictures, hr, strict=True)]


def _pictures(path: Path) -> list[Path]:
    return files_in(path, READABLE, "pictures") if path.is_dir() else [path]


def check_page(target: Path) -> None:
    """Check that a page can be written, before a model is opened.

    Raises:
        AetherError: when it is no .html file or cannot be written.
    """
    if target.suffix.lower() not in (".html", ".htm"):
        raise AetherError("The page has to be an .html file.", target)
    check_target(target)


def write_page(
    pairs: Sequence[PicturePair],
    target: Path,
    models: Mapping[str, Model],
    region: Region | None = None,
) -> WrittenPage:
    """Write the page. All pictures are checked before the first model runs.

    Args:
        pairs: at least one. Each side of an HR picture is the LR side times the scale,
            or longer by less than the scale, and is then cut.
        target: an .html file. An existing one is replaced.
        models: at least one, by the names to show, all of one scale.
        region: compare only this part of each LR picture; None: the whole picture.

    Raises:
        ImageError: when a picture cannot be read, is too large for a page, or an HR
            picture does not fit its LR picture.
        AetherError: when the models have different scales, one fails, or the page
            cannot be written.
    """
    check_page(target)
    scale = common_scale(models)
    for pair in pairs:
        _check_pair(pair, scale, region)
    methods: dict[str, Model] = {BICUBIC: Bicubic(scale), **models}
    comparison = _Comparison(scale, methods, region)
    figures: dict[str, list[Figures]] = {name: [] for name in methods}
    shown = [_compared(pair, comparison, figures) for pair in pairs]
    means = {name: metrics.mean(found) for name, found in figures.items() if found}
    page = {
        "version": __version__,
        "protocol": metrics.PROTOCOL,
        "measured": len(figures[BICUBIC]),
        "methods": [
            {
                "name": name,
                "by": str(replace(model.describe(), why="")),
                "mean": _as_text(means[name]) if means else None,
            }
            for name, model in methods.items()
        ],
        "pictures": shown,
    }
    with replacing(target) as temporary:
        size = temporary.write_bytes(page_of(page).encode())
    return WrittenPage(size, means)


def _compared(
    pair: PicturePair,
    comparison: _Comparison,
    figures: Mapping[str, list[Figures]],
) -> dict[str, Any]:
    """What the page shows of a pair; measurements are added to `figures`."""
    _log.info("comparing %s", pair.lr)
    scale = comparison.scale
    lr = read_region(pair.lr, comparison.region)
    height, width = lr.pixels.shape[:2]
    part = comparison.region or Region(0, 0, width, height)
    hr = in_8_bits(read_region(pair.hr, part.scaled(scale))) if pair.hr else None
    images = []
    for name, model in comparison.methods.items():
        result = upscale_picture(lr, model, 8)
        entry = {"name": name, "source": _data_uri(result)}
        if hr:
            measured = metrics.measure(result.pixels, hr.pixels, scale)
            figures[name].append(measured)
            entry.update(_as_text(measured))
        images.append(entry)
    if hr:
        images.append({"name": HR, "source": _data_uri(hr)})
    size = {"width": width * scale, "height": height * scale}
    return {"name": pair.lr.name, **size, "images": images}


def _check_pair(pair: PicturePair, scale: int, region: Region | None) -> None:
    width, height = PictureReader(pair.lr).header.size
    if pair.hr:
        _check_hr(pair.hr, pair.lr, (width, height), scale)
    if region:
        if region.left + region.width > width or region.top + region.height > height:
            raise ImageError(
                f"The picture has {width}x{height} pixels; {region.width}x"
                f"{region.height} at {region.left},{region.top} is not all inside "
                "(--crop).",
                pair.lr,
            )
        width, height = region.width, region.height
    megapixels = width * height * scale**2 / 1e6
    if megapixels > MOST_MEGAPIXELS:
        raise ImageError(
            f"The result would have {megapixels:.0f} megapixels; a page shows at most "
            f"{MOST_MEGAPIXELS}.",
            pair.lr,
            "Compare a part of the picture (--crop).",
        )


def _check_hr(hr: Path, lr: Path, lr_size: tuple[int, int], scale: int) -> None:
    found = PictureReader(hr).header.size
    width, height = (side * scale for side in lr_size)
    if not all(
        0 <= has - needs < scale
        for has, needs in zip(found, (width, height), strict=True)
    ):
        raise ImageError(
            f"The picture has {found[0]}x{found[1]} pixels; as the HR picture of {lr} "
            f"({lr_size[0]}x{lr_size[1]}) it needs {width}x{height} at {scale}x.",
            hr,
        )


def read_region(path: Path, region: Region | None = None) -> Picture:
    """Read a part of a picture, or all of it, row by row.

    Raises:
        ImageError, AetherError: as `PictureReader` and its `rows`.
    """
    reader = PictureReader(path)
    header = reader.header
    region = region or Region(0, 0, *header.size)
    # Row by row: the region may be a small part of a picture too large for memory.
    for _ in range(region.top):
        reader.rows(1)
    pixels = np.empty((region.height, region.width, header.bands), header.dtype)
    for row in range(region.height):
        pixels[row] = reader.rows(1)[0, region.left : region.left + region.width]
    return Picture(pixels, header.metadata)


def _as_text(figures: Figures) -> dict[str, str]:
    # As text, because JSON has neither infinity nor NaN.
    psnr = "equal" if figures.psnr == np.inf else f"{figures.psnr:.2f} dB"
    texts = {"psnr": psnr, "ssim": f"{figures.ssim:.4f}"}
    return {key: "too small" if "nan" in text else text for key, text in texts.items()}


def _data_uri(picture: Picture) -> str:
    image = for_browsers(picture)
    if max(image.width, image.height) > FORMATS[".webp"].largest_side:
        kind, content = "png", image.pngsave_buffer(keep="icc")
    else:
        kind, content = "webp", image.webpsave_buffer(lossless=True, keep="icc")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def page_of(content: Mapping[str, Any], pictures_from: str = "data:") -> str:
    """The HTML of a page.

    Args:
        content: what the program of the page reads, see `write_page`; with "embedded"
            true it shows the pictures only.
        pictures_from: where the page may get pictures from, for its content security
            policy.
    """
    template = (
        resources.files("aethernet.quality").joinpath("compare.html").read_text("utf-8")
    )
    # A file name may contain </script>. In JSON, < only occurs inside strings.
    written = json.dumps(content).replace("<", "\\u003c")
    page = template.replace("img-src data:", f"img-src {pictures_from}", 1)
    return page.replace(_PLACE, written)
