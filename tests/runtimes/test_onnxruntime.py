"""ONNX files and exports of checkpoints in ONNX Runtime, and the kept exports."""

import os
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import psutil
import pytest
from helpers import lively_file, random_array, repeating_onnx, without_hidden
from runtime_helpers import picture_file

from aethernet.cache import cache_folder
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.onnx import ExportOptions, ShapeRange, export_onnx
from aethernet.checkpoints.reference import evaluate
from aethernet.checkpoints.verification import natural_image
from aethernet.devices import installed_versions
from aethernet.errors import AetherError, OutOfMemoryError
from aethernet.runtimes import onnx_files, onnxruntime
from aethernet.runtimes.onnxruntime import PROVIDERS, OnnxRuntime
from aethernet.runtimes.registry import RUNTIMES, open_model

# The runtimes of ONNX files.
INSTALLED = [
    "onnxruntime",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(
            not installed_versions(["openvino"]),
            reason="needs pip install -e '.[openvino]'",
        ),
    ),
]


class TestOnnxFiles:
    @pytest.mark.parametrize("runtime", ["auto", *INSTALLED])
    def test_files_of_other_programs_run(self, tmp_path, runtime):
        path = repeating_onnx(tmp_path / "others.onnx")
        model = open_model(path, runtime, "cpu")
        assert (model.scale, model.channels) == (3, 3)
        image = random_array(2, 3, 5, 4)
        wanted = image.repeat(3, 2).repeat(3, 3)
        # Half a step of 8 bits: OpenVINO takes bfloat16 where it is faster.
        assert np.abs(model.run(image) - wanted).max() < 0.5 / 255

    def test_uses_no_more_threads_than_it_was_told_to(self, tmp_path, monkeypatch):
        path = repeating_onnx(tmp_path / "others.onnx")
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
        # 0: its own choice, where nothing was told and all cores may be used.
        for told, cores, used in (
            *((1, 4, 1), (3, 4, 3), (4, 4, 0), (8, 4, 0)),
            *((None, 4, 0), (None, 2, 2), (3, 2, 2)),
        ):
            monkeypatch.setattr(onnx_files, "told_threads", lambda told=told: told)
            monkeypatch.setattr(onnx_files, "usable_cores", lambda cores=cores: cores)
            session = OnnxRuntime.load(path, "cpu", "auto").session
            assert session.get_session_options().intra_op_num_threads == used

    @pytest.mark.parametrize("runtime", INSTALLED)
    def test_fixed_sizes_and_float16_run(self, tmp_path, runtime):
        sides = (1, 1, 24, 16)
        path = repeating_onnx(tmp_path / "half.onnx", 2, sides, "FLOAT16")
        model = open_model(path, runtime, "cpu")
        assert (model.scale, model.channels) == (2, 1)
        assert model.describe().precision == "float16"
        image = random_array(*sides).astype(np.float16).astype(np.float32)
        assert np.array_equal(model.run(image), image.repeat(2, 2).repeat(2, 3))
        with pytest.raises(AetherError, match="height of 24 only, not 23"):
            model.run(image[:, :, 1:])
        with pytest.raises(AetherError, match="float16"):
            open_model(path, runtime, "cpu", "float32")

    @pytest.mark.parametrize("runtime", ["auto", *INSTALLED])
    def test_a_file_that_is_no_model_is_one_error(self, tmp_path, runtime, caplog):
        (tmp_path / "bad.onnx").write_bytes(b"hello" * 99)
        with pytest.raises(AetherError, match="no valid ONNX file"):
            open_model(tmp_path / "bad.onnx", runtime)
        assert not caplog.records

    def test_a_file_is_not_run_in_a_precision_it_is_not_in(self, tmp_path):
        path = repeating_onnx(tmp_path / "others.onnx")
        with pytest.raises(AetherError, match="is in float32"):
            open_model(path, "onnxruntime", "cpu", "float16")

    def test_onnxruntime_refuses_bfloat16_on_the_cpu_before_it_exports(
        self, checkpoint
    ):
        with pytest.raises(AetherError, match="no bfloat16 on the CPU"):
            open_model(checkpoint, "onnxruntime", "cpu", "bfloat16")
        assert not (cache_folder() / "exports").exists()

    def test_the_precision_that_a_file_states_must_be_a_known_one(self, tmp_path):
        path = repeating_onnx(tmp_path / "others.onnx")
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {"precision": "\x1b[31mfloat99"})
        onnx.save(model, path)
        assert OnnxRuntime.load(path, "cpu", "auto").describe().precision == "float32"

    def test_another_size_than_the_file_s_is_an_error(self, tmp_path):
        model = lively_file(tmp_path / "model.safetensors", depths=(1,))
        options = ExportOptions(shapes=ShapeRange(*[(1, 8, 9)] * 3))
        checkpoint = load_checkpoint(model)
        export_onnx(checkpoint, tmp_path / "m.onnx", options)
        model = open_model(tmp_path / "m.onnx", "onnxruntime", "cpu")
        assert model.scale == 2
        with pytest.raises(AetherError, match="height of 8 only, not 7"):
            model.run(natural_image(7, 9))

    @pytest.mark.parametrize("precision", ["float32", "float16"])
    def test_agrees_with_the_network_and_knows_the_scale(self, tmp_path, precision):
        arguments = {"depths": (1,), "scale": 4, "in_chans": 1}
        checkpoint = load_checkpoint(
            picture_file(tmp_path / "model.safetensors", **arguments)
        )
        options = ExportOptions(dynamic=True, precision=precision)
        export_onnx(checkpoint, tmp_path / "m.onnx", options)
        model = open_model(tmp_path / "m.onnx", "onnxruntime", "cpu")
        assert (model.scale, model.channels) == (4, 1)
        image = natural_image(9, 14, 1)
        expected = evaluate(checkpoint.folded, image)
        limit = {"float32": 1e-5, "float16": 1e-2}[precision]
        output = model.run(image)
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, expected, rtol=0, atol=limit)


