"""TensorRT: building engines, the header beside them, when they are refused.

Building needs no GPU, loading an engine does: none is loaded here. What a GPU would
run is tried on a stand-in for the library.
"""

import contextlib
import ctypes
import dataclasses
import hashlib
import importlib.util
import json
import logging
import math
import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, SAMPLE, lively_network, random_image, without_hidden

import aethernet
from aethernet.aether_core import VARIANTS
from aethernet.checkpoints import onnx as onnx_export
from aethernet.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from aethernet.checkpoints.onnx import ShapeRange, trtexec_command
from aethernet.commands import main as cli
from aethernet.errors import AetherError, MissingExtraError, VerificationError
from aethernet.runtimes.tensorrt import run as runtime_room
from aethernet.runtimes.tensorrt.build import (
    _choose_library,
    _run_here,
    build_engine,
    shape_range,
)
from aethernet.runtimes.tensorrt.header import (
    EngineHeader,
    check_content,
    check_covers,
    check_fits,
    covers_gpu,
    header_path,
    read_header,
    rebuild_command,
)
from aethernet.runtimes.tensorrt.library import Library, Messages
from aethernet.runtimes.tensorrt.run import TensorRTRuntime

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[onnx]'")

needs_builder = pytest.mark.skipif(
    not importlib.util.find_spec("tensorrt_rtx"),
    reason="needs TensorRT for RTX (Linux, Windows): pip install -e '.[tensorrt]'",
)
needs_no_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="about machines without an NVIDIA GPU"
)

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16

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


def write_graph(network, path, precision="float32", license=None):
    """An ONNX file with free sizes as `aethernet export` writes it, without its checks,
    which take most of the time."""
    save_checkpoint(network, path.with_suffix(".safetensors"))
    checkpoint = load_checkpoint(path.with_suffix(".safetensors"))
    path.with_suffix(".safetensors").unlink()
    model = onnx_export.to_onnx(checkpoint, None, None, precision)
    onnx_export.describe(model, checkpoint, precision, license)
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
    assert cli.main(["engine", str(graph), "--batch", "1,2,4", "--max", "64x96"]) == 0
    return graph.parent


def write_model(path, nodes, shapes, dtype=FLOAT, weights=()):
    """An ONNX file of these nodes; `shapes` by name, the last one is the output."""
    values = [
        onnx.helper.make_tensor_value_info(name, dtype, shape)
        for name, shape in shapes.items()
    ]
    made = onnx.helper.make_graph(nodes, "g", values[:-1], values[-1:], weights)
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(made, opset_imports=[opset]), path)
    return path


def node(op, *names, **attributes):
    return onnx.helper.make_node(op, names[:-1], names[-1:], name="n1", **attributes)


PICTURE = ["b", 3, "h", "w"]


def a_header(**changes):
    facts = {
        "library": "tensorrt_rtx",
        "library_version": "1.7.1.116",
        "compute_capabilities": ("8.6+",),
        "gpu": None,
        "precision": "float16",
        "scale": 2,
        "channels": 3,
        "input_name": "input",
        "input_dtype": "float16",
        "output_name": "output",
        "output_dtype": "float16",
        "profile": ((1, 3, 8, 8), (1, 3, 16, 16), (2, 3, 32, 48)),
        "activation_bytes": 1000,
        "onnx_name": "my 2x.onnx",
        "onnx_sha256": "0" * 64,
        "onnx_metadata": {"scale": "2"},
        "engine_sha256": hashlib.sha256(b"a plan").hexdigest(),
        "aethernet_version": aethernet.__version__,
    }
    return EngineHeader(**{**facts, **changes})


def write_engine(folder, content=b"a plan", **changes):
    path = folder / "my 2x.engine"
    path.write_bytes(content)
    header_path(path).write_bytes(a_header(**changes).to_json())
    return path


