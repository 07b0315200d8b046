"""Compile the native runtime's kernels.

    python tools/build_native.py [--compiler clang] [--output FILE] [-- CC ARGUMENTS]

Without arguments the library for this machine is written where AetherNet looks for it.
"""

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).parents[1] / "src/aethernet/runtimes/native/build.py"


def _module() -> ModuleType:
    """`build.py` by its path: AetherNet need not be installed."""
    spec = importlib.util.spec_from_file_location("aethernet_native_build", SCRIPT)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{SCRIPT} cannot be loaded.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    build = _module()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--compiler", default="", help="command, in place of zig's")
    parser.add_argument("--processor", default="", choices=["", *build.VARIANTS])
    parser.add_argument("--output", type=Path, default=build.LIBRARY)
    parser.add_argument("extra", nargs="*", help="arguments for the compiler")
    given = parser.parse_args()
    try:
        print(
            build.build(
                given.output, given.compiler.split(), given.processor, given.extra
            )
        )
    except build.BuildError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
