"""`aethernet release`: the content of the folder, and what is left after an error."""

import argparse
import hashlib
import json
import os
import re
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import ROOT, check_one_error, lively_network, photo, without_hidden
from PIL import Image

from aethernet.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from aethernet.checkpoints.model_card import figures_of
from aethernet.checkpoints.ncnn_reader import read_ncnn
from aethernet.checkpoints.onnx_check import open_session
from aethernet.checkpoints.rewrites import run_network
from aethernet.checkpoints.verification import compare, natural_image
from aethernet.commands import release as release_command
from aethernet.commands.main import main
from aethernet.errors import VerificationError
from aethernet.pictures.files import read_picture
from aethernet.publish import openmodeldb
from aethernet.quality.baselines import Bicubic
from aethernet.quality.measure import measure_models
from aethernet.runtimes.registry import open_model
from aethernet.upscaling.planes import upscale_picture

TINY = {"embed_dim": 8, "depths": (1,)}
OTHERS = (".md", ".json", ".bin")
EXPORTS = ("--without", "fp32", "fp16", "ncnn")
"""Leaves out the files that take seconds, for tests of something else."""
FEWEST = (*EXPORTS, "pth")
"""As few files as possible."""


def trained(path, iterations=1234, **arguments):
    """A file as a training framework writes it, with the average and worse weights."""
    network = lively_network(**{**TINY, **arguments})
    worse = lively_network(seed=1, **{**TINY, **arguments}).state_dict()
    weights = {"params": worse, "params_ema": network.state_dict()}
    torch.save({**weights, "iter": iterations}, path)
    return network


def check_every_file(base, network, count):
    """Each of `count` model files loads, and computes what the network computes."""
    spandrel = pytest.importorskip(
        "spandrel", reason="needs pip install -e '.[spandrel]'"
    )
    import spandrel_aethernet

    spandrel_aethernet.install(ignore_duplicates=True)
    image = natural_image(20, 24, network.in_chans)
    expected = run_network(network, image)
    files = [path for path in base.parent.glob("*.*") if path.suffix not in OTHERS]
    assert len(files) == count
    for path in files:
        if path.suffix == ".param":
            psnr = 50
            model = read_ncnn(path, path.with_suffix(".bin"))
            output = model.run(image[0], rounded=False)[None]
        elif path.suffix == ".onnx":
            half = path.stem.endswith("_fp16")
            dtype, psnr = (np.float16, 50) if half else (np.float32, 100)
            session = open_session(path.read_bytes())
            feed = {"input": image.astype(dtype)}
            output = session.run(["output"], feed)[0]
            assert output.dtype == dtype
        else:
            psnr = 100
            loaded = spandrel.ModelLoader().load_from_file(path)
            output = run_network(loaded.model.eval(), image)
        assert compare(output, expected).psnr > psnr, path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "net_g_1234.pth"
    trained(path)
    return path


