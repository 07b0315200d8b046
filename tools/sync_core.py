"""Write the generated copies of the network: `python tools/sync_core.py [--check]`.

The network is written once, in src/aethernet/aether_core.py. spandrel's folder gets the
whole file. The drop-in files of neosr and traiNNer-redux get everything after its
imports, between two markers; what stands around the markers is written there by hand.
"""

import argparse
import ast
import difflib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "src/aethernet/aether_core.py"
WHOLE_COPIES = (ROOT / "spandrel/architectures/AetherNet/__arch/aether_core.py",)
BLOCK_COPIES = (
    ROOT / "neosr/archs/aether_arch.py",
    ROOT / "traiNNer-redux/traiNNer/archs/aether_arch.py",
)
BEGIN = "# --- AetherNet begins: written by tools/sync_core.py from the core ---"
END = "# --- AetherNet ends ---"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a copy is stale"
    )
    check = parser.parse_args().check
    stale = False
    for path, wanted in wanted_copies().items():
        found = path.read_text("utf-8") if path.exists() else ""
        if found == wanted:
            continue
        stale = True
        name = path.relative_to(ROOT).as_posix()
        if check:
            lines = (found.splitlines(True), wanted.splitlines(True))
            diff = difflib.unified_diff(*lines, name, f"{name} (wanted)")
            sys.stdout.writelines(diff)
        else:
            path.write_text(wanted, "utf-8", newline="\n")
            print(f"wrote {name}")
    if check and stale:
        print("Stale: run python tools/sync_core.py", file=sys.stderr)
    return int(check and stale)


def wanted_copies() -> dict[Path, str]:
    """Path -> what the file should hold."""
    core = CORE.read_text("utf-8")
    imports, body = split_imports(core)
    copies = dict.fromkeys(WHOLE_COPIES, core)
    for path in BLOCK_COPIES:
        text = path.read_text("utf-8")
        if text.count(BEGIN) != 1 or text.count(END) != 1:
            raise SystemExit(f"error: {path} must hold each marker once: {BEGIN}")
        header, rest = text.split(BEGIN)
        footer = rest.split(END)[1]
        missing = imports - split_imports(header)[0]
        if missing:
            raise SystemExit(f"error: {path} lacks in its header: {sorted(missing)}")
        copies[path] = f"{header}{BEGIN}\n\n{body}\n\n\n{END}{footer}"
    return copies


def split_imports(source: str) -> tuple[set[str], str]:
    """What a module imports at its top, one name each; and the text after that."""
    names: set[str] = set()
    end = 0
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            names.update(f"import {alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"from {node.module} import {a.name}" for a in node.names)
        elif end:
            break
        else:
            continue  # the docstring
        end = node.end_lineno or 0
    return names, "\n".join(source.splitlines()[end:]).strip("\n")


if __name__ == "__main__":
    sys.exit(main())
