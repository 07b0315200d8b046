"""training/train.py: a run, its files, and what happens when it is killed."""

import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

import train
from helpers import (
    ROOT,
    SAMPLE,
    SHIPPED_MODEL,
    SHIPPED_TRAINING_FORM,
    call_script,
)
from PIL import Image

from aethernet.aether_core import VARIANTS, AetherNet
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.pictures.training_crops import training_pair

TOOL = ROOT / "training/train.py"
SMALL = dict(VARIANTS["aether_small"])
# The variants are too large for a test.
TINY = {"embed_dim": 12, "depths": (1, 1), "mlp_ratio": 2.0, "lk_kernel": 5}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Parts of the sample, one gray and one of 16 bits with alpha among them."""
    folder = tmp_path_factory.mktemp("photographs")
    pixels = np.asarray(Image.open(SAMPLE))
    for number, left in enumerate((0, 40, 75)):
        Image.fromarray(pixels[50:251, left : left + 181]).save(
            folder / f"{number}.png"
        )
    Image.fromarray(pixels[20:140, 60:180]).convert("L").save(folder / "gray.png")
    return folder


@pytest.fixture(scope="module")
def val(photographs, tmp_path_factory):
    """The smallest of them, where it is enough to validate on one."""
    folder = tmp_path_factory.mktemp("val")
    shutil.copy(photographs / "gray.png", folder)
    return folder


@pytest.fixture
def tiny(monkeypatch):
    """The variant small, made small enough for a test."""
    monkeypatch.setitem(VARIANTS, "aether_small", {**TINY, "sk_kernel": 3})


def run(monkeypatch, *words):
    return call_script(monkeypatch, TOOL, *words)


def words_for(photographs, folder, iterations=12, **flags):
    given = {
        "iterations": iterations, "batch": 2, "crop": 12, "rate": 1e-3, "warm-up": 4,
        "every": 4, "drop-path": 0.3, "device": "cpu", "precision": "float32", **flags,
    }  # fmt: skip
    words = [str(photographs), "-o", str(folder)]
    return [*words, *(f"--{name}={value}" for name, value in given.items())]


def contents(folder):
    state = torch.load(folder / "state.pt", weights_only=True)
    latest = torch.load(folder / "net_g_latest.pth", weights_only=True)
    return state, latest


def assert_equal(first, second, where=""):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key, value in first.items():
            assert_equal(value, second[key], f"{where}.{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), where
        for number, value in enumerate(first):
            assert_equal(value, second[number], f"{where}[{number}]")
    else:
        assert first == second, where


@pytest.mark.usefixtures("tiny")
class TestRun:
    def test_leaves_what_the_frameworks_leave(
        self, photographs, tmp_path, monkeypatch, capsys
    ):
        words = words_for(photographs, tmp_path / "run", val=photographs)
        assert run(monkeypatch, *words) == 0
        said = capsys.readouterr().out
        assert "cpu, float32, iterations 0 to 12" in said
        for iteration in (4, 8, 12):
            assert f"iteration {iteration}: " in said
        checkpoint = load_checkpoint(tmp_path / "run/net_g_latest.pth")
        assert checkpoint.wrapper == "params_ema"
        assert checkpoint.build().hyperparameters["scale"] == 2
        _, latest = contents(tmp_path / "run")
        assert latest.keys() == {"params", "params_ema", "iter"}
        assert latest["iter"] == 12
        assert not torch.equal(
            latest["params"]["conv_last.bias"], latest["params_ema"]["conv_last.bias"]
        )
        best = torch.load(tmp_path / "run/net_g_best.pth", weights_only=True)
        assert f"at {best['iter']}." in said

    def test_learns(self, photographs, tmp_path, monkeypatch):
        pairs = [training_pair(photographs / "0.png", 2)]
        flags = {"rate": 3e-3, "every": 40, "crop": 16, "batch": 4, "drop-path": 0}
        words = words_for(photographs, tmp_path / "run", 40, **flags)
        assert run(monkeypatch, *words) == 0
        recipe = train.Recipe(**contents(tmp_path / "run")[0]["recipe"])
        trainer = train.Trainer(recipe, {}, torch.device("cpu"))
        before = trainer.validate(pairs)
        trainer.restore(tmp_path / "run/state.pt")
        assert trainer.validate(pairs).psnr > before.psnr + 3

    def test_names_what_it_would_train_and_validate_on(
        self, photographs, tmp_path, monkeypatch, capsys
    ):
        val = tmp_path / "val"
        val.mkdir()
        with Image.open(photographs / "1.png") as picture:
            picture.resize((120, 132)).save(val / "smaller.png")
            picture.rotate(180).save(val / "another.png")
        words = words_for(photographs, tmp_path / "run", val=val, minutes=0)
        assert run(monkeypatch, *words) == 0
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert (
            "smaller.png to validate on is also among the photographs (1.png)" in said
        )

    @pytest.mark.parametrize("loss", ["l1", "l2"])
    def test_follows_the_loss(self, photographs, tmp_path, monkeypatch, capsys, loss):
        monkeypatch.setattr(train, "LOG_EVERY", 1)
        flags = {"loss": loss, "drop-path": 0}
        words = words_for(photographs, tmp_path / "run", 1, **flags)
        arguments = train.command_parser().parse_args(words)
        assert train.exit_code(train.train, arguments) == 0
        recipe = train.Recipe(**contents(tmp_path / "run")[0]["recipe"])
        paths = sorted(photographs.iterdir())
        crops = train.TrainingCrops(paths, 2, least_detail=train.LEAST_DETAIL)
        trainer = train.Trainer(recipe, {}, torch.device("cpu"))
        lr, hr = crops.batch(2, 12, np.random.default_rng([recipe.seed, 0]))
        difference = trainer.network(lr).detach() - hr
        expected = {"l1": difference.abs(), "l2": difference.square()}[loss].mean()
        said = re.search(rf"of 1  {loss.upper()} (\S+)", capsys.readouterr().out)
        assert float(said[1]) == pytest.approx(float(expected), rel=0.01)

    def test_tensorboard_has_its_figures(self, photographs, tmp_path, monkeypatch):
        accumulators = pytest.importorskip(
            "tensorboard.backend.event_processing.event_accumulator",
            reason="needs pip install -e '.[train]'",
        )
        monkeypatch.setattr(train, "LOG_EVERY", 5)
        words = words_for(photographs, tmp_path / "run", val=photographs)
        arguments = train.command_parser().parse_args(words)
        assert train.exit_code(train.train, arguments) == 0
        log = accumulators.EventAccumulator(str(tmp_path / "run"))
        log.Reload()
        assert [event.step for event in log.Scalars("train/l1")] == [5, 10]
        assert [event.step for event in log.Scalars("val/psnr_y")] == [4, 8, 12]
        assert all(0 < event.value < 1 for event in log.Scalars("val/ssim_y"))


@pytest.mark.usefixtures("tiny")
class TestGoingOn:
    @pytest.fixture
    def flags(self):
        return []

    @pytest.fixture
    def in_one_go(self, photographs, val, tmp_path, monkeypatch, flags):
        words = words_for(photographs, tmp_path / "whole", 6, val=val)
        assert run(monkeypatch, *words, *flags) == 0
        return contents(tmp_path / "whole")

    @pytest.mark.parametrize("flags", [[], ["--degrade"]], ids=["clean", "degraded"])
    def test_is_as_if_it_had_never_stopped(
        self, photographs, val, tmp_path, monkeypatch, capsys, flags, in_one_go
    ):
        # Stochastic depth, the average and Adam's moments among what has to go on.
        words = words_for(photographs, tmp_path / "run", 6, val=val, minutes=0)
        words += flags
        starts = 0
        while not (tmp_path / "run/state.pt").exists() or (
            contents(tmp_path / "run")[0]["iteration"] < 6
        ):
            assert run(monkeypatch, *words) == 0
            starts += 1
        assert starts == 6  # a step in each
        assert "run the same command to continue" in capsys.readouterr().out
        state, latest = contents(tmp_path / "run")
        state["best"] = in_one_go[0]["best"]  # it has looked more often
        assert_equal(state, in_one_go[0])
        assert_equal(latest, in_one_go[1])

    def test_after_a_kill_repeats_what_was_not_saved(
        self, photographs, val, tmp_path, monkeypatch, in_one_go
    ):
        words = words_for(photographs, tmp_path / "run", 6, val=val)
        killed = train.Trainer.step

        def step(trainer, lr, hr):
            if trainer.iteration == 5:
                raise MemoryError  # as sudden as a kill: nothing is saved any more
            return killed(trainer, lr, hr)

        arguments = train.command_parser().parse_args(words)
        with monkeypatch.context() as patch:
            patch.setattr(train.Trainer, "step", step)
            assert train.exit_code(train.train, arguments) == 1
        assert contents(tmp_path / "run")[0]["iteration"] == 4
        assert run(monkeypatch, *words) == 0
        for found, expected in zip(contents(tmp_path / "run"), in_one_go, strict=True):
            assert_equal(found, expected)

    def test_with_another_recipe_is_refused(
        self, photographs, tmp_path, monkeypatch, capsys
    ):
        words = words_for(photographs, tmp_path / "run")
        assert run(monkeypatch, *words) == 0
        before = (tmp_path / "run/state.pt").read_bytes()
        assert run(monkeypatch, *words, "--batch=3") == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "batch 2, now 3" in said
        assert run(monkeypatch, *words, "--degrade") == 1
        assert "degrade False, now True" in capsys.readouterr().err
        assert (tmp_path / "run/state.pt").read_bytes() == before

    def test_can_end_earlier_or_later_until_the_rate_falls(
        self, photographs, tmp_path, monkeypatch, capsys
    ):
        flags = {"every": 1, "warm-up": 2}
        for folder, first in (("longer", 20), ("shorter", 100)):
            run_folder = tmp_path / folder
            words = words_for(photographs, run_folder, first, minutes=0, **flags)
            for _ in range(5):
                assert run(monkeypatch, *words) == 0
            assert (
                run(monkeypatch, *words_for(photographs, run_folder, 10, **flags)) == 0
            )
        longer, shorter = (contents(tmp_path / name) for name in ("longer", "shorter"))
        assert longer[0]["iteration"] == 10
        assert_equal(longer[0], shorter[0])
        assert_equal(longer[1], shorter[1])
        capsys.readouterr()
        assert run(monkeypatch, *words_for(photographs, run_folder, 12, **flags)) == 1
        assert "iterations 10, now 12" in capsys.readouterr().err

    def test_with_other_photographs_is_refused(
        self, photographs, tmp_path, monkeypatch, capsys
    ):
        folder = tmp_path / "photographs"
        folder.mkdir()
        for name in ("0.png", "1.png"):
            (folder / name).write_bytes((photographs / name).read_bytes())
        words = words_for(folder, tmp_path / "run")
        assert run(monkeypatch, *words) == 0
        (folder / "1.png").unlink()
        assert run(monkeypatch, *words) == 1
        assert "photographs" in capsys.readouterr().err

    def test_with_changed_content_is_refused(
        self, photographs, tmp_path, monkeypatch, capsys
    ):
        folder = tmp_path / "photographs"
        folder.mkdir()
        for seed in (0, 1):  # as many bytes, and the same name
            pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "a.bmp")
            code = run(monkeypatch, *words_for(folder, tmp_path / "run"))
            assert code == seed
        assert "photographs" in capsys.readouterr().err

    def test_with_other_validation_pictures_is_refused(
        self, photographs, val, tmp_path, monkeypatch, capsys
    ):
        # Their PSNR cannot be held against the best so far.
        words = words_for(photographs, tmp_path / "run", minutes=0)
        assert run(monkeypatch, *words, f"--val={val}") == 0
        assert run(monkeypatch, *words, f"--val={photographs}") == 1
        assert "val" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "damage",
        [
            {"network": {}},
            {"average": {}},
            {"optimizers": []},
            {"optimizers": [{}, {}]},
            {"iteration": "x"},
            {"iteration": -5},
            {"iteration": 10**6},
            {"best": None},
            "cut",
            "empty",
        ],
        ids=str,
    )
    def test_from_a_damaged_state_is_refused(
        self, photographs, tmp_path, monkeypatch, capsys, damage
    ):
        words = words_for(photographs, tmp_path, minutes=0)
        assert run(monkeypatch, *words) == 0
        path = tmp_path / "state.pt"
        if isinstance(damage, dict):
            torch.save({**torch.load(path, weights_only=True), **damage}, path)
        else:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
        capsys.readouterr()
        assert run(monkeypatch, *words) == 1
        said = capsys.readouterr().err
        assert "not the state of a training, or it is damaged" in said
        assert said.count("\n") == 1

    def test_beside_another_training_is_refused(
        self, photographs, tmp_path, monkeypatch, capsys
    ):
        with train.FileLock(tmp_path / ".lock"):
            assert run(monkeypatch, *words_for(photographs, tmp_path)) == 1
        assert "Another training runs in this folder" in capsys.readouterr().err
        assert not (tmp_path / "state.pt").exists()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_weight_has_one_optimizer(photographs, tmp_path, monkeypatch, name):
    words = words_for(photographs, tmp_path / "run", 4, optimizer=name)
    assert run(monkeypatch, *words) == 0
    recipe = train.Recipe(**contents(tmp_path / "run")[0]["recipe"])
    trainer = train.Trainer(recipe, {}, torch.device("cpu"))
    by_class = {
        type(optimizer).__name__: [
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        for optimizer in trainer.optimizers
    }
    owned = [parameter for group in by_class.values() for parameter in group]
    assert len(owned) == len({*map(id, owned)})
    assert len(owned) == len([*trainer.network.parameters()])
    # Gate, main and last projection of each of the two blocks.
    assert len(by_class.get("Muon", [])) == (6 if name == "muon" else 0)


def test_a_state_without_the_part_that_decays_goes_on(
    photographs, tmp_path, monkeypatch, tiny, capsys
):
    words = words_for(photographs, tmp_path / "run", iterations=20, minutes=0)
    assert run(monkeypatch, *words) == 0
    state = torch.load(tmp_path / "run/state.pt", weights_only=True)
    assert state["recipe"].pop("decay") == 0.1
    torch.save(state, tmp_path / "run/state.pt")
    assert run(monkeypatch, *words) == 0
    assert "Continuing after iteration 1." in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
class TestStart:
    def checkpoint(self, path, scale=2, **arguments):
        torch.manual_seed(5)
        network = AetherNet(**{**VARIANTS["aether_small"], **arguments}, scale=scale)
        torch.save({"params": network.state_dict()}, path)
        return network.state_dict()

    def test_takes_the_weights_of_a_checkpoint(
        self, photographs, tmp_path, monkeypatch
    ):
        weights = self.checkpoint(tmp_path / "start.pth")
        start = {"start": tmp_path / "start.pth", "rate": 0}
        words = words_for(photographs, tmp_path / "run", 4, **start)
        assert run(monkeypatch, *words) == 0
        assert_equal(contents(tmp_path / "run")[1]["params"], dict(weights))

    def test_of_another_scale_leaves_the_upsampler_fresh(
        self, photographs, tmp_path, monkeypatch, capsys
    ):
        weights = self.checkpoint(tmp_path / "start.pth")
        start = {"start": tmp_path / "start.pth", "rate": 0, "scale": 4, "crop": 8}
        words = words_for(photographs, tmp_path / "run", 4, **start)
        assert run(monkeypatch, *words) == 0
        said = capsys.readouterr().out
        assert "fresh weights: upsample.2.weight, upsample.2.bias" in said
        kept = contents(tmp_path / "run")[1]["params"]
        for name, value in weights.items():
            assert torch.equal(kept[name], value), name

    @pytest.mark.parametrize("other", ["fused", "wider"])
    def test_of_another_network_is_refused(
        self, photographs, tmp_path, monkeypatch, capsys, other
    ):
        path = SHIPPED_MODEL
        if other == "wider":
            path = tmp_path / "start.pth"
            self.checkpoint(path, embed_dim=16)
        words = words_for(photographs, tmp_path / "run", start=path)
        assert run(monkeypatch, *words) == 1
        assert "not an aether_small in training form" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_the_published_variant_starts_from_the_trained_checkpoint(
    demo_checkpoint, photographs, val, tmp_path, monkeypatch, capsys
):
    flags = {"start": demo_checkpoint, "rate": 1e-5, "every": 2, "val": val}
    words = words_for(photographs, tmp_path / "run", 2, **flags)
    assert run(monkeypatch, *words) == 0
    (line,) = (
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("iteration 2: ")
    )
    assert float(line.split()[2]) > 30  # it has not forgotten everything


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_a_signal_saves_and_the_run_goes_on(photographs, tmp_path):
    # The whole variant: the smaller one is made so in this process only.
    words = words_for(photographs, tmp_path / "run", 10_000, every=5000, crop=8)
    command = [sys.executable, str(TOOL), *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if "iterations 0 to 10000" in line:
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "run the same command to continue" in out
    assert err == "Saving. Repeat the signal to stop at once.\n"
    iteration = contents(tmp_path / "run")[0]["iteration"]
    assert iteration >= 1
    assert contents(tmp_path / "run")[1]["iter"] == iteration


@pytest.mark.usefixtures("tiny")
class TestDegrade:
    def test_validates_on_degraded_and_on_clean_pictures(
        self, photographs, tmp_path, monkeypatch, capsys
    ):
        accumulators = pytest.importorskip(
            "tensorboard.backend.event_processing.event_accumulator",
            reason="needs pip install -e '.[train]'",
        )
        val = tmp_path / "val"
        val.mkdir()
        with Image.open(photographs / "0.png") as photograph:
            photograph.crop((0, 0, 120, 120)).save(val / "0.png")
        words = words_for(photographs, tmp_path / "run", 4, val=val)
        # The shipped weights know clean pictures: what they lose shows which is which.
        words += ["--degrade", "--every=2", f"--start={SHIPPED_TRAINING_FORM}"]
        monkeypatch.setitem(VARIANTS, "aether_small", SMALL)
        assert run(monkeypatch, *words) == 0
        printed = capsys.readouterr().out
        log = accumulators.EventAccumulator(str(tmp_path / "run"))
        log.Reload()
        psnr = {
            name: [event.value for event in log.Scalars(f"{name}/psnr_y")]
            for name in ("val", "val_clean")
        }
        assert [len(values) for values in psnr.values()] == [2, 2]
        assert min(psnr["val_clean"]) > max(psnr["val"]) + 2
        # The degraded pictures decide which weights are best.
        assert f"Best: {max(psnr['val']):.3f} dB" in printed
        assert f"iteration 4: {psnr['val'][1]:.2f} dB" in printed
        assert f"clean {psnr['val_clean'][1]:.2f} dB" in printed

    def test_trains_on_degraded_crops(self, photographs, tmp_path, monkeypatch):
        seen = {}
        step = train.Trainer.step

        def watched(trainer, lr, hr):
            seen.setdefault(trainer.recipe.degrade, []).append((lr, hr))
            return step(trainer, lr, hr)

        monkeypatch.setattr(train.Trainer, "step", watched)
        words = words_for(photographs, tmp_path / "clean", 3, batch=8)
        assert run(monkeypatch, *words) == 0
        words = words_for(photographs, tmp_path / "degraded", 3, batch=8)
        assert run(monkeypatch, *words, "--degrade") == 0
        errors = {
            degrade: torch.stack(
                [(lr - hr.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))).abs().mean()
                 for lr, hr in pairs]
            ).mean() * 255
            for degrade, pairs in seen.items()
        }  # fmt: skip
        assert errors[False] < 2 < errors[True]


@pytest.mark.usefixtures("tiny")
class TestBadInput:
    @pytest.mark.parametrize(
        ("flags", "sentence"),
        [
            ({"crop": 400}, "less than asked for (400)"),
            ({"start": "missing.pth"}, "missing.pth"),
            ({"val": "nowhere"}, "nowhere"),
            ({"device": "tpu"}, "tpu"),
        ],
    )
    def test_gets_one_sentence(
        self, photographs, tmp_path, monkeypatch, capsys, flags, sentence
    ):
        words = words_for(photographs, tmp_path / "run", **flags)
        assert run(monkeypatch, *words) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert sentence in said

    @pytest.mark.parametrize(
        "flag",
        [
            "--batch=0",
            "--rate=nan",
            "--ema=2",
            "--crop=x",
            "--batch=10000000",
            "--scale=1",
        ],
    )
    def test_numbers_are_checked(
        self, photographs, tmp_path, monkeypatch, capsys, flag
    ):
        words = [*words_for(photographs, tmp_path), flag]
        assert run(monkeypatch, *words) == 2
        assert flag.partition("=")[0] in capsys.readouterr().err

    def test_pictures_too_small_to_validate_on_are_refused(
        self, photographs, tmp_path, monkeypatch, capsys
    ):
        folder = tmp_path / "val"
        folder.mkdir()
        Image.new("RGB", (10, 10)).save(folder / "small.png")
        words = words_for(photographs, tmp_path / "run", val=folder)
        assert run(monkeypatch, *words) == 1
        assert "small.png: The picture has 10x10 pixels" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    def test_a_run_that_diverges_keeps_what_it_saved(
        self, photographs, tmp_path, monkeypatch, capsys
    ):
        step = train.Trainer.step

        def diverging(trainer, lr, hr):
            return step(trainer, lr * (torch.nan if trainer.iteration > 5 else 1), hr)

        words = words_for(photographs, tmp_path / "run")
        monkeypatch.setattr(train.Trainer, "step", diverging)
        assert (
            train.exit_code(train.train, train.command_parser().parse_args(words)) == 1
        )
        assert "diverged before iteration 8" in capsys.readouterr().err
        assert contents(tmp_path / "run")[0]["iteration"] == 4
