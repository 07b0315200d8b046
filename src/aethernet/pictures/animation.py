"""Reading animations (GIF, WebP, APNG, AVIF) frame by frame."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pyvips

from aethernet.errors import AetherError, AnimatedError, ImageError
from aethernet.files import check_source
from aethernet.pictures import ifd, isobmff, png
from aethernet.pictures.files import (
    Header,
    PictureReader,
    image_errors,
    plain,
)
from aethernet.pictures.limits import row_blocks
from aethernet.pictures.opening import NOT_A_PICTURE, Opened, check_limit
from aethernet.pictures.others import count_gif_frames
from aethernet.pictures.timing import Timing

_DAMAGED = "The file is damaged, or ends early."

# Pixels of a frame, which is held in memory as a whole.
_LARGEST_FRAME = 16 * 10**6

# All frames together may have so many times the megapixels of the limit for pictures.
_FRAMES_WITHIN = 20


def is_animated(path: Path) -> bool:
    """Whether a file is an animation that `AnimationReader` reads."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
        kinds = (
            head.startswith((b"GIF8", png.SIGNATURE)),
            head[8:] in (b"WEBP", b"avis"),
        )
        if not any(kinds):
            return False
        PictureReader(path)
    except AnimatedError:
        return True
    except (AetherError, OSError):
        return False
    return False


class AnimationReader:
    """An animation opened for reading.

    The orientation, of EXIF or AVIF's boxes, is applied to every frame.

    Attributes:
        path: of the file.
        header: of each frame.
        kind: "gif", "png", "webp" or "heif", which is AVIF.
        timing: how long frames are shown, and how often all are.
    """

    def __init__(self, path: str | Path, limit_mp: float | None = None) -> None:
        """Open an animated GIF, WebP, PNG or AVIF.

        Args:
            path: of the file. The content tells the format, not the name.
            limit_mp: refuse twenty times as many megapixels in all frames. A frame
                may have 16 at most.

        Raises:
            ImageError: when the file is no animation of these formats, or too large.
            AetherError: when there is no such file, or it cannot be read.
        """
        self.path = Path(path)
        check_source(self.path, "a picture")
        with image_errors(self.path, NOT_A_PICTURE):
            opened = Opened(self.path, limit_mp, animated=True)
            first = plain(self.path, opened.image)
            self.kind, self._turn = opened.kind, opened.turn
            size = first.width, first.height
            bands, bits, lost = first.bands, 8, []
            if self.kind == "png":
                self.timing, self._skips, bits = png.animation_of(self.path)
                bands = 4
                if self._skips:
                    lost.append("the picture for programs that show no animation")
            elif self.kind == "heif":
                self.timing, bits = isobmff.timing(self.path), opened.bits
                bands = 4 if first.hasalpha() else 3
                size, self._turn = _turned_size(self.path)
            else:
                self.timing = _timing_of(opened.image)
                frames = len(self.timing.seconds)
                if self.kind == "gif" and count_gif_frames(self.path) != frames:
                    raise ImageError(_DAMAGED, self.path)
        if bits > 8:
            lost.append(f"{bits - 8} of {bits} bits per value")
        metadata = opened.metadata
        metadata = replace(metadata, others=(*metadata.others, *lost))
        self.header = Header(*size, bands, metadata=metadata)
        if math.prod(self.header.size) > _LARGEST_FRAME:
            raise ImageError(
                f"The frames have {size[0]}x{size[1]} pixels; those of an "
                f"animation may have {_LARGEST_FRAME // 10**6} megapixels.",
                self.path,
            )
        if limit_mp is not None:
            rows = self.header.height * len(self.timing.seconds)
            check_limit(self.path, (self.header.width, rows), limit_mp * _FRAMES_WITHIN)

    def frames(self) -> Iterator[np.ndarray]:
        """The frames as a viewer shows them, `(H, W, bands)`, uint8.

        Raises:
            ImageError: when the file ends early, or is damaged there.
        """
        with image_errors(self.path, _DAMAGED):
            if self.kind == "png":
                stored = self._of_pillow("PNG", "RGBA", self._skips)
            elif self.kind == "heif":
                stored = self._of_pillow("AVIF", "RGBA"[: self.header.bands], 0)
            else:
                stored = self._of_libvips()
            for frame in stored:
                yield _upright(frame, self._turn)

    def is_opaque(self) -> bool:
        """Whether no frame is transparent anywhere; this may decode all of them."""
        if not self.header.has_alpha:
            return True
        return all((frame[..., -1] == 255).all() for frame in self.frames())

    def _of_pillow(self, kind: str, mode: str, skipped: int) -> Iterator[np.ndarray]:
        with _opened_by_pillow(self.path, kind) as image:
            if getattr(image, "n_frames", 1) != len(self.timing.seconds) + skipped:
                raise ValueError("There are not as many frames as times.")
            for n in range(len(self.timing.seconds)):
                image.seek(n + skipped)
                yield np.asarray(image.convert(mode))

    def _of_libvips(self) -> Iterator[np.ndarray]:
        width, height = self.header.size if self._turn < 5 else self.header.size[::-1]
        load = getattr(pyvips.Image, f"{self.kind}load")
        image = load(
            str(self.path), n=-1, access="sequential", fail_on="error", revalidate=True
        )
        region = pyvips.Region.new(plain(self.path, image))
        shape = (height, width, image.bands)
        for n in range(len(self.timing.seconds)):
            frame = np.empty(shape, np.uint8)
            for first, count in row_blocks(height):
                fetched = region.fetch(0, n * height + first, width, count)
                block = np.frombuffer(fetched, np.uint8)
                frame[first : first + count] = block.reshape(count, *shape[1:])
            yield frame


@contextlib.contextmanager
def _opened_by_pillow(path: Path, kind: str) -> Iterator[PIL.Image.Image]:
    """The file, without Pillow's own limit of pixels: ours are checked here."""
    PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        with PIL.Image.open(path, formats=[kind]) as image:
            yield image
    except RuntimeError as error:  # of the decoder of AVIF
        raise ValueError("The decoder cannot read it.") from error


def _turned_size(path: Path) -> tuple[tuple[int, int], int]:
    """Width and height of the upright frames of an AVIF, and the orientation.

    The boxes of the frames state it (irot, imir), which Pillow gives as that of EXIF.
    libvips reads only the boxes of the picture that stands for the animation.
    """
    with _opened_by_pillow(path, "AVIF") as image:
        turn = image.getexif().get(ifd.ORIENTATION, 1)
        return (image.size if turn < 5 else image.size[::-1]), turn


def _upright(frame: np.ndarray, turn: int) -> np.ndarray:
    """A stored frame `(H, W, bands)` as it is meant to be seen.

    Args:
        frame: as stored.
        turn: the EXIF orientation, 1 to 8: which sides its first row and its first
            column are (EXIF 2.32, 4.6.4, Orientation).
    """
    if turn > 4:
        frame = frame.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        frame = frame[::-1]
    if turn in (2, 3, 6, 7):
        frame = frame[:, ::-1]
    return np.ascontiguousarray(frame)


def _timing_of(image: pyvips.Image) -> Timing:
    """As libvips gives it, which counts plays, not repetitions, also of GIF."""
    pages = image.get_n_pages()
    delays = image.get("delay") if image.get_typeof("delay") else []
    known = [Fraction(each, 1000) for each in delays[:pages]]
    plays = image.get("loop") if image.get_typeof("loop") else 1
    return Timing((*known, *[Fraction(0)] * (pages - len(known))), plays)
