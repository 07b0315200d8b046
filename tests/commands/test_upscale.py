"""`aethernet upscale` in folders and pipes, when it is killed, and its flags."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from helpers import ROOT, SAMPLE, lively_network, photo, without_hidden, write
from large_picture import draw
from PIL import Image

from aethernet.checkpoints.checkpoint import save_checkpoint
from aethernet.commands.main import main
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture
from aethernet.runtimes.registry import open_model

COMMAND = [sys.executable, "-m", "aethernet", "upscale"]
PLAINLY = ["--runtime", "pytorch", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_checkpoint(lively_network(), path)
    return path


@pytest.fixture
def upscale(model):
    """Run the command in this process; return its exit code."""

    def call(*arguments):
        return main(["upscale", *map(str, arguments), "--model", str(model), *PLAINLY])

    return call


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
            [*COMMAND, *arguments, "--model", str(model), *PLAINLY],
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

    def test_a_picture_goes_in_and_comes_out(self, tmp_path, model, upscale):
        picture(tmp_path / "a.png")
        assert upscale(tmp_path / "a.png", "-o", tmp_path / "b.png") == 0
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
            return open_model(path, *options)

        monkeypatch.setattr("aethernet.commands.upscale_request.open_model", counted)
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
    """A picture of 100 megapixels, and a model of one layer."""

    CODE = """
import sys, resource
import numpy as np, torch, pyvips
from aethernet.runtimes.base import Description, InputSizes
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling.files import upscale_file

