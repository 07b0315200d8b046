"""HEIC and JPEG XL, for which libvips' binary package has no decoder.

Their libraries come with the extra `formats`: pillow-heif, pillow-jxl-plugin, brotli.
"""

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyvips

from aethernet.errors import (
    ImageError,
    MissingExtraError,
    import_optional,
    install_line,
)
from aethernet.pictures import jpeg, jxl
from aethernet.pictures.colour import StatedColour, code_points_in
from aethernet.pictures.exif import block_of
from aethernet.pictures.metadata import Metadata

EXTRA = "formats"

_COMPRESSED = b"brob"
_LONGEST_BOX = 2**24
"""Bytes that a compressed box may grow to; EXIF and XMP are much shorter."""
_KNOWN_BOXES = {
    *(b"Exif", b"xml ", b"JXL ", b"ftyp", b"jxlc", b"jxlp", b"jxll", b"jxli", b"jbrd"),
    _COMPRESSED,
}
_BOXES = {
    b"Exif": "EXIF",
    b"xml ": "XMP",
    b"jhgm": "the gain map (HDR)",
    b"jumb": "content credentials (JUMBF)",
}


def _plugin(module: str) -> ModuleType:
    try:
        return import_optional(module)
    except MissingExtraError as error:  # the packages have other names
        hint = f"Install AetherNet's extra: {install_line(EXTRA)}."
        raise MissingExtraError(error.reason, hint=hint) from error


def check_jxl() -> None:
    """Check that JPEG XL can be written.

    Raises:
        MissingExtraError: without pillow-jxl-plugin.
    """
    _plugin("pillow_jxl")


@dataclass(frozen=True)
class Decoded:
    """A picture that a plugin has read."""

    pixels: np.ndarray
    """`(H, W, bands)`, uint8 or uint16."""
    bits: int
    """Bits per value that are used, the upper ones."""
    metadata: Metadata


def decode_heic(path: Path) -> Decoded:
    """Read the main picture of a HEIC file, upright.

    Raises:
        MissingExtraError: without pillow-heif.
        ValueError: when it is damaged.
    """
    heif = _plugin("pillow_heif")
    try:
        found = heif.open_heif(path, convert_hdr_to_8bit=False)
        pixels = np.asarray(found)
    except (RuntimeError, EOFError) as error:
        raise ValueError("The decoder cannot read it.") from error
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    info = found.info
    return Decoded(
        np.ascontiguousarray(pixels),
        int(info.get("bit_depth", 8)),
        Metadata(
            profile=info.get("icc_profile") or None,
            exif=block_of(info.get("exif") or b""),
            xmp=info.get("xmp") or None,
        ),
    )


def decode_jxl(path: Path, header: jxl.JxlHeader) -> Decoded:
    """Read a JPEG XL file, upright.

    Args:
        path: of the file.
        header: of the file.

    Raises:
        MissingExtraError: without pillow-jxl-plugin.
        ImageError: when its values are of another type, or in CMYK.
        ValueError: when it is damaged.
    """
    if jxl.BLACK in header.channels:
        raise ImageError(
            "The picture is in CMYK, of which the plugin does not read the black.",
            path,
            "First save it as TIFF.",
        )
    plugin = _plugin("pillow_jxl")
    try:
        decoded = plugin.Decoder(num_threads=-1)(path.read_bytes())
    except RuntimeError as error:
        raise ValueError("The decoder cannot read it.") from error
    is_jpeg, info, data, profile, boxes = decoded
    if is_jpeg:
        return _packed(data)
    mode = info.mode
    dtype = np.uint16 if mode == "I;16" else np.uint8
    if mode.startswith("F"):
        raise ImageError("The picture holds values of the type float.", path)
    pixels = np.frombuffer(data, dtype).reshape(info.height, info.width, -1)
    # The decoder makes a profile of what the file states by code points.
    cicp = code_points_in(bytes(profile or b""))
    found, packed = _unpacked([(bytes(b.box_type), bytes(b.data)) for b in boxes])
    others = [*header.others]
    others += [_name_of(kind) for kind in sorted({*found} - _KNOWN_BOXES)]
    others += [f"{_name_of(kind)} (compressed)" for kind in sorted(packed)]
    if header.bits > 8 and mode != "I;16":
        others.append(
            f"{header.bits - 8} of {header.bits} bits per value, which the plugin "
            "cannot read"
        )
    return Decoded(
        pixels,
        16 if mode == "I;16" else 8,
        Metadata(
            profile=bytes(profile) if profile and not cicp else None,
            colour=StatedColour(cicp=cicp),
            exif=_exif_in(found.get(b"Exif", b"")),
            xmp=found.get(b"xml ") or None,
            others=tuple(others),
        ),
    )


