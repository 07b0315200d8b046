"""Writing files so that a crash or a full disk leaves the old one or none."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from aethernet.errors import AetherError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; move it to `path` when the block ends well.

    The temporary file lies in the same folder and has the same suffix (libraries choose
    the format by it). It is flushed to the disk before it takes the place of `path`,
    and removed when the block raises.

    Raises:
        AetherError: when the folder is missing or cannot be written, at once, before
            any work is done inside the block; or when writing fails.
    """
    path = Path(path)
    if path.is_dir():
        raise AetherError(f"Cannot write {path}: it is a folder; name a file.")
    if not path.parent.is_dir():
        raise AetherError(
            f"Cannot write {path}: the folder {path.parent} does not exist."
        )
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            _flush_to_disk(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if os.name == "posix":  # elsewhere a folder cannot be opened to be flushed
            _flush_to_disk(path.parent)
    except OSError as error:
        raise AetherError(f"Cannot write {path}: {error.strerror or error}.") from error


def _flush_to_disk(path: Path) -> None:
    # Windows flushes what is open for writing, POSIX opens folders only for reading.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
