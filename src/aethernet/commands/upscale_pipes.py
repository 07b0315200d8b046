"""Run `aethernet upscale` with standard input or output: a picture, or frames."""

import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from aethernet.commands.upscale_request import (
    CLIP_FLAGS,
    PICTURE_FLAGS,
    VIDEO_FLAGS,
    UpscaleRequest,
    has_video,
    how,
)
from aethernet.errors import AetherError, system_reason
from aethernet.files import check_target, command_line, replacing
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling.files import total_pixels, upscale_file
from aethernet.upscaling.folders import Job, check_targets
from aethernet.video.upscale import upscale_stream
from aethernet.video.y4m import MAGIC

PIPE = "-"
"""Stands for standard input or standard output."""


def run_pipes(request: UpscaleRequest) -> int:
    """Upscale a picture or frames from standard input, to standard output, or both."""
    request.refuse("standard input and output", ("--cluster", "--suffix", "--json"))
    (name,) = request.inputs
    for word, stream in ((name, sys.stdin), (request.output, sys.stdout)):
        if word == PIPE and stream is None:
            raise AetherError("Standard input or output, which - means, is closed.")
    given = _standard_input() if name == PIPE else None
    if given and (request.raw or given.peek(len(MAGIC))[: len(MAGIC)] == MAGIC):
        return _run_frames(request, given)
    return _run_picture(request, given)


def _standard_input() -> io.BufferedReader:
    """Standard input, read through a file of its own.

    A thread that waits in `sys.stdin` would keep Python from ending.
    """
    return io.BufferedReader(io.FileIO(os.dup(sys.stdin.fileno()), "rb"))


def _copy(given: BinaryIO, path: Path) -> None:
    """Copy a stream to a temporary file.

    Raises:
        AetherError: when the stream cannot be read or the file not written.
    """
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(given, file)
    except OSError as error:
        raise AetherError(
            "Standard input cannot be copied to a temporary file: "
            f"{system_reason(error)}."
        ) from error


def _run_picture(request: UpscaleRequest, given: BinaryIO | None) -> int:
    """Upscale a picture, read from `given` unless that is None."""
    _check_picture(request)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="aethernet_") as temporary:
        source, target = Path(request.inputs[0]), Path(request.output or "")
        if given:
            source = Path(temporary, "standard input")
            _copy(given, source)
        if request.output == PIPE:
            target = Path(temporary, f"standard output{request.format or '.png'}")
        try:
            check_targets([job := Job(source, target)])
            limit = request.options.limit_mp
            model = request.model.open(lambda: total_pixels([job], limit))
            upscale_file(source, target, model, request.options)
        except AetherError as error:
            # The user does not know the temporary folder: leave it out of messages.
            if error.path and error.path.is_relative_to(temporary):
                raise error.about(error.path.relative_to(temporary)) from error
            raise
        if request.output == PIPE:
            with target.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    if request.verbose:
        print(how(request, model, time.perf_counter() - start), file=sys.stderr)
    return 0


def _check_picture(request: UpscaleRequest) -> None:
    request.refuse("a picture", VIDEO_FLAGS)
    name, output = request.inputs[0], request.output
    if output is None:
        raise AetherError("Name the output with -o, which may be - (standard output).")
    if name != PIPE and has_video([name]):
        made = command_line(["ffmpeg", "-i", name, "-f", "yuv4mpegpipe", PIPE])
        raise AetherError(
            "Only y4m frames can be upscaled to standard output.",
            hint=f"Convert the video first: {made} | aethernet upscale - -o -",
        )
    if output != PIPE:
        request.refuse(f"the name {output}", ("--format",))


def _run_frames(request: UpscaleRequest, given: BinaryIO) -> int:
    """Upscale frames: y4m, or raw RGB."""
    request.refuse("frames in a pipe", (*PICTURE_FLAGS, *CLIP_FLAGS))
    target = None if request.output in (None, PIPE) else Path(str(request.output))
    suffixes = (".rgb", ".raw") if request.raw else (".y4m",)
    if target and target.suffix.lower() not in suffixes:
        raise AetherError(
            "Frames from a pipe are written without a container.",
            target,
            f"Name the output {' or '.join(suffixes)}, or pipe the frames to another "
            "program (-o -), e.g. ffmpeg.",
        )
    if target:
        check_target(target)
    model = request.model.open()
    start = time.perf_counter()
    if target is None:
        done = upscale_stream(given, sys.stdout.buffer, model, request.raw)
    else:
        done = _frames_to_file(request, given, target, model)
    if not request.quiet:
        seconds = time.perf_counter() - start
        print(f"{done} frames in {seconds:.1f} s, {model.describe()}", file=sys.stderr)
    return 0


def _frames_to_file(
    request: UpscaleRequest, given: BinaryIO, target: Path, model: Tiled
) -> int:
    """Write the frames to a file; return how many.

    Raises:
        AetherError: when the stream breaks off; the file has the whole frames before.
    """
    broken = None
    with replacing(target) as temporary, temporary.open("wb") as file:
        try:
            done = upscale_stream(given, file, model, request.raw)
        except AetherError as error:
            if not file.tell():
                raise
            broken = error
    if broken:
        raise broken
    return done
