"""What a client may ask for: JSON of any kind, turned into typed orders or refused."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from aethernet.errors import AetherError
from aethernet.pictures.files import FORMATS, PictureEncoding
from aethernet.ui.storage import Storage
from aethernet.upscaling.files import Size
from aethernet.video.encode import CODECS
from aethernet.video.mux import CONTAINERS

MOST_FILES = 2000
"""Files of one task."""

_LARGEST_SIDE = 100_000
_MOST_FOLDERS = 8

# Characters that some system does not accept in a name.
_NOT_IN_NAMES = re.compile(r'[<>:"|?*\x00-\x1f\x7f]')

LOSSLESS = "lossless"


@dataclass(frozen=True)
class Offer:
    """What the page offers to choose from; the first of each is the default."""

    models: Mapping[str, Path]
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Upload:
    """A file that was uploaded."""

    path: Path
    name: Path
    """Its own name, in the folder that was chosen: relative, without "..".."""


@dataclass(frozen=True)
class PictureOrder:
    """Pictures to upscale, and how."""

    uploads: tuple[Upload, ...]
    model: str
    device: str
    size: Size
    format: str | None
    """A key of `FORMATS`; None: as each picture."""
    encoding: PictureEncoding


@dataclass(frozen=True)
class ClipOrder:
    """A video to upscale, and how."""

    upload: Upload
    model: str
    device: str
    preview: bool
    """Only five seconds out of its middle."""
    suffix: str | None
    """A key of `CONTAINERS`; None: as the video where possible."""
    codec: str | None
    """A key of `CODECS`."""
    crf: float | None


def order_from(
    body: object, offer: Offer, storage: Storage
) -> PictureOrder | ClipOrder:
    """Read an order.

    Args:
        body: parsed JSON.
        offer: what there is.
        storage: where uploads are.

    Raises:
        AetherError: when something is missing, unknown or of another type.
    """
    fields = _Fields(body)
    kind = fields.choice("kind", ("pictures", "video"), "pictures")
    uploads = _uploads(fields.take("files"), storage)
    model = fields.choice("model", tuple(offer.models))
    device = fields.choice("device", offer.devices)
    if kind == "video":
        if len(uploads) != 1:
            raise AetherError("Send one video at a time.")
        clip = ClipOrder(
            *(uploads[0], model, device),
            preview=fields.flag("preview"),
            suffix=fields.choice("format", ("", *CONTAINERS)) or None,
            codec=fields.choice("codec", ("", *CODECS)) or None,
            crf=fields.number("crf", 0, 63),
        )
        fields.refuse_rest()
        return clip
    side = (1, _LARGEST_SIDE)
    scale = fields.number("scale", 0.1, 16)
    sides = fields.number("width", *side), fields.number("height", *side)
    width, height = (None if each is None else round(each) for each in sides)
    order = PictureOrder(
        *(uploads, model, device, Size(scale, width, height)),
        format=fields.choice("format", ("", *FORMATS)) or None,
        encoding=_encoding(fields),
    )
    fields.refuse_rest()
    return order


def clean_name(name: str) -> Path:
    """A relative path without "..", made of characters that every system takes."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    kept = [
        _NOT_IN_NAMES.sub("_", part).strip()
        for part in parts
        if part.strip(" ./\\") != ""
    ]
    kept = [part for part in kept if part][-_MOST_FOLDERS:]
    return Path(*kept) if kept else Path("picture")


def _uploads(value: object, storage: Storage) -> tuple[Upload, ...]:
    if not isinstance(value, list) or not value:
        raise AetherError("Add a file first (`files`, a list).")
    if len(value) > MOST_FILES:
        raise AetherError(f"At most {MOST_FILES} files at a time.")
    found = []
    for each in value:
        path = each.get("path") if isinstance(each, Mapping) else each
        name = each.get("name") if isinstance(each, Mapping) else None
        upload = storage.uploaded(path)
        text = name if isinstance(name, str) and name else upload.name
        found.append(Upload(upload, clean_name(text)))
    return tuple(found)


def _encoding(fields: "_Fields") -> PictureEncoding:
    if fields.peek("quality") == LOSSLESS:
        fields.take("quality")
        return PictureEncoding(None, lossless=True)
    quality = fields.number("quality", 1, 100)
    return PictureEncoding(None if quality is None else round(quality))


class _Fields:
    """The fields of a JSON object; each is taken once."""

    def __init__(self, body: object) -> None:
        if not isinstance(body, Mapping):
            raise AetherError("An order is a JSON object.")
        self._left: dict[str, Any] = dict(body)

    def take(self, name: str) -> object:
        return self._left.pop(name, None)

    def peek(self, name: str) -> object:
        return self._left.get(name)

    def choice(self, name: str, known: tuple[str, ...], default: str = "") -> str:
        """One of these words; without one the default, else the first."""
        value = self._left.pop(name, None)
        if value is None or (value == "" and "" not in known):
            return default or known[0]
        if not isinstance(value, str) or value not in known:
            shown = ", ".join(filter(None, known))
            raise AetherError(f"`{name}` has to be one of {shown}.")
        return value

    def number(self, name: str, least: float, most: float) -> float | None:
        value = self._left.pop(name, None)
        if value is None or value == "":
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not least <= value <= most
        ):
            raise AetherError(
                f"`{name}` has to be a number from {least:g} to {most:g}."
            )
        return value

    def flag(self, name: str) -> bool:
        value = self._left.pop(name, None)
        if value is not None and not isinstance(value, bool):
            raise AetherError(f"`{name}` has to be true or false.")
        return bool(value)

    def refuse_rest(self) -> None:
        for name in self._left:
            raise AetherError(f"There is no setting `{name[:40]}` here.")
