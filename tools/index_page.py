"""Prepare a clone for the package index: links of README.md and project addresses.

    python tools/index_page.py https://github.com/OWNER/REPOSITORY TAG [--folder CLONE]

The index shows README.md outside the repository, where its relative links lead nowhere.
They are written with the address of the repository in front, and the same addresses go
into `pyproject.toml`, for the margin of the page. The repository itself does not name
its address, so that every copy of it can be published. Run it in a clone that is thrown
away, before the distributions are built.
"""

import argparse
import re
from pathlib import Path

# Text or alternative text, then the target, up to a bracket or a title.
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")

_PLACE = "\n[project.scripts]\n"


def absolute_links(text: str, url: str, tag: str) -> str:
    """Markdown in which links to files of the repository are absolute."""

    def absolute(link: re.Match[str]) -> str:
        image, words, target = link.groups()
        if "://" in target or target.startswith("#"):
            return link[0]
        return f"{image}[{words}]({url}/{'raw' if image else 'blob'}/{tag}/{target})"

    return _LINK.sub(absolute, text)


def with_addresses(settings: str, url: str, tag: str) -> str:
    """The text of a `pyproject.toml` with the addresses of the project.

    Raises:
        ValueError: when it has some already, or no place for them.
    """
    if "[project.urls]" in settings or _PLACE not in settings:
        raise ValueError("pyproject.toml is not that of a fresh clone.")
    addresses = {
        "Homepage": url,
        "Documentation": f"{url}/tree/{tag}/docs",
        "Changelog": f"{url}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{url}/issues",
    }
    table = "\n[project.urls]\n" + "".join(
        f'{name} = "{address}"\n' for name, address in addresses.items()
    )
    return settings.replace(_PLACE, table + _PLACE)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="of the repository, without a slash at the end")
    parser.add_argument("tag", help="of the version, or a branch")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="the clone; default: this folder"
    )
    arguments = parser.parse_args()
    if not re.fullmatch(r"https://[^\s\"]+[^\s\"/]", arguments.url):
        parser.error("the URL has to begin with https:// and end without a slash")
    changes = {"README.md": absolute_links, "pyproject.toml": with_addresses}
    for name, change in changes.items():
        path = arguments.folder / name
        text = path.read_text("utf-8")
        try:
            changed = change(text, arguments.url, arguments.tag)
        except ValueError as error:
            parser.error(str(error))
        path.write_text(changed, "utf-8", newline="\n")


if __name__ == "__main__":
    main()
