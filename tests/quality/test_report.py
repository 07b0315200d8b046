"""Results of measuring: the printed table, JSON, CSV and the plot."""

import csv

import numpy as np
import pytest
from helpers import LIBRARY, PLAIN, write
from PIL import Image
from quality_helpers import by_method, measured, quality


class TestReport:
    def test_json_says_how_it_was_measured(self, folder, run):
        assert run["command"].startswith(f"aethernet quality --runtime {PLAIN}")
        assert "bicubic" in run["protocol"]
        assert run["machine"]["versions"]["numpy"] == np.__version__
        assert run["models"]["one"]["file"] == "one.safetensors"
        assert len(run["models"]["one"]["sha256"]) == 64
        row = by_method(run["sets"][0])["one"]
        described = (row["runtime"], row["device"], row["precision"], row["tile"])
        assert described == (LIBRARY, "cpu", "float32", None)

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
        pytest.importorskip("matplotlib", reason="needs pip install -e '.[bench]'")
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
