"""The models folder: its names, cards and entries, and that they are true."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import (
    HAS_TORCH,
    PLAIN,
    ROOT,
    SAMPLE,
    SHIPPED_MODEL,
    SUFFIX,
    run,
    without_hidden,
)
from PIL import Image

from aethernet.checkpoints import shipped
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.comparison import network_of
from aethernet.checkpoints.ncnn_reader import read_ncnn
from aethernet.checkpoints.onnx_check import (
    open_session,
    rounding_session,
    verify,
)
from aethernet.checkpoints.shipped import find_model, shipped_model, shipped_models
from aethernet.checkpoints.tolerances import Tolerance
from aethernet.checkpoints.verification import (
    compare,
    natural_image,
    verification_frames,
)
from aethernet.commands.main import main
from aethernet.errors import AetherError, CheckpointError
from aethernet.publish import openmodeldb

MODELS = ROOT / "models"
NCNN = (".param", ".bin")
ENTRIES = sorted(MODELS.glob("[0-9]*.json"))  # not index.json
RUNNING = ("--runtime", PLAIN, "--device", "cpu", "--precision", "float32")

torch_only = pytest.mark.skipif(not HAS_TORCH, reason="needs PyTorch")
entries = pytest.mark.parametrize("entry", ENTRIES, ids=lambda path: path.stem)


def files_of(entry):
    """The binaries that belong to an entry, by the ending of their names."""
    endings = (shipped.FUSED, *shipped.ENDINGS.values(), shipped.NCNN_WEIGHTS)
    found = {end: entry.with_name(entry.stem + end) for end in endings}
    return {end: path for end, path in found.items() if path.is_file()}


class TestModelsFolder:
    def test_every_binary_belongs_to_an_entry_with_a_card(self):
        binaries = {
            path
            for path in MODELS.glob("*")
            if path.suffix in (".safetensors", ".pth", ".onnx", *NCNN)
        }
        assert binaries
        assert binaries == {p for entry in ENTRIES for p in files_of(entry).values()}
        assert all(entry.with_suffix(".md").is_file() for entry in ENTRIES)

    def test_it_stays_small(self):
        sizes = [path.stat().st_size for path in MODELS.rglob("*") if path.is_file()]
        assert sum(sizes) <= 70e6
        assert max(sizes) <= 6 * 2**20

    @entries
    def test_each_has_its_training_form_onnx_and_ncnn(self, entry):
        endings = {*files_of(entry)}
        wanted = (".safetensors", "_training.safetensors", "_fp16.onnx", *NCNN)
        assert endings >= {*wanted}

    @entries
    def test_entries_are_right_and_true(self, entry):
        said = json.loads(entry.read_text("utf-8"))
        assert openmodeldb.problems(said) == []
        assert entry.read_text("utf-8") == openmodeldb.as_text(said)
        checkpoint = load_checkpoint(entry.with_suffix(".safetensors"))
        assert said["name"] == entry.stem
        assert said["scale"] == checkpoint.scale
        channels = checkpoint.hyperparameters["in_chans"]
        assert said["inputChannels"] == said["outputChannels"] == channels
        assert said["size"] == [checkpoint.variant.removeprefix("aether_")]
        found = [
            (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in files_of(entry).values()
            if path.suffix not in NCNN  # OpenModelDB has no place for them
        ]
        stated = [(each["size"], each["sha256"]) for each in said["resources"]]
        assert sorted(stated) == sorted(found)

    @entries
    def test_the_fused_file_is_the_training_form(self, entry):
        files = files_of(entry)
        training = load_checkpoint(files["_training.safetensors"])
        assert training.form == "training"
        fused = load_checkpoint(files[".safetensors"])
        assert fused.form == "fused"
        image = natural_image(48, 56, training.hyperparameters["in_chans"])
        outputs = (network_of(form).run(image) for form in (fused, training))
        difference = compare(*outputs)
        assert difference.max_abs_error <= 1e-5

    @entries
    def test_the_onnx_file_is_the_training_form(self, entry):
        files = files_of(entry)
        training = load_checkpoint(files["_training.safetensors"])
        # A photograph, and pictures that drive activations to where float16 fails.
        frames = verification_frames(32, 40, training.in_chans)
        cases = network_of(training).cases(frames.items())
        content = files["_fp16.onnx"].read_bytes()
        half = Tolerance.of("float16")
        verify(rounding_session(content), cases, half)
        found = verify(open_session(content), cases[:1], half)
        assert found["natural image"].psnr >= 60

    @entries
    def test_the_ncnn_files_are_the_training_form(self, entry):
        files = files_of(entry)
        training = load_checkpoint(files["_training.safetensors"])
        model = read_ncnn(files[".param"], files[".bin"])
        image = natural_image(24, 28, training.in_chans)
        output = model.run(image[0], rounded=True)
        assert compare(output, network_of(training).run(image)[0]).psnr >= 60

    @entries
    def test_the_onnx_file_states_the_licence_of_the_entry(self, entry):
        model = onnx.load(files_of(entry)["_fp16.onnx"])
        stated = {each.key: each.value for each in model.metadata_props}
        assert stated["license"] == json.loads(entry.read_text("utf-8"))["license"]

    @entries
    def test_the_card_names_files_figures_and_their_command(self, entry):
        card = entry.with_suffix(".md").read_text("utf-8")
        for path in files_of(entry).values():
            assert f"`{path.name}`" in card
        command = re.search(r"`aethernet quality ([^`]+)`", card)
        assert command
        words = command[1].split()
        assert words[words.index("--model") + 1] == f"{entry.stem}.safetensors"
        data = words.index("--data")
        assert words[data + 1 : data + 3] == ["Set5", "Set14"]
        assert words[words.index("--precision") + 1] == "float32"
        for name in ("Set5", "Set14"):
            assert re.search(rf"^\| {name} \| \d\d\.\d+ dB / 0\.\d+ \|", card, re.M)
        assert json.loads(entry.read_text("utf-8"))["license"] in card

    @entries
    @pytest.mark.slow
    def test_the_card_states_what_the_file_reaches_on_set5(self, entry, shared):
        from aethernet.quality.measure import measure_models
        from aethernet.runtimes.registry import open_any

        path = entry.with_suffix(".safetensors")
        model = open_any(path, PLAIN, "cpu", "float32")
        data = shared / "data/bench/Set5"
        rows = measure_models({"it": model}, data, model.scale).rows
        mean = next(row.mean for row in rows if row.method == "it")
        stated = next(m for m in shipped_models() if m.path == path).psnr["Set5"]
        assert stated == pytest.approx(mean.psnr, abs=0.002)


class TestNames:
    def test_every_file_has_one(self):
        by_name = {model.name: model for model in shipped_models()}
        assert {"2x-small", "2x-small-training", "2x-small-fp16"} <= {*by_name}
        small = by_name["2x-small"]
        assert (small.scale, small.variant) == (2, "aether_small")
        assert (small.form, small.precision) == ("fused", "float32")
        assert small.license == "MIT"
        assert by_name["2x-small-training"].form == "training"
        assert (small.purpose, by_name["2x-photo"].purpose) == ("", "photo")
        assert by_name["2x-photo-fp16"].variant == "aether_small"
        assert {*by_name["2x-photo"].psnr} == {"Set5", "Set14"}
        half = by_name["2x-small-fp16"]
        assert (half.form, half.precision) == ("ONNX", "float16")
        files = [p for entry in ENTRIES for p in files_of(entry).values()]
        binaries = {path for path in files if path.suffix not in NCNN}
        assert {model.path.resolve() for model in by_name.values()} == binaries

    def test_the_default_is_the_fused_small_one(self):
        assert shipped_model().resolve() == SHIPPED_MODEL
        assert find_model("2x-small").resolve() == SHIPPED_MODEL

    def test_a_file_of_that_name_wins(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "2x-small").mkdir()  # a folder, as `ui` takes
        assert str(find_model("2x-small")) == "2x-small"

    def test_the_error_about_an_unknown_name_lists_the_known_ones(self):
        with pytest.raises(AetherError, match="no such file, and no model") as raised:
            find_model("4x-huge")
        assert str(raised.value.path) == "4x-huge"
        assert "2x-small, " in raised.value.hint

    def test_what_looks_like_a_path_is_returned_as_one(self):
        for name in ("2x-small.pth", "models/2x-small", "absent.engine"):
            assert find_model(name) == Path(name)

    def test_without_models_the_error_says_so(self, tmp_path, monkeypatch):
        monkeypatch.setattr(shipped, "models_folder", lambda: tmp_path)
        with pytest.raises(AetherError, match="not installed"):
            shipped_model()
        with pytest.raises(AetherError, match="none in this installation"):
            find_model("2x-small")
        assert shipped_models() == []

    def test_foreign_files_beside_them_have_no_names(self, tmp_path, monkeypatch):
        shutil.copy(SHIPPED_MODEL, tmp_path / "2x_aether_small.safetensors")
        for name in ("2x_aether_small.md.part", "notes.onnx", ".2x_aether_small.onnx"):
            (tmp_path / name).touch()
        monkeypatch.setattr(shipped, "models_folder", lambda: tmp_path)
        (found,) = shipped_models()
        assert found.name == "2x-small"
        assert found.license is None  # no entry, no card
        assert found.psnr == {}


class TestListing:
    def test_the_table(self, capsys):
        assert main(["models"]) == 0
        header, *rows = capsys.readouterr().out.splitlines()
        assert re.split(r"  +", header)[:2] == ["name", "variant"]
        assert "Set5 dB" in header
        first = re.split(r"  +", rows[0])
        assert first[:5] == ["2x-small", "aether_small", "2x", "fused", "float32"]
        assert first[-2:] == ["MIT", str(shipped_model())]
        names = [re.split(r"  +", row)[0] for row in rows[: rows.index("")]]
        assert names == [model.name for model in shipped_models()]

    def test_it_tells_what_a_model_is_for_and_not_for(self, capsys):
        assert main(["models"]) == 0
        text = capsys.readouterr().out
        for entry in ENTRIES:
            stated = json.loads(entry.read_text("utf-8"))["description"]
            assert f": {stated}\n" in text
            assert "For " in stated
            assert "Not for " in stated

    def test_needs_neither_torch_nor_pyvips(self):
        code = (
            "import sys; from aethernet.commands.main import main;"
            "main(['models']); print({'torch', 'pyvips'} & {*sys.modules})"
        )
        assert run("-c", code).stdout.splitlines()[-1] == "set()"

    def test_a_damaged_file_is_named(self, tmp_path, monkeypatch):
        path = tmp_path / "2x_aether_small.safetensors"
        path.write_bytes(b"damaged" * 9)
        monkeypatch.setattr(shipped, "models_folder", lambda: tmp_path)
        with pytest.raises(CheckpointError, match="truncated") as raised:
            shipped_models()
        assert raised.value.path == path

    def test_for_programs(self, capsys):
        assert main(["models", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [each["name"] for each in found] == [m.name for m in shipped_models()]
        small = found[0]
        assert small["size"] == SHIPPED_MODEL.stat().st_size
        assert small["path"] == str(shipped_model())
        assert 36 < small["psnr"]["Set5"] < 39


def refusing(monkeypatch, name):
    """Make a function raise an error; the list holds its arguments of each call."""
    seen = []

    def refuse(*words, **_):
        seen.append(words)
        raise AetherError("Not today.")

    monkeypatch.setattr(name, refuse)
    return seen


class TestCommands:
    """`2x-small` wherever a model file is taken."""

    @pytest.fixture
    def picture(self, tmp_path):
        with Image.open(SAMPLE) as image:
            image.crop((0, 0, 24, 20)).save(tmp_path / "in.png")
        return str(tmp_path / "in.png")

    def test_upscale(self, picture, tmp_path, capsys):
        words = ["upscale", picture, "-o", str(tmp_path / "out.png"), *RUNNING]
        assert main([*words, "--model", "2x-small"]) == 0
        assert "with 2x_aether_small.safetensors" in capsys.readouterr().out
        named = np.asarray(Image.open(tmp_path / "out.png"))
        assert main(words) == 0
        assert np.array_equal(named, np.asarray(Image.open(tmp_path / "out.png")))

    def test_upscale_with_an_unknown_name(self, picture, tmp_path, capsys):
        words = ["upscale", picture, "-o", str(tmp_path / "out.png")]
        assert main([*words, "--model", "3x-small"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: 3x-small: There is no such file, and no model")
        assert error.count("\n") == 1
        assert without_hidden(tmp_path) == ["in.png"]

    def test_compare(self, picture, tmp_path):
        target = tmp_path / "page.html"
        words = ["compare", picture, "-o", str(target), *RUNNING]
        assert main([*words, "--model", "2x-small", "2x-small-training"]) == 0
        page = target.read_text("utf-8")
        assert '"name": "2x_aether_small"' in page
        assert '"name": "2x_aether_small_training"' in page

    def test_ui(self, monkeypatch):
        served = []
        monkeypatch.setattr(
            "aethernet.ui.server.serve",
            lambda found, *_, **__: served.append([*found]),
        )
        assert main(["ui", "--model", "2x-small", "2x-small-fp16"]) == 0
        assert served == [["2x-small", "2x-small-fp16"]]
        assert main(["ui"]) == 0
        assert "2x-small" in served[1]

    def test_info(self, capsys):
        assert main(["info", "2x-small-training"]) == 0
        assert re.search(r"form +training", capsys.readouterr().out)

    @pytest.mark.parametrize(
        ("command", "module", "name"),
        [
            ("fuse", "commands.fuse", f"f{SUFFIX}"),
            ("export", "commands.export", "m.onnx"),
            pytest.param("release", "checkpoints.checkpoint", "out", marks=torch_only),
        ],
    )
    def test_conversions(self, tmp_path, monkeypatch, command, module, name):
        seen = refusing(monkeypatch, f"aethernet.{module}.load_checkpoint")
        words = [command, "2x-small-training", "-o", str(tmp_path / name)]
        assert main(words) == 1
        assert seen[0][0] == find_model("2x-small-training")

    def test_engine_goes_into_the_current_folder(self, monkeypatch):
        seen = refusing(monkeypatch, "aethernet.runtimes.tensorrt.build.build_engine")
        assert main(["engine", "2x-small-fp16"]) == 1
        source, target, *_ = seen[0]
        assert source == find_model("2x-small-fp16")
        assert str(target) == "2x_aether_small_fp16.engine"

    @torch_only
    def test_bench(self, monkeypatch):
        pytest.importorskip("torch", reason="needs PyTorch")
        seen = refusing(monkeypatch, "aethernet.bench.rounds.run_benchmark")
        assert main(["bench", "--model", "2x-small"]) == 1
        ((plan,),) = seen
        assert plan.model.path == shipped_model()
        assert plan.scale == 2

    def test_quality(self, picture, monkeypatch, tmp_path):
        seen = refusing(monkeypatch, "aethernet.runtimes.registry.open_any")
        words = ["quality", "--data", str(tmp_path), *RUNNING]
        assert main([*words, "--model", "2x-small-fp16"]) == 1
        assert seen[0][0] == find_model("2x-small-fp16")


def test_names_are_of_aethernet_only(tmp_path, monkeypatch):
    shutil.copy(SHIPPED_MODEL, tmp_path / "2x_span.safetensors")
    monkeypatch.setattr(shipped, "models_folder", lambda: tmp_path)
    assert shipped_models() == []
