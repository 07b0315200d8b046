"""traiNNer-redux: the shipped option files, and real runs where there is a clone."""

import math
import re

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

import yaml
from frameworks import TRAINNER_FILE, clone_of, dropped_in, load_trainner
from helpers import SHIPPED_MODEL, lively_network, random_image
from safetensors.torch import load_file, save_file
from trainner_redux_real import (
    LR_SIZE,
    OPTIONS,
    drive,
    experiment,
    finished,
    for_cpu,
    for_use,
    in_clone,
    result_of,
    succeeded,
    train_few_steps,
)

from aethernet.aether_core import VARIANTS
from aethernet.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from aethernet.checkpoints.fuse import fuse_checkpoint

NAMES = ("aether", *VARIANTS)
STAGES = ("fidelity", "gan", "otf")
FIDELITY = OPTIONS / "train/aether/aether_small_fidelity.yml"
TEST = OPTIONS / "test/aether/aether.yml"
ONNX = OPTIONS / "onnx/aether/aether.yml"
TRAINING = sorted((OPTIONS / "train/aether").iterdir())
ALL = [*TRAINING, TEST, ONNX]
# Values that differ between variants; everything else is the same for all three.
OF_A_VARIANT = {
    "name",
    "network_g.type",
    "datasets.train.lq_size",
    "datasets.train.batch_size_per_gpu",
    "train.optim_g.lr",
    "path.pretrain_network_g",
}


def kind_and_name(path):
    """As `test_aether`: the files for testing and for ONNX have the same name."""
    return f"{path.parts[-3]}_{path.stem}"


def content(path):
    return yaml.safe_load(path.read_text("utf-8"))


def small_checkpoint(path):
    """An aether_small of 2x in training form."""
    save_checkpoint(lively_network(**VARIANTS["aether_small"]), path)
    return path


def flat(options, before=""):
    if not isinstance(options, dict):
        return {before[:-1]: options}
    items = (flat(value, f"{before}{key}.") for key, value in options.items())
    return {key: value for item in items for key, value in item.items()}


class TestOptionFiles:
    def test_a_file_for_every_variant_and_stage(self):
        expected = {f"{v}_{s}.yml" for v in VARIANTS for s in STAGES}
        expected.add("aether_small_recipe.yml")
        assert {path.name for path in TRAINING} == expected

    @pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
    def test_names_inside_agree_with_the_file(self, path):
        options = content(path)
        assert options["name"] == f"{options['scale']}x_{path.stem}"
        assert path.stem.startswith(f"{options['network_g']['type']}_")
        command = f"-opt {path.relative_to(OPTIONS.parent).as_posix()}\n"
        assert command in path.read_text("utf-8")

    @pytest.mark.parametrize("path", ALL, ids=kind_and_name)
    def test_network_builds_at_the_scale_of_the_file(self, path):
        options = content(path)
        with torch.device("meta"):
            network = load_trainner().build_network(
                {**options["network_g"], "scale": options["scale"]}
            )
        assert network.hyperparameters["scale"] == options["scale"]

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_fidelity_wants_two_paths_and_no_more(self, variant):
        options = content(OPTIONS / f"train/aether/{variant}_fidelity.yml")
        assert not options["val"]["val_enabled"]
        del options["datasets"]["val"]
        paths = [key for key, value in flat(options).items() if "/" in str(value)]
        assert paths == ["datasets.train.dataroot_gt", "datasets.train.dataroot_lq"]

    @pytest.mark.parametrize("stage", STAGES)
    @pytest.mark.parametrize("variant", list(VARIANTS)[1:])
    def test_variants_differ_where_they_have_to(self, variant, stage):
        small, other = (
            flat(content(OPTIONS / f"train/aether/{v}_{stage}.yml"))
            for v in ("aether_small", variant)
        )
        assert small.keys() == other.keys()
        assert {key for key in small if small[key] != other[key]} <= OF_A_VARIANT

    @pytest.mark.parametrize("stage", STAGES[1:])
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_second_stage_starts_from_the_result_of_the_first(self, variant, stage):
        first = content(OPTIONS / f"train/aether/{variant}_fidelity.yml")
        second = content(OPTIONS / f"train/aether/{variant}_{stage}.yml")
        result = f"experiments/{first['name']}/models/net_g_ema_latest.safetensors"
        assert second["path"]["pretrain_network_g"] == result
        assert second["scale"] == first["scale"]

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_queue_of_pairs_is_filled_by_whole_batches(self, variant):
        options = content(OPTIONS / f"train/aether/{variant}_otf.yml")
        batch = options["datasets"]["train"]["batch_size_per_gpu"]
        assert options["queue_size"] % batch == 0

    def test_readme_names_files_that_exist(self):
        readme = (OPTIONS.parent / "Readme.md").read_text("utf-8")
        named = set(re.findall(r"options/\w+/aether/\w+\.yml", readme))
        assert named
        assert not [name for name in named if not (OPTIONS.parent / name).is_file()]


@pytest.fixture(scope="module")
def clone():
    return clone_of("TRAINNER_REDUX_DIR")


