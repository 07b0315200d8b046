"""The adapter in the installed spandrel: plain ModelLoader, real files."""

import inspect
import itertools
import shutil
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import ROOT, SHIPPED_MODEL, lively_network, random_image, spandrel_of

from aethernet.aether_core import VARIANTS
from aethernet.checkpoints.checkpoint import save_checkpoint

spandrel = pytest.importorskip(
    "spandrel", reason="needs spandrel: pip install -e '.[spandrel]'"
)
import spandrel_aethernet

FOLDER = ROOT / "spandrel/architectures/AetherNet"
ODD = (
    {"scale": 1, "in_chans": 1},
    {"scale": 2, "in_chans": 4},
    {"scale": 3, "in_chans": 1, "embed_dim": 24},
    {"scale": 4, "lk_kernel": 13, "sk_kernel": 5},
    {"scale": 8, "lk_kernel": 3, "sk_kernel": 3},
    {"scale": 1, "lk_kernel": 1, "sk_kernel": 1},
    {"scale": 2, "lk_kernel": 21, "sk_kernel": 1},
    {"scale": 3, "depths": (1,)},
    {"scale": 4, "depths": (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)},
    {"scale": 8, "depths": (11,), "in_chans": 1},
    {"scale": 2, "mlp_ratio": 0.25},
    {"scale": 2, "embed_dim": 49, "mlp_ratio": 1 / 7},
    {"scale": 1, "embed_dim": 180, "depths": (1,), "mlp_ratio": 2.5},
)


@pytest.fixture(autouse=True, scope="module")
def installed():
    spandrel_aethernet.install(ignore_duplicates=True)


def load(network, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    save_checkpoint(network, path)
    return spandrel.ModelLoader().load_from_file(path)


def check_loaded(descriptor, network):
    arguments = network.hyperparameters
    assert isinstance(descriptor, spandrel.ImageModelDescriptor)
    assert descriptor.architecture.id == "AetherNet"
    assert descriptor.scale == arguments["scale"]
    assert descriptor.input_channels == arguments["in_chans"]
    assert descriptor.output_channels == arguments["in_chans"]
    assert descriptor.purpose == ("Restoration" if arguments["scale"] == 1 else "SR")
    assert descriptor.model.is_fused is network.is_fused
    assert descriptor.size_requirements.none
    assert ("fused" if network.is_fused else "training") in descriptor.tags
    image = random_image(1, arguments["in_chans"], 9, 7)
    with torch.inference_mode():
        expected = network(image)
        assert torch.equal(descriptor.model.eval()(image), expected)
        # Called as spandrel's users do: clamped to 0..1.
        assert torch.equal(descriptor(image), expected.clamp(0, 1))


# Sizes and scales are found in different weights: the smallest has every scale.
@pytest.mark.parametrize(
    ("variant", "scale"),
    [
        *(("aether_small", scale) for scale in (1, 2, 3, 4, 8)),
        *(("aether_medium", 4), ("aether_large", 2)),
    ],
)
def test_variants_of_every_scale_and_form(tmp_path, variant, scale):
    network = lively_network(**VARIANTS[variant], scale=scale)
    # Each format meets every variant, scale and form of the other half.
    suffixes = (".pth", ".safetensors")
    for suffix in suffixes if scale % 2 else reversed(suffixes):
        descriptor = load(network, tmp_path, suffix)
        check_loaded(descriptor, network)
        assert descriptor.tags[0] == variant.removeprefix("aether_")
        network.fuse()


@pytest.mark.parametrize(("fused", "suffix"), [(False, ".pth"), (True, ".safetensors")])
@pytest.mark.parametrize("arguments", ODD)
def test_odd_configurations(tmp_path, arguments, fused, suffix):
    network = lively_network(**arguments)
    if fused:
        network.fuse()
    descriptor = load(network, tmp_path, suffix)
    check_loaded(descriptor, network)
    lk, sk = (network.hyperparameters[k] for k in ("lk_kernel", "sk_kernel"))
    blocks = sum(network.hyperparameters["depths"])
    width = network.hyperparameters["embed_dim"]
    wanted = [f"{width}dim", f"{blocks}nb", f"{lk}lk"] + [f"{sk}sk"] * (not fused)
    assert [
        tag for tag in descriptor.tags if tag not in ("fused", "training")
    ] == wanted


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    # Largest error on values around 1, as in test_core.
    ("dtype", "limit"),
    [(torch.float16, 0.02), (torch.bfloat16, 0.15)],
)
def test_half_and_bfloat16_are_supported_as_stated(tmp_path, dtype, limit, fused):
    network = lively_network()
    if fused:
        network.fuse()
    image = random_image(1, 3, 17, 16)
    expected = network(image).clamp(0, 1)
    descriptor = load(network, tmp_path, ".safetensors").to(dtype=dtype)
    output = descriptor(image.to(dtype))
    assert output.dtype == dtype
    assert (output.float() - expected).abs().max() < limit


