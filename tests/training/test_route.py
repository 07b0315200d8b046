"""A framework's checkpoint on the way that users take, and back.

neosr's is in test_neosr.py, where neosr runs already.
"""

import copy

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from frameworks import clone_of, load_trainner
from helpers import random_image
from route import CLOSE, check_route
from torch import nn
from trainner_redux_real import train_few_steps

from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.rewrites import as_tensors
from aethernet.commands.main import main


def trained_in_stand_in(folder):
    """Training as traiNNer-redux does it, without its data and its logs."""
    torch.manual_seed(0)
    options = {"type": "aether", "scale": 2, "embed_dim": 16, "depths": [1, 2]}
    network = load_trainner().build_network(options).train()
    ema = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(3):
        loss = (network(random_image(2, 3, 8, 8, seed=step)) - 0.5).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for average, weight in zip(ema.parameters(), network.parameters(), strict=True):
            average.data.lerp_(weight.data, 0.5)
    path = folder / "net_g_ema_3.pth"
    torch.save({"metadata": {}, "params": ema.state_dict()}, path)
    return path


def tensors_of(path):
    return as_tensors(load_checkpoint(path).state_dict)


TRAINED = {
    "stand-in": trained_in_stand_in,
    "traiNNer-redux": lambda folder: train_few_steps(
        clone_of("TRAINNER_REDUX_DIR"), folder
    ),
}


@pytest.mark.parametrize(
    "framework",
    [
        "stand-in",
        pytest.param("traiNNer-redux", marks=pytest.mark.frameworks),
    ],
)
def test_a_trained_checkpoint_goes_all_the_way(framework, tmp_path, monkeypatch):
    check_route(TRAINED[framework](tmp_path), tmp_path, monkeypatch)


class TestBack:
    """A network of a framework takes our files again."""

    @pytest.fixture
    def trained(self, tmp_path):
        return trained_in_stand_in(tmp_path)

    def build(self, **options):
        size = {"type": "aether", "scale": 2, "embed_dim": 16, "depths": [1, 2]}
        return load_trainner().build_network({**size, **options})

    def test_a_fused_release_loads_with_fused_init(self, trained, tmp_path):
        fused = tmp_path / "fused.safetensors"
        assert main(["fuse", str(trained), "-o", str(fused)]) == 0
        network = self.build(fused_init=True).eval()
        network.load_state_dict(tensors_of(fused), strict=True)
        image = random_image(1, 3, 9, 8)
        expected = load_checkpoint(trained).build()(image)
        torch.testing.assert_close(network(image), expected, **CLOSE)

    def test_a_fused_release_without_it_is_an_error(self, trained, tmp_path):
        fused = tmp_path / "fused.safetensors"
        assert main(["fuse", str(trained), "-o", str(fused)]) == 0
        with pytest.raises(RuntimeError, match="fused_conv"):
            self.build().load_state_dict(tensors_of(fused))

    def test_training_goes_on_from_the_training_form(self, trained):
        network = self.build().train()
        network.load_state_dict(tensors_of(trained), strict=True)
        nn.functional.mse_loss(
            network(random_image(1, 3, 8, 8)), random_image(1, 3, 16, 16)
        ).backward()
        assert all(p.grad is not None for p in network.parameters())

    def test_4x_starts_from_2x_without_the_second_upsampling(self, trained):
        network = self.build(scale=4)
        state_dict = load_checkpoint(trained).build().state_dict()
        with pytest.raises(RuntimeError, match=r"upsample\.2"):
            network.load_state_dict(state_dict)
        left_out = network.load_state_dict(state_dict, strict=False)
        assert left_out.missing_keys == ["upsample.2.weight", "upsample.2.bias"]
        assert not left_out.unexpected_keys
