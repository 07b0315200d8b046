"""`aethernet upscale` in folders and pipes, when it is killed, and its flags."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import LIGHT, PLAIN, ROOT, SAMPLE, photo, without_hidden, write
from PIL import Image

from aethernet.commands.main import main
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture
from aethernet.runtimes.registry import open_any

COMMAND = [sys.executable, "-m", "aethernet", "upscale"]
PLAINLY = ["--runtime", LIGHT, "--device", "cpu"]


def picture(path, height=20, width=30):
    return write(photo(height, width), path)


def files_in(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )


def wait_until(process, happened, patience=120):
    deadline = time.monotonic() + patience
    while not happened():
        assert process.poll() is None, "the process ended early"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


class TestFolders:
    def test_structure_and_names_are_kept_and_failures_are_listed(
        self, tmp_path, upscale, capsys
    ):
        source, target = tmp_path / "in", tmp_path / "out"
        names = ["a.png", "deep/er/Bild äöü 1.jpg", "deep/二.webp", "scan.TIF"]
        for name in names:
            picture(source / name)
        (source / "deep/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
        (source / "notes.txt").write_text("no picture by its name")
        assert upscale(source, "-o", target) == 1
        printed = capsys.readouterr()
        assert files_in(target) == sorted(names)
        for name in names:
            assert read_picture(target / name).pixels.shape == (40, 60, 3)
        assert printed.err.count("broken.png") == 1
        assert "4 of 5 pictures; 1 failed" in printed.err
        assert "Traceback" not in printed.err
        assert printed.out.count(" -> ") == 4

    def test_a_second_run_continues_the_first(self, tmp_path, upscale, capsys):
        source, target = tmp_path / "in", tmp_path / "out"
        for name in ("1.png", "2.png", "3.png"):
            picture(source / name)
        assert upscale(source / "2.png", "-o", f"{target}/") == 0
        before = (target / "2.png").stat().st_mtime_ns
        assert upscale(source, "-o", target) == 0
        assert files_in(target) == ["1.png", "2.png", "3.png"]
        assert (target / "2.png").stat().st_mtime_ns == before
        assert "1 was there already" in capsys.readouterr().err
        assert upscale(source, "-o", target, "--overwrite") == 0
        assert (target / "2.png").stat().st_mtime_ns != before

    def test_format_suffix_and_size_go_together(self, tmp_path, upscale):
        picture(tmp_path / "in/a.png")
        picture(tmp_path / "in/a.jpg")
        arguments = ["--format", "webp", "--suffix", "_big", "--width", "45"]
        assert upscale(tmp_path / "in", "-o", tmp_path / "out", *arguments) == 0
        made = files_in(tmp_path / "out")
        assert len(made) == 2  # neither replaced the other
        assert all(n.startswith("a-") and n.endswith("_big.webp") for n in made)
        for name in made:
            assert read_picture(tmp_path / "out" / name).pixels.shape[:2] == (30, 45)

    def test_json_is_one_line_per_picture_and_nothing_else(
        self, tmp_path, upscale, capsys
    ):
        picture(tmp_path / "in/a.png")
        picture(tmp_path / "in/b.png")
        (tmp_path / "in/c.png").write_text("text")
        picture(tmp_path / "out/b.png")
        assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--json") == 1
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        found = {os.path.basename(line["source"]): line for line in lines}
        assert {name: line["status"] for name, line in found.items()} == {
            "a.png": "done",
            "b.png": "skipped",
            "c.png": "failed",
        }
        assert found["a.png"]["size_after"] == [60, 40]
        assert "no picture" in found["c.png"]["reason"]

    def test_quiet_prints_only_errors(self, tmp_path, upscale, capsys):
        picture(tmp_path / "in/a.png")
        assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--quiet") == 0
        assert capsys.readouterr() == ("", "")

    def test_verbose_prints_how_busy_the_network_was(self, tmp_path, upscale, capsys):
        picture(tmp_path / "a.png")
        assert upscale(tmp_path / "a.png", "--verbose") == 0
        assert "% of" in capsys.readouterr().out

    def test_the_output_for_a_pattern_is_a_folder(self, tmp_path, upscale):
        picture(tmp_path / "in/a.png")
        assert upscale(tmp_path / "in/*.png", "-o", tmp_path / "out") == 0
        assert files_in(tmp_path / "out") == ["a.png"]

    def test_a_picture_with_two_errors_is_reported_once(
        self, tmp_path, upscale, capsys
    ):
        pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 4), np.uint8)
        write_picture(Picture(pixels), tmp_path / "whole.png")
        content = (tmp_path / "whole.png").read_bytes()
        (tmp_path / "in").mkdir()
        (tmp_path / "in/cut.png").write_bytes(content[: len(content) // 2])
        arguments = ["-o", tmp_path / "out", "--format", "jpg", "--json"]
        assert upscale(tmp_path / "in", *arguments) == 1
        (line,) = capsys.readouterr().out.splitlines()
        assert "no transparency" in json.loads(line)["reason"]


class TestKilled:
    def test_only_whole_files_are_left_at_any_moment(self, tmp_path, model):
        source, target = tmp_path / "in", tmp_path / "out"
        names = [f"{index:02}.png" for index in range(12)]
        for name in names:
            picture(source / name, 150, 200)
        arguments = [*COMMAND, str(source), "-o", str(target), "--model", str(model)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for wanted in (2, 6):
            process = subprocess.Popen(
                [*arguments, *PLAINLY, "--tile", "32"],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

            def made():
                return [name for name in names if (target / name).exists()]

            wait_until(process, lambda n=wanted: len(made()) >= n)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
            for name in made():
                assert read_picture(target / name).pixels.shape == (300, 400, 3)
        done = subprocess.run(
            [*arguments, *PLAINLY],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert [n for n in files_in(target) if not n.startswith(".")] == names
        assert "there already" in done.stderr
        assert files_in(source) == names

    def test_ctrl_c_prints_one_line(self, tmp_path, model):
        picture(tmp_path / "1.png")
        picture(tmp_path / "2.png", 1500, 1500)
        arguments = [str(tmp_path / "1.png"), str(tmp_path / "2.png"), "--tile", "16"]
        process = subprocess.Popen(
            [*COMMAND, *arguments, "--model", str(model), "--runtime", PLAIN],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(process, (tmp_path / "1_2x.png").exists)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "interrupted" in message
        assert "Traceback" not in message
        assert without_hidden(tmp_path) == ["1.png", "1_2x.png", "2.png"]


class TestPipes:
    def run(self, *arguments, given=b"", model=None):
        return subprocess.run(
            [*COMMAND, *map(str, arguments), "--model", str(model), *PLAINLY],
            input=given,
            capture_output=True,
            check=False,
            cwd=ROOT,
        )

    def test_a_picture_goes_in_and_comes_out(self, tmp_path, model):
        picture(tmp_path / "a.png")
        words = ["upscale", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]
        assert main([*words, "--model", str(model), *PLAINLY]) == 0
        content = (tmp_path / "a.png").read_bytes()
        done = self.run("-", "-o", "-", given=content, model=model)
        assert done.returncode == 0, done.stderr
        found = np.asarray(Image.open(io.BytesIO(done.stdout)))
        assert np.array_equal(found, read_picture(tmp_path / "b.png").pixels)

    def test_format_of_standard_output(self, tmp_path, model):
        picture(tmp_path / "a.png")
        done = self.run(tmp_path / "a.png", "-o", "-", "--format", "webp", model=model)
        assert done.stdout[:4] == b"RIFF"

    def test_an_unreadable_picture_is_one_line(self, model):
        done = self.run("-", "-o", "-", given=b"hello", model=model)
        assert done.returncode == 1
        assert done.stdout == b""
        printed = done.stderr.decode()
        assert printed.startswith("error: standard input: ")
        assert len(printed.splitlines()) == 1


class TestFramesThroughPipes:
    HEADER = b"YUV4MPEG2 W16 H8 F25:1 C444 Xcaf\xe9\n"
    FRAME = b"FRAME\n" + bytes(3 * 16 * 8)

    def command(self, model, *arguments):
        return [*COMMAND, "-", *map(str, arguments), "--model", str(model), *PLAINLY]

    @pytest.mark.parametrize(
        ("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
    )
    def test_signals_while_the_pipe_is_silent(self, model, stop, code):
        process = subprocess.Popen(
            self.command(model, "-o", "-"),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        process.stdin.write(self.HEADER + 2 * self.FRAME)
        process.stdin.flush()
        whole = len(self.HEADER) + 2 * (6 + 4 * 3 * 16 * 8)
        assert len(process.stdout.read(whole - 20)) == whole - 20
        process.send_signal(stop)
        assert process.wait(timeout=60) == code
        message = process.stderr.read().decode()
        process.stdin.close()
        assert "Fatal" not in message
        assert "Traceback" not in message

    def test_whole_frames_before_an_error_are_kept(self, tmp_path, model):
        target = tmp_path / "out.y4m"
        done = subprocess.run(
            self.command(model, "-o", target),
            input=self.HEADER + 2 * self.FRAME + self.FRAME[:50],
            capture_output=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 1
        assert done.stderr.startswith(b"error: ")
        assert target.read_bytes().count(b"FRAME\n") == 2
        assert without_hidden(tmp_path) == ["out.y4m"]

    def test_frames_need_a_suffix_of_their_own(self, tmp_path, model):
        done = subprocess.run(
            self.command(model, "-o", tmp_path / "out.mkv"),
            input=self.HEADER + self.FRAME,
            capture_output=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 1
        assert b"Name the output .y4m" in done.stderr
        assert without_hidden(tmp_path) == []


class TestFlags:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--scale", "0"], "above 0"),
            (["--width", "1.5"], "whole number"),
            (["--quality", "101"], "1 to 100"),
            (["--tile", "-1"], "0 or more"),
            (["--quiet", "--verbose"], "not allowed"),
            (["--crf", "nan"], "argument --crf: expected a number, not 'nan'"),
            (["--crf", "inf"], "argument --crf: expected a number, not 'inf'"),
            (["--scale", "nan"], "argument --scale: expected a number above 0"),
            (["--max-mp", "inf"], "argument --max-mp: expected a number above 0"),
            (["--limit", "nan"], "argument --limit: expected a number above 0"),
        ],
    )
    def test_wrong_values_are_refused(self, arguments, message, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["upscale", str(SAMPLE), *arguments])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--codec", "ffv1"], "--codec does not go with pictures"),
            (["--format", "xyz"], "Cannot write .xyz"),
            (["--limit", "0.01"], "--limit"),
        ],
    )
    def test_flags_that_do_not_go_together(
        self, arguments, message, capsys, upscale, tmp_path
    ):
        assert upscale(SAMPLE, "-o", f"{tmp_path}/", *arguments) == 1
        printed = capsys.readouterr()
        assert message in printed.err
        assert len(printed.err.splitlines()) == 1
        assert without_hidden(tmp_path) == []

    def test_keys_in_a_remote_address_are_not_printed(self, capsys, upscale):
        assert upscale("s3://KEY:SECRET@bucket/in", "-o", "out") == 1
        message = capsys.readouterr().err
        assert "s3://bucket/in is not a file on this machine" in message
        assert "SECRET" not in message

    def test_tile_and_context_reach_the_model(self, tmp_path, upscale):
        picture(tmp_path / "a.png", 90, 70)
        for name, arguments in (
            ("whole", ["--tile", "0"]),
            ("close", ["--tile", "32", "--context", "16"]),
            ("blind", ["--tile", "32", "--context", "0"]),
        ):
            assert (
                upscale(tmp_path / "a.png", "-o", tmp_path / f"{name}.png", *arguments)
                == 0
            )
        whole, close, blind = (
            read_picture(tmp_path / f"{name}.png").pixels.astype(int)
            for name in ("whole", "close", "blind")
        )
        assert np.abs(whole - close).max() <= 1
        assert np.abs(whole - blind).max() > 10


class TestModel:
    @pytest.fixture
    def opened(self, monkeypatch):
        """The files that the command opened as models."""
        paths = []

        def counted(path, *options):
            paths.append(path)
            return open_any(path, *options)

        monkeypatch.setattr("aethernet.runtimes.request.open_any", counted)
        return paths

    def test_it_is_opened_once_also_if_it_names_the_outputs(
        self, tmp_path, upscale, model, opened
    ):
        picture(tmp_path / "a.png")
        assert upscale(tmp_path / "a.png") == 0
        assert (tmp_path / "a_2x.png").exists()
        assert opened == [model]

    def test_it_is_not_opened_if_an_input_is_missing(self, tmp_path, upscale, opened):
        assert upscale(tmp_path / "absent.png") == 1
        assert opened == []

    def test_it_is_not_opened_if_nothing_is_left_to_do(self, tmp_path, upscale, opened):
        picture(tmp_path / "in/a.png")
        picture(tmp_path / "out/a.png")
        assert upscale(tmp_path / "in", "-o", tmp_path / "out") == 0
        assert opened == []


@pytest.mark.slow
class TestLarge:
    """A picture of 100 megapixels, and a model that repeats pixels."""

    CODE = """
import sys, resource
import pyvips
from aethernet.runtimes.base import Description, InputSizes
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling.files import upscale_file

class Repeat:
    scale, channels, input_sizes = 2, 3, InputSizes()
    def run(self, batch):
        return batch.repeat(2, 2).repeat(2, 3)
    def describe(self):
        return Description("a stand-in", "cpu", "float32")

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = upscale_file(sys.argv[1], sys.argv[2], Tiled(Repeat()))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(done.size_after, (peak - before) // 1024)
"""

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
    def test_takes_less_than_2_gb(self, tmp_path, suffix):
        pytest.importorskip("torch", reason="needs PyTorch, as the benchmark does")
        from large_picture import draw

        draw(tmp_path / f"in{suffix}", 10_000)
        done = subprocess.run(
            [sys.executable, "-c", self.CODE]
            + [str(tmp_path / f"{name}{suffix}") for name in ("in", "out")],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        size, _, megabytes = done.stdout.strip().rpartition(" ")
        assert size == "(20000, 20000)", done.stderr
        assert int(megabytes) < 2000
        assert without_hidden(tmp_path) == [f"in{suffix}", f"out{suffix}"]
