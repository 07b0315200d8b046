"""Plan which pictures to upscale and where to: folders, patterns, names of outputs.

No picture is read here. A plan depends only on the flags and on the files in the
folders. Started again, an interrupted run therefore continues where it stopped.

Outputs keep the names of their sources, with a suffix if one is wanted. Two outputs may
get the same name: photo.jpg and photo.png, both to .png; Photo.jpg and photo.jpg; é as
one character and as e with an accent. Each of them then gets a mark, eight digits of
the SHA-256 of its own source's name. This happens on every system, also where the names
would differ, because pictures are moved between systems. None of them keeps the plain
name, so an output is never mistaken for that of another source. A picture added to the
folder later can only cause its namesake to be upscaled again, under a new name.
"""

import functools
import glob
import hashlib
import logging
import os
import re
import stat
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aethernet.errors import AetherError, system_reason
from aethernet.files import LONGEST_NAME, check_source, check_target
from aethernet.pictures.files import READABLE, SUFFIXES, check_format

_log = logging.getLogger(__name__)

# Written in place of a format that can only be read.
_FALLBACK = ".png"

# Without its prefix for longer paths, Windows accepts 259 characters, 247 for a folder.
# While a file is written, its name is 15 characters longer.
_LONGEST_PLAIN_PATH = 240

# Characters that some system does not accept in a name.
_NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f]')

# The marks of outputs that would have had the same name, and the default suffixes.
_MARK = re.compile(r"-(?:[0-9a-f]{8})+$")
_DEFAULT_SUFFIX = r"_(?:\d+(?:\.\d+)?x|upscaled)"

# Suffixes that a note names; the rest are counted together.
_SHOWN_SUFFIXES = 8


@dataclass(frozen=True)
class Job:
    """A picture to upscale, and the file to write."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job; sizes are (width, height) in pixels."""

    job: Job
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    """Why it was skipped or failed."""
    size_before: tuple[int, int] | None = None
    size_after: tuple[int, int] | None = None
    seconds: float | None = None
    left_out: tuple[str, ...] = ()
    """What the source carries and the target cannot hold, in words."""
    error: AetherError | None = None
    """Why it failed; None where only the reason is known."""


@dataclass(frozen=True)
class Plan:
    """The jobs of a run, in natural order: frame2 before frame10."""

    jobs: tuple[Job, ...]
    done: tuple[Job, ...] = ()
    """Jobs whose target exists. A target gets its name when complete, so it is done."""
    folders: tuple[Path, ...] = ()
    """Folders that `prepare` makes; empty without an output folder."""


@dataclass(frozen=True)
class Source:
    """A picture to upscale."""

    path: Path
    name: Path
    """Its path inside an output folder, before the suffix or the format change."""


def plan(
    inputs: Sequence[str | Path],
    output: str | Path | None,
    *,
    suffix: str | None,
    scale_suffix: Callable[[], str],
    format: str | None,
    overwrite: bool,
) -> Plan:
    """Find the pictures and name their outputs.

    A file named as input is taken whatever its suffix. Folders with their subfolders,
    and patterns that the shell did not expand, give files with suffixes in `READABLE`.
    Hidden files and folders are ignored. Nothing is taken twice, also when links form
    circles. Outputs that an earlier run left beside their sources are left out.

    Args:
        inputs: files, folders and patterns.
        output: None for files beside their sources. For a single file the name of the
            output, which is replaced if it exists. Otherwise a folder, which gets the
            structure of the searched folder; of several inputs each folder keeps its
            own name there. To name a new folder for a single file, end the `str` with a
            separator.
        suffix: goes between the name and the format; None or "": no suffix, but
            `scale_suffix` for outputs beside their sources.
        scale_suffix: makes that suffix, e.g. "_2x". Called only if it is needed, when
            the inputs are known to exist.
        format: of the outputs, e.g. ".png"; None: as each source, else PNG.
        overwrite: also make outputs that exist.

    Raises:
        AetherError: when an input is missing or has no picture, `output` is not a
            folder and has to be one, or an output would replace an input.
    """
    _check_naming(suffix, format)
    paths = _expand(inputs)
    folder = None
    if output is not None:
        named = paths == [Path(name) for name in inputs]
        folder = _output_folder(paths, output, may_be_file=named)
        if folder is None:
            return _plan_of_one(paths[0], Path(output), suffix, format)
    real = functools.cache(os.path.realpath)
    sources = _unique(_sources(paths, folder, suffix), real)
    ending = suffix or ("" if folder else scale_suffix())
    if ending:
        sources = _without_earlier_outputs(sources, folder, ending, real)
    _check_found(sources, inputs)
    sources.sort(key=lambda source: natural_order(source.path))
    targets = name_targets(sources, folder, ending, format, real)
    _check_none_is_replaced(sources, targets, real)
    jobs = [
        Job(_reachable(source.path), _reachable(target))
        for source, target in zip(sources, targets, strict=True)
    ]
    finished = (job for job in jobs if not overwrite and os.path.isfile(job.target))
    done = dict.fromkeys(finished)
    to_do = [job for job in jobs if job not in done]
    folders = dict.fromkeys(job.target.parent for job in to_do) if folder else ()
    return Plan(tuple(to_do), tuple(done), tuple(folders))


