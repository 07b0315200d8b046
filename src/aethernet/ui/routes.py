"""The requests of the page: JSON about tasks, and their files."""

import functools
import json
import mimetypes
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from aethernet.checkpoints.shipped import shipped_models
from aethernet.errors import AetherError, import_optional
from aethernet.pictures.files import FORMATS, READABLE
from aethernet.quality.compare import page_of
from aethernet.ui.clips import AFTER, BEFORE, read_upload, upscale_clip
from aethernet.ui.orders import (
    MOST_FILES,
    ClipOrder,
    Offer,
    Upload,
    clean_name,
    order_from,
)
from aethernet.ui.pictures import (
    MOST_MEGAPIXELS,
    OpenModel,
    check_picture,
    compared_region,
    upscale_pictures,
    write_after,
    write_before,
    write_thumbnail,
)
from aethernet.ui.storage import LARGEST_UPLOAD, Storage
from aethernet.ui.tasks import Made, Task, TaskQueue
from aethernet.version import __version__
from aethernet.video.encode import CODECS
from aethernet.video.libav import import_av
from aethernet.video.mux import CONTAINERS
from aethernet.video.upscale import VIDEO_SUFFIXES

_PLACE = "{{settings}}"
_LARGEST_BODY = 4_000_000
_PIECE = 2**20

# Only files of this server; pictures and videos also from what was chosen on the page.
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
_VIEWS = {"thumbnail": write_thumbnail, "before": write_before, "after": write_after}


class UnknownError(AetherError):
    """A task or a file that is not there, or no longer."""


@dataclass
class Workplace:
    """What all requests share."""

    storage: Storage
    offer: Offer
    devices: Mapping[str, str]
    """Devices with the names to show."""
    open_model: OpenModel
    queue: TaskQueue = field(init=False)

    def __post_init__(self) -> None:
        self.queue = TaskQueue(self._forget)
        self.storage.in_use = self._in_use

    def start(self, body: object) -> Task:
        """Queue a task for an order, see `order_from`.

        Raises:
            AetherError: when the order is refused.
        """
        order = order_from(body, self.offer, self.storage)
        if isinstance(order, ClipOrder):
            import_av()  # raises the error that says how to install it
            uploads: tuple[Upload, ...] = (order.upload,)
            work: Callable[[Task], None] = lambda task: upscale_clip(  # noqa: E731
                task, order, self.open_model
            )
        else:
            uploads = order.uploads
            work = lambda task: upscale_pictures(  # noqa: E731
                task, order, self.open_model, self.storage
            )
        more = f" and {len(uploads) - 1} more" if len(uploads) > 1 else ""
        task = Task(
            "video" if isinstance(order, ClipOrder) else "pictures",
            f"{uploads[0].name.name}{more}",
            self.storage.folder / "tasks",
            tuple(upload.path for upload in uploads),
            work,
        )
        task.folder /= task.id
        task.folder.mkdir(parents=True)
        self.queue.add(task)
        return task

    def find(self, name: str) -> Task:
        """The task of that id.

        Raises:
            UnknownError: when it is not known, or forgotten.
        """
        task = self.queue.find(name)
        if task is None:
            raise UnknownError("There is no such task, or it was removed.")
        return task

    def _in_use(self) -> Iterable[Path]:
        for task in self.queue.all():
            if task.alive:
                yield task.folder
                yield from task.uploads

    def _forget(self, task: Task, rest: list[Task]) -> None:
        self.storage.remove(task.folder)
        kept = {path for each in rest for path in each.uploads}
        for path in {*task.uploads} - kept:
            self.storage.remove(path)


def routes(place: Workplace) -> list[Any]:
    """All routes of the page, for Starlette."""
    route = import_optional("starlette.routing", "ui").Route
    at = "/tasks/{task}"
    found: list[tuple[str, str, Callable[[_Request], Any]]] = [
        ("GET", "/", _page),
        ("GET", "/page.css", _asset),
        ("GET", "/page.js", _asset),
        ("POST", "/checks", _check),
        ("GET", "/tasks", _list),
        ("POST", "/tasks", _start),
        ("GET", at, _show),
        ("DELETE", at, _cancel),
        ("GET", f"{at}/zip", _zip),
        ("GET", f"{at}/compare", _compare),
        ("GET", f"{at}/files/{{number:int}}", _file),
        ("GET", f"{at}/files/{{number:int}}/{{view}}", _view),
    ]
    return [
        route(path, _endpoint(place, function), methods=[method])
        for method, path, function in found
    ]


