"""Bounds on reading pictures, so that no small file takes minutes or gigabytes."""

from collections.abc import Iterator
from pathlib import Path

from aethernet.errors import ImageError

# libvips takes time that grows with the square of the rows that it is asked for, and
# reads on where a row above is damaged.
_ROWS_AT_ONCE = 256

# A run of the compression RLE takes two bytes, and has 255 pixels at most.
_RLE_PIXELS_PER_BYTE = 128


def row_blocks(count: int) -> Iterator[tuple[int, int]]:
    """Parts in which to read so many rows: (first row, number of rows)."""
    for first in range(0, count, _ROWS_AT_ONCE):
        yield first, min(_ROWS_AT_ONCE, count - first)


def check_runs(path: Path, size: tuple[int, int], compression: int) -> None:
    """Check that a BMP file holds the pixels that it claims.

    Compressed as RLE, it may leave pixels out, so that a few bytes claim any number.

    Args:
        path: of the file.
        size: width and height.
        compression: as in the file's header; 1 and 2 are RLE.

    Raises:
        ImageError: when it holds less.
    """
    pixels, most = size[0] * size[1], _RLE_PIXELS_PER_BYTE * path.stat().st_size
    if compression in (1, 2) and pixels > most:
        raise ImageError(
            f"The file claims {size[0]}x{size[1]} pixels, but holds {most:,} at most.",
            path,
        )
