"""Our network against vectors from an independent implementation."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import ROOT
from safetensors.torch import load_file

from aethernet.aether_core import AetherNet, hyperparameters_from_state_dict

# Float32 with unit-gain weights rounds to about 5e-6; the format allows 1e-5.
LIMIT = 1e-5

OWN = ("x1", "x2")
SHARED = (*OWN, "x3", "x4", "x8", "x4_gray", "x2_odd_mlp", "x2_range255")


def check(path: Path, img_range: float) -> None:
    vectors = load_file(path)
    for prefix, output in (("w.", "output"), ("fused.", "output_fused")):
        state_dict = {
            key.removeprefix(prefix): value
            for key, value in vectors.items()
            if key.startswith(prefix)
        }
        arguments = hyperparameters_from_state_dict(state_dict)
        assert arguments["fused_init"] is (prefix == "fused.")
        network = AetherNet(**arguments, img_range=img_range).eval()
        network.load_state_dict(state_dict, strict=True)
        with torch.inference_mode():
            result = network(vectors["input"])
            assert (result - vectors[output]).abs().max() <= LIMIT
            if not network.is_fused:
                network.fuse()
                for key, value in network.state_dict().items():
                    assert torch.equal(value, vectors[f"fused.{key}"]), key
                result = network(vectors["input"])
                assert (result - vectors["output"]).abs().max() <= LIMIT


@pytest.mark.parametrize("name", OWN)
def test_golden_vectors_of_this_repository(name):
    check(ROOT / "tests/golden" / f"{name}.safetensors", img_range=1.0)


@pytest.mark.parametrize("name", SHARED)
def test_golden_vectors_of_the_shared_folder(name, shared):
    img_range = 255.0 if name == "x2_range255" else 1.0
    check(shared / "golden" / f"{name}.safetensors", img_range)