class OneLayer:
    scale, channels, input_sizes = 2, 3, InputSizes()
    layer = torch.nn.Upsample(scale_factor=2, mode="bilinear")
    def run(self, batch):
        return self.layer(torch.from_numpy(batch)).numpy()
    def describe(self):
        return Description("one layer", "cpu", "float32")

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = upscale_file(sys.argv[1], sys.argv[2], Tiled(OneLayer()))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(done.size_after, (peak - before) // 1024)
"""

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
    def test_takes_less_than_2_gb(self, tmp_path, suffix):
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


class TestBadInput:
    def refused(self, capsys, code, reason):
        printed = capsys.readouterr()
        assert code == 1
        assert reason in printed.err
        assert printed.err.startswith("error: ")
        assert len(printed.err.splitlines()) == 1
        assert printed.out == ""

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("text.png", b"hello " * 100),
            ("empty.jpg", b""),
            ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
            ("numbers.csv", b"1,2\n3,4\n"),
        ],
    )
    def test_a_file_of_another_kind(self, tmp_path, upscale, capsys, name, content):
        (tmp_path / name).write_bytes(content)
        code = upscale(tmp_path / name, "-o", tmp_path / "out.png")
        self.refused(capsys, code, f"{name}: This is no picture")
        assert without_hidden(tmp_path) == [name]
        assert (tmp_path / name).read_bytes() == content

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
    def test_a_truncated_picture(self, tmp_path, upscale, capsys, suffix):
        picture(tmp_path / f"whole{suffix}", 200, 300)
        content = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) * 2 // 3])
        (tmp_path / f"whole{suffix}").unlink()
        code = upscale(tmp_path / f"cut{suffix}", "-o", tmp_path / "out.png")
        self.refused(capsys, code, f"cut{suffix}: ")
        assert without_hidden(tmp_path) == [f"cut{suffix}"]

    def test_a_huge_picture_is_refused_before_decoding(self, tmp_path, upscale, capsys):
        header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000)))]
        content = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data))
            + kind
            + data
            + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
        (tmp_path / "bomb.png").write_bytes(content)
        code = upscale(tmp_path / "bomb.png", "-o", tmp_path / "out.png")
        self.refused(capsys, code, "40000x40000 pixels, 1600 megapixels; the limit is")

    @pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
    def test_extreme_shapes_are_fine(self, tmp_path, upscale, size):
        picture(tmp_path / "a.png", *size)
        assert upscale(tmp_path / "a.png", "-o", tmp_path / "b.png", "--tile", 512) == 0
        shape = read_picture(tmp_path / "b.png").pixels.shape
        assert shape == (2 * size[0], 2 * size[1], 3)

    def test_animations(self, tmp_path, upscale, capsys):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        for suffix in (".gif", ".webp", ".png"):
            path = tmp_path / f"a{suffix}"
            frames[0].save(path, save_all=True, append_images=frames[1:])
            code = upscale(path, "-o", tmp_path / "out.png")
            self.refused(capsys, code, "is animated")

    def test_output_equal_to_input(self, tmp_path, upscale, capsys):
        picture(tmp_path / "in/a.png")
        before = (tmp_path / "in/a.png").read_bytes()
        for target in (tmp_path / "in/a.png", f"{tmp_path}/in/../in/a.png"):
            code = upscale(tmp_path / "in/a.png", "-o", target)
            self.refused(capsys, code, "Name another output")
        code = upscale(tmp_path / "in", "-o", tmp_path / "in")
        self.refused(capsys, code, "Name another output folder")
        assert (tmp_path / "in/a.png").read_bytes() == before
        assert without_hidden(tmp_path / "in") == ["a.png"]

    def test_a_model_of_other_channels(self, tmp_path, capsys):
        save_checkpoint(lively_network(in_chans=4), tmp_path / "m.safetensors")
        picture(tmp_path / "a.png")
        arguments = [
            str(tmp_path / "a.png"),
            "--model",
            str(tmp_path / "m.safetensors"),
        ]
        code = main(["upscale", *arguments, "-o", str(tmp_path / "b.png"), *PLAINLY])
        self.refused(capsys, code, "takes 4 channels")
        assert not (tmp_path / "b.png").exists()

    def test_an_output_folder_that_is_a_file(self, tmp_path, upscale, capsys):
        picture(tmp_path / "in/a.png")
        (tmp_path / "out").write_text("a file where a folder should be")
        code = upscale(tmp_path / "in", "-o", tmp_path / "out")
        self.refused(capsys, code, "names a file")
        code = upscale(tmp_path / "in", "-o", tmp_path / "out/deeper")
        self.refused(capsys, code, "Cannot make the folder")

    def test_a_name_that_is_not_utf8(self, tmp_path, upscale, capsys):
        picture(tmp_path / "a.png")
        code = upscale(tmp_path / "a.png", "-o", tmp_path / os.fsdecode(b"b\xff.png"))
        self.refused(capsys, code, "not valid UTF-8")

    def test_a_result_too_large_for_its_format(self, tmp_path, upscale, capsys):
        picture(tmp_path / "a.png")
        arguments = ["-o", tmp_path / "b.png", "--scale", "10000000"]
        self.refused(
            capsys, upscale(tmp_path / "a.png", *arguments), "is too large for PNG"
        )

    def test_a_named_pipe(self, tmp_path, upscale, capsys):
        if not hasattr(os, "mkfifo"):
            pytest.skip("needs named pipes, which POSIX has")
        os.mkfifo(tmp_path / "a.png")
        code = upscale(tmp_path / "a.png", "-o", tmp_path / "b.png")
        self.refused(capsys, code, "is a pipe")

    def test_lossless_jpeg(self, tmp_path, upscale, capsys):
        picture(tmp_path / "a.png")
        arguments = ["-o", tmp_path / "b.jpg", "--quality", "lossless"]
        self.refused(capsys, upscale(tmp_path / "a.png", *arguments), "never lossless")

    def test_a_full_standard_output(self, tmp_path, model):
        if not os.path.exists("/dev/full"):
            pytest.skip("needs /dev/full, which Linux has")
        picture(tmp_path / "a.png")
        arguments = [
            str(tmp_path / "a.png"),
            "-o",
            "-",
            "--model",
            str(model),
            *PLAINLY,
        ]
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*COMMAND, *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                cwd=ROOT,
            )
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1

    @pytest.mark.parametrize("limit", [1000, 30_000])
    def test_a_full_disk(self, tmp_path, model, limit):
        pytest.importorskip("resource", reason="limits of a process, which POSIX has")
        noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
        write_picture(Picture(noise), tmp_path / "in.png")
        arguments = [str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png")]
        arguments += ["--model", str(model), *PLAINLY]
        code = (
            "import resource, sys\n"
            "from aethernet.commands.main import main\n"
            "from aethernet.pictures import write\n"
            "write.SPOOL_BYTES = 1000\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            "sys.exit(main(['upscale', *sys.argv[1:]]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 1
        path = tmp_path / "out.png"
        assert done.stderr.startswith(f"error: {path}: Cannot be written: ")
        assert len(done.stderr.splitlines()) == 1
        assert without_hidden(tmp_path) == ["in.png"]
