"""Upscale the video of a task."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from aethernet.errors import AetherError
from aethernet.pictures.files import Picture
from aethernet.pictures.write import for_browsers
from aethernet.runtimes.base import Description, Model
from aethernet.ui.orders import ClipOrder
from aethernet.ui.pictures import OpenModel
from aethernet.ui.tasks import Made, Task, Watched, in_small_tiles
from aethernet.upscaling.planes import pixels_of
from aethernet.video.clip import Clip, read_clip
from aethernet.video.mux import CONTAINERS
from aethernet.video.upscale import VideoOptions, upscale_video

PREVIEW_SECONDS = 5.0

BEFORE, AFTER = "before.webp", "after.webp"
"""Files in the folder of a task: a frame before and after, for the page."""

# Most browsers play it.
_PREVIEW_SUFFIX = ".mp4"
_FALLBACK = ".mkv"


def read_upload(path: Path, name: str) -> Clip:
    """Read the header of a video that was uploaded.

    Raises:
        AetherError: when it is no video that can be read; it names the video.
    """
    try:
        return read_clip(path)
    except AetherError as error:
        raise error if error.path is None else error.about(name) from error


def upscale_clip(task: Task, order: ClipOrder, open_model: OpenModel) -> None:
    """Upscale the video of an order into the folder of its task.

    Raises:
        AetherError: when it cannot be read or written, or the model fails.
        CancelledError: when the task was asked to stop.
    """
    name = order.upload.name
    clip = read_upload(order.upload.path, str(name))
    task.phase = "Opening the model"
    model = open_model(order.model, order.device)
    task.how = f"{order.model}, {replace(model.describe(), why='')}"
    watched = Watched(model, task)
    kept = _FrameKeeper(in_small_tiles(watched))
    target = _target(task, order, model.scale)
    target.parent.mkdir(parents=True, exist_ok=True)

    def report(done: int, total: int | None) -> None:
        of = f" of {total}" if total else ""
        task.phase = f"Upscaling frame {done}{of}" if done else "Upscaling"
        kept.begin(done)
        if total:
            kept.wanted = total // 2
            task.estimate.advance(done / total)
            if done >= total:
                task.phase = f"Writing {target.name}"

    preview = PREVIEW_SECONDS if order.preview else None
    options = VideoOptions(
        codec=order.codec,
        crf=order.crf,
        # Its middle is not known where the file does not say how long it is.
        start=0.0 if preview and clip.duration is None else None,
        preview=preview,
    )
    try:
        done = upscale_video(order.upload.path, target, kept, options, report)
    except AetherError as error:
        raise error if error.path is None else error.about(str(name)) from error
    kept.write(task.folder)
    sizes = done.size_before, done.size_after
    remark = f"{done.frames} frames, {done.encoding}"
    made = Made(target.name, target, order.upload.path, *sizes, remark)
    task.made.append(made)


def _target(task: Task, order: ClipOrder, scale: int) -> Path:
    name = order.upload.name
    suffix = order.suffix
    if suffix is None:
        known = name.suffix.lower() in CONTAINERS
        suffix = name.suffix.lower() if known else _FALLBACK
        if order.preview and order.codec is None:
            suffix = _PREVIEW_SUFFIX
    part = "_preview" if order.preview else ""
    return task.folder / "results" / f"{name.stem[:100]}{part}_{scale}x{suffix}"


class _FrameKeeper:
    """A model that keeps one frame before and after; frames come in order."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.scale, self.channels = model.scale, model.channels
        self.input_sizes = model.input_sizes
        self.wanted = 0
        """Number of the frame to keep; later ones are not."""
        self._frame, self._begun = 0, False
        self._kept: tuple[np.ndarray, np.ndarray] | None = None

    def describe(self) -> Description:
        return self._model.describe()

    def run(self, batch: np.ndarray) -> np.ndarray:
        output = self._model.run(batch)
        # The colours come first; transparency may follow.
        if not self._begun and self._frame <= self.wanted:
            self._kept = batch[0].copy(), output[0].copy()
        self._begun = True
        return output

    def begin(self, frame: int) -> None:
        """Say that the frame of that number comes next."""
        self._frame, self._begun = frame, False

    def write(self, folder: Path) -> None:
        """Write the frame, enlarged by bicubic resampling and by the model."""
        if self._kept is None:
            return
        before, after = (
            for_browsers(Picture(pixels_of(planes.clip(0, 1), 8)))
            for planes in self._kept
        )
        enlarged = before.resize(self.scale, kernel="cubic")
        for image, name in ((enlarged, BEFORE), (after, AFTER)):
            image.webpsave(str(folder / name), lossless=True, effort=0)