def test_the_shipped_model_loads():
    descriptor = spandrel.ModelLoader().load_from_file(SHIPPED_MODEL)
    assert (descriptor.scale, descriptor.tags[:2]) == (2, ["small", "fused"])


def test_training_checkpoint_loads_its_moving_average(demo_checkpoint):
    descriptor = spandrel.ModelLoader().load_from_file(demo_checkpoint)
    content = torch.load(demo_checkpoint, weights_only=True)
    loaded = descriptor.model.state_dict()
    for key, value in content["params_ema"].items():
        assert torch.equal(loaded[key], value)


def test_a_second_install_is_an_error_unless_ignored():
    with pytest.raises(spandrel.DuplicateArchitectureError):
        spandrel_aethernet.install()
    assert spandrel_aethernet.install(ignore_duplicates=True) == []


def others():
    return [a for a in spandrel.MAIN_REGISTRY if a.architecture.id != "AetherNet"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_no_other_architecture_is_detected_for_ours(scale, fused):
    network = lively_network(scale=scale, fused_init=fused)
    state_dict = spandrel.canonicalize_state_dict(network.state_dict())
    assert [a.architecture.id for a in others() if a.detect(dict(state_dict))] == []


def default_networks():
    """A network of each of spandrel's architectures that builds with its defaults."""
    for support in others():
        module = sys.modules[type(support.architecture).__module__]
        classes = [
            thing
            for name, thing in vars(module).items()
            if inspect.isclass(thing)
            and issubclass(thing, torch.nn.Module)
            and name in module.__all__
        ]
        for cls, arguments in itertools.product(classes, ({}, {"scale": 2})):
            try:
                with torch.device("meta"):
                    network = cls(**arguments)
            except (TypeError, RuntimeError, AttributeError):
                continue  # needs arguments of its own, or real tensors
            yield support, network
            break


def test_ours_is_not_detected_for_the_others():
    ours = spandrel.MAIN_REGISTRY["AetherNet"]
    built = set()
    for support, network in default_networks():
        built.add(support.architecture.id)
        assert not ours.detect(network.state_dict()), support.architecture.id
    # Of the 42 most build with their defaults; were it few, this test would say little.
    assert len(built) >= 20, sorted(built)


@pytest.mark.skipif(sys.platform == "win32", reason="links the installed packages")
def test_the_folder_works_copied_into_spandrel(tmp_path):
    """As a pull request would: the folder in place, one line in the registry."""
    source = spandrel.__path__[0]
    shutil.copytree(source, tmp_path / "spandrel")
    shutil.copytree(FOLDER, tmp_path / "spandrel/architectures/AetherNet")
    registry = tmp_path / "spandrel/__helpers/main_registry.py"
    text = registry.read_text("utf-8")
    text = text.replace("    ATD,\n", "    ATD,\n    AetherNet,\n", 1)
    entry = "    ArchSupport.from_architecture(AetherNet.AetherNetArch()),\n"
    head, brace, tail = text.rpartition(")")
    registry.write_text(f"{head}{entry}{brace}{tail}", "utf-8")
    with spandrel_of(tmp_path) as copy:
        descriptor = copy.ModelLoader().load_from_file(SHIPPED_MODEL)
    assert (descriptor.architecture.id, descriptor.scale) == ("AetherNet", 2)
    network = "spandrel.architectures.AetherNet.__arch.aether_core"
    assert type(descriptor.model).__module__ == network
