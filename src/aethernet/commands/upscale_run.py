"""What `aethernet upscale` does once its flags are parsed."""

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.shipped import find_model, shipped_model
from aethernet.commands.values import LOSSLESS
from aethernet.errors import AetherError
from aethernet.files import replacing
from aethernet.runtimes.registry import open_model

if TYPE_CHECKING:
    from aethernet.commands.progress import Progress
    from aethernet.runtimes.tiling import Tiled
    from aethernet.upscaling.files import Options
    from aethernet.upscaling.folders import Job


PIPE = "-"

_Y4M = b"YUV4MPEG2 "


def run_upscale(arguments: argparse.Namespace) -> int:
    inputs: list[str] = arguments.input
    if PIPE in inputs and len(inputs) > 1:
        raise AetherError("- is standard input; it goes with no other input.")
    if PIPE in (*inputs, arguments.output):
        return _through_pipes(arguments)
    if arguments.cluster is not None:
        return _on_a_cluster(arguments)
    if _is_video(inputs):
        return _video(arguments)
    return _pictures(arguments)


_FILE_FLAGS = ("--codec", "--crf", "--pixel-format", "--preview", "--start", "--end")

_VIDEO_FLAGS = (*_FILE_FLAGS, "--raw")

_PICTURE_FLAGS = (
    *("--scale", "--width", "--height", "--max-mp", "--format", "--quality"),
    *("--suffix", "--json", "--raw"),
)


def _pictures(arguments: argparse.Namespace) -> int:
    from aethernet.upscaling.files import upscale_files

    options = _options(arguments)
    to_do, done = _plan(arguments)
    start = time.perf_counter()
    model = None
    with _progress(arguments, to_do, done) as shown:
        failed = 0
        if to_do:
            model = _open(arguments)

            def advanced(job: "Job", pixels: int, of: int) -> None:
                if not pixels:
                    shown.started(job)
                shown.advanced(pixels, of)

            for outcome in upscale_files(to_do, model, options, advanced):
                failed += outcome.status == "failed"
                shown.finished(outcome)
    if model and failed < len(to_do):
        _say_how(arguments, model, time.perf_counter() - start)
    return 1 if failed else 0


def _on_a_cluster(arguments: argparse.Namespace) -> int:
    from aethernet.runtimes.tiling import DEFAULT_CONTEXT
    from aethernet.upscaling.cluster.run import upscale_on_cluster
    from aethernet.upscaling.cluster.storage import RemoteJob, is_remote, remote_plan
    from aethernet.upscaling.cluster.worker import ModelWords

    options = _options(arguments)
    names = [*arguments.input, arguments.output or ""]
    to_do: Sequence[Job] | Sequence[RemoteJob]
    done: Sequence[Job] | Sequence[RemoteJob]
    if any(map(is_remote, names)):
        _refuse(arguments, "pictures in a remote folder", _VIDEO_FLAGS)
        if len(arguments.input) > 1 or arguments.output is None:
            raise AetherError("A remote folder needs one folder in and one out (-o).")
        planned = remote_plan(
            *names,
            suffix=arguments.suffix,
            format=_format(arguments),
            overwrite=arguments.overwrite,
        )
        to_do, done = planned.jobs, planned.done
    else:
        to_do, done = _plan(arguments)
    context = arguments.context
    model = ModelWords(
        *(_model_path(arguments), arguments.runtime),
        *(arguments.device, arguments.precision, arguments.tile),
        DEFAULT_CONTEXT if context is None else context,
    )
    failed = 0
    with _progress(arguments, to_do, done) as shown:
        outcomes = upscale_on_cluster(
            *(to_do, model, options, arguments.cluster or None),
            overwrite=arguments.overwrite,
        )
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                failed += outcome.status == "failed"
                shown.finished(outcome)
    return 1 if failed else 0


def _plan(arguments: argparse.Namespace) -> "tuple[Sequence[Job], Sequence[Job]]":
    """Jobs to do, whose folders are there then, and those done before."""
    from aethernet.upscaling.folders import plan, prepare

    _refuse(arguments, "pictures", _VIDEO_FLAGS)
    for name in arguments.input:
        if "://" in name and not os.path.exists(name):
            from aethernet.upscaling.cluster.storage import without_keys

            raise AetherError(
                f"{without_keys(name)} is no file here; a folder in remote storage "
                "needs --cluster."
            )
    planned = plan(
        arguments.input,
        arguments.output,
        suffix=arguments.suffix,
        scale_suffix=_scale_suffix(arguments),
        format=_format(arguments),
        overwrite=arguments.overwrite,
    )
    prepare(planned)
    return planned.jobs, planned.done


