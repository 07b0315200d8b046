"""Reading and writing pictures, whole or in strips from top to bottom.

libvips does it, for reasons that were tried (`benchmarks/picture_libraries.py`): 16-bit
RGB, gray and alpha stay as they are, ICC, EXIF and XMP are carried, CMYK and palettes
become RGB, damaged files are refused, and pictures are read and written in strips.
OpenCV drops profiles and metadata, Pillow reduces 16-bit RGB to 8 bit and holds every
picture whole; Pillow reads and writes what libvips lacks, BMP.

Values are encoded ones throughout: gamma is neither removed nor applied, a colour
profile is carried, not applied.
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

_CARRIED = ("icc-profile-data", "exif-data", "xmp-data", "iptc-data")

_TEXTS = "png-comment"  # what a PNG says of itself, field by field

# How far colours spread under transparency: standard deviation in pixels, and where the
# Gaussian ends. Three blocks of context see most of what comes from 15 pixels away.
_SPREAD_SIGMA, _SPREAD_END = 6.0, 0.05


@dataclass(frozen=True)
class Format:
    """What a file format holds."""

    name: str
    depths: tuple[int, ...] = (8,)
    alpha: bool = True
    largest_side: int = 10_000_000
    """Pixels; of those without a limit of their own what libvips can hold."""
    quality: int | None = None
    """What is written unless told otherwise; None where nothing is ever lost."""
    can_be_lossless: bool = False


# Chroma is not subsampled and little is lost: an upscaled picture should not be blurred
# again by its file format.
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

_READ = "PNG, JPEG, WebP, TIFF, AVIF, GIF or BMP"

_LOADERS = ("png", "jpeg", "webp", "tiff", "heif", "gif")

_ANIMATED = ("png", "webp", "gif", "heif")


@dataclass(frozen=True)
class Header:
    """What a picture is, without its pixels."""

    width: int
    height: int
    bands: int
    """1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha."""
    depth: int = 8
    """Bits per value, 8 or 16."""
    metadata: dict[str, bytes | str] = field(default_factory=dict)
    """ICC profile, EXIF, XMP, IPTC, PNG texts by libvips' field names."""
    resolution: tuple[float, float] | None = None
    """Pixels per millimetre across and down, as stored; None where nothing is known."""

    @property
    def has_alpha(self) -> bool:
        return self.bands in (2, 4)

    @property
    def size(self) -> tuple[int, int]:
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
class Encoding:
    """How a picture is written, where there is a choice."""

    quality: int | None = None
    """1 to 100, for JPEG, WebP and AVIF; None for the format's own (`FORMATS`)."""
    lossless: bool = False
    """For WebP and AVIF."""


class PictureReader:
    """A picture opened for reading, from top to bottom, once.

    EXIF orientation is applied, palette and CMYK have become RGB.
    """

    def __init__(
        self,
        path: str | Path,
        limit_mp: float | None = None,
        spread_colours: bool = False,
    ) -> None:
        """Open a picture file; its pixels are read by `rows`.

        Args:
            path: named anything; the content tells the format.
            limit_mp: refuse a picture of more megapixels before decoding it.
            spread_colours: give pixels of alpha 0 the colours of those around them;
                theirs are arbitrary, mostly black, and would darken what is beside.

        Raises:
            ImageError: when it is no picture of ours, too large, animated, has several
                pages, or values of other types.
            AetherError: when there is no such file, or it cannot be read.
        """
        self.path = Path(path)
        check_source(self.path, "a picture")
        with self._damage_is_said(f"is no picture that can be read ({_READ})"):
            image = _opened(self.path, "sequential", limit_mp)
            _check_kind(self.path, image, limit_mp)
            turn = image.get("orientation") if image.get_typeof("orientation") else 1
            if turn not in (1, 2):  # needs other rows first than the file has
                image = _opened(self.path, "random", limit_mp).autorot()
            elif turn == 2:
                image = image.autorot()
            metadata = {
                name: image.get(name)
                for name in image.get_fields()
                # XMP repeats the orientation, in a form libvips does not correct.
                if (name in _CARRIED or name.startswith(_TEXTS))
                and not (name == "xmp-data" and turn != 1)
            }
            if image.interpretation == "cmyk":
                del_profile = metadata.pop("icc-profile-data", None)
                image = _from_cmyk(image, del_profile is not None)
            image = _all_bits(_plain(self.path, image))
            if spread_colours and image.bands in (2, 4):
                image = _colours_spread(image)
        depth = 16 if image.format == "ushort" else 8
        resolution = (image.xres, image.yres)
        self.header = Header(
            *(image.width, image.height, image.bands, depth, metadata),
            # What libvips says of pictures without.
            resolution=None if resolution == (1, 1) else resolution,
        )
        self._region = pyvips.Region.new(image)
        self._image = image  # which keeps the memory that a region does not
        self._next = 0
        self.given_up = False
        """Set by who wants no more rows."""

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
        with self._damage_is_said("is damaged, or ends early"):
            fetched = self._region.fetch(0, self._next, header.width, count)
        self._next += count
        return np.frombuffer(fetched, header.dtype).reshape(shape)

    @contextlib.contextmanager
    def _damage_is_said(self, what: str) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError as error:
            raise ImageError(
                f"The name {self.path} is not valid UTF-8; rename the file."
            ) from error
        except (pyvips.Error, OSError, SyntaxError, ValueError) as error:
            raise ImageError(f"{self.path} {what}.") from error
        except MemoryError as error:
            raise ImageError(f"Out of memory while reading {self.path}.") from error