def _check_naming(suffix: str | None, format: str | None) -> None:
    """Check the suffix and the format of the outputs."""
    if suffix and _NOT_IN_NAMES.search(suffix):
        raise AetherError(
            f"The suffix {suffix!r} is not allowed in file names on every system.",
            hint="Use letters, digits, - and _.",
        )
    if format is not None and format.lower() not in SUFFIXES:
        raise AetherError(
            f"Cannot write {format} files; the formats are {', '.join(SUFFIXES)}."
        )


def _check_found(sources: list[Source], inputs: Sequence[str | Path]) -> None:
    if not sources:
        raise AetherError(
            f"There is no picture in {_enumerated(inputs)}.",
            hint=f"Names of pictures end in {', '.join(READABLE)}.",
        )


def _plan_of_one(
    source: Path, target: Path, suffix: str | None, format: str | None
) -> Plan:
    """The plan for a single file whose output is named."""
    if suffix or format:
        raise AetherError(
            "The output is named as a file; --suffix and --format only name outputs "
            "in a folder, or beside their sources.",
            target,
        )
    return Plan((Job(_reachable(source), _reachable(target)),))


def prepare(plan: Plan) -> None:
    """Make the plan's output folders.

    Raises:
        AetherError: when a folder cannot be made.
    """
    for folder in plan.folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AetherError(
                f"Cannot make the folder: {system_reason(error)}.", folder
            ) from error


def check_targets(jobs: Iterable[Job]) -> None:
    """Check that outputs can be written, before a model is opened.

    A run of many pictures goes on after one that fails, so one good target is enough.

    Raises:
        AetherError: when no target can be written: that of the first.
    """
    failures = []
    for job in jobs:
        try:
            check_format(job.target)
            check_target(job.target, job.source)
        except AetherError as error:
            failures.append(error)
        else:
            return
    if failures:
        raise failures[0]


def extended(path: str) -> str:
    r"""Prefix a path too long for Windows: `\\?\C:\..` or `\\?\UNC\server\..`.

    Args:
        path: absolute and normalized, as from `os.path.abspath`, because Windows does
            not interpret what follows the prefix.
    """
    if len(path) <= _LONGEST_PLAIN_PATH or path.startswith(("\\\\?\\", "\\\\.\\")):
        return path
    if path.startswith("\\\\"):
        return "\\\\?\\UNC" + path[1:]
    return "\\\\?\\" + path


def _reachable(path: Path) -> Path:
    if os.name != "nt":
        return path
    long = extended(os.path.abspath(path))
    return Path(long) if long.startswith("\\\\?\\") else path


def _expand(inputs: Sequence[str | Path]) -> list[Path]:
    """The inputs as paths that exist, patterns replaced by what they match."""
    paths = []
    for each in inputs:
        name = os.fspath(each)
        path = _reachable(Path(each))
        if os.path.lexists(path) or not glob.has_magic(name):
            if not os.path.exists(path):
                check_source(path, "a picture")  # raises with the reason
            paths.append(Path(each))
            continue
        found = sorted(glob.glob(_with_folders_escaped(name), recursive=True))
        matched = [Path(match) for match in found]
        matches = [path for path in matched if path.is_dir() or _is_picture(path)]
        passed = Counter(p.suffix.lower() for p in matched if p not in matches)
        if not matches:
            raise AetherError("There is no such file, and no picture matches it.", name)
        _note_passed(name, passed)
        paths += matches
    return paths


