"""What a container holds beside coded pictures, found out by writing a small file."""

import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, BinaryIO

from aethernet.video.boxes import hide_boxes
from aethernet.video.describe import (
    TIMECODE,
    in_usual_keys,
    kept_of_stream,
    without_language,
)
from aethernet.video.extras import Extra, open_unofficial, read_facts, with_extras
from aethernet.video.libav import import_av, is_cover

# libav's names of purposes of a stream (dispositions) that a container holds.
_COMMON = ("default", "dub", "comment", "forced", "hearing_impaired", "visual_impaired")
_PURPOSES = {
    "matroska": {*_COMMON, "original"},
    "mp4": {*_COMMON, "captions", "descriptions"},
    "mov": {"default"},
    "webm": {"default", "forced"},
}
_OF_SUBTITLES = {
    "matroska": {"descriptions"},
    "webm": {"captions", "descriptions", "metadata"},
}

# Containers that hold any metadata.
_MATROSKA = ("matroska", "webm")

# What players assume, by the number of channels. Matroska stores no other for PCM.
_LAYOUTS = {
    1: "mono",
    2: "stereo",
    3: "2.1",
    4: "4.0",
    5: "5.0",
    6: "5.1",
    7: "6.1",
    8: "7.1",
}

# Metadata of a stream that says nothing about its content.
_UNIMPORTANT = ("handler_name", "timecode", "language")

# libav writes that of the file into each of its streams.
_CREATED = "creation_time"

_MOST_NAMES = 8


def held_extras(template: bytes, extras: Sequence[Extra], format: str) -> list[Extra]:
    """Those of the extras that a container holds.

    Args:
        template: a file of Matroska with a frame of the video.
        extras: what the stream shall say.
        format: libav's name of the container.
    """
    return [extra for extra in extras if _is_extra_held(template, extra, format)]


def _is_extra_held(template: bytes, extra: Extra, format: str) -> bool:
    av = import_av()
    file = io.BytesIO()
    try:
        with (
            av.open(io.BytesIO(with_extras(template, [extra]))) as source,
            open_unofficial(file, format) as output,
        ):
            (original,) = source.streams
            stream = output.add_stream_from_template(original, opaque=True)
            for packet in source.demux(original):
                if packet.size:
                    packet.duration = packet.duration or 1  # players drop one of none
                    packet.stream = stream
                    output.mux(packet)
        repair_stereo(file, format)
        with av.open(io.BytesIO(file.getvalue())) as written:
            (stream,) = written.streams
            facts = read_facts(stream, next(written.decode(stream)))
    except (av.FFmpegError, ValueError, StopIteration):
        return False
    return any(extra.means(found) for found in facts.extras)


def repair_stereo(file: BinaryIO, format: str) -> None:
    """Hide one of the two boxes in which libav writes stereo 3D into MP4.

    The one of Apple's kind says less, and is the one that libav reads.
    """
    if format == "mp4":
        hide_boxes(file, b"vexu")


def unheld_of_stream(stream: Any, format: str) -> Iterator[str]:
    """What a container does not hold of a stream's language, purpose and metadata.

    Args:
        stream: that is copied.
        format: libav's name of the container.
    """
    from av.stream import Disposition

    held = set(_PURPOSES[format])
    if stream.type == "subtitle":
        held |= _OF_SUBTITLES.get(format, set())
    for purpose in Disposition:
        name = str(purpose.name)
        if purpose & stream.disposition and name not in held and not is_cover(stream):
            yield f"the purpose {name.replace('_', ' ')}"
    layout = stream.layout.name if stream.type == "audio" else ""
    if format in _MATROSKA and _is_unusual(stream, layout):
        yield f"the layout {layout} of the channels"
    language = stream.language
    if language and not _is_language_held(language, format):
        yield f"the language {language}"
    metadata = {
        key: value
        for key, value in kept_of_stream(stream, Fraction(0), Fraction(1))
        if key.lower() not in (*_UNIMPORTANT, _CREATED)
    }
    created = stream.metadata.get(_CREATED)
    if created and created != stream.container.metadata.get(_CREATED):
        yield "the time of creation"
    if names := _unheld(metadata, format, of_stream=True):
        yield f"the metadata {', '.join(names)}"


def _is_unusual(stream: Any, layout: str) -> bool:
    """Whether PCM has other channels than players assume for their number."""
    is_pcm = stream.codec_context.name.startswith("pcm_")
    count = stream.layout.nb_channels if is_pcm else 0
    unknown = f"{count} channels"
    return is_pcm and layout not in (_LAYOUTS.get(count, unknown), unknown)


@functools.cache
def _is_language_held(language: str, format: str) -> bool:
    """Whether the container holds this language; MOV holds those of the Macintosh."""
    if format != "mov" or language == "und":
        return True
    return not _unheld({"language": language}, format, of_stream=True)


def unheld_metadata(metadata: Mapping[str, str], format: str) -> list[str]:
    """Keys of a file's metadata that a container does not hold, the first of them.

    Args:
        metadata: of the source.
        format: libav's name of the container.
    """
    # A timecode becomes a track there.
    metadata = {k: v for k, v in metadata.items() if k.lower() != TIMECODE}
    usual = in_usual_keys(metadata)
    return _unheld(metadata, format, usual, of_stream=False)


def _unheld(
    metadata: Mapping[str, str],
    format: str,
    more: Mapping[str, str] | None = None,
    *,
    of_stream: bool,
) -> list[str]:
    """Keys whose values are not found again in a file that was written with them.

    Args:
        metadata: of the source.
        format: libav's name of the container.
        more: is written, too.
        of_stream: whether it is that of a stream.
    """
    if format in _MATROSKA or not metadata:
        return []
    av = import_av()
    file = io.BytesIO()
    with av.open(file, "w", format=format) as output:
        stream = output.add_stream("mpeg4", rate=25, width=16, height=16)
        for key, value in {**metadata, **(more or {})}.items():
            (stream if of_stream else output).metadata[key] = value
        frame = av.VideoFrame(16, 16, "yuv420p")
        output.mux([*stream.encode(frame), *stream.encode(None)])
    with av.open(io.BytesIO(file.getvalue())) as written:
        place = written.streams[0] if of_stream else written
        found = set(place.metadata.values())
    lost = [key for key, value in metadata.items() if value not in found]
    # libav tells many twice, with a language and without.
    plain = {key: without_language(key) for key in lost}
    lost = [key for key, base in plain.items() if key == base or base not in plain]
    if len(lost) > _MOST_NAMES:
        lost = [*lost[:_MOST_NAMES], f"{len(lost) - _MOST_NAMES} more"]
    return lost
