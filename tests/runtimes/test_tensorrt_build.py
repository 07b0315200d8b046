"""Building TensorRT engines, which needs no GPU.

What a GPU would run is tested on a stand-in, in test_tensorrt_run.py.
"""

import dataclasses
import hashlib
import importlib.util
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import SAMPLE, check_one_error, lively_network, without_hidden
from runtime_helpers import PICTURE, node, write_engine, write_model

import aethernet
from aethernet.aether_core import VARIANTS
from aethernet.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from aethernet.checkpoints.onnx import ShapeRange, describe
from aethernet.checkpoints.onnx_graph import Writing, to_onnx
from aethernet.commands import main as cli
from aethernet.errors import AetherError, MissingExtraError
from aethernet.runtimes.tensorrt.build import (
    build_engine,
    choose_library,
    shape_range,
)
from aethernet.runtimes.tensorrt.header import EngineHeader, header_path, read_header
from aethernet.runtimes.tensorrt.library import Library, Messages, open_library
from aethernet.runtimes.tensorrt.network import ParsedNetwork
from aethernet.runtimes.tensorrt.run import TensorRTRuntime

onnx = pytest.importorskip("onnx", reason="needs pip install onnx onnxruntime")

needs_builder = pytest.mark.skipif(
    not importlib.util.find_spec("tensorrt_rtx"),
    reason="needs TensorRT for RTX (Linux, Windows): pip install -e '.[tensorrt]'",
)
needs_no_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="about machines without an NVIDIA GPU"
)


def write_graph(network, path, precision="float32", license=None):
    """An ONNX file with free sizes as `aethernet export` writes it, without its checks,
    which take most of the time."""
    save_checkpoint(network, path.with_suffix(".safetensors"))
    checkpoint = load_checkpoint(path.with_suffix(".safetensors"))
    path.with_suffix(".safetensors").unlink()
    model = to_onnx(checkpoint.folded, Writing(precision))
    describe(model, checkpoint, precision, license)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """A float32 file with free sizes."""
    folder = tmp_path_factory.mktemp("graph")
    return write_graph(lively_network(), folder / "tiny.onnx", license="CC-BY-4.0")


@pytest.fixture(scope="module")
def built(graph):
    """The folder in which the command has built tiny.engine of it."""
    assert cli.main(["engine", str(graph), "--batch", "1,2,4", "--max", "96x64"]) == 0
    return graph.parent


