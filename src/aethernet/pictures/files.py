"""Picture formats, and reading pictures, whole or in strips from top to bottom.

libvips reads and writes pictures; `benchmarks/picture_libraries.py` compares it with
other libraries. It keeps 16-bit RGB, gray and alpha as they are, carries ICC, EXIF and
XMP, turns CMYK and palettes into RGB, refuses damaged files, and works in strips.
OpenCV drops profiles and metadata. Pillow reduces 16-bit RGB to 8 bits and holds the
whole picture in memory. Pillow reads and writes BMP, which our libvips cannot.

Pixel values are the encoded ones everywhere: gamma is neither removed nor applied. A
colour profile is carried, not applied.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyvips

from aethernet.errors import ImageError
from aethernet.files import check_source

# Metadata that is kept, by libvips' field names; PNG texts have one field each.
_CARRIED = ("icc-profile-data", "exif-data", "xmp-data", "iptc-data")
_TEXTS = "png-comment"

# How far colours spread under transparency: standard deviation in pixels, and the value
# at which the Gaussian is cut off, about 15 pixels away.
_SPREAD_SIGMA, _SPREAD_END = 6.0, 0.05


@dataclass(frozen=True)
class Format:
    """What a file format holds."""

    name: str
    depths: tuple[int, ...] = (8,)
    alpha: bool = True
    largest_side: int = 10_000_000
    """Pixels; for formats without a limit of their own, the limit of libvips."""
    quality: int | None = None
    """Default quality, 1 to 100; None for formats that are always lossless."""
    can_be_lossless: bool = False
    """Whether a format with a quality can also be written without loss."""


# High quality, and no chroma subsampling: the file format should not blur an upscaled
# picture again.
_JPEG = Format("JPEG", alpha=False, largest_side=65535, quality=95)
_TIFF = Format("TIFF", (8, 16))

FORMATS = {
    ".png": Format("PNG", (8, 16)),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": Format("WebP", largest_side=16383, quality=95, can_be_lossless=True),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".avif": Format("AVIF", (8, 12), True, 16384, quality=90, can_be_lossless=True),
    ".bmp": Format("BMP", alpha=False),
}

SUFFIXES = tuple(FORMATS)
READABLE = (*SUFFIXES, ".gif")

_NOT_A_PICTURE = (
    "This is no picture that can be read (PNG, JPEG, WebP, TIFF, AVIF, GIF or BMP)."
)

# libvips' names of the formats that are read, and of those that can be animated.
_LOADERS = ("png", "jpeg", "webp", "tiff", "heif", "gif")
_ANIMATED = ("png", "webp", "gif", "heif")


@dataclass(frozen=True)
class Header:
    """Size, kind and metadata of a picture, without its pixels."""

    width: int
    height: int
    bands: int
    """1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha."""
    depth: int = 8
    """Bits per value, 8 or 16."""
    metadata: dict[str, bytes | str] = field(default_factory=dict)
    """ICC profile, EXIF, XMP, IPTC and PNG texts, by libvips' field names."""
    resolution: tuple[float, float] | None = None
    """Pixels per millimetre across and down, as stored; None if unknown."""

    @property
    def has_alpha(self) -> bool:
        return self.bands in (2, 4)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    @property
    def dtype(self) -> "np.dtype[Any]":
        return np.dtype(np.uint16 if self.depth > 8 else np.uint8)


@dataclass(frozen=True)
class Picture:
    """A whole picture in memory."""

    pixels: np.ndarray
    """`(H, W, bands)`, uint8 or uint16; bands: gray, gray + alpha, RGB, RGB + alpha."""
    metadata: dict[str, bytes | str] = field(default_factory=dict)
    """As in `Header`."""
    resolution: tuple[float, float] | None = None
    """As in `Header`."""

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[2] in (2, 4)

    @property
    def header(self) -> Header:
        height, width, bands = self.pixels.shape
        depth = 8 * self.pixels.dtype.itemsize
        return Header(width, height, bands, depth, self.metadata, self.resolution)


@dataclass(frozen=True)
class PictureEncoding:
    """How to write a picture in a format that offers a choice."""

    quality: int | None = None
    """1 to 100, for JPEG, WebP and AVIF; None for the format's default (`FORMATS`)."""
    lossless: bool = False
    """For WebP and AVIF."""


