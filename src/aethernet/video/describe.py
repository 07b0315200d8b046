"""Metadata of files and streams: what of it still holds for the new file."""

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

TIMECODE, ALPHA_MODE = "timecode", "alpha_mode"

# What describes the old file or its codec. Stereo 3D and transparency are written
# anew, where the new stream has them.
_STALE = (
    *("encoder", "major_brand", "minor_version", "compatible_brands", "duration"),
    *("stereo_mode", ALPHA_MODE, "vendor_id"),
)
# Keys of metadata that begin with Apple's name -> what libav calls the same.
_APPLE = "com.apple.quicktime."
_USUAL = {
    "title": "title",
    "author": "author",
    "artist": "artist",
    "album": "album",
    "comment": "comment",
    "copyright": "copyright",
    "description": "description",
    "genre": "genre",
    "keywords": "keywords",
    "make": "make",
    "model": "model",
    "creationdate": "date",
    "location.ISO6709": "location",
}
_STALE_PREFIXES = ("_statistics", "bps", "number_of_")


def kept_metadata(
    metadata: Mapping[str, str], skipped: Fraction, rate: Fraction
) -> Iterator[tuple[str, str]]:
    """What can be copied; a timecode is moved to where the new file begins.

    Args:
        metadata: of the source or of one of its streams.
        skipped: seconds that are left out at the beginning.
        rate: frames per second.
    """
    for key, value in metadata.items():
        if key.lower() == TIMECODE:
            moved = moved_timecode(value, round(skipped * rate), rate)
            if moved is not None:
                yield key, moved
        elif not _is_stale(key):
            yield key, value


def kept_of_stream(
    stream: Any, skipped: Fraction, rate: Fraction
) -> Iterator[tuple[str, str]]:
    """As `kept_metadata`, of a stream, whose name is a title to all containers.

    libav reads the name of a track of MP4 as another key than it writes it by.
    """
    for key, value in kept_metadata(stream.metadata, skipped, rate):
        if key.lower() != "name":
            yield key, value
        elif "title" not in stream.metadata:
            yield "title", value


def in_usual_keys(metadata: Mapping[str, str]) -> dict[str, str]:
    """What Apple's programs state by keys of their own, by those that libav writes."""
    stated = {_USUAL.get(key.removeprefix(_APPLE), ""): key for key in metadata}
    return {
        usual: metadata[key]
        for usual, key in stated.items()
        if usual and usual not in metadata and key.startswith(_APPLE)
    }


def without_language(key: str) -> str:
    """A key without the language that libav adds to it: "title" of "title-eng"."""
    return re.sub(r"-[a-z]{3}$", "", key)


def _is_stale(key: str) -> bool:
    key = without_language(key.lower())
    return key in _STALE or key.startswith(_STALE_PREFIXES)


def moved_timecode(timecode: str, frames: int, rate: Fraction) -> str | None:
    """The timecode so many frames later; None if the text is not a timecode.

    Drop-frame timecode (SMPTE ST 12-1, with a semicolon) leaves out the first two
    numbers of each minute except every tenth, at 30 frames a second; four at 60.
    """
    if not frames:
        return timecode
    match = re.fullmatch(r"(\d\d):(\d\d):(\d\d)([:;.])(\d{2,3})", timecode)
    if not match:
        return None
    hours, minutes, seconds, at = (int(match[n]) for n in (1, 2, 3, 5))
    each_second = round(rate)
    drop = 0 if match[4] == ":" else 2 * round(Fraction(each_second, 30))
    total = 60 * hours + minutes
    number = (60 * total + seconds) * each_second + at - drop * (total - total // 10)
    tens, rest = divmod(number + frames, 600 * each_second - 9 * drop)
    first, other = 60 * each_second, 60 * each_second - drop
    number += frames + drop * 9 * tens
    if rest >= first:
        number += drop * (1 + (rest - first) // other)
    whole, at = divmod(number, each_second)
    whole %= 24 * 60 * 60
    clock = f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{clock}{match[4]}{at:0{len(match[5])}}"


def timecode_of(streams: Any) -> str | None:
    """The timecode of a stream of timecode, as QuickTime has it."""
    return next((s.metadata[TIMECODE] for s in streams if is_timecode(s)), None)


def has_alpha_beside(stream: Any) -> bool:
    """Whether Matroska says that transparency lies beside the packets of a stream."""
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    return tags.get(ALPHA_MODE) == "1"


def is_timecode(stream: Any) -> bool:
    """Whether this stream holds the timecode of the video, which its metadata has."""
    return stream.type == "data" and TIMECODE in stream.metadata
