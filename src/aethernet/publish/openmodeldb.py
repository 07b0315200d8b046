"""Entries of OpenModelDB, the database of upscaling models: one JSON file per model.

The fields and their rules follow the program of the database, as of August 2026:
`schema.ts`, `model-props.ts` and `schema-util.ts` in `src/lib`, and `data/tags.json`.
"""

import json
import re
import urllib.parse
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from aethernet.errors import import_optional
from aethernet.files import sha256_of

ARCHITECTURE = "aethernet"
"""Id of our architecture, which the database has to learn first (docs/release.md)."""

ANONYMOUS = "anonymous"
"""The author if none is named."""

TAGS = (
    *("ai-generated", "anime", "anti-aliasing", "cartoon", "cgi", "colorization"),
    *("compression-removal", "dds", "debanding", "deblur", "dedither", "dehalftone"),
    *("dehalo", "denoise", "faces", "game-screenshots", "game-textures"),
    *("general-upscaler", "inpainting", "jpeg", "manga", "photo", "pixel-art"),
    *("pretrained", "research", "restoration", "text", "texture-generation"),
    "video-frame",
)
"""Tags that authors choose from; the site derives others from the other fields."""

_TYPES = {".safetensors": "safetensors", ".pth": "pth", ".onnx": "onnx"}

_PLATFORMS = {"safetensors": "pytorch", "pth": "pytorch", "onnx": "onnx"}

_WORDS = r"[a-z0-9]+(?:-[a-z0-9]+)*"

_MODEL_ID = rf"\d+x-(?i:{_WORDS})"


def lists(name: str) -> bool:
    """Whether the database knows such files; those for ncnn it does not."""
    return Path(name).suffix in _TYPES


def resource(path: Path, base_url: str | None) -> dict[str, Any]:
    """A file as an entry lists it: size in bytes, SHA-256, address.

    Args:
        path: a .safetensors, .pth or .onnx file.
        base_url: of the folder that it will be downloaded from; None if not yet known.

    Raises:
        AetherError: when the file cannot be read.
    """
    kind = _TYPES[path.suffix]
    return {
        "platform": _PLATFORMS[kind],
        "type": kind,
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
        "urls": [url_of(base_url, path.name)] if base_url else [],
    }


def url_of(base: str, name: str) -> str:
    """The address of a file, or of one in a folder there (`images/a.png`)."""
    return f"{base.rstrip('/')}/{urllib.parse.quote(name)}"


