"""The copies in the framework folders are the network, and the frameworks build it."""

import functools
import inspect
import shutil

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from frameworks import import_file, load_neosr, load_trainner
from helpers import ROOT, lively_network, random_image, run

from aethernet import aether_core

SPANDREL_FILE = ROOT / "spandrel/architectures/AetherNet/__arch/aether_core.py"
NAMES = ("aether", "aether_small", "aether_medium", "aether_large")
LOADERS = {
    "neosr": lambda: load_neosr().module,
    "traiNNer-redux": lambda: load_trainner().module,
    "spandrel": lambda: import_file(SPANDREL_FILE, "spandrel_aether_core"),
}


@pytest.fixture(scope="module", params=LOADERS)
def copied(request):
    return LOADERS[request.param]()


def public_and_private(module):
    """Classes and functions a module defines itself."""
    return {
        name: thing
        for name, thing in vars(module).items()
        if (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == module.__name__
    }


def signatures(thing):
    """As text: annotations name classes, which each copy has its own of."""
    functions = {"": thing}
    if inspect.isclass(thing):
        functions = dict(inspect.getmembers(thing, inspect.isfunction))
    return {
        name: str(inspect.signature(function)).replace(f"{thing.__module__}.", "")
        for name, function in functions.items()
    }


@functools.cache
def keys_and_shapes(module, variant, scale):
    """Of the training form, then of the fused form."""
    with torch.device("meta"):
        network = getattr(module, variant)(scale=scale)
    forms = [network.state_dict(), network.fuse().state_dict()]
    return [[(key, value.shape) for key, value in form.items()] for form in forms]


class TestParity:
    def test_same_source(self, copied):
        for name, thing in public_and_private(aether_core).items():
            assert inspect.getsource(getattr(copied, name)) == inspect.getsource(thing)

    def test_same_constants(self, copied):
        for name in ("VARIANTS", "UPSAMPLE_FACTORS", "UPSAMPLE_CHANNELS"):
            assert getattr(copied, name) == getattr(aether_core, name)

    def test_same_signatures(self, copied):
        for name, thing in public_and_private(aether_core).items():
            theirs = getattr(copied, name)
            assert signatures(theirs) == signatures(thing)

    # A scale changes the end of a network and a variant the rest.
    @pytest.mark.parametrize(
        ("variant", "scale"),
        [
            *(("aether_small", scale) for scale in (1, 2, 3, 4, 8)),
            *(("aether_medium", 4), ("aether_large", 2)),
        ],
    )
    def test_same_keys_and_shapes(self, copied, variant, scale):
        ours = keys_and_shapes(aether_core, variant, scale)
        assert keys_and_shapes(copied, variant, scale) == ours

    @pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
    def test_bit_identical_output_and_fusion(self, copied, scale):
        network = lively_network(scale=scale, sk_kernel=5)
        theirs = copied.AetherNet(**network.hyperparameters).eval()
        theirs.load_state_dict(network.state_dict(), strict=True)
        image = random_image(2, 3, 9, 7)
        assert torch.equal(theirs(image), network(image))
        network.fuse()
        theirs.fuse()
        for key, value in network.state_dict().items():
            assert torch.equal(theirs.state_dict()[key], value), key
        assert torch.equal(theirs(image), network(image))

    def test_same_derived_hyperparameters(self, copied):
        state_dict = lively_network(scale=4).state_dict()
        derive = aether_core.hyperparameters_from_state_dict
        assert copied.hyperparameters_from_state_dict(state_dict) == derive(state_dict)


class TestNeosr:
    def test_registers_our_names_without_a_command_line(self):
        assert set(load_neosr().registry.entries) == set(NAMES)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("scale", [1, 2, 3, 4])
    def test_scale_is_the_one_of_the_option_file(self, name, scale):
        framework = load_neosr(scale_of_option_file=scale)
        with torch.device("meta"):
            network = framework.build_network({"type": name})
        assert network.hyperparameters["scale"] == scale

    def test_explicit_scale_needs_no_option_file(self):
        network = load_neosr().build_network({"type": "aether_small", "scale": 2})
        assert network.hyperparameters["scale"] == 2

    def test_same_scale_twice_is_no_contradiction(self):
        network = load_neosr(2).build_network({"type": "aether_small", "scale": 2})
        assert network.hyperparameters["scale"] == 2

    def test_two_scales_are_an_error_that_names_both(self):
        with pytest.raises(ValueError, match=r"this run is 2, .* scale = 4\. Delete"):
            load_neosr(2).build_network({"type": "aether_small", "scale": 4})

    def test_no_scale_anywhere_is_an_error(self):
        with pytest.raises(ValueError, match="-opt"):
            load_neosr().build_network({"type": "aether_small"})

    def test_explicit_scale_zero_is_an_error_not_a_default(self):
        with pytest.raises(ValueError, match="scale"):
            load_neosr(4).build_network({"type": "aether_small", "scale": 0})

    def test_options_reach_the_network(self):
        options = {"type": "aether", "embed_dim": 16, "depths": [1, 2]}
        network = load_neosr(3).build_network(options)
        assert network.hyperparameters["depths"] == (1, 2)

    @pytest.mark.parametrize("name", NAMES)
    def test_unknown_keyword_is_an_error(self, name):
        with pytest.raises(TypeError, match="upscale"):
            load_neosr(4).build_network({"type": name, "upscale": 2})


class TestTrainnerRedux:
    def test_registers_our_names(self):
        assert set(load_trainner().registry.entries) == set(NAMES)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("scale", [1, 2, 3, 4])
    def test_takes_the_scale_keyword(self, name, scale):
        with torch.device("meta"):
            network = load_trainner().build_network({"type": name, "scale": scale})
        assert network.hyperparameters["scale"] == scale

    @pytest.mark.parametrize("name", NAMES)
    def test_unknown_keyword_is_an_error(self, name):
        with pytest.raises(TypeError, match="upscale"):
            load_trainner().build_network({"type": name, "scale": 2, "upscale": 2})


class TestSyncTool:
    @pytest.fixture
    def clone(self, tmp_path):
        for name in ("tools", "src", "neosr", "traiNNer-redux", "spandrel"):
            shutil.copytree(ROOT / name, tmp_path / name)
        return tmp_path

    def sync(self, clone, *flags):
        return run(clone / "tools/sync_core.py", *flags, cwd=clone)

    def test_copies_of_this_repository_are_fresh(self):
        done = run("tools/sync_core.py", "--check")
        assert done.returncode == 0, done.stdout

    def test_check_shows_what_is_stale_and_writes_nothing(self, clone):
        core = clone / "src/aethernet/aether_core.py"
        core.write_text(core.read_text("utf-8").replace("0.01", "0.02"), "utf-8")
        copies = [p for p in clone.rglob("*.py") if p != core]
        before = {path: path.read_bytes() for path in copies}
        done = self.sync(clone, "--check")
        assert done.returncode == 1
        assert done.stdout.count("+        self.conv_before_upsample") == 3, done.stdout
        assert "sync_core.py" in done.stderr
        assert before == {path: path.read_bytes() for path in copies}

    def test_writes_the_core_and_leaves_the_hand_written_parts(self, clone):
        core = clone / "src/aethernet/aether_core.py"
        core.write_text(core.read_text("utf-8").replace("0.01", "0.02"), "utf-8")
        arch = clone / "neosr/archs/aether_arch.py"
        head, tail = arch.read_text("utf-8").split("LeakyReLU(0.01)")
        assert self.sync(clone).returncode == 0
        assert arch.read_text("utf-8") == f"{head}LeakyReLU(0.02){tail}"
        assert self.sync(clone, "--check").returncode == 0

    def test_an_import_missing_in_a_header_is_an_error(self, clone):
        core = clone / "src/aethernet/aether_core.py"
        text = core.read_text("utf-8").replace(
            "import math\n", "import math\nimport os\n"
        )
        core.write_text(text, "utf-8")
        done = self.sync(clone)
        assert done.returncode == 1
        assert "import os" in done.stderr
