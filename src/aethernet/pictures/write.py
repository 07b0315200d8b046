"""Writing pictures, whole or in strips from top to bottom."""

import contextlib
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyvips

from aethernet.errors import AetherError, ImageError, first_line
from aethernet.files import check_target, replacing, temporary_path, unwritable
from aethernet.pictures.files import (
    FORMATS,
    Header,
    Picture,
    PictureEncoding,
    check_writable_as,
    in_8_bits,
    stored_depth,
)

# 72 dpi, in pixels per millimetre: what programs assume for a picture without a
# resolution. libvips would write 25.4 dpi.
_COMMON_RESOLUTION = (72 / 25.4, 72 / 25.4)

# Bits of libvips' ForeignKeep. Told to keep EXIF, libvips makes up a block where there
# is none.
_KEEP_EXIF, _KEEP_ALL_BUT_EXIF = 1, 2 | 4 | 8 | 16

SPOOL_BYTES = 256 * 2**20
"""Rows of more bytes than this wait for their encoding in a file, not in memory."""


class PictureWriter:
    """A picture file written in strips from top to bottom.

    The rows wait in memory, or beyond `SPOOL_BYTES` in a hidden file beside the target,
    until `finish` encodes them and moves the complete file into place.
    """

    def __init__(
        self,
        path: str | Path,
        header: Header,
        encoding: PictureEncoding | None = None,
        final_size: tuple[int, int] | None = None,
        final_depth: int | None = None,
    ) -> None:
        """Check that the picture can be written; nothing is written yet.

        Args:
            path: its suffix chooses the format. An existing file is replaced.
            header: of the rows to come.
            encoding: quality, or lossless; None for the format's default.
            final_size: width and height of the file; None for those of the header. If
                they differ, the picture is resampled (Lanczos).
            final_depth: bits per value, 8 or 16, of the file; None for `stored_depth`.
                Values are rounded to it last.

        Raises:
            ImageError: as `check_writable_as`.
            AetherError: as `check_target`.
        """
        self.path, self.header = Path(path), header
        self.encoding = encoding or PictureEncoding()
        width, height = final_size or header.size
        check_writable_as(self.path, replace(header, width=width, height=height))
        check_target(self.path)
        kind = FORMATS[self.path.suffix.lower()]
        if self.encoding.lossless and kind.quality and not kind.can_be_lossless:
            raise ImageError(
                f"Cannot be written: {kind.name} is never lossless.", self.path
            )
        self.final_size = final_size or header.size
        self.final_depth = final_depth or stored_depth(self.path, header)
        self._written = 0
        self._pixels: np.ndarray | None = None
        self._spool: io.FileIO | None = None

    def write(self, rows: np.ndarray) -> None:
        """Add rows, `(count, W, bands)` of the header's type.

        Raises:
            AetherError: when the disk or the memory is full.
        """
        header = self.header
        start, self._written = self._written, self._written + len(rows)
        shape = (header.height, header.width, header.bands)
        with self._write_errors():
            if math.prod(shape) * header.dtype.itemsize <= SPOOL_BYTES:
                if self._pixels is None:
                    self._pixels = np.empty(shape, header.dtype)
                self._pixels[start : self._written] = rows
                return
            if self._spool is None:
                # Unbuffered, so that a full disk is known at once.
                self._spool = temporary_path(self.path).open("xb", buffering=0)
            left = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
            while left:
                left = left[self._spool.write(left) :]

    def finish(self) -> None:
        """Encode the picture and move it into place. Call once, after the last row.

        Raises:
            ImageError: when the library cannot encode it.
            AetherError: when the file cannot be written.
        """
        header = self.header
        assert self._written == header.height
        try:
            with self._write_errors():
                image = self._image()
                if self.final_size != header.size:
                    image = _resampled(image, self.final_size, header)
                if self.final_depth < header.depth:
                    image = (image / 257).rint().cast("uchar")
                with replacing(self.path) as temporary:
                    self._encode(image, temporary)
        finally:
            self.discard()

    def discard(self) -> None:
        """Drop the rows; without `finish` no picture is written."""
        self._pixels = None
        if self._spool is not None:
            spool, self._spool = self._spool, None
            with contextlib.suppress(OSError):
                spool.close()
            Path(spool.name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except pyvips.Error as error:
            detail = " ".join(str(error.detail).split()).rstrip(".")
            raise ImageError(f"Cannot be written: {detail}.", self.path) from error
        except OSError as error:
            raise unwritable(error, self.path) from error
        except ValueError as error:
            reason = f"Cannot be written: {first_line(error).rstrip('.')}."
            raise AetherError(reason, self.path) from error
        except MemoryError as error:
            raise AetherError(
                "There is not enough memory to write it.", self.path
            ) from error

    def _image(self) -> pyvips.Image:
        header = self.header
        if self._spool is None:
            return pyvips.Image.new_from_array(self._pixels)
        return pyvips.Image.rawload(
            *(self._spool.name, header.width, header.height, header.bands),
            format="ushort" if header.depth > 8 else "uchar",
            access="sequential",
        )

    def _encode(self, image: pyvips.Image, temporary: Path) -> None:
        header = self.header
        gray, deep = header.bands < 3, image.format == "ushort"
        interpretation = {
            (True, False): "b-w",
            (True, True): "grey16",
            (False, False): "srgb",
            (False, True): "rgb16",
        }[gray, deep]
        xres, yres = header.resolution or _COMMON_RESOLUTION
        image = image.copy(interpretation=interpretation, xres=xres, yres=yres)
        if self.path.suffix.lower() == ".bmp":
            pixels = PIL.Image.fromarray(image.numpy())
            pixels.save(temporary, "BMP", dpi=(25.4 * xres, 25.4 * yres))
            return
        _set_metadata(image, header)
        has_exif = "exif-data" in header.metadata
        keep = _KEEP_ALL_BUT_EXIF | (_KEEP_EXIF if has_exif else 0)
        image.write_to_file(str(temporary), keep=keep, **self._options(image))

    def _options(self, image: pyvips.Image) -> dict[str, Any]:
        suffix = self.path.suffix.lower()
        kind = FORMATS[suffix]
        quality = self.encoding.quality or kind.quality
        lossless = self.encoding.lossless and kind.can_be_lossless
        if kind.name == "PNG":
            return {}
        if kind.name == "JPEG":
            return {"Q": quality, "subsample_mode": "off"}
        if kind.name == "WebP":
            # Lossy WebP always halves the resolution of chroma; this blurs it least.
            lossy = {"Q": quality, "smart_subsample": True}
            return {"lossless": True} if lossless else lossy
        if kind.name == "TIFF":
            size = image.width * image.height * image.bands * self.header.depth // 8
            return {
                "compression": "deflate",
                "predictor": "horizontal",
                "bigtiff": size > 2**31,
            }
        options = {
            "compression": "av1",
            "subsample_mode": "off",
            "bitdepth": 12 if image.format == "ushort" else 8,
        }
        return {**options, **({"lossless": True} if lossless else {"Q": quality})}


def _set_metadata(image: pyvips.Image, header: Header) -> None:
    types = pyvips.GValue
    for name, value in header.metadata.items():
        kind = types.gstr_type if isinstance(value, str) else types.blob_type
        image.set_type(kind, name, value)
    if "exif-data" in header.metadata:
        # The pixels are upright; the block still says how the camera was held.
        image.set_type(types.gint_type, "orientation", 1)
        # So does its thumbnail. An empty thumbnail is not written.
        image.set_type(types.blob_type, "jpeg-thumbnail-data", b"")


def _resampled(
    image: pyvips.Image, size: tuple[int, int], header: Header
) -> pyvips.Image:
    """The image at another size, by Lanczos (3 lobes), colours weighted by alpha."""
    peak = np.iinfo(header.dtype).max
    across, down = size[0] / header.width, size[1] / header.height
    if header.has_alpha:
        image = image.premultiply(max_alpha=peak)
    image = image.resize(across, vscale=down, kernel="lanczos3")
    if header.has_alpha:
        image = image.unpremultiply(max_alpha=peak)
    if image.format in ("uchar", "ushort"):
        return image
    return image.rint().cast("ushort" if header.depth > 8 else "uchar")


def write_picture(
    picture: Picture, path: str | Path, encoding: PictureEncoding | None = None
) -> None:
    """Write a whole picture; the suffix of the path chooses the format.

    The file is written under a temporary name and renamed when complete.

    Raises:
        ImageError: when that format cannot hold it (see `check_writable_as`).
        AetherError: when the file cannot be written.
    """
    writer = PictureWriter(path, picture.header, encoding)
    writer.write(picture.pixels)
    writer.finish()


def for_browsers(picture: Picture) -> pyvips.Image:
    """The picture in 8 bits, with its colour profile; save it with `keep="icc"`."""
    image = pyvips.Image.new_from_array(in_8_bits(picture).pixels)
    image = image.copy(interpretation="b-w" if image.bands < 3 else "srgb")
    profile = picture.metadata.get("icc-profile-data")
    if profile:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return image
