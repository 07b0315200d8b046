"""The way users take: a framework's checkpoint, fused, exported, loaded, upscaled."""

import numpy as np
import pytest
import torch
from helpers import FUSE_SCRIPT, ONNX_SCRIPT, SAMPLE, call_script, random_image

from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.commands.main import main
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture
from aethernet.runtimes.registry import open_model

# float32 sums in another order: a few rounding errors of values around 1.
CLOSE = {"rtol": 0, "atol": 1e-5}


def check_route(trained, tmp_path, monkeypatch):
    """Check that each step computes what the trained checkpoint computes."""
    spandrel = pytest.importorskip(
        "spandrel", reason="needs spandrel: pip install -e '.[spandrel]'"
    )
    import spandrel_aethernet

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
