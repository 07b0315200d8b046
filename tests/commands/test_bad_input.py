"""Every front door, every bad input: one sentence, exit code 1, no file left."""

import ctypes
import os
import subprocess
import sys
import time

import pytest
import torch
from helpers import (
    FUSE_SCRIPT,
    ONNX_SCRIPT,
    ROOT,
    SAMPLE,
    SHIPPED_MODEL,
    call_script,
    lively_network,
    run,
    without_hidden,
)

from aethernet.checkpoints.checkpoint import save_checkpoint
from aethernet.commands.main import main
from aethernet.text import printable

COMMAND = ROOT / "src/aethernet/__main__.py"
# Front door -> words that read {source} and write {target}.
DOORS = {
    "fuse_aether.py": (
        FUSE_SCRIPT,
        ["--model_path", "{source}", "--output_path", "{target}.safetensors"],
    ),
    "aether2onnx.py": (
        ONNX_SCRIPT,
        ["--input_model_path", "{source}", "--output_onnx_path", "{target}.onnx"],
    ),
    "aethernet fuse": (COMMAND, ["fuse", "{source}", "-o", "{target}.pth"]),
    "aethernet export": (COMMAND, ["export", "{source}", "-o", "{target}.onnx"]),
    "aethernet release": (COMMAND, ["release", "{source}", "-o", "{target}"]),
    "aethernet info": (COMMAND, ["info", "{source}"]),
    "aethernet upscale --model": (
        COMMAND,
        ["upscale", str(SAMPLE), "-o", "{target}.png", "--model", "{source}"],
    ),
    "aethernet engine": (COMMAND, ["engine", "{source}", "-o", "{target}.engine"]),
    "aethernet quality": (
        COMMAND,
        [
            "quality",
            f"--data={SAMPLE.parent}",
            "--json={target}.json",
            "--model={source}",
        ],
    ),
    "aethernet bench": (
        COMMAND,
        ["bench", "--model", "{source}", "--variants", "--peers", "--runs", "1"],
    ),
}


def missing(folder):
    return folder / "absent.pth"


def text(folder):
    (folder / "text.pth").write_text("Not found. " * 40)
    return folder / "text.pth"


