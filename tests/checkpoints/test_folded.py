"""The folded network: the same function as the PyTorch module, without PyTorch."""

import copy
import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import ROOT, SHIPPED_MODEL, both_forms, lively_network, random_image
from safetensors.numpy import load_file
from safetensors.torch import save_file

from aethernet.aether_core import (
    UPSAMPLE_FACTORS,
    VARIANTS,
    AetherNet,
    hyperparameters_from_state_dict,
)
from aethernet.checkpoints import layout
from aethernet.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from aethernet.checkpoints.folded import fold
from aethernet.checkpoints.reference import erf, evaluate
from aethernet.errors import AetherError, CheckpointError

SIZES = [(1, 1), (1, 7), (3, 1), (2, 2), (13, 17)]
GOLDEN = ("x1", "x2", "x3", "x4", "x8", "x4_gray", "x2_odd_mlp", "x2_range255")


def arrays(network):
    return {key: value.numpy() for key, value in network.state_dict().items()}


def on_meta(**arguments):
    with torch.device("meta"):
        return AetherNet(**arguments)


class TestFolding:
    @pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"in_chans": 1, "img_range": 255.0},
            {"mlp_ratio": 2.6, "lk_kernel": 9, "sk_kernel": 5, "depths": (1,)},
        ],
    )
    def test_is_exact_in_float64_on_every_size(self, scale, arguments):
        for network in both_forms(scale=scale, **arguments):
            network.double()
            folded = fold(arrays(network), network.img_range, np.float64)
            for size in SIZES:
                image = random_image(2, network.in_chans, *size).double()
                with torch.inference_mode():
                    expected = network(image).numpy()
                error = np.abs(evaluate(folded, image.numpy()) - expected).max()
                assert error <= 1e-12 * np.abs(expected).max(), size

    @pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
    def test_is_float32_rounding_away_in_float32(self, scale):
        network = lively_network(scale=scale)
        folded = fold(arrays(network))
        for size in SIZES:
            image = random_image(2, 3, *size)
            output = evaluate(folded, image.numpy())
            with torch.inference_mode():
                expected = network.double()(image.double()).numpy()
            network.float()
            assert output.dtype == np.float32
            np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)

    def test_the_shipped_model(self):
        folded = load_checkpoint(SHIPPED_MODEL).folded
        image = random_image(1, 3, 16, 24)
        with torch.inference_mode():
            expected = load_checkpoint(SHIPPED_MODEL).build()(image).numpy()
        error = np.abs(evaluate(folded, image.numpy()) - expected).max()
        assert error < 2e-6

    def test_is_immutable_and_does_not_touch_its_source(self):
        state_dict = arrays(lively_network(img_range=2.0))
        before = copy.deepcopy(state_dict)
        folded = fold(state_dict, 2.0)
        assert all(np.array_equal(before[key], state_dict[key]) for key in before)
        with pytest.raises(ValueError, match="read-only"):
            folded.blocks[0].gate.weight[0] = 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            folded.scale = 3
        state_dict["norm.weight"][:] = 7  # the folded network holds copies
        assert not (folded.norm_weight == 7).any()

    def test_another_network_is_refused(self):
        with pytest.raises(CheckpointError, match="conv_first"):
            fold({})

    def test_pictures_of_another_shape_are_refused(self):
        folded = fold(arrays(lively_network()))
        for shape in ((3, 4, 4), (1, 1, 4, 4), (1, 3, 0, 4)):
            with pytest.raises(AetherError, match="takes"):
                evaluate(folded, np.zeros(shape, np.float32))

    def test_nan_and_infinity_are_kept(self):
        folded = fold(arrays(lively_network()))
        image = np.zeros((1, 3, 6, 6), np.float32)
        image[0, 0, 2, 2] = np.nan
        assert np.isnan(evaluate(folded, image)).any()


class TestGoldenVectors:
    @pytest.mark.parametrize("name", ["x1", "x2"])
    def test_of_this_repository(self, name):
        self.check(ROOT / f"tests/golden/{name}.safetensors", 1.0)

    @pytest.mark.parametrize("name", GOLDEN)
    def test_of_the_shared_folder(self, name, shared):
        img_range = 255.0 if name == "x2_range255" else 1.0
        self.check(shared / f"golden/{name}.safetensors", img_range)

    @staticmethod
    def check(path, img_range):
        vectors = load_file(path)
        for prefix, output in (("w.", "output"), ("fused.", "output_fused")):
            state_dict = {
                key.removeprefix(prefix): value
                for key, value in vectors.items()
                if key.startswith(prefix)
            }
            result = evaluate(fold(state_dict, img_range), vectors["input"])
            assert np.abs(result - vectors[output]).max() <= 1e-5


