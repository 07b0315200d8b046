"""What the yardstick found: as tables, JSON, CSV, a plot, and crops to look at."""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from aethernet import metrics
from aethernet.bench.machine import describe_machine
from aethernet.bench.report import PLOT_SUFFIXES
from aethernet.cache import sha256_of
from aethernet.compare import BICUBIC, HR
from aethernet.errors import AetherError, import_optional
from aethernet.files import check_target, replacing
from aethernet.images import Picture, write_picture
from aethernet.progress import in_columns, printable
from aethernet.quality import LANCZOS, PROTOCOL, Measured, Row, Table
from aethernet.runtimes import device_kind

# Colours that colour-blind people tell apart (Okabe and Ito).
_MODELS, _BASELINES = "#0072B2", "#777777"

# Pixels along each side of a crop, how many times they are shown, what is around them.
CROP, _ZOOM, _MARGIN, _LINE = 96, 3, 8, 20


def check_targets(
    json_file: Path | None,
    csv_file: Path | None,
    plot_file: Path | None,
    crops: Path | None,
) -> None:
    """Say what is wrong with what is to be written, before any work is done for it.

    Raises:
        AetherError: when one cannot be written, or is no picture's name.
        MissingExtraError: when there is nothing to draw with.
    """
    for target in filter(None, (json_file, csv_file, plot_file)):
        check_target(target)
    if plot_file:
        if plot_file.suffix.lower() not in PLOT_SUFFIXES:
            raise AetherError(f"Cannot draw {plot_file}: name it .png or .svg.")
        import_optional("matplotlib", "bench")
    if crops:
        if crops.exists() and not crops.is_dir():
            raise AetherError(f"{crops} is a file; --crops names a folder.")
        check_target(crops / "crop.png" if crops.is_dir() else crops)


def as_text(table: Table) -> str:
    """A table for people, in plain text."""
    count = len(table.rows[0].pictures)
    pictures = f"{count} picture{'s' * (count != 1)}"
    rows = [
        ("method", "PSNR-Y", "SSIM-Y", *table.perceptual, "s/MP", "runtime"),
        *(_cells(row, table.perceptual) for row in table.rows),
    ]
    title = f"{printable(table.name)}, {table.scale}x, {pictures}"
    return "\n".join([title, *in_columns(rows, range(1, len(rows[0]) - 1))])


def _cells(row: Row, perceptual: Sequence[str]) -> tuple[str, ...]:
    by = row.by
    divided = f", tiles of {row.tile}" if row.tile else ""
    return (
        printable(row.method),
        f"{row.mean.psnr:.3f}",
        f"{row.mean.ssim:.4f}",
        *(f"{row.mean_of(name):.4f}" for name in perceptual),
        f"{row.seconds_per_megapixel:.3f}",
        f"{by.runtime} {by.precision} on {by.device}{divided}",
    )


def write_json(
    tables: Sequence[Table],
    target: Path,
    command: str,
    files: Mapping[str, Path],
    missing: Mapping[str, str],
) -> None:
    """Write everything: per picture and means; a figure without a number is null.

    Args:
        command: the line that measured it.
        files: of the models, by name.
        missing: of the perceptual metrics that are not there, why.

    Raises:
        AetherError: when it cannot be written, or a model's file is gone.
    """
    content = {
        "command": command,
        "protocol": PROTOCOL,
        "machine": describe_machine(_device(tables)),
        "models": {
            name: {"file": path.name, "sha256": sha256_of(path)}
            for name, path in files.items()
        },
        "left_out": dict(missing),
        "sets": [
            {
                "name": table.name,
                "scale": table.scale,
                "methods": [_as_json(row, table.perceptual) for row in table.rows],
            }
            for table in tables
        ],
    }
    with replacing(target) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        # Bytes of a file's name that are no text are written as \udc80 and so on.
        temporary.write_text(text + "\n", "utf-8", errors="backslashreplace")


