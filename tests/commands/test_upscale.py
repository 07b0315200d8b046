"""`aethernet upscale` as people and programs use it: folders, pipes, kills, flags."""

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
from helpers import ROOT, SAMPLE, lively_network, without_hidden
from large_picture import draw
from PIL import Image

from aethernet.checkpoints.checkpoint import save_checkpoint
from aethernet.checkpoints.verification import natural_image
from aethernet.commands.main import main
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture

COMMAND = [sys.executable, "-m", "aethernet", "upscale"]
PLAINLY = ["--runtime", "pytorch", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_checkpoint(lively_network(), path)
    return path


@pytest.fixture
def upscale(model):
    """Run the command in this process; what it returns."""

    def call(*words):
        return main(["upscale", *map(str, words), "--model", str(model), *PLAINLY])

    return call


def picture(path, height=20, width=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.rint(255 * natural_image(height, width)[0].numpy()).astype(np.uint8)
    write_picture(Picture(np.ascontiguousarray(pixels.transpose(1, 2, 0))), path)


def files_in(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )


def wait_until(process, happened, patience=120):
    deadline = time.monotonic() + patience
    while not happened():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


class TestFolders:
    def test_structure_and_names_are_kept_and_what_fails_is_listed(
        self, tmp_path, upscale, capsys
    ):
        source, target = tmp_path / "in", tmp_path / "out"
        names = ["a.png", "deep/er/Bild äöü 1.jpg", "deep/二.webp", "scan.TIF"]
        for name in names:
            picture(source / name)
        (source / "deep/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
        (source / "notes.txt").write_text("no picture by its name")
        assert upscale(source, "-o", target) == 1
        told = capsys.readouterr()
        assert files_in(target) == sorted(names)
        for name in names:
            assert read_picture(target / name).pixels.shape == (40, 60, 3)
        assert told.err.count("broken.png") == 1
        assert "4 of 5 pictures; 1 failed" in told.err
        assert "Traceback" not in told.err
        assert told.out.count(" -> ") == 4

    def test_goes_on_where_it_stopped(self, tmp_path, upscale, capsys):
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
        words = ["--format", "webp", "--suffix", "_big", "--width", "45"]
        assert upscale(tmp_path / "in", "-o", tmp_path / "out", *words) == 0
        made = files_in(tmp_path / "out")
        assert len(made) == 2  # neither replaced the other
        assert all(n.startswith("a-") and n.endswith("_big.webp") for n in made)
        for name in made:
            assert read_picture(tmp_path / "out" / name).pixels.shape[:2] == (30, 45)

    def test_a_line_of_json_for_each_file_and_nothing_else(
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

    def test_quiet_says_nothing_but_errors(self, tmp_path, upscale, capsys):
        picture(tmp_path / "in/a.png")
        assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--quiet") == 0
        assert capsys.readouterr() == ("", "")

    def test_verbose_says_how_busy_the_network_was(self, tmp_path, upscale, capsys):
        picture(tmp_path / "a.png")
        assert upscale(tmp_path / "a.png", "--verbose") == 0
        assert "% of" in capsys.readouterr().out

    def test_a_pattern_makes_a_folder_however_much_it_matches(self, tmp_path, upscale):
        picture(tmp_path / "in/a.png")
        assert upscale(tmp_path / "in/*.png", "-o", tmp_path / "out") == 0
        assert files_in(tmp_path / "out") == ["a.png"]

    def test_a_picture_that_fails_twice_is_one_line(self, tmp_path, upscale, capsys):
        pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 4), np.uint8)
        write_picture(Picture(pixels), tmp_path / "whole.png")
        content = (tmp_path / "whole.png").read_bytes()
        (tmp_path / "in").mkdir()
        (tmp_path / "in/cut.png").write_bytes(content[: len(content) // 2])
        words = ["-o", tmp_path / "out", "--format", "jpg", "--json"]
        assert upscale(tmp_path / "in", *words) == 1
        (line,) = capsys.readouterr().out.splitlines()
        assert "no transparency" in json.loads(line)["reason"]


class TestKilled:
    def test_whatever_the_moment_only_whole_files_are_left(self, tmp_path, model):
        source, target = tmp_path / "in", tmp_path / "out"
        names = [f"{index:02}.png" for index in range(12)]
        for name in names:
            picture(source / name, 150, 200)
        words = [*COMMAND, str(source), "-o", str(target), "--model", str(model)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for wanted in (2, 6):
            process = subprocess.Popen(
                [*words, *PLAINLY, "--tile", "32"],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

            def made():
                return [name for name in names if (target / name).exists()]

            wait_until(process, lambda n=wanted: len(made()) >= n)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "it was done before the kill"
            for name in made():
                assert read_picture(target / name).pixels.shape == (300, 400, 3)
        done = subprocess.run(
            [*words, *PLAINLY],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert [n for n in files_in(target) if not n.startswith(".")] == names
        assert "there already" in done.stderr
        assert files_in(source) == names

    def test_ctrl_c_is_a_sentence(self, tmp_path, model):
        picture(tmp_path / "1.png")
        picture(tmp_path / "2.png", 1500, 1500)
        words = [str(tmp_path / "1.png"), str(tmp_path / "2.png"), "--tile", "16"]
        process = subprocess.Popen(
            [*COMMAND, *words, "--model", str(model), *PLAINLY],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(process, (tmp_path / "1_2x.png").exists)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "interrupted" in said
        assert "Traceback" not in said
        assert without_hidden(tmp_path) == ["1.png", "1_2x.png", "2.png"]


class TestPipes:
    def run(self, *words, given=b"", model=None):
        return subprocess.run(
            [*COMMAND, *map(str, words), "--model", str(model), *PLAINLY],
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

    def test_its_format_is_the_one_asked_for(self, tmp_path, model):
        picture(tmp_path / "a.png")
        done = self.run(tmp_path / "a.png", "-o", "-", "--format", "webp", model=model)
        assert done.stdout[:4] == b"RIFF"

    def test_what_is_no_picture_is_a_sentence(self, model):
        done = self.run("-", "-o", "-", given=b"hello", model=model)
        assert done.returncode == 1
        assert done.stdout == b""
        said = done.stderr.decode()
        assert said.startswith("error: standard input is no picture")
        assert len(said.splitlines()) == 1


class TestFramesThroughPipes:
    HEADER = b"YUV4MPEG2 W16 H8 F25:1 C444 Xcaf\xe9\n"
    FRAME = b"FRAME\n" + bytes(3 * 16 * 8)

    def words(self, model, *words):
        return [*COMMAND, "-", *map(str, words), "--model", str(model), *PLAINLY]

    @pytest.mark.parametrize(
        ("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
    )
    def test_an_end_while_the_pipe_is_silent(self, model, stop, code):
        process = subprocess.Popen(
            self.words(model, "-o", "-"),
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
        said = process.stderr.read().decode()
        process.stdin.close()
        assert "Fatal" not in said
        assert "Traceback" not in said

    def test_whole_frames_are_kept_in_a_file_too(self, tmp_path, model):
        target = tmp_path / "out.y4m"
        done = subprocess.run(
            self.words(model, "-o", target),
            input=self.HEADER + 2 * self.FRAME + self.FRAME[:50],
            capture_output=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 1
        assert done.stderr.startswith(b"error: ")
        assert target.read_bytes().count(b"FRAME\n") == 2
        assert without_hidden(tmp_path) == ["out.y4m"]

    def test_bare_frames_are_not_called_a_film(self, tmp_path, model):
        done = subprocess.run(
            self.words(model, "-o", tmp_path / "out.mkv"),
            input=self.HEADER + self.FRAME,
            capture_output=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 1
        assert b"name it .y4m" in done.stderr
        assert without_hidden(tmp_path) == []


class TestFlags:
    @pytest.mark.parametrize(
        ("words", "said"),
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
    def test_nonsense_is_refused_before_anything_runs(self, words, said, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["upscale", str(SAMPLE), *words])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--codec", "ffv1"], "--codec does not go with pictures"),
            (["--format", "xyz"], "Cannot write .xyz"),
            (["--limit", "0.01"], "--limit"),
        ],
    )
    def test_what_does_not_go_together_is_a_sentence(
        self, words, said, capsys, upscale, tmp_path
    ):
        assert upscale(SAMPLE, "-o", f"{tmp_path}/", *words) == 1
        told = capsys.readouterr()
        assert said in told.err
        assert len(told.err.splitlines()) == 1
        assert without_hidden(tmp_path) == []

    def test_keys_in_a_forgotten_clusters_address_are_not_shown(self, capsys, upscale):
        assert upscale("s3://KEY:SECRET@bucket/in", "-o", "out") == 1
        said = capsys.readouterr().err
        assert "s3://bucket/in is no file here" in said
        assert "SECRET" not in said

    def test_tile_and_context_reach_the_model(self, tmp_path, upscale):
        picture(tmp_path / "a.png", 90, 70)
        for name, words in (
            ("whole", ["--tile", "0"]),
            ("close", ["--tile", "32", "--context", "16"]),
            ("blind", ["--tile", "32", "--context", "0"]),
        ):
            assert (
                upscale(tmp_path / "a.png", "-o", tmp_path / f"{name}.png", *words) == 0
            )
        whole, close, blind = (
            read_picture(tmp_path / f"{name}.png").pixels.astype(int)
            for name in ("whole", "close", "blind")
        )
        assert np.abs(whole - close).max() <= 1
        assert np.abs(whole - blind).max() > 10


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
    def refused(self, capsys, code, said):
        told = capsys.readouterr()
        assert code == 1
        assert said in told.err
        assert told.err.startswith("error: ")
        assert len(told.err.splitlines()) == 1
        assert told.out == ""

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("text.png", b"hello " * 100, "is no picture that can be read"),
            ("empty.jpg", b"", "is no picture that can be read"),
            ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no picture"),
            ("numbers.csv", b"1,2\n3,4\n", "is no picture that can be read"),
        ],
    )
    def test_what_is_no_picture(self, tmp_path, upscale, capsys, name, content, said):
        (tmp_path / name).write_bytes(content)
        code = upscale(tmp_path / name, "-o", tmp_path / "out.png")
        self.refused(capsys, code, said)
        assert without_hidden(tmp_path) == [name]
        assert (tmp_path / name).read_bytes() == content

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
    def test_what_ends_early(self, tmp_path, upscale, capsys, suffix):
        picture(tmp_path / f"whole{suffix}", 200, 300)
        content = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) * 2 // 3])
        (tmp_path / f"whole{suffix}").unlink()
        code = upscale(tmp_path / f"cut{suffix}", "-o", tmp_path / "out.png")
        self.refused(capsys, code, f"cut{suffix} is ")
        assert without_hidden(tmp_path) == [f"cut{suffix}"]

    def test_a_bomb_is_refused_by_its_first_bytes(self, tmp_path, upscale, capsys):
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
            self.refused(capsys, code, "name another output")
        code = upscale(tmp_path / "in", "-o", tmp_path / "in")
        self.refused(capsys, code, "name another output folder")
        assert (tmp_path / "in/a.png").read_bytes() == before
        assert without_hidden(tmp_path / "in") == ["a.png"]

    def test_a_model_of_other_channels(self, tmp_path, capsys):
        save_checkpoint(lively_network(in_chans=4), tmp_path / "m.safetensors")
        picture(tmp_path / "a.png")
        words = [str(tmp_path / "a.png"), "--model", str(tmp_path / "m.safetensors")]
        code = main(["upscale", *words, "-o", str(tmp_path / "b.png"), *PLAINLY])
        self.refused(capsys, code, "takes 4 channels")
        assert not (tmp_path / "b.png").exists()

    def test_a_folder_one_may_not_write(self, tmp_path, upscale, capsys):
        picture(tmp_path / "in/a.png")
        (tmp_path / "out").write_text("a file where a folder should be")
        code = upscale(tmp_path / "in", "-o", tmp_path / "out")
        self.refused(capsys, code, "names a file")
        code = upscale(tmp_path / "in", "-o", tmp_path / "out/deeper")
        self.refused(capsys, code, "Cannot make the folder")

    def test_a_name_that_is_no_utf8(self, tmp_path, upscale, capsys):
        picture(tmp_path / "a.png")
        code = upscale(tmp_path / "a.png", "-o", tmp_path / os.fsdecode(b"b\xff.png"))
        self.refused(capsys, code, "not valid UTF-8")

    def test_a_result_beyond_what_can_be_held(self, tmp_path, upscale, capsys):
        picture(tmp_path / "a.png")
        words = ["-o", tmp_path / "b.png", "--scale", "10000000"]
        self.refused(
            capsys, upscale(tmp_path / "a.png", *words), "is too large for PNG"
        )

    def test_a_pipe_by_name(self, tmp_path, upscale, capsys):
        if not hasattr(os, "mkfifo"):
            pytest.skip("needs named pipes, which POSIX has")
        os.mkfifo(tmp_path / "a.png")
        code = upscale(tmp_path / "a.png", "-o", tmp_path / "b.png")
        self.refused(capsys, code, "is a pipe")

    def test_lossless_where_that_is_not(self, tmp_path, upscale, capsys):
        picture(tmp_path / "a.png")
        words = ["-o", tmp_path / "b.jpg", "--quality", "lossless"]
        self.refused(capsys, upscale(tmp_path / "a.png", *words), "never lossless")

    def test_standard_output_that_takes_nothing(self, tmp_path, model):
        if not os.path.exists("/dev/full"):
            pytest.skip("needs /dev/full, which Linux has")
        picture(tmp_path / "a.png")
        words = [str(tmp_path / "a.png"), "-o", "-", "--model", str(model), *PLAINLY]
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*COMMAND, *words],
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
        words = [str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png")]
        words += ["--model", str(model), *PLAINLY]
        code = (
            "import resource, sys\n"
            "from aethernet import images\n"
            "from aethernet.commands.main import main\n"
            "images.SPOOL_BYTES = 1000\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            "sys.exit(main(['upscale', *sys.argv[1:]]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: Cannot write {tmp_path / 'out.png'}: ")
        assert len(done.stderr.splitlines()) == 1
        assert without_hidden(tmp_path) == ["in.png"]
