"""The endpoints of Gradio's own API, for its clients in Python and JavaScript."""

from collections.abc import Iterator
from typing import Any

from aethernet.errors import AetherError, import_optional
from aethernet.ui.routes import Workplace
from aethernet.ui.tasks import Task

# Seconds between two looks at a task. Gradio can end a call only between them.
_LOOK = 0.2


def add_endpoints(server: Any, gradio: Any, place: Workplace) -> None:
    """Add `/models`, `/upscale` and `/upscale_video` to a `gradio.Server`."""
    FileData = import_optional("gradio.data_classes", "ui").FileData  # noqa: N806

    def models() -> list[str]:
        """Names of the models; the first is the default."""
        return [*place.offer.models]

    def upscale(
        picture: FileData,  # type: ignore[valid-type]
        model: str = "",
        scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        quality: int | None = None,
        format: str = "",
        device: str = "",
    ) -> FileData:  # type: ignore[valid-type]
        """Upscale a picture.

        With width or height it becomes as large as fits; format is a suffix like .webp.
        """
        order = {"scale": scale, "width": width, "height": height, "quality": quality}
        how = {"model": model, "format": format, "device": device}
        yield from results({"kind": "pictures", **order, **how}, picture)

    def upscale_video(
        video: FileData,  # type: ignore[valid-type]
        model: str = "",
        preview: bool = False,
        crf: float | None = None,
        codec: str = "",
        format: str = "",
        device: str = "",
    ) -> FileData:  # type: ignore[valid-type]
        """Upscale a video; with preview only five seconds out of its middle."""
        order = {"preview": preview, "crf": crf, "codec": codec}
        how = {"model": model, "format": format, "device": device}
        yield from results({"kind": "video", **order, **how}, video)

    def results(order: dict[str, Any], sent: Any) -> Iterator[Any]:
        try:
            task = place.start({**order, "files": [_upload(sent)]})
        except AetherError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        yield from _until_its_end(task, place)
        if not task.made:
            raise gradio.Error(_reason(task), print_exception=False)
        yield FileData(path=str(task.made[0].path))

    server.api(models, name="models")
    server.api(upscale, name="upscale", concurrency_limit=None)
    server.api(upscale_video, name="upscale_video", concurrency_limit=None)


def _upload(sent: Any) -> Any:
    """What was sent for a file, with the name that it had."""
    if isinstance(sent, dict):
        return {"path": sent.get("path"), "name": sent.get("orig_name")}
    return sent


def _until_its_end(task: Task, place: Workplace) -> Iterator[None]:
    """Wait for a task; it is cancelled when the client has gone."""
    try:
        while not task.ended.wait(_LOOK):
            yield None
    finally:
        if task.alive:
            place.queue.cancel(task)


def _reason(task: Task) -> str:
    if task.state == "cancelled":
        return "The task was cancelled."
    failures = [f"{name}: {reason}" for name, reason in task.failed]
    return task.error or " ".join(failures) or "There is no result."
