"""Reading and writing pictures with libvips: PNG, JPEG, WebP.

libvips keeps 16 bits, gray and alpha as they are, turns palettes into colours, knows
EXIF and ICC, and refuses truncated files; Pillow has no 16-bit RGB, OpenCV drops
profiles.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyvips

from aethernet.errors import ImageError
from aethernet.files import check_source, replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

_LOADERS = ("pngload", "jpegload", "webpload")
_CARRIED = ("icc-profile-data", "exif-data", "xmp-data")
# 72 dpi, what programs assume of a picture that says nothing; libvips writes 25.4.
_COMMON_RESOLUTION = (72 / 25.4, 72 / 25.4)
# Bits of libvips' ForeignKeep: it would make up an EXIF block where there is none.
_KEEP_EXIF, _KEEP_ALL_BUT_EXIF = 1, 2 | 4 | 8 | 16
# JPEG without chroma subsampling, and little loss in both: an upscaled picture should
# not be blurred again by its file format.
_SAVE_OPTIONS: dict[str, dict[str, object]] = {
    ".png": {},
    ".jpg": {"Q": 95, "subsample_mode": "off"},
    ".jpeg": {"Q": 95, "subsample_mode": "off"},
    ".webp": {"Q": 95},
}


@dataclass(frozen=True)
class Picture:
    """Pixels as stored, encoded values (gamma is neither removed nor applied)."""

    pixels: np.ndarray
    """`(H, W, bands)`, uint8 or uint16; bands: gray, gray + alpha, RGB, RGB + alpha."""
    metadata: dict[str, bytes] = field(default_factory=dict)
    """ICC profile, EXIF and XMP by libvips' field names."""
    resolution: tuple[float, float] | None = None
    """Pixels per millimetre across and down, as stored; None where nothing is known."""

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[2] in (2, 4)


def read_picture(path: str | Path) -> Picture:
    """Read a picture, its EXIF orientation applied, palette and CMYK turned into RGB.

    Raises:
        ImageError: when the file is no whole PNG, JPEG or WebP, or animated.
        AetherError: when there is no such file, or it cannot be read.
    """
    path = Path(path)
    check_source(path, "a picture")
    try:
        # Without revalidate libvips answers from its cache when a name is read twice,
        # with what the file held the first time.
        image = pyvips.Image.new_from_file(str(path), fail_on="error", revalidate=True)
        if image.get("vips-loader") not in _LOADERS:
            raise ImageError(f"{path} is no PNG, JPEG or WebP picture.")
        if image.get_n_pages() > 1 or _is_animated_png(path):
            raise ImageError(f"{path} is animated, which is not supported.")
        turned = image.get_typeof("orientation") and image.get("orientation") != 1
        image = image.autorot()
        if image.interpretation == "cmyk":
            image = image.icc_transform("srgb")
            image.remove("icc-profile-data")  # described the CMYK values
        metadata = {
            name: image.get(name)
            for name in _CARRIED
            # XMP repeats the orientation, in a form libvips does not correct.
            if image.get_typeof(name) and not (name == "xmp-data" and turned)
        }
        pixels = image.numpy()
    except (pyvips.Error, UnicodeEncodeError) as error:  # or a name vips cannot take
        raise ImageError(f"{path} is no whole PNG, JPEG or WebP picture.") from error
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    known = (image.xres, image.yres) != (1, 1)  # what libvips says of those without
    return Picture(pixels, metadata, (image.xres, image.yres) if known else None)


def _is_animated_png(path: Path) -> bool:
    content = path.read_bytes()
    # libvips shows the first frame of one; its control chunk comes before the pixels.
    return content[:4] == b"\x89PNG" and b"acTL" in content[: content.find(b"IDAT")]


def check_writable_as(path: Path, picture: Picture) -> None:
    """Say before any work is done when a picture cannot be stored under that name.

    Raises:
        ImageError: for an unknown suffix, or alpha in a JPEG.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(f"Cannot write {path}: name it {', '.join(SUFFIXES)}.")
    if picture.has_alpha and suffix in (".jpg", ".jpeg"):
        raise ImageError(
            f"Cannot write {path}: JPEG has no transparency; name it .png or .webp."
        )


def bit_depth(path: Path, picture: Picture) -> int:
    """Bits per value that this picture gets under that name: 16 only in a PNG."""
    deep = picture.pixels.dtype == np.uint16 and path.suffix.lower() == ".png"
    return 16 if deep else 8


def write_picture(picture: Picture, path: str | Path) -> None:
    """Write a picture in the format its suffix names; atomically.

    Raises:
        ImageError: when that format cannot hold it (see `check_writable_as`).
        AetherError: when the file cannot be written.
    """
    path = Path(path)
    check_writable_as(path, picture)
    gray = picture.pixels.shape[2] < 3
    deep = picture.pixels.dtype == np.uint16
    interpretation = {
        (True, False): "b-w",
        (True, True): "grey16",
        (False, False): "srgb",
        (False, True): "rgb16",
    }[gray, deep]
    xres, yres = picture.resolution or _COMMON_RESOLUTION
    image = pyvips.Image.new_from_array(picture.pixels).copy(
        interpretation=interpretation, xres=xres, yres=yres
    )
    for name, value in picture.metadata.items():
        image.set_type(pyvips.GValue.blob_type, name, value)
    keep = _KEEP_ALL_BUT_EXIF
    if "exif-data" in picture.metadata:
        keep |= _KEEP_EXIF
        # The pixels are upright; the block still says how the camera was held.
        image.set_type(pyvips.GValue.gint_type, "orientation", 1)
    suffix = path.suffix.lower()
    with replacing(path) as temporary:
        try:
            options = {**_SAVE_OPTIONS[suffix], "keep": keep}
            temporary.write_bytes(image.write_to_buffer(suffix, **options))
        except pyvips.Error as error:  # e.g. a WebP side over 16383 pixels
            raise ImageError(f"Cannot write {path}: {_reason(error)}.") from error


def _reason(error: pyvips.Error) -> str:
    return " ".join(str(error.detail).split()).rstrip(".")
