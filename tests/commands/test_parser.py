"""Wrong arguments, the short help and completion in shells."""

import os

import pytest
from helpers import run

from aethernet.commands.main import COMMANDS, main
from aethernet.commands.parser import did_you_mean


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("upscal a.png", "no command upscal. Did you mean upscale? See aethernet "),
        ("frobnicate", "no command frobnicate. See aethernet --help."),
        ("upscale a.png --widht 3", "no flag --widht. Did you mean --width? See "),
        ("upscale a.png --widht=3", "Did you mean --width? See aethernet upscale "),
        ("models --jsno", "no flag --jsno. Did you mean --json? See aethernet models"),
        ("models what", "no argument what. See aethernet models --help."),
        ("fuse", "required: "),
        ("fuse a.pth -o b.pth --scale 5", "argument --scale: invalid choice: "),
        ("upscale a.png --scale wide", "argument --scale: expected a number"),
    ],
)
def test_a_wrong_line_gets_one_line_and_says_where_to_look(capsys, line, expected):
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert error.count("\n") == 1
    assert error.endswith(" --help.\n")


def test_an_unknown_model_is_compared_with_the_known_ones(capsys):
    assert main(["info", "2x-smal"]) == 1
    assert "Did you mean 2x-small? Shipped models: 2x-small" in capsys.readouterr().err


def test_nothing_is_meant_by_what_is_like_nothing():
    assert did_you_mean("zzz", COMMANDS) == ""


def test_no_arguments_print_the_short_help(capsys):
    assert main([]) == 2
    text = capsys.readouterr().err
    assert text.startswith("usage: aethernet")
    for name, summary in COMMANDS.items():
        assert name in text
        assert summary in text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("aethernet up", {"upscale"}),
        ("aethernet upscale --qu", {"--quality", "--quiet"}),
        ("aethernet upscale --runtime onnx", {"onnxruntime"}),
    ],
)
def test_a_shell_completes_the_line(tmp_path, line, expected):
    pytest.importorskip("argcomplete", reason="needs the extra completion")
    answer = tmp_path / "answer"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    done = run("-m", "aethernet", env=environment)
    assert done.returncode == 0, done.stderr
    assert {word.strip() for word in answer.read_text().splitlines()} == expected
