"""What the page's server refuses, and the space that uploads and results take."""

import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from aethernet.errors import AetherError

MOST_KEPT_BYTES = 10 * 10**9
"""Uploads and results that are kept at most; the oldest go first."""

LARGEST_UPLOAD = 4 * 10**9
"""Bytes of a file that may be uploaded."""

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


class Storage:
    """The folder of all uploads and results, which never grows beyond a limit."""

    def __init__(self, folder: Path) -> None:
        """Keep files in this folder, and use at most half of its disk's free space.

        Args:
            folder: which only this server writes to; links in its path are resolved.
        """
        self.folder = Path(os.path.realpath(folder))
        self.in_use: Callable[[], Iterable[Path]] = list
        """Gives the files and folders that must not be removed now."""
        self._free = shutil.disk_usage(folder).free // 2

    @property
    def most(self) -> int:
        """Bytes that are kept at most."""
        return min(MOST_KEPT_BYTES, self._free)

    def uploaded(self, path: object) -> Path:
        """The file that was uploaded; never one outside of the folder.

        Args:
            path: what a client sent, of any type.

        Raises:
            AetherError: when it is no file that was uploaded here.
        """
        with contextlib.suppress(ValueError, OSError):  # a null character, a long name
            if isinstance(path, str) and path:
                found = Path(os.path.realpath(path))
                if found.is_relative_to(self.folder):
                    if found.is_file():
                        return found
                    raise AetherError("The upload was removed; choose the file again.")
        raise AetherError("This is no file that was uploaded here.")

    def make_room(self, needed: int = 0) -> None:
        """Remove the oldest files until there is room for so many bytes.

        Raises:
            AetherError: when what is in use leaves no room.
        """
        found = []
        for path in self.folder.rglob("*"):
            with contextlib.suppress(OSError):  # removed meanwhile
                if path.is_file():
                    facts = path.stat()
                    found.append((facts.st_mtime, facts.st_size, path))
        total = sum(size for _, size, _ in found) + needed
        if total <= self.most:
            return
        used = {*self.in_use()}
        for _, size, path in sorted(found):
            if used.isdisjoint((path, *path.parents)):
                path.unlink(missing_ok=True)
                total -= size
                if total <= self.most:
                    return
        raise AetherError(
            f"There is no room: at most {self.most / 1e9:.1f} GB are kept here.",
            hint="The command `aethernet upscale` has no such limit.",
        )

    def remove(self, path: Path) -> None:
        """Remove an upload, or a folder of results with all that is in it."""
        path = Path(os.path.realpath(path))
        if path == self.folder or not path.is_relative_to(self.folder):
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
            return
        path.unlink(missing_ok=True)
        # Gradio makes a folder for each content, whatever the names of the uploads.
        if path.parent != self.folder:
            with contextlib.suppress(OSError):  # another upload is in it
                path.parent.rmdir()


class SameOrigin:
    """Refuses requests of other pages before their upload is stored (ASGI)."""

    def __init__(self, app: Asgi, storage: Storage) -> None:
        """Wrap an application whose uploads are kept in a storage."""
        self._app, self._storage = app, storage

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 403 to another page, 413 without room, else pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value for key, value in scope["headers"]}
        origin = headers.get("origin")
        page = b"" if origin is None else origin.partition(b"://")[2]
        if origin is not None and page != headers.get("host"):
            await _answer(send, 403, "Pages of another origin are refused.")
            return
        if scope.get("method") == "POST" and scope["path"].endswith("/upload"):
            told = headers.get("content-length", b"")
            needed = int(told) if told.isdigit() else LARGEST_UPLOAD
            try:
                self._storage.make_room(needed)
            except AetherError as error:
                await _answer(send, 413, str(error))
                return
        await self._app(scope, receive, send)


async def _answer(send: Any, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    start = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": text.encode()})
