"""What a call of `aethernet upscale` asks for: its flags as typed values."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aethernet.checkpoints.checkpoint import (
    is_aethernet,
    load_checkpoint,
    load_weights,
)
from aethernet.checkpoints.formats import is_checkpoint
from aethernet.checkpoints.shipped import find_model, shipped_model
from aethernet.commands.model_flags import asked_values
from aethernet.commands.values import LOSSLESS
from aethernet.errors import AetherError
from aethernet.pictures.files import PictureEncoding
from aethernet.runtimes.request import ModelRequest
from aethernet.runtimes.tiling import DEFAULT_CONTEXT, Tiled
from aethernet.upscaling.files import Options, Size
from aethernet.video.upscale import VIDEO_SUFFIXES, VideoOptions
from aethernet.video.y4m import RawFormat

PICTURE_FLAGS = (
    *("--scale", "--width", "--height", "--max-mp", "--format", "--quality"),
    *("--suffix", "--json"),
)

CLIP_FLAGS = ("--codec", "--crf", "--pixel-format", "--preview", "--start", "--end")
"""Flags for the files of videos."""

VIDEO_FLAGS = (*CLIP_FLAGS, "--raw")


def scale_of(model: ModelRequest) -> int:
    """The scale of a model, without a trial of runtimes.

    Raises:
        AetherError: when the file is not a model.
    """
    if is_checkpoint(model.path) and is_aethernet(load_weights(model.path)):
        return load_checkpoint(model.path).scale
    return model.open(lambda: 0).scale


@dataclass(frozen=True)
class UpscaleRequest:
    """All flags of `aethernet upscale`."""

    inputs: tuple[str, ...]
    output: str | None
    model: ModelRequest
    options: Options
    """For pictures."""
    video: VideoOptions
    raw: RawFormat | None
    """Format of the frames on standard input, if they are raw RGB."""
    format: str | None
    """Suffix of the outputs, e.g. ".png"; None for those of the inputs."""
    suffix: str | None
    overwrite: bool
    cluster: str | None
    """Address of a Ray cluster; "" starts one on this machine, None uses none."""
    quiet: bool
    verbose: bool
    json: bool
    given: frozenset[str]
    """Those of `PICTURE_FLAGS`, `VIDEO_FLAGS` and --cluster that the user gave."""

    def refuse(self, what: str, flags: Sequence[str]) -> None:
        """Check that no flag was given that does not apply to this kind of input.

        Raises:
            AetherError: when there is one.
        """
        for flag in flags:
            if flag in self.given:
                raise AetherError(f"{flag} does not go with {what}.")


def has_video(inputs: Sequence[str]) -> bool:
    """Whether one of these names is that of a video."""
    return any(Path(name).suffix.lower() in VIDEO_SUFFIXES for name in inputs)


def how(request: UpscaleRequest, model: Tiled, seconds: float) -> str:
    """What ran, in one line: the model file and, for instance, the runtime.

    Args:
        seconds: that the whole run took.
    """
    line = f"with {request.model.path.name}: {model.describe()}"
    if request.verbose:
        line += f"; the network ran {model.busy / seconds:.0%} of {seconds:.1f} s"
    return line


def request_from(arguments: argparse.Namespace) -> UpscaleRequest:
    """Build the request from parsed flags.

    Raises:
        AetherError: when --model names neither a file nor a shipped model.
    """
    return UpscaleRequest(
        inputs=tuple(arguments.input),
        output=arguments.output,
        model=_model_from(arguments),
        options=_options_from(arguments),
        video=VideoOptions(
            codec=arguments.codec,
            crf=arguments.crf,
            pixel_format=arguments.pixel_format,
            start=arguments.start,
            end=arguments.end,
            preview=arguments.preview,
            overwrite=arguments.overwrite,
        ),
        raw=arguments.raw,
        format=_suffix_from(arguments.format),
        suffix=arguments.suffix,
        overwrite=arguments.overwrite,
        cluster=arguments.cluster,
        quiet=arguments.quiet,
        verbose=arguments.verbose,
        json=arguments.json,
        given=frozenset(
            flag
            for flag in (*PICTURE_FLAGS, *VIDEO_FLAGS, "--cluster")
            if _is_given(arguments, flag)
        ),
    )


def _model_from(arguments: argparse.Namespace) -> ModelRequest:
    context = arguments.context
    return ModelRequest(
        path=find_model(arguments.model)
        if arguments.model
        else shipped_model(arguments.scale),
        runtime=arguments.runtime,
        device=arguments.device,
        precision=arguments.precision,
        tile=arguments.tile,
        context=DEFAULT_CONTEXT if context is None else context,
        asked=asked_values(arguments),
    )


def _options_from(arguments: argparse.Namespace) -> Options:
    lossless = arguments.quality == LOSSLESS
    return Options(
        size=Size(arguments.scale, arguments.width, arguments.height, arguments.max_mp),
        alpha=arguments.alpha,
        encoding=PictureEncoding(None if lossless else arguments.quality, lossless),
        limit_mp=arguments.limit,
    )


def _suffix_from(format: str | None) -> str | None:
    return None if format is None else "." + format.lower().removeprefix(".")


def _is_given(arguments: argparse.Namespace, flag: str) -> bool:
    value = getattr(arguments, flag.removeprefix("--").replace("-", "_"))
    return value is not None and value is not False
