"""Running `aethernet quality` in the tests, and reading what it wrote."""

import json

from helpers import PLAIN

from aethernet.commands.main import main

RUNNING = ("--runtime", PLAIN, "--device", "cpu", "--precision", "float32")


def quality(*words):
    return main(["quality", *RUNNING, *map(str, words)])


def measured(tmp_path, *words):
    """The JSON that a run wrote."""
    target = tmp_path / "quality.json"
    assert quality(*words, "--json", target) == 0
    return json.loads(target.read_text("utf-8"))


def by_method(table):
    return {row["method"]: row for row in table["methods"]}


def refused(capsys, *words):
    """The line of error with which a run ends."""
    assert quality(*words) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err