def _device(tables: Sequence[Table]) -> str:
    """The GPU that a method ran on, if any did."""
    devices = [row.by.device for table in tables for row in table.rows]
    return next((d for d in devices if device_kind(d) == "cuda"), "cpu")


def _as_json(row: Row, perceptual: Sequence[str]) -> dict[str, Any]:
    mean = {"psnr_y": row.mean.psnr, "ssim_y": row.mean.ssim}
    mean |= {name.lower(): row.mean_of(name) for name in perceptual}
    return {
        "method": row.method,
        "runtime": row.by.runtime,
        "device": row.by.device,
        "precision": row.by.precision,
        "why": row.by.why,
        "tile": row.tile,
        "mean": {name: _number(value) for name, value in mean.items()},
        "seconds_per_megapixel": row.seconds_per_megapixel,
        "pictures": [
            {"name": each.picture, **_figures(each), "seconds": each.seconds}
            for each in row.pictures
        ],
    }


def _figures(each: Measured) -> dict[str, float | None]:
    figures = {"psnr_y": each.figures.psnr, "ssim_y": each.figures.ssim}
    figures |= {name.lower(): value for name, value in each.perceptual.items()}
    figures["megapixels"] = each.megapixels
    return {name: _number(value) for name, value in figures.items()}


def _number(value: float) -> float | None:
    """JSON and CSV have neither infinity (equal pictures) nor NaN."""
    return value if math.isfinite(value) else None


