import pytest
from helpers import HAS_TORCH, SHIPPED_MODEL, lively_file, lively_network

from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.info import describe_file
from aethernet.checkpoints.layout import VARIANTS
from aethernet.checkpoints.onnx import ExportOptions, export_onnx
from aethernet.commands.main import main
from aethernet.errors import AetherError


def facts(path, **options):
    """Name -> values, as the command lists them."""
    found = {}
    for name, value in describe_file(path, **options):
        found.setdefault(name, []).append(value)
    return found


def test_shipped_model():
    found = facts(SHIPPED_MODEL)
    assert found["form"] == ["fused"]
    assert found["variant"] == ["aether_small"]
    assert found["scale"] == ["2x"]
    assert found["parameters"] == ["1,373,603"]
    # 85 = 16 blocks x 5, and one each for conv_first, conv_after_body,
    # conv_before_upsample, upsample.0 and conv_last.
    assert found["receptive radius"][0].startswith("85 ")
    # Blocks 16 x (121 x 96 + 3 x 96 x 192); 3x3: 3 -> 96 -> 96 -> 64 -> 256, and four
    # times (2x2 pixels) 64 -> 3.
    blocks = 16 * (121 * 96 + 3 * 96 * 192)
    convs = 9 * (3 * 96 + 96 * 96 + 96 * 64 + 64 * 256 + 4 * 64 * 3)
    assert found["multiply-adds"] == [f"{blocks + convs:,} per input pixel"]
    assert found["dtype"] == ["float32"]
    assert any("aethernet_version" in line for line in found["metadata"])


@pytest.mark.skipif(not HAS_TORCH, reason="needs PyTorch")
def test_training_checkpoint_with_two_state_dicts(tmp_path):
    import torch

    network = lively_network(scale=1, in_chans=1, sk_kernel=5)
    weights = network.half().state_dict()
    torch.save({"params": weights, "params_ema": weights}, tmp_path / "net_g.pth")
    found = facts(tmp_path / "net_g.pth")
    assert found["form"] == ["training"]
    assert found["variant"] == ["not a named one"]
    assert found["scale"] == ["1x (restoration)"]
    assert found["image channels"] == ["1"]
    assert found["depthwise kernels"] == ["7 and 5"]
    assert found["dtype"] == ["float16"]
    assert found["wrapper"] == ["params_ema (the file also has params)"]
    found = facts(tmp_path / "net_g.pth", param_key="params")
    assert found["wrapper"] == ["params (the file also has params_ema)"]


def test_named_variant_in_training_form(tmp_path):
    path = tmp_path / "m.safetensors"
    found = facts(lively_file(path, **VARIANTS["aether_medium"], scale=4))
    assert found["variant"] == ["aether_medium"]
    assert found["parameters"] == ["4,701,827"]


def test_onnx_file_of_ours(tmp_path, capsys):
    source = lively_file(tmp_path / "m.safetensors", depths=(1,), scale=4)
    options = ExportOptions(dynamic=True)
    export_onnx(load_checkpoint(source), tmp_path / "m.onnx", options)
    found = facts(tmp_path / "m.onnx")
    assert found["form"] == ["fused"]
    assert found["scale"] == ["4x"]
    assert found["opset"] == ["ai.onnx 17"]
    assert found["input"] == ["input (batch, 3, height, width) float"]
    assert found["output"][0].startswith("output (batch, 3, 4*height, 4*width)")
    assert main(["info", str(tmp_path / "m.onnx")]) == 0
    assert "receptive radius" in capsys.readouterr().out


def test_foreign_and_damaged_onnx(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs pip install onnx onnxruntime")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, "n"])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, "n"])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [result])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "other.onnx")
    found = facts(tmp_path / "other.onnx")
    assert "not exported" in found["architecture"][0]
    assert found["input"] == ["x (1, n) float"]
    for text in (
        "{",
        '{"depths": [3000000]}',
        '{"depths": [1], "mlp_ratio": Infinity}',
        '{"depths": [1], "lk_kernel": 99999999999}',
        "[" * 100_000,
    ):
        model = onnx.helper.make_model(graph)
        facts_of = {"architecture": "AetherNet", "hyperparameters": text}
        onnx.helper.set_model_props(model, facts_of)
        onnx.save(model, tmp_path / "hostile.onnx")
        with pytest.raises(AetherError, match="damaged"):
            describe_file(tmp_path / "hostile.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"text")
    with pytest.raises(AetherError, match="Not a valid ONNX"):
        describe_file(tmp_path / "bad.onnx")
    with pytest.raises(AetherError, match="no such file"):
        describe_file(tmp_path / "absent.onnx")


def test_other_files(tmp_path, capsys):
    (tmp_path / "photo.jpg").write_bytes(b"nobody reads this")
    for name, reason in (("photo.jpg", ".ckpt, .onnx."), ("m.xyz", "no such file")):
        assert main(["info", str(tmp_path / name)]) == 1
        assert reason in capsys.readouterr().err
