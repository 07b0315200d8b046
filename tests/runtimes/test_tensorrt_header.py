"""The header beside a TensorRT engine, and when an engine is refused."""

import re
import shlex
from pathlib import Path

import pytest
from helpers import ROOT
from runtime_helpers import engine_header, write_engine

from aethernet.checkpoints.onnx import ShapeRange, trtexec_command
from aethernet.commands.main import command_parser
from aethernet.errors import AetherError
from aethernet.runtimes.tensorrt.header import (
    check_content,
    check_covers,
    check_fits,
    covers_gpu,
    header_path,
    read_header,
    rebuild_command,
)

# What sampleOptions.cpp of TensorRT 10.0, 10.16, 11.0 and 11.1 each parse, of all that
# concerns us. 11 has no --fp16, --bf16 and --best any more, and takes --stronglyTyped
# without effect; --fp32 and --workspace were gone before 10.
TRTEXEC_FLAGS = {
    "--onnx",
    "--saveEngine",
    "--loadEngine",
    "--minShapes",
    "--optShapes",
    "--maxShapes",
    "--shapes",
    "--stronglyTyped",
    "--skipInference",
    "--memPoolSize",
    "--noTF32",
    "--iterations",
    "--useCudaGraph",
}


class TestHeader:
    def test_reads_what_it_wrote(self, tmp_path):
        assert read_header(write_engine(tmp_path)) == engine_header()

    def test_none_beside_the_engine(self, tmp_path):
        engine = write_engine(tmp_path)
        header_path(engine).unlink()
        with pytest.raises(
            AetherError, match=r"my 2x\.engine\.json, is missing"
        ) as error:
            read_header(engine)
        assert error.value.path == engine
        assert "aethernet engine MODEL.onnx" in error.value.hint

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text[:100],
            lambda text: "",
            lambda text: "[" * 100_000,
            lambda text: "[1, 2]",
            lambda text: text.replace('"scale": 2', '"scale": "2"', 1),
            lambda text: text.replace('"scale": 2', '"scale": -2', 1),
            lambda text: text.replace('"scale"', '"skale"', 1),
            lambda text: text.replace("tensorrt_rtx", "os"),
            lambda text: text.replace('"float16"', '"cuda"'),
            lambda text: text.replace("8.6+", "8"),
            lambda text: text.replace("48", "null"),
            lambda text: text.replace('"input"', "null"),
            lambda text: text + " " * 2_000_000,
        ],
    )
    def test_a_damaged_one(self, tmp_path, change):
        engine = write_engine(tmp_path)
        path = header_path(engine)
        path.write_text(change(path.read_text()))
        with pytest.raises(AetherError, match="no header of an engine, or") as error:
            read_header(engine)
        assert error.value.path == path

    def test_one_of_a_later_version(self, tmp_path):
        engine = write_engine(tmp_path)
        path = header_path(engine)
        path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
        with pytest.raises(AetherError, match="has format 2; this version"):
            read_header(engine)

    def test_one_of_another_engine(self, tmp_path):
        engine = write_engine(tmp_path, b"another plan")
        with pytest.raises(AetherError, match="was not written for this"):
            check_content(engine, engine_header(), engine.read_bytes())


class TestStaleEngines:
    PATH = Path("my 2x.engine")

    def check(self, version="1.7.1.116", compute_capability=(8, 9), **changes):
        check_fits(
            self.PATH, engine_header(**changes), version, "NVIDIA A", compute_capability
        )

    def test_the_same_version_and_a_newer_gpu_are_fine(self):
        self.check()
        self.check(compute_capability=(12, 0))
        self.check(compute_capability=(8, 9), compute_capabilities=("8.6", "8.9"))

    def test_another_version(self):
        with pytest.raises(AetherError, match=r"built by TensorRT for RTX 1\.7.*1\.8"):
            self.check(version="1.8.0.1")

    def test_another_gpu(self):
        facts = {
            "library": "tensorrt",
            "compute_capabilities": ("8.9",),
            "gpu": "NVIDIA B",
        }
        pattern = r"on NVIDIA B for compute capability 8\.9, and NVIDIA A here has 8\.6"
        with pytest.raises(AetherError, match=pattern):
            self.check(compute_capability=(8, 6), **facts)

    def test_the_line_for_an_older_gpu_names_it(self):
        with pytest.raises(AetherError, match=r"--compute-capability 7\.5$"):
            self.check(compute_capability=(7, 5))

    def test_versions_are_compared_as_numbers(self):
        assert covers_gpu(("8.6+",), (12, 0))
        assert covers_gpu(("8.6+",), (10, 0))
        assert not covers_gpu(("8.6+",), (8, 0))
        assert not covers_gpu(("8.6",), (8, 9))

    def test_the_command_accepts_the_line_that_builds_it_again(self):
        header = engine_header(compute_capabilities=("8.6", "8.9"))
        line = rebuild_command(Path("models/my 2x.engine"), header, include=(4, 100))
        words = shlex.split(line)
        assert words[:2] == ["aethernet", "engine"]
        arguments = command_parser(words).parse_args(words[1:])
        assert arguments.model == Path("models/my 2x.onnx")
        assert arguments.output == Path("models/my 2x.engine")
        assert arguments.min == (8, 4)  # width and height
        assert (arguments.opt, arguments.max) == ((16, 16), (100, 32))
        assert arguments.batch == (1, 1, 2)
        assert arguments.compute_capability == ["8.6", "8.9"]

    def test_an_image_outside_the_profile(self):
        check_covers(self.PATH, engine_header(), (1, 3, 32, 48))
        for height, width in ((7, 8), (8, 7), (33, 48), (32, 49)):
            with pytest.raises(AetherError) as caught:
                check_covers(self.PATH, engine_header(), (1, 3, height, width))
            message = str(caught.value)
            assert "takes images of 8x8 to 48x32 pixels (width x height)" in message
            assert f"has {width}x{height}. Build it again: aethernet engine" in message

    def test_other_channels_and_too_small_a_batch(self):
        with pytest.raises(AetherError, match="images of 3 channels"):
            check_covers(self.PATH, engine_header(), (1, 1, 16, 16))
        profile = ((2, 3, 8, 8), (2, 3, 16, 16), (2, 3, 32, 48))
        with pytest.raises(AetherError, match="batches of 2 to 2 images, not 1"):
            check_covers(self.PATH, engine_header(profile=profile), (1, 3, 16, 16))


class TestTrtexecLine:
    @staticmethod
    def flags(line):
        words = shlex.split(line, comments=True)[1:]
        return {word.partition("=")[0] for word in words}

    @pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16", "int8"])
    @pytest.mark.parametrize("shapes", [None, ShapeRange()])
    def test_has_only_flags_that_trtexec_has(self, shapes, precision):
        line = trtexec_command(Path("my 2x.onnx"), 3, shapes, precision)
        assert self.flags(line) <= TRTEXEC_FLAGS

    def test_lines_in_the_documents_too(self):
        text = (ROOT / "onnx/Readme.md").read_text(encoding="utf-8")
        lines = re.findall(r"^trtexec .*$", text, flags=re.MULTILINE)
        assert lines
        for line in lines:
            assert self.flags(line) <= TRTEXEC_FLAGS, line

    def test_the_command_accepts_the_engine_lines_in_the_documents(self):
        text = (ROOT / "onnx/Readme.md").read_text(encoding="utf-8")
        lines = re.findall(r"^aethernet engine .*$", text, flags=re.MULTILINE)
        assert lines
        for line in lines:
            words = shlex.split(line, comments=True)[1:]
            command_parser(words).parse_args(words)