def _unpacked(
    boxes: list[tuple[bytes, bytes]],
) -> tuple[dict[bytes, bytes], set[bytes]]:
    """The content of the first box of each kind, and kinds that stay compressed."""
    found: dict[bytes, bytes] = {}
    left = set()
    for kind, data in boxes:
        if kind != _COMPRESSED:
            found.setdefault(kind, data)
            continue
        inner, packed = data[:4], data[4:]
        content = _without_brotli(packed)
        if content is None:
            left.add(inner)
        else:
            found.setdefault(inner, content)
    return found, left


def _without_brotli(packed: bytes) -> bytes | None:
    """None where it is damaged or too long, or the library is missing."""
    try:
        brotli = import_optional("brotli")
    except MissingExtraError:
        return None
    unpacking = brotli.Decompressor()
    try:
        content = unpacking.process(packed, output_buffer_limit=_LONGEST_BOX)
    except brotli.error:
        return None
    return content if unpacking.is_finished() else None


def _name_of(box: bytes) -> str:
    return _BOXES.get(box, f"the box {box.decode('latin-1')}")


def _packed(content: bytes) -> Decoded:
    """A JPEG file that was packed without loss, with all that it carries itself."""
    image = pyvips.Image.jpegload_buffer(content, fail_on="error")

    def of(name: str) -> Any:
        return image.get(name) if image.get_typeof(name) else None

    turn, upright = of("orientation") or 1, image.autorot()
    known = Metadata(
        profile=of("icc-profile-data"),
        exif=block_of(of("exif-data") or b""),
        resolution=(upright.xres, upright.yres) if of("resolution-unit") else None,
    )
    size = upright.width, upright.height
    try:
        metadata = jpeg.read_from(content, known, turn, size)
    except (struct.error, LookupError, ValueError):
        metadata = replace(known, others=("metadata that is damaged",))
    pixels = upright.numpy().reshape(upright.height, upright.width, -1)
    return Decoded(pixels, 8, metadata)


def _exif_in(box: bytes) -> bytes | None:
    """The block in a box; pillow-jxl-plugin leaves out the offset before it."""
    return block_of(box[4:]) or block_of(box)


def encode_jxl(pixels: np.ndarray, quality: int | None, metadata: Metadata) -> bytes:
    """Write JPEG XL of 8 bits per value.

    Args:
        pixels: `(H, W, bands)`, uint8.
        quality: 1 to 100; None: lossless.
        metadata: of which EXIF and XMP are written.

    Raises:
        MissingExtraError: without pillow-jxl-plugin.
    """
    plugin = _plugin("pillow_jxl")
    height, width, bands = pixels.shape
    encoder = plugin.Encoder(
        mode=("L", "LA", "RGB", "RGBA")[bands - 1],
        lossless=quality is None,
        quality=100 if quality is None else quality,
        decoding_speed=0,
        effort=7,
        use_container=True,
        use_original_profile=False,
        num_threads=-1,
    )
    written = encoder(
        np.ascontiguousarray(pixels).tobytes(),
        width,
        height,
        jpeg_encode=False,
        exif=bytes(4) + metadata.exif if metadata.exif else None,
        jumb=None,
        xmp=metadata.xmp,
        compress=False,
    )
    return bytes(written)