@contextlib.contextmanager
def _progress(
    arguments: argparse.Namespace, to_do: Sequence[Any], done: Sequence[Any]
) -> "Iterator[Progress]":
    """What says how far it is; what was done before is told first."""
    from aethernet.commands.progress import progress
    from aethernet.upscaling.folders import Outcome

    with progress(arguments.quiet, arguments.json) as shown:
        shown.total(len(to_do), len(done))
        for job in done:
            shown.finished(Outcome(job, "skipped", "it is there already"))
        yield shown


def _video(arguments: argparse.Namespace) -> int:
    from aethernet.commands.progress import frames_progress
    from aethernet.video.upscale import VideoOptions, upscale_video

    _refuse(arguments, "a video", _PICTURE_FLAGS)
    if len(arguments.input) > 1:
        raise AetherError("Name one video at a time, and no pictures beside it.")
    source = Path(arguments.input[0])
    if arguments.output is None:
        name = f"{source.stem}{_scale_suffix(arguments)}{source.suffix}"
        target = source.with_name(name)
    else:
        target = Path(arguments.output)
    options = VideoOptions(
        arguments.codec,
        arguments.crf,
        arguments.pixel_format,
        arguments.start,
        arguments.end,
        arguments.preview,
        arguments.overwrite,
    )
    start = time.perf_counter()
    model = _open(arguments)
    with frames_progress(arguments.quiet, source.name) as report:
        done = upscale_video(source, target, model, options, report)
    if not arguments.quiet:
        before, after = (
            "x".join(map(str, s)) for s in (done.size_before, done.size_after)
        )
        again = f", {done.resumed} of them by an earlier run" if done.resumed else ""
        print(f"{source} ({before}) -> {target} ({after}), {done.frames} frames{again}")
        print(f"encoded as {done.encoding}")
    _say_how(arguments, model, time.perf_counter() - start)
    return 0


def _through_pipes(arguments: argparse.Namespace) -> int:
    """Standard input or output, or both: a picture, or frames of a video."""
    from aethernet.upscaling.files import upscale_file

    _refuse(
        *(arguments, "standard input and output"),
        ("--cluster", "--suffix", "--json"),
    )
    (name,) = arguments.input
    for word, stream in ((name, sys.stdin), (arguments.output, sys.stdout)):
        if word == PIPE and stream is None:
            raise AetherError("Standard input or output, which - means, is closed.")
    given = _standard_input() if name == PIPE else None
    if given and (arguments.raw or given.peek(len(_Y4M))[: len(_Y4M)] == _Y4M):
        return _frames(arguments, given)
    _refuse(arguments, "a picture", _VIDEO_FLAGS)
    if arguments.output is None:
        raise AetherError("Name the output with -o, which may be - (standard output).")
    if name != PIPE and _is_video([name]):
        raise AetherError(
            "A video goes to standard output as y4m, which it has to be before: "
            f"ffmpeg -i {name} -f yuv4mpegpipe - | aethernet upscale - -o -"
        )
    if arguments.output != PIPE:
        _refuse(arguments, f"the name {arguments.output}", ("--format",))
    options = _options(arguments)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="aethernet_") as temporary:
        source, target = Path(name), Path(arguments.output)
        if given:
            source = Path(temporary, "standard input")
            with source.open("wb") as file:
                shutil.copyfileobj(given, file)
        if arguments.output == PIPE:
            target = Path(temporary, f"standard output{_format(arguments) or '.png'}")
        try:
            model = _open(arguments)
            upscale_file(source, target, model, options)
        except AetherError as error:  # the folder is nobody's business
            said = str(error).replace(f"{temporary}{os.sep}", "")
            raise AetherError(said) from error
        if arguments.output == PIPE:
            with target.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    if arguments.verbose:
        print(_how(arguments, model, time.perf_counter() - start), file=sys.stderr)
    return 0


