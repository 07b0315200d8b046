"""Local and remote storage: list folders, plan jobs, upload files, clean up.

`pyarrow.fs` reaches remote storage. A folder there is named by a URI, which may hold
access keys; texts for people and logs leave them out.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aethernet.errors import AetherError, first_line, import_optional
from aethernet.pictures.files import READABLE, SUFFIXES
from aethernet.upscaling.folders import Source, name_targets, natural_order

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

# File systems without folders, where a file appears only when it is complete.
_OBJECT_STORES = ("s3", "gcs", "abfs")

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class Location:
    """A file below a folder, which may be in remote storage."""

    root: str
    """The folder: a URI that pyarrow knows, or an absolute local path."""
    path: str
    """From there to the file, with "/" between folders."""

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    def __str__(self) -> str:
        """The address of the file, without access keys."""
        return f"{without_keys(self.root).rstrip('/')}/{self.path}"


@dataclass(frozen=True)
class RemoteJob:
    """As `folders.Job`, for files that may be in remote storage."""

    source: Location
    target: Location


@dataclass(frozen=True)
class RemotePlan:
    """As `folders.Plan`, for files that may be in remote storage."""

    jobs: tuple[RemoteJob, ...]
    done: tuple[RemoteJob, ...] = ()
    """Jobs whose target exists."""


def is_remote(name: str) -> bool:
    """Whether a name is a URI, such as s3://bucket/folder."""
    return _REMOTE.match(name) is not None


def remote_plan(
    source: str,
    output: str,
    *,
    suffix: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
) -> RemotePlan:
    """Find the pictures below a folder and name their outputs as `folders.plan` does.

    No picture is read.

    Args:
        source: folder of the pictures, a URI or a local path.
        output: folder for the outputs, likewise.
        suffix: goes between a name and its format.
        format: of the outputs, e.g. ".png"; None for that of each source.
        overwrite: plan pictures again whose target exists.

    Raises:
        AetherError: when a folder is missing, has no picture or cannot be listed, or
            the outputs would go where the sources are.
        MissingExtraError: when pyarrow is not installed.
    """
    if format is not None and format.lower() not in SUFFIXES:
        raise AetherError(
            f"Cannot write {format} files; the formats are {', '.join(SUFFIXES)}."
        )
    source, output = _absolute(source), _absolute(output)
    found = _pictures(source, output)
    targets = name_targets(
        [Source(path, path) for path in found], Path(), suffix or "", format, os.fspath
    )
    finished = set() if overwrite else _file_names(output, must_exist=False)
    jobs = [
        RemoteJob(
            Location(source, picture.as_posix()), Location(output, target.as_posix())
        )
        for picture, target in zip(found, targets, strict=True)
    ]
    return RemotePlan(
        tuple(job for job in jobs if job.target.path not in finished),
        tuple(job for job in jobs if job.target.path in finished),
    )


def _absolute(folder: str) -> str:
    return folder if is_remote(folder) else os.path.abspath(folder)


def _pictures(source: str, output: str) -> list[Path]:
    """Pictures below the source, but not below the output, relative to the source."""
    inside = _path_below(source, output)
    if inside == "":
        raise AetherError(
            "This is the folder of the pictures.",
            without_keys(output),
            "Name another one for the outputs.",
        )
    found = [
        Path(name)
        for name in _file_names(source, must_exist=True)
        if PurePosixPath(name).suffix.lower() in READABLE
        and not any(part.startswith(".") for part in name.split("/"))
        and not (inside and name.startswith(f"{inside}/"))
    ]
    if not found:
        raise AetherError(
            f"There is no picture here; looked for {', '.join(READABLE)}.",
            without_keys(source),
        )
    return sorted(found, key=natural_order)


def upload(local: Path, files: "FileSystem", path: str, temporary_name: str) -> None:
    """Send a file under a temporary name, and move it into place when it is complete.

    Args:
        local: the file to send.
        files: the file system to send it to.
        path: its path there.
        temporary_name: its name in the same folder meanwhile.

    Raises:
        OSError: when it cannot be sent, or does not arrive complete.
    """
    parent = path.rpartition("/")[0]
    unfinished = f"{parent}/{temporary_name}"
    if files.type_name not in _OBJECT_STORES:
        files.create_dir(parent, recursive=True)
    try:
        with local.open("rb") as file, files.open_output_stream(unfinished) as stream:
            shutil.copyfileobj(file, stream, 2**20)
        # When writing fails, closing the stream may complete what was sent until then.
        if files.get_file_info(unfinished).size != local.stat().st_size:
            raise OSError(errno.EIO, "what arrived is not what was sent")
        files.move(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.delete_file(unfinished)
        raise


def file_system(location: Location) -> tuple["FileSystem", str]:
    """The file system that holds a file, and its path there.

    Raises:
        AetherError: when pyarrow has no file system for the URI.
        MissingExtraError: when pyarrow is not installed.
    """
    files, base = _file_system_of(location.root)
    return files, f"{base}/{location.path}"


@lru_cache(maxsize=16)
def _file_system_of(root: str) -> tuple["FileSystem", str]:
    """The file system that holds a folder, and its path there, without a last "/"."""
    fs = import_optional("pyarrow.fs", "cluster")
    try:
        if is_remote(root):
            files, base = fs.FileSystem.from_uri(root)
        else:
            files, base = fs.LocalFileSystem(), Path(root).as_posix()
    except (OSError, ValueError) as error:
        raise AetherError(
            f"Cannot be reached: {reason_without_keys(error)}", without_keys(root)
        ) from error
    return files, base.rstrip("/")


def _file_names(root: str, *, must_exist: bool) -> set[str]:
    """Paths of all files below a folder, relative to it."""
    files, base = _file_system_of(root)
    fs = import_optional("pyarrow.fs", "cluster")
    selector = fs.FileSelector(base, recursive=True, allow_not_found=not must_exist)
    try:
        found = files.get_file_info(selector)
    except FileNotFoundError as error:
        raise AetherError("There is no such folder.", without_keys(root)) from error
    except OSError as error:
        raise AetherError(
            f"Cannot be listed: {reason_without_keys(error)}", without_keys(root)
        ) from error
    return {info.path[len(base) + 1 :] for info in found if info.is_file}


def _path_below(source: str, output: str) -> str | None:
    """Path from source to output; "" if they are the same, None if not below it."""
    (source_files, base), (output_files, inner) = map(_file_system_of, (source, output))
    if source_files.type_name != output_files.type_name:
        return None
    if inner == base:
        return ""
    return inner[len(base) + 1 :] if inner.startswith(f"{base}/") else None


def without_keys(root: str) -> str:
    """A URI without its access keys and options; any other text as it is."""
    if not is_remote(root):
        return root
    parts = urlsplit(root)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def reason_without_keys(error: BaseException) -> str:
    """The first line of a library's message as a sentence, without access keys."""
    text = re.sub(r"//[^/@]*@", "//", first_line(error))
    return text if text.endswith((".", "!")) else f"{text}."


def temporary_name(number: int, run: str, suffix: str) -> str:
    """Name of an output until it is complete.

    Args:
        number: of the job.
        run: which the file belongs to; no two runs have the same.
        suffix: of the output.
    """
    return f".{number}.{run}.part{suffix}"


def remove_unfinished(folders: Iterable[Path], run: str) -> None:
    """Remove the temporary files of a run from local folders."""
    for folder in folders:
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if f".{run}.part" in name:
                    (folder / name).unlink(missing_ok=True)