@dataclass(frozen=True)
class _Request:
    """A request as the functions below see it."""

    place: Workplace
    path: str
    names: Mapping[str, Any]
    """Parts of the path."""
    query: Mapping[str, str]
    body: object

    @property
    def task(self) -> Task:
        return self.place.find(self.names["task"])

    @property
    def made(self) -> Made:
        made = self.task.made
        number = self.names["number"]
        if not 0 <= number < len(made) or not made[number].path.is_file():
            raise UnknownError("There is no such file, or it was removed.")
        return made[number]

    def state(self, task: Task) -> dict[str, Any]:
        return task.as_json(self.place.queue.ahead(task))


def _endpoint(place: Workplace, function: Callable[[_Request], Any]) -> Any:
    """An endpoint of Starlette; errors are answered as {"error": "..."}."""
    responses = _responses()
    threads = import_optional("starlette.concurrency", "ui")

    async def endpoint(request: Any) -> Any:
        try:
            body = _parsed(await request.body()) if request.method == "POST" else None
            asked = _Request(
                *(place, request.url.path, request.path_params),
                *(request.query_params, body),
            )
            answer = await threads.run_in_threadpool(function, asked)
        except UnknownError as error:
            return responses.JSONResponse({"error": str(error)}, 404)
        except AetherError as error:
            return responses.JSONResponse({"error": str(error)}, 400)
        if isinstance(answer, dict | list):
            answer = responses.JSONResponse(answer)
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers.setdefault("Cache-Control", "no-store")
        return answer

    return endpoint


@functools.cache
def _responses() -> Any:
    return import_optional("starlette.responses", "ui")


