"""`aethernet upscale` with bad input: one line, exit code 1, and nothing is written."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from helpers import LIGHT, ROOT, lively_file, photo, without_hidden, write
from PIL import Image

from aethernet.commands.main import main
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture
from aethernet.runtimes import choice
from aethernet.runtimes.trial import Trial

COMMAND = [sys.executable, "-m", "aethernet", "upscale"]
PLAINLY = ["--runtime", LIGHT, "--device", "cpu"]


def picture(path, height=20, width=30):
    return write(photo(height, width), path)


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

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("\n<!DOCTYPE html><title>Sign in", "This is a web page, not a "),
            ("version https://git-lfs.github.com/spec/v1", "pointer of Git LFS to a "),
        ],
    )
    @pytest.mark.parametrize("name", ["a.jpg", "a.mp4", "a.onnx", "a.safetensors"])
    def test_what_was_downloaded_instead(
        self, tmp_path, upscale, capsys, name, content, reason
    ):
        (tmp_path / name).write_text(content)
        if name in ("a.jpg", "a.mp4"):
            code = upscale(tmp_path / name, "-o", tmp_path / f"out{name[1:]}")
        else:
            source, target = picture(tmp_path / "in.png"), tmp_path / "out.png"
            model = ["--model", str(tmp_path / name), *PLAINLY]
            code = main(["upscale", str(source), "-o", str(target), *model])
        self.refused(capsys, code, reason)

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
    def test_a_truncated_picture(self, tmp_path, upscale, capsys, suffix):
        picture(tmp_path / f"whole{suffix}", 200, 300)
        content = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) * 2 // 3])
        (tmp_path / f"whole{suffix}").unlink()
        code = upscale(tmp_path / f"cut{suffix}", "-o", tmp_path / "out.png")
        self.refused(capsys, code, f"cut{suffix}: ")
        assert without_hidden(tmp_path) == [f"cut{suffix}"]

    def test_a_damaged_video_costs_no_trial(self, tmp_path, monkeypatch, capsys):
        # Where the processor has units for bfloat16, a trial compares that, too.
        monkeypatch.setattr(choice, "has_reduced_precision_units", lambda: True)
        monkeypatch.setattr(Trial, "race", lambda *_: pytest.fail("a trial"))
        lively_file(tmp_path / "m.safetensors", embed_dim=4)
        (tmp_path / "in.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(1000))
        words = ["upscale", tmp_path / "in.mp4", "-o", tmp_path / "out.mp4"]
        words += ["--model", tmp_path / "m.safetensors", "--device", "cpu"]
        code = main([*map(str, words)])
        self.refused(capsys, code, "in.mp4: The file cannot be read as a video")

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
            code = upscale(path, "-o", tmp_path / "out.jpg")
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
        lively_file(tmp_path / "m.safetensors", in_chans=4)
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
