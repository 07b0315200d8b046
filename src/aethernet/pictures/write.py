"""Writing pictures, whole or row by row."""

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

from aethernet.errors import AetherError, ImageError
from aethernet.files import check_target, replacing, temporary_path
from aethernet.pictures.files import (
    FORMATS,
    Encoding,
    Header,
    Picture,
    check_writable_as,
    in_8_bits,
    reason_of,
    stored_depth,
)


def for_browsers(picture: Picture) -> pyvips.Image:
    """In 8 bits, with its colour profile: write it with `keep="icc"`."""
    image = pyvips.Image.new_from_array(in_8_bits(picture).pixels)
    image = image.copy(interpretation="b-w" if image.bands < 3 else "srgb")
    profile = picture.metadata.get("icc-profile-data")
    if profile:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return image


# 72 dpi, what programs assume of a picture that says nothing; libvips writes 25.4.
_COMMON_RESOLUTION = (72 / 25.4, 72 / 25.4)

# Bits of libvips' ForeignKeep: it would make up an EXIF block where there is none.
_KEEP_EXIF, _KEEP_ALL_BUT_EXIF = 1, 2 | 4 | 8 | 16

# Output up to this size is kept in memory until it is encoded, beyond it in a file.
SPOOL_BYTES = 256 * 2**20


class PictureWriter:
    """A picture file that is written from top to bottom, and appears when it is whole.

    The rows wait in memory, or beyond `SPOOL_BYTES` in a hidden file beside the target,
    until `finish` encodes them.
    """

    def __init__(
        self,
        path: str | Path,
        header: Header,
        encoding: Encoding | None = None,
        final_size: tuple[int, int] | None = None,
        final_depth: int | None = None,
    ) -> None:
        """Check whether it can be written; nothing is written yet.

        Args:
            path: its suffix chooses the format; an existing file is replaced.
            header: of the rows to come.
            final_size: width and height to which the whole is resampled (Lanczos) when
                they are others than the header's.
            final_depth: bits per value, 8 or 16, to which it is rounded at the very
                end; None for `stored_depth`.

        Raises:
            ImageError: as `check_writable_as`.
            AetherError: as `check_target`.
        """
        self.path, self.header = Path(path), header
        self.encoding = encoding or Encoding()
        width, height = final_size or header.size
        check_writable_as(self.path, replace(header, width=width, height=height))
        check_target(self.path)
        kind = FORMATS[self.path.suffix.lower()]
        if self.encoding.lossless and kind.quality and not kind.can_be_lossless:
            raise ImageError(
                f"Cannot write {self.path}: {kind.name} is never lossless."
            )
        self.final_size = final_size or header.size
        self.final_depth = final_depth or stored_depth(self.path, header)
        self._written = 0
        self._pixels: np.ndarray | None = None
        self._spool: io.FileIO | None = None

    def write(self, rows: np.ndarray) -> None:
        """Add rows, `(count, W, bands)` of the header's type.

        Raises:
            AetherError: when the disk is full, or the memory.
        """
        header = self.header
        start, self._written = self._written, self._written + len(rows)
        shape = (header.height, header.width, header.bands)
        with self._failure_is_said():
            if math.prod(shape) * header.dtype.itemsize <= SPOOL_BYTES:
                if self._pixels is None:
                    self._pixels = np.empty(shape, header.dtype)
                self._pixels[start : self._written] = rows
                return
            if self._spool is None:
                # Unbuffered: what cannot be written is known at once.
                self._spool = temporary_path(self.path).open("xb", buffering=0)
            left = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
            while left:
                left = left[self._spool.write(left) :]

    def finish(self) -> None:
        """Encode, write and move into place; once, after the last row.

        Raises:
            ImageError: when the library cannot write it.
            AetherError: when the file cannot be written.
        """
        header = self.header
        assert self._written == header.height
        try:
            with self._failure_is_said():
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
        """Forget the rows; what is not finished is not written."""
        self._pixels = None
        if self._spool is not None:
            spool, self._spool = self._spool, None
            with contextlib.suppress(OSError):
                spool.close()
            Path(spool.name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _failure_is_said(self) -> Iterator[None]:
        try:
            yield
        except pyvips.Error as error:
            raise ImageError(
                f"Cannot write {self.path}: {reason_of(error)}."
            ) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise AetherError(f"Cannot write {self.path}: {reason}.") from error
        except MemoryError as error:
            raise AetherError(f"Out of memory for writing {self.path}.") from error

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
        header, suffix = self.header, self.path.suffix.lower()
        gray, deep = header.bands < 3, image.format == "ushort"
        interpretation = {
            (True, False): "b-w",
            (True, True): "grey16",
            (False, False): "srgb",
            (False, True): "rgb16",
        }[gray, deep]
        xres, yres = header.resolution or _COMMON_RESOLUTION
        image = image.copy(interpretation=interpretation, xres=xres, yres=yres)
        if suffix == ".bmp":
            pixels = PIL.Image.fromarray(image.numpy())
            pixels.save(temporary, "BMP", dpi=(25.4 * xres, 25.4 * yres))
            return
        keep = _KEEP_ALL_BUT_EXIF
        for name, value in header.metadata.items():
            kind = pyvips.GValue.blob_type
            if isinstance(value, str):
                kind = pyvips.GValue.gstr_type
            image.set_type(kind, name, value)
        if "exif-data" in header.metadata:
            keep |= _KEEP_EXIF
            # The pixels are upright; the block still says how the camera was held.
            image.set_type(pyvips.GValue.gint_type, "orientation", 1)
            # So does its thumbnail; an empty one is none.
            image.set_type(pyvips.GValue.blob_type, "jpeg-thumbnail-data", b"")
        options = self._options(image)
        image.write_to_file(str(temporary), keep=keep, **options)

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
            # Chroma has half the resolution in any lossy WebP; this blurs it least.
            lossy = {"Q": quality, "smart_subsample": True}
            return {"lossless": True} if lossless else lossy
        if kind.name == "TIFF":
            size = image.width * image.height * image.bands * self.header.depth // 8
            return {
                "compression": "deflate",
                "predictor": "horizontal",
                "bigtiff": size > 2**31,
            }
        options: dict[str, Any] = {"compression": "av1", "subsample_mode": "off"}
        options["bitdepth"] = 12 if image.format == "ushort" else 8
        return {**options, **({"lossless": True} if lossless else {"Q": quality})}


def _resampled(
    image: pyvips.Image, size: tuple[int, int], header: Header
) -> pyvips.Image:
    """At another size, by Lanczos (3 lobes); colours weigh as much as they are seen."""
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
    picture: Picture, path: str | Path, encoding: Encoding | None = None
) -> None:
    """Write a whole picture in the format its suffix names; atomically.

    Raises:
        ImageError: when that format cannot hold it (see `check_writable_as`).
        AetherError: when the file cannot be written.
    """
    writer = PictureWriter(path, picture.header, encoding)
    writer.write(picture.pixels)
    writer.finish()
