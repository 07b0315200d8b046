"""Compile `kernels.c` and `level.c` into the library that `library.py` loads, and into
WebAssembly for the page of `aethernet web`.

`pip install` does it (`setup.py`), and `tools/build_native.py` is the command for a
clone. This module needs the standard library only, so that an installation can run it
before anything else is installed.

The compiler is the one that the PyPI package `ziglang` brings, which needs nothing else
on any system and compiles for all of them; where that is not installed, the first of
`clang`, `cc` and `gcc`. clang, which is in zig, keeps the kernels' sums in registers;
gcc does not always.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

KERNELS = Path(__file__).with_name("kernels.c")
LEVEL = Path(__file__).with_name("level.c")


@dataclass(frozen=True)
class Target:
    """A kind of machine for which a library can be built."""

    processor: str
    """A key of `VARIANTS`."""
    triple: str
    """As zig names it, with the oldest version of the system."""
    suffix: str
    """Of a library."""
    position_independent: bool = True
    """Whether code has to be compiled for any address; Windows moves it itself."""

    @property
    def library(self) -> str:
        """Name of the library's file."""
        return f"kernels{self.suffix}"


# The library calls no function of the system: any version would do. glibc 2.17 is that
# of manylinux2014, a tag that every pip for Python 3.11 knows; macOS 11 is the first on
# arm64, and 10.13 the oldest that Python 3.13 runs on.
TARGETS = {
    "manylinux_2_17_x86_64.manylinux2014_x86_64": Target(
        "x86_64", "x86_64-linux-gnu.2.17", ".so"
    ),
    "manylinux_2_17_aarch64.manylinux2014_aarch64": Target(
        "arm64", "aarch64-linux-gnu.2.17", ".so"
    ),
    "win_amd64": Target("x86_64", "x86_64-windows-gnu", ".dll", False),
    "macosx_11_0_arm64": Target("arm64", "aarch64-macos.11.0", ".dylib"),
    "macosx_10_13_x86_64": Target("x86_64", "x86_64-macos.10.13", ".dylib"),
}
"""By the platform tag of their wheels."""

# Names of the variants and the instruction set of each, by kind of processor. clang
# and gcc write x86-64-v3 where zig writes x86_64_v3.
VARIANTS: dict[str, dict[str, list[str]]] = {
    "x86_64": {"v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4"]},
    "arm64": {"neon": []},
}
PAGE_VARIANTS = {"relaxed": ["-mrelaxed-simd"], "plain": []}
"""Those in WebAssembly, best first: products and sums as one instruction, which not
every browser has, or as two."""
FUNCTIONS = ("block", "norm", "conv", "first", "tail", "peak", "constant")
"""What `kernels.c` exports for each variant, as `aether_block_v3`."""

