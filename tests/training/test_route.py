"""The way users take: a framework's checkpoint, fused, exported, loaded, upscaled.

And back: what a framework does with a fused release, in tests of each framework.
"""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from frameworks import clone_of, load_trainner
from helpers import FUSE_SCRIPT, ONNX_SCRIPT, SAMPLE, call_script, random_image
from neosr_real import of_clone, of_package_index
from neosr_real import train_few_steps as train_in_neosr
from torch import nn
from trainner_redux_real import train_few_steps as train_in_trainner_redux

from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.rewrites import as_tensors
from aethernet.commands.main import main
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture
from aethernet.runtimes.registry import open_model

spandrel = pytest.importorskip(
    "spandrel", reason="needs spandrel: pip install -e '.[spandrel]'"
)
import spandrel_aethernet

# float32 sums in another order: a few rounding errors of values around 1.
CLOSE = {"rtol": 0, "atol": 1e-5}


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
    "neosr 0.1.0": lambda folder: train_in_neosr(
        of_package_index(folder / "neosr"), folder
    ),
    "neosr 1.0.0": lambda folder: train_in_neosr(of_clone(folder / "neosr"), folder),
    "traiNNer-redux": lambda folder: train_in_trainner_redux(
        clone_of("TRAINNER_REDUX_DIR"), folder
    ),
}
CLONES = ("neosr 1.0.0", "traiNNer-redux")


@pytest.mark.parametrize(
    "framework",
    [
        pytest.param(name, marks=[pytest.mark.frameworks] if name in CLONES else [])
        for name in TRAINED
    ],
)
def test_a_trained_checkpoint_goes_all_the_way(framework, tmp_path, monkeypatch):
    trained = TRAINED[framework](tmp_path)
    checkpoint = load_checkpoint(trained)
    assert (checkpoint.form, checkpoint.scale) == ("training", 2)
    image = random_image(1, 3, 19, 14)
    with torch.inference_mode():
        expected = checkpoint.build()(image)

    fused = tmp_path / "fused.safetensors"
    words = ("--model_path", trained, "--output_path", fused)
    assert call_script(monkeypatch, FUSE_SCRIPT, *words) == 0
    with torch.inference_mode():
        output = load_checkpoint(fused).build()(image)
    torch.testing.assert_close(output, expected, **CLOSE)

    exported = tmp_path / "exported.onnx"
    words = ("--input_model_path", fused, "--output_onnx_path", exported)
    words = (*words, "--dynamic_shapes")
    assert call_script(monkeypatch, ONNX_SCRIPT, *words) == 0
    model = open_model(exported, "onnxruntime", "cpu")
    output = torch.from_numpy(model.run(image.numpy()))
    torch.testing.assert_close(output, expected, **CLOSE)

    spandrel_aethernet.install(ignore_duplicates=True)
    for path in (trained, fused):
        descriptor = spandrel.ModelLoader("cpu").load_from_file(path)
        assert (descriptor.architecture.id, descriptor.scale) == ("AetherNet", 2)
        with torch.inference_mode():
            # A descriptor clamps, as every picture is in the end.
            torch.testing.assert_close(descriptor(image), expected.clamp(0, 1), **CLOSE)

    # A part of it, for time's sake, larger than the network sees at once.
    pixels = torch.from_numpy(read_picture(SAMPLE).pixels[64:164, 64:144].copy())
    source = tmp_path / "sample.png"
    write_picture(Picture(pixels.numpy()), source)
    network = checkpoint.build()
    with torch.inference_mode():
        whole = network(pixels.permute(2, 0, 1)[None].float() / 255)[0]
    wanted = (whole.clamp(0, 1) * 255).permute(1, 2, 0).numpy()
    for model in (trained, fused, exported):
        picture = tmp_path / f"{model.stem}.png"
        words = [str(source), "-o", str(picture), "--model", str(model)]
        runtime = "onnxruntime" if model == exported else "pytorch"
        assert main(["upscale", *words, "--runtime", runtime]) == 0
        # Half a step of rounding, and what 1e-5 does beside the middle of one.
        assert np.abs(read_picture(picture).pixels - wanted).max() < 0.51


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
