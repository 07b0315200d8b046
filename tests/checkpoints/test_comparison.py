"""What written files are compared with, on which pictures, and by which library."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import lively_network

from aethernet.checkpoints import comparison
from aethernet.checkpoints.checkpoint import (
    CheckpointOptions,
    load_checkpoint,
    save_checkpoint,
)
from aethernet.checkpoints.comparison import (
    VERIFICATIONS,
    Case,
    network_of,
    verification_images,
    verify_outputs,
)
from aethernet.checkpoints.rewrites import run_network
from aethernet.checkpoints.tolerances import Tolerance
from aethernet.errors import VerificationError


@pytest.fixture
def path(tmp_path):
    save_checkpoint(lively_network(depths=(1,)), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def pretend_no_torch_is_loaded(monkeypatch):
    monkeypatch.setattr(comparison, "sys", SimpleNamespace(modules={}))


class TestTheNetwork:
    def test_numpy_computes_it_unless_torch_is_loaded(self, path, monkeypatch):
        assert network_of(load_checkpoint(path)).by == "PyTorch float32"
        pretend_no_torch_is_loaded(monkeypatch)
        assert network_of(load_checkpoint(path)).by == "NumPy float32"

    def test_torch_computes_it_on_request(self, path, monkeypatch):
        pretend_no_torch_is_loaded(monkeypatch)
        on_cpu = load_checkpoint(path, CheckpointOptions(device="cpu"))
        assert network_of(on_cpu).by == "PyTorch float32"
        assert network_of(load_checkpoint(path), "full").by == "PyTorch float32"

    def test_full_does_without_torch_where_it_is_missing(self, path, monkeypatch):
        pretend_no_torch_is_loaded(monkeypatch)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert network_of(load_checkpoint(path), "full").by == "NumPy float32"

    def test_torch_computes_on_the_device(self, path):
        source = load_checkpoint(path, CheckpointOptions(device="meta"))
        image = np.zeros((1, 3, 4, 4), np.float32)
        with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
            network_of(source).run(image)

    @pytest.mark.parametrize("scale", [1, 3, 4])
    def test_both_agree(self, tmp_path, monkeypatch, scale):
        network = lively_network(scale=scale, img_range=255.0)
        save_checkpoint(network, tmp_path / "m.safetensors")
        pretend_no_torch_is_loaded(monkeypatch)
        found = network_of(load_checkpoint(tmp_path / "m.safetensors"))
        assert found.by == "NumPy float32"
        for name, image in verification_images(3):
            error = np.abs(found.run(image) - run_network(network, image)).max()
            assert error < 2e-5, name

    def test_values_that_are_not_finite_are_an_error(self, tmp_path, monkeypatch):
        network = lively_network(depths=(1,))
        with torch.no_grad():
            network.conv_last.weight.fill_(3e38)
        save_checkpoint(network, tmp_path / "m.safetensors")
        pretend_no_torch_is_loaded(monkeypatch)
        found = network_of(load_checkpoint(tmp_path / "m.safetensors"))
        with pytest.raises(VerificationError, match="network itself gives NaN"):
            found.cases(verification_images(3))


class TestTheImages:
    @pytest.mark.parametrize("verify", VERIFICATIONS)
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_are_pictures_with_these_channels(self, verify, channels):
        images = dict(verification_images(channels, verify))
        assert len(images) == {"quick": 7, "full": 10}[verify]
        for name, image in images.items():
            assert image.dtype == np.float32, name
            assert image.shape[1] == channels, name
            assert 0 <= image.min() <= image.max() <= 1, name
        assert {image.shape[0] for image in images.values()} > {1}

    def test_quick_ones_are_small(self):
        # NumPy computes 384 pixels of aether_small in a tenth of a second.
        pixels = sum(i[:, 0].size for _, i in verification_images(3))
        assert pixels < 1500

    def test_of_a_fixed_size(self):
        images = dict(verification_images(3, "full", (2, 5, 6)))
        assert {image.shape for image in images.values()} == {(2, 3, 5, 6)}
        assert len(images) == 5


class TestOutputs:
    def verify(self, output, tolerance, half=False):
        image = np.zeros((1, 3, 2, 2), np.float32)
        case = Case("noise", image, np.full((1, 3, 4, 4), 0.5, np.float32))
        return verify_outputs(lambda _: output, "file", [case], tolerance, half)

    def test_the_difference_is_reported(self):
        output = np.full((1, 3, 4, 4), 0.5001)
        found = self.verify(output, Tolerance(atol=1e-3))["noise"]
        assert found.max_abs_error == pytest.approx(1e-4)
        assert found.psnr == pytest.approx(80)

    @pytest.mark.parametrize(
        ("output", "reason"),
        [
            (np.full((1, 3, 4, 4), 0.51), "differs from the network on noise"),
            (np.full((1, 3, 4, 4), np.nan), "gives NaN or infinite values on noise"),
            (np.full((1, 3, 4, 4), np.inf), "gives NaN or infinite values on noise"),
            (np.full((1, 3, 4, 5), 0.5), r"gives the shape \[1, 3, 4, 5\]"),
        ],
    )
    def test_wrong_outputs_are_refused(self, output, reason):
        with pytest.raises(VerificationError, match=reason):
            self.verify(output, Tolerance(atol=1e-3))

    def test_without_a_tolerance_finite_values_pass(self):
        assert self.verify(np.ones((1, 3, 4, 4)), None)["noise"].finite
        with pytest.raises(VerificationError, match="float16 ends at 65504"):
            self.verify(np.full((1, 3, 4, 4), np.inf), None, half=True)
