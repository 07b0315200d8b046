"""Writing files so that a crash or a full disk leaves the old one or none."""

import contextlib
import os
import secrets
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from aethernet.errors import AetherError

# File systems take names of so many bytes (Windows: UTF-16 units, which are fewer).
LONGEST_NAME = 255


def check_source(path: Path, what: str) -> None:
    """Say why a file cannot be read; `what` it should be stands in the sentence.

    Raises:
        AetherError: when it is missing, a folder, or not ours to read.
    """
    try:
        if stat.S_ISFIFO(path.stat().st_mode):  # opening it might wait for ever
            raise AetherError(f"{path} is a pipe, not {what} in a file.")
        path.open("rb").close()
    except FileNotFoundError as error:
        raise AetherError(f"There is no file {path}.") from error
    except OSError as error:
        if os.path.isdir(path):
            raise AetherError(f"{path} is a folder, not {what}.") from error
        raise AetherError(f"Cannot read {path}: {error.strerror}.") from error


def check_target(path: Path, source: Path | None = None) -> None:
    """Say why a file cannot be written, before any work is done for it.

    Raises:
        AetherError: when it is a folder, its folder is missing or not ours to write, or
            it is the `source` it would be made from.
    """
    if os.path.isdir(path):
        raise AetherError(f"Cannot write {path}: it is a folder; name a file.")
    _check_parent(path)
    if source and os.path.exists(path) and os.path.samefile(path, source):
        raise AetherError(f"{path} is the file it is made from; name another output.")


def files_in(folder: Path, suffixes: Sequence[str], what: str) -> list[Path]:
    """Files of these suffixes in a folder, not below, sorted, without hidden ones.

    Raises:
        AetherError: when there are none, or the folder cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise AetherError(f"Cannot read {folder}: {error.strerror}.") from error
    found = [folder / name for name in names if not name.startswith(".")]
    found = [path for path in found if path.suffix.lower() in suffixes]
    if not found:
        raise AetherError(f"The folder {folder} has no {what} ({', '.join(suffixes)}).")
    return found


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; move it to `path` when the block ends well.

    The temporary file lies in the same folder and has the same suffix (libraries choose
    the format by it). It is flushed to the disk before it takes the place of `path`,
    and removed when the block raises.

    Raises:
        AetherError: as `check_target`, before the block is entered; or when writing
            fails.
    """
    path = Path(path)
    check_target(path)
    temporary = temporary_path(path)
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


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill; move it to `path` when the block ends well.

    It lies beside `path`, and is removed when the block raises. A folder that was there
    before is removed once the new one has its place. Errors speak of `path`.

    Raises:
        AetherError: when it cannot be made, or `path` is something else than a folder.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise AetherError(f"{path} is a file; name a folder.")
    _check_parent(path)
    temporary = temporary_path(path)
    try:
        temporary.mkdir()
        try:
            yield temporary
            if os.name == "posix":
                for folder, *_ in os.walk(temporary):
                    _flush_to_disk(Path(folder))
            _exchange(temporary, path)
            if os.name == "posix":
                _flush_to_disk(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except AetherError as error:
        raise type(error)(str(error).replace(str(temporary), str(path))) from error
    except OSError as error:
        raise AetherError(f"Cannot write {path}: {error.strerror or error}.") from error


def temporary_path(path: Path) -> Path:
    """A name for what is to become `path`: hidden, beside it, with its suffix."""
    ending = f".{secrets.token_hex(4)}.part{path.suffix}"
    stem = path.stem
    while stem and len(os.fsencode(f".{stem}{ending}")) > LONGEST_NAME:
        stem = stem[:-1]
    return path.with_name(f".{stem}{ending}")


def command_line(words: Sequence[object]) -> str:
    """Words as one line to be pasted into this system's shell."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def _check_parent(path: Path) -> None:
    if not os.path.isdir(path.parent):
        raise AetherError(
            f"Cannot write {path}: the folder {path.parent} does not exist."
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise AetherError(f"Cannot write {path}: permission denied in its folder.")


def _exchange(new: Path, path: Path) -> None:
    """Give a folder its place; what is there goes when the new one has it.

    There is no one step for it: a process killed between the two renames leaves the old
    folder under a hidden name.
    """
    aside = temporary_path(path)
    try:
        if path.exists():
            os.rename(path, aside)
        os.rename(new, path)
    except BaseException:
        if aside.exists() and not path.exists():
            os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    # Windows flushes what is open for writing, POSIX opens folders only for reading.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
