"""Commands in processes with limits on memory and time, and what they took.

Run as a script this is a server: it imports AetherNet and PyTorch once, and forks a
process for each line that it reads.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A process that takes more is killed: CPU seconds, and bytes of memory.
MOST_SECONDS = 20
MOST_BYTES = 3 * 10**9


@dataclass(frozen=True)
class Attempt:
    """What came of a command."""

    code: int
    """Exit code; negative for the signal that killed it."""
    out: str
    error: str
    seconds: float
    """CPU seconds, without the imports."""
    megabytes: float
    """Largest memory above what the imports take."""

    def check_refused(self, *reasons: str, seconds: float = 2) -> None:
        """Check for one error line in this time and 500 MB, with one of these."""
        assert self.code == 1, self
        assert self.error.startswith("error: "), self
        assert self.error.count("\n") == 1, self
        assert len(self.error) < 1000, self
        assert not reasons or any(reason in self.error for reason in reasons), self
        assert self.seconds < seconds, self
        assert self.megabytes < 500, self

    def check_no_traceback(self) -> None:
        """Check that the command ended by itself, with a result or one error line."""
        assert self.code in (0, 1), self
        assert "Traceback" not in self.error, self
        assert "unexpected" not in self.error, self
        assert self.error.count("\n") == self.code, self


class Server:
    """Runs commands, see `serving`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, *arguments: object) -> Attempt:
        """Run `aethernet` with these arguments."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps([*map(str, arguments)]), file=self._process.stdin, flush=True)
        return Attempt(**json.loads(self._process.stdout.readline()))


@contextlib.contextmanager
def serving(**variables: str) -> Iterator[Server]:
    """A server in this block; the variables go into its environment."""
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    ) as process:
        try:
            yield Server(process)
        finally:
            process.communicate()


def _serve() -> None:
    # Not pyvips and the runtimes, whose threads a fork does not bring along.
    with contextlib.suppress(ModuleNotFoundError):  # tests without PyTorch need none
        import torch  # noqa: F401

    from aethernet.commands import fuse, info  # noqa: F401

    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(_attempt(json.loads(line), Path(folder))), flush=True)


def _attempt(arguments: list[str], folder: Path) -> dict[str, object]:
    child = os.fork()
    if not child:
        _limited(arguments, folder)
    _, status, used = os.wait4(child, 0)
    shown = [
        path.read_text() if path.exists() else ""
        for path in (folder / "out", folder / "error")
    ]
    start = json.loads((folder / "start").read_text())
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": shown[0],
        "error": shown[1],
        "seconds": used.ru_utime + used.ru_stime,
        "megabytes": (used.ru_maxrss - start) / 1024,
    }


def _limited(arguments: list[str], folder: Path) -> None:
    """Run a command in this process, and end it."""
    import resource

    from aethernet.commands.main import main

    resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS + 1))
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MOST_BYTES,) * 2)
    (folder / "start").write_text(
        str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    )
    for number, name in ((1, "out"), (2, "error")):
        file = os.open(folder / name, os.O_CREAT | os.O_WRONLY)
        os.dup2(file, number)
    code = 1
    try:
        code = main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
