"""Which pictures to make of which: folders, patterns, names of outputs.

Nothing here reads a picture. A plan is a function of the words on the command line and
of what lies in the folders, so that a run that was cut short goes on where it stopped
when it is started again.

Names of outputs keep those of the sources, with a suffix where one is wanted. Where two
outputs would get one name (photo.jpg and photo.png, both to .png; Photo.jpg and
photo.jpg; é as one character and as e with an accent), every one of them gets a mark,
eight digits of the SHA-256 of its own name, on every system, also one that could keep
them apart, since pictures travel. None of them keeps the plain name, so an output never
passes for that of a neighbour: a picture that comes into the folder later can cost its
namesake a new output under a new name, never a wrong one.
"""

import functools
import glob
import hashlib
import logging
import os
import re
import stat
import time
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aethernet.errors import AetherError
from aethernet.files import LONGEST_NAME, check_source
from aethernet.pictures.files import READABLE, SUFFIXES

_log = logging.getLogger(__name__)

# What becomes of a format that can be read and not written.
_FALLBACK = ".png"

# Windows takes 259 characters, 247 for a folder, without its prefix for longer paths;
# while a file is written, its name is 15 characters longer.
_LONGEST_PLAIN_PATH = 240

# Characters that some system does not take in a name.
_NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f]')

# The marks of outputs that would have had one name, and the suffixes nobody named.
_MARK = re.compile(r"-(?:[0-9a-f]{8})+$")

_DEFAULT_SUFFIX = r"_(?:\d+(?:\.\d+)?x|upscaled)"

# As `files.replacing` names what it is writing.
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.part(\.\w+)", re.DOTALL)

_STALE_SECONDS = 24 * 60 * 60


@dataclass(frozen=True)
class Job:
    """One picture to be made of another."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job; sizes are (width, height) in pixels."""

    job: Job
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    """Why it was skipped or failed."""
    size_before: tuple[int, int] | None = None
    size_after: tuple[int, int] | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """What to do, in natural order: frame2 before frame10."""

    jobs: tuple[Job, ...]
    done: tuple[Job, ...] = ()
    """Those whose target exists: it was moved into place whole, so it is finished."""
    folders: tuple[Path, ...] = ()
    """Those of the jobs' targets, where an output folder was named (see `prepare`)."""


@dataclass(frozen=True)
class Source:
    path: Path
    name: Path
    """What it is called in an output folder, with the folders it lies in."""


def plan(
    inputs: Sequence[str | Path],
    output: str | Path | None,
    *,
    suffix: str | None,
    scale_suffix: str,
    format: str | None,
    overwrite: bool,
) -> Plan:
    """Find the pictures and name what is to be made of them.

    A named file is taken whatever its suffix. Folders are searched to their depths,
    and patterns (where the shell left them to us) matched, for names in `READABLE`;
    hidden files and folders are not seen, and nothing is taken twice, also where links
    run in circles. Outputs that an earlier run left beside their sources are not taken
    for sources, and a warning says so: a shell names them too, for `*.jpg`.

    Args:
        inputs: files, folders and patterns.
        output: None for files beside their sources. A file's name for a single file,
            which is made anew where it exists; else a folder, into which the structure
            of the searched folder goes. Of several inputs each folder keeps its own
            name there. A name that is to be a folder and does not exist yet for a
            single file ends in a separator, which only a `str` can.
        suffix: goes between the name and its format; None or "" for none, and for
            `scale_suffix` where sources and targets share their folders.
        format: of the outputs, e.g. ".png"; None for that of each source, or PNG where
            that cannot be written.
        overwrite: make those again whose target exists.

    Raises:
        AetherError: when an input is not there or has no picture, `output` is no
            folder where one is needed, or an output would replace an input.
    """
    if suffix and _NOT_IN_NAMES.search(suffix):
        raise AetherError(
            f"The suffix {suffix!r} cannot stand in a file's name on every system; "
            "use letters, digits, - and _."
        )
    if format is not None and format.lower() not in SUFFIXES:
        raise AetherError(
            f"Cannot write {format} files; the formats are {', '.join(SUFFIXES)}."
        )
    words = _expand(inputs)
    folder = None
    if output is not None:
        named = words == [Path(word) for word in inputs]
        folder = _output_folder(words, output, may_be_file=named)
        if folder is None:
            if suffix or format:
                raise AetherError(
                    f"{output} names the file; --suffix and --format name those in an "
                    "output folder, or beside their sources."
                )
            return Plan((Job(_reachable(words[0]), _reachable(Path(output))),))
    real = functools.cache(os.path.realpath)
    sources = _unique(_sources(words, folder, suffix), real)
    ending = suffix or ("" if folder else scale_suffix)
    if ending:
        sources = _without_earlier_outputs(sources, folder, ending, real)
    if not sources:
        raise AetherError(
            f"There is no picture in {_enumerated(inputs)}; looked for names that end "
            f"in {', '.join(READABLE)}."
        )
    sources.sort(key=lambda source: natural_order(source.path))
    targets = name_targets(sources, folder, ending, format, real)
    _check_none_is_replaced(sources, targets, real)
    jobs = [
        Job(_reachable(source.path), _reachable(target))
        for source, target in zip(sources, targets, strict=True)
    ]
    finished = {job for job in jobs if not overwrite and os.path.isfile(job.target)}
    to_do = tuple(job for job in jobs if job not in finished)
    return Plan(
        to_do,
        tuple(job for job in jobs if job in finished),
        tuple(dict.fromkeys(job.target.parent for job in to_do)) if folder else (),
    )


