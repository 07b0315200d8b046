"""Training: stable, in every precision, and the same however it is run."""

import copy
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import ROOT, SAMPLE, SHARED, call_script, lively_network, random_image
from peak_memory import PeakMemory
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_step import convolve_twice

from aethernet import aether_core
from aethernet.aether_core import VARIANTS, AetherNet
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.files import files_in
from aethernet.pictures.files import SUFFIXES, read_picture
from aethernet.pictures.resampling import lr_pixels
from aethernet.pictures.training_crops import (
    TrainingCrops,
    degraded_pair,
    training_pair,
)
from aethernet.runtimes.registry import open_model

EXACT = {"rtol": 0, "atol": 1e-12}  # float64: what another order of sums leaves


def gradients(network, image, target=None):
    """Output, and every parameter's gradient of the L1 loss."""
    network.zero_grad()
    output = network(image)
    nn.functional.l1_loss(
        output, target if target is not None else 0 * output
    ).backward()
    return output.detach(), {k: p.grad.clone() for k, p in network.named_parameters()}


def assert_same(one, other, **tolerance):
    torch.testing.assert_close(one[0], other[0], **tolerance)
    assert one[1].keys() == other[1].keys()
    for key, gradient in one[1].items():
        torch.testing.assert_close(other[1][key], gradient, **tolerance)


class TestPairs:
    """benchmarks/lr_pairs.py, with which the documents make LR pictures."""

    def test_lr_is_the_reduction_papers_use(self, tmp_path, monkeypatch):
        with Image.open(SAMPLE) as sample:
            sample.crop((0, 0, 91, 70)).save(tmp_path / "photo.png")
        script = ROOT / "benchmarks/lr_pairs.py"
        words = (tmp_path, tmp_path / "out", "--scale", 3)
        assert call_script(monkeypatch, script, *words) == 0
        hr_path = tmp_path / "out/hr/photo.png"
        with Image.open(hr_path) as hr:
            assert hr.size == (90, 69)
            # Pillow rounds between its two passes, except for 32-bit pixels.
            wanted = [
                np.asarray(band.convert("F").resize((30, 23), Image.Resampling.BICUBIC))
                for band in hr.split()
            ]
        lr = read_picture(tmp_path / "out/lr/photo.png").pixels
        assert np.array_equal(lr, lr_pixels(read_picture(hr_path).pixels, 3))
        difference = np.abs(lr - np.stack(wanted, axis=2).clip(0, 255))
        # The rounding to 8 bits. At the border MATLAB mirrors, and Pillow leaves out.
        assert difference[2:-2, 2:-2].max() < 0.51

    def test_degraded_pairs_are_those_that_the_trainer_validates_on(
        self, tmp_path, monkeypatch
    ):
        with Image.open(SAMPLE) as sample:
            for name, left in (("a", 0), ("b", 60)):
                sample.crop((left, 0, left + 91, 70)).save(tmp_path / f"{name}.png")
        script = ROOT / "benchmarks/lr_pairs.py"
        lr = {}
        for kind in ("drawn", "jpeg"):
            words = (tmp_path, tmp_path / kind, "--degrade", kind)
            assert call_script(monkeypatch, script, *words) == 0
            lr[kind] = [
                read_picture(tmp_path / kind / "lr" / name).pixels
                for name in ("a.png", "b.png")
            ]
        for number, name in enumerate(("a.png", "b.png")):
            random = np.random.default_rng(number)
            _, hr = training_pair(tmp_path / name, 2)
            wanted, _ = degraded_pair(hr, 2, random, clean_share=0)
            assert np.array_equal(lr["drawn"][number], wanted.permute(1, 2, 0))
            clean = lr_pixels(hr.permute(1, 2, 0).numpy(), 2).astype(float)
            assert 0 < np.abs(lr["jpeg"][number] - clean).mean() < 10

    def test_a_missing_folder_is_one_sentence(self, tmp_path, monkeypatch, capsys):
        script = ROOT / "benchmarks/lr_pairs.py"
        words = (tmp_path / "none", tmp_path / "out")
        assert call_script(monkeypatch, script, *words) == 2
        assert capsys.readouterr().err.endswith("none is no folder\n")


