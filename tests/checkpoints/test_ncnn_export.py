"""`aethernet export` to ncnn: what is checked before the files are kept."""

import importlib.util
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    lively_arrays,
    lively_file,
    lively_folded,
    random_array,
    without_hidden,
)

from aethernet.checkpoints import ncnn_export
from aethernet.checkpoints.checkpoint import load_checkpoint, write_checkpoint
from aethernet.checkpoints.folded import Convolution
from aethernet.checkpoints.ncnn import write_ncnn
from aethernet.checkpoints.ncnn_export import NcnnOptions, export_ncnn
from aethernet.checkpoints.ncnn_reader import read_ncnn
from aethernet.commands.main import main
from aethernet.errors import AetherError, MissingExtraError, VerificationError

HAS_NCNN = importlib.util.find_spec("ncnn") is not None


@pytest.fixture
def source(tmp_path):
    return lively_file(tmp_path / "model.safetensors", depths=(1,))


@pytest.fixture
def no_package(monkeypatch):
    def missing(module, extra=None):
        raise MissingExtraError(f"The package {module} is missing.")

    monkeypatch.setattr(ncnn_export, "import_optional", missing)


@pytest.mark.parametrize("scale", [1, 3, 4])
def test_the_files_read_back_compute_the_network(tmp_path, scale):
    network, folded = lively_folded(scale=scale, depths=(1,), img_range=255.0)
    write_ncnn(folded, tmp_path / "m.param")
    model = read_ncnn(tmp_path / "m.param", tmp_path / "m.bin")
    for size in ((1, 1), (3, 1), (9, 14)):
        image = random_array(1, 3, *size)
        expected = network(image)[0]
        output = model.run(image[0])
        # Float32 in another order of sums, on values around 1 to 4.
        np.testing.assert_allclose(output, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_without_ncnn_numpy_computes_what_was_written(
    source, tmp_path, no_package, precision
):
    checkpoint = load_checkpoint(source)
    options = NcnnOptions(precision)
    done = export_ncnn(checkpoint, tmp_path / "m.param", options)
    assert done.library is None
    assert len(done.differences) == 7  # five frames and two sizes
    limit = 1e-4 if precision == "float32" else 5e-2
    assert all(0 <= d.max_abs_error < limit for d in done.differences.values())
    assert without_hidden(tmp_path) == ["m.bin", "m.param", "model.safetensors"]


@pytest.mark.skipif(not HAS_NCNN, reason="needs pip install -e '.[ncnn]'")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_with_ncnn_it_is_run_on_frames_and_sizes(source, tmp_path, precision):
    checkpoint = load_checkpoint(source)
    options = NcnnOptions(precision)
    done = export_ncnn(checkpoint, tmp_path / "m.param", options)
    assert done.library.startswith("ncnn ")
    names = ("checkerboard", "1 x 1x1", "checkerboard (NumPy)", "1 x 1x1 (NumPy)")
    assert {*names} <= set(done.differences)
    assert len(done.differences) == 7 + 7


@pytest.mark.skipif(not HAS_NCNN, reason="needs pip install -e '.[ncnn]'")
def test_full_runs_more_sizes_in_ncnn(source, tmp_path):
    options = NcnnOptions(verify="full")
    done = export_ncnn(load_checkpoint(source), tmp_path / "m.param", options)
    assert len(done.differences) == 10 + 7
    assert "3 x 31x33" in done.differences


@pytest.mark.skipif(not HAS_NCNN, reason="needs pip install -e '.[ncnn]'")
@pytest.mark.parametrize("folder", ["usual", "програма"])
def test_ncnn_gets_names_in_ascii(tmp_path, monkeypatch, folder):
    """On Windows ncnn opens no others; here the pretended ncnn does not."""
    import ncnn

    place = tmp_path / "ascii"
    place.mkdir()
    target = tmp_path / folder / "größer.param"
    target.parent.mkdir()
    lively_file(tmp_path / "m.safetensors", depths=(1,))
    if folder != "usual":  # nor has the usual place for temporary files such a name
        monkeypatch.setattr(tempfile, "gettempdir", lambda: str(target.parent))
        monkeypatch.setenv("PROGRAMDATA", str(place))
    opened = []

    class Net(ncnn.Net):
        def load_param(self, path):
            opened.append(path)
            return super().load_param(path) if path.isascii() else -1

        def load_model(self, path):
            opened.append(path)
            return super().load_model(path) if path.isascii() else -1

    monkeypatch.setattr(ncnn, "Net", Net)
    done = export_ncnn(load_checkpoint(tmp_path / "m.safetensors"), target)
    assert done.library is not None
    assert len(opened) == 2
    assert (tmp_path / "ascii" in Path(opened[0]).parents) == (folder != "usual")
    assert without_hidden(target.parent) == ["größer.bin", "größer.param"]
    assert not any(place.iterdir())


def test_files_that_differ_are_not_kept(source, tmp_path, monkeypatch):
    (tmp_path / "m.param").write_bytes(b"older layers")
    (tmp_path / "m.bin").write_bytes(b"older weights")

    def wrong(folded, *rest):
        first = Convolution(folded.first.weight, folded.first.bias + 0.05)
        write_ncnn(replace(folded, first=first), *rest)

    monkeypatch.setattr(ncnn_export, "write_ncnn", wrong)
    with pytest.raises(VerificationError, match="Nothing was written"):
        export_ncnn(load_checkpoint(source), tmp_path / "m.param")
    assert (tmp_path / "m.param").read_bytes() == b"older layers"
    assert (tmp_path / "m.bin").read_bytes() == b"older weights"
    assert without_hidden(tmp_path) == ["m.bin", "m.param", "model.safetensors"]


def write_overflowing(path):
    """A network with features beyond float16 inside."""
    weights, arguments = lively_arrays(depths=(1,))
    weights["conv_before_upsample.0.weight"] *= 1e5
    weights["upsample.0.weight"] *= 1e-5
    write_checkpoint(weights, arguments, path)


def test_an_overflow_of_float16_is_found(tmp_path):
    write_overflowing(tmp_path / "model.safetensors")
    source = load_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(AetherError, match=r"(NaN or infinite|too large) .*float16"):
        export_ncnn(source, tmp_path / "m.param", NcnnOptions("float16"))
    assert without_hidden(tmp_path) == ["model.safetensors"]


def test_float32_weights_warn_of_an_overflow_of_float16(tmp_path, caplog, no_package):
    write_overflowing(tmp_path / "model.safetensors")
    source = load_checkpoint(tmp_path / "model.safetensors")
    export_ncnn(source, tmp_path / "m.param", NcnnOptions("float32", atol=1e-3))
    assert "compute in float16" in caplog.text


@pytest.mark.parametrize("older", [True, False])
def test_both_files_are_new_or_none_is(source, tmp_path, monkeypatch, older):
    """Moving the second file into its place fails."""
    if older:
        (tmp_path / "m.param").write_bytes(b"older layers")
        (tmp_path / "m.bin").write_bytes(b"older weights")
    before = without_hidden(tmp_path)
    moved = os.replace

    def replace(source, target):
        if str(target).endswith(".bin"):
            raise PermissionError(13, "Permission denied", str(target))
        moved(source, target)

    monkeypatch.setattr(os, "replace", replace)
    folded = load_checkpoint(source).folded
    with pytest.raises(AetherError, match="Permission denied") as caught:
        write_ncnn(folded, tmp_path / "m.param")
    assert caught.value.path == tmp_path / "m.bin"
    assert without_hidden(tmp_path) == before
    if older:
        assert (tmp_path / "m.param").read_bytes() == b"older layers"


def test_a_bin_file_of_another_size_is_refused(tmp_path):
    folded = lively_folded(depths=(1,))[1]
    write_ncnn(folded, tmp_path / "m.param")
    with (tmp_path / "m.bin").open("ab") as file:
        file.write(b"four")
    with pytest.raises(VerificationError, match="bytes, but its layers take"):
        read_ncnn(tmp_path / "m.param", tmp_path / "m.bin")


class TestCommand:
    def test_the_suffix_chooses_the_format(self, source, tmp_path, no_package, capsys):
        target = tmp_path / "m.param"
        words = ["export", str(source), "-o", str(target)]
        assert main([*words, "--precision", "float16"]) == 0
        printed = capsys.readouterr().out
        assert "The files were not run in ncnn." in printed
        assert f"{tmp_path / 'm.bin'} (ncnn, float16 weights)" in printed
        assert "trtexec" not in printed

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            (["--opset", "17"], "--opset does not apply to ncnn"),
            (["--static", "8x8"], "--static does not apply to ncnn"),
            (["--license", "MIT"], "--license does not apply to ncnn"),
            (["--io", "float32"], "--io does not apply to ncnn"),
            (["--precision", "bfloat16"], "float32 and float16 weights, no bfloat16"),
            (["--format", "onnx"], "the suffix is not .onnx"),
        ],
    )
    def test_flags_that_do_not_fit_are_refused(
        self, source, tmp_path, capsys, words, reason
    ):
        target = tmp_path / "m.param"
        assert main(["export", str(source), "-o", str(target), *words]) == 1
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
        words = ["export", str(source), "-o", str(tmp_path / "m.onnx")]
        assert main([*words, "--format", "ncnn"]) == 1
        assert "the suffix is not .param" in capsys.readouterr().err
        assert without_hidden(tmp_path) == ["model.safetensors"]
