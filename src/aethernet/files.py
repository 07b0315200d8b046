"""Writing files so that a crash or a full disk leaves the old one or none."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from aethernet.errors import AetherError, system_reason

# File systems take names of so many bytes (Windows: UTF-16 units, which are fewer).
LONGEST_NAME = 255

# System errors of writing that come without a file name: a full or damaged disk.
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def check_source(path: Path, what: str) -> None:
    """Check that a file can be opened for reading.

    Args:
        path: of the file.
        what: what it should be, with its article, for the message: "a picture".

    Raises:
        AetherError: when it is missing, a folder, a pipe or not readable, or only
            stands for the file that was meant.
    """
    try:
        if stat.S_ISFIFO(path.stat().st_mode):  # opening it might wait for ever
            raise AetherError(f"This is a pipe; {what} has to be a file.", path)
        with path.open("rb") as file:
            head = file.read(64).lstrip().lower()
    except FileNotFoundError as error:
        raise AetherError("There is no such file.", path) from error
    except OSError as error:
        if os.path.isdir(path):
            raise AetherError(f"This is a folder, not {what}.", path) from error
        raise unreadable(error, path) from error
    if head.startswith(b"version https://git-lfs"):
        raise AetherError(
            f"This is only a pointer of Git LFS to {what}.", path, "Run git lfs pull."
        )
    if head.startswith((b"<!doctype html", b"<html")):
        raise AetherError(
            f"This is a web page, not {what}.",
            path,
            "Perhaps the page was saved that links to the file.",
        )


def unreadable(error: OSError, path: Path) -> AetherError:
    """The error to raise for a file that the system does not let us read."""
    return AetherError(f"Cannot be read: {system_reason(error)}.", path)


def unwritable(error: OSError, path: Path) -> AetherError:
    """The error to raise for a file that the system does not let us write."""
    return AetherError(f"Cannot be written: {system_reason(error)}.", path)


def one_phrase(text: str) -> str:
    """The reason in what a library says about a file that it could not write.

    Libraries repeat what the system said, line by line with the name of the file.
    """
    for number in WRITE_ERRORS:
        if os.strerror(number) in text:
            return os.strerror(number)
    lines = (line.strip() for line in text.splitlines())
    return next(filter(None, lines), "unknown reason").rstrip(".")


def check_target(path: Path, source: Path | None = None) -> None:
    """Check that a file can be written, before any work is done for it.

    Raises:
        AetherError: when it is a folder, its folder is missing or not writable, or it
            is the same file as `source`, from which it would be made.
    """
    if os.path.isdir(path):
        raise AetherError("Cannot be written: it is a folder.", path, "Name a file.")
    _check_parent(path)
    if source and os.path.exists(path) and os.path.samefile(path, source):
        raise AetherError(
            "The output would replace its own input.", path, "Name another output."
        )


def check_target_folder(path: Path) -> None:
    """Check that a folder can be made, before any work is done for it.

    Raises:
        AetherError: when it is a file, or the folder around it is missing or not
            writable.
    """
    if path.exists() and not path.is_dir():
        raise AetherError("This is a file.", path, "Name a folder.")
    _check_parent(path)


def files_in(folder: Path, suffixes: Sequence[str], what: str) -> list[Path]:
    """Files of these suffixes in a folder, not below, sorted, without hidden ones.

    Raises:
        AetherError: when there are none, or the folder cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise unreadable(error, folder) from error
    found = [folder / name for name in names if not name.startswith(".")]
    found = [path for path in found if path.suffix.lower() in suffixes]
    if not found:
        raise AetherError(f"There are no {what} here ({', '.join(suffixes)}).", folder)
    return found