def write_csv(tables: Sequence[Table], target: Path) -> None:
    """Write a line for each method on each picture.

    Raises:
        AetherError: when it cannot be written.
    """
    lines = [
        {
            "set": table.name,
            "scale": table.scale,
            "picture": each.picture,
            "method": row.method,
            **_figures(each),
            "seconds": each.seconds,
        }
        for table in tables
        for row in table.rows
        for each in row.pictures
    ]
    with (
        replacing(target) as temporary,
        temporary.open(
            "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as file,
    ):
        writer = csv.DictWriter(file, [*lines[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def draw(tables: Sequence[Table], target: Path) -> None:
    """Draw PSNR-Y against seconds per megapixel, a field for each set.

    Raises:
        MissingExtraError: when matplotlib is not installed.
        AetherError: when it cannot be written.
    """
    import_optional("matplotlib", "bench")
    from matplotlib.figure import Figure  # draws without a display

    figure = Figure(figsize=(1 + 6 * len(tables), 5), layout="constrained")
    fields = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, table in zip(fields, tables, strict=True):
        axes.set_xscale("log")
        axes.margins(0.2, 0.12)
        axes.set_title(f"{printable(table.name)}, {table.scale}x", parse_math=False)
        axes.set_xlabel("seconds per megapixel of output")
        axes.set_ylabel("PSNR-Y in dB")
        axes.grid(linewidth=0.3)
        for row in table.rows:
            if not math.isfinite(row.mean.psnr):  # equal pictures
                continue
            model = row.method not in (BICUBIC, LANCZOS)
            colour = _MODELS if model else _BASELINES
            at = (row.seconds_per_megapixel, row.mean.psnr)
            axes.plot(*at, "o" if model else "s", color=colour)
            axes.annotate(
                printable(row.method),
                at,
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
                parse_math=False,
            )
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=150)


@dataclass(frozen=True)
class Crop:
    """A part of a picture, as each method made it."""

    picture: str
    left: int
    top: int
    score: float
    """What it was chosen by, in squared 8-bit steps of luma."""
    parts: dict[str, np.ndarray]
    """HR, bicubic, then the models: `(CROP, CROP, 3)`, uint8, or less."""


def check_crop_names(sets: Sequence[str], models: Sequence[str]) -> None:
    """Say where the crops of two models or sets would be one file.

    Raises:
        AetherError: when they would.
    """
    stems = [_crop_stem(name, model).lower() for name in sets for model in models]
    twice = [stem for stem in stems if stems.count(stem) > 1]
    if twice:
        raise AetherError(
            f"Two crops would be called {twice[0]}; rename a model or a folder."
        )


def _crop_stem(name: str, model: str) -> str:
    return re.sub(r"[^\w.-]+", "_", f"{name}_{model}")


@dataclass
class Crops:
    """Of each model: where it gains most on bicubic, and where it is worst.

    The best crop has the most squared error less than bicubic's, the worst the most of
    its own; luma, as a mean over the crop, all pictures of a set together.
    """

    models: Sequence[str]
    best: dict[str, Crop] = field(default_factory=dict)
    worst: dict[str, Crop] = field(default_factory=dict)

    def seen(
        self, picture: str, hr: np.ndarray, results: Mapping[str, np.ndarray]
    ) -> None:
        """Look for better ones in a picture; as `quality.Seen`."""
        shown = {HR: hr, BICUBIC: results[BICUBIC]}
        shown |= {model: results[model] for model in self.models}
        luma = metrics.luma(hr)
        size = min(CROP, *luma.shape)
        errors = {
            name: _means(np.square(metrics.luma(pixels) - luma), size)
            for name, pixels in shown.items()
        }
        for model in self.models:
            gain = errors[BICUBIC] - errors[model]
            for kept, scores in ((self.best, gain), (self.worst, errors[model])):
                top, left = np.unravel_index(int(np.argmax(scores)), scores.shape)
                score = float(scores[top, left])
                if model not in kept or score > kept[model].score:
                    parts = {
                        name: pixels[top : top + size, left : left + size].copy()
                        for name, pixels in shown.items()
                    }
                    kept[model] = Crop(picture, int(left), int(top), score, parts)

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write `SET_MODEL_best.png` and `.._worst.png` into a folder, made if need be.

        Raises:
            AetherError: when they cannot be written.
        """
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise AetherError(f"Cannot make {folder}: {error.strerror}.") from error
        written = []
        for what, kept in (("best", self.best), ("worst", self.worst)):
            for model, crop in kept.items():
                target = folder / f"{_crop_stem(name, model)}_{what}.png"
                write_picture(Picture(_drawn(crop, f"{name}, {model}: {what}")), target)
                written.append(target)
        return written


def _means(values: np.ndarray, size: int) -> np.ndarray:
    """Mean of `(H, W)` over every square of that size: `(H - size + 1, ..)`."""
    total = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[size:, size:] - total[:-size, size:] - total[size:, :-size]
    return (sums + total[:-size, :-size]) / size**2


def _drawn(crop: Crop, title: str) -> np.ndarray:
    """The parts side by side, each pixel as a square, with their names."""
    height, width = (_ZOOM * side for side in crop.parts[HR].shape[:2])
    step = width + _MARGIN
    top = 3 * _LINE + _MARGIN
    canvas = Image.new(
        "RGB", (_MARGIN + step * len(crop.parts), top + height + _MARGIN), "white"
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_LINE * 0.7)
    where = f"{title}; {crop.picture} at {crop.left},{crop.top}"
    lines = [((_MARGIN, _MARGIN), where, canvas.width - 2 * _MARGIN)]
    reference = metrics.luma(crop.parts[HR])
    for column, (name, pixels) in enumerate(crop.parts.items()):
        left = _MARGIN + step * column
        part = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(part, (left, top))
        lines.append(((left, _MARGIN + _LINE), name, width))
        if name != HR:
            psnr = metrics.psnr(metrics.luma(pixels), reference)
            lines.append(((left, _MARGIN + 2 * _LINE), f"{psnr:.2f} dB", width))
    for at, text, most in lines:
        draw.text(at, _fitting(printable(text), font, most), "black", font)
    return np.asarray(canvas)


def _fitting(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, most: int
) -> str:
    """A text, or its end where it is wider than so many pixels."""
    shown = text
    while len(shown) > 1 and font.getlength(shown) > most:
        text = text[1:]
        shown = f"..{text}"
    return shown