class TestTrainingForm:
    """Adds its kernels, then convolves once."""

    @pytest.mark.parametrize("kernels", [(7, 3), (5, 5), (3, 1)])
    def test_has_function_and_gradients_of_two_convolutions(self, kernels):
        large, small = kernels
        network = lively_network(
            lk_kernel=large, sk_kernel=small, depths=(1, 1)
        ).double()
        twice = copy.deepcopy(network)
        for block in (block for group in twice.layers for block in group):
            conv = block.conv
            block.conv.forward = partial(convolve_twice, conv)
        image = random_image(2, 3, 9, 6).double()
        assert_same(gradients(network, image), gradients(twice, image), **EXACT)

    def test_trains_the_same_in_channels_last(self):
        network = lively_network(drop_path_rate=0.0).double().train()
        last = copy.deepcopy(network).to(memory_format=torch.channels_last)
        image = random_image(2, 3, 9, 6).double()
        image_last = image.to(memory_format=torch.channels_last)
        assert_same(gradients(network, image), gradients(last, image_last), **EXACT)


class TestCheckpointing:
    def test_changes_neither_output_nor_gradients(self):
        # Dropout and stochastic depth have to fall the same way the second time.
        arguments = {"drop_rate": 0.2, "drop_path_rate": 0.3}
        plain = lively_network(**arguments).double().train()
        again = AetherNet(**{**plain.hyperparameters, "use_checkpoint": True})
        again = again.double().train()
        again.load_state_dict(plain.state_dict(), strict=True)
        image = random_image(3, 3, 8, 7).double()
        results = []
        for network in (plain, again):
            torch.manual_seed(1)
            results.append(gradients(network, image))
        assert_same(*results, **EXACT)

    def test_large_keeps_less_than_a_fifth_in_training(self):
        peaks = []
        for again in (False, True):
            with torch.device("meta"):
                network = AetherNet(
                    **VARIANTS["aether_large"], scale=2, use_checkpoint=again
                )
            with PeakMemory() as memory:
                image = torch.rand(1, 3, 64, 64, device="meta")
                network(image).mean().backward()
            gradient_bytes = sum(4 * p.numel() for p in network.parameters())
            peaks.append(memory.peak - gradient_bytes)
        assert peaks[1] < 0.2 * peaks[0], peaks

    def test_is_idle_in_evaluation(self, monkeypatch):
        calls = []

        def counted(function, x, use_reentrant):
            calls.append(function)
            return function(x)

        monkeypatch.setattr(aether_core, "checkpoint", counted)
        network = lively_network(use_checkpoint=True, depths=(1, 2))
        network.eval()(random_image(1, 3, 8, 7))
        assert not calls
        network.train()(random_image(1, 3, 8, 7))
        assert len(calls) == 3


class TestMixedPrecision:
    STEPS = 120
    WARM_UP = 30

    @pytest.fixture(scope="class")
    @classmethod
    def crops(cls):
        photographs = SHARED / "data/train"
        if photographs.is_dir():
            return TrainingCrops(files_in(photographs, SUFFIXES, "pictures")[::24], 2)
        return TrainingCrops([SAMPLE], 2)

    @pytest.fixture(scope="class")
    @classmethod
    def float32(cls, crops):
        return cls.train(crops, None)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_loss_stays_within_three_per_cent_of_float32(self, crops, float32, dtype):
        losses = self.train(crops, dtype)
        last = slice(self.STEPS // 2, None)
        ratio = np.mean(losses[last]) / np.mean(float32[last])
        print(f"{dtype}: {ratio:.3f} of float32's loss")
        assert np.mean(float32[last]) < 0.6 * np.mean(float32[:10])  # it does learn
        assert ratio == pytest.approx(1, abs=0.03)

    @classmethod
    def train(cls, crops, dtype):
        """Losses of some steps as the frameworks take them; none may be NaN."""
        torch.manual_seed(0)
        network = AetherNet(
            embed_dim=16, depths=(1, 2), scale=2, lk_kernel=5, drop_path_rate=0.0
        )
        network = network.to(memory_format=torch.channels_last).train()
        # Low: docs/development/training-experiments.md has the results of higher rates.
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4)
        warm_up = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1 / cls.WARM_UP, total_iters=cls.WARM_UP
        )
        scaler = torch.amp.GradScaler(
            "cpu", init_scale=2.0**10, enabled=dtype == torch.float16
        )
        random = np.random.default_rng(0)
        losses = []
        for _ in range(cls.STEPS):
            lr, hr = crops.batch(2, 8, random)
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                output = network(lr)
            loss = nn.functional.l1_loss(output.float(), hr)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            assert torch.isfinite(norm) or scaler.is_enabled()  # the scaler skips those
            scaler.step(optimizer)
            scaler.update()
            warm_up.step()
            losses.append(loss.item())
        assert np.isfinite(losses).all()
        assert all(p.isfinite().all() for p in network.parameters())
        return losses