class TestErf:
    def test_float32_is_within_its_bound(self):
        x = np.linspace(-7, 7, 20001, dtype=np.float32)
        exact = np.array([math.erf(value) for value in x.tolist()])
        assert np.abs(erf(x) - exact).max() < 4.2e-7
        assert np.isnan(erf(np.float32([np.nan]))).all()

    def test_float64_is_exact(self):
        x = np.linspace(-7, 7, 101)
        assert erf(x).tolist() == [math.erf(value) for value in x]


class TestLayout:
    def test_tables_are_those_of_the_network(self):
        assert layout.VARIANTS == VARIANTS
        assert layout.UPSAMPLE_FACTORS == UPSAMPLE_FACTORS

    @pytest.mark.parametrize("scale", UPSAMPLE_FACTORS)
    def test_the_receptive_radius_is_that_of_the_network(self, scale):
        for arguments in ({"depths": (3, 1)}, {"lk_kernel": 13, "depths": (2,)}):
            network = lively_network(scale=scale, **arguments)
            expected = network.receptive_radius
            assert layout.receptive_radius(network.hyperparameters) == expected

    @pytest.mark.parametrize(
        "wrong",
        [
            {"in_chans": 0},
            {"embed_dim": -1},
            {"mlp_ratio": 0.01},
            {"mlp_ratio": math.inf},
            {"depths": ()},
            {"depths": (2, 0)},
            {"lk_kernel": 6},
            {"sk_kernel": 2},
            {"sk_kernel": 9},
            {"scale": 5},
            {"img_range": 0.0},
            {"img_range": math.inf},
        ],
    )
    def test_impossible_arguments_are_those_of_the_network(self, wrong):
        right = lively_network().hyperparameters
        layout.check_arguments(right)
        with pytest.raises(ValueError, match="AetherNet"):
            AetherNet(**{**right, **wrong})
        with pytest.raises((ValueError, OverflowError)):
            layout.check_arguments({**right, **wrong})

    @pytest.mark.parametrize("fused", [False, True])
    @pytest.mark.parametrize(
        "arguments",
        [
            *({"scale": scale} for scale in (1, 2, 3, 4, 8)),
            *({**variant, "scale": 3} for variant in VARIANTS.values()),
            {"in_chans": 1},
            {"in_chans": 4, "embed_dim": 1, "mlp_ratio": 1.0},
            {"embed_dim": 96, "mlp_ratio": 191 / 96},
            {"embed_dim": 49, "mlp_ratio": 1.0},
            {"embed_dim": 180, "mlp_ratio": 2.5},
            {"mlp_ratio": 0.1},
            {"lk_kernel": 1, "sk_kernel": 1},
            {"lk_kernel": 17, "sk_kernel": 17},
            {"lk_kernel": 21, "sk_kernel": 5},
            {"depths": (1,) * 12},
            {"depths": (12, 1)},
        ],
    )
    def test_deduction_is_that_of_the_network(self, arguments, fused):
        tiny = {"embed_dim": 12, "depths": (1, 2), "lk_kernel": 7, "scale": 2}
        network = on_meta(**{**tiny, **arguments}, fused_init=fused)
        state_dict = network.state_dict()
        shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
        found = layout.hyperparameters_from_shapes(shapes)
        assert found == hyperparameters_from_state_dict(state_dict)
        assert list(layout.expected_shapes(found).items()) == list(shapes.items())

    def test_every_hidden_width_is_found(self):
        for dim in (7, 49, 96, 180):
            for hidden in range(1, 500):
                arguments = {
                    "in_chans": 3,
                    "embed_dim": dim,
                    "depths": (1,),
                    "mlp_ratio": 1.0,
                    "lk_kernel": 3,
                    "sk_kernel": 3,
                    "scale": 1,
                    "fused_init": True,
                }
                shapes = layout.expected_shapes(arguments)
                for key, shape in shapes.items():
                    if ".fc1_" in key:
                        shapes[key] = (hidden, *shape[1:])
                    elif key.endswith(".fc2.weight"):
                        shapes[key] = (dim, hidden)
                layout.hyperparameters_from_shapes(shapes)

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d.clear(),
            lambda d: d.pop("norm.bias"),
            lambda d: d.pop("layers.0.0.ffn.fc2.weight"),
            lambda d: d.update({"body.0.weight": (3,)}),
            lambda d: d.update({"norm.weight": (5,)}),
            lambda d: d.update({"upsample.0.weight": (1024, 64, 3, 3)}),
            lambda d: d.update({"layers.0.0.conv.lk_conv.weight": (12, 1, 6, 6)}),
            lambda d: d.update({"layers.1.1.conv.fused_conv.weight": (12, 1, 7, 7)}),
            lambda d: d.update({"layers.999.999.norm.weight": (12,)}),
            lambda d: d.update({"layers.0.77.norm.weight": (12,)}),
            lambda d: [d.pop(k) for k in [*d] if k.startswith("layers.1.0.")],
            lambda d: [d.pop(k) for k in [*d] if k.startswith("layers.0.")],
        ],
    )
    def test_errors_are_those_of_the_network(self, change):
        state_dict = lively_network().state_dict()
        shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
        change(shapes)
        tensors = {k: torch.empty(s, device="meta") for k, s in shapes.items()}
        with pytest.raises(ValueError, match="Not an AetherNet") as expected:
            hyperparameters_from_state_dict(tensors)
        with pytest.raises(CheckpointError) as error:
            layout.hyperparameters_from_shapes(shapes)
        assert error.value.reason == str(expected.value)


