"""Folders on local and remote storage: list them, name targets, copy files."""

import contextlib
import errno
import os
import re
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aethernet.errors import AetherError, import_optional
from aethernet.pictures.files import READABLE, SUFFIXES
from aethernet.upscaling.folders import Source, name_targets, natural_order

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


# File systems whose files appear whole when they are closed, and that have no folders.
_OBJECT_STORES = ("s3", "gcs", "abfs")

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class Location:
    """A file below a folder that pyarrow knows: a URI, or an absolute local path."""

    root: str
    path: str
    """Below the root, "/" between folders."""

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    def __str__(self) -> str:
        return f"{without_keys(self.root).rstrip('/')}/{self.path}"


@dataclass(frozen=True)
class RemoteJob:
    """A `Job` whose files may lie in another kind of storage."""

    source: Location
    target: Location


@dataclass(frozen=True)
class RemotePlan:
    """What to do, and what was finished before; as `folders.Plan`."""

    jobs: tuple[RemoteJob, ...]
    done: tuple[RemoteJob, ...] = ()


def is_remote(name: str) -> bool:
    """Whether a word on the command line is a URI, such as s3://bucket/folder."""
    return _REMOTE.match(name) is not None


def remote_plan(
    source: str,
    output: str,
    *,
    suffix: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
) -> RemotePlan:
    """Find the pictures below a folder, and name what is to be made of them.

    Names are those that `folders.plan` gives; nothing is read but lists of names.

    Args:
        source, output: folders, each a URI or a local path.
        suffix: goes between a name and its format.
        format: of the outputs, e.g. ".png"; None for that of each source.
        overwrite: make those again whose target exists.

    Raises:
        AetherError: when there is no such folder or no picture in it, it cannot be
            listed, or the outputs would go where the sources are.
    """
    if format is not None and format.lower() not in SUFFIXES:
        raise AetherError(
            f"Cannot write {format} files; the formats are {', '.join(SUFFIXES)}."
        )
    roots = [n if is_remote(n) else os.path.abspath(n) for n in (source, output)]
    inside = _below(*roots)
    if inside == "":
        raise AetherError(
            f"{without_keys(output)} is the folder of the pictures: name another one "
            "for the outputs."
        )
    found = [
        Path(name)
        for name in _names(roots[0], must_exist=True)
        if PurePosixPath(name).suffix.lower() in READABLE
        and not any(part.startswith(".") for part in name.split("/"))
        and not (inside and name.startswith(f"{inside}/"))
    ]
    if not found:
        raise AetherError(
            f"There is no picture in {without_keys(source)}; looked for names that end "
            f"in {', '.join(READABLE)}."
        )
    found.sort(key=natural_order)
    sources = [Source(path, path) for path in found]
    targets = name_targets(sources, Path(), suffix or "", format, os.fspath)
    finished = set() if overwrite else _names(roots[1], must_exist=False)
    jobs = [
        RemoteJob(
            Location(roots[0], name.as_posix()), Location(roots[1], target.as_posix())
        )
        for name, target in zip(found, targets, strict=True)
    ]
    return RemotePlan(
        tuple(job for job in jobs if job.target.path not in finished),
        tuple(job for job in jobs if job.target.path in finished),
    )


def upload(local: Path, files: "FileSystem", path: str, name: str) -> None:
    """Send a file under a name of its own, and move it into place once it is whole."""
    parent = path.rpartition("/")[0]
    begun = f"{parent}/{name}"
    if files.type_name not in _OBJECT_STORES:
        files.create_dir(parent, recursive=True)
    try:
        with local.open("rb") as file, files.open_output_stream(begun) as stream:
            shutil.copyfileobj(file, stream, 2**20)
        # When writing fails, closing may make a whole file of what was sent.
        if files.get_file_info(begun).size != local.stat().st_size:
            raise OSError(errno.EIO, "what arrived is not what was sent")
        files.move(begun, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.delete_file(begun)
        raise


@lru_cache(maxsize=16)
def _file_system(root: str) -> tuple["FileSystem", str]:
    """Who has that folder, and what it calls it.

    Raises:
        AetherError: when pyarrow has nothing for such URIs.
    """
    fs = import_optional("pyarrow.fs", "cluster")
    try:
        if is_remote(root):
            return fs.FileSystem.from_uri(root)
        return fs.LocalFileSystem(), Path(root).as_posix()
    except (OSError, ValueError) as error:
        raise AetherError(
            f"Cannot reach {without_keys(root)}: {first_line(error)}"
        ) from error


def reached(location: Location) -> tuple["FileSystem", str]:
    files, base = _file_system(location.root)
    return files, f"{base.rstrip('/')}/{location.path}"


def _names(root: str, *, must_exist: bool) -> set[str]:
    """Paths of all files below a folder."""
    files, base = _file_system(root)
    base = base.rstrip("/")
    fs = import_optional("pyarrow.fs", "cluster")
    selector = fs.FileSelector(base, recursive=True, allow_not_found=not must_exist)
    try:
        found = files.get_file_info(selector)
    except FileNotFoundError as error:
        raise AetherError(f"There is no folder {without_keys(root)}.") from error
    except OSError as error:
        raise AetherError(
            f"Cannot list {without_keys(root)}: {first_line(error)}"
        ) from error
    return {info.path[len(base) + 1 :] for info in found if info.is_file}


def _below(source: str, output: str) -> str | None:
    """Where the output folder is in that of the sources: "" is itself, None nowhere."""
    (theirs, base), (ours, inner) = _file_system(source), _file_system(output)
    base, inner = base.rstrip("/"), inner.rstrip("/")
    if theirs.type_name != ours.type_name:
        return None
    if inner == base:
        return ""
    return inner[len(base) + 1 :] if inner.startswith(f"{base}/") else None


def without_keys(root: str) -> str:
    """A URI without the words of access that it may hold."""
    if not is_remote(root):
        return root
    parts = urlsplit(root)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"//[^/@]*@", "//", text)  # words of access in a URI
    return text if text.endswith((".", "!")) else f"{text}."
