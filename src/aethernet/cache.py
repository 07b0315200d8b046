"""The user's cache folder: what can be made again, kept because that takes time."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from aethernet.errors import AetherError
from aethernet.files import replacing
from aethernet.version import PACKAGE, __version__

# What these rooms say decides what a kept file holds.
_ROOMS = (
    *("aether_core", "checkpoint", "onnx_export", "rewrites", "verification"),
    *("runtimes/choice", "runtimes/onnxruntime", "runtimes/openvino"),
    "runtimes/pytorch",
)


def cache_folder() -> Path:
    """Where AetherNet keeps such files; it need not exist yet.

    `AETHERNET_CACHE` names it, else it is `aethernet` in the user's own cache folder:
    `XDG_CACHE_HOME`, `LOCALAPPDATA` (Windows) or `~/.cache`.

    Raises:
        AetherError: when there is none of these.
    """
    named = os.environ.get("AETHERNET_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return Path(home or Path.home() / ".cache") / "aethernet"
    except RuntimeError as error:  # a user without a home folder, as in containers
        raise AetherError(
            "There is no home folder to keep a cache in; name one in AETHERNET_CACHE."
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder of the cache where there is none.

    Raises:
        AetherError: when it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AetherError(
            f"Cannot make the cache folder {path}: {error.strerror}; name another in "
            "AETHERNET_CACHE."
        ) from error


def code_version() -> str:
    """Our version, and a digest of the rooms that compute: in a clone they change."""
    rooms = (PACKAGE / f"{name}.py" for name in _ROOMS)
    code = b"".join(room.read_bytes() for room in rooms if room.is_file())
    return f"{__version__}-{hashlib.sha256(code).hexdigest()[:12]}"


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` kept there; empty when absent, damaged or of another kind."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Keep a dict there, whole or not at all.

    Raises:
        AetherError: when the folder cannot be made or written.
    """
    make_folder(path.parent)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), "utf-8")
