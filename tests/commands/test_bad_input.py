"""Bad input to every command and script: one error line, exit code 1, no file left."""

import ctypes
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import (
    FUSE_SCRIPT,
    HAS_TORCH,
    ONNX_SCRIPT,
    ROOT,
    SAMPLE,
    SHIPPED_MODEL,
    SUFFIX,
    call_script,
    check_one_error,
    lively_file,
    run,
    without_hidden,
)

COMMAND = ROOT / "src/aethernet/__main__.py"
# Command or script -> arguments with which it reads {source} and writes {target}.
COMMANDS = {
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
    whole = lively_file(folder.parent / f"whole{SUFFIX}")
    content = whole.read_bytes()
    (folder / f"cut{SUFFIX}").write_bytes(content[: len(content) // 2])
    return folder / f"cut{SUFFIX}"


def esrgan(folder):
    torch = pytest.importorskip("torch", reason="needs PyTorch, to write the file")
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

    torch = pytest.importorskip("torch", reason="needs PyTorch, to write the file")
    torch.save({"params": Exploit()}, folder / "hostile.pth")
    return folder / "hostile.pth"


def empty(folder):
    (folder / "empty.safetensors").touch()
    return folder / "empty.safetensors"


def pointer(folder):
    (folder / f"lfs{SUFFIX}").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    )
    return folder / f"lfs{SUFFIX}"


BAD = [missing, text, truncated, esrgan, directory, hostile, empty, pointer]


def arguments_for(name, source, target):
    script, arguments = COMMANDS[name]
    return script, [a.format(source=source, target=target) for a in arguments]


@pytest.mark.parametrize("make", BAD)
@pytest.mark.parametrize("name", COMMANDS)
def test_bad_source(name, make, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "out").mkdir()
    source = make(folder)
    before = sorted(os.listdir(folder))
    script, arguments = arguments_for(name, source, tmp_path / "out/result")
    assert call_script(monkeypatch, script, *arguments) == 1
    check_one_error(capsys.readouterr().err)
    assert without_hidden(tmp_path / "out") == []
    assert sorted(os.listdir(folder)) == before


# `engine` reads ONNX files only, and none of these sources is one.
NO_WRITERS = ("aethernet info", "aethernet engine", "aethernet bench")
WRITERS = [name for name in COMMANDS if name not in NO_WRITERS]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / f"model{SUFFIX}"
    lively_file(path, depths=(1,))
    return path


# As the published scripts, these make the folder of their output.
FOLDER_MAKERS = (
    "fuse_aether.py",
    "aether2onnx.py",
    "aethernet fuse",
    "aethernet export",
)


@pytest.mark.parametrize("name", FOLDER_MAKERS)
def test_a_missing_output_folder_is_made(name, good, tmp_path, monkeypatch):
    script, arguments = arguments_for(name, good, tmp_path / "absent/deeper/result")
    if not HAS_TORCH and any(word.endswith(".pth") for word in arguments):
        pytest.skip("needs PyTorch to write a .pth file")
    assert call_script(monkeypatch, script, *arguments) == 0
    assert len(without_hidden(tmp_path / "absent/deeper")) == 1


@pytest.mark.parametrize("name", FOLDER_MAKERS)
def test_a_folder_that_was_made_goes_after_an_error(
    name, tmp_path, monkeypatch, capsys
):
    script, arguments = arguments_for(
        name, tmp_path / "missing.pth", tmp_path / "absent/deeper/result"
    )
    assert call_script(monkeypatch, script, *arguments) == 1
    check_one_error(capsys.readouterr().err)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name", [name for name in WRITERS if name not in FOLDER_MAKERS]
)
def test_output_folder_that_does_not_exist(name, good, tmp_path, monkeypatch, capsys):
    script, arguments = arguments_for(name, good, tmp_path / "absent/result")
    assert call_script(monkeypatch, script, *arguments) == 1
    error = capsys.readouterr().err
    check_one_error(error)
    assert "does not exist" in error


def without_override():
    """Take from a process of root the right to ignore file permissions (Linux)."""
    libc = ctypes.CDLL(None)
    drop_bounding = 24  # PR_CAPBSET_DROP
    for dac_override_and_read_search in (1, 2):
        libc.prctl(drop_bounding, dac_override_and_read_search, 0, 0, 0)


linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="needs Linux, where even root can be kept out of a folder",
)


@linux_only
@pytest.mark.parametrize("name", WRITERS)
def test_read_only_output_folder(name, good, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    script, arguments = arguments_for(name, good, folder / "result")
    done = run(script, *arguments, preexec_fn=without_override)
    assert done.returncode == 1, done.stdout
    check_one_error(done.stderr.splitlines(keepends=True)[-1])
    assert "Traceback" not in done.stderr
    assert "Cannot be written: its folder is not writable." in done.stderr
    assert os.listdir(folder) == []


@linux_only
@pytest.mark.parametrize("locked", ["file", "folder"])
def test_unreadable_source(good, tmp_path, locked):
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "model.pth").write_bytes(good.read_bytes())
    (folder / "model.pth" if locked == "file" else folder).chmod(0)
    path = folder / "model.pth"
    done = run(COMMAND, "info", path, preexec_fn=without_override)
    folder.chmod(0o755)
    assert done.returncode == 1
    assert done.stderr == f"error: {path}: Cannot be read: Permission denied.\n"


@linux_only
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_ending_an_export_leaves_nothing(name, tmp_path):
    number = getattr(signal, name)
    # Under `nohup` the tests ignore SIGHUP, and so would this process.
    heeding = ["env", f"--default-signal={name}", sys.executable]
    # Not a .pth file: PyTorch would take seconds to import.
    process = subprocess.Popen(
        [*heeding, COMMAND, "export", SHIPPED_MODEL, "-o", tmp_path / "m.onnx"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not os.listdir(tmp_path):
        time.sleep(0.01)  # until the temporary file is there
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["fuse_aether.py", "aether2onnx.py", "aethernet info"])
def test_a_process_of_its_own_prints_the_same(name, tmp_path):
    script, arguments = arguments_for(
        name, tmp_path / "absent.pth", tmp_path / "result"
    )
    done = run(script, *arguments)
    assert done.returncode == 1
    path = tmp_path / "absent.pth"
    assert done.stderr == f"error: {path}: There is no such file.\n"
    assert done.stdout == ""