class TestReading:
    def test_both_formats_hold_the_same(self, tmp_path):
        for network in both_forms(sk_kernel=5, img_range=255.0, drop_rate=0.1):
            path = tmp_path / "model.safetensors"
            save_checkpoint(network, path)
            save_checkpoint(network, tmp_path / "model.pth")
            found, other = (
                load_checkpoint(path),
                load_checkpoint(tmp_path / "model.pth"),
            )
            assert found.hyperparameters == other.hyperparameters
            assert found.metadata == {**other.metadata, "format": "pt"}
            assert found.dtype == other.dtype == "float32"
            for key, value in network.state_dict().items():
                assert np.array_equal(found.state_dict[key], value.numpy()), key
                assert np.array_equal(other.state_dict[key], value.numpy()), key

    @pytest.mark.parametrize(
        "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    )
    def test_reads_every_floating_point_type(self, tmp_path, dtype):
        state_dict = lively_network().to(dtype).state_dict()
        save_file(state_dict, tmp_path / "model.safetensors")
        found = load_checkpoint(tmp_path / "model.safetensors")
        assert found.dtype == str(dtype).removeprefix("torch.")
        for key, value in state_dict.items():
            assert np.array_equal(found.state_dict[key], value.double().numpy()), key

    def test_prefixes_and_counters_of_trainers_are_dropped(self, tmp_path):
        state_dict = lively_network().state_dict()
        wrapped = {f"module._orig_mod.{key}": v for key, v in state_dict.items()}
        wrapped["module.n_averaged"] = torch.tensor(3)
        save_file(wrapped, tmp_path / "model.safetensors")
        assert load_checkpoint(tmp_path / "model.safetensors").state_dict.keys() == set(
            state_dict
        )

    def test_img_range_of_the_metadata_is_folded(self, tmp_path):
        network = lively_network(img_range=255.0)
        save_checkpoint(network, tmp_path / "model.safetensors")
        image = random_image(1, 3, 5, 6)
        with torch.inference_mode():
            expected = network(image).numpy()
        output = evaluate(
            load_checkpoint(tmp_path / "model.safetensors").folded, image.numpy()
        )
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        "told",
        [
            {"img_range": 0},
            {"img_range": "wide"},
            {"img_range": float("inf")},
            {"drop_rate": 1.5},
            {"drop_path_rate": -1},
        ],
    )
    def test_impossible_metadata_is_an_error(self, tmp_path, told):
        metadata = {"hyperparameters": json.dumps(told)}
        state_dict = lively_network().state_dict()
        save_file(state_dict, tmp_path / "model.safetensors", metadata)
        with pytest.raises(CheckpointError, match=r"metadata is damaged"):
            load_checkpoint(tmp_path / "model.safetensors")

    def test_weights_that_are_not_finite_or_not_float_are_errors(self, tmp_path):
        path = tmp_path / "model.safetensors"
        state_dict = lively_network().state_dict()
        save_file({**state_dict, "norm.bias": torch.full((12,), math.nan)}, path)
        with pytest.raises(CheckpointError, match=r"norm\.bias.*NaN"):
            load_checkpoint(path)
        save_file({**state_dict, "norm.bias": torch.ones(12, dtype=torch.int8)}, path)
        with pytest.raises(CheckpointError, match=r"norm\.bias.*int8"):
            load_checkpoint(path)

    def test_other_files_are_errors(self, tmp_path):
        (tmp_path / "a.safetensors").write_bytes(b"no such thing")
        (tmp_path / "empty.safetensors").write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"Not a \.safetensors file"):
            load_checkpoint(tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match="empty"):
            load_checkpoint(tmp_path / "empty.safetensors")
        with pytest.raises(AetherError, match="no such file"):
            load_checkpoint(tmp_path / "b.safetensors")


def test_no_module_of_it_imports_torch():
    code = (
        "import sys; import aethernet.checkpoints.reference, "
        "aethernet.checkpoints.onnx_graph, aethernet.checkpoints.ncnn; "
        "sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
