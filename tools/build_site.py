"""Build the site of the documents: `python tools/build_site.py [--serve]`.

The pages are the Markdown files of the repository, in the same folders, so that links
between them work in both places. Files that they link to come along. Two pages are
made: the flags of the command, from its parsers, and the Python API, from docstrings.
Warnings, such as a link that leads nowhere, are errors. Needs the extra `docs`.
"""

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from aethernet.commands.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "build/site-source"

PAGES = ("*.md", "docs/**/*.md", "*/Readme.md", "models/[0-9]*.md")
"""Patterns of the pages, from the root of the repository."""

# The target of a link or a picture, without the part of the page.
_LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")

# The width of help texts, in characters.
_COLUMNS = "90"


def stage(folder: Path) -> None:
    """Fill a folder with the pages and with what they link to."""
    shutil.rmtree(folder, ignore_errors=True)
    for pattern in PAGES:
        for page in sorted(ROOT.glob(pattern)):
            _copy(page, folder)
            for target in _LINK.findall(page.read_text("utf-8")):
                linked = (page.parent / target).resolve()
                if "://" not in target and linked.is_file():
                    _copy(linked, folder)
    reference = folder / "docs/reference"
    reference.mkdir()
    (reference / "command.md").write_text(command_page(), "utf-8")
    (reference / "python.md").write_text(python_page(), "utf-8")


def _copy(file: Path, folder: Path) -> None:
    target = folder / file.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(file, target)


def command_page() -> str:
    """The help of every command."""
    parts = ["# The command", "What `aethernet COMMAND --help` prints."]
    for name, summary in COMMANDS.items():
        parts += [f"## {name}", f"{summary[0].upper()}{summary[1:]}."]
        parts.append(f"```text\n{help_of(name).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def help_of(command: str) -> str:
    """What a command prints for --help."""
    output, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _COLUMNS
    try:
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            main([command, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return output.getvalue()


def python_page() -> str:
    """The public names with their docstrings, for mkdocstrings."""
    return (
        "# Python API\n\n"
        "Every name is imported from `aethernet`; [From Python](../python.md) shows "
        "how they are used.\n\n"
        "::: aethernet.api\n    options:\n      show_root_heading: false\n\n"
        "::: aethernet.checkpoints.checkpoint.load_checkpoint\n\n"
        "::: aethernet.checkpoints.checkpoint.save_checkpoint\n\n"
        "::: aethernet.errors.AetherError\n"
    )


def build(serve: bool) -> int:
    """Build the site into `build/site`, or show it while its pages are edited."""
    stage(SOURCE)
    words = ["serve"] if serve else ["build", "--strict", "--quiet"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # about its successor
    command = [sys.executable, "-m", "mkdocs", *words, "-f", str(ROOT / "mkdocs.yml")]
    return subprocess.run(command, check=False, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--serve", action="store_true", help="show it in the browser")
    sys.exit(build(parser.parse_args().serve))