def _parsed(body: bytes) -> object:
    if len(body) > _LARGEST_BODY:
        raise AetherError("The request is too long.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise AetherError("The request is no JSON.") from error


def _page(request: _Request) -> Any:
    text = resources.files("aethernet.ui").joinpath("page.html").read_text("utf-8")
    # A name may contain </script>. In JSON, < only occurs inside strings.
    settings = json.dumps(_settings(request.place)).replace("<", "\\u003c")
    page = text.replace(_PLACE, settings).replace("{{version}}", __version__)
    policy = {"Content-Security-Policy": _POLICY}
    return _responses().HTMLResponse(page, headers=policy)


def _settings(place: Workplace) -> dict[str, Any]:
    scales = {model.path: model.scale for model in shipped_models()}
    try:
        import_av()
        no_video = ""
    except AetherError as error:
        no_video = str(error)
    twins = (".jpeg", ".jpe", ".jfif", ".tiff")
    return {
        "models": [
            {"name": name, "scale": scales.get(path)}
            for name, path in place.offer.models.items()
        ],
        "devices": [
            {"name": name, "label": label} for name, label in place.devices.items()
        ],
        "formats": [
            {"suffix": suffix, "name": kind.name, "quality": kind.quality}
            for suffix, kind in FORMATS.items()
            if suffix not in twins
        ],
        "containers": [*CONTAINERS],
        "codecs": [*CODECS],
        "pictures": [*READABLE],
        "videos": [*VIDEO_SUFFIXES],
        "noVideo": no_video,
        "largestUpload": LARGEST_UPLOAD,
        "mostFiles": MOST_FILES,
        "mostMegapixels": MOST_MEGAPIXELS,
    }


def _asset(request: _Request) -> Any:
    name = request.path.removeprefix("/")
    content = resources.files("aethernet.ui").joinpath(name).read_bytes()
    return _responses().Response(content, media_type=mimetypes.guess_type(name)[0])


def _check(request: _Request) -> Any:
    """Look into a file that was uploaded: its size, or the reason why it is refused."""
    body = request.body if isinstance(request.body, dict) else {}
    try:
        path = request.place.storage.uploaded(body.get("path"))
        name = clean_name(str(body.get("name") or path.name)).name
        if body.get("kind") != "video":
            return {"size": check_picture(path, name)}
        clip = read_upload(path, name)
    except AetherError as error:
        return {"reason": " ".join(filter(None, (error.reason, error.hint)))}
    return {
        "size": (clip.width, clip.height),
        "seconds": None if clip.duration is None else float(clip.duration),
        "frames": clip.frames,
    }


def _list(request: _Request) -> Any:
    return [request.state(task) for task in request.place.queue.all()]


def _start(request: _Request) -> Any:
    return request.state(request.place.start(request.body))


def _show(request: _Request) -> Any:
    return request.state(request.task)


def _cancel(request: _Request) -> Any:
    request.place.queue.cancel(request.task)
    return request.state(request.task)


def _file(request: _Request) -> Any:
    made = request.made
    show = "inline" if "show" in request.query else "attachment"
    kind = mimetypes.guess_type(made.path.name)[0] or "application/octet-stream"
    return _responses().FileResponse(
        made.path,
        media_type=kind,
        filename=Path(made.name).name,
        content_disposition_type=show,
    )


def _view(request: _Request) -> Any:
    """A picture for the page, made when it is asked for the first time."""
    made, task = request.made, request.task
    view = str(request.names["view"]).removesuffix(".webp")
    number = request.names["number"]
    if task.kind == "video" and view in ("before", "after"):
        target = task.folder / (BEFORE if view == "before" else AFTER)
        if not target.is_file():
            raise UnknownError("There is no such frame.")
    elif task.kind == "pictures" and view in _VIEWS:
        target = task.folder / f"{number}-{view}.webp"
        if not target.is_file():
            request.place.storage.make_room()
            _VIEWS[view](made, target)
    else:
        raise UnknownError("There is no such view.")
    headers = {"Cache-Control": "max-age=3600"}
    return _responses().FileResponse(target, media_type="image/webp", headers=headers)


def _compare(request: _Request) -> Any:
    """The page of `aethernet compare` for the results of a task."""
    task = request.task
    model = task.how.partition(",")[0]
    pictures = []
    for number, made in enumerate([*task.made]):
        region = compared_region(made)
        size = (region.width, region.height)
        if task.kind == "video":
            size = made.size_after
        sources = [
            {"name": name, "source": f"/tasks/{task.id}/files/{number}/{view}.webp"}
            for name, view in (
                ("Before: bicubic", "before"),
                (f"After: {model}", "after"),
            )
        ]
        pictures.append(
            {"name": made.name, "width": size[0], "height": size[1], "images": sources}
        )
    if not pictures:
        raise UnknownError("There is nothing to compare yet.")
    content = {
        "version": __version__,
        "protocol": "",
        "measured": 0,
        "methods": [],
        "pictures": pictures,
        "embedded": True,
    }
    return _responses().HTMLResponse(page_of(content, "'self' data:"))


def _zip(request: _Request) -> Any:
    task = request.task
    files = [(made.name, made.path) for made in task.made if made.path.is_file()]
    if not files:
        raise UnknownError("There is no result.")
    headers = {"Content-Disposition": 'attachment; filename="aethernet.zip"'}
    return _responses().StreamingResponse(
        zipped(files), media_type="application/zip", headers=headers
    )


def zipped(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """A zip of files by their names inside, piece by piece, without compression."""
    pieces = _Pieces()
    with zipfile.ZipFile(pieces, "w") as archive:  # type: ignore[call-overload]
        for name, path in files:
            entry = zipfile.ZipInfo.from_file(path, name)
            with path.open("rb") as file, archive.open(entry, "w") as inside:
                while piece := file.read(_PIECE):
                    inside.write(piece)
                    yield pieces.take()
    yield pieces.take()


class _Pieces:
    """A file that only grows; what was written is taken out."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        self._held += data
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def take(self) -> bytes:
        held, self._held = bytes(self._held), bytearray()
        return held
