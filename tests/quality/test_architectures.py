"""Models of other architectures than AetherNet, and ONNX files."""

import importlib
import os
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import SAMPLE, sample_part
from quality_helpers import by_method, measured, refused

from aethernet.checkpoints.checkpoint import load_weights
from aethernet.metrics import measure
from aethernet.pictures.resampling import lr_pixels, whole_pixels
from aethernet.runtimes.spandrel import SpandrelModel, fold_span


def foreign(architecture, path, **arguments):
    """Save a small network of another architecture, as frameworks do."""
    package, _, name = architecture.rpartition(".")
    module = importlib.import_module(f"spandrel.architectures.{package}")
    torch.manual_seed(0)
    network = getattr(module, name)(**arguments).eval()
    torch.save({"params": network.state_dict()}, path)
    return network


COMPACT = {"num_feat": 8, "num_conv": 2, "upscale": 2}
SWINIR = {"upscale": 2, "img_size": 16, "window_size": 8, "embed_dim": 12}
SWINIR |= {"depths": [2], "num_heads": [2], "upsampler": "pixelshuffledirect"}


class TestOtherArchitectures:
    def test_are_measured_beside_ours(self, folder, tmp_path, spandrel):
        network = foreign("Compact.Compact", tmp_path / "compact.pth", **COMPACT)
        words = ("--model", folder / "one.safetensors", tmp_path / "compact.pth")
        found = measured(tmp_path, *words, "--data", folder / "hr")
        row = by_method(found["sets"][0])["compact"]
        hr = whole_pixels(sample_part(70, 83), 2)
        lr = torch.from_numpy(lr_pixels(hr, 2)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            output = network(lr)[0].clamp(0, 1).permute(1, 2, 0)
        expected = measure((output.numpy() * 255).round().astype(np.uint8), hr, 2)
        assert row["pictures"][0]["psnr_y"] == pytest.approx(expected.psnr, abs=1e-3)
        assert row["runtime"] == "PyTorch"

    @pytest.mark.filterwarnings("ignore:torch.meshgrid")
    def test_windows_that_do_not_fit_are_padded(self, tmp_path, spandrel):
        foreign("SwinIR.SwinIR", tmp_path / "swin.pth", **SWINIR)
        model = SpandrelModel.load(load_weights(tmp_path / "swin.pth"), "cpu", "auto")
        assert (model.scale, model.channels) == (2, 3)
        for height, width in ((1, 3), (9, 21)):
            batch = np.random.default_rng(0).random((2, 3, height, width), np.float32)
            assert model.run(batch).shape == (2, 3, 2 * height, 2 * width)

    def test_span_computes_the_same_when_folded(self, spandrel):
        from spandrel.architectures.SPAN import SPAN

        torch.manual_seed(0)
        network = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).eval()
        image = torch.rand(1, 3, 9, 11)
        with torch.inference_mode():
            expected = network(image)
            fold_span(network)
            assert torch.allclose(network(image), expected, atol=1e-6)
        assert not [m for m in network.modules() if hasattr(m, "eval_conv")]

    @pytest.mark.filterwarnings("ignore:Initializing zero-element")
    def test_a_precision_that_is_not_supported_is_an_error(
        self, tmp_path, capsys, spandrel
    ):
        dat = {"img_size": 16, "embed_dim": 16, "split_size": [2, 4], "depth": [2]}
        dat |= {"num_heads": [2], "expansion_factor": 2, "upscale": 2}
        foreign("DAT.DAT", tmp_path / "dat.pth", **dat)
        words = ("--precision", "float16", "--data", SAMPLE.parent, "--model")
        assert "float32" in refused(capsys, *words, tmp_path / "dat.pth")

    def test_another_runtime_cannot_have_them(self, folder, tmp_path, capsys, spandrel):
        foreign("Compact.Compact", tmp_path / "compact.pth", **COMPACT)
        words = ("--data", folder / "hr", "--model", tmp_path / "compact.pth")
        error = refused(capsys, *words, "--runtime", "openvino")
        assert "only PyTorch runs it" in error

    def test_an_unknown_architecture_is_an_error(
        self, folder, tmp_path, capsys, spandrel
    ):
        torch.save({"some.weight": torch.zeros(3)}, tmp_path / "unknown.pth")
        words = ("--data", folder / "hr", "--model", tmp_path / "unknown.pth")
        assert "spandrel" in refused(capsys, *words)

    def test_a_damaged_network_of_a_known_architecture_is_an_error(
        self, folder, tmp_path, capsys, spandrel
    ):
        keys = {"body.0.weight": torch.zeros(8, 3, 3, 3), "body.1.weight": 3}
        torch.save(keys, tmp_path / "half.pth")
        words = ("--data", folder / "hr", "--model", tmp_path / "half.pth")
        assert "cannot load this file" in refused(capsys, *words)

    def test_without_spandrel_there_is_an_error(
        self, folder, tmp_path, capsys, monkeypatch
    ):
        torch.save({"some.weight": torch.zeros(3)}, tmp_path / "unknown.pth")
        monkeypatch.setitem(sys.modules, "spandrel", None)
        words = ("--data", folder / "hr", "--model", tmp_path / "unknown.pth")
        assert "pip install spandrel" in refused(capsys, *words)

    def test_no_code_of_a_file_is_run(self, folder, tmp_path, capsys):
        class Exploit:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "hacked"),)

        torch.save({"params": Exploit()}, tmp_path / "hostile.pth")
        words = ("--data", folder / "hr", "--model", tmp_path / "hostile.pth")
        assert "Python objects" in refused(capsys, *words)
        assert not (tmp_path / "hacked").exists()

    def test_onnx_files_are_measured(self, folder, tmp_path):
        onnx = pytest.importorskip("onnx", reason="needs pip install onnx onnxruntime")
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        scales = helper.make_tensor("s", kind, [4], [1, 1, 2, 2])
        node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest")
        sides = ["batch", 3, "height", "width"]
        graph = helper.make_graph(
            [node],
            "larger",
            [helper.make_tensor_value_info("x", kind, sides)],
            [helper.make_tensor_value_info("y", kind, [None] * 4)],
            [scales],
        )
        opsets = [helper.make_opsetid("", 18)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.save(model, tmp_path / "nearest.onnx")
        words = ("--model", tmp_path / "nearest.onnx", "--runtime", "onnxruntime")
        found = measured(tmp_path, "--data", folder / "hr", *words)["sets"][0]
        row = by_method(found)["nearest"]
        hr = whole_pixels(sample_part(70, 83), 2)
        larger = lr_pixels(hr, 2).repeat(2, axis=0).repeat(2, axis=1)
        expected = measure(larger, hr, 2)
        assert row["pictures"][0]["psnr_y"] == pytest.approx(expected.psnr, abs=1e-6)
        assert row["runtime"] == "ONNX Runtime"