class PictureReader:
    """A picture opened for reading, once, from top to bottom.

    EXIF orientation is applied. Palettes and CMYK become RGB.
    """

    def __init__(
        self,
        path: str | Path,
        limit_mp: float | None = None,
        spread_colours: bool = False,
    ) -> None:
        """Open a picture file; `rows` reads its pixels.

        Args:
            path: of the file. The content tells the format, not the name.
            limit_mp: refuse a picture of more megapixels before decoding it.
            spread_colours: give pixels of alpha 0 the colours of the pixels around
                them. Their own colours are arbitrary, mostly black, and would darken
                what is beside them.

        Raises:
            ImageError: when the file is not a picture of a format we read, is too
                large, animated, has several pages, or values of other types.
            AetherError: when there is no such file, or it cannot be read.
        """
        self.path = Path(path)
        check_source(self.path, "a picture")
        with _image_errors(self.path, _NOT_A_PICTURE):
            image, turn = _opened_upright(self.path, limit_mp)
            metadata = _metadata(image, turn)
            if image.interpretation == "cmyk":
                profile = metadata.pop("icc-profile-data", None)
                image = _from_cmyk(image, profile is not None)
            image = _all_bits(_plain(self.path, image))
            if spread_colours and image.bands in (2, 4):
                image = _colours_spread(image)
        resolution = (image.xres, image.yres)
        self.header = Header(
            width=image.width,
            height=image.height,
            bands=image.bands,
            depth=16 if image.format == "ushort" else 8,
            metadata=metadata,
            # libvips gives 1 pixel per millimetre for pictures without a resolution.
            resolution=None if resolution == (1, 1) else resolution,
        )
        self._region = pyvips.Region.new(image)
        self._image = image  # a region does not keep the image's memory alive
        self._next = 0

    def rows(self, count: int) -> np.ndarray:
        """The next rows, `(count, W, bands)`, uint8 or uint16; fewer at the end.

        Raises:
            ImageError: when the file ends early, or is damaged there.
        """
        header = self.header
        count = min(count, header.height - self._next)
        shape = (max(count, 0), header.width, header.bands)
        if count <= 0:
            return np.empty(shape, header.dtype)
        with _image_errors(self.path, "The file is damaged, or ends early."):
            fetched = self._region.fetch(0, self._next, header.width, count)
        self._next += count
        return np.frombuffer(fetched, header.dtype).reshape(shape)