def _frames(arguments: argparse.Namespace, given: io.BufferedReader) -> int:
    """Frames through a pipe: y4m, or raw RGB."""
    from aethernet.video.upscale import upscale_stream

    _refuse(arguments, "frames in a pipe", (*_PICTURE_FLAGS[:-1], *_FILE_FLAGS))
    suffixes = (".rgb", ".raw") if arguments.raw else (".y4m",)
    target = None if arguments.output in (None, PIPE) else Path(arguments.output)
    if target and target.suffix.lower() not in suffixes:
        raise AetherError(
            f"{target} would hold bare frames: name it {' or '.join(suffixes)}, or "
            "pipe them on (-o -), e.g. into ffmpeg."
        )
    model = _open(arguments)
    start = time.perf_counter()
    if target is None:
        done = upscale_stream(given, sys.stdout.buffer, model, arguments.raw)
    else:
        broken = None
        with replacing(target) as temporary, temporary.open("wb") as file:
            try:
                done = upscale_stream(given, file, model, arguments.raw)
            except AetherError as error:
                if not file.tell():
                    raise
                broken = error  # the whole frames before are kept
        if broken:
            raise broken
    if not arguments.quiet:
        seconds = time.perf_counter() - start
        print(f"{done} frames in {seconds:.1f} s, {model.describe()}", file=sys.stderr)
    return 0


def _standard_input() -> io.BufferedReader:
    """Standard input, read through a file of its own.

    A thread that waits in the usual one keeps Python from ending.
    """
    return io.BufferedReader(io.FileIO(os.dup(sys.stdin.fileno()), "rb"))


def _is_video(inputs: Sequence[str]) -> bool:
    from aethernet.video.upscale import VIDEO_SUFFIXES

    return any(Path(name).suffix.lower() in VIDEO_SUFFIXES for name in inputs)


def _open(arguments: argparse.Namespace) -> "Tiled":
    from aethernet.runtimes.tiling import DEFAULT_CONTEXT, Tiled

    words = (arguments.runtime, arguments.device, arguments.precision)
    model = open_model(_model_path(arguments), *words)
    context = arguments.context
    context = DEFAULT_CONTEXT if context is None else context
    return Tiled(model, arguments.tile, context)


def _model_path(arguments: argparse.Namespace) -> Path:
    return find_model(arguments.model) if arguments.model else shipped_model()


def _scale_suffix(arguments: argparse.Namespace) -> str:
    """What a name beside its source gets, e.g. _2x."""
    from aethernet.checkpoints.checkpoint import is_checkpoint

    if arguments.width or arguments.height or arguments.max_mp:
        return "_upscaled"
    scale = arguments.scale
    if scale is None and arguments.output is None:
        path = _model_path(arguments)
        if is_checkpoint(path):
            scale = load_checkpoint(path).scale
        else:
            scale = _open(arguments).scale
    return f"_{scale or 0:g}x"


def _options(arguments: argparse.Namespace) -> "Options":
    from aethernet.pictures.files import Encoding
    from aethernet.upscaling.files import Options, Size

    lossless = arguments.quality == LOSSLESS
    return Options(
        Size(arguments.scale, arguments.width, arguments.height, arguments.max_mp),
        arguments.alpha,
        Encoding(None if lossless else arguments.quality, lossless),
        arguments.limit,
    )


def _format(arguments: argparse.Namespace) -> str | None:
    if arguments.format is None:
        return None
    return "." + arguments.format.lower().removeprefix(".")


def _refuse(arguments: argparse.Namespace, what: str, flags: Sequence[str]) -> None:
    """Say so when a flag does not go with what is to be done."""
    for flag in flags:
        value = getattr(arguments, flag[2:].replace("-", "_"))
        if value is not None and value is not False:
            raise AetherError(f"{flag} does not go with {what}.")


def _say_how(arguments: argparse.Namespace, model: "Tiled", seconds: float) -> None:
    """With what it was done: on stdout where people read it, else where asked for."""
    if not arguments.quiet and not arguments.json:
        print(_how(arguments, model, seconds))
    elif arguments.verbose:
        print(_how(arguments, model, seconds), file=sys.stderr)


def _how(arguments: argparse.Namespace, model: "Tiled", seconds: float) -> str:
    line = f"with {_model_path(arguments).name}: {model.describe()}"
    if arguments.verbose:
        line += f"; the network ran {model.busy / seconds:.0%} of {seconds:.1f} s"
    return line