@pytest.fixture(scope="module")
def parsed(clone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parsed")
    files = [folder / f"{kind_and_name(path)}.yml" for path in ALL]
    for source, file in zip(ALL, files, strict=True):
        file.write_bytes(source.read_bytes())
    return result_of(drive(clone, folder, "parse", *files), folder)


@pytest.fixture(scope="module")
def built(clone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    files = []
    for path in TRAINING:
        starts_anew = "pretrain_network_g" not in content(path)["path"]
        changes = {} if starts_anew else {"path.pretrain_network_g": None}
        files.append(for_cpu(path, folder, changes))
    return result_of(drive(clone, folder, "build", *files), folder)


@pytest.mark.frameworks
class TestFilesInTheClone:
    @pytest.mark.parametrize("path", ALL, ids=kind_and_name)
    def test_framework_takes_every_key_of_the_shipped_file(self, parsed, path):
        result = parsed[f"{kind_and_name(path)}.yml"]
        assert result == {"name": content(path)["name"]}

    @pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
    def test_everything_it_names_is_built_and_takes_a_step(self, built, path):
        """With random weights, because those of VGG19 would be downloaded."""
        result, options = built[path.name], content(path)
        assert "error" not in result, result["error"]
        is_gan = "network_d" in options
        degrades = options.get("high_order_degradation", False)
        assert result["model"] == ("RealESRGANModel" if degrades else "SRModel")
        assert result["network"] == "AetherNet"
        assert result["discriminator"] == ("DUnet" if is_gan else "NoneType")
        scheduler = options["train"]["scheduler"]["type"]
        assert result["schedulers"] == [scheduler] * (2 if is_gan else 1)
        assert result["LR"] == [2, 3, LR_SIZE, LR_SIZE]
        assert result["HR"] == [2, 3, 2 * LR_SIZE, 2 * LR_SIZE]
        log = result["log"]
        assert all(math.isfinite(value) for value in log.values()), log
        for loss in options["train"]["losses"]:
            label = "l_g_" + loss["type"].removesuffix("loss")
            assert [key for key in log if key.startswith(label)], (label, log)


@pytest.mark.frameworks
def test_architecture_tests_of_the_framework_pass_for_every_name(clone):
    with dropped_in(TRAINNER_FILE, clone / "traiNNer/archs"):
        done = in_clone(
            clone,
            clone,
            *("-m", "pytest", "tests/test_archs/test_archs.py", "-k", "aether"),
            *("-rA", "-p", "no:cacheprovider"),
        )
    log = succeeded(done)
    passed = re.findall(r"^PASSED \S+\[(test|train)_(\w+)_(\d)x_", log, re.MULTILINE)
    expected = {
        (kind, name, scale)
        for kind in ("test", "train")
        for name in NAMES
        for scale in "1234"
    }
    assert set(passed) == expected


@pytest.fixture(scope="module")
def run(clone, tmp_path_factory):
    """A run of two steps: its option file and what it printed."""
    options = for_cpu(FIDELITY, tmp_path_factory.mktemp("run"), {})
    log = finished(drive(clone, options.parent, "train", options))
    return options, log


@pytest.mark.frameworks
class TestTraining:
    def test_loss_is_finite_and_weights_move(self, run):
        options, log = run
        losses = re.findall(r"l_g_charbonnier: (\S+)", log)
        assert len(losses) == 2
        assert all(0 < float(loss) < 1 for loss in losses)
        models = experiment(options) / "models"
        average = load_file(models / "net_g_ema_2.safetensors")
        trained = load_file(models / "resume_models/net_g_2.safetensors")
        assert average.keys() == trained.keys()
        moved = [key for key in trained if not torch.equal(trained[key], average[key])]
        assert len(moved) > len(trained) / 2

    def test_saved_file_is_a_checkpoint_in_training_form(self, run):
        options, _ = run
        path = experiment(options) / "models/net_g_ema_latest.safetensors"
        checkpoint = load_checkpoint(path)
        assert checkpoint.variant == "aether_small"
        assert checkpoint.scale == 2
        assert not checkpoint.hyperparameters["fused_init"]

    def test_pth_holds_the_same_kind_of_checkpoint(self, clone, tmp_path):
        path = train_few_steps(clone, tmp_path, scale=4, file_format="pth")
        assert load_checkpoint(path).wrapper == "params_ema"
        assert load_checkpoint(path).scale == 4

    def test_resumes_at_the_same_step_with_the_same_weights(self, clone, run):
        options, _ = run
        models = experiment(options) / "models"
        latest = {
            models / "net_g_ema_latest.safetensors": models / "net_g_ema_2.safetensors",
            models / "resume_models/net_g_latest.safetensors": (
                models / "resume_models/net_g_2.safetensors"
            ),
        }
        for path in latest:
            path.unlink()
        # total_iter is 2 as before: it resumes, has nothing to do, and saves.
        done = drive(clone, options.parent, "train", options, "--auto_resume")
        assert "Resuming training from epoch: 0, iter: 2." in finished(done)
        for resumed, saved in latest.items():
            weights = load_file(resumed)
            for key, value in load_file(saved).items():
                assert torch.equal(weights[key], value), key

    def test_resumed_run_goes_on(self, clone, run):
        options, _ = run
        longer = for_cpu(
            FIDELITY,
            options.parent,
            {"train.total_iter": 3, "logger.save_checkpoint_freq": 3},
        )
        log = finished(drive(clone, longer.parent, "train", longer, "--auto_resume"))
        assert re.findall(r"iter: +(\d+), lr", log) == ["3"]
        assert (experiment(options) / "training_states/3.state").is_file()

    def test_unknown_key_of_the_network_is_an_error(self, clone, tmp_path):
        options = for_cpu(FIDELITY, tmp_path, {"network_g.norm": False})
        done = drive(clone, tmp_path, "train", options)
        assert done.returncode != 0
        assert "got an unexpected keyword argument 'norm'" in done.stderr


@pytest.mark.frameworks
class TestStartingFromAnotherScale:
    LEFT_OUT = ("upsample.2.bias", "upsample.2.weight")

    @pytest.fixture
    def pretrained(self, tmp_path):
        return small_checkpoint(tmp_path / "2x.safetensors")

    def options(self, folder, pretrained, strict):
        return for_cpu(
            FIDELITY,
            folder,
            {
                "name": "4x_aether_small_fidelity",
                "scale": 4,
                "path.pretrain_network_g": str(pretrained),
                "path.strict_load_g": strict,
                "train.optim_g.lr": 0.0,
            },
        )

    def test_log_names_what_was_left_out(self, clone, pretrained, tmp_path):
        options = self.options(tmp_path, pretrained, strict=False)
        log = finished(drive(clone, tmp_path, "train", options))
        assert "missing 2 keys from current network" in log
        for key in self.LEFT_OUT:
            assert key in log
        path = experiment(options) / "models/net_g_ema_latest.safetensors"
        source, result = load_file(pretrained), load_file(path)
        assert set(result) - set(source) == set(self.LEFT_OUT)
        assert load_checkpoint(path).scale == 4
        for key, value in source.items():
            assert torch.equal(result[key], value), key

    def test_strict_is_an_error(self, clone, pretrained, tmp_path):
        options = self.options(tmp_path, pretrained, strict=True)
        done = drive(clone, tmp_path, "train", options)
        assert done.returncode != 0
        assert "mismatched state dict keys" in done.stderr
        assert self.LEFT_OUT[0] in done.stdout


@pytest.mark.frameworks
class TestUsingACheckpoint:
    def upscaled(self, clone, folder, path, **network):
        """The framework's output for the image with this checkpoint."""
        changes = {f"network_g.{key}": value for key, value in network.items()}
        options = for_use(
            TEST, folder, {"path.pretrain_network_g": str(path), **changes}
        )
        return drive(clone, folder, "upscale", options, "image", "upscaled")

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_fused_checkpoint_gives_our_output(self, clone, tmp_path, suffix):
        fused = tmp_path / f"fused{suffix}"
        source = small_checkpoint(tmp_path / "training.safetensors")
        fuse_checkpoint(load_checkpoint(source), fused)
        image = random_image(1, 3, 21, 17)
        save_file({"image": image}, tmp_path / "image")
        succeeded(self.upscaled(clone, tmp_path, fused, fused_init=True))
        with torch.inference_mode():
            ours = load_checkpoint(fused).build().eval()(image)
        theirs = load_file(tmp_path / "upscaled")["image"]
        # Another PyTorch or oneDNN may order the sums differently.
        assert (theirs - ours).abs().max() <= 1e-5

    def test_fused_checkpoint_without_the_key_is_an_error(self, clone, tmp_path):
        save_file({"image": random_image(1, 3, 8, 8)}, tmp_path / "image")
        done = self.upscaled(clone, tmp_path, SHIPPED_MODEL)
        assert done.returncode != 0
        assert "mismatched state dict keys" in done.stderr
        assert "fused_conv" in done.stdout

    @pytest.mark.parametrize("fused", [False, True])
    def test_own_converter_takes_the_option_file(self, clone, tmp_path, fused):
        onnxruntime = pytest.importorskip("onnxruntime")
        model = SHIPPED_MODEL
        if not fused:
            model = small_checkpoint(tmp_path / "training.safetensors")
        options = for_use(
            ONNX,
            tmp_path,
            {"path.pretrain_network_g": str(model), "network_g.fused_init": fused},
        )
        done = drive(clone, tmp_path, "onnx", options)
        result = result_of(done, tmp_path)[options.name]
        if "ModuleNotFoundError" in result.get("error", ""):
            pytest.skip("needs the clone's extra: pip install '.[onnx]' in the clone")
        assert "error" not in result, result["error"]
        session = onnxruntime.InferenceSession(str(tmp_path / result["path"]))
        image = random_image(1, 3, 21, 17)
        theirs = torch.from_numpy(session.run(None, {"input": image.numpy()})[0])
        with torch.inference_mode():
            ours = load_checkpoint(model).build().eval()(image)
        assert (theirs - ours).abs().max() <= 1e-5
