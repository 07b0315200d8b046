"""Exit codes and error messages of commands, and streams that are closed or full."""

import argparse
import errno
import os
import subprocess
import sys

import pytest
from helpers import SAMPLE, SHIPPED_MODEL, check_one_error, run

from aethernet.commands.main import main
from aethernet.commands.run import exit_code
from aethernet.errors import AetherError, CheckpointError

COMMAND = f"{sys.executable} -m aethernet"

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
needs_a_full_disk = pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has"
)


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch):
    monkeypatch.delenv("AETHERNET_DEBUG", raising=False)


def job_raising(error):
    def job(arguments):
        raise error

    return job


def code_of(error, **arguments):
    return exit_code(job_raising(error), argparse.Namespace(**arguments))


class TestErrors:
    def test_a_job_that_returns_nothing_succeeds(self):
        assert exit_code(lambda arguments: None, argparse.Namespace()) == 0

    def test_one_with_a_code_of_its_own_keeps_it(self):
        assert exit_code(lambda arguments: 1, argparse.Namespace()) == 1

    def test_an_error_of_ours_is_one_line(self, capsys):
        error = CheckpointError("There are no weights.", "m.pth", "Name another file.")
        assert code_of(error, verbose=True) == 1
        line = "error: m.pth: There are no weights. Name another file.\n"
        assert capsys.readouterr() == ("", line)

    def test_its_cause_is_shown_for_debugging(self, capsys, monkeypatch):
        monkeypatch.setenv("AETHERNET_DEBUG", "1")
        error = AetherError("Cannot be read.", "m.pth")
        error.__cause__ = ValueError("the cause")
        assert code_of(error) == 1
        printed = capsys.readouterr().err
        assert "ValueError: the cause" in printed
        assert "Traceback" in printed
        assert printed.endswith("error: m.pth: Cannot be read.\n")

    def test_zero_switches_debugging_off(self, capsys, monkeypatch):
        monkeypatch.setenv("AETHERNET_DEBUG", "0")
        assert code_of(AetherError("Wrong.")) == 1
        check_one_error(capsys.readouterr().err)

    @pytest.mark.parametrize(
        ("error", "shown"),
        [
            (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by"),
            (
                FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"),
                "FileNotFoundError: [Errno 2] No such file or directory: 'a.txt'",
            ),
            (OSError(errno.EBADF, "Bad file descriptor"), "OSError: [Errno 9] Bad"),
            (AssertionError(), "unexpected AssertionError; run again"),
        ],
    )
    def test_an_unexpected_error_asks_for_a_report(self, error, shown, capsys):
        assert code_of(error, verbose=False) == 1
        printed = capsys.readouterr().err
        check_one_error(printed)
        assert shown in printed
        assert printed.endswith("; run again with --verbose and report it.\n")

    def test_its_traceback_is_shown_with_verbose(self, capsys):
        assert code_of(ZeroDivisionError("division by zero"), verbose=True) == 1
        printed = capsys.readouterr().err
        assert "Traceback" in printed
        assert printed.endswith(
            "error: unexpected ZeroDivisionError: division by zero; please report it.\n"
        )

    def test_a_script_without_verbose_names_the_variable(self, capsys, monkeypatch):
        assert code_of(ZeroDivisionError("division by zero")) == 1
        assert "run again with AETHERNET_DEBUG=1" in capsys.readouterr().err
        monkeypatch.setenv("AETHERNET_DEBUG", "1")
        assert code_of(ZeroDivisionError("division by zero")) == 1
        assert "Traceback" in capsys.readouterr().err

    def test_every_command_has_verbose(self, capsys, monkeypatch):
        monkeypatch.setattr("aethernet.commands.models.shipped_models", lambda: 1 / 0)
        assert main(["models"]) == 1
        check_one_error(capsys.readouterr().err)
        assert main(["models", "--verbose"]) == 1
        assert "Traceback" in capsys.readouterr().err

    def test_out_of_memory(self, capsys):
        assert code_of(MemoryError()) == 1
        assert capsys.readouterr().err == "error: out of memory.\n"

    def test_an_interrupt(self, capsys):
        assert code_of(KeyboardInterrupt()) == 130
        check_one_error(capsys.readouterr().err)

    def test_control_characters_do_not_reach_the_terminal(self, capsys):
        assert main(["info", "two\nlines\x1b[31m.pth"]) == 1
        printed = capsys.readouterr().err
        check_one_error(printed)
        assert "two\\nlines\\x1b[31m.pth" in printed


@posix_only
class TestStreams:
    """Standard output and error as shells connect them."""

    def shell(self, line, **options):
        return subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, check=False, **options
        )

    def test_closed_stderr(self):
        done = self.shell(f"{COMMAND} models 2>&-")
        assert done.returncode == 0
        assert "2x-small" in done.stdout

    def test_an_error_does_not_go_to_stdout_where_stderr_is_closed(self):
        done = self.shell(f"{COMMAND} upscale absent.png -o out.png 2>&-")
        assert done.returncode == 1
        assert done.stdout == ""

    def test_a_reader_that_left(self):
        # The reader ends before the command prints anything.
        done = self.shell(
            f"set -o pipefail; (sleep 0.5; exec {COMMAND} models) | true; "
            'echo "${PIPESTATUS[0]}"'
        )
        assert done.stdout == "1\n"
        assert done.stderr == ""

    @needs_a_full_disk
    def test_a_full_disk(self):
        done = self.shell(f"{COMMAND} models > /dev/full")
        assert done.returncode == 1
        # The system does not say which file was full; that of `print` has no name.
        assert done.stderr == "error: Cannot write: No space left on device.\n"

    def test_a_terminal_of_few_letters(self, tmp_path):
        path = tmp_path / "é東.safetensors"
        path.write_bytes(SHIPPED_MODEL.read_bytes())
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = run("-m", "aethernet", "info", path, env=environment)
        assert done.returncode == 0, done.stderr
        assert "aether_small" in done.stdout
        absent = tmp_path / "東.pth"
        done = run("-m", "aethernet", "info", absent, env=environment)
        assert done.returncode == 1
        assert "\\u6771.pth" in done.stderr


def test_an_interrupt_ends_a_command(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("aethernet.runtimes.request.open_any", interrupt)
    assert main(["upscale", str(SAMPLE), "-o", "-"]) == 130
    check_one_error(capsys.readouterr().err)
