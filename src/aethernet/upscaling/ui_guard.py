"""What the page's server refuses, and the space that it takes."""

import contextlib
import shutil
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

MOST_KEPT_BYTES = 2 * 10**9
"""Uploads and results that are kept at most; the oldest go first."""

_KEPT_JOBS = 4

_LARGEST_UPLOAD = 200_000_000  # assumed of an upload that does not tell its size

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


class SameOrigin:
    """Refuses requests of other pages before their upload is stored (ASGI)."""

    def __init__(self, app: Asgi, folder: Path) -> None:
        """Wrap an application whose uploads are kept in a folder."""
        self._app, self._folder = app, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 403 to another page, else pass the request on."""
        headers = {key.decode("latin-1"): value for key, value in scope["headers"]}
        origin = headers.get("origin")
        page = b"" if origin is None else origin.partition(b"://")[2]
        if origin is not None and page != headers.get("host"):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"Another origin."})
            return
        if scope.get("method") == "POST" and scope["path"].endswith("/upload"):
            told = headers.get("content-length", b"")
            make_room(self._folder, int(told) if told.isdigit() else _LARGEST_UPLOAD)
        await self._app(scope, receive, send)


def make_room(folder: Path, needed: int = 0) -> None:
    """Remove the oldest files until there is room for so many bytes."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            if path.is_file():
                facts = path.stat()
                found.append((facts.st_mtime, facts.st_size, path))
    total = sum(size for _, size, _ in found) + needed
    for _, size, path in sorted(found):
        if total <= MOST_KEPT_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size


class KeptJobs:
    """The uploads and results of the last jobs; those before them are removed."""

    def __init__(self, folder: Path) -> None:
        """Keep jobs whose files are in this folder."""
        self._folder = folder
        self._jobs: deque[tuple[Path, Path]] = deque()

    def add(self, source: Path, results: Path) -> None:
        """Add a job: its upload, in a folder of its own, and the folder of results."""
        self._jobs.append((source.parent, results))
        while len(self._jobs) > _KEPT_JOBS:
            upload, old = self._jobs.popleft()
            shutil.rmtree(old, ignore_errors=True)
            used = any(upload == kept for kept, _ in self._jobs)
            if not used and upload != self._folder:
                shutil.rmtree(upload, ignore_errors=True)
        make_room(self._folder)
