"""The parts of the page's server that need no server."""

import io
import os
import socket
import threading
import zipfile
from pathlib import Path

import pytest
from helpers import Repeat, lively_file

from aethernet.commands.main import main
from aethernet.errors import AetherError
from aethernet.runtimes.tiling import Tiled
from aethernet.ui import storage
from aethernet.ui.orders import clean_name
from aethernet.ui.pictures import check_result, compared_region
from aethernet.ui.routes import zipped
from aethernet.ui.server import find_devices, find_models
from aethernet.ui.storage import Storage
from aethernet.ui.tasks import Estimate, Made, Task, TaskQueue, in_small_tiles


class TestEstimate:
    def test_is_true_at_a_steady_pace(self):
        now = [100.0]
        estimate = Estimate(lambda: now[0])
        assert estimate.seconds_left is None
        estimate.advance(0)
        assert estimate.seconds_left is None  # nothing was done yet
        for second in range(1, 40):
            now[0] = 100.0 + second
            estimate.advance(second / 40)
            assert estimate.seconds_left == pytest.approx(40 - second)
        now[0] += 0.5  # it goes on between two reports
        assert estimate.seconds_left == pytest.approx(0.5)
        estimate.advance(0.2)
        assert estimate.share == 39 / 40  # and never falls

    def test_what_was_there_before_does_not_count(self):
        now = [0.0]
        estimate = Estimate(lambda: now[0])
        estimate.advance(0.5)
        now[0] = 10.0
        estimate.advance(0.75)
        assert estimate.seconds_left == pytest.approx(10)


class TestStorage:
    def test_the_oldest_files_make_room(self, tmp_path, monkeypatch):
        monkeypatch.setattr(storage, "MOST_KEPT_BYTES", 1000)
        kept = Storage(tmp_path)
        for number in range(4):
            (tmp_path / f"{number}").write_bytes(bytes(300))
            os.utime(tmp_path / f"{number}", (number, number))
        kept.make_room()
        assert sorted(os.listdir(tmp_path)) == ["1", "2", "3"]
        kept.in_use = lambda: [kept.folder / "1"]
        kept.make_room(500)
        assert sorted(os.listdir(tmp_path)) == ["1"]
        with pytest.raises(AetherError, match="There is no room"):
            kept.make_room(900)
        assert sorted(os.listdir(tmp_path)) == ["1"]

    def test_uploads_of_one_content_share_a_folder(self, tmp_path):
        (tmp_path / "inside").mkdir()
        kept = Storage(tmp_path / "inside")
        for name in ("a.png", "b.png"):
            (kept.folder / "content").mkdir(exist_ok=True)
            (kept.folder / "content" / name).write_text("")
        kept.remove(kept.folder / "content/a.png")
        assert os.listdir(kept.folder / "content") == ["b.png"]
        kept.remove(kept.folder / "content/b.png")
        assert os.listdir(kept.folder) == []

    def test_nothing_outside_is_removed(self, tmp_path):
        (tmp_path / "inside").mkdir()
        kept = Storage(tmp_path / "inside")
        (tmp_path / "outside.txt").write_text("")
        (kept.folder / "link.txt").symlink_to(tmp_path / "outside.txt")
        for path in ("outside.txt", "inside/link.txt", "inside", "."):
            kept.remove(tmp_path / path)
        assert (tmp_path / "outside.txt").exists()
        assert kept.folder.exists()


class TestTasks:
    def test_an_unexpected_error_does_not_stop_the_next_task(self, tmp_path):
        queue = TaskQueue(lambda task, rest: None)

        def broken(task):
            raise ValueError("a bug")

        def works(task):
            task.estimate.advance(1)

        tasks = [Task("pictures", "x", tmp_path, (), work) for work in (broken, works)]
        for task in tasks:
            queue.add(task)
        assert all(task.ended.wait(10) for task in tasks)
        assert [task.state for task in tasks] == ["failed", "done"]
        assert tasks[0].error == "Unexpected ValueError: a bug. Report it."
        queue.end()

    def test_the_end_cancels_all(self, tmp_path):
        queue = TaskQueue(lambda task, rest: None)
        begun = threading.Event()

        def runs(task):
            begun.set()
            while True:
                task.check()

        tasks = [Task("pictures", "x", tmp_path, (), runs) for _ in range(2)]
        for task in tasks:
            queue.add(task)
        assert begun.wait(10)
        assert queue.ahead(tasks[1]) == 1
        queue.end()
        assert [task.state for task in tasks] == ["cancelled", "cancelled"]


def test_names_are_cleaned():
    for name, clean in (
        ("photo (1).jpg", "photo (1).jpg"),
        ("../../etc/passwd", "etc/passwd"),
        ("C:\\scans\\a?.png", "C_/scans/a_.png"),
        ("/a//./b.png", "a/b.png"),
        ("..", "picture"),
        ("a\0b", "a_b"),
    ):
        assert clean_name(name) == Path(clean)


def test_a_zip_in_pieces(tmp_path):
    (tmp_path / "a").write_bytes(os.urandom(3_000_000))
    (tmp_path / "b").write_bytes(b"small")
    pieces = [*zipped([("x/a.png", tmp_path / "a"), ("é.png", tmp_path / "b")])]
    assert len(pieces) > 3
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["x/a.png", "é.png"]
        assert archive.read("x/a.png") == (tmp_path / "a").read_bytes()


def test_large_pictures_are_left_to_the_command():
    check_result("a.png", (5000, 5000), (20000, 25000))
    with pytest.raises(AetherError, match="501 megapixels; this page makes 500"):
        check_result("a.png", (5000, 5000), (20040, 25000))


def test_of_large_results_the_middle_is_compared(tmp_path):
    def region(*size):
        return compared_region(Made("a", tmp_path, tmp_path, (1, 1), size))

    assert (region(4000, 3000).left, region(4000, 3000).width) == (0, 4000)
    part = region(16000, 2000)
    assert part.width <= 8192
    assert part.left == (16000 - part.width) // 2
    assert part.width * part.height <= 16_000_000


def test_a_port_that_is_taken_is_an_error(tmp_path, capsys):
    model = lively_file(tmp_path / "m.safetensors", depths=(1,))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["ui", "--no-browser", "--port", str(port), "--model", str(model)]
        assert main(words) == 1
    assert f"the port {port} is taken" in capsys.readouterr().err


def test_missing_models_are_an_error(tmp_path, capsys):
    for path, said in ((tmp_path / "a.onnx", "no such file"), (tmp_path, "no models")):
        assert main(["ui", "--no-browser", "--model", str(path)]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_models_of_one_name_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.onnx").write_bytes(b"")
    other = tmp_path / "b/other.onnx"
    other.write_bytes(b"")
    found = find_models([tmp_path / "a", tmp_path / "b"])
    assert [*found] == [*(str(tmp_path / f / "m.onnx") for f in "ab"), "other.onnx"]


def test_the_device_that_was_asked_for_is_first():
    assert next(iter(find_devices("cuda:1"))) == "cuda:1"
    assert next(iter(find_devices())) == "auto"
    assert "cpu" in find_devices()


def test_models_report_in_small_tiles():
    tiled = in_small_tiles(Repeat())
    assert isinstance(tiled, Tiled)
    assert tiled.tile is not None
    assert tiled.tile <= 256
