"""CPU seconds of the first picture: `aethernet upscale assets/sample.png`, no cache.

    python benchmarks/first_picture.py [--rounds 3] [--picture FILE] [--runtimes ..]

In a round the command runs once with each installed runtime and once with
`--runtime auto`, each in a process and with an empty cache of its own. Printed are the
medians of user and system time together, and of their ratios to the first, taken round
by round: what else the machine does then hits all. A round before that, which does not
count, compiles Python's files, as an installation does. Not on Windows.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from aethernet.devices import installed_versions
from aethernet.runtimes.registry import RUNTIMES, runtimes_for

SAMPLE = Path(__file__).parents[1] / "assets/sample.png"
BASE = "pytorch"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--picture", type=Path, default=SAMPLE)
    installed = [
        name
        for name in sorted(runtimes_for("cpu"), key=lambda name: name != BASE)
        if installed_versions(RUNTIMES[name].distributions)
    ]
    parser.add_argument(
        "--runtimes",
        nargs="+",
        default=[*installed, "auto"],
        help="to compare, with the first; default: all that are installed, and auto",
    )
    given = parser.parse_args()
    names = given.runtimes
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as compiled:
        for number in range(given.rounds + 1):
            for name in names:
                spent = measure(given.picture, name, compiled)
                if number:
                    seconds[name].append(spent)
    print(f"{'--runtime':12} CPU s  ratio to {names[0]}")
    for name, all_spent in seconds.items():
        pairs = zip(all_spent, seconds[names[0]], strict=True)
        ratio = statistics.median(own / base for own, base in pairs)
        print(f"{name:12} {statistics.median(all_spent):5.1f}  {ratio:5.2f}")
    return 0


def measure(picture: Path, runtime: str, compiled: str) -> float:
    """User and system seconds of the command with an empty cache.

    Args:
        picture: to upscale.
        runtime: that of the flag.
        compiled: folder for Python's compiled files.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "aethernet", "upscale", str(picture)]
        words += ["-o", f"{folder}/out.png", "--runtime", runtime, "--device", "cpu"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-P", *words],
            capture_output=True,
            text=True,
            env={**environment, "AETHERNET_CACHE": f"{folder}/cache"},
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    sys.exit(main())
