"""Results of measuring as text, JSON, CSV and a plot."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aethernet.devices import describe_machine, device_kind
from aethernet.errors import AetherError, import_optional
from aethernet.files import PLOT_SUFFIXES, check_target, replacing, sha256_of
from aethernet.quality.baselines import BICUBIC, LANCZOS
from aethernet.quality.measure import PROTOCOL, Measured, Row, Table
from aethernet.runtimes.registry import runtime_distributions
from aethernet.text import in_columns, printable

# Colours that colour-blind people can tell apart (Okabe and Ito).
_MODELS, _BASELINES = "#0072B2", "#777777"


@dataclass(frozen=True)
class Targets:
    """Where to write results; None: not written."""

    json: Path | None = None
    csv: Path | None = None
    plot: Path | None = None
    crops: Path | None = None
    """A folder."""

    def check(self) -> None:
        """Check that all can be written, before anything is measured.

        Raises:
            AetherError: when one cannot be written, or the plot is no .png or .svg.
            MissingExtraError: when matplotlib is not installed for a plot.
        """
        for target in filter(None, (self.json, self.csv, self.plot)):
            check_target(target)
        if self.plot:
            if self.plot.suffix.lower() not in PLOT_SUFFIXES:
                raise AetherError("A plot has to be a .png or .svg file.", self.plot)
            import_optional("matplotlib", "bench")
        if self.crops:
            if self.crops.exists() and not self.crops.is_dir():
                raise AetherError(
                    "This is a file.", self.crops, "Name a folder after --crops."
                )
            inside = self.crops / "crop.png"
            check_target(inside if self.crops.is_dir() else self.crops)


@dataclass(frozen=True)
class Origin:
    """Where results come from, as noted in the JSON file."""

    command: str
    """The command line that measured them."""
    files: Mapping[str, Path]
    """Model files by the names of the models."""
    missing: Mapping[str, str]
    """Names of the perceptual metrics that were left out, and why."""


def as_text(table: Table) -> str:
    """A table as plain text."""
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
        row.method,
        f"{row.mean.psnr:.3f}",
        f"{row.mean.ssim:.4f}",
        *(f"{row.mean_of(name):.4f}" for name in perceptual),
        f"{row.seconds_per_megapixel:.3f}",
        f"{by.runtime} {by.precision} on {by.device}{divided}",
    )


def write_all(tables: Sequence[Table], targets: Targets, origin: Origin) -> None:
    """Write the files that `targets` names.

    Raises:
        AetherError: when one cannot be written.
    """
    if targets.json:
        write_json(tables, targets.json, origin)
    if targets.csv:
        write_csv(tables, targets.csv)
    if targets.plot:
        draw(tables, targets.plot)


def write_json(tables: Sequence[Table], target: Path, origin: Origin) -> None:
    """Write all results, per picture and as means; non-finite values become null.

    Raises:
        AetherError: when the file cannot be written, or a model file cannot be read.
    """
    content = {
        "command": origin.command,
        "protocol": PROTOCOL,
        "machine": describe_machine(_device(tables), runtime_distributions()),
        "models": {
            name: {"file": path.name, "sha256": sha256_of(path)}
            for name, path in origin.files.items()
        },
        "left_out": dict(origin.missing),
        "sets": [
            {
                "name": table.name,
                "scale": table.scale,
                "methods": [_as_json(row, table.perceptual) for row in table.rows],
            }
            for table in tables
        ],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    with replacing(target) as temporary:
        # A file name may have bytes that are not valid UTF-8; they become \udc80 etc.
        temporary.write_text(text + "\n", "utf-8", errors="backslashreplace")


def _device(tables: Sequence[Table]) -> str:
    """The first GPU that a method ran on, or "cpu"."""
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
    """None for infinity (equal pictures) and NaN, which JSON does not have."""
    return value if math.isfinite(value) else None


def write_csv(tables: Sequence[Table], target: Path) -> None:
    """Write one line for each method on each picture.

    Raises:
        AetherError: when the file cannot be written.
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
    """Draw PSNR-Y against seconds per megapixel, one plot for each set.

    Raises:
        MissingExtraError: when matplotlib is not installed.
        AetherError: when the file cannot be written.
    """
    import_optional("matplotlib", "bench")
    from matplotlib.figure import Figure  # draws without a display

    figure = Figure(figsize=(1 + 6 * len(tables), 5), layout="constrained")
    plots = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, table in zip(plots, tables, strict=True):
        axes.set_xscale("log")
        axes.margins(0.2, 0.12)
        axes.set_title(f"{printable(table.name)}, {table.scale}x", parse_math=False)
        axes.set_xlabel("seconds per megapixel of output")
        axes.set_ylabel("PSNR-Y in dB")
        axes.grid(linewidth=0.3)
        for row in table.rows:
            if math.isfinite(row.mean.psnr):  # infinite for equal pictures
                _draw_row(axes, row)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=150)


def _draw_row(axes: Any, row: Row) -> None:
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
