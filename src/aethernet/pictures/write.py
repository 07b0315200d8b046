"""Writing pictures, whole or in strips from top to bottom."""

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyvips

from aethernet.errors import AetherError, ImageError, first_line
from aethernet.files import (
    check_target,
    one_phrase,
    replacing,
    temporary_path,
    unwritable,
)
from aethernet.pictures import isobmff, jpeg, others, png, tiff, webp
from aethernet.pictures.exif import has_thumbnail, upright
from aethernet.pictures.files import (
    FORMATS,
    Format,
    Header,
    Picture,
    PictureEncoding,
    check_writable_as,
    format_of,
    in_8_bits,
    stored_depth,
)
from aethernet.pictures.metadata import (
    GainMap,
    Metadata,
    fitted,
    shown_profile,
    xmp_of_size,
)
from aethernet.pictures.plugins import check_jxl, encode_jxl
from aethernet.pictures.timing import Timing

# libvips writes no metadata: it would change EXIF, and knows too few places for it.
_KEEP_NOTHING = "other"

# The height of the tallest picture of libvips, which the frames of an animation are.
_MOST_ROWS = 10_000_000

SPOOL_BYTES = 256 * 2**20
"""Rows of more bytes than this wait for their encoding in a file, not in memory."""


class PictureWriter:
    """A picture file written in strips from top to bottom.

    The rows wait in memory, or beyond `SPOOL_BYTES` in a hidden file beside the target,
    until `finish` encodes them and moves the complete file into place.

    Attributes:
        path: of the file.
        header: of the rows.
        encoding: quality, or lossless.
        final_size: width and height of the file.
        final_depth: bits per value, 8 or 16, of the file.
        left_out: what the source carries and the file cannot, in words.
    """

    def __init__(
        self,
        path: str | Path,
        header: Header,
        encoding: PictureEncoding | None = None,
        final_size: tuple[int, int] | None = None,
        final_depth: int | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Check that the picture can be written; nothing is written yet.

        Args:
            path: its suffix chooses the format. An existing file is replaced.
            header: of the rows to come; for an animation, of those of a frame.
            encoding: quality, or lossless; None for the format's default.
            final_size: width and height of the file; None for those of the header. If
                they differ, the picture is resampled (Lanczos).
            final_depth: bits per value, 8 or 16, of the file; None for `stored_depth`.
                Values are rounded to it last.
            timing: of an animation, all frames of which are written as rows, one below
                the other, in their final size; None for a still picture.

        Raises:
            ImageError: as `check_writable_as`.
            AetherError: as `check_target`.
            MissingExtraError: when JPEG XL cannot be written.
        """
        self.path, self.header = Path(path), header
        self.encoding = encoding or PictureEncoding()
        width, height = final_size or header.size
        self._timing = timing
        final = replace(header, width=width, height=height)
        check_writable_as(self.path, final, animated=timing is not None)
        check_target(self.path)
        self._kind = kind = format_of(self.path, animated=timing is not None)
        self._rows = header.height * (len(timing.seconds) if timing else 1)
        if self._rows > _MOST_ROWS:
            raise ImageError(
                f"Cannot be written: {self._rows} rows in all frames are too many.",
                self.path,
            )
        if self.encoding.lossless and kind.quality and not kind.can_be_lossless:
            raise ImageError(
                f"Cannot be written: {kind.name} is never lossless.", self.path
            )
        if kind.name == "JPEG XL":
            check_jxl()
        self.final_size = final_size or header.size
        self.final_depth = final_depth or (
            8 if timing else stored_depth(self.path, header)
        )
        self._metadata, self.left_out = _fitted(kind, header, self.final_size)
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
        shape = (self._rows, header.width, header.bands)
        with self._write_errors():
            if math.prod(shape) * header.dtype.itemsize <= SPOOL_BYTES:
                if self._pixels is None:
                    self._pixels = np.empty(shape, header.dtype)
                self._pixels[start : self._written] = rows
                return
            if self._spool is None:
                # Unbuffered, so that a full disk is known at once.
                path = temporary_path(self.path)
                self._spool = io.FileIO(path, "x", opener=_open_privately)
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
        assert self._written == self._rows
        try:
            with self._write_errors():
                image = self._image()
                if self.final_size != header.size:
                    image = resampled(image, self.final_size, header)
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
            detail = one_phrase(str(error.detail))
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
            *(self._spool.name, header.width, self._rows, header.bands),
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
        image = image.copy(interpretation=interpretation)
        if self._timing:
            image = _with_timing(image, header.height, self._timing, self._kind)
        if self.path.suffix.lower() == ".bmp":
            pixels = PIL.Image.fromarray(image.numpy())
            across, down = self._metadata.resolution or (0, 0)
            pixels.save(temporary, "BMP", dpi=(25.4 * across, 25.4 * down))
            return
        if self._metadata.exif and has_thumbnail(self._metadata.exif):
            block = self._metadata.exif
            first = self._image().crop(0, 0, *header.size)  # of the frames, if several
            made = upright(block, self.final_size, _thumbnail(first, header))
            self._metadata = replace(self._metadata, exif=made)
        if self.path.suffix.lower() == ".jxl":
            lossless = self.encoding.lossless
            quality = None if lossless else self._quality
            pixels = image.numpy().reshape(image.height, image.width, -1)
            temporary.write_bytes(encode_jxl(pixels, quality, self._metadata))
            return
        encode = {
            "PNG": self._encode_png,
            "JPEG": self._encode_jpeg,
            "WebP": self._encode_webp,
            "TIFF": self._encode_tiff,
            "AVIF": self._encode_avif,
            "GIF": self._encode_gif,
        }
        encode[self._kind.name](image, temporary)

    @property
    def _quality(self) -> int | None:
        return self.encoding.quality or self._kind.quality

    def _encode_gif(self, image: pyvips.Image, temporary: Path) -> None:
        encoded = image.gifsave_buffer(keep=_KEEP_NOTHING)
        temporary.write_bytes(others.gif_with_metadata(encoded, self._metadata))

    def _encode_png(self, image: pyvips.Image, temporary: Path) -> None:
        chunks = png.chunks_for(self._metadata)
        if self._timing:
            height = self.header.height
            frames = (
                image.crop(0, top, image.width, height).pngsave_buffer(keep="none")
                for top in range(0, image.height, height)
            )
            with temporary.open("wb") as file:
                for part in png.animated(frames, self._timing, chunks):
                    file.write(part)
            return
        # libvips states a resolution in any case; a known one is in our chunks.
        save = image.copy(xres=1, yres=1).pngsave_target
        left_out = png.resolution_chunk((1, 1))
        _stream(save, {}, temporary, png.HEAD, chunks, left_out)

    def _encode_jpeg(self, image: pyvips.Image, temporary: Path) -> None:
        metadata, gain_map, index, place = self._metadata, b"", b"", 0
        if held := metadata.gain_map:
            gain_map = _upscaled(held, self.final_size)
            metadata = jpeg.announcing(metadata, gain_map)
            index, place = jpeg.index_for(held)
        segments, _ = jpeg.segments_for(metadata)
        options = {"Q": self._quality, "subsample_mode": "off"}
        save = image.jpegsave_target
        _stream(save, options, temporary, jpeg.HEAD, segments + index)
        if not gain_map:
            return
        place += jpeg.HEAD + len(segments)
        with temporary.open("r+b") as file:
            primary = file.seek(0, 2)
            file.write(gain_map)
            numbers = jpeg.index_numbers(primary, len(gain_map), place)
            for where, number in numbers.items():
                file.seek(where)
                file.write(number)

    def _encode_webp(self, image: pyvips.Image, temporary: Path) -> None:
        # Lossy WebP always halves the resolution of chroma; this blurs it least.
        lossy = {"Q": self._quality, "smart_subsample": True}
        options = {"lossless": True} if self.encoding.lossless else lossy
        encoded = image.webpsave_buffer(keep=_KEEP_NOTHING, **options)
        size, alpha = self.final_size, self.header.has_alpha
        whole = webp.with_metadata(encoded, size, alpha, self._metadata)
        temporary.write_bytes(whole)

    def _encode_tiff(self, image: pyvips.Image, temporary: Path) -> None:
        size = image.width * image.height * image.bands * self.header.depth // 8
        image.tiffsave(
            str(temporary),
            compression="deflate",
            predictor="horizontal",
            bigtiff=size > 2**31,
            keep=_KEEP_NOTHING,
        )
        tiff.add(temporary, self._metadata)

    def _encode_avif(self, image: pyvips.Image, temporary: Path) -> None:
        lossy = {"Q": self._quality}
        encoded = image.heifsave_buffer(
            compression="av1",
            subsample_mode="off",
            bitdepth=12 if image.format == "ushort" else 8,
            keep=_KEEP_NOTHING,
            **({"lossless": True} if self.encoding.lossless else lossy),
        )
        temporary.write_bytes(isobmff.with_metadata(encoded, self._metadata))


def _with_timing(
    image: pyvips.Image, height: int, timing: Timing, kind: Format
) -> pyvips.Image:
    """The frames of an animation, one below the other, as libvips knows them."""
    step = 10 if kind.name == "GIF" else 1
    image = image.copy()
    image.set_type(pyvips.GValue.gint_type, "page-height", height)
    delays = timing.milliseconds(step)
    image.set_type(pyvips.GValue.array_int_type, "delay", delays)
    image.set_type(pyvips.GValue.gint_type, "loop", timing.plays)
    return image


def _thumbnail(image: pyvips.Image, header: Header) -> bytes:
    """A JPEG file of 160x160 pixels at most."""
    kinds = ("grey16", "rgb16") if header.depth > 8 else ("b-w", "srgb")
    image = image.copy(interpretation=kinds[header.bands > 2])
    small = image.thumbnail_image(160, size="down")
    if small.hasalpha():
        small = small.flatten()
    return small.jpegsave_buffer(Q=80, keep=_KEEP_NOTHING)


def _open_privately(path: str, flags: int) -> int:
    """Open a file that nobody else may read, as the source may be private."""
    return os.open(path, flags, 0o600)


def _fitted(
    kind: Format, header: Header, size: tuple[int, int]
) -> tuple[Metadata, tuple[str, ...]]:
    """What a format can hold of a picture's metadata, and names of what is lost."""
    metadata, lost = fitted(header.metadata, kind.room, header.bands < 3)
    if metadata.xmp:
        metadata = replace(metadata, xmp=xmp_of_size(metadata.xmp, size))
    if metadata.exif and not has_thumbnail(metadata.exif):
        metadata = replace(metadata, exif=upright(metadata.exif, size))
    if kind.name == "JPEG":
        lost += jpeg.segments_for(metadata)[1]
    if header.bits > max(kind.depths):
        lost.append(f"{header.bits - max(kind.depths)} of {header.bits} bits per value")
    return metadata, tuple(lost)


def _stream(
    save: Callable[..., None],
    options: dict[str, Any],
    path: Path,
    head: int,
    inserted: bytes,
    left_out: bytes = b"",
) -> None:
    """Let libvips write a file, with bytes of ours put in after its first `head` ones.

    The next bytes of libvips are left out if they are those in `left_out`.

    Raises:
        OSError: when the file cannot be written.
        pyvips.Error: when the picture cannot be encoded.
    """
    failed: list[OSError] = []
    held: bytes | None = b""
    with path.open("wb") as file:

        def write(data: "memoryview | bytes") -> int:
            nonlocal held
            try:
                if held is None:
                    file.write(data)
                    return len(data)
                held += bytes(data)
                if len(held) >= head + len(left_out):
                    rest = held[head:].removeprefix(left_out)
                    file.write(held[:head] + inserted + rest)
                    held = None
            except OSError as error:  # libvips would only say that it failed
                failed.append(error)
                return -1
            return len(data)

        target = pyvips.TargetCustom()
        target.on_write(write)
        try:
            save(target, keep=_KEEP_NOTHING, **options)
        except pyvips.Error:
            if failed:
                raise failed[0] from None
            raise


def _upscaled(gain_map: GainMap, size: tuple[int, int]) -> bytes:
    """The gain map of a picture of that size, by bicubic, as a JPEG file."""
    image = pyvips.Image.jpegload_buffer(gain_map.jpeg, fail_on="error")
    image = image.copy()
    image.set_type(pyvips.GValue.gint_type, "orientation", gain_map.turn)
    image = image.autorot()
    across, down = (new / old for new, old in zip(size, gain_map.size, strict=True))
    image = image.resize(across, vscale=down, kernel="cubic")
    quality = FORMATS[".jpg"].quality
    pixels = image.jpegsave_buffer(Q=quality, subsample_mode="off", keep=_KEEP_NOTHING)
    return jpeg.gain_map_with(gain_map, pixels)


def resampled(
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
    profile = shown_profile(picture.metadata, image.bands < 3)
    if profile:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return image
