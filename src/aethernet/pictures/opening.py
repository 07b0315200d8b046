"""Opening a picture file of any format we read, by its content."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyvips

from aethernet.errors import AnimatedError, ImageError
from aethernet.pictures import (
    ifd,
    isobmff,
    jpeg,
    jxl,
    others,
    plugins,
    png,
    tiff,
    webp,
)
from aethernet.pictures.exif import block_of, orientation_of, resolution_of
from aethernet.pictures.limits import check_runs
from aethernet.pictures.metadata import Metadata

NOT_A_PICTURE = (
    "This is no picture that can be read (PNG, JPEG, WebP, TIFF, AVIF, GIF, BMP, HEIC "
    "or JPEG XL)."
)

STARTS = {
    png.SIGNATURE: "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF8": "gif",
    b"BM": "bmp",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "tiff"),
}
"""libvips' names of the formats we know, by the first bytes of a file."""
_HEIF_BRANDS = (
    *(b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1"),
    *(b"mif2", b"msf1", b"miaf"),
)
_ANIMATED = ("png", "webp", "gif")
# Of formats whose animations are not read.
_ANIMATION = "The picture is animated."
_MAKE_A_VIDEO = "First make a video of it, for example with ffmpeg."

# Formats that libvips can load but that have no pixels of their own to upscale.
_REFUSED = {"svg": "an SVG drawing", "pdf": "a PDF document"}
_DNG_VERSION, _SUBFILE_TYPE, _SUB_DIRECTORIES = 50706, 254, 330


# Errors of the readers of metadata, and of Pillow, about bytes that make no sense.
_DAMAGES = (
    *(struct.error, ValueError, LookupError, StopIteration, OSError, SyntaxError),
)

# Pixels per millimetre; libvips takes no more.
_FINEST_RESOLUTION = 100_000

# Formats that have a resolution in EXIF only, where libvips overlooks it.
_RESOLUTION_IN_EXIF = ("webp", "heif")


class Opened:
    """A picture file whose header has been read.

    Attributes:
        image: upright.
        turn: the EXIF orientation, which has been applied to the image.
        metadata: what the file carries beside the pixels.
        bits: per value, as stored.
        kind: libvips' name of the format.
    """

    def __init__(
        self, path: Path, limit_mp: float | None, animated: bool = False
    ) -> None:
        """Open the file.

        Args:
            path: of the file.
            limit_mp: refuse a picture of more megapixels.
            animated: open the first frame of an animation (GIF, WebP, PNG).

        Raises:
            ImageError: as `PictureReader`.
            pyvips.Error, OSError, SyntaxError, ValueError: of the libraries.
        """
        self._path, self._limit_mp = path, limit_mp
        self.turn, premultiplied = 1, False
        self.kind, self._animated = _kind_of(path), animated
        if self.kind == "jxl":
            decoded, premultiplied = _opened_jxl(path, limit_mp)
            self._take(decoded)
        elif self.kind == "bmp":
            self.image = _opened_bmp(path, limit_mp)
            self.bits, self.metadata = 8, others.read_bmp(path)
        else:
            self._open()
            premultiplied = self.kind == "heif" and isobmff.is_premultiplied(path)
        if premultiplied and self.image.bands in (2, 4):
            self.image = _divided_by_alpha(self.image, self.bits)
        self.metadata = _with_resolution(self.metadata, self.turn)

    def _take(self, decoded: plugins.Decoded) -> None:
        """Use what a plugin has decoded."""
        pixels = decoded.pixels
        kinds = ("grey16", "rgb16") if pixels.dtype == np.uint16 else ("b-w", "srgb")
        self.image = pyvips.Image.new_from_array(
            pixels, interpretation=kinds[pixels.shape[2] > 2]
        )
        self.bits, self.metadata = decoded.bits, decoded.metadata

    def _open(self) -> None:
        path, limit_mp = self._path, self._limit_mp
        image = self._loaded("sequential")
        if not self._animated:
            _check_kind(path, self.kind, image)
        check_limit(path, (image.width, image.height), limit_mp)
        if _text(image, "heif-compression") == "hevc":
            self._take(plugins.decode_heic(path))
            self.metadata = isobmff.read(path, self.metadata, image.get_n_pages())
            return
        if image.get_typeof("orientation"):
            self.turn = image.get("orientation")
        self.metadata = _metadata(path, self.kind, image, self.turn)
        if self.kind == "png" and self.metadata.exif and not _text(image, "exif-data"):
            # It lies behind the pixels, or in a text, where libvips does not look.
            self.turn = orientation_of(self.metadata.exif)
        if self.turn not in (1, 2):  # its first rows are not the first in the file
            image = self._loaded("random")
        self.bits = int(_text(image, "bits-per-sample") or 8)
        if self.turn > 1:
            image = image.copy()
            image.set_type(pyvips.GValue.gint_type, "orientation", self.turn)
            image = image.autorot()
        self.image = image

    def _loaded(self, access: str) -> pyvips.Image:
        """Open the file with libvips.

        A loader takes a name as it is; `new_from_file` would take what stands in
        brackets at its end for options. Without revalidate, libvips answers from its
        cache when a file is read twice, with the old content.
        """
        options = {"access": access, "fail_on": "error"}
        path = self._path
        if not self.kind:
            return self._found(options)
        try:
            load = getattr(pyvips.Image, f"{self.kind}load")
            image = load(str(path), revalidate=True, **options)
            if self.kind == "heif" and (main := image.get("heif-primary")):
                image = load(str(path), revalidate=True, page=main, **options)
            return image
        except pyvips.Error as error:
            if "bad labq format" not in str(error):
                raise
            raise ImageError(
                "The picture is in Lab with 8 bits per value, which libvips cannot "
                "read.",
                path,
                "First save it as RGB, or with 16 bits.",
            ) from error

    def _found(self, options: dict[str, Any]) -> pyvips.Image:
        """Open a file of a format that we do not know, if libvips does."""
        source = pyvips.Source.new_from_file(str(self._path))
        try:
            image = pyvips.Image.new_from_source(source, "", **options)
        except pyvips.Error as error:
            name = _name_of(self._path)
            if name is None:
                raise
            raise ImageError(
                f"This is a picture of the format {name}, which is not read.",
                self._path,
                "First save it as PNG or TIFF.",
            ) from error
        self.kind = _text(image, "vips-loader").partition("load")[0]
        if self.kind in _REFUSED:
            raise ImageError(
                f"This is {_REFUSED[self.kind]}, which has no pixels.",
                self._path,
                "First draw it as a PNG of the size you need.",
            )
        return image


def _kind_of(path: Path) -> str:
    """libvips' name of the format, by the first bytes; "" if they are unknown."""
    with path.open("rb") as file:
        head = file.read(16)
    if jxl.is_jxl(head):
        return "jxl"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "heif"
    return next((kind for start, kind in STARTS.items() if head.startswith(start)), "")


def _name_of(path: Path) -> str | None:
    """The name of a format that Pillow knows, or of a camera's raw file."""
    with path.open("rb") as file:
        if file.read(12)[4:12] == b"ftypcrx ":
            return "Canon raw (CR3)"
    try:
        with PIL.Image.open(path) as image:
            return image.format_description or image.format
    except Exception:  # it only finds a name; libvips' error is raised instead
        return None


def _text(image: pyvips.Image, name: str) -> str:
    return str(image.get(name)) if image.get_typeof(name) else ""


def _blob(image: pyvips.Image, name: str) -> bytes | None:
    return bytes(image.get(name)) or None if image.get_typeof(name) else None


def _metadata(path: Path, kind: str, image: pyvips.Image, turn: int) -> Metadata:
    """What a file carries; libvips has read profile, EXIF and XMP."""
    stored = _blob(image, "exif-data")
    known = Metadata(
        profile=_blob(image, "icc-profile-data"),
        exif=block_of(stored or b""),
        xmp=_blob(image, "xmp-data"),
    )
    # libvips makes one up where there is none, and has no unit then.
    if kind not in _RESOLUTION_IN_EXIF and image.get_typeof("resolution-unit"):
        known = replace(known, resolution=(image.xres, image.yres))
    try:
        if kind == "heif":
            found = isobmff.read(path, known, image.get_n_pages())
        else:
            size = image.width, image.height
            found = _more_metadata(path, kind, known, turn, size)
    except _DAMAGES:
        return replace(known, others=("metadata that is damaged",))
    if stored and not found.exif:
        return replace(found, others=(*found.others, "EXIF, which is damaged"))
    return found


def _with_resolution(metadata: Metadata, turn: int) -> Metadata:
    """The metadata with EXIF's resolution where the file has none outside of it.

    Args:
        metadata: as the file has it.
        turn: the EXIF orientation; from 5 on, it lets across and down change places.
    """
    resolution, unitless = metadata.resolution, metadata.unitless
    if unitless and unitless[0] == unitless[1]:
        unitless = None
    if resolution is None and metadata.exif:
        resolution = resolution_of(metadata.exif)
    if resolution and not all(0 < side < _FINEST_RESOLUTION for side in resolution):
        resolution = None
    if turn > 4:
        resolution = resolution and resolution[::-1]
        unitless = unitless and unitless[::-1]
    return replace(metadata, resolution=resolution, unitless=unitless)


def _more_metadata(
    path: Path, kind: str, known: Metadata, turn: int, size: tuple[int, int]
) -> Metadata:
    """What libvips does not read, with what it has read.

    Args:
        path: of the file.
        kind: of the format.
        known: profile, EXIF and XMP.
        turn: the EXIF orientation.
        size: width and height before it is applied.
    """
    if kind == "png":
        return png.read(path, known)
    if kind == "jpeg":
        return jpeg.read(path, known, turn, size[::-1] if turn > 4 else size)
    if kind == "tiff":
        return tiff.read(path, known)
    if kind == "webp":
        return webp.read(path, known)
    if kind == "gif":
        return others.read_gif(path)
    return known


def _divided_by_alpha(image: pyvips.Image, bits: int) -> pyvips.Image:
    """The image with its colours as they are without alpha.

    Args:
        image: its colours are multiplied by alpha.
        bits: per value that are used, the upper ones.
    """
    peak = (2**bits - 1) << (16 - bits) if image.format == "ushort" else 255
    divided = image.unpremultiply(max_alpha=peak)
    divided = (divided > peak).ifthenelse(peak, divided).rint().cast(image.format)
    return divided.copy(interpretation=image.interpretation)


def _opened_jxl(path: Path, limit_mp: float | None) -> tuple[plugins.Decoded, bool]:
    """The picture, and whether its colours are multiplied by alpha."""
    header = jxl.read_header(path)
    check_limit(path, (header.width, header.height), limit_mp)
    if header.animated:
        raise ImageError(_ANIMATION, path, _MAKE_A_VIDEO)
    return plugins.decode_jxl(path, header), header.premultiplied


def _opened_bmp(path: Path, limit_mp: float | None) -> pyvips.Image:
    PIL.Image.MAX_IMAGE_PIXELS = None  # we have our own limit
    with PIL.Image.open(path, formats=["BMP"]) as image:
        check_limit(path, image.size, limit_mp)  # before it is decoded
        check_runs(path, image.size, image.info.get("compression", 0))
        kinds = {"1": "L", "L": "L", "RGBA": "RGBA"}
        plain = image.convert(kinds.get(image.mode, "RGB"))
        pixels = np.asarray(plain)
    return pyvips.Image.new_from_array(pixels)


def _check_kind(path: Path, kind: str, image: pyvips.Image) -> None:
    """Refuse what has more than one picture, or none of full size."""
    pages = image.get_n_pages()
    is_avif = _text(image, "heif-compression") == "av1"
    animated = kind in _ANIMATED and (pages > 1 or _is_animated_png(path))
    if animated or (is_avif and isobmff.is_sequence(path)):
        raise AnimatedError(
            f"The picture is animated{f' ({pages} frames)' if pages > 1 else ''}.",
            path,
            "Name an output .webp, .png or .gif, or that of a video, such as .mp4.",
        )
    if kind == "heif":
        if isobmff.is_sequence(path):
            raise ImageError(_ANIMATION, path, _MAKE_A_VIDEO)
        return  # pages are single pictures; one is the main one
    if kind == "tiff" and _is_raw(path):
        raise ImageError(
            "This is a camera's raw file, whose first picture is a small preview.",
            path,
            "First develop it, and save it as TIFF.",
        )
    if pages > 1 and not _is_pyramid(path, image):
        raise ImageError(
            f"The file has {pages} pages.", path, "First save each page as a picture."
        )


def _is_raw(path: Path) -> bool:
    """Whether a TIFF structure is a camera's raw file: DNG, CR2, NEF, ARW .."""
    with path.open("rb") as file:
        if file.read(10)[8:] == b"CR":
            return True
        try:
            found = ifd.Structure(file)
            tags = found.directory(found.first).tags
        except (ValueError, struct.error):
            return False
        kind = tags.get(_SUBFILE_TYPE)
        small = kind is not None and kind.numbers(found.order)[0] & 1
        return _DNG_VERSION in tags or (bool(small) and _SUB_DIRECTORIES in tags)


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


def check_limit(path: Path, size: tuple[int, int], limit_mp: float | None) -> None:
    """Refuse a picture of more megapixels than the limit.

    Raises:
        ImageError: when it is larger.
    """
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
    head = start[: start.find(b"IDAT")]
    place = head.find(b"acTL") + 4
    if start[:4] != b"\x89PNG" or place < 4:
        return False
    one = head[place : place + 4] == b"\0\0\0\1"
    return not (one and b"fcTL" in head)  # that one is the picture itself