# Products and sums become one instruction; no function of the C library sets errno.
# Nothing else of -ffast-math: what is not a number stays visible. Freestanding: a loop
# is not replaced by a call of the C library.
FLAGS = [
    *("-std=gnu11", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-ffreestanding", "-fno-stack-protector"),
]
_PAGE_FLAGS = ["-target", "wasm32-freestanding", "-msimd128", "-matomics"]
_PAGE_FLAGS += ["-mbulk-memory"]  # which shared memory asks for, as atomics
# The page makes the memory, 1 GiB at most, and gives each thread a stack in it.
_PAGE_LINKING = [
    *("-nostdlib", "-s", "-Wl,--no-entry", "-Wl,--export-dynamic"),
    *("-Wl,--import-memory", "-Wl,--shared-memory", f"-Wl,--max-memory={2**30}"),
    *("-Wl,-z,stack-size=4096", "-Wl,--export=__stack_pointer"),
    "-Wl,--export=__heap_base",
]
# LLVM splits 512-bit vectors on some processors unless told otherwise.
_WIDE = "-mprefer-vector-width=512"


class BuildError(Exception):
    """The library cannot be built here; the text says why."""


def kind_of_processor(machine: str = "") -> str:
    """A key of `VARIANTS`, or "" for any other processor and for Python of 32 bits."""
    if sys.maxsize < 2**32:
        return ""
    machine = (machine or platform.machine()).lower()
    names = {"amd64": "x86_64", "aarch64": "arm64"}
    machine = names.get(machine, machine)
    return machine if machine in VARIANTS else ""


def target_of(system: str = sys.platform, processor: str = "") -> Target | None:
    """The target for a system as `sys.platform` names it; None: there is none.

    Args:
        system: this one by default.
        processor: a key of `VARIANTS`; empty: this machine's.
    """
    suffix = {"win32": ".dll", "darwin": ".dylib", "linux": ".so"}.get(system, "")
    wanted = (processor or kind_of_processor(), suffix)
    for target in TARGETS.values():
        if (target.processor, target.suffix) == wanted:
            return target
    return None


_HERE = target_of()
LIBRARY = Path(__file__).with_name(_HERE.library if _HERE else "kernels.so")
"""The library for this machine, beside this file."""

PAGE_KERNELS = [LIBRARY.with_name(f"kernels.{name}.wasm") for name in PAGE_VARIANTS]
"""The kernels of the page, best first."""


def exports(target: Target) -> set[str]:
    """Names of all functions of a library."""
    names = {f"{f}_{v}" for f in FUNCTIONS for v in VARIANTS[target.processor]}
    return {f"aether_{name}" for name in names | {"level", "sources"}}


def sources() -> int:
    """A number for the content of the sources and for how they are compiled, 63 bits.

    The library has that of the sources it was built from, and is refused with others:
    its functions might take other arguments.
    """
    content = b"".join(path.read_bytes() for path in (KERNELS, LEVEL))
    flags = (FLAGS, VARIANTS, PAGE_VARIANTS, _PAGE_FLAGS, _PAGE_LINKING)
    content += repr(flags).encode()
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


def build(
    output: Path | None = None,
    compiler: Sequence[str] = (),
    target: Target | None = None,
    extra: Sequence[str] = (),
) -> Path:
    """Compile the library.

    Args:
        output: the file to write, which appears complete or not at all; None: where
            AetherNet looks for it.
        compiler: a command that takes the arguments of cc; empty: `compiler_command`.
        target: None: this machine. For another one the compiler has to be zig.
        extra: more arguments for every step, e.g. sanitizers.

    Returns:
        `output`.

    Raises:
        BuildError: when there is no compiler, it fails, or there are no kernels for
            this kind of machine.
    """
    output = output or LIBRARY
    command = [*(compiler or compiler_command())]
    wanted = target or _HERE
    if wanted is None:
        where = f"{sys.platform} on {platform.machine()}"
        raise BuildError(f"There are no kernels for {where}.")
    zig = _is_zig(command)
    if target not in (None, _HERE) and not zig:
        raise BuildError("Only zig compiles for other machines: pip install ziglang.")
    always = [*FLAGS, *(["-fPIC"] if wanted.position_independent else []), *extra]
    linking = ["-shared", *extra]
    if zig:
        always += ["-target", wanted.triple]
        # Without the C library, which zig would have to compile first. A library for
        # Windows needs no function that is called when it is loaded.
        linking += ["-target", wanted.triple, "-nostdlib", "-s"]
        linking += ["-Wl,--no-entry"] if wanted.suffix == ".dll" else []
    with _Compiler(command, always) as tool:
        objects = [tool.compiled(LEVEL, "level", [f"-DSOURCES={sources()}"])]
        for name, flags in VARIANTS[wanted.processor].items():
            own = [f.replace("x86-64-v", "x86_64_v") for f in flags] if zig else flags
            own = [*own, f"-DVARIANT={name}", *([_WIDE] if name == "v4" else [])]
            objects.append(tool.compiled(KERNELS, name, own))
        tool.link(objects, linking, output)
    return output


def build_page(folder: Path | None = None, compiler: Sequence[str] = ()) -> list[Path]:
    """Compile the kernels of the page.

    Args:
        folder: where to put them; None: where AetherNet looks for them.
        compiler: zig's, as `build` takes it.

    Returns:
        The files, best first.

    Raises:
        BuildError: when it fails, or the compiler is not zig, which has all it needs.
    """
    command = [*(compiler or compiler_command())]
    if not _is_zig(command):
        raise BuildError("Only zig compiles to WebAssembly: pip install ziglang.")
    outputs = [(folder or path.parent) / path.name for path in PAGE_KERNELS]
    for output, flags in zip(outputs, PAGE_VARIANTS.values(), strict=True):
        always = [*_PAGE_FLAGS, *flags]
        with _Compiler(command, [*FLAGS, *always, "-DVARIANT=page"]) as tool:
            objects = [
                tool.compiled(LEVEL, "level", [f"-DSOURCES={sources()}"]),
                tool.compiled(KERNELS, "kernels", []),
            ]
            tool.link(objects, [*always, *_PAGE_LINKING], output)
    return outputs


def is_current(content: bytes) -> bool:
    """Whether a file of the page's kernels was built from the sources beside this."""
    number, code = sources(), bytearray(b"\x42")  # i64.const, in LEB128
    while number >= 64:
        code.append(number & 127 | 128)
        number >>= 7
    code.append(number)
    return bytes(code) in content


class _Compiler:
    """A compiler with a temporary folder."""

    def __init__(self, command: Sequence[str], always: Sequence[str]) -> None:
        self._command, self._always = command, always

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory()
        folder = self._temporary.name
        # zig keeps what it compiled; the user's own cache may not be writable.
        kept = {f"ZIG_{n}_CACHE_DIR": f"{folder}/cache" for n in ("GLOBAL", "LOCAL")}
        self._environment = {**os.environ, **kept}
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def compiled(self, source: Path, name: str, flags: Sequence[str]) -> str:
        """Compile a source, and return its object file."""
        made = str(Path(self._temporary.name) / f"{name}.o")
        steps = [*self._command, *self._always, *flags, "-c", str(source), "-o", made]
        _call(steps, self._environment)
        return made

    def link(self, objects: Sequence[str], flags: Sequence[str], output: Path) -> None:
        """Link objects into a file, which appears complete or not at all."""
        made = Path(self._temporary.name) / output.name
        _call([*self._command, *objects, *flags, "-o", str(made)], self._environment)
        _move(made, output)


def _is_zig(command: Sequence[str]) -> bool:
    """Whether a command is `zig cc` or `python -m ziglang cc`."""
    return "ziglang" in command or Path(command[0]).stem.lower() == "zig"


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


def _call(command: Sequence[str], environment: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment
        )
    except OSError as error:
        raise BuildError(f"The compiler does not start: {error}.") from error
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise BuildError(f"The compiler failed: {' '.join(command)}\n{said}")
