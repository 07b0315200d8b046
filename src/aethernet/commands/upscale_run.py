"""Run `aethernet upscale` for files: pictures, a video, pictures on a cluster."""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from aethernet.commands.progress import Progress, frames_progress, progress
from aethernet.commands.upscale_pipes import PIPE, run_pipes
from aethernet.commands.upscale_request import (
    PICTURE_FLAGS,
    VIDEO_FLAGS,
    UpscaleRequest,
    has_video,
    how,
    scale_of,
)
from aethernet.errors import AetherError
from aethernet.files import check_source
from aethernet.pictures.animation import is_animated
from aethernet.pictures.files import READABLE
from aethernet.runtimes.support import hint_at_idle_gpu
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling.cluster.run import upscale_on_cluster
from aethernet.upscaling.cluster.storage import (
    RemoteJob,
    is_remote,
    remote_plan,
    without_keys,
)
from aethernet.upscaling.files import total_pixels, upscale_files
from aethernet.upscaling.folders import Job, Outcome, check_targets, plan, prepare
from aethernet.video.mux import CONTAINERS
from aethernet.video.upscale import (
    UpscaledVideo,
    check_video_target,
    upscale_video,
    video_pixels,
)


def run_upscale(request: UpscaleRequest) -> int:
    """Do everything that `aethernet upscale` does; return its exit code."""
    if PIPE in request.inputs and len(request.inputs) > 1:
        raise AetherError("- is standard input; name no other input beside it.")
    if request.cluster is not None and PIPE not in (*request.inputs, request.output):
        return _run_cluster(request)
    code = _run_here(request)
    if request.model.device == "auto" and not request.quiet:
        hint_at_idle_gpu()
    return code


def _run_here(request: UpscaleRequest) -> int:
    if PIPE in (*request.inputs, request.output):
        return run_pipes(request)
    if has_video(request.inputs) or _makes_video(request):
        return _run_video(request)
    return _run_pictures(request)


def _makes_video(request: UpscaleRequest) -> bool:
    """Whether the output has the name of a video, and the input no still picture's."""
    if len(request.inputs) > 1 or request.output is None:
        return False
    if Path(request.output).suffix.lower() not in CONTAINERS:
        return False
    source = Path(request.inputs[0])
    if source.suffix.lower() in READABLE:
        return is_animated(source)
    return source.is_file()


def _run_pictures(request: UpscaleRequest) -> int:
    jobs, done = _planned(request)
    start = time.perf_counter()
    limit = request.options.limit_mp
    open_once = functools.cache(
        lambda: request.model.open(lambda: total_pixels(jobs, limit))
    )
    failed = 0
    with _shown_progress(request, jobs, done) as shown:

        def advanced(job: Job, pixels: int, of: int) -> None:
            if not pixels:
                shown.started(job)
            shown.advanced(pixels, of)

        if jobs:
            for outcome in upscale_files(jobs, open_once(), request.options, advanced):
                failed += outcome.status == "failed"
                shown.finished(outcome)
    if failed < len(jobs):
        _print_how(request, open_once(), time.perf_counter() - start)
    return 1 if failed else 0


def _planned(request: UpscaleRequest) -> tuple[Sequence[Job], Sequence[Job]]:
    """Jobs to do and jobs done before; the output folders exist afterwards."""
    request.refuse("pictures", VIDEO_FLAGS)
    for name in request.inputs:
        if "://" in name and not os.path.exists(name):
            raise AetherError(
                f"{without_keys(name)} is not a file on this machine; remote folders "
                "need --cluster."
            )
    planned = plan(
        request.inputs,
        request.output,
        suffix=request.suffix,
        scale_suffix=lambda: _scale_suffix(request),
        format=request.format,
        overwrite=request.overwrite,
    )
    prepare(planned)
    check_targets(planned.jobs)
    return planned.jobs, planned.done


def _scale_suffix(request: UpscaleRequest) -> str:
    """What is added to the name of an output that goes beside its source: "_2x"."""
    size = request.options.size
    if size.width or size.height or size.max_mp:
        return "_upscaled"
    return f"_{size.scale or scale_of(request.model):g}x"


@contextlib.contextmanager
def _shown_progress(
    request: UpscaleRequest,
    jobs: Sequence[Job] | Sequence[RemoteJob],
    done: Sequence[Job] | Sequence[RemoteJob],
) -> Iterator[Progress]:
    """Show how far a run is; jobs done before it are reported first."""
    with progress(request.quiet, request.json) as shown:
        shown.total(len(jobs), len(done))
        for job in done:
            shown.finished(Outcome(cast("Job", job), "skipped", "it is there already"))
        yield shown


def _run_cluster(request: UpscaleRequest) -> int:
    jobs, done = _planned_for_cluster(request)
    failed = 0
    with _shown_progress(request, jobs, done) as shown:
        outcomes = upscale_on_cluster(
            jobs,
            request.model,
            request.options,
            request.cluster or None,
            overwrite=request.overwrite,
        )
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                failed += outcome.status == "failed"
                shown.finished(outcome)
    return 1 if failed else 0


def _planned_for_cluster(
    request: UpscaleRequest,
) -> tuple[Sequence[Job] | Sequence[RemoteJob], Sequence[Job] | Sequence[RemoteJob]]:
    """As `_planned`, also for folders in remote storage."""
    if not any(map(is_remote, (*request.inputs, request.output or ""))):
        return _planned(request)
    request.refuse("pictures in a remote folder", VIDEO_FLAGS)
    if len(request.inputs) > 1 or request.output is None:
        raise AetherError(
            "A remote folder needs exactly one input folder and one output folder (-o)."
        )
    planned = remote_plan(
        request.inputs[0],
        request.output,
        suffix=request.suffix,
        format=request.format,
        overwrite=request.overwrite,
    )
    return planned.jobs, planned.done


def _run_video(request: UpscaleRequest) -> int:
    request.refuse("a video", (*PICTURE_FLAGS, "--raw"))
    if len(request.inputs) > 1:
        raise AetherError("Name one video at a time, and no pictures beside it.")
    source = Path(request.inputs[0])
    check_source(source, "a video")
    if request.output is None:
        scale = scale_of(request.model)
        target = source.with_name(f"{source.stem}_{scale}x{source.suffix}")
    else:
        target = Path(request.output)
    check_video_target(source, target, request.video)
    start = time.perf_counter()
    model = request.model.open(lambda: video_pixels(source, request.video))
    with frames_progress(request.quiet, source.name) as report:
        done = upscale_video(source, target, model, request.video, report)
    if not request.quiet:
        _print_video(done)
    _print_how(request, model, time.perf_counter() - start)
    return 0


def _print_video(done: UpscaledVideo) -> None:
    before, after = ("x".join(map(str, s)) for s in (done.size_before, done.size_after))
    again = f", {done.resumed} of them from an earlier run" if done.resumed else ""
    print(
        f"{done.source} ({before}) -> {done.target} ({after}), {done.frames} frames"
        f"{again}"
    )
    print(f"encoded as {done.encoding}")


def _print_how(request: UpscaleRequest, model: Tiled, seconds: float) -> None:
    """Print what ran: on stdout for people, on stderr where --verbose asks for it."""
    if not request.quiet and not request.json:
        print(how(request, model, seconds))
    elif request.verbose:
        print(how(request, model, seconds), file=sys.stderr)