def failure(capsys, *words):
    """The one sentence that the command ends with."""
    capsys.readouterr()
    assert cli.main([str(word) for word in words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, captured.err
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

    def test_header_says_what_it_takes_and_makes(self, built):
        header = read_header(built / "tiny.engine")
        assert (header.input_name, header.output_name) == ("input", "output")
        assert (header.input_dtype, header.output_dtype) == ("float32", "float32")
        assert (header.scale, header.channels, header.precision) == (2, 3, "float32")
        assert header.profile == ((1, 3, 32, 32), (2, 3, 64, 96), (4, 3, 64, 96))

    def test_header_says_what_runs_it(self, built):
        header = read_header(built / "tiny.engine")
        library = runtime_room.open_library(header.library)
        assert header.library_version == library.module.__version__
        assert header.compute_capabilities
        assert (header.gpu is None) == (header.library == "tensorrt_rtx")

    def test_metadata_of_the_onnx_file_are_kept(self, built):
        metadata = read_header(built / "tiny.engine").onnx_metadata
        assert metadata["license"] == "CC-BY-4.0"
        assert metadata["architecture"] == "AetherNet"

    def test_says_nothing_of_the_machine(self, built):
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
        if _choose_library().name != "tensorrt_rtx":
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

    def test_a_fixed_size_needs_no_flags_and_bears_no_others(
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
        message = failure(capsys, *words, "--max", "20x64")
        assert "takes a width of 30 only, and 32 to 64 was asked for" in message
        assert (tmp_path / "m.engine").read_bytes() == before
        same = [f"--{bound}=20x30" for bound in ("min", "opt", "max")]
        assert cli.main([str(word) for word in (*words, *same)]) == 0

    def test_the_command_says_what_it_built_and_what_it_did_not_do(
        self, graph, tmp_path, capsys
    ):
        target = tmp_path / "other.engine"
        assert cli.main(["engine", str(graph), "-o", str(target)]) == 0
        out = capsys.readouterr().out
        assert "1x3x32x32 to 1x3x1080x1920" in out
        assert f"Wrote {target} and other.engine.json" in out
        if not torch.cuda.is_available():
            assert "it has not been run here" in out


@needs_builder
class TestRefusedFiles:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"no ONNX file at all" * 50, "is no valid ONNX file"),
            (b"", "is no picture model"),
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
        assert "is no valid ONNX file" in failure(capsys, "engine", source)

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
        assert "is no picture model" in failure(capsys, "engine", source)

    def test_no_upscaler(self, tmp_path, capsys):
        shapes = {"x": PICTURE, "y": ["b", 3, "h2", "w2"]}
        pool = node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2])
        source = write_model(tmp_path / "m.onnx", [pool], shapes)
        message = failure(capsys, "engine", source)
        assert "is no upscaler: it makes (1, 3, 16, 16) of (1, 3, 32, 32)" in message

    def test_the_parser_s_own_words_are_passed_on(self, tmp_path, capsys):
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
        assert "says that its scale is 4, and enlarges by 2" in message

    def test_a_size_beyond_any_gpu(self, tmp_path, capsys):
        relu = write_model(
            tmp_path / "m.onnx", [node("Relu", "x", "y")], {"x": PICTURE, "y": PICTURE}
        )
        message = failure(capsys, "engine", relu, "--max", "300000x300000")
        assert "No GPU holds what inputs of (1, 3, 300000, 300000) take" in message

    def test_an_unknown_compute_capability(self, graph, tmp_path, capsys):
        target = tmp_path / "m.engine"
        words = ("engine", graph, "-o", target, "--compute-capability", "5.2")
        assert "5.2" in failure(capsys, *words)


