"""Upscale the pictures of a task, and make what the page shows of them."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyvips

from aethernet.errors import AetherError, ImageError
from aethernet.pictures.files import Header, Picture, PictureReader, read_picture
from aethernet.pictures.write import for_browsers
from aethernet.quality.compare import Region, read_region
from aethernet.runtimes.base import Model
from aethernet.runtimes.tiling import Tiled
from aethernet.ui.orders import PictureOrder, Upload
from aethernet.ui.storage import Storage
from aethernet.ui.tasks import CancelledError, Made, Task, Watched, in_small_tiles
from aethernet.upscaling.files import Options, passes, upscale_files
from aethernet.upscaling.folders import Job, Outcome, Source, name_targets

MOST_MEGAPIXELS = 500
"""Largest result."""

# Of a larger result the page compares its middle, so that every pixel is a true one.
_COMPARED_PIXELS, _COMPARED_SIDE = 16_000_000, 8192

_THUMBNAIL_SIDE = 480

# Uploads of so many pixels are read at once to see whether they are damaged.
_READ_PIXELS, _READ_ROWS = 50_000_000, 256

OpenModel = Callable[[str, str], Model]
"""Opens the model of that name on that device."""


def picture_header(path: Path, name: str) -> Header:
    """What the file of a picture that was uploaded says of it.

    Raises:
        AetherError: when it is no picture that can be read; it names the picture.
    """
    try:
        return PictureReader(path, Options().limit_mp).header
    except AetherError as error:
        raise error.about(name) from error


def check_picture(path: Path, name: str) -> tuple[int, int]:
    """Read a picture that was uploaded, all of it unless it is very large.

    Returns:
        Width and height.

    Raises:
        AetherError: when it cannot be read, or is damaged; it names the picture.
    """
    header = picture_header(path, name)
    width, height = header.size
    if width * height <= _READ_PIXELS:
        reader = PictureReader(path)
        try:
            while len(reader.rows(_READ_ROWS)):
                continue
        except AetherError as error:
            raise error.about(name) from error
    return header.size


def upscale_pictures(
    task: Task, order: PictureOrder, open_model: OpenModel, storage: Storage
) -> None:
    """Upscale the pictures of an order into the folder of its task.

    Pictures that fail are noted in the task; the others go on.

    Raises:
        AetherError: when the model cannot be opened, or there is no room.
        CancelledError: when the task was asked to stop; what is finished is kept.
    """
    task.phase = "Opening the model"
    model = open_model(order.model, order.device)
    watched = Watched(model, task)
    task.how = f"{order.model}, {replace(model.describe(), why='')}"
    run = _Run(task, order, watched, in_small_tiles(watched))
    if not run.uploads:
        return
    for target in run.uploads:
        target.parent.mkdir(parents=True, exist_ok=True)
    jobs = [Job(upload.path, target) for target, upload in run.uploads.items()]
    options = Options(order.size, encoding=order.encoding)
    task.estimate.advance(0)
    try:
        outcomes = upscale_files(jobs, run.model, options, run.advanced)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                run.finished(outcome)
                storage.make_room()
    except CancelledError:
        run.find_finished()
        raise


class _Run:
    """The pictures of a task that are upscaled, and how far they are.

    Work is counted in pixels that the model sees. After each strip it is known exactly;
    between two strips it is estimated by the tiles that have run.
    """

    def __init__(
        self, task: Task, order: PictureOrder, watched: Watched, model: Tiled
    ) -> None:
        self.task, self.order, self.watched, self.model = task, order, watched, model
        self.headers: dict[Upload, Header] = {}
        self.uploads: dict[Path, Upload] = {}
        """By target, in the order of the user."""
        self.work: dict[Path, float] = {}
        """By target, in pixels that the model sees."""
        uploads = [upload for upload in order.uploads if self._fits(upload)]
        for target, upload in zip(self._targets(uploads), uploads, strict=True):
            self.uploads[target] = upload
            self.work[target] = self._work_of(self.headers[upload])
        self.total = max(sum(self.work.values()), 1.0)
        self.before = 0.0  # work of pictures that are finished or failed
        self.current: Path | None = None
        self.seen = 0  # pixels that the model had seen when the picture began
        self.known = 0.0  # share of it that is done for sure
        watched.ran = self._ran

    def _fits(self, upload: Upload) -> bool:
        """Whether a picture can be read and becomes no larger than it may."""
        name = str(upload.name)
        try:
            header = picture_header(upload.path, name)
            check_result(name, header.size, self._size_after(header))
        except AetherError as error:
            self.task.failed.append((name, error.reason))
            return False
        self.headers[upload] = header
        return True

    def _size_after(self, header: Header) -> tuple[int, int]:
        return self.order.size.of(*header.size, self.model.scale)

    def _work_of(self, header: Header) -> float:
        scale, gray = self.model.scale, self.model.channels == 1
        planes = 3 if gray and header.bands > 2 else 1
        work = math.prod(header.size) * (planes + header.has_alpha)
        twice = passes(header.size, self._size_after(header), scale) > 1
        return work * (1 + scale**2) if twice else work

    def _targets(self, uploads: list[Upload]) -> list[Path]:
        size = self.order.size
        suffix = f"_{size.scale or self.model.scale:g}x"
        if size.width or size.height:
            suffix = "_upscaled"
        # A folder for each, so that two pictures of one name are two sources.
        sources = [
            Source(Path(str(number), upload.name.name), upload.name)
            for number, upload in enumerate(uploads)
        ]
        folder = self.task.folder / "results"
        return name_targets(sources, folder, suffix, self.order.format, str)

    def advanced(self, job: Job, done: int, total: int) -> None:
        if not done:
            self.current = job.target
            self.seen = self.watched.pixels
            number = [*self.uploads].index(job.target) + 1
            count = f" {number} of {len(self.uploads)}" * (len(self.uploads) > 1)
            self.task.phase = f"Upscaling{count}: {self.uploads[job.target].name}"
        self.known = done / max(total, 1)
        if done >= total and job.target == [*self.uploads][-1]:
            self.task.phase = f"Writing {job.target.name}"
        self._note(self.known)

    def _ran(self) -> None:
        if self.current is None:
            return
        tile, context = self.model.tile or 0, self.model.context
        kept = (tile / (tile + 2 * context)) ** 2 if tile else 1.0
        seen = (self.watched.pixels - self.seen) * kept
        self._note(max(self.known, min(seen / self.work[self.current], 0.99)))

    def _note(self, share: float) -> None:
        if self.current is not None:
            done = self.before + share * self.work[self.current]
            self.task.estimate.advance(done / self.total)
            if share >= 1:
                self.before += self.work[self.current]
                self.current = None

    def finished(self, outcome: Outcome) -> None:
        target = outcome.job.target
        upload = self.uploads[target]
        if outcome.status == "failed":
            error = outcome.error
            reason = outcome.reason
            if error is not None:
                reason = " ".join(filter(None, (error.reason, error.hint)))
            self.task.failed.append((str(upload.name), reason))
            if self.current == target:
                self._note(1)
            return
        assert outcome.size_before
        assert outcome.size_after
        left_out = ", ".join(outcome.left_out)
        self._add(
            target,
            outcome.size_before,
            outcome.size_after,
            f"Left out: {left_out}." if left_out else "",
        )

    def find_finished(self) -> None:
        """Add what was finished when the task was stopped, and not reported yet."""
        known = {made.path for made in self.task.made}
        for target, upload in self.uploads.items():
            if target not in known and target.exists():
                header = self.headers[upload]
                self._add(target, header.size, self._size_after(header), "")

    def _add(
        self, path: Path, before: tuple[int, int], after: tuple[int, int], remark: str
    ) -> None:
        name = path.relative_to(self.task.folder / "results").as_posix()
        source = self.uploads[path].path
        self.task.made.append(Made(name, path, source, before, after, remark))


def check_result(name: str, before: tuple[int, int], after: tuple[int, int]) -> None:
    """Check that a result is not too large for the page.

    Raises:
        ImageError: when it has more than `MOST_MEGAPIXELS`.
    """
    megapixels = math.prod(after) / 1e6
    if megapixels > MOST_MEGAPIXELS:
        raise ImageError(
            f"The picture has {before[0]}x{before[1]} pixels and would get "
            f"{megapixels:.0f} megapixels; this page makes {MOST_MEGAPIXELS} at most.",
            name,
            "The command `aethernet upscale` makes more.",
        )


def write_thumbnail(made: Made, target: Path) -> None:
    """Write a small picture of a result.

    Raises:
        AetherError: when the result cannot be read.
    """
    side = _THUMBNAIL_SIDE
    width, height = made.size_after
    with _viewing(made):
        # libvips reads large files reduced, but not every format.
        if width * height > 4 * side**2 and made.path.suffix.lower() != ".jxl":
            image = pyvips.Image.thumbnail(str(made.path), side, size="down")
        else:
            whole = for_browsers(read_picture(made.path))
            image = whole.thumbnail_image(side, size="down")
        image.webpsave(str(target), Q=85, keep="icc")


def compared_region(made: Made) -> Region:
    """The part of a result that the page compares: all of it, or its middle."""
    width, height = (min(side, _COMPARED_SIDE) for side in made.size_after)
    factor = min((_COMPARED_PIXELS / (width * height)) ** 0.5, 1)
    width, height = (max(int(side * factor), 1) for side in (width, height))
    left, top = (
        (whole - part) // 2
        for whole, part in zip(made.size_after, (width, height), strict=True)
    )
    return Region(left, top, width, height)


def write_before(made: Made, target: Path) -> None:
    """Write the compared part of a source, enlarged by bicubic resampling.

    Raises:
        AetherError: when the source cannot be read.
    """
    region = compared_region(made)
    with _viewing(made):
        image = for_browsers(read_picture(made.source))
        factors = [
            after / before
            for after, before in zip(
                made.size_after, (image.width, image.height), strict=True
            )
        ]
        large = image.resize(factors[0], vscale=factors[1], kernel="cubic")
        cut = large.crop(region.left, region.top, region.width, region.height)
        cut.webpsave(str(target), lossless=True, effort=0, keep="icc")


def write_after(made: Made, target: Path) -> None:
    """Write the compared part of a result.

    Raises:
        AetherError: when the result cannot be read.
    """
    with _viewing(made):
        picture: Picture = read_region(made.path, compared_region(made))
        for_browsers(picture).webpsave(str(target), lossless=True, effort=0, keep="icc")


@contextlib.contextmanager
def _viewing(made: Made) -> Iterator[None]:
    """Errors of this block are about a result that cannot be shown."""
    try:
        yield
    except (AetherError, pyvips.Error) as error:
        raise AetherError("This result cannot be shown.", made.name) from error
