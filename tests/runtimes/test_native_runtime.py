"""The native runtime: from a file to a picture, and what is refused."""

import json

import numpy as np
import pytest
from helpers import (
    PLAIN,
    SHIPPED_MODEL,
    check_one_error,
    photo,
    random_array,
    run,
    write,
)
from runtime_helpers import NEEDS_KERNELS, SMALLEST, picture_file

from aethernet.cache import cache_folder
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.reference import evaluate
from aethernet.commands.main import main
from aethernet.errors import AetherError, CheckpointError, VerificationError
from aethernet.pictures.files import read_picture
from aethernet.runtimes import cores
from aethernet.runtimes.native import run as native_run
from aethernet.runtimes.native import runtime
from aethernet.runtimes.native.library import load_kernels
from aethernet.runtimes.registry import open_model


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A small checkpoint, and a cache of its own."""
    monkeypatch.setenv("AETHERNET_CACHE", str(tmp_path / "cache"))
    return picture_file(tmp_path / "model.safetensors", **SMALLEST)


class TestWithoutKernels:
    @pytest.fixture(autouse=True)
    def not_built(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            runtime, "load_kernels", lambda: load_kernels(tmp_path / "kernels.so")
        )

    def test_the_error_has_the_line_that_builds_them(self, model, tmp_path):
        with pytest.raises(AetherError, match="not been built") as caught:
            open_model(model, "native")
        assert caught.value.path == tmp_path / "kernels.so"
        assert "python tools/build_native.py" in caught.value.hint

    def test_a_file_that_is_no_library(self, model, tmp_path):
        (tmp_path / "kernels.so").write_bytes(b"no library")
        with pytest.raises(AetherError, match=r"do not load.*build_native"):
            open_model(model, "native")

    def test_a_command_that_names_it_fails_with_one_line(self, model, tmp_path, capsys):
        source = write(photo(), tmp_path / "a.png")
        words = ["upscale", str(source), "--model", str(model), "--runtime", "native"]
        assert main(words) == 1
        error = capsys.readouterr().err
        check_one_error(error)
        assert "python tools/build_native.py" in error


@NEEDS_KERNELS
class TestModel:
    @pytest.mark.parametrize("name", ["rgb", "gray"])
    def test_computes_what_the_network_computes(self, networks, name):
        path, _ = networks[name]
        folded = load_checkpoint(path).folded
        found = open_model(path, "native", "cpu", "float32")
        assert found.scale == folded.scale
        assert found.channels == folded.in_chans
        for size in ((1, 1, 1), (1, 7, 5), (3, 13, 18), (1, 40, 33)):
            image = random_array(size[0], found.channels, *size[1:])
            expected = evaluate(folded, image)
            output = found.run(image)
            assert output.dtype == np.float32
            np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)

    def test_describes_itself(self, model):
        found = open_model(model, "native").describe()
        assert str(found) == "native kernels float32 on cpu: as asked"

    def test_needs_no_pytorch(self):
        code = (
            "import sys\n"
            "from aethernet.runtimes.registry import open_model\n"
            f"open_model({str(SHIPPED_MODEL)!r}, 'native')\n"
            "print({'torch', 'onnx', 'onnxruntime'} & {*sys.modules})"
        )
        done = run("-c", code)
        assert done.stdout == "set()\n", done.stderr

    def test_a_picture_is_that_of_another_runtime(self, model, tmp_path, capsys):
        source = write(photo(), tmp_path / "a.png")
        pictures = []
        for name in ("native", PLAIN):
            target = tmp_path / f"{name}.png"
            words = ["upscale", str(source), "-o", str(target), "--model", str(model)]
            assert main([*words, "--runtime", name, "--device", "cpu"]) == 0
            pictures.append(read_picture(target).pixels.astype(int))
        assert "native kernels float32 on cpu" in capsys.readouterr().out
        assert np.abs(pictures[0] - pictures[1]).max() <= 1

    @pytest.mark.parametrize("threads", [1, 3])
    def test_the_command_limits_its_threads(
        self, model, tmp_path, monkeypatch, threads
    ):
        torch = pytest.importorskip("torch")
        used = []

        def counted(steps, count):
            used.append(count)
            return run_steps(steps, count)

        run_steps = native_run.run_steps
        monkeypatch.setattr(native_run, "run_steps", counted)
        monkeypatch.setattr(cores, "usable_cores", lambda: 4)
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        before = torch.get_num_threads()
        source = write(photo(), tmp_path / "a.png")
        words = ["upscale", str(source), "--model", str(model), "--runtime", "native"]
        try:
            assert main([*words, "--threads", str(threads)]) == 0
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        assert {*used} == {threads}

    def test_other_devices_precisions_and_files_are_refused(self, model, tmp_path):
        with pytest.raises(AetherError, match="'cuda' is none of cpu"):
            open_model(model, "native", "cuda")
        with pytest.raises(AetherError, match="'cpu:1', only cpu"):
            open_model(model, "native", "cpu:1")
        with pytest.raises(AetherError, match="float32 only, not in bfloat16"):
            open_model(model, "native", precision="bfloat16")
        (tmp_path / "model.pth").write_bytes(b"x")
        with pytest.raises(AetherError, match=r"does not load \.pth.*aethernet fuse"):
            open_model(tmp_path / "model.pth", "native")
        model.write_bytes(b"x")
        with pytest.raises(CheckpointError) as caught:
            open_model(model, "native")
        assert caught.value.path == model


@NEEDS_KERNELS
class TestProof:
    def test_it_is_made_once_for_a_model(self, model, monkeypatch):
        made = []

        def counted(folded, tile):
            made.append(tile.shape)
            return evaluate(folded, tile)

        evaluate = runtime.evaluate
        monkeypatch.setattr(runtime, "evaluate", counted)
        open_model(model, "native")
        open_model(model, "native")
        assert made == [(1, 3, *runtime.PROOF_SIZE)]
        (kept,) = (cache_folder() / "native").iterdir()
        assert {"model", "machine", "versions"} == {
            *json.loads(kept.read_text("utf-8"))["facts"]
        }
        kept.write_text("{}")  # damaged
        open_model(model, "native")
        picture_file(model, seed=1, **SMALLEST)
        open_model(model, "native")
        assert len(made) == 3

    @pytest.mark.parametrize("wrong", [3e-4, float("nan")])
    def test_wrong_output_is_an_error_each_time(self, model, monkeypatch, wrong):
        evaluate = runtime.evaluate
        monkeypatch.setattr(
            runtime, "evaluate", lambda folded, tile: evaluate(folded, tile) + wrong
        )
        for _ in range(2):
            with pytest.raises(VerificationError, match="the limit is 0") as caught:
                open_model(model, "native")
            assert caught.value.path == model

    def test_without_a_cache_it_is_made_each_time(self, model, tmp_path, monkeypatch):
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv("AETHERNET_CACHE", str(tmp_path / "file"))
        assert open_model(model, "native").scale == 2
