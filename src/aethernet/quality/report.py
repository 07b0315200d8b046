"""What the yardstick found: as tables, JSON, CSV, a plot, and crops to look at."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aethernet.bench.machine import describe_machine
from aethernet.devices import device_kind
from aethernet.errors import AetherError, import_optional
from aethernet.files import PLOT_SUFFIXES, check_target, replacing, sha256_of
from aethernet.quality.baselines import BICUBIC, LANCZOS
from aethernet.quality.measure import PROTOCOL, Measured, Row, Table
from aethernet.text import in_columns, printable

# Colours that colour-blind people tell apart (Okabe and Ito).
_MODELS, _BASELINES = "#0072B2", "#777777"


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
