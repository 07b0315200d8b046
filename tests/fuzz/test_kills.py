"""Commands that are killed at random moments: no half file, and nothing left later.

`pytest -n 0 -s -m fuzz tests/fuzz/test_kills.py` kills each command for a minute;
FUZZ_SECONDS and FUZZ_SEED in the environment change that. It prints what it counted.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, lively_file, photo, write

from aethernet.checkpoints.info import describe_file
from aethernet.pictures.files import read_picture

pytestmark = [
    pytest.mark.fuzz,
    pytest.mark.skipif(os.name != "posix", reason="needs the signals of POSIX"),
]

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))


def video(path: Path) -> Path:
    av = pytest.importorskip("av", reason="needs pip install -e '.[video]'")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for _ in range(100):
            frame = av.VideoFrame.from_ndarray(photo(120, 160), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def check_video(path: Path) -> None:
    import av

    with av.open(str(path)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 100


# Command -> its input, its output, and what fails for a file that is not whole.
KILLED = {
    "export": (None, "m.onnx", describe_file),
    "release": (None, "published", None),
    "upscale a picture": ("in.png", "out.png", read_picture),
    "upscale a video": ("in.mp4", "out.mp4", check_video),
}


def check_whole(path: Path, names: list[str], check) -> None:
    """Check what stands under the name of an output: nothing, or all of it."""
    if path.is_dir():
        assert sorted(os.listdir(path)) == names
        for file in path.glob("*.safetensors"):
            describe_file(file)
    elif path.exists():
        check(path)


@pytest.mark.parametrize("name", KILLED)
def test_kills(name, tmp_path):
    given, target, check = KILLED[name]
    model = lively_file(tmp_path / "my.safetensors", depths=(1,))
    source = model
    if given:
        source = tmp_path / given
        source = video(source) if given == "in.mp4" else write(photo(900, 900), source)
    command = name.split()[0]
    words = [sys.executable, "-m", "aethernet", command, source]
    words += ["--model", model, "--overwrite"] if given else []
    environment = {**os.environ, "AETHERNET_CACHE": str(tmp_path / "cache")}

    def start(folder):
        return subprocess.Popen(
            [*map(str, words), "-o", str(folder / target)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
        )

    folder, chance = tmp_path / "out", random.Random(f"{name} {SEED}")
    folder.mkdir()
    begin = time.monotonic()
    _, error = start(folder).communicate()
    duration = time.monotonic() - begin
    assert (folder / target).exists(), error
    whole = folder / target
    names = sorted(os.listdir(whole)) if whole.is_dir() else []
    kills = finished = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        process = start(folder)
        time.sleep(chance.uniform(0.3, 1.0) * duration)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills, finished = kills + 1, finished + (process.returncode == 0)
        check_whole(folder / target, names, check)
    for path in folder.iterdir():  # as if the next run came much later
        os.utime(path, (1, 1), follow_symlinks=False)
    _, error = start(folder).communicate()
    assert (folder / target).exists(), error
    check_whole(folder / target, names, check)
    left = sorted(each for each in os.listdir(folder) if each != target)
    print(f"\n{name}: {kills} kills, {finished} came too late; left at last: {left}")
    assert not left
