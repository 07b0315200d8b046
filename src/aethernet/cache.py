"""The user's folders: a cache (files that can be made again), downloaded models."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aethernet.errors import AetherError
from aethernet.files import replacing, unreadable, unwritable
from aethernet.version import __version__

_CACHE, _MODELS = "AETHERNET_CACHE", "AETHERNET_MODELS"
_CHECKSUM = "checksum"  # in a JSON file, of the rest of its content
_NAME_ANOTHER = "Name another folder in the environment variable {}."


def cache_folder() -> Path:
    """The cache folder; it need not exist yet.

    The environment variable `AETHERNET_CACHE` names it. Otherwise it is the folder
    `aethernet` in the first that is set of `XDG_CACHE_HOME`, `LOCALAPPDATA` (Windows)
    and `~/.cache`.

    Raises:
        AetherError: when none of these is known.
    """
    return _users_folder(_CACHE, "XDG_CACHE_HOME", ".cache", "aethernet")


def data_folder() -> Path:
    """The folder for downloaded models; it need not exist yet.

    The environment variable `AETHERNET_MODELS` names it. Otherwise it is the folder
    `aethernet/models` in the first that is set of `XDG_DATA_HOME`, `LOCALAPPDATA`
    (Windows) and `~/.local/share`.

    Raises:
        AetherError: when none of these is known.
    """
    return _users_folder(_MODELS, "XDG_DATA_HOME", ".local/share", "aethernet/models")


def _users_folder(variable: str, xdg: str, default: str, name: str) -> Path:
    named = os.environ.get(variable)
    if named:
        return Path(named)
    home = os.environ.get(xdg) or os.environ.get("LOCALAPPDATA")
    try:
        return Path(home or Path.home() / default) / name
    except RuntimeError as error:  # a user without a home folder, as in containers
        hint = _NAME_ANOTHER.format(variable)
        raise AetherError(
            "There is no home folder to keep files in.", hint=hint
        ) from error


def file_of(folder: str, facts: dict[str, Any]) -> Path:
    """The JSON file of a folder in the cache that is kept for these facts.

    Args:
        folder: the name of a folder in the cache.
        facts: all that the content depends on; they must be JSON.

    Raises:
        AetherError: as `cache_folder`.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_folder() / folder / f"{digest[:32]}.json"


def make_folder(path: Path) -> None:
    """Make a folder of the cache if it does not exist.

    Raises:
        AetherError: when it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = unwritable(error, path).reason
        raise AetherError(reason, path, _NAME_ANOTHER.format(_CACHE)) from error


def code_version(code: Iterable[Path]) -> str:
    """Our version and a digest of the code that decides what a kept file holds.

    The version alone is not enough: in a clone the code changes under one version.

    Args:
        code: files, and folders of which every file counts.

    Raises:
        AetherError: when one of them is missing or empty, so that a renamed module
            cannot leave old files in use.
    """
    digest = hashlib.sha256()
    for part in code:
        files = _files_of(part)
        if not files:
            raise AetherError(
                "This part of AetherNet is missing.", part, "Install AetherNet again."
            )
        for file in files:
            name = file.relative_to(part.parent).as_posix()
            try:
                content = file.read_bytes()
            except OSError as error:
                raise unreadable(error, file) from error
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
    return f"{__version__}-{digest.hexdigest()[:12]}"


def _files_of(part: Path) -> list[Path]:
    """A file itself, or all files in a folder but what Python compiled of them."""
    if part.is_file():
        return [part]
    files = (file for file in part.rglob("*") if "__pycache__" not in file.parts)
    return sorted(file for file in files if file.is_file())


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; empty when absent or changed since."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    checksum = content.pop(_CHECKSUM, None)
    return content if checksum == _checksum_of(content) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dict as JSON; a failure leaves the old file or none.

    Raises:
        AetherError: when the folder or the file cannot be written.
    """
    make_folder(path.parent)
    kept = {**content, _CHECKSUM: _checksum_of(content)}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(kept, indent=1), "utf-8")


def _checksum_of(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def seal(path: Path) -> None:
    """Note the size and the checksum of a file in the cache, beside it.

    Raises:
        AetherError: when the note cannot be written.
    """
    write_json(_seal_of(path), _facts_of(path))


def is_intact(path: Path) -> bool:
    """Whether a file in the cache is there and is what `seal` has noted."""
    try:
        return path.is_file() and read_json(_seal_of(path)) == _facts_of(path)
    except AetherError:
        return False


def remove_sealed(path: Path) -> None:
    """Remove a file from the cache, with its note, if it is there."""
    for one in (path, _seal_of(path)):
        one.unlink(missing_ok=True)


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _facts_of(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(error, path) from error
    return {"size": len(content), "crc32": zlib.crc32(content)}