def failure(capsys, *words):
    """The one line that the command ends with."""
    capsys.readouterr()
    assert cli.main([str(word) for word in words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    check_one_error(captured.err)
    return captured.err


@needs_builder
class TestBuiltEngine:
    def test_a_plan_and_its_header_lie_side_by_side(self, built):
        assert without_hidden(built) == [
            "tiny.engine",
            "tiny.engine.json",
            "tiny.onnx",
        ]

    def test_header_names_both_files_by_their_content(self, built, graph):
        header = read_header(built / "tiny.engine")
        plan = (built / "tiny.engine").read_bytes()
        assert header.engine_sha256 == hashlib.sha256(plan).hexdigest()
        assert header.onnx_sha256 == hashlib.sha256(graph.read_bytes()).hexdigest()
        assert header.onnx_name == "tiny.onnx"

    def test_header_describes_input_and_output(self, built):
        header = read_header(built / "tiny.engine")
        assert (header.input_name, header.output_name) == ("input", "output")
        assert (header.input_dtype, header.output_dtype) == ("float32", "float32")
        assert (header.scale, header.channels, header.precision) == (2, 3, "float32")
        assert header.profile == ((1, 3, 32, 32), (2, 3, 64, 96), (4, 3, 64, 96))

    def test_header_describes_what_runs_it(self, built):
        header = read_header(built / "tiny.engine")
        library = open_library(header.library)
        assert header.library_version == library.module.__version__
        assert header.compute_capabilities
        assert (header.gpu is None) == (header.library == "tensorrt_rtx")

    def test_metadata_of_the_onnx_file_are_kept(self, built):
        metadata = read_header(built / "tiny.engine").onnx_metadata
        assert metadata["license"] == "CC-BY-4.0"
        assert metadata["architecture"] == "AetherNet"

    def test_header_has_nothing_of_the_machine(self, built):
        text = (built / "tiny.engine.json").read_text()
        assert str(built) not in text
        assert set(json.loads(text)) == {
            "format",
            *(field.name for field in dataclasses.fields(EngineHeader)),
        }

    def test_the_plan_is_the_library_s_own(self, built):
        # Nothing of ours before or in it: other programs load it.
        assert (built / "tiny.engine").read_bytes()[:4] in (b"vtrt", b"ftrt")

    @pytest.mark.parametrize("precision", ["float32", "float16"])
    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize(
        "depth",
        # At full width with one block, which the others are like: all take minutes.
        ["one block", pytest.param("whole", marks=pytest.mark.slow)],
    )
    def test_every_variant_builds(self, tmp_path, variant, precision, depth):
        torch.manual_seed(0)
        depths = {"one block": {"depths": (1,)}, "whole": {}}[depth]
        network = getattr(aethernet, variant)(scale=2, **depths)
        source = write_graph(network, tmp_path / "model.onnx", precision)
        result = build_engine(source, tmp_path / "model.engine")
        header = read_header(tmp_path / "model.engine")
        assert result.header == header
        assert (header.input_dtype, header.output_dtype) == (precision, precision)
        assert header.profile == ((1, 3, 32, 32), (1, 3, 256, 256), (1, 3, 1080, 1920))
        assert header.scale == 2
        weights = sum(p.numel() for p in network.parameters())
        size = weights * (4 if precision == "float32" else 2)
        assert (tmp_path / "model.engine").stat().st_size > size
        assert result.warnings == ()

    def test_turing_is_built_for_by_name(self, graph, tmp_path):
        if choose_library().name != "tensorrt_rtx":
            pytest.skip("TensorRT itself builds for the GPU of this machine only")
        target = tmp_path / "m.engine"
        words = ("engine", graph, "-o", target, "--compute-capability", "7.5", "8.6")
        assert cli.main([str(word) for word in words]) == 0
        assert read_header(target).compute_capabilities == ("7.5", "8.6")

    def test_bfloat16_inside_takes_and_gives_float32(self, tmp_path, capsys):
        network = lively_network(depths=(1,))
        source = write_graph(network, tmp_path / "m.onnx", "bfloat16")
        shapes = ShapeRange((1, 1, 1), (1, 8, 8), (1, 16, 16))
        header = build_engine(source, tmp_path / "m.engine", shapes).header
        assert header.precision == "bfloat16"
        assert (header.input_dtype, header.output_dtype) == ("float32", "float32")
        if header.library == "tensorrt_rtx":  # Turing knows no bfloat16
            words = ("--max", "16x16", "--compute-capability", "7.5")
            message = failure(capsys, "engine", source, *words)
            assert "HW-specific datatypes: b16" in message

    def test_a_fixed_size_needs_no_flags_and_allows_no_others(
        self, graph, tmp_path, capsys
    ):
        model = onnx.load(graph)
        sides = model.graph.input[0].type.tensor_type.shape.dim
        for side, length in zip(sides, (2, 3, 20, 30), strict=True):
            side.dim_value = length
        onnx.save(model, tmp_path / "m.onnx")
        assert cli.main(["engine", str(tmp_path / "m.onnx")]) == 0
        header = read_header(tmp_path / "m.engine")
        assert header.profile == ((2, 3, 20, 30),) * 3
        before = (tmp_path / "m.engine").read_bytes()
        words = ("engine", tmp_path / "m.onnx", "--batch", "2")
        message = failure(capsys, *words, "--max", "64x20")
        assert "takes a width of 30 only, not 32 to 64 as asked for" in message
        assert (tmp_path / "m.engine").read_bytes() == before
        same = [f"--{bound}=30x20" for bound in ("min", "opt", "max")]
        assert cli.main([str(word) for word in (*words, *same)]) == 0

    def test_the_command_prints_what_it_built_and_what_it_did_not_do(
        self, graph, tmp_path, capsys
    ):
        target = tmp_path / "other.engine"
        assert cli.main(["engine", str(graph), "-o", str(target)]) == 0
        out = capsys.readouterr().out
        assert "images of 32x32 to 1920x1080, and is tuned for 256x256" in out
        assert f"Wrote {target} and other.engine.json" in out
        if not torch.cuda.is_available():
            assert "it was not run here" in out


@needs_builder
class TestRefusedFiles:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"no ONNX file at all" * 50, "This is no valid ONNX file"),
            (b"", "This is no picture model"),
        ],
    )
    def test_not_an_onnx_file(self, tmp_path, capsys, content, message):
        source = tmp_path / "m.onnx"
        source.write_bytes(content)
        assert message in failure(capsys, "engine", source)
        assert without_hidden(tmp_path) == ["m.onnx"]

    def test_half_a_file(self, graph, tmp_path, capsys):
        content = graph.read_bytes()
        source = tmp_path / "m.onnx"
        source.write_bytes(content[: len(content) // 2])
        assert "This is no valid ONNX file" in failure(capsys, "engine", source)

    @pytest.mark.parametrize(
        ("nodes", "shapes", "dtype"),
        [
            (
                [node("Add", "x", "z", "y")],
                {"x": PICTURE, "z": PICTURE, "y": PICTURE},
                1,
            ),
            ([node("Relu", "x", "y")], {"x": ["n", 10], "y": ["n", 10]}, 1),
            (
                [node("Relu", "x", "y")],
                {"x": ["b", "c", 8, 8], "y": ["b", "c", 8, 8]},
                1,
            ),
            ([node("Identity", "x", "y")], {"x": PICTURE, "y": PICTURE}, 6),
        ],
        ids=["two inputs", "a vector", "free channels", "integers"],
    )
    def test_no_picture_model(self, tmp_path, capsys, nodes, shapes, dtype):
        source = write_model(tmp_path / "m.onnx", nodes, shapes, dtype)
        assert "This is no picture model" in failure(capsys, "engine", source)

    def test_no_upscaler(self, tmp_path, capsys):
        shapes = {"x": PICTURE, "y": ["b", 3, "h2", "w2"]}
        pool = node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2])
        source = write_model(tmp_path / "m.onnx", [pool], shapes)
        message = failure(capsys, "engine", source)
        assert (
            "This is no upscaler: it makes (1, 3, 16, 16) of (1, 3, 32, 32)" in message
        )

    def test_the_parser_s_own_message_is_passed_on(self, tmp_path, capsys):
        shapes = {"x": PICTURE, "y": PICTURE}
        source = write_model(tmp_path / "m.onnx", [node("NoSuchOp", "x", "y")], shapes)
        message = failure(capsys, "engine", source)
        assert "does not read" in message
        assert "node 'n1', NoSuchOp: " in message
        assert "Plugin not found" in message

    def test_a_scale_that_the_file_only_claims(self, tmp_path, capsys, graph):
        model = onnx.load(graph)
        facts = {"architecture": "AetherNet", "scale": "4"}
        onnx.helper.set_model_props(model, facts)
        onnx.save(model, tmp_path / "m.onnx")
        message = failure(capsys, "engine", tmp_path / "m.onnx")
        assert "metadata gives the scale 4, but it enlarges by 2" in message

    def test_a_size_beyond_any_gpu(self, tmp_path, capsys):
        relu = write_model(
            tmp_path / "m.onnx", [node("Relu", "x", "y")], {"x": PICTURE, "y": PICTURE}
        )
        message = failure(capsys, "engine", relu, "--max", "300000x300000")
        assert "No GPU has the memory for inputs of (1, 3, 300000, 300000)" in message

    def test_an_unknown_compute_capability(self, graph, tmp_path, capsys):
        target = tmp_path / "m.engine"
        words = ("engine", graph, "-o", target, "--compute-capability", "5.2")
        assert "5.2" in failure(capsys, *words)

    @needs_builder
    def test_the_shipped_model_in_float16_builds(self, shipped_half, tmp_path):
        # The file that the export itself writes, LayerNorm in float32, at full depth.
        source, _ = shipped_half
        result = build_engine(source, tmp_path / "2x.engine")
        assert result.header.input_dtype == result.header.output_dtype == "float16"
        assert result.header.precision == "float16"
        assert result.header.onnx_metadata["architecture"] == "AetherNet"
        assert result.warnings == ()

    @needs_no_gpu
    @needs_builder
    def test_upscaling_without_a_gpu_is_one_error(self, built, tmp_path, capsys):
        words = ("upscale", SAMPLE, "-o", tmp_path / "out.png")
        message = failure(capsys, *words, "--model", built / "tiny.engine")
        assert "There is no NVIDIA GPU here" in message


