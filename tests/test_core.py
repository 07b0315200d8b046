import ast
import copy
import itertools
import re
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import ROOT, TINY, both_forms, lively_network, random_image
from torch.utils.flop_counter import FlopCounterMode

from aethernet.aether_core import (
    AetherNet,
    DropPath,
    aether_large,
    aether_medium,
    aether_small,
    hyperparameters_from_state_dict,
    variant_name,
)
from aethernet.checkpoints.info import multiply_adds_per_pixel

CORE = ROOT / "src/aethernet/aether_core.py"
VARIANTS = {
    "aether_small": aether_small,
    "aether_medium": aether_medium,
    "aether_large": aether_large,
}
# From the published description: parameters by (form, scale).
PARAMETERS = {
    "aether_small": {
        "training": {1: 1_241_251, 2: 1_388_963, 3: 1_573_603, 4: 1_536_675},
        "fused": {1: 1_225_891, 2: 1_373_603, 3: 1_558_243, 4: 1_521_315},
    },
    "aether_medium": {
        "training": {1: 4_406_403, 2: 4_554_115, 3: 4_738_755, 4: 4_701_827},
        "fused": {1: 4_360_323, 2: 4_508_035, 3: 4_692_675, 4: 4_655_747},
    },
    "aether_large": {
        "training": {1: 18_120_415, 2: 18_268_127, 3: 18_452_767, 4: 18_415_839},
        "fused": {1: 18_005_215, 2: 18_152_927, 3: 18_337_567, 4: 18_300_639},
    },
}


def on_meta(build, **arguments):
    with torch.device("meta"):
        return build(**arguments)


class TestFile:
    def test_is_one_short_file(self):
        assert len(CORE.read_text("utf-8").splitlines()) <= 330

    def test_imports_torch_and_the_standard_library_only(self):
        for node in ast.walk(ast.parse(CORE.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                root = name.split(".")[0]
                assert root == "torch" or root in sys.stdlib_module_names

    def test_is_python_3_10(self):
        ast.parse(CORE.read_text("utf-8"), feature_version=(3, 10))


class TestVariants:
    @pytest.mark.parametrize("name", VARIANTS)
    @pytest.mark.parametrize("scale", [1, 2, 3, 4])
    def test_have_the_published_number_of_parameters(self, name, scale):
        network = on_meta(VARIANTS[name], scale=scale)
        count = sum(p.numel() for p in network.parameters())
        assert count == PARAMETERS[name]["training"][scale]
        network.fuse()
        count = sum(p.numel() for p in network.parameters())
        assert count == PARAMETERS[name]["fused"][scale]

    @pytest.mark.parametrize("name", VARIANTS)
    def test_are_recognised_by_name_in_both_forms(self, name):
        network = on_meta(VARIANTS[name], scale=3, in_chans=1)
        assert variant_name(network.hyperparameters) == name
        derived = hyperparameters_from_state_dict(network.fuse().state_dict())
        assert variant_name(derived) == name

    def test_take_overrides_and_no_unknown_keyword(self):
        network = on_meta(aether_small, scale=3, lk_kernel=9)
        assert network.hyperparameters["lk_kernel"] == 9
        assert variant_name(network.hyperparameters) is None
        with pytest.raises(TypeError, match="upscale"):
            aether_small(upscale=2)
        with pytest.raises(TypeError, match="upscale"):
            AetherNet(upscale=2)


class TestHyperparameters:
    def test_are_stored_as_given(self):
        arguments = {
            "in_chans": 1,
            "embed_dim": 10,
            "depths": (2, 1),
            "mlp_ratio": 1.5,
            "drop_rate": 0.1,
            "drop_path_rate": 0.2,
            "lk_kernel": 9,
            "sk_kernel": 5,
            "scale": 3,
            "img_range": 255.0,
            "fused_init": True,
            "use_checkpoint": True,
        }
        assert AetherNet(**arguments).hyperparameters == arguments

    @pytest.mark.parametrize("fused", [False, True])
    def test_rebuild_the_network_before_and_after_fusing(self, fused):
        network = lively_network(scale=4, sk_kernel=5)
        if fused:
            network.fuse()
        again = AetherNet(**network.hyperparameters).eval()
        again.load_state_dict(network.state_dict(), strict=True)
        image = random_image(1, 3, 6, 5)
        assert torch.equal(again(image), network(image))

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            ({"lk_kernel": 10}, "odd"),
            ({"sk_kernel": 4}, "odd"),
            ({"sk_kernel": 9, "lk_kernel": 7}, "no larger"),
            ({"lk_kernel": -1, "sk_kernel": -1}, "odd"),
            ({"scale": 5}, "scale"),
            ({"scale": 0}, "scale"),
            ({"depths": ()}, "depths"),
            ({"depths": (2, 0)}, "depths"),
            ({"embed_dim": 0}, "embed_dim"),
            ({"in_chans": 0}, "in_chans"),
            ({"mlp_ratio": 0.01}, "mlp_ratio"),
            ({"drop_rate": 1.0}, "drop_rate"),
            ({"drop_path_rate": -0.1}, "drop_path_rate"),
            ({"mlp_ratio": float("inf")}, "mlp_ratio"),
            ({"mlp_ratio": float("nan")}, "mlp_ratio"),
            ({"img_range": 0}, "img_range"),
            ({"img_range": float("inf")}, "img_range"),
        ],
    )
    def test_impossible_ones_are_refused_with_a_sentence(self, arguments, word):
        with pytest.raises(ValueError, match=word):
            AetherNet(**{**TINY, **arguments})

    def test_drop_path_rises_from_zero_to_the_given_rate(self):
        network = AetherNet(**{**TINY, "depths": (2, 3)}, drop_path_rate=0.4)
        rates = [m.rate for m in network.modules() if isinstance(m, DropPath)]
        assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


