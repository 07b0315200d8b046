"""Checkpoints in PyTorch."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import SHIPPED_MODEL, lively_network
from runtime_helpers import picture_network

from aethernet.checkpoints.checkpoint import save_checkpoint
from aethernet.checkpoints.rewrites import fold_network, run_network
from aethernet.checkpoints.verification import natural_image
from aethernet.errors import AetherError, OutOfMemoryError
from aethernet.runtimes import pytorch
from aethernet.runtimes.pytorch import PyTorchRuntime
from aethernet.runtimes.registry import open_model


class TestPyTorch:
    def test_runs_both_forms_as_the_network_does(self, tmp_path):
        network = lively_network(scale=3)
        save_checkpoint(network, tmp_path / "training.pth")
        save_checkpoint(lively_network(scale=3).fuse(), tmp_path / "fused.safetensors")
        image = natural_image(11, 13)
        expected = run_network(network, image)
        for name in ("training.pth", "fused.safetensors"):
            model = open_model(tmp_path / name, "pytorch", "cpu")
            assert (model.scale, model.channels) == (3, 3)
            output = model.run(image)
            np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)

    def test_in_reduced_precision_gives_float32(self, networks):
        path, network = networks["rgb"]
        image = natural_image(12, 10)
        expected = run_network(network, image)
        for precision, limit in (("float16", 50), ("bfloat16", 40)):
            model = PyTorchRuntime.load(path, "cpu", precision)
            output = model.run(image)
            assert output.dtype == np.float32
            psnr = -10 * np.log10(np.square(output - expected).mean())
            assert limit <= psnr < 100

    def test_compiles_on_request(self, networks, monkeypatch):
        seen = []
        monkeypatch.setattr(
            torch, "compile", lambda module, **words: seen.append(words) or module
        )
        PyTorchRuntime.load(networks["gray"][0], "cpu", "float32", compiled=True)
        assert seen == [{"dynamic": True}]

    def test_layer_norm_overflows_in_no_precision(self, tmp_path):
        network = picture_network()
        with torch.no_grad():  # sums of squares beyond 65504, values far below
            network.conv_first.weight.mul_(2000)
            network.conv_first.bias.mul_(2000)
        save_checkpoint(network, tmp_path / "large.pth")
        model = PyTorchRuntime.load(tmp_path / "large.pth", "cpu", "float16")
        assert np.isfinite(model.run(natural_image(9, 9))).all()

    @pytest.mark.parametrize("there", [True, False])
    def test_bfloat16_is_tried_on_processors_with_units_for_it(
        self, monkeypatch, there
    ):
        monkeypatch.setattr(pytorch, "has_bfloat16_units", lambda: there)
        offered = PyTorchRuntime.precisions(Path("m.pth"), "cpu")
        assert offered == ("float32", *["bfloat16"] * there)

    def test_a_device_that_is_not_available_is_an_error(self, tmp_path):
        for device in ("cuda:77", "toaster", "meta", "hpu"):
            with pytest.raises(AetherError, match=device):
                open_model(SHIPPED_MODEL, "pytorch", device)

    def test_out_of_memory_is_an_error_of_its_own(self):
        def fail(*_):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        runtime = PyTorchRuntime(fold_network(lively_network()), torch.device("cpu"))
        runtime.module = fail
        with pytest.raises(OutOfMemoryError, match=r"Out of memory on cpu .* 7x5"):
            runtime.run(np.zeros((1, 3, 5, 7), np.float32))
