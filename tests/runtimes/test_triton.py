"""The Triton kernels: interpreted on a processor, and compiled where a GPU is."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from aethernet.aether_core import VARIANTS, AetherNet
from aethernet.checkpoints.rewrites import ProductBlock, fold_network
from aethernet.runtimes import pytorch
from aethernet.runtimes.pytorch import PyTorchRuntime

NO_TRITON = "Triton is missing (PyTorch for Linux brings it; pip install triton)"
NO_GPU = "needs an NVIDIA GPU, and PyTorch and Triton that can use it"
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason=NO_TRITON)
needs_gpu = pytest.mark.skipif(
    find_spec("triton") is None or not torch.cuda.is_available(), reason=NO_GPU
)


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    """Relative errors, from a process of its own that has Triton interpret."""
    script = Path(__file__).with_name("triton_errors.py")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False
    )
    if "only 0-dimensional arrays" in done.stderr:
        pytest.skip("this release of Triton cannot interpret with this one of NumPy")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
class TestInterpreted:
    def test_a_convolution_and_its_gradients_are_exact_in_float32(self, errors):
        found = {name: e for name, e in errors.items() if "convolution" in name}
        assert len(found) == 4
        assert max(max(each.values()) for each in found.values()) < 5e-7

    @pytest.mark.parametrize("case", ["training", "odd sizes, in evaluation"])
    def test_every_gradient_of_a_network_is_exact_in_float32(self, errors, case):
        blocks = [name for name in errors[case] if name.startswith("layers.")]
        assert len(blocks) in (12, 24)
        assert max(errors[case].values()) < 5e-6

    def test_a_folded_network_is_exact_in_float32(self, errors):
        assert errors["running"]["whole"] < 2e-6

    @pytest.mark.parametrize("channels", [8, 24, 60, 96, 128])
    def test_a_feed_forward_that_keeps_its_weights_is_right(self, errors, channels):
        found = errors[f"kept {channels}"]
        assert max(found["torch.float32"], found["torch.float32 with residual"]) < 1e-6
        assert max(found["torch.float16"], found["torch.float16 with residual"]) < 1e-3

    def test_places_beyond_32_bits_are_left_to_the_other_kernel(self):
        from aethernet.runtimes.triton.feed_forward import kept_programs, projections

        weights = [torch.zeros(size) for size in ((192, 96), (192,))] * 2
        weights += [torch.zeros(96, 192), torch.zeros(96)]
        packed = projections(*weights, torch.float16)
        for side, kept in ((4700, True), (4800, False)):
            u = torch.empty(1, 96, side, side, dtype=torch.float16, device="meta")
            assert bool(kept_programs(packed, u)) is kept

    def test_the_proof_tells_what_serves(self, errors):
        assert errors["running"]["float16"] < 0.002
        assert errors["running"]["kernel too large"] == float("inf")


@needs_triton
class TestCompiled:
    @pytest.mark.parametrize(
        "variant",
        [
            "aether_small",
            pytest.param("aether_medium", marks=pytest.mark.slow),
            pytest.param("aether_large", marks=pytest.mark.slow),
        ],
    )
    def test_the_kernels_compile_for_an_h100_and_fit_it(self, variant):
        script = Path(__file__).with_name("triton_compiled.py")
        done = subprocess.run(
            [sys.executable, script, variant],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        shared = json.loads(done.stdout)
        assert len(shared) == (5 if variant == "aether_large" else 6)
        assert max(shared.values()) <= 227 * 1024


class TestChoice:
    @staticmethod
    def choose(monkeypatch, error: object) -> tuple[object, str]:
        from aethernet.runtimes.triton import block

        def run_error(*_: object) -> float:
            if isinstance(error, Exception):
                raise error
            return error

        monkeypatch.setattr(block, "run_error", run_error)
        folded = fold_network(AetherNet(embed_dim=8, depths=(1,), lk_kernel=3))
        return pytorch.fastest_block(folded, "float16", torch.device("cuda"))

    @needs_triton
    def test_kernels_that_prove_right_are_used_and_named(self, monkeypatch):
        chosen, note = self.choose(monkeypatch, 0.001)
        assert chosen.__name__ == "TritonBlock"
        assert note == "PyTorch and Triton"

    @needs_triton
    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (0.5, "off by 0.5"),
            (float("nan"), "off by nan"),
            (KeyError("x"), "KeyError"),
        ],
    )
    def test_kernels_that_do_not_are_left_out_with_a_reason(
        self, monkeypatch, error, reason
    ):
        chosen, note = self.choose(monkeypatch, error)
        assert chosen is ProductBlock
        assert reason in note

    def test_without_triton_pytorch_computes_the_blocks(self, monkeypatch):
        monkeypatch.setattr(pytorch, "find_spec", lambda _: None)
        folded = fold_network(AetherNet(embed_dim=8, depths=(1,), lk_kernel=3))
        chosen, note = pytorch.fastest_block(folded, "float16", torch.device("cuda"))
        assert (chosen, note) == (ProductBlock, "PyTorch")


@needs_gpu
class TestOnAGpu:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_gradients_of_every_variant_are_right_in_bfloat16(self, variant):
        from aethernet.runtimes.triton.block import MOST_ERROR, training_error

        size = VARIANTS[variant]
        error = training_error(size["embed_dim"], size["lk_kernel"], size["mlp_ratio"])
        assert 0 < error < MOST_ERROR / 2

    @pytest.mark.parametrize("precision", ["float16", "bfloat16"])
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_the_runtime_uses_them_and_is_right(self, variant, precision):
        torch.manual_seed(0)
        folded = fold_network(AetherNet(**VARIANTS[variant], scale=2))
        runtime = PyTorchRuntime(folded, torch.device("cuda"), precision)
        assert runtime.describe().runtime == "PyTorch and Triton"
        image = torch.rand(1, 3, 37, 53).numpy()
        exact = PyTorchRuntime(folded, torch.device("cuda"))
        found = torch.tensor(runtime.run(image) - exact.run(image))
        assert float(found.abs().max()) < (0.01 if precision == "float16" else 0.05)

    def test_a_step_in_a_cuda_graph_has_the_same_gradients(self):
        from aethernet.runtimes.triton.block import accelerate

        torch.manual_seed(0)
        network = AetherNet(
            embed_dim=32, depths=(2,), lk_kernel=7, scale=2, drop_path_rate=0.0
        )
        network = network.cuda().train()
        image = torch.rand(2, 3, 16, 24, device="cuda")

        def gradients() -> list[torch.Tensor]:
            network.zero_grad()
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                output = network(image)
            output.float().square().sum().backward()
            return [parameter.grad.clone() for parameter in network.parameters()]

        plain = gradients()
        accelerate(network)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            torch.cuda.make_graphed_callables(network, (image,))
        for before, after in zip(plain, gradients(), strict=True):
            assert float((after - before).norm() / before.norm()) < 0.05
