"""Picture formats, and reading pictures, whole or in strips from top to bottom.

libvips reads and writes pixels; `benchmarks/picture_libraries.py` compares it with
other libraries. It keeps 16-bit RGB, gray and alpha as they are, turns CMYK and
palettes into RGB, refuses damaged files, and works in strips. OpenCV drops profiles and
metadata. Pillow reduces 16-bit RGB to 8 bits and holds the whole picture in memory.
Pillow reads and writes BMP, which our libvips cannot.

What a file carries beside its pixels we read and write ourselves (`metadata`, and one
module for each format), since libvips knows only a part of it.

Pixel values are the encoded ones everywhere: gamma is neither removed nor applied. A
colour profile is carried, not applied.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from aethernet.errors import ImageError
from aethernet.files import check_source
from aethernet.pictures.colour import StatedColour
from aethernet.pictures.limits import row_blocks
from aethernet.pictures.metadata import Metadata, Room
from aethernet.pictures.opening import NOT_A_PICTURE, Opened

# Errors that libraries raise about a file.
_OF_LIBRARIES = (pyvips.Error, OSError, OverflowError, SyntaxError, ValueError)

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
    room: Room = field(default_factory=Room)
    """What it holds beside pixels."""


# High quality, and no chroma subsampling: the file format should not blur an upscaled
# picture again.
_JPEG = Format(
    "JPEG",
    alpha=False,
    largest_side=65535,
    quality=95,
    room=Room(photoshop=True, comments=True, gain_map=True, shape=True),
)
_TIFF = Format("TIFF", (8, 16), room=Room(photoshop=True, thumbnail=False, shape=True))
_IN_CHUNKS = Room(
    code_points=True,
    gamma=True,
    photoshop=True,
    texts=True,
    changed=True,
    shape=True,
)
_IN_BOXES = Room(code_points=True, gray_profile=False, resolution=False)
_IN_RIFF = Room(gray_profile=False, resolution=False)
_NO_ROOM = Room(profile=False, exif=False, xmp=False)

FORMATS = {
    ".png": Format("PNG", (8, 16), room=_IN_CHUNKS),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), _JPEG),
    ".webp": Format(
        "WebP", largest_side=16383, quality=95, can_be_lossless=True, room=_IN_RIFF
    ),
    **dict.fromkeys((".tif", ".tiff"), _TIFF),
    ".avif": Format(
        *("AVIF", (8, 12), True, 16384, 90),
        can_be_lossless=True,
        room=_IN_BOXES,
    ),
    ".bmp": Format("BMP", alpha=False, room=_NO_ROOM),
    ".jxl": Format(
        *("JPEG XL", (8,), True, 2**30, 95),
        can_be_lossless=True,
        room=Room(profile=False, resolution=False),
    ),
}

SUFFIXES = tuple(FORMATS)

ANIMATED = {
    ".gif": Format(
        "GIF",
        largest_side=65535,
        room=Room(exif=False, comments=True, resolution=False),
    ),
    ".png": FORMATS[".png"],
    ".apng": FORMATS[".png"],
    ".webp": FORMATS[".webp"],
}
"""Formats of animations; GIF is written for these only."""

READABLE = (*SUFFIXES, ".gif", ".apng", ".heic", ".heif", ".hif", ".mpo", ".dib")

# Ways to describe colours that become sRGB.
_CONVERTED = ("lab", "labs", "labq", "xyz", "lch", "yxy", "hsv")


@dataclass(frozen=True)
class Header:
    """Size, kind and metadata of a picture, without its pixels."""

    width: int
    height: int
    bands: int
    """1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha."""
    depth: int = 8
    """Bits per value, 8 or 16."""
    metadata: Metadata = field(default_factory=Metadata)
    """What the file carries beside the pixels."""
    bits: int = 8
    """Bits per value in the file it comes from."""

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
    metadata: Metadata = field(default_factory=Metadata)
    """As in `Header`."""

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[2] in (2, 4)

    @property
    def header(self) -> Header:
        height, width, bands = self.pixels.shape
        depth = 8 * self.pixels.dtype.itemsize
        return Header(width, height, bands, depth, self.metadata, bits=depth)


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
        with image_errors(self.path, NOT_A_PICTURE):
            opened = Opened(self.path, limit_mp)
            image, metadata = opened.image, opened.metadata
            stored = image.interpretation
            if stored in ("cmyk", *_CONVERTED):
                kind = "Lab" if stored.startswith("lab") else stored.upper()
                name = f"the values in {kind} (now sRGB)"
                others = (*metadata.others, name)
                metadata = replace(
                    metadata, profile=None, colour=StatedColour(), others=others
                )
            if stored == "cmyk":
                image = _from_cmyk(image, opened.metadata.profile is not None)
            image = _all_bits(plain(self.path, image), opened.bits)
            if spread_colours and image.bands in (2, 4):
                image = _colours_spread(image)
        self.header = Header(
            width=image.width,
            height=image.height,
            bands=image.bands,
            depth=16 if image.format == "ushort" else 8,
            bits=opened.bits,
            metadata=metadata,
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
        read = np.empty(shape, header.dtype)
        with image_errors(self.path, "The file is damaged, or ends early."):
            for first, block in row_blocks(count):
                place = (0, self._next + first, header.width, block)
                fetched = np.frombuffer(self._region.fetch(*place), header.dtype)
                read[first : first + block] = fetched.reshape(block, *shape[1:])
        self._next += count
        return read


@contextlib.contextmanager
def image_errors(path: Path, reason: str) -> Iterator[None]:
    """Turn errors of the libraries into an ImageError with that reason."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise ImageError(
            "The name is not valid UTF-8.", path, "Rename the file."
        ) from error
    except _OF_LIBRARIES as error:
        raise ImageError(reason, path) from error
    except MemoryError as error:
        raise ImageError("There is not enough memory to read it.", path) from error