def _with_folders_escaped(pattern: str) -> str:
    """The pattern, with brackets in the name of a folder that exists taken as such."""
    path = Path(pattern)
    for folder in path.parents:  # the longest first
        if glob.has_magic(str(folder)) and os.path.isdir(folder):
            inside = path.relative_to(folder)
            return os.path.join(glob.escape(str(folder)), inside)
    return pattern


def _output_folder(
    paths: list[Path], output: str | Path, *, may_be_file: bool
) -> Path | None:
    """`output` if it is to be a folder; None if it names a single file.

    A pattern counts as several inputs, even if it matches one file only.
    """
    path, reachable = Path(output), _reachable(Path(output))
    several = len(paths) != 1 or os.path.isdir(_reachable(paths[0])) or not may_be_file
    separators = tuple(filter(None, (os.sep, os.altsep)))
    if os.path.isdir(reachable) or os.fspath(output).endswith(separators):
        if os.path.exists(reachable) and not os.path.isdir(reachable):
            raise AetherError("This is a file, not a folder.", path)
        return path
    if not several:
        return None
    if os.path.exists(reachable) or path.suffix.lower() in SUFFIXES:
        raise AetherError(
            "This names a file; several inputs, or a folder, need an output folder.",
            path,
            "Name a folder, or leave -o out to write beside each input.",
        )
    return path


def _sources(
    paths: list[Path], output: Path | None, suffix: str | None
) -> Iterable[Source]:
    for path in paths:
        if not os.path.isdir(_reachable(path)):
            yield Source(path, Path(path.name))
            continue
        inside = Path()
        if len(paths) > 1:
            inside = Path(os.path.basename(os.path.abspath(path)))
        if output and _same(path, output) and (inside.parts or not suffix):
            hint = "Name another output folder."
            if not inside.parts:
                hint = "Name another output folder, or a suffix (--suffix)."
            raise AetherError("This is the folder of the pictures.", output, hint)
        found, passed = _search(path, output)
        _note_passed(path, passed)
        if not found:
            _log.warning("there is no picture in %s", path)
        for picture in found:
            yield Source(picture, inside / picture.relative_to(path))


def _note_passed(where: str | Path, passed: Counter[str]) -> None:
    """Say how many files were not looked at, by suffix."""
    if not passed:
        return
    counts = [
        f"{count} {suffix or 'without a suffix'}"
        for suffix, count in passed.most_common(_SHOWN_SUFFIXES)
    ]
    more = passed.total() - sum(n for _, n in passed.most_common(_SHOWN_SUFFIXES))
    _log.warning(
        "%s: %d %s not looked at, by the suffix: %s%s",
        *(where, passed.total(), "file" if passed.total() == 1 else "files"),
        *(", ".join(counts), f", {more} others" if more else ""),
    )


def _search(root: Path, output: Path | None) -> tuple[list[Path], Counter[str]]:
    """Search a folder and its subfolders but the output folder.

    Returns:
        The pictures, in any order, and how many other files there are, by suffix.
    """
    found = []
    passed = Counter[str]()
    searched = set()
    pending = deque([root])
    while pending:
        folder = pending.popleft()
        real = os.path.realpath(folder)
        if real in searched or (output and folder != root and _same(folder, output)):
            continue
        searched.add(real)
        try:
            names = os.listdir(_reachable(folder))
        except OSError as error:
            _log.warning("cannot search %s: %s", folder, error.strerror)
            continue
        for name in names:
            path = folder / name
            if name.startswith("."):
                continue
            if not os.path.isdir(_reachable(path)):
                if _is_picture(path):
                    found.append(path)
                else:
                    passed[path.suffix.lower()] += 1
            elif os.path.islink(_reachable(path)):
                pending.append(path)  # last, so that folders keep their own names
            else:
                pending.appendleft(path)
    return found, passed


def _is_picture(path: Path) -> bool:
    """Whether a file has the name of a picture.

    A broken link counts, so that reading it reports the error. A pipe does not, because
    reading it could wait for ever.
    """
    try:
        regular = stat.S_ISREG(os.stat(_reachable(path)).st_mode)
    except OSError:
        regular = True
    return regular and path.suffix.lower() in READABLE