@contextlib.contextmanager
def parent_made(path: Path) -> Iterator[None]:
    """Make the folder of a file that is to be written in this block.

    Folders that were made are removed again when the block raises.

    Raises:
        AetherError: when it cannot be made.
    """
    missing = [one for one in Path(os.path.abspath(path)).parents if not one.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(error, path) from error
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # another process has put something there
            for folder in missing:
                folder.rmdir()
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; move it to `path` when the block ends well.

    The temporary file lies in the same folder and has the same suffix (libraries choose
    the format by it). It is flushed to the disk before it takes the place of `path`,
    and removed when the block raises. Of a symbolic link, the file it leads to is
    replaced. A file that is replaced keeps its permissions.

    Raises:
        AetherError: as `check_target`, before the block is entered; when writing
            fails; or when the block cannot open another file, which is then named.
            Errors of the block that speak of the temporary file come out as errors of
            `path`.
    """
    path = Path(path)
    check_target(path)
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    if place != path:
        check_target(place)
    _remove_left_over(place)
    temporary = temporary_path(place)
    with _errors_about(path, temporary):
        mode = stat.S_IMODE(place.stat().st_mode) if place.exists() else None
        try:  # before the file is there: a signal may end the program at any point
            temporary.touch(mode=0o600 if mode is not None else 0o666, exist_ok=False)
            with _held(temporary):
                yield temporary
                _flush_to_disk(temporary)
                if mode is not None:
                    temporary.chmod(mode)
                os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
        if os.name == "posix":  # elsewhere a folder cannot be opened to be flushed
            _flush_to_disk(place.parent)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill; move it to `path` when the block ends well.

    It lies beside `path`, and is removed when the block raises. A folder that was there
    before is removed once the new one has its place. Errors of the block about files in
    the new folder come out as errors of the same names in `path`.

    Raises:
        AetherError: when it cannot be made, or `path` is something else than a folder.
    """
    path = Path(os.path.realpath(path))
    check_target_folder(path)
    _remove_left_over(path)
    temporary = temporary_path(path)
    with _errors_about(path, temporary):
        try:
            temporary.mkdir()
            with _held(temporary):
                yield temporary
                if os.name == "posix":
                    for folder, *_ in os.walk(temporary):
                        _flush_to_disk(Path(folder))
                _exchange(temporary, path)
            if os.name == "posix":
                _flush_to_disk(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _errors_about(path: Path, temporary: Path) -> Iterator[None]:
    """A block that writes `temporary`: its errors name `path`, or what really failed.

    An OSError without a file name that is not about space or the device may come from
    anywhere, so it is left as it is.
    """
    try:
        yield
    except AetherError as error:
        if error.path is None or not error.path.is_relative_to(temporary):
            raise
        raise error.about(path / error.path.relative_to(temporary)) from error
    except OSError as error:
        failed = None if error.filename is None else Path(os.fsdecode(error.filename))
        if failed is None and error.errno not in WRITE_ERRORS:
            raise
        if failed is None or failed == path or failed.is_relative_to(temporary):
            raise unwritable(error, path) from error
        if failed in (path.parent, temporary.parent):  # while it is flushed
            raise unwritable(error, path) from error
        raise AetherError(
            f"Cannot be opened while {path} is written: {system_reason(error)}.",
            failed,
        ) from error


def temporary_path(path: Path) -> Path:
    """A name for what is to become `path`: hidden, beside it, with its suffix."""
    ending = f".{secrets.token_hex(4)}.part{path.suffix}"
    stem = path.stem
    while stem and len(os.fsencode(f".{stem}{ending}")) > LONGEST_NAME:
        stem = stem[:-1]
    return path.with_name(f".{stem}{ending}")


# Names of `temporary_path`.
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.part(\.\w+)?", re.DOTALL)

# Seconds since the last change from which a temporary file that nobody holds counts as
# left over: of the same target, and of others, which some programs write unheld.
_STALE_SECONDS, _STALE_SECONDS_OF_OTHERS = 2, 600
# Of any, where nothing but an open file shows that one is in use.
_STALE_SECONDS_ON_WINDOWS = 3600

HAS_LOCKS = os.name == "posix"
"""Whether a lock shows that a temporary file is in use, which Windows has not."""

_cleaned: set[Path] = set()
"""Folders from which this process has removed what was left over."""


@contextlib.contextmanager
def _held(temporary: Path) -> Iterator[None]:
    """Show other processes in this block that a temporary file or folder is in use."""
    if not HAS_LOCKS:
        yield
        return
    import fcntl

    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_left_over(target: Path) -> None:
    """Remove temporary files that killed processes have left in a target's folder."""
    if target.parent in _cleaned:
        return
    _cleaned.add(target.parent)
    with contextlib.suppress(OSError):  # the folder may be writable and not readable
        for name in filter(_TEMPORARY.fullmatch, os.listdir(target.parent)):
            path = target.parent / name
            same = name.startswith(f".{target.stem}.") and path.suffix in (
                *(target.suffix, ".part"),
            )
            least = _STALE_SECONDS if same else _STALE_SECONDS_OF_OTHERS
            if not HAS_LOCKS:
                least = _STALE_SECONDS_ON_WINDOWS
            # Or in the future: the clock was set back.
            age = abs(time.time() - path.lstat().st_mtime)
            if age > least and not _is_held(path):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _is_held(temporary: Path) -> bool:
    if not HAS_LOCKS:
        try:
            temporary.rename(temporary)  # Windows refuses it for what is open
        except OSError:
            return True
        return False
    import fcntl

    try:
        descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def command_line(words: Sequence[object]) -> str:
    """Words as one line to be pasted into this system's shell."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def _check_parent(path: Path) -> None:
    if not os.path.isdir(path.parent):
        raise AetherError(
            f"Cannot be written: the folder {path.parent} does not exist.", path
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise AetherError("Cannot be written: its folder is not writable.", path)


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


PLOT_SUFFIXES = (".png", ".svg")


def sha256_of(path: Path) -> str:
    """The digest of a file's content, in hexadecimal.

    Raises:
        AetherError: when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(error, path) from error
