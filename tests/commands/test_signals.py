"""Signals that end a command, at any time."""

import argparse
import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT

from aethernet.commands.run import exit_code

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs the signals of POSIX")

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@pytest.fixture(autouse=True)
def _handlers():
    kept = {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS}
    yield
    for name, handler in kept.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_library_that_makes_an_error_of_it(name, capsys):
    number = getattr(signal, name)

    def job(arguments):
        try:
            os.kill(os.getpid(), number)
        except BaseException as error:
            raise RuntimeError("truncated file") from error

    signal.signal(number, signal.default_int_handler)
    assert exit_code(job, argparse.Namespace()) == 128 + number
    printed = capsys.readouterr().err
    told = "error: interrupted; no file is left half written.\n"
    assert printed == (told if name == "SIGINT" else "")


@pytest.mark.parametrize("name", SIGNALS)
def test_what_the_user_ignores_stays_ignored(name):
    number = getattr(signal, name)

    def job(arguments):
        os.kill(os.getpid(), number)

    signal.signal(number, signal.SIG_IGN)  # as nohup does
    assert exit_code(job, argparse.Namespace()) == 0


@pytest.mark.parametrize("further_imports", [3, 10, 40])
def test_an_interrupt_during_the_imports(further_imports):
    with subprocess.Popen(
        # It prints a line after each import.
        [sys.executable, "-X", "importtime", "-m", "aethernet", "info", "absent.pth"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if line.endswith("aethernet.commands.signals\n"):
                break
        for _ in range(further_imports):
            process.stderr.readline()
        process.send_signal(signal.SIGINT)
        printed = process.stderr.read()
    assert "Traceback" not in printed
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