def _same(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(_reachable(first), _reachable(second))
    except OSError:
        return False


def _place(path: Path, real: Callable[[Path], str]) -> str:
    """The path with all links resolved except that of the file itself."""
    return os.path.join(real(path.parent), path.name)


def _folded(path: str) -> str:
    """A key that is equal for names that some system takes for the same.

    Such systems ignore case, or the normal form of accented characters.
    """
    decomposed = unicodedata.normalize("NFD", path)
    return unicodedata.normalize("NFD", decomposed.casefold())


def natural_order(path: Path) -> tuple[list[list[int | str]], str]:
    """A key that sorts numbers in names by their value."""
    parts = [re.split("([0-9]+)", part.casefold()) for part in path.parts]
    key = [[int(p) if i % 2 else p for i, p in enumerate(part)] for part in parts]
    return key, str(path)


def _unique(sources: Iterable[Source], real: Callable[[Path], str]) -> list[Source]:
    first: dict[str, Source] = {}
    for source in sources:
        first.setdefault(_place(source.path, real), source)
    return list(first.values())


def _without_earlier_outputs(
    sources: list[Source],
    output: Path | None,
    suffix: str,
    real: Callable[[Path], str],
) -> list[Source]:
    """Leave out files named like another source in their folder plus a suffix.

    This applies only to folders that also get outputs. The default suffixes count even
    if this run uses another. A warning names the files, since a shell may have named
    them as inputs, for `*.jpg`.
    """
    ending = re.compile(rf"(.+)(?:{re.escape(suffix)}|{_DEFAULT_SUFFIX})", re.DOTALL)
    stems = {(real(s.path.parent), _folded(s.path.stem)) for s in sources}
    kept = []
    for source in sources:
        folder = real(source.path.parent)
        beside = output is None or real((output / source.name).parent) == folder
        match = ending.fullmatch(source.path.stem)
        if beside and match:
            bases = (match[1], _MARK.sub("", match[1]))
            if any((folder, _folded(base)) in stems for base in bases):
                _log.warning("left out %s, an output of an earlier run", source.path)
                continue
        kept.append(source)
    return kept


def name_targets(
    sources: list[Source],
    output: Path | None,
    suffix: str,
    format: str | None,
    real: Callable[[Path], str],
) -> list[Path]:
    """Paths of the outputs, all different, and none the folder of another.

    Args:
        sources: to name outputs for.
        output: folder; None for outputs beside their sources.
        suffix: goes between the name and the format.
        format: of the outputs, e.g. ".png"; None for that of each source.
        real: resolves the links in a path.
    """
    # The name inside the searched folder does not change when that folder is moved.
    count = Counter(source.name for source in sources)
    digests = [
        hashlib.sha256(
            os.fsencode(
                source.name.as_posix()
                if count[source.name] == 1
                else _place(source.path, real)
            )
        ).hexdigest()
        for source in sources
    ]
    digits = [0] * len(sources)
    while True:
        targets = [
            (output / source.name if output else source.path).with_name(
                _target_name(source.path, digest[:shown], suffix, format)
            )
            for source, digest, shown in zip(sources, digests, digits, strict=True)
        ]
        keys = [_folded(_place(target, real)) for target in targets]
        folders = {folder for target in targets for folder in target.parents}
        taken = Counter(keys)
        taken.update({_folded(_place(folder, real)) for folder in folders})
        clashing = [i for i, key in enumerate(keys) if taken[key] > 1]
        if not clashing:
            return targets
        for i in clashing:  # eight digits, or eight more if that is not enough
            digits[i] += 8


def _target_name(source: Path, mark: str, suffix: str, format: str | None) -> str:
    """The source's name with mark, suffix and format, cut to the longest allowed."""
    kept = source.suffix if source.suffix.lower() in SUFFIXES else _FALLBACK
    ending = f"-{mark}" * bool(mark) + suffix + (format or kept)
    stem = source.stem
    while stem and len(os.fsencode(stem + ending)) > LONGEST_NAME:
        stem = stem[:-1]
    return stem + ending


def _check_none_is_replaced(
    sources: list[Source], targets: list[Path], real: Callable[[Path], str]
) -> None:
    by_place = {_folded(_place(s.path, real)): s.path for s in sources}
    for target in targets:
        source = by_place.get(_folded(_place(target, real)))
        if source and _same(source, target):
            raise AetherError(
                "This output would replace one of the inputs.",
                target,
                "Name another output folder, or a suffix (--suffix).",
            )


def _enumerated(inputs: Sequence[str | Path]) -> str:
    shown = [str(each) for each in inputs[:3]]
    return ", ".join(shown) + (", .." if len(inputs) > len(shown) else "")