class TestDerivedHyperparameters:
    @pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
    @pytest.mark.parametrize("fused", [False, True])
    def test_tell_the_scales_and_forms_apart(self, scale, fused):
        network = on_meta(AetherNet, **{**TINY, "scale": scale, "fused_init": fused})
        derived = hyperparameters_from_state_dict(network.state_dict())
        assert derived["scale"] == scale
        assert derived["fused_init"] is fused

    @pytest.mark.parametrize(
        "arguments",
        [
            {"in_chans": 1},
            {"in_chans": 4, "embed_dim": 1, "mlp_ratio": 1.0},
            {"lk_kernel": 1, "sk_kernel": 1},
            {"lk_kernel": 17, "sk_kernel": 17},
            {"lk_kernel": 21, "sk_kernel": 5},
            {"depths": (1,) * 12},
            {"depths": (12, 1)},
            {"embed_dim": 180, "mlp_ratio": 2.5, "depths": (1,)},
            {"mlp_ratio": 0.1},
        ],
    )
    @pytest.mark.parametrize("fused", [False, True])
    def test_take_the_state_dict_of_odd_configurations(self, arguments, fused):
        network = on_meta(AetherNet, **{**TINY, **arguments}, fused_init=fused)
        given = network.hyperparameters
        derived = hyperparameters_from_state_dict(network.state_dict())
        again = on_meta(AetherNet, **derived)
        again.load_state_dict(network.state_dict(), strict=True, assign=True)
        told = ["in_chans", "embed_dim", "depths", "lk_kernel", "scale"]
        told += [] if fused else ["sk_kernel"]
        assert {k: derived[k] for k in told} == {k: given[k] for k in told}

    def test_give_hidden_widths_that_rounding_would_miss(self):
        widths = itertools.product((7, 49, 96, 180), range(1, 500))
        missed = [(c, h) for c, h in widths if int(c * (h / c)) != h]
        assert missed, "the case this test is about has to exist"
        for dim, hidden in [*missed[:8], (96, 191), (10, 1)]:
            network = on_meta(AetherNet, embed_dim=dim, depths=(1,), scale=1)
            state_dict = {}
            for key, value in network.state_dict().items():
                shape = [*value.shape]
                if ".fc1_" in key:
                    shape[0] = hidden
                elif key.endswith(".fc2.weight"):
                    shape[1] = hidden
                state_dict[key] = torch.empty(shape, device="meta")
            again = on_meta(AetherNet, **hyperparameters_from_state_dict(state_dict))
            again.load_state_dict(state_dict, strict=True, assign=True)

    @pytest.mark.parametrize(
        ("change", "key"),
        [
            (lambda d: d.pop("norm.bias"), "norm.bias"),
            (lambda d: d.pop("layers.0.0.ffn.fc2.weight"), "layers.0.0.ffn.fc2.weight"),
            (lambda d: d.update({"body.0.weight": torch.zeros(3)}), "body.0.weight"),
            (lambda d: d.update({"norm.weight": torch.zeros(5)}), "norm.weight"),
            (lambda d: d.update({"norm.weight": "text"}), "norm.weight"),
            (lambda d: d.update({"n": torch.tensor(1)}), "'n'"),
            (
                lambda d: d.update({"upsample.0.weight": torch.zeros(1024, 64, 3, 3)}),
                "upsample.0.weight",
            ),
            (
                lambda d: d.update(
                    {"layers.0.0.conv.lk_conv.weight": torch.zeros(12, 1, 6, 6)}
                ),
                "layers.0.0.conv.lk_conv.weight",
            ),
        ],
    )
    def test_errors_name_the_offending_key(self, change, key):
        state_dict = dict(lively_network().state_dict())
        change(state_dict)
        with pytest.raises(ValueError, match=key):
            hyperparameters_from_state_dict(state_dict)

    def test_a_mix_of_both_forms_is_an_error_that_names_the_key(self):
        training, fused = both_forms()
        mixed = dict(training.state_dict())
        key = "layers.1.1.conv.fused_conv.weight"
        mixed[key] = fused.state_dict()[key]
        with pytest.raises(ValueError, match=key):
            hyperparameters_from_state_dict(mixed)

    @pytest.mark.parametrize("missing", ["layers.0.", "layers.1.0.", "layers.1."])
    @pytest.mark.parametrize("fused", [False, True])
    def test_a_gap_in_the_blocks_names_the_first_missing_key(self, missing, fused):
        network = lively_network(depths=(1, 2, 1), fused_init=fused)
        state_dict = network.state_dict()
        rest = {k: v for k, v in state_dict.items() if not k.startswith(missing)}
        first = next(key for key in state_dict if key.startswith(missing))
        shape = re.escape(str([*state_dict[first].shape]))
        with pytest.raises(
            ValueError, match=f"'{first}', expected {shape}, found no such key"
        ):
            hyperparameters_from_state_dict(rest)

    @pytest.mark.parametrize("index", ["5.0", "0.77", "999.999", "9" * 5000 + ".0"])
    def test_a_huge_index_builds_no_huge_network(self, index):
        state_dict = dict(lively_network().state_dict())
        state_dict[f"layers.{index}.norm.weight"] = torch.zeros(12)
        with pytest.raises(ValueError, match=r"layers\."):
            hyperparameters_from_state_dict(state_dict)

    def test_keys_that_are_no_text_are_named_too(self):
        with pytest.raises(ValueError, match="'3'"):
            hyperparameters_from_state_dict({**lively_network().state_dict(), 3: 1})

    def test_another_network_is_an_error_that_names_its_key(self):
        with pytest.raises(ValueError, match=r"model\.0\.weight"):
            hyperparameters_from_state_dict(
                {"model.0.weight": torch.zeros(64, 3, 3, 3)}
            )
        with pytest.raises(ValueError, match="conv_first"):
            hyperparameters_from_state_dict({})