class TestRefusedFlags:
    def test_the_error_for_a_checkpoint_names_the_export(self, tmp_path, capsys):
        source = tmp_path / "m.safetensors"
        source.write_bytes(b"")
        message = failure(capsys, "engine", source)
        assert f"aethernet export {source} -o {tmp_path / 'm.onnx'}" in message

    @pytest.mark.parametrize(
        ("source", "target", "message"),
        [
            ("absent.onnx", "m.engine", "There is no such file"),
            (".", "m.engine", "This is a folder, not an ONNX file"),
            ("m.txt", "m.engine", "name is not that of an ONNX file"),
            ("m.onnx", "m.plan", "Name it .engine."),
            ("m.onnx", "absent/m.engine", "absent does not exist"),
        ],
    )
    def test_names(self, tmp_path, capsys, source, target, message):
        (tmp_path / "m.onnx").write_bytes(b"")
        (tmp_path / "m.txt").write_bytes(b"")
        words = ("engine", tmp_path / source, "-o", tmp_path / target)
        assert message in failure(capsys, *words)

    def test_sizes_that_do_not_rise(self, tmp_path, capsys):
        words = ("--min", "64x64", "--opt", "32x32")
        message = failure(capsys, "engine", tmp_path / "m.onnx", *words)
        assert "min 64, opt 32" in message

    @pytest.mark.parametrize(
        "words",
        [["--min", "0x4"], ["--max", "64"], ["--batch", "1,2"], ["--opt", "-x"]],
    )
    def test_values_that_are_no_sizes(self, words, capsys):
        with pytest.raises(SystemExit) as stop:
            cli.main(["engine", "m.onnx", *words])
        assert stop.value.code == 2

    def test_no_library(self, tmp_path, capsys, monkeypatch):
        def missing(name):
            raise MissingExtraError(name)

        monkeypatch.setattr("aethernet.runtimes.tensorrt.build.open_library", missing)
        source = write_model(
            tmp_path / "m.onnx", [node("Relu", "x", "y")], {"x": PICTURE, "y": PICTURE}
        )
        assert '"aethernet-sr[tensorrt]"' in failure(capsys, "engine", source)

    @needs_no_gpu
    def test_tensorrt_alone_builds_nothing_without_a_gpu(
        self, tmp_path, capsys, monkeypatch
    ):
        def only_tensorrt(name):
            if name != "tensorrt":
                raise MissingExtraError(name)
            return Library(
                name, SimpleNamespace(__version__="11.1.0"), None, Messages()
            )

        monkeypatch.setattr(
            "aethernet.runtimes.tensorrt.build.open_library", only_tensorrt
        )
        source = write_model(
            tmp_path / "m.onnx", [node("Relu", "x", "y")], {"x": PICTURE, "y": PICTURE}
        )
        message = failure(capsys, "engine", source)
        assert "TensorRT 11.1.0 cannot build here" in message