def prepare(plan: Plan) -> None:
    """Make the plan's output folders; remove what a killed run left where it writes.

    Temporary files go when nobody has written to them for a day. If the one who did is
    only asleep, its picture fails with an error; nothing is mixed up.

    Raises:
        AetherError: when a folder cannot be made.
    """
    for folder in plan.folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AetherError(
                f"Cannot make the folder {folder}: {error.strerror}."
            ) from error
    for folder in {job.target.parent for job in plan.jobs}:
        try:
            names = os.listdir(folder)
        except OSError:  # not there, or not ours: each job will say so
            continue
        for name in names:
            match = _TEMPORARY.fullmatch(name)
            if match and match[1].lower() in SUFFIXES:
                _remove_if_stale(folder / name)


def extended(path: str) -> str:
    r"""A Windows path, also when it is too long: `\\?\C:\..`, `\\?\UNC\server\..`.

    Args:
        path: absolute and normal, as `os.path.abspath` gives it: after the prefix
            Windows takes every character as it stands.
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
    """Words as files and folders that exist; a pattern stands for what it matches."""
    paths = []
    for word in inputs:
        name = os.fspath(word)
        path = _reachable(Path(word))
        if os.path.lexists(path) or not glob.has_magic(name):
            if not os.path.exists(path):
                check_source(path, "a picture")  # says why
            paths.append(Path(word))
            continue
        matches = [
            Path(match)
            for match in sorted(glob.glob(name, recursive=True))
            if os.path.isdir(match) or _is_picture(Path(match))
        ]
        if not matches:
            raise AetherError(f"There is no file {name}, and no picture matches it.")
        paths += matches
    return paths


def _output_folder(
    words: list[Path], output: str | Path, *, may_be_file: bool
) -> Path | None:
    """`output` where it is to be a folder; None where it names a single file.

    What a pattern matches counts as several, also where it is one file today.
    """
    path, reachable = Path(output), _reachable(Path(output))
    several = len(words) != 1 or os.path.isdir(_reachable(words[0])) or not may_be_file
    separators = tuple(filter(None, (os.sep, os.altsep)))
    if os.path.isdir(reachable) or os.fspath(output).endswith(separators):
        if os.path.exists(reachable) and not os.path.isdir(reachable):
            raise AetherError(f"{path} is a file, not a folder.")
        return path
    if not several:
        return None
    if os.path.exists(reachable) or path.suffix.lower() in SUFFIXES:
        raise AetherError(
            f"{path} names a file; several inputs, or a folder, need an output folder, "
            "or none (-o) to write beside each."
        )
    return path


def _sources(
    words: list[Path], output: Path | None, suffix: str | None
) -> Iterable[Source]:
    for word in words:
        if not os.path.isdir(_reachable(word)):
            yield Source(word, Path(word.name))
            continue
        inside = Path()
        if len(words) > 1:
            inside = Path(os.path.basename(os.path.abspath(word)))
        if output and _same(word, output) and (inside.parts or not suffix):
            advice = "name another output folder"
            if not inside.parts:
                advice += ", or a suffix (--suffix)"
            raise AetherError(f"{output} is the folder of the pictures: {advice}.")
        found = _search(word, output)
        if not found:
            _log.warning("there is no picture in %s", word)
        for path in found:
            yield Source(path, inside / path.relative_to(word))


def _search(root: Path, output: Path | None) -> list[Path]:
    """Pictures in a folder and those in it, less the output folder; in no order."""
    found = []
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
            elif os.path.islink(_reachable(path)):
                pending.append(path)  # last: a folder goes by its own name
            else:
                pending.appendleft(path)
    return found


def _is_picture(path: Path) -> bool:
    """By its name; a broken link too, which is an error to be told of when it is read.

    Reading a pipe would wait for ever.
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
    """The path without links, but for the file itself."""
    return os.path.join(real(path.parent), path.name)


def _folded(path: str) -> str:
    """Equal for names that are one on a system blind to case or to normal forms."""
    decomposed = unicodedata.normalize("NFD", path)
    return unicodedata.normalize("NFD", decomposed.casefold())


def natural_order(path: Path) -> tuple[list[list[int | str]], str]:
    """Sorts numbers in names by their value."""
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
    """Leave out what has the name of another source and a suffix, in the same folder.

    Only where outputs go beside their sources; those of the default suffixes also when
    this run uses another.
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
    """Paths of the outputs; no two are one file, or one the folder of another."""
    # A name inside the searched folder stays the same where that folder is moved.
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
        for i in clashing:  # more digits where eight were not enough
            digits[i] += 8


def _target_name(source: Path, mark: str, suffix: str, format: str | None) -> str:
    """The source's name with mark, suffix and format, cut to what file systems take."""
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
                f"{target} is one of the inputs, which are not replaced: name another "
                "output folder, or a suffix (--suffix)."
            )


def _remove_if_stale(path: Path) -> None:
    try:
        if time.time() - path.lstat().st_mtime > _STALE_SECONDS:
            path.unlink()
            _log.info("removed %s, which a killed run left", path)
    except OSError:  # it may have gone, or be another's; nothing depends on it
        _log.debug("could not remove %s", path)


def _enumerated(words: Sequence[str | Path]) -> str:
    shown = [str(word) for word in words[:3]]
    return ", ".join(shown) + (", .." if len(words) > len(shown) else "")
