"""Checkpoints as training programs leave them, through the commands."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import FUSE_SCRIPT, ROOT, call_script, check_one_error, lively_network

import aethernet
from aethernet.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from aethernet.checkpoints.reference import evaluate
from aethernet.checkpoints.verification import natural_image
from aethernet.commands.main import main

TRAINED = ROOT / "models/2x_aether_small_training.safetensors"


def output(path, image):
    return evaluate(load_checkpoint(path).folded, image)


class TestLightning:
    """Its checkpoints hold the weights of the losses beside those of the network."""

    @pytest.fixture
    def path(self, tmp_path):
        weights = lively_network().state_dict()
        state_dict = {f"net_g.{key}": value for key, value in weights.items()}
        state_dict["loss.vgg.weight"] = torch.zeros(3)
        torch.save({"state_dict": state_dict, "epoch": 3}, tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    @pytest.mark.parametrize("key", ["net_g", "net_g.", "state_dict.net_g"])
    def test_param_key_takes_what_its_keys_begin_with(
        self, path, tmp_path, key, capsys
    ):
        target = tmp_path / "fused.safetensors"
        assert main(["fuse", str(path), "-o", str(target), "--param-key", key]) == 0
        assert "under 'state_dict.net_g'" in capsys.readouterr().out
        image = natural_image(9, 11)
        expected = lively_network()(torch.from_numpy(image)).detach().numpy()
        assert np.abs(output(target, image) - expected).max() < 1e-5

    def test_a_key_that_is_not_there_is_one_error(self, path, capsys):
        assert main(["info", str(path), "--param-key", "net_d"]) == 1
        printed = capsys.readouterr().err
        check_one_error(printed)
        assert "There is no state dict under the key 'net_d'" in printed

    def test_without_it_the_flag_is_named(self, path, capsys):
        assert main(["info", str(path)]) == 1
        printed = capsys.readouterr().err
        check_one_error(printed)
        assert printed.endswith("begin with: --param-key net_g.\n")


class TestImgRange:
    """What no weight tells."""

    @pytest.fixture(scope="class")
    @classmethod
    def wide(cls, tmp_path_factory):
        """The trained network with the weights of a training with 255."""
        weights = {
            key: torch.from_numpy(np.array(value, np.float32))
            for key, value in load_checkpoint(TRAINED).state_dict.items()
        }
        weights["conv_first.weight"] /= 255
        for part in ("weight", "bias"):
            weights[f"conv_last.{part}"] *= 255
        path = tmp_path_factory.mktemp("wide") / "wide.pth"
        torch.save({"params": weights}, path)
        return path

    @pytest.mark.parametrize("command", ["fuse", "export"])
    def test_a_wrong_one_is_told(self, wide, tmp_path, capsys, command):
        target = tmp_path / ("made.safetensors" if command == "fuse" else "made.onnx")
        assert main([command, str(wide), "-o", str(target)]) == 0
        assert "Give --img-range 255." in capsys.readouterr().out

    def test_the_right_one_is_not_blamed(self, wide, tmp_path, capsys):
        words = [str(wide), "-o", str(tmp_path / "made.onnx"), "--img-range", "255"]
        assert main(["export", *words]) == 0
        assert "Give --img-range" not in capsys.readouterr().out

    def test_the_right_one_gives_the_right_picture(self, wide, tmp_path, capsys):
        target = tmp_path / "made.safetensors"
        assert main(["fuse", str(wide), "-o", str(target), "--img-range", "255"]) == 0
        assert "Give --img-range" not in capsys.readouterr().out
        image = natural_image(16, 16)
        assert np.abs(output(target, image) - output(TRAINED, image)).max() < 1e-4
        # Programs that know the weights only compute the same.
        assert load_checkpoint(target).img_range == 1

    def test_the_script_has_the_flag(self, wide, tmp_path, monkeypatch):
        target = tmp_path / "made.safetensors"
        words = ["--model_path", wide, "--output_path", target, "--img_range", 255]
        assert call_script(monkeypatch, FUSE_SCRIPT, *words) == 0
        image = natural_image(16, 16)
        assert np.abs(output(target, image) - output(TRAINED, image)).max() < 1e-4

    def test_the_published_one_fits_and_a_fresh_network_is_not_blamed(
        self, tmp_path, capsys
    ):
        assert main(["fuse", str(TRAINED), "-o", str(tmp_path / "a.safetensors")]) == 0
        save_checkpoint(lively_network(), tmp_path / "fresh.pth")
        words = ["fuse", str(tmp_path / "fresh.pth"), "-o", str(tmp_path / "b.pth")]
        assert main(words) == 0
        assert "Give --img-range" not in capsys.readouterr().out

    def test_against_the_metadata_is_an_error(self, tmp_path, capsys):
        save_checkpoint(lively_network(img_range=255.0), tmp_path / "m.pth")
        words = ["-o", str(tmp_path / "out.pth"), "--img-range", "1"]
        assert main(["fuse", str(tmp_path / "m.pth"), *words]) == 1
        printed = capsys.readouterr().err
        check_one_error(printed)
        assert "img_range was given as 1, but the file says 255" in printed

    def test_spandrel_takes_it(self):
        spandrel_aethernet = pytest.importorskip("spandrel_aethernet")
        network = lively_network(img_range=255.0)
        found = spandrel_aethernet.AetherNetArch(255.0).load(network.state_dict())
        assert found.model.img_range == 255

    def test_spandrel_and_python_tell_a_wrong_one(self, wide, caplog):
        spandrel_aethernet = pytest.importorskip("spandrel_aethernet")
        weights = torch.load(wide, weights_only=True)["params"]
        with pytest.warns(UserWarning, match="Load it with img_range=255"):
            spandrel_aethernet.AetherNetArch().load(dict(weights))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            spandrel_aethernet.AetherNetArch(255.0).load(dict(weights))
            spandrel_aethernet.AetherNetArch().load(lively_network().state_dict())
        assert aethernet.load_network(wide).img_range == 1
        assert "trained with an img_range of 255" in caplog.text
        caplog.clear()
        assert aethernet.load_network(wide, img_range=255.0).img_range == 255
        assert caplog.text == ""


class TestBare:
    def test_a_bare_state_dict(self, tmp_path):
        save_checkpoint(lively_network(sk_kernel=5), tmp_path / "m.pth")
        target = tmp_path / "bare.pth"
        assert main(["fuse", str(tmp_path / "m.pth"), "-o", str(target), "--bare"]) == 0
        content = torch.load(target, weights_only=True)
        assert (
            "conv_first.weight" in content
        )  # as the published aether2onnx.py reads it
        assert all(isinstance(value, torch.Tensor) for value in content.values())
        image = natural_image(9, 11)
        error = np.abs(output(target, image) - output(tmp_path / "m.pth", image)).max()
        assert error < 1e-5


def circular():
    content = {}
    content["self"] = content
    return content


@pytest.mark.parametrize(
    "value",
    [circular(), {("a", 1): 2}, [{(1, 2): 3}]],
    ids=["circular", "tuple", "list"],
)
def test_metadata_that_is_no_json_is_one_error(tmp_path, capsys, value):
    weights = lively_network().state_dict()
    torch.save({"params": weights, "metadata": {"a": value}}, tmp_path / "m.pth")
    assert main(["info", str(tmp_path / "m.pth")]) == 1
    printed = capsys.readouterr().err
    check_one_error(printed)
    assert "m.pth: The metadata is damaged" in printed