class TestShapeRange:
    def test_nothing_given_leaves_it_to_the_file(self):
        assert shape_range() is None

    def test_bounds_that_are_not_given_adapt(self):
        assert shape_range(high=(20, 30)) == ShapeRange(
            (1, 20, 30), (1, 20, 30), (1, 20, 30)
        )
        assert shape_range(typical=(2000, 16)) == ShapeRange(
            (1, 32, 16), (1, 2000, 16), (1, 2000, 1920)
        )
        assert shape_range(batch=(1, 2, 4)) == ShapeRange(
            (1, 32, 32), (2, 256, 256), (4, 1080, 1920)
        )


@needs_builder
class TestFilesStayTogether:
    def test_a_failed_build_keeps_what_was_there(self, tmp_path, graph, monkeypatch):
        target = write_engine(tmp_path)
        before = (target.read_bytes(), header_path(target).read_bytes())

        def fail(*_):
            raise AetherError("no engine today")

        monkeypatch.setattr(ParsedNetwork, "build", fail)
        with pytest.raises(AetherError, match="no engine today"):
            build_engine(graph, target)
        assert (target.read_bytes(), header_path(target).read_bytes()) == before
        assert len(without_hidden(tmp_path)) == 2

    def test_a_crash_between_the_two_is_noticed(self, tmp_path, graph, monkeypatch):
        target = write_engine(tmp_path)
        replace = os.replace

        def crash(source, destination):
            if Path(destination).suffix == ".engine":
                raise OSError(5, "the cable was pulled")
            replace(source, destination)

        monkeypatch.setattr("aethernet.files.os.replace", crash)
        with pytest.raises(AetherError, match="the cable was pulled"):
            build_engine(graph, target, ShapeRange((1, 8, 8), (1, 8, 8), (1, 8, 8)))
        assert target.read_bytes() == b"a plan"
        with pytest.raises(AetherError, match="was not written for this"):
            TensorRTRuntime.load(target)