class TestExport:
    def test_training_form_goes_through_the_older_exporter(self, tmp_path):
        # traiNNer-redux's and neosr's converters take it, in training form too.
        pytest.importorskip("onnx", reason="needs pip install onnx onnxruntime")
        network = lively_network()
        image = random_image(1, 3, 8, 7)
        path = tmp_path / "training_form.onnx"
        torch.onnx.export(
            network,
            (image,),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {2: "H", 3: "W"}},
        )
        larger = random_image(1, 3, 11, 9)
        output = open_model(path, "onnxruntime", "cpu").run(larger.numpy())
        # float32 sums in another order.
        torch.testing.assert_close(
            torch.from_numpy(output), network(larger).detach(), rtol=0, atol=1e-5
        )


class TestCompiled:
    """With torch.compile, whose import takes seconds: no other file needs it.

    A compiler takes half a minute for the kernels of one case, so only the gradients of
    the usual training are compiled to the end by default. The other cases stop where
    PyTorch has the whole graph, and run that.
    """

    BACKENDS = ("aot_eager", pytest.param("inductor", marks=pytest.mark.slow))

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("fused", [False, True])
    def test_compiles_as_one_graph(self, fused, backend):
        network = lively_network(depths=(1,))
        if fused:
            network.fuse()
        image = random_image(1, 3, 9, 8)
        compiled = torch.compile(network, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(image), network(image), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("use_checkpoint", "backend"),
        [
            (False, "inductor"),
            (True, "aot_eager"),
            pytest.param(True, "inductor", marks=pytest.mark.slow),
        ],
    )
    def test_compiled_training_has_the_same_gradients(self, use_checkpoint, backend):
        arguments = {"depths": (1,), "drop_path_rate": 0.0}
        network = lively_network(**arguments, use_checkpoint=use_checkpoint).train()
        image = random_image(2, 3, 9, 8)
        eager = gradients(network, image)
        compiled = torch.compile(network, fullgraph=True, backend=backend)
        found = gradients(compiled, image)
        found[1].update(
            (key.removeprefix("_orig_mod."), found[1].pop(key))
            for key in list(found[1])
        )
        # float32: fused kernels sum in another order.
        assert_same(eager, found, rtol=1e-4, atol=1e-5)


class TestAround:
    def test_ema_copies_follow_and_their_file_loads(self, tmp_path):
        network = lively_network().train()
        start = copy.deepcopy(network)
        ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        ema.update_parameters(network)  # the first update copies
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1)
        ema.update_parameters(network)
        for key, value in start.state_dict().items():
            torch.testing.assert_close(ema.module.state_dict()[key], value + 0.1)
        path = tmp_path / "net_g_ema_2.pth"
        torch.save({"params": ema.state_dict()}, path)  # with module. and n_averaged
        loaded = load_checkpoint(path).build()
        image = random_image(1, 3, 6, 5)
        assert torch.equal(loaded(image), ema.module.eval()(image))

    def test_two_processes_have_the_gradients_of_one(self, tmp_path):
        # With and without checkpointing in the same two: starting them takes seconds.
        image = random_image(4, 3, 8, 7).double()
        target = random_image(4, 3, 16, 14, seed=1).double()
        whole = {}
        for again in (False, True):
            network = lively_network(drop_path_rate=0.0, use_checkpoint=again)
            network = network.double().train()
            whole[again] = gradients(network, image, target)[1]
            facts = (network.hyperparameters, network.state_dict(), image, target)
            torch.save(facts, tmp_path / f"start_{again}.pt")
        # This process is the second one.
        other = torch.multiprocessing.spawn(half_of_the_batch, (tmp_path,), join=False)
        half_of_the_batch(1, tmp_path)
        while not other.join():
            pass
        for again, expected in whole.items():
            for rank in range(2):
                path = tmp_path / f"{rank}_{again}.pt"
                found = torch.load(path, weights_only=True)
                assert found.keys() == expected.keys()
                for key, gradient in expected.items():
                    torch.testing.assert_close(found[key], gradient, **EXACT)


def half_of_the_batch(rank, folder):
    """Gradients of one of two processes; each sees half the samples."""
    torch.distributed.init_process_group(
        "gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=2
    )
    for again in (False, True):
        arguments, state_dict, image, target = torch.load(
            folder / f"start_{again}.pt", weights_only=True
        )
        network = AetherNet(**arguments).double().train()
        network.load_state_dict(state_dict)
        parallel = DistributedDataParallel(network)
        half = slice(2 * rank, 2 * rank + 2)
        nn.functional.l1_loss(parallel(image[half]), target[half]).backward()
        found = {key: parameter.grad for key, parameter in network.named_parameters()}
        torch.save(found, folder / f"{rank}_{again}.pt")
    torch.distributed.destroy_process_group()