@pytest.fixture(scope="module")
def full_release(checkpoint, tmp_path_factory):
    """A release of everything, with every flag: its folder, and files torch loaded."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "Set2").mkdir()
    for name, size in (("a", (40, 36)), ("b", (30, 33))):
        Image.fromarray(photo(*size)).save(folder / "Set2" / f"{name}.png")
    picture = Image.fromarray(photo(24, 20))
    exif = picture.getexif()
    exif[0x010E] = "at home"
    picture.save(folder / "my leaf.png", exif=exif)
    (folder / "notes.md").write_text(
        "## Known limits\n\nLeaves only: größer.\n", "utf-8"
    )
    words = ["release", checkpoint, "-o", folder / "out", "--name", "leaves"]
    words += ["--author", "helaman", "leaf-lover", "--license", "CC-BY-4.0"]
    words += ["--description", "For leaves.", "--tags", "photo", "denoise"]
    words += ["--date", "2026-02-28", "--notes", folder / "notes.md"]
    words += ["--training", "batch=16", "hr-size=80", "otf=no", "dataset=My | leaves"]
    words += ["--data", folder / "Set2", "--picture", folder / "my leaf.png"]
    words += ["--url", "https://example.org/leaves/"]
    loaded = []
    load = torch.load

    def load_and_count(file, **options):
        loaded.append(Path(file))
        return load(file, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", load_and_count)
        assert main([*map(str, words)]) == 0
    return folder / "out", loaded


@pytest.fixture(scope="module")
def full(full_release):
    """The folder of a release of everything."""
    return full_release[0]


@pytest.fixture(scope="module")
def entry(full):
    return json.loads((full / "2x_leaves.json").read_text("utf-8"))


class TestFull:
    def test_the_files(self, full):
        assert without_hidden(full.parent) == ["Set2", "my leaf.png", "notes.md", "out"]
        assert without_hidden(full) == [
            *("2x_leaves.bin", "2x_leaves.json", "2x_leaves.md", "2x_leaves.param"),
            *("2x_leaves.pth", "2x_leaves.safetensors", "2x_leaves_fp16.onnx"),
            *("2x_leaves_fp32.onnx", "2x_leaves_training.safetensors", "images"),
        ]
        assert without_hidden(full / "images") == [
            f"my leaf_{kind}.png" for kind in ("comparison", "lr", "sr")
        ]

    def test_the_source_is_read_once(self, full_release, checkpoint):
        loaded = full_release[1]
        assert loaded.count(checkpoint) == 1
        # The other file is the written .pth, which is verified.
        assert [path.suffix for path in loaded] == [".pth", ".pth"]

    def test_the_forms(self, full):
        training = load_checkpoint(full / "2x_leaves_training.safetensors")
        assert training.form == "training"
        for key, value in lively_network(**TINY).state_dict().items():
            assert np.array_equal(training.state_dict[key], value)
        for suffix in (".pth", ".safetensors"):
            assert load_checkpoint(full / f"2x_leaves{suffix}").form == "fused"

    def test_every_file_is_loaded_and_computes_the_same(self, full):
        check_every_file(full / "2x_leaves", lively_network(**TINY), 6)

    def test_onnx_files_take_any_size_and_state_the_licence(self, full):
        for kind in ("fp32", "fp16"):
            model = onnx.load(full / f"2x_leaves_{kind}.onnx")
            stated = {each.key: each.value for each in model.metadata_props}
            assert stated["license"] == "CC-BY-4.0"
            sides = model.graph.input[0].type.tensor_type.shape.dim
            assert [side.dim_param for side in sides] == [
                "batch",
                "",
                "height",
                "width",
            ]

    def test_the_entry_has_the_statements(self, entry):
        assert openmodeldb.problems(entry) == []
        assert entry["name"] == "2x_leaves"
        assert entry["author"] == ["helaman", "leaf-lover"]
        assert entry["license"] == "CC-BY-4.0"
        assert entry["tags"] == ["denoise", "photo"]
        assert entry["description"] == "For leaves."
        assert entry["date"] == "2026-02-28"
        assert entry["architecture"] == "aethernet"
        assert entry["size"] == ["8dim", "1nb"]
        assert (entry["scale"], entry["inputChannels"], entry["outputChannels"]) == (
            *(2, 3, 3),
        )
        assert entry["trainingIterations"] == 1234  # the checkpoint's own
        assert entry["trainingBatchSize"] == 16
        assert entry["trainingHRSize"] == 80
        assert entry["trainingOTF"] is False
        assert entry["dataset"] == "My | leaves"

    def test_the_entry_is_true_to_the_files(self, full, entry):
        stated = {}
        for each in entry["resources"]:
            (url,) = each["urls"]
            assert url.startswith("https://example.org/leaves/2x_leaves")
            stated[url.rpartition("/")[2]] = each["size"], each["sha256"]
        files = [path for path in full.iterdir() if path.is_file()]
        # OpenModelDB has no place for ncnn.
        others = (".md", ".json", ".param", ".bin")
        models = [path for path in files if path.suffix not in others]
        assert stated == {
            path.name: (
                path.stat().st_size,
                hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            for path in models
        }
        platforms = {(each["type"], each["platform"]) for each in entry["resources"]}
        assert platforms == {
            *(("safetensors", "pytorch"), ("pth", "pytorch"), ("onnx", "onnx")),
        }
        (image,) = entry["images"]
        assert image["LR"] == "https://example.org/leaves/images/my%20leaf_lr.png"
        assert image["SR"] == "https://example.org/leaves/images/my%20leaf_sr.png"

    def test_the_pictures(self, full):
        lr = read_picture(full / "images/my leaf_lr.png")
        assert np.array_equal(lr.pixels, photo(24, 20))
        assert b"at home" not in (full / "images/my leaf_lr.png").read_bytes()
        model = open_model(
            *(full / "2x_leaves.safetensors", "pytorch", "cpu", "float32")
        )
        sr = upscale_picture(lr, model, 8).pixels
        shown = read_picture(full / "images/my leaf_sr.png").pixels
        assert np.abs(shown.astype(int) - sr).max() <= 1
        both = read_picture(full / "images/my leaf_comparison.png").pixels
        bicubic = upscale_picture(lr, Bicubic(2), 8).pixels
        assert np.array_equal(both[:, :40], bicubic)
        assert np.array_equal(both[:, -40:], shown)
        assert (both[:, 40:-40] == 255).all()

    def test_the_card(self, full, entry):
        card = (full / "2x_leaves.md").read_text("utf-8")
        assert card.startswith("# 2x_leaves\n\nFor leaves.\n")
        assert "## Known limits\n\nLeaves only: größer.\n" in card
        for row in (
            "| network | AetherNet, 2x |",
            "| iterations | 1,234 |",
            "| batch size | 16 |",
            "| degraded on the fly | no |",
            "| data | My \\| leaves |",
            "| author | helaman, leaf-lover |",
            "| licence of the weights | CC-BY-4.0 |",
        ):
            assert row in card
        for path in full.iterdir():
            if path.suffix in (".safetensors", ".pth", ".onnx"):
                row = next(
                    line for line in card.splitlines() if f"`{path.name}`" in line
                )
                assert re.search(r"the same weights|equal|error \d.*PSNR \d", row), row
        (link,) = re.findall(r"\]\(([^)]+)\)", card)
        assert (full / link.replace("%20", " ")).is_file()

    def test_the_figures(self, full):
        card = (full / "2x_leaves.md").read_text("utf-8")
        model = open_model(
            *(full / "2x_leaves.safetensors", "pytorch", "cpu", "float32")
        )
        rows = measure_models({"it": model}, full.parent / "Set2", 2).rows
        means = {row.method: row.mean for row in rows}
        assert figures_of(card)["Set2"] == pytest.approx(means["it"].psnr, abs=0.002)
        (row,) = re.findall(r"^\| Set2 .*$", card, re.MULTILINE)
        assert f"{means['bicubic'].psnr:.3f} dB / {means['bicubic'].ssim:.4f} |" in row
        measured = (
            "aethernet quality --model 2x_leaves.safetensors --data Set2 --runtime"
        )
        assert f"`{measured} " in card


def released(tmp_path, source, *words):
    assert main(["release", str(source), "-o", str(tmp_path / "out"), *words]) == 0
    (entry,) = (tmp_path / "out").glob("*.json")
    return tmp_path / "out", json.loads(entry.read_text("utf-8"))


class TestOthers:
    def test_gray_restoration_from_safetensors(self, tmp_path):
        network = lively_network(**TINY, scale=1, in_chans=1, img_range=2.0)
        save_checkpoint(network, tmp_path / "clean.safetensors")
        folder, entry = released(*(tmp_path, tmp_path / "clean.safetensors", *EXPORTS))
        assert entry["name"] == "1x_aethernet"
        assert entry["tags"] == ["restoration"]
        assert (entry["inputChannels"], entry["outputChannels"]) == (1, 1)
        assert "trainingIterations" not in entry
        assert len(entry["resources"]) == 3
        lr, sr, both = (
            read_picture(folder / f"images/chelsea_{kind}.png").pixels
            for kind in ("lr", "sr", "comparison")
        )
        assert lr.shape == sr.shape
        assert np.array_equal(both[:, : lr.shape[1]], lr)
        card = (folder / "1x_aethernet.md").read_text("utf-8")
        assert "The picture beside the model's result" in card
        assert "Stéfan van der Walt (CC0)" in card

    def test_a_fused_checkpoint_at_4x(self, tmp_path, capsys):
        network = lively_network(**TINY, scale=4).fuse()
        save_checkpoint(network, tmp_path / "fused.pth")
        folder, entry = released(
            *(tmp_path, tmp_path / "fused.pth", *EXPORTS, "--picture")
        )
        assert without_hidden(folder) == [
            *("4x_aethernet.json", "4x_aethernet.md", "4x_aethernet.pth"),
            "4x_aethernet.safetensors",
        ]
        assert entry["images"] == []
        assert all(each["urls"] == [] for each in entry["resources"])
        assert "nobody can continue the training" in capsys.readouterr().out

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("arguments", "fused"),
        [
            ({"scale": 1, "in_chans": 1}, False),
            ({"scale": 3, "depths": (2, 1)}, False),
            ({"scale": 4}, True),
        ],
    )
    def test_every_file_of_other_networks(self, tmp_path, arguments, fused):
        network = lively_network(**{**TINY, **arguments})
        source = tmp_path / "source.safetensors"
        save_checkpoint(network.fuse() if fused else network, source)
        folder, entry = released(tmp_path, source)
        check_every_file(folder / entry["name"], network, 5 if fused else 6)

    def test_missing_statements_are_reported(self, tmp_path, checkpoint, capsys):
        folder, entry = released(tmp_path, checkpoint, *EXPORTS)
        printed = capsys.readouterr().out
        for flag in ("--author", "--license", "--url"):
            assert f"({flag})" in printed
        assert entry["author"] == "anonymous"
        assert entry["license"] is None
        assert entry["date"] == date.today().isoformat()
        assert entry["tags"] == ["general-upscaler"]
        assert openmodeldb.problems(entry) == []
        assert "| licence of the weights | not stated |" in (
            folder / "2x_aethernet.md"
        ).read_text("utf-8")

    def test_another_state_dict_of_the_file(self, tmp_path, checkpoint):
        folder, _ = released(tmp_path, checkpoint, *FEWEST, "--param-key", "params")
        found = load_checkpoint(folder / "2x_aethernet_training.safetensors")
        worse = lively_network(seed=1, **TINY).state_dict()
        assert np.array_equal(
            found.state_dict["conv_first.weight"], worse["conv_first.weight"]
        )

    def test_a_name_with_the_scale_in_it_is_kept(self, tmp_path, checkpoint):
        _, entry = released(tmp_path, checkpoint, *FEWEST, "--name", "2xLeaf_v1.5")
        assert entry["name"] == "2xLeaf_v1.5"

    def test_an_empty_folder_is_taken(self, tmp_path, checkpoint):
        (tmp_path / "out").mkdir()
        folder, _ = released(tmp_path, checkpoint, *FEWEST)
        assert "2x_aethernet.md" in without_hidden(folder)
        assert without_hidden(tmp_path) == ["out"]

    def test_16_bits_gray_and_alpha_are_shown(self, tmp_path, checkpoint):
        deep = (np.arange(20 * 24, dtype=np.uint16) * 130).reshape(20, 24)
        Image.fromarray(deep).save(tmp_path / "deep.png")
        alpha = np.dstack([photo(20, 24), np.full((20, 24), 99, np.uint8)])
        Image.fromarray(alpha).save(tmp_path / "alpha.png")
        names = [str(tmp_path / name) for name in ("deep.png", "alpha.png")]
        folder, _ = released(tmp_path, checkpoint, *FEWEST, "--picture", *names)
        for name, bands in (("deep", 1), ("alpha", 4)):
            shown = read_picture(folder / f"images/{name}_comparison.png").pixels
            assert shown.shape == (40, 2 * 48 + 8, bands)
            assert shown.dtype == np.uint8

    def test_a_large_picture_is_compared_in_its_middle(self, tmp_path, checkpoint):
        Image.fromarray(photo(300, 20)).save(tmp_path / "tall.png")
        folder, _ = released(
            *(tmp_path, checkpoint, *FEWEST, "--picture", str(tmp_path / "tall.png"))
        )
        both = read_picture(folder / "images/tall_comparison.png").pixels
        sr = read_picture(folder / "images/tall_sr.png").pixels
        assert sr.shape[:2] == (600, 40)
        assert np.array_equal(both[:, -40:], sr[44:556])


class TestOverwriting:
    @pytest.fixture(scope="class")
    @classmethod
    def first(cls, tmp_path_factory, checkpoint):
        return released(tmp_path_factory.mktemp("first"), checkpoint, *FEWEST)[0]

    @pytest.fixture
    def old(self, tmp_path, first):
        """A release, and what its files hold."""
        folder = shutil.copytree(first, tmp_path / "out")
        return folder, self.content(folder)

    def content(self, folder):
        return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    def again(self, folder, source, *words):
        return main(["release", str(source), "-o", str(folder), *FEWEST, *words])

    def test_only_on_request(self, tmp_path, old, checkpoint, capsys):
        folder, before = old
        assert self.again(folder, checkpoint) == 1
        error = capsys.readouterr().err
        check_one_error(error)
        assert "--overwrite" in error
        assert self.content(folder) == before

    def test_the_new_one_takes_its_place(self, tmp_path, old, checkpoint):
        folder, _ = old
        assert self.again(folder, checkpoint, "--overwrite", "--name", "new") == 0
        assert "2x_new.md" in without_hidden(folder)
        assert "2x_aethernet.md" not in without_hidden(folder)
        assert without_hidden(tmp_path) == ["out"]

    def test_other_files_are_never_removed(self, tmp_path, old, checkpoint, capsys):
        folder, _ = old
        (folder / "thesis.odt").write_text("years of work")
        before = self.content(folder)
        assert self.again(folder, checkpoint, "--overwrite") == 1
        assert "thesis.odt" in capsys.readouterr().err
        assert self.content(folder) == before

    def test_a_folder_that_is_no_release_is_left_alone(
        self, tmp_path, checkpoint, capsys
    ):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos/images").mkdir()
        assert self.again(tmp_path / "photos", checkpoint, "--overwrite") == 1
        assert "images, which is not part of a release" in capsys.readouterr().err
        assert (tmp_path / "photos/images").is_dir()

    def test_the_source_is_not_removed(self, old, capsys):
        folder, before = old
        source = folder / "2x_aethernet_training.safetensors"
        assert self.again(folder, source, "--overwrite") == 1
        assert "would be replaced" in capsys.readouterr().err
        assert self.content(folder) == before

    @pytest.mark.parametrize(
        ("failure", "code"),
        [(VerificationError("The card is unlucky."), 1), (KeyboardInterrupt(), 130)],
    )
    def test_a_failing_or_interrupted_one_leaves_the_old(
        self, tmp_path, old, checkpoint, monkeypatch, capsys, failure, code
    ):
        folder, before = old

        def fail(*_):
            raise failure

        # The last step but writing the card and the entry.
        monkeypatch.setattr("aethernet.publish.release.as_markdown", fail)
        assert self.again(folder, checkpoint, "--overwrite") == code
        check_one_error(capsys.readouterr().err)
        assert self.content(folder) == before
        assert without_hidden(tmp_path) == ["out"]
        monkeypatch.undo()
        assert self.again(folder, checkpoint, "--overwrite") == 0

    def test_a_move_that_fails_puts_the_old_one_back(
        self, tmp_path, old, checkpoint, monkeypatch, capsys
    ):
        folder, before = old
        rename = os.rename

        def fail(source, target):
            if Path(target) == folder and str(source).endswith(".part"):
                monkeypatch.setattr(os, "rename", rename)
                raise OSError(28, "No space left on device")
            rename(source, target)

        monkeypatch.setattr(os, "rename", fail)
        assert self.again(folder, checkpoint, "--overwrite") == 1
        error = capsys.readouterr().err
        check_one_error(error)
        assert "No space left" in error
        assert self.content(folder) == before
        assert without_hidden(tmp_path) == ["out"]


def test_the_document_names_every_flag():
    parser = argparse.ArgumentParser(add_help=False)
    release_command.define(parser)
    flags = {*re.findall(r"(?<![\w-])--[a-z][a-z-]*", parser.format_usage()), "-o"}
    assert len(flags) == 16
    text = (ROOT / "docs/release.md").read_text("utf-8")
    assert [flag for flag in flags if f"`{flag}" not in text] == []
