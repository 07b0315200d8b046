"""What training/train.py does on a GPU, as far as that goes without one."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

import train
import trainer
from helpers import SAMPLE
from PIL import Image

from aethernet.aether_core import VARIANTS
from aethernet.errors import AetherError

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


class TestCuttingCrops:
    @pytest.mark.skipif(sys.platform != "linux", reason="processes are for Linux")
    def test_processes_cut_the_same_crops_as_a_thread(self, tmp_path):
        """In a process of its own, as `train.py` is: it forks, and PyTorch listens for
        the end of children, while other tests have left threads of many libraries."""
        for number in range(2):
            part = (30 * number, 40, 30 * number + 80, 110)
            Image.open(SAMPLE).crop(part).save(tmp_path / f"{number}.png")
        driver = Path(__file__).with_name("cutting_driver.py")
        done = subprocess.run(
            [sys.executable, driver, *sorted(tmp_path.iterdir())],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "6 batches, the same by processes, also from the fifth\n"

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
