"""The checks by name: `nox` runs all, `nox -s lint` one. `.ci/run` runs the same.

They run in the environment that nox is installed in (the extra `dev` brings it): a new
environment for each session would install PyTorch four times.
On request run `light`, which makes an environment, `web`, which needs npm, and
`sanitize`, which needs clang.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "docs", "test"]


def run(session: nox.Session, module: str, *arguments: str) -> None:
    session.run(sys.executable, "-m", module, *arguments)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, import directions, and copies of the network."""
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    session.run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")
    session.run(sys.executable, "tools/sync_core.py", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Types of the sources."""
    run(session, "mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Links, line lengths and figures of the documents, and their site."""
    run(session, "pytest", "-n", "0", "tests/test_repository.py")
    session.run(sys.executable, "tools/build_site.py")


@nox.session
def test(session: nox.Session) -> None:
    """The tests, or those named after `--`."""
    run(session, "pytest", *session.posargs)


@nox.session
def web(session: nox.Session) -> None:
    """The page of `aethernet web` in Chromium; needs npm."""
    environment = {"PYTHON": sys.executable}
    for step in (["ci"], ["run", "page"], ["test", "--", *session.posargs]):
        session.run("npm", "--prefix", "web", *step, env=environment, external=True)


@nox.session(venv_backend="venv")
def light(session: nox.Session) -> None:
    """The tests that need no PyTorch, in an environment without it."""
    session.install("-e", ".[ncnn,test,ui,video]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def sanitize(session: nox.Session) -> None:
    """The native kernels with clang's checks of memory and of undefined behaviour.

    Runs random networks of every shape, from pictures of 1x1, in all variants.
    """
    asked = ["clang", "-print-file-name=libclang_rt.asan-x86_64.so"]
    runtime = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        for lanes in ("", "4", "16"):  # of this machine; as on arm64; as with AVX-512
            library = f"{folder}/kernels{lanes}.so"
            build = ["--compiler", "clang", "--output", library, "--"]
            build += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
            build += ["-shared-libasan", "-O1"]
            build += [f"-DLANES={lanes}"] if lanes else []
            session.run(sys.executable, "tools/build_native.py", *build)
            # The interpreter is not compiled so: its libraries come first, and what it
            # never frees is not counted.
            session.run(
                *(sys.executable, "benchmarks/native_random.py", "--library", library),
                *("--count", *(session.posargs or ["300"])),
                env={"LD_PRELOAD": runtime.strip(), "ASAN_OPTIONS": "detect_leaks=0"},
            )