class TestRefusedWords:
    def test_a_checkpoint_is_sent_to_the_export(self, tmp_path, capsys):
        source = tmp_path / "m.safetensors"
        source.write_bytes(b"")
        message = failure(capsys, "engine", source)
        assert f"aethernet export {source} -o {tmp_path / 'm.onnx'}" in message

    @pytest.mark.parametrize(
        ("source", "target", "message"),
        [
            ("absent.onnx", "m.engine", "There is no file"),
            (".", "m.engine", "is a folder, not an ONNX file"),
            ("m.txt", "m.engine", "is no ONNX file by its name"),
            ("m.onnx", "m.plan", "name it .engine"),
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
        assert "must rise from 1: min 64, opt 32" in message

    @pytest.mark.parametrize(
        "words",
        [["--min", "0x4"], ["--max", "64"], ["--batch", "1,2"], ["--opt", "-x"]],
    )
    def test_words_that_are_no_sizes(self, words, capsys):
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
        assert "pip install tensorrt-rtx-cu13" in failure(capsys, "engine", source)

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
    def test_nothing_given_is_the_file_s_own(self):
        assert shape_range() is None

    def test_what_is_not_given_gives_way(self):
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

        monkeypatch.setattr("aethernet.runtimes.tensorrt.build._build", fail)
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
            messages.take(severity, text)
        assert messages.warnings == ["weights are large"]
        assert messages.reason() == "first"

    @needs_builder
    def test_what_the_library_warns_of_is_shown(
        self, graph, tmp_path, caplog, monkeypatch
    ):
        from aethernet.runtimes.tensorrt import build as tensorrt

        build = tensorrt._build

        def warned(library, *rest):
            for number in range(13):
                library.messages.take(2, f"warning {number % 12}")
            return build(library, *rest)

        monkeypatch.setattr(tensorrt, "_build", warned)
        shapes = ShapeRange((1, 8, 8), (1, 8, 8), (1, 8, 8))
        result = build_engine(graph, tmp_path / "m.engine", shapes)
        assert len(result.warnings) == 12
        assert caplog.text.count("warning 0") == 1
        assert "warning 9" in caplog.text
        assert "warning 10" not in caplog.text
        assert ".. and 2 warnings more" in caplog.text

    @needs_builder
    def test_a_plan_that_may_be_wrong_is_warned_of(self, graph, tmp_path, caplog):
        shapes = ShapeRange((1, 8, 8), (1, 8, 8), (1, 8640, 15360))
        with caplog.at_level(logging.WARNING, logger="aethernet"):
            result = build_engine(graph, tmp_path / "m.engine", shapes)
        assert "At the largest size, 8640x15360, a tensor inside takes" in caplog.text
        assert len(result.warnings) == 1
        assert result.header.activation_bytes is None


class TestHeader:
    def test_reads_what_it_wrote(self, tmp_path):
        assert read_header(write_engine(tmp_path)) == a_header()

    def test_none_beside_the_engine(self, tmp_path):
        engine = write_engine(tmp_path)
        header_path(engine).unlink()
        with pytest.raises(
            AetherError, match=r"There is no my 2x\.engine\.json beside"
        ):
            TensorRTRuntime.load(engine)

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
        with pytest.raises(
            AetherError, match="is no header of an engine, or a damaged"
        ):
            TensorRTRuntime.load(engine)

    def test_one_of_a_later_version(self, tmp_path):
        engine = write_engine(tmp_path)
        path = header_path(engine)
        path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
        with pytest.raises(AetherError, match="is of format 2, this version"):
            read_header(engine)

    def test_one_of_another_engine(self, tmp_path):
        engine = write_engine(tmp_path, b"another plan")
        with pytest.raises(AetherError, match="was not written for this"):
            check_content(engine, a_header(), engine.read_bytes())


class TestStaleEngines:
    PATH = Path("my 2x.engine")

    def check(self, version="1.7.1.116", compute_capability=(8, 9), **changes):
        check_fits(
            self.PATH, a_header(**changes), version, "NVIDIA A", compute_capability
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

    def test_an_older_gpu_is_built_for_by_name(self):
        with pytest.raises(AetherError, match=r"--compute-capability 7\.5$"):
            self.check(compute_capability=(7, 5))

    def test_versions_are_compared_as_numbers(self):
        assert covers_gpu(("8.6+",), (12, 0))
        assert covers_gpu(("8.6+",), (10, 0))
        assert not covers_gpu(("8.6+",), (8, 0))
        assert not covers_gpu(("8.6",), (8, 9))

    def test_the_line_that_builds_anew_is_one_the_command_takes(self):
        header = a_header(compute_capabilities=("8.6", "8.9"))
        line = rebuild_command(Path("models/my 2x.engine"), header, include=(4, 100))
        words = shlex.split(line)
        assert words[:2] == ["aethernet", "engine"]
        arguments = cli._parser().parse_args(words[1:])
        assert arguments.model == Path("models/my 2x.onnx")
        assert arguments.output == Path("models/my 2x.engine")
        assert shape_range(
            arguments.min, arguments.opt, arguments.max, arguments.batch
        ) == ShapeRange((1, 4, 8), (1, 16, 16), (2, 32, 100))
        assert arguments.compute_capability == ["8.6", "8.9"]

    def test_an_image_outside_the_profile(self):
        check_covers(self.PATH, a_header(), (1, 3, 32, 48))
        for height, width in ((7, 8), (8, 7), (33, 48), (32, 49)):
            with pytest.raises(AetherError) as caught:
                check_covers(self.PATH, a_header(), (1, 3, height, width))
            message = str(caught.value)
            assert "takes 8x8 to 32x48 pixels (height x width)" in message
            assert f"has {height}x{width}. Build it anew: aethernet engine" in message

    def test_other_channels_and_too_small_a_batch(self):
        with pytest.raises(AetherError, match="images of 3 channels"):
            check_covers(self.PATH, a_header(), (1, 1, 16, 16))
        profile = ((2, 3, 8, 8), (2, 3, 16, 16), (2, 3, 32, 48))
        with pytest.raises(AetherError, match="batches of 2 to 2 images, not 1"):
            check_covers(self.PATH, a_header(profile=profile), (1, 3, 16, 16))


class TestFrontDoor:
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
    def test_upscaling_without_a_gpu_ends_in_one_sentence(
        self, built, tmp_path, capsys
    ):
        words = ("upscale", SAMPLE, "-o", tmp_path / "out.png")
        message = failure(capsys, *words, "--model", built / "tiny.engine")
        assert "There is no NVIDIA GPU here" in message

    def test_a_device_that_is_no_nvidia_gpu(self, tmp_path):
        with pytest.raises(AetherError, match="run on an NVIDIA GPU"):
            TensorRTRuntime.load(write_engine(tmp_path), device="cpu")

    def test_another_precision_than_the_engine_s(self, tmp_path):
        with pytest.raises(AetherError, match="computes in float16, not in float32"):
            TensorRTRuntime.load(write_engine(tmp_path), precision="float32")

    def test_the_library_that_built_it_is_missing(self, monkeypatch):
        def missing(name, extra=None):
            raise MissingExtraError(name)

        monkeypatch.setattr(runtime_room, "import_optional", missing)
        runtime_room.open_library.cache_clear()
        try:
            with pytest.raises(
                MissingExtraError, match="pip install tensorrt-rtx-cu13"
            ):
                runtime_room.open_library("tensorrt_rtx")
        finally:
            runtime_room.open_library.cache_clear()


class StandIn:
    """What the runtime uses of the library: enlarges by repeating, on the CPU."""

    __version__ = "1.7.1.116"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)

    def __init__(self):
        self.shapes, self.addresses, self.memory = [], {}, None
        self.works, self.unit, self.error = True, ctypes.c_uint16, 0
        self.Runtime = lambda logger: self

    def deserialize_cuda_engine(self, content):
        return self if content == b"a plan" else None

    def create_execution_context(self, strategy):
        assert strategy == 2
        return self

    def set_input_shape(self, name, shape):
        assert name == "input"
        self.shapes.append(shape)
        return self.works

    def update_device_memory_size_for_shapes(self):
        return math.prod(self.shapes[-1])

    def set_device_memory(self, address, size):
        self.memory = (address, size)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        shape = self.shapes[-1]
        count = math.prod(shape)
        given = (self.unit * count).from_address(self.addresses["input"])
        made = (self.unit * (4 * count)).from_address(self.addresses["output"])
        image = np.frombuffer(given, self.unit).reshape(shape)
        larger = image.repeat(2, axis=2).repeat(2, axis=3)
        np.frombuffer(made, self.unit)[:] = larger.ravel() + self.error
        return self.works


@pytest.fixture
def stand_in(monkeypatch):
    """Engines load on a machine without a GPU, into a stand-in for the library."""
    library = StandIn()
    monkeypatch.setattr(
        runtime_room,
        "open_library",
        lambda name: Library(name, library, None, Messages()),
    )
    monkeypatch.setattr(runtime_room, "_current", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(runtime_room, "choose_gpu", lambda _: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "NVIDIA A")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (8, 9))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: SimpleNamespace(cuda_stream=7))
    return library


class TestRunningOnAStandIn:
    def test_a_picture_comes_back_enlarged(self, stand_in, tmp_path):
        model = TensorRTRuntime.load(write_engine(tmp_path))
        image = random_image(1, 3, 10, 12).half().float().numpy()
        output = model.run(image)
        assert output.dtype == np.float32
        assert np.array_equal(output, image.repeat(2, axis=2).repeat(2, axis=3))
        assert (model.scale, model.channels) == (2, 3)
        words = str(model.describe())
        assert "TensorRT for RTX 1.7.1.116 float16 on " in words
        assert "NVIDIA A" in words

    def test_memory_is_of_the_picture_s_size_and_kept_for_the_next(
        self, stand_in, tmp_path
    ):
        model = TensorRTRuntime.load(write_engine(tmp_path))
        for _ in range(2):
            model.run(np.zeros((1, 3, 10, 12), np.float32))
        assert stand_in.shapes == [(1, 3, 10, 12)]
        assert stand_in.memory[1] == 360

    def test_a_batch_beyond_the_profile_goes_in_parts(self, stand_in, tmp_path):
        model = TensorRTRuntime.load(write_engine(tmp_path))
        batch = random_image(5, 3, 8, 8).half().float().numpy()
        assert np.array_equal(
            model.run(batch), batch.repeat(2, axis=2).repeat(2, axis=3)
        )
        assert stand_in.shapes == [(2, 3, 8, 8), (1, 3, 8, 8)]

    def test_a_layout_of_other_strides(self, stand_in, tmp_path):
        model = TensorRTRuntime.load(write_engine(tmp_path))
        image = random_image(1, 3, 12, 10).half().float().numpy().swapaxes(2, 3)
        assert np.array_equal(
            model.run(image), image.repeat(2, axis=2).repeat(2, axis=3)
        )

    def test_a_picture_outside_the_profile(self, stand_in, tmp_path):
        model = TensorRTRuntime.load(write_engine(tmp_path))
        with pytest.raises(AetherError, match="takes 8x8 to 32x48 pixels"):
            model.run(np.zeros((1, 3, 7, 12), np.float32))

    def test_a_failure_is_a_sentence(self, stand_in, tmp_path):
        model = TensorRTRuntime.load(write_engine(tmp_path))
        stand_in.works = False
        with pytest.raises(AetherError, match="failed on an image of 12x10"):
            model.run(np.zeros((1, 3, 10, 12), np.float32))

    def test_an_engine_that_the_library_refuses(self, stand_in, tmp_path):
        content = b"a plan for nobody"
        checksum = hashlib.sha256(content).hexdigest()
        engine = write_engine(tmp_path, content, engine_sha256=checksum)
        with pytest.raises(AetherError, match=r"does not load .* on NVIDIA A"):
            TensorRTRuntime.load(engine)

    def test_another_gpu_of_its_kind_is_warned_of(self, stand_in, tmp_path, caplog):
        facts = {
            "library": "tensorrt",
            "compute_capabilities": ("8.9",),
            "gpu": "NVIDIA B",
        }
        TensorRTRuntime.load(write_engine(tmp_path, **facts))
        assert "was tuned on NVIDIA B, which NVIDIA A is not" in caplog.text

    @pytest.mark.parametrize("error", [0, 1 << 20])
    def test_a_built_engine_is_held_against_onnx_runtime(
        self, stand_in, tmp_path, monkeypatch, error
    ):
        pytest.importorskip("onnxruntime", reason="needs pip install -e '.[onnx]'")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(
            "aethernet.runtimes.tensorrt.build.choose_gpu", runtime_room.choose_gpu
        )
        stand_in.unit, stand_in.error = ctypes.c_uint32, error
        scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")
        resize = onnx.helper.make_node(
            "Resize",
            ["input", "", "s"],
            ["output"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        shapes = {"input": PICTURE, "output": ["b", 3, "h2", "w2"]}
        source = write_model(tmp_path / "m.onnx", [resize], shapes, weights=[scales])
        types = {"input_dtype": "float32", "output_dtype": "float32"}
        header = a_header(precision="float32", **types)
        words = (tmp_path / "m.engine", header, b"a plan", source.read_bytes())
        if error:  # in the bits of a float32: about an eighth of each value
            with pytest.raises(VerificationError, match="differs from ONNX Runtime"):
                _run_here(*words)
        else:
            assert _run_here(*words).max_abs_error == 0

    @needs_builder
    def test_the_library_has_what_is_called(self):
        library = runtime_room.open_library("tensorrt_rtx").module
        own = [name for name in vars(StandIn) if not name.startswith("__")]
        assert "execute_async_v3" in own
        owners = (
            library,
            library.Runtime,
            library.ICudaEngine,
            library.IExecutionContext,
        )
        for name in own:
            assert any(hasattr(owner, name) for owner in owners), name
        assert library.ExecutionContextAllocationStrategy.USER_MANAGED


class TestTrtexecLine:
    @staticmethod
    def flags(line):
        words = shlex.split(line, comments=True)[1:]
        return {word.partition("=")[0] for word in words}

    @pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16", "int8"])
    @pytest.mark.parametrize("shapes", [None, ShapeRange()])
    def test_has_flags_of_today_only(self, shapes, precision):
        line = trtexec_command(Path("my 2x.onnx"), 3, shapes, precision)
        assert self.flags(line) <= TRTEXEC_FLAGS

    def test_lines_in_the_documents_too(self):
        text = (ROOT / "onnx/Readme.md").read_text(encoding="utf-8")
        lines = re.findall(r"^trtexec .*$", text, flags=re.MULTILINE)
        assert lines
        for line in lines:
            assert self.flags(line) <= TRTEXEC_FLAGS, line

    def test_engine_lines_in_the_documents_are_ones_the_command_takes(self):
        text = (ROOT / "onnx/Readme.md").read_text(encoding="utf-8")
        lines = re.findall(r"^aethernet engine .*$", text, flags=re.MULTILINE)
        assert lines
        for line in lines:
            cli._parser().parse_args(shlex.split(line, comments=True)[1:])