@contextlib.contextmanager
def _image_errors(path: Path, reason: str) -> Iterator[None]:
    """Turn errors of the libraries into an ImageError with that reason."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise ImageError(
            "The name is not valid UTF-8.", path, "Rename the file."
        ) from error
    except (pyvips.Error, OSError, SyntaxError, ValueError) as error:
        raise ImageError(reason, path) from error
    except MemoryError as error:
        raise ImageError("There is not enough memory to read it.", path) from error


def _opened_upright(path: Path, limit_mp: float | None) -> tuple[pyvips.Image, int]:
    """The picture with its orientation applied, and the EXIF value it had."""
    image = _opened(path, "sequential", limit_mp)
    _check_kind(path, image, limit_mp)
    turn = image.get("orientation") if image.get_typeof("orientation") else 1
    if turn not in (1, 2):  # its first rows are not the first in the file
        image = _opened(path, "random", limit_mp)
    return (image if turn == 1 else image.autorot()), turn


def _metadata(image: pyvips.Image, turn: int) -> dict[str, bytes | str]:
    """Metadata to keep of a picture that had that EXIF orientation."""
    return {
        name: image.get(name)
        for name in image.get_fields()
        # XMP repeats the orientation, in a form that libvips does not correct.
        if (name in _CARRIED or name.startswith(_TEXTS))
        and not (name == "xmp-data" and turn != 1)
    }


def _opened(path: Path, access: str, limit_mp: float | None) -> pyvips.Image:
    with path.open("rb") as file:
        if file.read(2) == b"BM":
            return _opened_bmp(path, limit_mp)
    try:
        # Without revalidate, libvips answers from its cache when a file is read twice,
        # with the old content.
        return pyvips.Image.new_from_file(
            str(path), access=access, fail_on="error", revalidate=True
        )
    except pyvips.Error as error:
        if "bad labq format" not in str(error):
            raise
        raise ImageError(
            "The picture is in Lab with 8 bits per value, which libvips cannot read.",
            path,
            "First save it as RGB, or with 16 bits.",
        ) from error


def _opened_bmp(path: Path, limit_mp: float | None) -> pyvips.Image:
    PIL.Image.MAX_IMAGE_PIXELS = None  # we have our own limit
    with PIL.Image.open(path, formats=["BMP"]) as image:
        _check_limit(path, image.size, limit_mp)  # before it is decoded
        plain = image.convert("L" if image.mode in ("1", "L") else "RGB")
        dpi = image.info.get("dpi")
        pixels = np.asarray(plain)
    opened = pyvips.Image.new_from_array(pixels)
    if dpi:
        opened = opened.copy(xres=dpi[0] / 25.4, yres=dpi[1] / 25.4)
    return opened


def _check_kind(path: Path, image: pyvips.Image, limit_mp: float | None) -> None:
    loader = image.get("vips-loader") if image.get_typeof("vips-loader") else "png"
    kind = str(loader).partition("load")[0]
    if kind not in _LOADERS:
        raise ImageError(_NOT_A_PICTURE, path)
    pages = image.get_n_pages()
    if kind in _ANIMATED and (pages > 1 or _is_animated_png(path)):
        frames = f" ({pages} frames)" if pages > 1 else ""
        raise ImageError(
            f"The picture is animated{frames}.",
            path,
            "First make a video of it, for example with ffmpeg.",
        )
    if pages > 1 and not _is_pyramid(path, image):
        raise ImageError(
            f"The file has {pages} pages.", path, "First save each page as a picture."
        )
    _check_limit(path, (image.width, image.height), limit_mp)


def _is_pyramid(path: Path, image: pyvips.Image) -> bool:
    """Whether each page is the page before it at half the size.

    Programs for microscope slides write such files; the first page is the picture then.
    """
    for page in range(1, image.get_n_pages()):
        smaller = pyvips.Image.tiffload(str(path), page=page)
        sides = (image.width, smaller.width), (image.height, smaller.height)
        if any(abs(whole / 2**page - side) >= 1 for whole, side in sides):
            return False
    return True


def _check_limit(path: Path, size: tuple[int, int], limit_mp: float | None) -> None:
    megapixels = size[0] * size[1] / 1e6
    if limit_mp is not None and megapixels > limit_mp:
        raise ImageError(
            f"The picture has {size[0]}x{size[1]} pixels, {megapixels:.0f} megapixels; "
            f"the limit is {limit_mp:g}.",
            path,
            "Set another with --limit.",
        )


def _is_animated_png(path: Path) -> bool:
    # libvips reads the first frame only. The animation chunk comes before the pixels.
    with path.open("rb") as file:
        start = file.read(2**20)
    return start[:4] == b"\x89PNG" and b"acTL" in start[: start.find(b"IDAT")]


def _from_cmyk(image: pyvips.Image, has_profile: bool) -> pyvips.Image:
    depth = 16 if image.format == "ushort" else 8
    # For a picture without a profile, libvips takes its usual one for print.
    options = {} if has_profile else {"input_profile": "cmyk"}
    image = image.icc_transform("srgb", depth=depth, **options)
    image.remove("icc-profile-data")  # it describes the CMYK values
    return image


def _plain(path: Path, image: pyvips.Image) -> pyvips.Image:
    """The picture as gray or RGB of 8 or 16 bits; most pictures are that already."""
    if image.interpretation in ("lab", "labs", "labq", "xyz", "lch", "yxy", "hsv"):
        image = image.colourspace("srgb" if image.format == "uchar" else "rgb16")
    if image.format not in ("uchar", "ushort"):
        raise ImageError(
            f"The picture holds values of the type {image.format}.",
            path,
            "First save it with 8 or 16 bits per value.",
        )
    if not 1 <= image.bands <= 4:
        raise ImageError(
            f"The picture has {image.bands} channels; expected gray or RGB, with or "
            "without alpha.",
            path,
        )
    return image


def _all_bits(image: pyvips.Image) -> pyvips.Image:
    """Stretch AVIF of 10 or 12 bits to 16; libvips only shifts, which darkens white."""
    name = "heif-bitdepth"
    bits = image.get(name) if image.get_typeof(name) else 8
    if image.format != "ushort" or not 8 < bits < 16:
        return image
    most = (2**bits - 1) << (16 - bits)
    return (image * (65535 / most)).rint().cast("ushort")


def _colours_spread(image: pyvips.Image) -> pyvips.Image:
    """Give pixels of alpha 0 the mean of the visible colours around them, if any."""
    colours, alpha = image[: image.bands - 1], image[image.bands - 1]

    def blurred(values: pyvips.Image) -> pyvips.Image:
        return values.gaussblur(_SPREAD_SIGMA, min_ampl=_SPREAD_END, precision="float")

    visible = alpha.cast("float")
    weight = blurred(visible)
    around = blurred(colours * visible) / (weight + 1e-6)
    take = (alpha == 0) & (weight > 1e-3)
    spread = take.ifthenelse(around.rint().cast(image.format), colours)
    return spread.bandjoin(alpha)


def with_colours_spread(picture: Picture) -> Picture:
    """The picture with the colours around them in pixels of alpha 0."""
    if not picture.has_alpha:
        return picture
    spread = _colours_spread(pyvips.Image.new_from_array(picture.pixels))
    return replace(picture, pixels=spread.numpy())


def read_picture(path: str | Path) -> Picture:
    """Read a whole picture, as `PictureReader` does.

    Raises:
        ImageError, AetherError: as `PictureReader` and its `rows`.
    """
    reader = PictureReader(path)
    header = reader.header
    return Picture(reader.rows(header.height), header.metadata, header.resolution)


def in_8_bits(picture: Picture) -> Picture:
    """The picture with uint8 pixels; values of 16 bits are rounded."""
    if picture.pixels.dtype == np.uint8:
        return picture
    pixels = np.rint(picture.pixels / np.float32(65535 / 255)).astype(np.uint8)
    return replace(picture, pixels=pixels)


def rgb_8_bits(picture: Picture) -> np.ndarray:
    """Pixels as `(H, W, 3)`, uint8: gray as three equal colours, alpha left out."""
    pixels = in_8_bits(picture).pixels
    gray = pixels.shape[2] < 3
    return pixels[:, :, :1].repeat(3, axis=2) if gray else pixels[:, :, :3]


def stored_depth(path: Path, header: Header) -> int:
    """Bits per value, 8 or 16, in which a file of that name stores that picture."""
    deep = header.depth > 8 and max(FORMATS[path.suffix.lower()].depths) > 8
    return 16 if deep else 8


def check_format(path: Path) -> None:
    """Check that the name of an output is one that can be written as a picture.

    Raises:
        ImageError: when its suffix is not in `SUFFIXES`.
    """
    if path.suffix.lower() not in FORMATS:
        raise ImageError(
            "Cannot be written: the suffix is not that of a format we write.",
            path,
            f"Name it {', '.join(SUFFIXES)}.",
        )


def check_writable_as(path: Path, header: Header) -> None:
    """Check that a format can hold a picture, before any work is done for it.

    Args:
        path: its suffix chooses the format.
        header: of the picture as it will be written.

    Raises:
        ImageError: for an unknown suffix, alpha or a size the format does not have.
    """
    check_format(path)
    kind = FORMATS[path.suffix.lower()]
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ImageError(
            "Cannot be written: the name is not valid UTF-8.", path
        ) from error
    if header.has_alpha and not kind.alpha:
        raise ImageError(
            f"Cannot be written: {kind.name} has no transparency.",
            path,
            "Name it .png, .webp, .tif or .avif.",
        )
    side = kind.largest_side
    if max(header.size) > side:
        raise ImageError(
            f"Cannot be written: {header.width}x{header.height} is too large for "
            f"{kind.name}, which holds {side} pixels a side at most.",
            path,
            "Name it .png or .tif, or make it smaller.",
        )