def _from_cmyk(image: pyvips.Image, has_profile: bool) -> pyvips.Image:
    depth = 16 if image.format == "ushort" else 8
    # For a picture without a profile, libvips takes its usual one for print.
    options = {} if has_profile else {"input_profile": "cmyk"}
    image = image.icc_transform("srgb", depth=depth, **options)
    image.remove("icc-profile-data")  # it describes the CMYK values
    return image


def plain(path: Path, image: pyvips.Image) -> pyvips.Image:
    """The picture as gray or RGB of 8 or 16 bits; most pictures are that already."""
    if image.interpretation in _CONVERTED:
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


def _all_bits(image: pyvips.Image, bits: int) -> pyvips.Image:
    """Stretch values of 9 to 15 bits to 16; libraries only shift, which darkens white.

    Args:
        image: with the used bits in front.
        bits: per value that are used.
    """
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
    return Picture(reader.rows(header.height), header.metadata)


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
    if path.suffix.lower() not in {**FORMATS, **ANIMATED}:
        raise ImageError(
            "Cannot be written: the suffix is not that of a format we write.",
            path,
            f"Name it {', '.join(SUFFIXES)}.",
        )


def format_of(path: Path, *, animated: bool) -> Format:
    """The format that the name of an output stands for.

    Raises:
        ImageError: for a suffix of another kind of format.
    """
    check_format(path)
    suffix = path.suffix.lower()
    kind = (ANIMATED if animated else FORMATS).get(suffix)
    if kind is None:
        what = "animations" if not animated else "still pictures"
        formats = ANIMATED if animated else FORMATS
        raise ImageError(
            f"Cannot be written: {suffix} is for {what} only.",
            path,
            f"Name it {', '.join(formats)}.",
        )
    return kind


def check_writable_as(path: Path, header: Header, *, animated: bool = False) -> None:
    """Check that a format can hold a picture, before any work is done for it.

    Args:
        path: its suffix chooses the format.
        header: of the picture as it will be written.
        animated: whether it is the header of a frame of an animation.

    Raises:
        ImageError: for an unknown suffix, alpha or a size the format does not have.
    """
    kind = format_of(path, animated=animated)
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