def model_id(name: str, scale: int) -> str:
    """Id and file name of a model in the database: 2x_mine becomes 2x-mine."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    words = re.sub(rf"^{scale}x-?", "", words, flags=re.IGNORECASE)
    words = re.sub(rf"-(?:x{scale}|{scale}x)$", "", words, flags=re.IGNORECASE)
    return f"{scale}x-{words}"


def as_text(entry: Mapping[str, Any]) -> str:
    """An entry in the format of the database: four spaces, no newline at the end."""
    return json.dumps(entry, indent=4, ensure_ascii=False)


def problems(entry: Any) -> list[str]:
    """All problems of an entry as sentences; empty if it is valid.

    Authors, architectures and pretrained models are not looked up in the database.
    """
    if not isinstance(entry, dict):
        return ["An entry has to be a JSON object."]
    found = [f"{name} is missing." for name in _REQUIRED if name not in entry]
    return found + [
        f"{name} {problem}."
        for name, value in entry.items()
        if (problem := problem_of(name, value))
    ]


def problem_of(name: str, value: Any) -> str | None:
    """The problem of one field, as the end of a sentence that begins with its name."""
    fields = {**_REQUIRED, **_OPTIONAL}
    return fields[name](value) if name in fields else "is not a field of an entry"


# Each takes a value and returns its problem, as the end of a sentence, or None.
Check = Callable[[Any], str | None]


def _text(value: Any) -> str | None:
    if not isinstance(value, str) or not value:
        return f"has to be a text, not {value!r}"
    if value != value.strip():
        return "begins or ends with a blank"
    if re.search("[\ud800-\udfff]", value):  # cannot be written to a file
        return "is not valid Unicode"
    return None


def _matching(pattern: str, what: str) -> Check:
    def check(value: Any) -> str | None:
        if isinstance(value, str) and re.fullmatch(pattern, value):
            return None
        return f"has to be {what}, not {value!r}"

    return check


def _whole(least: int, most: int | None = None) -> Check:
    what = f"a whole number, {least} or more" + (f", at most {most}" if most else "")

    def check(value: Any) -> str | None:
        good = isinstance(value, int) and not isinstance(value, bool)
        if good and least <= value and (most is None or value <= most):
            return None
        return f"has to be {what}, not {value!r}"

    return check


def _true_or_false(value: Any) -> str | None:
    return None if isinstance(value, bool) else "has to be true or false"


def _list_of(check: Check, least: int = 1) -> Check:
    def check_all(value: Any) -> str | None:
        if not isinstance(value, list):
            return f"has to be a list, not {value!r}"
        if len(value) < least:
            return "must not be empty"
        return next(filter(None, map(check, value)), None)

    return check_all


def _or_null(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _tag(value: Any) -> str | None:
    if value in TAGS:
        return None
    return f"has {value!r}, which is not one of {', '.join(TAGS)}"


def _author(value: Any) -> str | None:
    return _list_of(_user)([value] if isinstance(value, str) else value)


def _license(value: Any) -> str | None:
    licenses = import_optional("packaging.licenses")
    what = "has to be an SPDX identifier, e.g. CC0-1.0, CC-BY-4.0 or MIT"
    if not isinstance(value, str):
        return f"{what}, not {value!r}"
    for name in value.split(" OR "):  # the only operator that the database reads
        try:
            proper = licenses.canonicalize_license_expression(name)
        except licenses.InvalidLicenseExpression:
            proper = ""
        if not re.fullmatch(r"[A-Za-z0-9.-]+", proper):
            return f"{what}, not {value!r}"
        if proper != name:
            return f"has to be spelled {proper}, not {name}"
    return None


def _date(value: Any) -> str | None:
    what = "has to be a day as yyyy-mm-dd"
    try:
        day = date.fromisoformat(value)
    except (TypeError, ValueError):
        return f"{what}, not {value!r}"
    return None if value == day.isoformat() else f"{what}, not {value!r}"


def problem_of_url(value: Any) -> str | None:
    """The problem of an address, as the end of a sentence."""
    return _matching(r"https?://[^\s/]+/\S+", "an address (https://..)")(value)


def _resource(value: Any) -> str | None:
    checks: dict[str, Check] = {
        "platform": _matching("pytorch|onnx", "pytorch or onnx"),
        "type": _matching("pth|safetensors|onnx", "pth, safetensors or onnx"),
        "size": _whole(1),
        "sha256": _matching("[0-9a-f]{64}", "64 hexadecimal digits"),
        "urls": _list_of(problem_of_url, least=0),
    }
    problem = _object(value, checks)
    if problem is None and value["platform"] != _PLATFORMS[value["type"]]:
        problem = f"has {value['type']} for {value['platform']}"
    return problem


def _image(value: Any) -> str | None:
    paired = isinstance(value, dict) and value.get("type") == "paired"
    checks: dict[str, Check] = {"type": _matching("paired|standalone", "paired")}
    checks |= (
        {"LR": problem_of_url, "SR": problem_of_url}
        if paired
        else {"url": problem_of_url}
    )
    if isinstance(value, dict) and "caption" in value:
        checks["caption"] = _text
    return _object(value, checks)


def _object(value: Any, checks: Mapping[str, Check]) -> str | None:
    if not isinstance(value, dict) or value.keys() != checks.keys():
        return f"needs objects of {', '.join(checks)}, not {value!r}"
    for name, check in checks.items():
        if problem := check(value[name]):
            return f"is not valid: {name} {problem}"
    return None


_user = _matching(_WORDS, "the author's id in OpenModelDB: a-z, 0-9 and hyphens")

_REQUIRED: dict[str, Check] = {
    "name": _text,
    "author": _author,
    "license": _or_null(_license),
    "tags": _list_of(_tag),
    "description": _text,
    "date": _date,
    "architecture": _matching(_WORDS, "an id: a-z, 0-9 and hyphens"),
    "size": _or_null(_list_of(_text)),
    "scale": _whole(1, 16),
    "inputChannels": _whole(1, 4),
    "outputChannels": _whole(1, 4),
    "resources": _list_of(_resource),
    "images": _list_of(_image, least=0),
}

_OPTIONAL: dict[str, Check] = {
    "trainingIterations": _whole(1),
    "trainingEpochs": _whole(1),
    "trainingBatchSize": _whole(1),
    "trainingHRSize": _whole(1),
    "trainingOTF": _true_or_false,
    "dataset": _text,
    "datasetSize": _whole(1),
    "pretrainedModelG": _matching(_MODEL_ID, "a model's id, e.g. 2x-mine"),
    "pretrainedModelD": _matching(_MODEL_ID, "a model's id, e.g. 2x-mine"),
}
