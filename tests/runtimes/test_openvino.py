"""ONNX files and exports of checkpoints in OpenVINO."""

from types import SimpleNamespace

import psutil
import pytest
from helpers import repeating_onnx

from aethernet.errors import AetherError
from aethernet.runtimes import onnx_files, openvino
from aethernet.runtimes.onnxruntime import OnnxRuntime
from aethernet.runtimes.openvino import HINTS, OpenVINORuntime
from aethernet.runtimes.registry import open_model

library = pytest.importorskip("openvino", reason="needs pip install -e '.[openvino]'")


def use_core(monkeypatch, core):
    """Let the runtime find a stand-in for the library."""
    found = SimpleNamespace(Core=core)
    monkeypatch.setattr(openvino, "import_optional", lambda *_: found)


class TestOpenVINO:
    def test_float32_is_float32(self, networks):
        model = OpenVINORuntime.load(networks["rgb"][0], "cpu", "auto")
        used = model.compiled.get_property("INFERENCE_PRECISION_HINT")
        assert used.get_type_name() == "f32"

    def test_its_export_has_layer_norm_in_parts(self, checkpoint, monkeypatch):
        asked = []

        def export(source, target, options):
            asked.append((target.name, options.norm))
            repeating_onnx(target, 2)

        monkeypatch.setattr(onnx_files, "export_onnx", export)
        OpenVINORuntime.load(checkpoint, "cpu", "float32")
        OnnxRuntime.load(checkpoint, "cpu", "float32")
        (own, own_norm), (other, norm) = asked
        assert own != other
        assert (own_norm, norm) == ("parts", "operator")

    def test_takes_no_more_threads_than_pytorch_was_told_to(
        self, tmp_path, monkeypatch
    ):
        path = repeating_onnx(tmp_path / "others.onnx")
        usual = library.compile_model(path, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        name = "INFERENCE_NUM_THREADS"
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
        for told, used in ((1, 1), (4, usual.get_property(name))):
            monkeypatch.setattr(onnx_files, "told_threads", lambda told=told: told)
            monkeypatch.setattr(onnx_files, "usable_cores", lambda: 4)
            model = open_model(path, "openvino", "cpu")
            assert model.compiled.get_property(name) == used

    def test_offers_what_the_device_says_it_computes(self, monkeypatch, tmp_path):
        for has, offered in (
            (["FP32", "INT8"], ("float32",)),
            (["FP32", "BF16"], ("float32", "bfloat16")),
            (["FP32", "FP16", "BF16"], ("float32", "float16", "bfloat16")),
        ):

            class Core:
                available_devices = ("CPU", "GPU.0")

                def get_property(self, name, what, has=has):
                    assert (name, what) == ("GPU.1", "OPTIMIZATION_CAPABILITIES")
                    return has

            use_core(monkeypatch, Core)
            precisions = OpenVINORuntime.precisions(tmp_path / "m.pth", "xpu:1")
            assert precisions == offered
        assert OpenVINORuntime.devices() == ("xpu", "cpu")

    def test_a_precision_without_hardware_is_refused(self, networks, monkeypatch):
        class Core:
            def get_property(self, name, what):
                return ["FP32"]

        use_core(monkeypatch, Core)
        with pytest.raises(AetherError, match="does not compute in bfloat16 on cpu"):
            open_model(networks["rgb"][0], "openvino", "cpu", "bfloat16")

    def test_a_precision_that_the_library_chooses_itself_is_refused(
        self, tmp_path, monkeypatch
    ):
        path = repeating_onnx(tmp_path / "others.onnx")
        monkeypatch.setitem(HINTS, "bfloat16", ("bf16", "FP32"))
        capabilities = library.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" in capabilities:
            pytest.skip("needs a processor without bfloat16 units")
        with pytest.raises(AetherError, match="uses f32 on cpu, not bf16"):
            OpenVINORuntime.load(path, "cpu", "bfloat16")

    def test_a_gpu_that_is_not_available_is_an_error(self, networks):
        with pytest.raises(AetherError, match="'xpu:7' is not available to OpenVINO"):
            open_model(networks["rgb"][0], "openvino", "xpu:7")
