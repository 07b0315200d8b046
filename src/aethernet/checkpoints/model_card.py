"""The card of a released model: a Markdown page with its facts, quality and files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from aethernet.metrics import Figures


@dataclass(frozen=True)
class File:
    """A row of the card's table of files."""

    name: str
    what: str
    size: int
    """In bytes."""
    check: str
    """The result of the comparison with the checkpoint that it was made from."""


@dataclass(frozen=True)
class Card:
    """The content of a card."""

    name: str
    description: str
    facts: Sequence[tuple[str, str]]
    """Rows of the first table: name and value."""
    files: Sequence[File]
    notes: str = ""
    """Markdown by the author, with headings from ## on."""
    protocol: str = ""
    """How the figures were measured."""
    figures: "Mapping[str, Mapping[str, Figures]]" = field(default_factory=dict)
    """By set, then by method, the model first. All sets have the same methods."""
    pictures: Sequence[tuple[str, str]] = ()
    """Picture files, relative to the card, and their captions."""


def as_markdown(card: Card) -> str:
    """The card as a page of Markdown."""
    parts = [
        f"# {card.name}",
        card.description,
        _table(("", ""), card.facts),
        card.notes.strip(),
    ]
    if card.figures:
        methods = [*next(iter(card.figures.values()))]
        rows = [
            (name, *(_as_text(by_method[method]) for method in methods))
            for name, by_method in card.figures.items()
        ]
        parts += ["## Figures", card.protocol, _table(("set", *methods), rows)]
    header = ("file", "what it is", "size", "against the checkpoint")
    files = [
        (f"`{file.name}`", file.what, f"{file.size / 1e6:.1f} MB", file.check)
        for file in card.files
    ]
    parts += ["## Files", _table(header, files)]
    for path, caption in card.pictures:
        parts += [f"![{_inline(caption)}]({quote(path)})", f"<sup>{caption}</sup>"]
    return "\n\n".join(filter(None, parts)) + "\n"


def figures_of(text: str) -> dict[str, float]:
    """PSNR of the model in dB by set, read from the table of a card."""
    rows = re.findall(r"^\| (\S[^|]*?) \| ([0-9.]+) dB / ", text, re.MULTILINE)
    return {name: float(figure) for name, figure in rows}


def _as_text(figures: "Figures") -> str:
    return f"{figures.psnr:.3f} dB / {figures.ssim:.4f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_inline, line))} |" for line in lines)


def _inline(text: str) -> str:
    """Text that fits into a table cell: one line, with `|` escaped."""
    return " ".join(text.split()).replace("|", "\\|")