def truncated(folder):
    whole = folder.parent / "whole.pth"
    save_checkpoint(lively_network(), whole)
    content = whole.read_bytes()
    (folder / "cut.pth").write_bytes(content[: len(content) // 2])
    return folder / "cut.pth"


def esrgan(folder):
    weights = {"model.0.weight": torch.zeros(64, 3, 3, 3)}
    weights["model.1.sub.0.RDB1.conv1.0.weight"] = torch.zeros(32, 64, 3, 3)
    torch.save(weights, folder / "esrgan.pth")
    return folder / "esrgan.pth"


def directory(folder):
    (folder / "folder.pth").mkdir()
    return folder / "folder.pth"


def hostile(folder):
    class Exploit:
        def __reduce__(self):
            return os.mkdir, (str(folder / "hacked"),)

    torch.save({"params": Exploit()}, folder / "hostile.pth")
    return folder / "hostile.pth"


def empty(folder):
    (folder / "empty.safetensors").touch()
    return folder / "empty.safetensors"


BAD = [missing, text, truncated, esrgan, directory, hostile, empty]


def words_for(door, source, target):
    script, words = DOORS[door]
    return script, [w.format(source=source, target=target) for w in words]


@pytest.mark.parametrize("make", BAD)
@pytest.mark.parametrize("door", DOORS)
def test_bad_source(door, make, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "out").mkdir()
    source = make(folder)
    before = sorted(os.listdir(folder))
    script, words = words_for(door, source, tmp_path / "out/result")
    assert call_script(monkeypatch, script, *words) == 1
    check_one_sentence(capsys.readouterr().err)
    assert without_hidden(tmp_path / "out") == []
    assert sorted(os.listdir(folder)) == before


def check_one_sentence(error):
    assert error.startswith("error: "), error
    assert error.count("\n") == 1, error
    assert "Traceback" not in error


# Engines are written of ONNX files, which none of these sources is.
NO_WRITERS = ("aethernet info", "aethernet engine", "aethernet bench")
WRITERS = [door for door in DOORS if door not in NO_WRITERS]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "model.pth"
    save_checkpoint(lively_network(depths=(1,)), path)
    return path


@pytest.mark.parametrize("door", WRITERS)
def test_output_folder_that_does_not_exist(door, good, tmp_path, monkeypatch, capsys):
    script, words = words_for(door, good, tmp_path / "absent/result")
    assert call_script(monkeypatch, script, *words) == 1
    error = capsys.readouterr().err
    check_one_sentence(error)
    assert "does not exist" in error


def without_override():
    """Take from a process of root what lets it reach what nobody may (Linux)."""
    libc = ctypes.CDLL(None)
    drop_bounding = 24  # PR_CAPBSET_DROP
    for dac_override_and_read_search in (1, 2):
        libc.prctl(drop_bounding, dac_override_and_read_search, 0, 0, 0)


linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="needs Linux, where even root can be kept out of a folder",
)


@linux_only
@pytest.mark.parametrize("door", WRITERS)
def test_read_only_output_folder(door, good, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    script, words = words_for(door, good, folder / "result")
    done = run(script, *words, preexec_fn=without_override)
    assert done.returncode == 1, done.stdout
    check_one_sentence(done.stderr.splitlines(keepends=True)[-1])
    assert "Traceback" not in done.stderr
    assert "ermission denied" in done.stderr
    assert os.listdir(folder) == []


@linux_only
@pytest.mark.parametrize("locked", ["file", "folder"])
def test_a_source_one_may_not_read(good, tmp_path, locked):
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "model.pth").write_bytes(good.read_bytes())
    (folder / "model.pth" if locked == "file" else folder).chmod(0)
    words = ["info", folder / "model.pth"]
    done = run(COMMAND, *words, preexec_fn=without_override)
    folder.chmod(0o755)
    assert done.returncode == 1
    assert done.stderr == f"error: Cannot read {words[1]}: Permission denied.\n"


@linux_only
def test_terminating_an_export_leaves_nothing(good, tmp_path):
    process = subprocess.Popen(
        [sys.executable, COMMAND, "export", good, "-o", tmp_path / "m.onnx"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not os.listdir(tmp_path):
        time.sleep(0.01)  # until the temporary file is there
    process.terminate()
    assert process.wait(60) == 143  # 128 + SIGTERM
    assert os.listdir(tmp_path) == []


@linux_only
def test_closed_and_narrow_streams():
    command = f"{sys.executable} {COMMAND} info {SHIPPED_MODEL}"
    done = subprocess.run(
        ["sh", "-c", f"{command} 2>&-"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "aether_small" in done.stdout
    done = subprocess.run(
        ["sh", "-c", f"{command} | true"], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr


def test_control_characters_do_not_reach_the_terminal(capsys):
    assert main(["info", "two\nlines\x1b[31m.pth"]) == 1
    check_one_sentence(capsys.readouterr().err)
    assert printable("a\nb\x1bé") == "a\\nb\\x1bé"


@pytest.mark.parametrize("door", ["fuse_aether.py", "aether2onnx.py", "aethernet info"])
def test_a_process_of_its_own_says_the_same(door, tmp_path):
    script, words = words_for(door, tmp_path / "absent.pth", tmp_path / "result")
    done = run(script, *words)
    assert done.returncode == 1
    assert done.stderr == f"error: There is no file {tmp_path / 'absent.pth'}.\n"
    assert done.stdout == ""


def test_bad_words_exit_with_2_and_show_the_usage(capsys):
    for words in ([], ["fuse"], ["fuse", "a.pth", "-o", "b.pth", "--scale", "5"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert "usage:" in capsys.readouterr().err


def test_an_interrupt_is_not_a_traceback(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("aethernet.commands.upscale_run.open_model", interrupt)
    assert main(["upscale", str(SAMPLE)]) == 130
    check_one_sentence(capsys.readouterr().err)
