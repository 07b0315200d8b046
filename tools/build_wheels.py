"""Build AetherNet's wheels for all systems that have native kernels, on one machine.

    python tools/build_wheels.py [--output dist] [--only TAG ...]

It needs `pip install "setuptools>=77" ziglang`, and the page of `aethernet web`, which
npm builds. zig compiles the kernels for Linux, Windows and macOS. Each wheel is
checked: its library is for the right processor, exports every function, and needs no
other library. A library for macOS needs the system's own, as all do, and on arm64 a
signature, which zig makes.
"""

import argparse
import importlib.util
import runpy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from object_files import read_library

ROOT = Path(__file__).resolve().parents[1]
NATIVE = "aethernet/runtimes/native"
PAGE = ROOT / "web/build"

# What a wheel is made of.
_PARTS = (
    *("pyproject.toml", "setup.py", "README.md", "LICENSE", "src", "models"),
    "spandrel",
)
_BUILT = ("__pycache__", "*.egg-info", "*.so", "*.dll", "*.dylib", "*.wasm")


class WheelError(Exception):
    """A wheel cannot be built, or is not what it should be."""


def native_build() -> Any:
    """`build.py` by its path: AetherNet need not be installed."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "src" / NATIVE / "build.py")))


def copy_sources(folder: Path) -> Path:
    """Copy what a wheel is made of, and nothing of an earlier build."""
    folder.mkdir()
    for part in _PARTS:
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns(*_BUILT)
            shutil.copytree(ROOT / part, folder / part, ignore=ignored)
        else:
            shutil.copy(ROOT / part, folder)
    return folder


def build_wheel(tag: str, folder: Path, page: Path | None = None) -> Path:
    """Build and check the wheel for a platform.

    Args:
        tag: a key of `TARGETS` in `build.py`.
        folder: where to put it.
        page: the built page of `aethernet web`; None for a wheel without it.

    Raises:
        WheelError: when it fails, or the wheel is not right.
    """
    for name in ("setuptools", "ziglang"):
        if not importlib.util.find_spec(name):
            raise WheelError(f"{name} is missing: pip install 'setuptools>=77' ziglang")
    with tempfile.TemporaryDirectory() as temporary:
        copy = copy_sources(Path(temporary, "copy"))
        if page:
            shutil.copytree(page, copy / "src/aethernet/page")
        made = Path(temporary, "made")
        command = [sys.executable, "-m", "pip", "wheel", str(copy), "-w", str(made)]
        command += ["--no-deps", "--no-build-isolation", "--no-cache-dir", "-q"]
        command += [f"--config-settings=--build-option=--plat-name={tag}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = [*made.glob("*.whl")]
        if done.returncode or len(wheels) != 1:
            raise WheelError(f"{tag} cannot be built:\n{done.stdout}{done.stderr}")
        check_wheel(wheels[0], tag)
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheels[0], folder))


def check_wheel(wheel: Path, tag: str) -> None:
    """Check a wheel's name and its library.

    Raises:
        WheelError: when something is wrong.
    """
    build = native_build()
    target = build.TARGETS[tag]
    if not wheel.name.endswith(f"-py3-none-{tag}.whl"):
        raise WheelError(f"{wheel.name} is not for {tag}.")
    with zipfile.ZipFile(wheel) as archive:
        found = [n for n in archive.namelist() if n.startswith(f"{NATIVE}/kernels.")]
        names = ("kernels.c", target.library, *(p.name for p in build.PAGE_KERNELS))
        wanted = {f"{NATIVE}/{name}" for name in names}
        if {*found} != wanted:
            raise WheelError(f"{wheel.name} has {found} instead of {wanted}.")
        library = read_library(archive.read(f"{NATIVE}/{target.library}"))
    of_macos = target.suffix == ".dylib"
    system = {"/usr/lib/libSystem.B.dylib"} if of_macos else set()
    for is_right, what in (
        (library.machine == target.processor, f"is for {library.machine}"),
        (library.exports >= build.exports(target), f"exports {library.exports}"),
        (library.needs <= system, f"needs {library.needs}"),
        (
            library.signed or not of_macos or target.processor != "arm64",
            "has no signature",
        ),
    ):
        if not is_right:
            raise WheelError(f"The library in {wheel.name} {what}.")


def main() -> None:
    tags = [*native_build().TARGETS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("dist"), help="folder")
    parser.add_argument("--only", nargs="+", choices=tags, default=tags, metavar="TAG")
    given = parser.parse_args()
    try:
        if not (PAGE / "index.html").is_file():
            raise WheelError(
                "The page of `aethernet web` is not built. Run this first:\n"
                "npm --prefix web ci && npm --prefix web run page"
            )
        for tag in given.only:
            print(build_wheel(tag, given.output, PAGE))
    except WheelError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
