"""Downloading the models that are too large to ship (`shipped.offered_downloads`)."""

import os
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

from filelock import FileLock

from aethernet.cache import data_folder
from aethernet.checkpoints.shipped import Download
from aethernet.errors import AetherError, first_line
from aethernet.files import replacing, sha256_of, unwritable
from aethernet.version import __version__

_CHUNK = 2**18
_TIMEOUT = 30  # seconds without a byte


def download(model: Download, advanced: Callable[[int], None]) -> Path:
    """Download a model into the data folder, and check its size and SHA-256.

    A download that was interrupted is continued. A file that is there already and right
    is left as it is.

    Args:
        model: from `find_download`.
        advanced: called with the number of bytes that are here, from time to time.

    Returns:
        Path of the file.

    Raises:
        AetherError: when the folder cannot be written, or no address gives the file.
    """
    target = data_folder() / model.file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(error, target.parent) from error
    # One name, so that the next run finds it; the digest keeps versions apart.
    part = target.with_name(f".{model.file}.{model.sha256[:8]}.part")
    with FileLock(target.parent / ".lock"):
        if _is_whole(target, model):
            return target
        failures = [
            failure
            for url in model.urls
            if not _is_whole(part, model)
            and (failure := _fetch(url, part, model, advanced))
        ]
        if not _is_whole(part, model):
            raise AetherError(
                " ".join(failures) or "The list of models names no address for it.",
                target,
                "Run the command again to continue." if failures else "",
            )
        with replacing(target) as temporary:
            os.replace(part, temporary)
    return target


def _is_whole(path: Path, model: Download) -> bool:
    if not path.is_file() or path.stat().st_size != model.size:
        return False
    return sha256_of(path) == model.sha256


def _fetch(
    url: str, part: Path, model: Download, advanced: Callable[[int], None]
) -> str:
    """Fetch what is missing of a file from an address; why not, or "" if all is here.

    Raises:
        AetherError: when the file cannot be written.
    """
    try:
        _receive(url, part, model.size, advanced)
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        return f"{url} cannot be read: {first_line(reason)}."
    except ValueError as error:
        return f"{url} cannot be used: {first_line(error)}."
    except OSError as error:
        raise unwritable(error, part.parent) from error
    if part.stat().st_size < model.size:
        return f"{url} ended early."
    if _is_whole(part, model):
        return ""
    part.unlink()
    return f"{url} holds another file than this version of AetherNet expects."


def _receive(url: str, part: Path, size: int, advanced: Callable[[int], None]) -> None:
    """Append what is missing to `part`, or start over if the server sends all."""
    here = part.stat().st_size if part.exists() else 0
    if here >= size:
        part.unlink()
        here = 0
    headers = {"User-Agent": f"aethernet/{__version__}", "Accept-Encoding": "identity"}
    if here:
        headers["Range"] = f"bytes={here}-"
    _check_address(url)
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(_SafeRedirects)
    with opener.open(request, timeout=_TIMEOUT) as answer:
        if here and not _continues_at(answer, here):
            here = 0
        with part.open("ab" if here else "wb") as file:
            # One byte more than expected shows that this is another file.
            while here <= size and (chunk := answer.read(min(_CHUNK, size + 1 - here))):
                file.write(chunk)
                here += len(chunk)
                advanced(min(here, size))


def _continues_at(answer: HTTPResponse, position: int) -> bool:
    stated = answer.headers.get("Content-Range") or ""
    return answer.status == 206 and stated.startswith(f"bytes {position}-")


def _check_address(url: str) -> None:
    """Check that an address is HTTPS, or HTTP of this machine.

    Raises:
        ValueError: when it is not.
    """
    parts = urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ValueError("the address is not HTTPS")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to addresses that `_check_address` accepts."""

    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        _check_address(arguments[-1])
        return super().redirect_request(*arguments)