class TestForward:
    @pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2), (12, 13)])
    def test_output_is_scale_times_as_large(self, scale, size):
        for network in both_forms(scale=scale):
            output = network(random_image(2, 3, *size))
            assert output.shape == (2, 3, size[0] * scale, size[1] * scale)

    @pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 4, 8, 8)])
    def test_a_wrong_shape_is_refused_with_a_sentence(self, shape):
        with pytest.raises(ValueError, match="AetherNet takes"):
            lively_network()(torch.zeros(shape))

    @pytest.mark.parametrize("sk_kernel", [1, 3, 7])
    @pytest.mark.parametrize("in_chans", [1, 3])
    def test_fusing_does_not_change_the_function(self, sk_kernel, in_chans):
        # In float64 nothing but rounding is left: 1e-12 on values around 1.
        network = lively_network(sk_kernel=sk_kernel, in_chans=in_chans).double()
        image = random_image(2, in_chans, 9, 11).double()
        before = network(image)
        assert (network.fuse()(image) - before).abs().max() < 1e-12

    def test_hooks_on_groups_and_blocks_fire(self):
        network = lively_network(depths=(1, 2))
        seen = []
        for group in network.layers:
            for module in (group, *group):
                module.register_forward_hook(lambda module, *_: seen.append(module))
        network(random_image(1, 3, 4, 4))
        assert len(seen) == 5

    def test_samples_of_a_batch_do_not_see_each_other(self):
        network = lively_network()
        batch = random_image(3, 3, 8, 9)
        alone = torch.cat([network(image.unsqueeze(0)) for image in batch])
        torch.testing.assert_close(network(batch), alone, rtol=0, atol=1e-5)

    def test_img_range_scales_inside_and_back(self):
        # A linear first and last layer make the range a matter of their weights.
        network = lively_network()
        scaled = lively_network(img_range=255.0)
        with torch.no_grad():
            scaled.conv_first.weight.div_(255)
            scaled.conv_last.weight.mul_(255)
            scaled.conv_last.bias.mul_(255)
        image = random_image(1, 3, 8, 8)
        torch.testing.assert_close(scaled(image), network(image), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
    def test_receptive_radius_is_exact(self, scale):
        network = lively_network(scale=scale, depths=(1,), lk_kernel=5).double()
        radius = network.receptive_radius
        size = 2 * radius + 5
        centre = radius + 2
        image = random_image(1, 3, size, size).double().requires_grad_()
        first = centre * scale
        # Every output pixel of the centre one; each alone may see less far.
        network(image)[
            0, :, first : first + scale, first : first + scale
        ].sum().backward()
        rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
        assert rows.min() == centre - radius
        assert rows.max() == centre + radius

    def test_drop_path_keeps_the_expectation_and_is_idle_in_evaluation(self):
        drop = DropPath(0.25)
        ones = torch.ones(4000, 1, 1, 1)
        torch.manual_seed(0)
        values = drop(ones)
        kept = values[values != 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.75))
        assert kept.numel() < values.numel()
        assert values.mean() == pytest.approx(1, abs=0.05)
        assert torch.equal(drop.eval()(ones), ones)

    def test_training_step_reaches_every_parameter(self):
        network = lively_network(drop_path_rate=0.0).train()
        network(random_image(2, 3, 8, 8)).square().mean().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