def _opened(path: Path, access: str, limit_mp: float | None) -> pyvips.Image:
    with path.open("rb") as file:
        if file.read(2) == b"BM":
            return _opened_bmp(path, limit_mp)
    try:
        # Without revalidate libvips answers from its cache when a name is read twice,
        # with what the file held the first time.
        return pyvips.Image.new_from_file(
            str(path), access=access, fail_on="error", revalidate=True
        )
    except pyvips.Error as error:
        if "bad labq format" not in str(error):
            raise
        raise ImageError(
            f"{path} is in Lab with 8 bits per value, which libvips does not read; "
            "save it as RGB first, or with 16 bits."
        ) from error


def _opened_bmp(path: Path, limit_mp: float | None) -> pyvips.Image:
    PIL.Image.MAX_IMAGE_PIXELS = None  # the limit is ours
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
        raise ImageError(f"{path} is no picture that can be read ({_READ}).")
    pages = image.get_n_pages()
    if kind in _ANIMATED and (pages > 1 or _is_animated_png(path)):
        frames = f" ({pages} frames)" if pages > 1 else ""
        raise ImageError(
            f"{path} is animated{frames}, which a picture is not; make a video of it "
            "first, e.g. with ffmpeg."
        )
    if pages > 1 and not _is_pyramid(path, image):
        raise ImageError(f"{path} has {pages} pages; save each as a picture first.")
    _check_limit(path, (image.width, image.height), limit_mp)


def _is_pyramid(path: Path, image: pyvips.Image) -> bool:
    """Whether each page is the one before at half its size, as programs for slides do.

    The first is the picture then. Where they are kept apart there is one page only.
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
            f"{path} has {size[0]}x{size[1]} pixels, {megapixels:.0f} megapixels; the "
            f"limit is {limit_mp:g} (--limit)."
        )


def _is_animated_png(path: Path) -> bool:
    # libvips shows the first frame of one; its control chunk comes before the pixels.
    with path.open("rb") as file:
        start = file.read(2**20)
    return start[:4] == b"\x89PNG" and b"acTL" in start[: start.find(b"IDAT")]


def _from_cmyk(image: pyvips.Image, has_profile: bool) -> pyvips.Image:
    depth = 16 if image.format == "ushort" else 8
    # Without a profile of its own libvips takes its usual one for print.
    options = {} if has_profile else {"input_profile": "cmyk"}
    image = image.icc_transform("srgb", depth=depth, **options)
    image.remove("icc-profile-data")  # it would be that of the CMYK values
    return image


def _plain(path: Path, image: pyvips.Image) -> pyvips.Image:
    """As gray or RGB of 8 or 16 bits, which most pictures are."""
    if image.interpretation in ("lab", "labs", "labq", "xyz", "lch", "yxy", "hsv"):
        image = image.colourspace("srgb" if image.format == "uchar" else "rgb16")
    if image.format not in ("uchar", "ushort"):
        raise ImageError(
            f"{path} holds values of the type {image.format}; save it with 8 or 16 "
            "bits per value first."
        )
    if not 1 <= image.bands <= 4:
        raise ImageError(
            f"{path} has {image.bands} channels; a picture has gray or RGB, and alpha."
        )
    return image


def _all_bits(image: pyvips.Image) -> pyvips.Image:
    """AVIF of 10 or 12 bits, which libvips shifts to 16, so that white is white."""
    name = "heif-bitdepth"
    bits = image.get(name) if image.get_typeof(name) else 8
    if image.format != "ushort" or not 8 < bits < 16:
        return image
    most = (2**bits - 1) << (16 - bits)
    return (image * (65535 / most)).rint().cast("ushort")


def _colours_spread(image: pyvips.Image) -> pyvips.Image:
    """Pixels of alpha 0 take the mean of the visible colours around them, if any."""
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
    """A picture whose pixels of alpha 0 have the colours of those around them."""
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
    """The picture with uint8 pixels, rounded where they were of 16 bits."""
    if picture.pixels.dtype == np.uint8:
        return picture
    pixels = np.rint(picture.pixels / np.float32(65535 / 255)).astype(np.uint8)
    return replace(picture, pixels=pixels)


def rgb_8_bits(picture: Picture) -> np.ndarray:
    """`(H, W, 3)`, uint8: gray as three equal colours, alpha left out."""
    pixels = in_8_bits(picture).pixels
    gray = pixels.shape[2] < 3
    return pixels[:, :, :1].repeat(3, axis=2) if gray else pixels[:, :, :3]


def stored_depth(path: Path, header: Header) -> int:
    """Bits per value, 8 or 16, to hand to a writer of that name for that picture."""
    deep = header.depth > 8 and max(FORMATS[path.suffix.lower()].depths) > 8
    return 16 if deep else 8


def check_writable_as(path: Path, header: Header) -> None:
    """Say before any work is done when a picture cannot be stored under that name.

    Args:
        path: its suffix chooses the format.
        header: of the picture as it will be written.

    Raises:
        ImageError: for an unknown suffix, alpha or a size the format does not have.
    """
    if path.suffix.lower() not in FORMATS:
        raise ImageError(f"Cannot write {path}: name it {', '.join(SUFFIXES)}.")
    kind = FORMATS[path.suffix.lower()]
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ImageError(
            f"Cannot write {path}: its name is not valid UTF-8."
        ) from error
    if header.has_alpha and not kind.alpha:
        raise ImageError(
            f"Cannot write {path}: {kind.name} has no transparency; name it .png, "
            ".webp, .tif or .avif."
        )
    side = kind.largest_side
    if max(header.size) > side:
        raise ImageError(
            f"Cannot write {path}: {header.width}x{header.height} is too large for "
            f"{kind.name}, which has {side} pixels a side at most here; name it .png "
            "or .tif, or make it smaller."
        )


def reason_of(error: pyvips.Error) -> str:
    return " ".join(str(error.detail).split()).rstrip(".")
