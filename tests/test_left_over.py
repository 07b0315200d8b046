"""Temporary files that killed commands have left, and messages of a full disk."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import HAS_TORCH, LIGHT, ROOT, lively_file, photo, write

from aethernet import files
from aethernet.commands.main import main
from aethernet.files import replacing, temporary_path

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="locks and name spaces of Linux"
)

# Command -> its output; and what saves time in it.
WRITERS = {
    "fuse": "m.safetensors",
    "export": "m.onnx",
    "release": "published",
}
SHORTER = {"release": ["--without", "fp32", "fp16", "ncnn", "pth", "--picture"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return lively_file(folder / "my.safetensors", depths=(1,))


def mounted(disk, options):
    """What goes before a command, for it to see a disk of memory in that folder."""
    disk.mkdir()
    mount = f'mount -t tmpfs none "{disk}" && mount -o {options} "{disk}"'
    inside = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs unshare and mount")
    return inside


def aged(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize("command", WRITERS)
def test_what_a_kill_leaves_goes_with_the_next_run(command, model, tmp_path):
    words = [command, str(model), "-o", str(tmp_path / WRITERS[command])]
    words += SHORTER.get(command, [])
    process = subprocess.Popen(
        [sys.executable, "-m", "aethernet", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    while process.poll() is None and not os.listdir(tmp_path):
        time.sleep(0.005)  # until the temporary file is there
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [tmp_path / name for name in os.listdir(tmp_path)]
    assert [path for path in left if ".part" in path.name]
    for path in left:
        aged(path, 5)
    assert main(words) == 0
    assert os.listdir(tmp_path) == [WRITERS[command]]


def test_nothing_else_goes(tmp_path):
    kept = [".photo.png", ".photo.part.png", ".a.0123abc.part.png", "a.part.png"]
    for name in kept:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    with replacing(tmp_path / "photo.png") as temporary:
        temporary.write_text("whole")
    assert {*os.listdir(tmp_path)} == {*kept, "photo.png"}


def test_a_clock_that_was_set_back_keeps_nothing(tmp_path):
    for name, seconds in (("m.onnx", -10), ("other.onnx", -1000), ("new.onnx", -10)):
        left = temporary_path(tmp_path / name)
        left.touch()
        aged(left, seconds)
    with replacing(tmp_path / "m.onnx") as temporary:
        temporary.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == sorted(["m.onnx", left.name])


def test_without_locks_only_what_is_old_and_not_open_goes(tmp_path, monkeypatch):
    """As on Windows, where an open file cannot be renamed."""
    young, old, opened = (
        temporary_path(tmp_path / f"{name}.onnx") for name in ("m", "old", "opened")
    )
    for path, seconds in ((young, 1000), (old, 5000), (opened, 5000)):
        path.touch()
        aged(path, seconds)

    def rename(path, target):
        assert path == target
        if path == opened:
            raise PermissionError(13, "in use", str(path))

    monkeypatch.setattr(files, "HAS_LOCKS", False)
    monkeypatch.setattr(Path, "rename", rename)
    with replacing(tmp_path / "m.onnx") as temporary:
        temporary.write_text("whole")
    assert {*os.listdir(tmp_path)} == {"m.onnx", young.name, opened.name}


READ_ONLY = {
    "export": "m.onnx",
    "upscale": "out.png",
}


def test_a_read_only_cache_stops_nothing(model, tmp_path):
    inside = mounted(tmp_path / "disk", "remount,ro")
    source = write(photo(), tmp_path / "in.png")
    words = ["upscale", source, "-o", tmp_path / "out.png", "--model", model]
    words += ["--runtime", "onnxruntime", "--device", "cpu"]
    done = subprocess.run(
        [*inside, sys.executable, "-m", "aethernet", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "AETHERNET_CACHE": str(tmp_path / "disk/cache")},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").exists()


@pytest.mark.parametrize("command", READ_ONLY)
def test_a_read_only_folder_is_one_line(command, model, tmp_path):
    inside = mounted(tmp_path / "disk", "remount,ro")
    target = tmp_path / "disk" / READ_ONLY[command]
    words = [command, model, "-o", target]
    if command == "upscale":
        words[1:2] = [write(photo(), tmp_path / "in.png"), "--model", model]
    done = subprocess.run(
        [*inside, sys.executable, "-m", "aethernet", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1
    wanted = f"error: {target}: Cannot be written: its folder is not writable.\n"
    assert done.stderr == wanted


def test_what_is_in_use_stays(tmp_path):
    target = tmp_path / "m.onnx"
    mine = temporary_path(tmp_path / "other.onnx")
    mine.touch()
    aged(mine, 60)  # young, and of another target
    old = temporary_path(tmp_path / "other.onnx")
    old.touch()
    aged(old, 1000)
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from aethernet.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    os.utime(temporary, (1, 1))\n"
        "    print(temporary, flush=True)\n"
        "    sys.stdin.read()\n"
        "    temporary.write_text('theirs')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        theirs = process.stdout.readline().strip()
        with replacing(target) as temporary:
            temporary.write_text("ours")
        assert os.path.exists(theirs)
        process.communicate("")
    assert target.read_text() == "theirs"
    assert sorted(os.listdir(tmp_path)) == sorted([mine.name, "m.onnx"])


FULL = {
    "fuse to .safetensors": ("fuse", "m.safetensors"),
    "fuse to .pth": ("fuse", "m.pth"),
    "export to ONNX": ("export", "m.onnx"),
    "export to ncnn": ("export", "m.param"),
    **{
        f"upscale to {suffix}": ("upscale", f"out{suffix}")
        for suffix in (".png", ".jpg", ".webp", ".tif", ".avif", ".bmp")
    },
    "upscale a video": ("upscale", "out.mkv"),
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_one_phrase_about_the_target(name, model, tmp_path):
    command, target = FULL[name]
    if target.endswith(".pth") and not HAS_TORCH:
        pytest.skip("needs PyTorch to write a .pth file")
    disk = tmp_path / "disk"
    inside = mounted(disk, "remount,size=8k")
    words = [command, model]
    if command == "upscale":
        source = write(photo(90, 120), tmp_path / "in.png")
        if target.endswith(".mkv"):
            source = video(tmp_path, source)
        words = [command, source, "--model", model, "--runtime", LIGHT]
        words += ["--device", "cpu"]
    done = subprocess.run(
        [*inside, sys.executable, "-m", "aethernet", *words, "-o", disk / target],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1
    shown = disk / target.replace(".param", ".bin")  # the larger of both files
    wanted = f"error: {shown}: Cannot be written: No space left on device.\n"
    assert done.stderr == wanted


def video(folder, picture):
    av = pytest.importorskip("av", reason="needs pip install -e '.[video]'")
    from aethernet.pictures.files import read_picture

    pixels = read_picture(picture).pixels
    path = folder / "in.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 120, 90, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path
