"""What training/train.py does on a GPU, as far as that goes without one."""

import dataclasses
import os
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

import train
import trainer
from helpers import SAMPLE
from PIL import Image

from aethernet.aether_core import VARIANTS
from aethernet.errors import AetherError
from aethernet.pictures.training_crops import TrainingCrops

TINY = {"embed_dim": 12, "depths": (1, 1), "mlp_ratio": 2.0, "lk_kernel": 5}


@pytest.fixture
def tiny(monkeypatch):
    """The variant small, made small enough for a test."""
    monkeypatch.setitem(VARIANTS, "aether_small", {**TINY, "sk_kernel": 3})


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that take their steps anew, since there is no GPU that records them."""

    def record_graph(step, device):
        assert device.type == "cpu"
        for _ in range(3):
            step()
        result = step().clone()
        return lambda: result.copy_(step()), result

    monkeypatch.setattr(trainer, "record_graph", record_graph)


@pytest.mark.usefixtures("tiny", "graphs")
class TestGraphs:
    RECIPE = trainer.Recipe(
        variant="small", scale=2, iterations=20, batch=2, crop=8, optimizer="muon",
        rate=1e-3, warm_up=2, ema=0.9, drop_path=0.0, seed=0, precision="float32",
        start="", photographs="", val="",
    )  # fmt: skip

    def trained(self, graphed, folder=None):
        """After eight steps; with a folder the last four are of a new process."""
        random = np.random.default_rng(0)
        made = trainer.Trainer(self.RECIPE, {}, torch.device("cpu"))
        made.graphed, losses = graphed, []
        for number in range(8):
            if folder and number == 4:
                made.save(folder)
                made = trainer.Trainer(self.RECIPE, {}, torch.device("cpu"))
                made.graphed = graphed
                made.restore(folder / "state.pt")
            lr = torch.tensor(random.random((2, 3, 8, 8), np.float32))
            hr = torch.tensor(random.random((2, 3, 16, 16), np.float32))
            losses.append(float(made.step(lr, hr)))
        return made, losses

    @pytest.mark.parametrize("resumed", [False, True])
    def test_a_step_is_that_without(self, tmp_path, resumed):
        plain, losses = self.trained(graphed=False)
        graphed, others = self.trained(True, tmp_path if resumed else None)
        np.testing.assert_allclose(others, losses, rtol=1e-5)
        assert graphed.average.n_averaged == plain.average.n_averaged == 8
        for one, other in (
            (plain.network, graphed.network),
            (plain.average.module, graphed.average.module),
        ):
            for weight, same in zip(one.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(same, weight, rtol=1e-4, atol=1e-6)


@pytest.fixture
def own_children():
    """Take back PyTorch's handler of ended processes, which stays installed.

    A later child would run it on a signal stack that other libraries free meanwhile.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


class TestCuttingCrops:
    @pytest.mark.skipif(sys.platform != "linux", reason="processes are for Linux")
    @pytest.mark.usefixtures("own_children")
    @pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # without a GPU
    def test_processes_cut_the_same_crops_as_a_thread(self, tmp_path, monkeypatch):
        for number in range(2):
            part = (30 * number, 40, 30 * number + 80, 110)
            Image.open(SAMPLE).crop(part).save(tmp_path / f"{number}.png")
        crops = TrainingCrops(sorted(tmp_path.iterdir()), 2)
        recipe = dataclasses.replace(TestGraphs.RECIPE, iterations=6)
        monkeypatch.setattr(os, "cpu_count", lambda: 3)

        def cut(device, first=0):
            made = SimpleNamespace(
                recipe=recipe, iteration=first, device=torch.device(device)
            )
            with train.batches(crops, made) as found:
                return [(lr.clone(), hr.clone()) for lr, hr in found]

        by_thread, by_processes = cut("cpu"), cut("cuda")
        assert len(by_thread) == len(by_processes) == 6
        found = zip(by_thread, by_processes, strict=True)
        resumed = zip(by_thread[4:], cut("cuda", 4), strict=True)
        for one, other in (*found, *resumed):
            assert all(map(torch.equal, one, other))

    @pytest.mark.parametrize(
        ("flags", "reason"),
        [
            ({"device": "cpu"}, "need an NVIDIA GPU"),
            ({"device": "cuda", "drop_path": 0.1}, "no stochastic depth"),
        ],
    )
    def test_kernels_that_cannot_serve_are_an_error_if_asked_for(self, flags, reason):
        device = torch.device(flags.pop("device"))
        recipe = dataclasses.replace(TestGraphs.RECIPE, precision="bfloat16", **flags)
        with pytest.raises(AetherError, match=reason):
            train.kernels_serve("triton", recipe, device)
        assert not train.kernels_serve("auto", recipe, device)
        assert not train.kernels_serve("pytorch", recipe, device)

    def test_a_compiler_that_fails_leaves_the_blocks_to_pytorch(
        self, monkeypatch, capsys
    ):
        block = pytest.importorskip(
            "aethernet.runtimes.triton.block", reason="needs Triton"
        )

        def fail(*_):
            raise OSError("no C compiler")

        monkeypatch.setattr(block, "training_error", fail)
        recipe = dataclasses.replace(TestGraphs.RECIPE, precision="bfloat16")
        assert not train.kernels_serve("auto", recipe, torch.device("cuda"))
        assert "Triton failed: OSError" in capsys.readouterr().out