class TestMessages:
    def test_each_warning_is_kept_once_and_errors_in_order(self):
        messages = Messages()
        for severity, text in (
            (2, "weights  are\nlarge"),
            (2, "weights are large"),
            (3, "for your information"),
            (1, "first."),
            (0, "second"),
        ):
            messages.add(severity, text)
        assert messages.warnings == ["weights are large"]
        assert messages.reason() == "first"

    @needs_builder
    def test_warnings_of_the_library_are_shown(
        self, graph, tmp_path, caplog, monkeypatch
    ):
        build = ParsedNetwork.build

        def warned(network, *rest):
            for number in range(13):
                network.library.messages.add(2, f"warning {number % 12}")
            return build(network, *rest)

        monkeypatch.setattr(ParsedNetwork, "build", warned)
        shapes = ShapeRange((1, 8, 8), (1, 8, 8), (1, 8, 8))
        result = build_engine(graph, tmp_path / "m.engine", shapes)
        assert len(result.warnings) == 12
        assert caplog.text.count("warning 0") == 1
        assert "warning 9" in caplog.text
        assert "warning 10" not in caplog.text
        assert "... and 2 more warnings" in caplog.text

    @needs_builder
    def test_an_engine_that_may_be_wrong_gets_a_warning(self, graph, tmp_path, caplog):
        shapes = ShapeRange((1, 8, 8), (1, 8, 8), (1, 8640, 15360))
        with caplog.at_level(logging.WARNING, logger="aethernet"):
            result = build_engine(graph, tmp_path / "m.engine", shapes)
        assert "At the largest size, 15360x8640, a tensor inside takes" in caplog.text
        assert len(result.warnings) == 1
        assert result.header.activation_bytes is None