class TestFuse:
    def test_is_idempotent_and_returns_self(self):
        network = lively_network()
        assert not network.is_fused
        assert network.fuse() is network
        assert network.is_fused
        before = copy.deepcopy(network.state_dict())
        assert network.fuse() is network
        after = network.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)

    def test_leaves_the_random_state_alone(self):
        network = lively_network()
        torch.manual_seed(5)
        wanted = torch.rand(3)
        torch.manual_seed(5)
        network.fuse()
        assert torch.equal(torch.rand(3), wanted)

    def test_keeps_mode_and_frozen_weights(self):
        network = lively_network().eval().requires_grad_(False).fuse()
        assert not any(module.training for module in network.modules())
        assert not any(p.requires_grad for p in network.parameters())

    def test_keeps_dtype_and_a_fused_network_can_be_trained(self):
        network = lively_network().half().fuse()
        assert {p.dtype for p in network.parameters()} == {torch.float16}
        network = lively_network().fuse().train()
        network(random_image(1, 3, 8, 8)).sum().backward()
        assert all(p.grad is not None for p in network.parameters())

    def test_state_dict_holds_parameters_only(self):
        for network in both_forms():
            keys = set(network.state_dict())
            assert keys == {name for name, _ in network.named_parameters()}
            assert not list(network.buffers())


class TestPrecisionAndExport:
    @pytest.mark.parametrize("fused", [False, True])
    @pytest.mark.parametrize(
        # Largest error on values around 1: some roundings of 2^-11 and 2^-8 each.
        ("dtype", "limit"),
        [(torch.float16, 0.02), (torch.bfloat16, 0.15)],
    )
    def test_half_and_autocast_stay_close_to_float32(self, dtype, limit, fused):
        network = both_forms()[fused]
        image = random_image(1, 3, 16, 15)
        expected = network(image)
        with torch.autocast("cpu", dtype):
            assert (network(image).float() - expected).abs().max() < limit
        low = copy.deepcopy(network).to(dtype)
        output = low(image.to(dtype))
        assert output.dtype == dtype
        assert (output.float() - expected).abs().max() < limit

    def test_channels_last_gives_the_same(self):
        for network in both_forms():
            image = random_image(2, 3, 9, 8)
            expected = network(image)
            last = network.to(memory_format=torch.channels_last)
            output = last(image.to(memory_format=torch.channels_last))
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)

    def test_deepcopy_is_independent(self):
        network = lively_network()
        copied = copy.deepcopy(network)
        copied.fuse()
        assert not network.is_fused
        assert network.hyperparameters["fused_init"] is False

    @pytest.mark.parametrize("fused", [False, True])
    def test_exports_with_free_sizes_down_to_one_pixel(self, fused):
        network = both_forms(depths=(1,))[fused]
        dims = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
        program = torch.export.export(
            network, (random_image(2, 3, 9, 8),), dynamic_shapes=(dims,)
        )
        for shape in ((1, 3, 1, 1), (3, 3, 5, 17)):
            image = random_image(*shape)
            output = program.module()(image)
            torch.testing.assert_close(output, network(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_multiply_adds_are_those_that_torch_counts(scale):
    network = lively_network(scale=scale)
    with FlopCounterMode(display=False) as counter:
        network(random_image(1, 3, 10, 12))
    # torch counts a multiply-add as two operations.
    expected = 10 * 12 * 2 * multiply_adds_per_pixel(network.hyperparameters)
    assert counter.get_total_flops() == expected
