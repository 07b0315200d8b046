"""Compile `kernels.c` and `level.c` into the library that `library.py` loads.

`tools/build_native.py` is the command. This module needs the standard library only, so
that an installation can run it before anything else is installed.

The compiler is the one that the PyPI package `ziglang` brings, which needs nothing else
on any system; where that is not installed, the first of `clang`, `cc` and `gcc`.
clang, which is in zig, keeps the kernels' sums in registers; gcc does not always.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}
LIBRARY = Path(__file__).with_name(f"kernels{_SUFFIXES.get(sys.platform, '.so')}")
"""The library for this machine, beside this file."""
KERNELS = Path(__file__).with_name("kernels.c")
LEVEL = Path(__file__).with_name("level.c")
# Names of the variants and the instruction set of each, by kind of processor. clang
# and gcc write x86-64-v3 where zig writes x86_64_v3.
VARIANTS: dict[str, dict[str, list[str]]] = {
    "x86_64": {"v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4"]},
    "arm64": {"neon": []},
}
# Products and sums become one instruction; no function of the C library sets errno.
# Nothing else of -ffast-math: what is not a number stays visible.
FLAGS = [
    *("-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
]
# LLVM splits 512-bit vectors on some processors unless told otherwise.
_WIDE = "-mprefer-vector-width=512"


class BuildError(Exception):
    """The library cannot be built here; the text says why."""


def sources() -> int:
    """A number for the content of the sources and for how they are compiled, 63 bits.

    The library has that of the sources it was built from, and is refused with others:
    its functions might take other arguments.
    """
    content = b"".join(path.read_bytes() for path in (KERNELS, LEVEL))
    content += repr((FLAGS, VARIANTS)).encode()
    return int(hashlib.sha256(content).hexdigest()[:16], 16) >> 1


def compiler_command() -> list[str]:
    """The command of a C compiler of this machine.

    Raises:
        BuildError: when there is none.
    """
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    for name in ("clang", "cc", "gcc"):
        if found := shutil.which(name):
            return [found]
    raise BuildError("No C compiler found. Install one: pip install ziglang.")


def kind_of_processor(machine: str = "") -> str:
    """A key of `VARIANTS`, or "" for any other processor."""
    machine = (machine or platform.machine()).lower()
    names = {"amd64": "x86_64", "aarch64": "arm64"}
    machine = names.get(machine, machine)
    return machine if machine in VARIANTS else ""


def build(
    output: Path = LIBRARY,
    compiler: Sequence[str] = (),
    processor: str = "",
    extra: Sequence[str] = (),
) -> Path:
    """Compile the library.

    Args:
        output: the file to write; it appears complete or not at all.
        compiler: a command that takes the arguments of cc; empty: `compiler_command`.
        processor: a key of `VARIANTS`; empty: this machine's.
        extra: more arguments for every step, e.g. `-target` for zig, or sanitizers.

    Returns:
        `output`.

    Raises:
        BuildError: when there is no compiler, it fails, or there are no kernels for
            this kind of processor.
    """
    command = [*(compiler or compiler_command())]
    processor = processor or kind_of_processor()
    if processor not in VARIANTS:
        raise BuildError(
            f"There are no kernels for this processor ({platform.machine()})."
        )
    with tempfile.TemporaryDirectory() as folder:
        objects = [Path(folder) / "level.o"]
        _compile(command, LEVEL, [f"-DSOURCES={sources()}", *extra], objects[0])
        for name, flags in VARIANTS[processor].items():
            own = [_as_zig(flag, command) for flag in flags]
            wide = [_WIDE] if name == "v4" else []
            objects.append(Path(folder) / f"{name}.o")
            own += [f"-DVARIANT={name}", *wide, *extra]
            _compile(command, KERNELS, own, objects[-1])
        made = Path(folder) / output.name
        _call([*command, "-shared", *map(str, objects), *extra, "-o", str(made)])
        _move(made, output)
    return output


def _move(made: Path, output: Path) -> None:
    """Copy a file beside its place, then rename it: others see it complete or not."""
    part = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, because two builds may run at the same time.
        handle, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
        os.close(handle)
        part = Path(name)
        shutil.copyfile(made, part)
        part.chmod(0o755)
        part.replace(output)
    except OSError as error:
        raise BuildError(f"{output} cannot be written: {error.strerror}.") from error
    finally:
        if part:
            part.unlink(missing_ok=True)


def _as_zig(flag: str, command: Sequence[str]) -> str:
    return flag.replace("x86-64-v", "x86_64_v") if "ziglang" in command else flag


def _compile(
    command: Sequence[str], source: Path, flags: Sequence[str], output: Path
) -> None:
    _call([*command, *FLAGS, *flags, "-c", str(source), "-o", str(output)])


def _call(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"The compiler does not start: {error}.") from error
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise BuildError(f"The compiler failed: {' '.join(command)}\n{said}")
