"""What an installation adds to a fresh virtual environment, and the time it takes.

    python benchmarks/installation.py [--extras video,openvino] [--largest 10]

pip's cache decides much of the time: the second run shows it without the downloads.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder and those below it."""
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum(map(size, path.iterdir()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--extras", default="", help="of AetherNet, e.g. video,ui")
    parser.add_argument(
        "--largest", type=int, default=10, help="packages to list; default: 10"
    )
    arguments = parser.parse_args()
    wanted = f"{ROOT}[{arguments.extras}]" if arguments.extras else str(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        windows = sys.platform == "win32"
        scripts = Path(folder, "Scripts" if windows else "bin")
        empty = size(Path(folder))
        start = time.perf_counter()
        subprocess.run(
            [scripts / "python", "-m", "pip", "install", "-q", wanted], check=True
        )
        seconds = time.perf_counter() - start
        added = size(Path(folder)) - empty
        print(
            f"{added / 1e6:.0f} MB in {seconds:.0f} s, beside the {empty / 1e6:.0f} MB "
            "of an empty environment"
        )
        (packages,) = Path(folder).glob("**/site-packages")
        found = sorted((size(path), path.name) for path in packages.iterdir())
        for count, name in found[: -arguments.largest - 1 : -1]:
            print(f"{count / 1e6:6.1f} MB  {name}")


if __name__ == "__main__":
    main()