class TestCuda:
    """The libraries that the package onnxruntime-gpu takes from other packages."""

    def test_they_are_loaded_before_the_session(self, tmp_path, monkeypatch, capsys):
        seen = []

        def preload_dlls():
            print("Failed to load libcudart.so.13")
            seen.append("libraries")

        def session(content, settings, providers):
            seen.append([name for name, _ in providers])
            raise RuntimeError("no driver")

        gpu = SimpleNamespace(
            __version__="1.31.1",
            SessionOptions=ort.SessionOptions,
            get_available_providers=lambda: [PROVIDERS["cuda"], PROVIDERS["cpu"]],
            preload_dlls=preload_dlls,
            InferenceSession=session,
        )
        monkeypatch.setattr(onnxruntime, "import_optional", lambda *_: gpu)
        path = repeating_onnx(tmp_path / "others.onnx")
        with pytest.raises(AetherError, match="can load on cuda"):
            OnnxRuntime.of_file(path, "cuda", "auto")
        assert seen == ["libraries", [PROVIDERS["cuda"], PROVIDERS["cpu"]]]
        assert capsys.readouterr().out == ""  # which may be a picture in a pipe


class TestExports:
    def test_an_export_is_made_once(self, networks, monkeypatch):
        path, _ = networks["rgb"]
        OnnxRuntime.load(path, "cpu", "float32")
        monkeypatch.setattr(onnx_files, "export_onnx", None)
        assert OnnxRuntime.load(path, "cpu", "float32").scale == 2

    def test_a_damaged_one_is_made_again_and_old_ones_go(self, checkpoint, monkeypatch):
        def export(source, target, options):
            repeating_onnx(target, 2)

        monkeypatch.setattr(onnx_files, "export_onnx", export)
        OnnxRuntime.load(checkpoint, "cpu", "float32")
        folder = cache_folder() / "exports"
        (made,) = folder.glob("*.onnx")
        for number in range(20):
            old = folder / f"{number}.onnx"
            old.touch()
            os.utime(old, (number, number))
        made.write_bytes(made.read_bytes()[:99])
        assert OnnxRuntime.load(checkpoint, "cpu", "float32").scale == 2
        names = [name for name in without_hidden(folder) if name.endswith(".onnx")]
        assert len(names) == onnx_files.KEPT_EXPORTS
        assert made.name in names
        assert "0.onnx" not in names

    def test_onnxruntime_takes_one_in_the_precision_asked_for(
        self, checkpoint, monkeypatch
    ):
        asked = []

        def export(source, target, options):
            asked.append((source.path, options))
            repeating_onnx(target, 2, dtype="FLOAT16")

        monkeypatch.setattr(onnx_files, "export_onnx", export)
        model = OnnxRuntime.load(checkpoint, "cpu", "float16")
        assert model.describe().precision == "float16"
        options = ExportOptions(dynamic=True, precision="float16")
        assert asked == [(checkpoint, options)]

    def test_other_code_makes_another(self, networks, monkeypatch):
        path, _ = networks["rgb"]
        OnnxRuntime.load(path, "cpu", "float32")
        monkeypatch.setattr(onnx_files, "code_version", lambda code: "another")
        monkeypatch.setattr(onnx_files, "export_onnx", None)
        with pytest.raises(TypeError):  # None is called
            OnnxRuntime.load(path, "cpu", "float32")


class TestDevices:
    def test_every_device_of_the_scheme_has_its_provider(self):
        assert set(PROVIDERS) == set(RUNTIMES["onnxruntime"].devices)

    @pytest.mark.filterwarnings("ignore:Specified provider")
    def test_a_session_that_falls_back_to_the_cpu_is_no_gpu(
        self, tmp_path, monkeypatch, caplog
    ):
        # Like onnxruntime-gpu without a driver: it is built in and does not start.
        path = repeating_onnx(tmp_path / "others.onnx")
        both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(ort, "get_available_providers", lambda: both)
        with pytest.raises(AetherError, match="could not start CUDAExecutionProvider"):
            open_model(path, "onnxruntime", "cuda:0")
        assert open_model(path, "onnxruntime").describe().device == "cpu"
        assert "could not start CUDAExecutionProvider" in caplog.text

    @pytest.mark.parametrize("device", ["cuda", "dml:x", "cpu:1", "coreml", "tensorrt"])
    def test_a_device_that_it_does_not_have_is_an_error(self, networks, device):
        with pytest.raises(AetherError, match=f"{device}.* ONNX Runtime here"):
            open_model(networks["rgb"][0], "onnxruntime", device)

    def test_out_of_memory_is_an_error_of_its_own(self, networks):
        model = OnnxRuntime.load(networks["gray"][0], "cpu", "auto")

        class Full:
            def get_inputs(self):
                raise MemoryError

        model.session = Full()
        with pytest.raises(OutOfMemoryError, match=r"Out of memory on cpu .* 7x5"):
            model.run(np.zeros((1, 1, 5, 7), np.float32))
