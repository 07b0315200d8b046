"""The drop-in file and the shipped option files in neosr itself, trained on a CPU.

neosr 0.1.0 is installed once from the package index. neosr 1.0.0 needs a clone
(NEOSR_DIR) and runs its own train.py and test.py. `neosr_driver.py` says how a machine
without a GPU can do that.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import neosr_real
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import lively_network, random_image
from neosr_real import FIDELITY, OPTIONS, Neosr, quoted
from PIL import Image
from route import check_route

from aethernet import aether_core
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.fuse import fuse_checkpoint

FILES = sorted(path.name for path in OPTIONS.glob("*.toml"))
VARIANTS = tuple(FIDELITY)
KINDS = {
    "fidelity": FIDELITY,
    "gan": {name: f"train_{name}_gan.toml" for name in VARIANTS},
    "otf": {name: f"train_{name}_otf.toml" for name in VARIANTS},
}
SCALES = (1, 2, 3, 4)
NETWORKS = ("aether", *VARIANTS)
# A scale changes the end of a network and a name the rest, so not every pair is tested.
NAMES_AND_SCALES = [
    *((name, 4) for name in NETWORKS),
    *(("aether_small", scale) for scale in SCALES[:-1]),
]
QUICK = neosr_real.QUICK
# bfloat16 is slow on most CPUs; the fidelity run has it, as shipped.
FLOAT32 = {"use_amp": "false", "bfloat16": "false"}
# Read by train.py, which neosr 0.1.0 does not have.
READ_BY_TRAIN_PY = {"fast_matmul", "logger.use_tb_logger", "val.val_freq"}


def uncommented(text: str) -> str:
    """The text with every optional line on: those without a space after the `#`."""
    return re.sub(r"^#(?=\w|\[)", "", text, flags=re.M)


def keys(section: dict[str, Any], name: str = "") -> set[str]:
    found = set()
    for key, value in section.items():
        inner = isinstance(value, dict)
        found |= keys(value, f"{name}{key}.") if inner else {f"{name}{key}"}
    return found


class TestOptionFiles:
    @pytest.mark.parametrize("name", FILES)
    def test_run_is_named_after_the_file(self, name):
        options = tomllib.loads((OPTIONS / name).read_text("utf-8"))
        assert options["name"] == Path(name).stem
        assert "debug" not in name  # neosr would save every 8 iterations

    @pytest.mark.parametrize("kind", KINDS)
    def test_variants_differ_in_values_only(self, kind):
        texts = [
            uncommented((OPTIONS / KINDS[kind][name]).read_text("utf-8"))
            for name in VARIANTS
        ]
        small, medium, large = (keys(tomllib.loads(text)) for text in texts)
        if kind == "fidelity":  # medium's is the published one
            own = ("train.optim_g.", "val.metrics.")
            small, medium, large = (
                {key for key in found if not key.startswith(own)}
                for found in (small, medium, large)
            )
        assert small == medium == large

    def test_mediums_file_has_the_published_values(self):
        text = (OPTIONS / FIDELITY["aether_medium"]).read_text("utf-8")
        options = tomllib.loads(uncommented(text))
        optimizer = options["train"]["optim_g"]
        assert (optimizer["type"], optimizer["lr"]) == ("adamw", 2e-4)
        assert (optimizer["betas"], optimizer["weight_decay"]) == ([0.9, 0.99], 0)
        assert options["logger"]["total_iter"] == 1_000_000
        assert [*options["val"]["metrics"]] == ["psnr", "ssim", "dists", "topiq"]
        train = options["datasets"]["train"]
        assert (train["patch_size"], train["batch_size"]) == (64, 8)
        tested = tomllib.loads((OPTIONS / "test_aether.toml").read_text("utf-8"))
        assert tested["network_g"] == {"type": "aether_medium", "fused_init": True}

    def test_every_file_is_accounted_for(self):
        known = {name for kind in KINDS.values() for name in kind.values()}
        recipe = "train_aether_small_recipe.toml"
        assert set(FILES) == known | {"test_aether.toml", recipe}

    @pytest.mark.parametrize("name", FILES)
    def test_readme_names_the_file(self, name):
        assert name in (OPTIONS.parent / "Readme.md").read_text("utf-8")

    @pytest.mark.parametrize("name", FILES)
    def test_few_paths_to_set_and_windows_can_read_them(self, name):
        text = (OPTIONS / name).read_text("utf-8")
        live = re.findall(r"^(?:dataroot\w*|pretrain\w*) = (.*)$", text, re.M)
        assert 1 <= len(live) <= (3 if "_gan" in name else 2)
        assert all(re.fullmatch(r"'[^']+'", path) for path in live), live


@dataclass
class Session:
    """A neosr that does all jobs in one process, because its imports are slow."""

    neosr: Neosr
    files: Path
    results: dict[str, dict[str, Any]]

    def finished(self, name: str) -> dict[str, Any]:
        result = self.results[name]
        assert "error" not in result, result["log"][-6000:]
        return result

    def error_of(self, name: str, kind: str) -> str:
        result = self.results[name]
        assert result.get("error") == kind, result
        return f"{result['message']}\n{result['log']}"

    def saved(self, run: str, name: str) -> Path:
        return self.neosr.root / "experiments" / run / "models" / name


@pytest.fixture(
    scope="session",
    params=["0.1.0", pytest.param("1.0.0", marks=pytest.mark.frameworks)],
)
def session(request, tmp_path_factory) -> Session:
    make = {"0.1.0": neosr_real.of_package_index, "1.0.0": neosr_real.of_clone}
    neosr = make[request.param](tmp_path_factory.mktemp("neosr"))
    files = tmp_path_factory.mktemp("files")
    jobs = {
        **stepping(neosr),
        **{name: {"job": "parse", "opt": neosr.option_file(name)} for name in FILES},
        **building(neosr),
        **training(neosr, files),
        **inference(neosr, files),
        "second copy": {"job": "copied_file", "opt": neosr.option_file(FILES[0])},
    }
    done = neosr.run(*jobs.values())
    return Session(neosr, files, dict(zip(jobs, done, strict=True)))


def building(neosr: Neosr) -> dict[str, dict[str, Any]]:
    """Run `build_network` with several command lines."""
    small = neosr.option_file(FIDELITY["aether_small"])  # scale 2
    build = {"job": "build", "network": {"type": "aether_small"}}
    scale_4 = {"job": "build", "network": {"type": "aether_small", "scale": 4}}
    convert = ["--input", "a.pth", "--network", "aether_small", "--scale", "3"]
    return {
        "scale of the file": {**build, "opt": small},
        "same scale twice": {
            "job": "build",
            "opt": small,
            "network": {"type": "aether_small", "scale": 2},
        },
        "contradiction": {**scale_4, "opt": small},
        # neosr is imported by now, which it cannot be without -opt.
        "explicit scale, foreign arguments": {**scale_4, "argv": ["-f", "kernel.json"]},
        "convert.py": {**build, "argv": convert},
        "unknown key": {
            "job": "build",
            "opt": small,
            "network": {"type": "aether_small", "upscale": 2},
        },
    }


def stepping(neosr: Neosr) -> dict[str, dict[str, Any]]:
    """Every name and every scale; as for a user, only the line `scale` differs."""
    jobs = {}
    for name, scale in NAMES_AND_SCALES:
        variant = "aether_medium" if name == "aether" else name  # its defaults
        quick = {**FLOAT32, "patch_size": "8", "batch_size": "1"}
        lines = {**quick, "scale": f"{scale}"}
        run = f"{name}_{scale}x"
        path = neosr.option_file(FIDELITY[variant], lines, as_name=run)
        text = path.read_text("utf-8").replace(f'"{variant}"', f'"{name}"')
        path.write_text(text, "utf-8")
        jobs[run] = {"job": "step", "opt": path}
    return jobs


def training(neosr: Neosr, files: Path) -> dict[str, dict[str, Any]]:
    """Train each kind as shipped and with every optional line, and resume one run."""
    roots = neosr_real.dataroots(files / "2x", 2)
    fidelity = quoted(neosr.root / "experiments/fidelity/models/net_g_2.pth")
    jobs = {}
    for kind, names in KINDS.items():
        lines = {**QUICK, **roots}
        if kind != "fidelity":
            lines |= FLOAT32
        if kind == "gan":
            lines["pretrain_network_g"] = fidelity
        if kind == "otf":
            del lines["dataroot_lq"]
        path = neosr.option_file(names["aether_small"], lines, as_name=kind)
        jobs[kind] = {"job": "train", "opt": path}

    more = {**QUICK, **FLOAT32, **roots, "pretrain_network_g": fidelity}
    more |= {"compile": "false", "val_freq": "2"}
    for kind, names in KINDS.items():
        path = neosr.option_file(names["aether_small"], as_name=f"{kind}_all")
        text = uncommented(path.read_text("utf-8"))
        path.write_text(neosr_real.with_lines(text, more), "utf-8")
        jobs[f"{kind}, all lines"] = {"job": "train", "opt": path}

    on = neosr.root / "options/fidelity.toml"
    state = neosr.root / "experiments/fidelity/training_states/2.state"
    longer = neosr_real.with_lines(on.read_text("utf-8"), {"total_iter": "4"})
    resume = on.with_name("resume.toml")
    resume.write_text(f"{longer}\n[path]\nresume_state = {quoted(state)}\n", "utf-8")
    jobs["resume"] = {"job": "train", "opt": resume}
    if (neosr.root / "train.py").exists():
        again = on.with_name("auto_resume.toml")
        longest = neosr_real.with_lines(on.read_text("utf-8"), {"total_iter": "6"})
        again.write_text(longest, "utf-8")
        flag = ["--auto_resume"]
        jobs["auto_resume"] = {"job": "train", "opt": again, "argv": flag}

    for strict in ("false", "true"):
        path = on.with_name(f"strict_{strict}.toml")
        text = neosr_real.with_lines(on.read_text("utf-8"), {"scale": "4"})
        start = f"pretrain_network_g = {fidelity}\nstrict_load_g = {strict}\n"
        path.write_text(f"{text}\n[path]\n{start}", "utf-8")
        job = {"job": "state", "opt": path, "checkpoint": fidelity.strip("'")}
        jobs[f"4x from 2x, strict {strict}"] = job
    misspelt = on.with_name("misspelt.toml")
    wrong = {"ema": "0.999\nemma = 0.9", "name": '"misspelt"'}
    text = neosr_real.with_lines(on.read_text("utf-8"), {**wrong, **FLOAT32})
    misspelt.write_text(text, "utf-8")
    jobs["misspelt"] = {"job": "train", "opt": misspelt}
    few = neosr_real.few_blocks(neosr, files / "2x")
    jobs["few blocks"] = {"job": "train", "opt": few}
    gan = neosr.root / "options/gan.toml"
    jobs["gradient"] = {"job": "gan_gradient", "opt": gan}
    return jobs


def inference(neosr: Neosr, files: Path) -> dict[str, dict[str, Any]]:
    """Test one network in both forms, written by our tools, with neosr."""
    network = lively_network(**aether_core.VARIANTS["aether_small"], scale=2)
    form, fused = files / "training.pth", files / "fused.pth"
    torch.save({"params": network.state_dict()}, form)
    fuse_checkpoint(load_checkpoint(form), fused)
    image = random_image(1, 3, 12, 10)
    np.save(files / "image.npy", image.numpy())
    roots = neosr_real.dataroots(files / "2x", 2)

    jobs = {}
    for weights in (form, fused):
        lines = {
            "pretrain_network_g": quoted(weights),
            "dataroot_lq": roots["dataroot_lq"],
        }
        path = neosr.option_file(
            "test_aether.toml", lines, as_name=f"test_{weights.name}"
        )
        edits = {"type": '"aether_small"', "fused_init": f"{weights == fused}".lower()}
        before, network_g, after = path.read_text("utf-8").partition("[network_g]")
        after = neosr_real.with_lines(after, edits)
        path.write_text(f"{before}{network_g}{after}", "utf-8")
        output = files / f"{weights.name}.npy"
        job = {"opt": path, "image": str(files / "image.npy"), "output": str(output)}
        jobs[weights.name] = {"job": "infer", **job}
    jobs["test"] = {"job": "test", "opt": neosr.root / "options/test_fused.pth.toml"}
    return jobs


@pytest.mark.parametrize("name", FILES)
def test_neosr_parses_every_file(session, name):
    parsed = session.finished(name)
    assert parsed["name"] == Path(name).stem
    assert parsed["network"] in VARIANTS


class TestBuilding:
    @pytest.mark.parametrize(
        ("name", "scale"),
        [
            ("scale of the file", 2),
            ("same scale twice", 2),
            ("explicit scale, foreign arguments", 4),
            ("convert.py", 3),
        ],
    )
    def test_scale(self, session, name, scale):
        assert session.finished(name)["hyperparameters"]["scale"] == scale

    def test_contradiction_is_an_error_that_names_both(self, session):
        said = session.error_of("contradiction", "ValueError")
        assert "this run is 2, but [network_g] has scale = 4. Delete that line" in said

    def test_unknown_key_is_an_error(self, session):
        assert "'upscale'" in session.error_of("unknown key", "TypeError")

    def test_second_copy_of_the_file_is_an_error(self, session):
        said = session.error_of("second copy", "AssertionError")
        assert "'aether' was already registered" in said


@pytest.mark.parametrize(("name", "scale"), NAMES_AND_SCALES)
def test_optimizer_step(session, name, scale):
    done = session.finished(f"{name}_{scale}x")
    assert done["hyperparameters"]["scale"] == scale
    built = {
        **done["hyperparameters"],
        "depths": tuple(done["hyperparameters"]["depths"]),
    }
    variant = aether_core.variant_name(built)
    assert variant == ("aether_medium" if name == "aether" else name)
    assert done["output"] == [1, 3, 8 * scale, 8 * scale]
    assert done["optimizer"] == ("AdamW" if variant == "aether_medium" else "adan_sf")
    assert done["finite"]
    assert all(np.isfinite(value) for value in done["losses"].values())
    assert {"l_g_pix", "l_g_total"} == set(done["losses"])
    # Stochastic depth can leave a block out of both steps.
    assert done["changed"] > 0.8 * done["tensors"]


class TestTraining:
    @pytest.mark.parametrize("kind", KINDS)
    def test_runs_as_shipped_once_the_paths_are_set(self, session, kind):
        session.finished(kind)
        for iteration in (2, "latest"):
            saved = load_checkpoint(session.saved(kind, f"net_g_{iteration}.pth"))
            assert (saved.variant, saved.scale) == ("aether_small", 2)
            assert saved.form == "training"

    @pytest.mark.parametrize("kind", KINDS)
    def test_neosr_knows_every_key_also_of_the_optional_lines(self, session, kind):
        unknown = set(session.finished(f"{kind}, all lines")["unknown"])
        assert unknown <= (
            READ_BY_TRAIN_PY if session.neosr.version == "0.1.0" else set()
        )

    def test_an_unknown_key_would_be_found(self, session):
        assert "train.emma" in session.finished("misspelt")["unknown"]

    def test_resumes(self, session):
        log = session.finished("resume")["log"]
        assert re.search(r"Loading AetherNet model from \S+net_g_2\.pth", log)
        assert session.saved("fidelity", "net_g_4.pth").exists()

    def test_auto_resume_takes_the_newest_state(self, session):
        if "auto_resume" not in session.results:
            pytest.skip("a flag of train.py, which neosr 0.1.0 does not have")
        log = session.finished("auto_resume")["log"]
        assert re.search(r"Loading AetherNet model from \S+net_g_4\.pth", log)
        assert re.search(r"Resuming training from epoch: \d+, iter: 4", log)
        assert session.saved("fidelity", "net_g_6.pth").exists()

    def test_4x_from_2x_takes_all_but_the_second_upsampling(self, session):
        done = session.finished("4x from 2x, strict false")
        left_out = {"upsample.2.weight", "upsample.2.bias"}
        assert set(done["keys"]) - set(done["loaded"]) == left_out
        current, loaded = done["log"].split("Loaded net - current net:")
        assert set(re.findall(r"^ {2}(\S+)$", current, re.M)) == left_out
        assert not re.findall(r"^ {2}(\S+)$", loaded, re.M)

    def test_4x_from_2x_is_an_error_while_strict(self, session):
        said = session.error_of("4x from 2x, strict true", "SystemExit")
        assert "disable strict_load" in said
        assert "upsample.2.weight" in said

    def test_its_checkpoint_goes_all_the_way(self, session, tmp_path, monkeypatch):
        session.finished("few blocks")
        trained = session.saved("few_blocks", "net_g_2.pth")
        check_route(trained, tmp_path, monkeypatch)

    def test_whether_the_gan_loss_reaches_the_network(self, session):
        gradient = session.finished("gradient")["gradient"]
        # The Readme warns of this: 1.0.0 judges the picture in inference mode.
        assert (gradient > 0) == (session.neosr.version == "0.1.0")


class TestTesting:
    @pytest.mark.parametrize("form", ["training", "fused"])
    def test_same_output_as_our_own_loader(self, session, form):
        session.finished(f"{form}.pth")
        theirs = np.load(session.files / f"{form}.pth.npy")
        network = load_checkpoint(session.files / f"{form}.pth").build().eval()
        image = torch.from_numpy(np.load(session.files / "image.npy"))
        with torch.no_grad():
            ours = network(image).numpy()
        assert np.ptp(ours) > 0.1  # not a constant picture
        assert np.abs(theirs - ours).max() < 1e-5

    def test_pictures_are_the_ones_of_our_own_loader(self, session):
        session.finished("test")
        results = session.neosr.root / "experiments/results/test_fused.pth"
        network = load_checkpoint(session.files / "fused.pth").build().eval()
        for path in sorted((session.files / "2x/lr").glob("*.png")):
            (written,) = results.rglob(f"{path.stem}_test_fused.pth.png")
            pixels = torch.from_numpy(np.array(Image.open(path))).movedim(2, 0)
            with torch.no_grad():
                ours = network(pixels[None] / 255)[0].clamp(0, 1).movedim(0, 2) * 255
            theirs = np.array(Image.open(written)).astype(np.float32)
            assert np.abs(theirs - ours.numpy()).max() < 0.51  # rounding
