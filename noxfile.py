"""The checks by name: `nox` runs all, `nox -s lint` one. `.ci/run` runs the same.

They run in the environment that nox is installed in (the extra `dev` brings it): a new
environment for each session would install PyTorch four times.
"""

import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"


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
