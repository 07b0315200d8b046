"""Compile the native runtime's kernels in a clone.

    python tools/build_native.py [--compiler clang] [--output FILE] [-- CC ARGUMENTS]

Without arguments the library for this machine and the kernels for the page of
`aethernet web` are written where AetherNet looks for them.
`pip install` has done that already where it could; this shows why it could not, and
builds again after a change of the sources.
"""

import argparse
import runpy
from pathlib import Path
from types import SimpleNamespace

SCRIPT = Path(__file__).parents[1] / "src/aethernet/runtimes/native/build.py"


def main() -> None:
    # By its path: AetherNet need not be installed.
    build = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--compiler", default="", help="command, in place of zig's")
    parser.add_argument("--output", type=Path)
    parser.add_argument("extra", nargs="*", help="arguments for the compiler")
    given = parser.parse_args()
    try:
        print(build.build(given.output, given.compiler.split(), None, given.extra))
        if not (given.output or given.compiler or given.extra):
            print(*build.build_page(), sep="\n")
    except build.BuildError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
