"""CPU seconds of the commands that should start at once.

    python benchmarks/startup.py [--runs 5]

Each command runs several times in a process of its own. Printed are the median of its
user and system time together, and whether it imported torch. Not on Windows.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys

COMMANDS = (("--version",), ("--help",), ("models",))

# What a process runs; its exit code says whether torch was imported.
IMPORTED_TORCH = 3
CODE = f"""
import contextlib, sys
from aethernet.commands.main import main
with contextlib.suppress(SystemExit):
    main(sys.argv[1:])
sys.exit({IMPORTED_TORCH} if "torch" in sys.modules else 0)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="of each; default: 5")
    runs = parser.parse_args().runs
    for words in COMMANDS:
        measured = [measure(words) for _ in range(runs)]
        seconds = statistics.median(second for second, _ in measured)
        torch = "imports torch" if measured[0][1] else "without torch"
        print(f"aethernet {' '.join(words):10} {seconds:5.2f} s, {torch}")
    return 0


def measure(words: tuple[str, ...]) -> tuple[float, bool]:
    """User and system seconds of a command, and whether it imported torch."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-P", "-c", CODE, *words],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, IMPORTED_TORCH):
        raise SystemExit(f"aethernet {' '.join(words)} failed")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, done.returncode == IMPORTED_TORCH


if __name__ == "__main__":
    sys.exit(main())
