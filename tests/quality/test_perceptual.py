"""LPIPS and DISTS, with stand-ins for the networks that are downloaded."""

import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import sample_part, write
from quality_helpers import measured, quality

from aethernet.quality import perceptual


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
    def with_perceptual(self, monkeypatch, without_perceptual):
        monkeypatch.setattr(perceptual, "open_perceptual", without_perceptual)

    @pytest.fixture
    def backbones(self, networks, monkeypatch):
        alexnet, vgg = networks
        monkeypatch.setattr("torchvision.models.alexnet", lambda **_: alexnet)
        module = "torchmetrics.functional.image.dists"
        monkeypatch.setattr(f"{module}.vgg16", lambda **_: vgg)

    def test_is_in_the_table_and_the_files(self, backbones, tmp_path, capsys):
        write(sample_part(96, 80), tmp_path / "hr/a.png")
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
        hr = sample_part(96, 80)
        other = hr.copy()
        other[:2] = other[:, -2:] = 0
        for metric in found:
            assert metric.measure(other, hr, 2) == pytest.approx(0, abs=1e-6)
            assert metric.measure(other, hr, 1) > 1e-4

    def test_is_left_out_where_a_picture_is_too_small(
        self, backbones, tmp_path, capsys
    ):
        write(sample_part(20, 20), tmp_path / "hr/a.png")
        found = measured(tmp_path, "--data", tmp_path / "hr", "--scale", 2)
        assert found["sets"][0]["methods"][0]["mean"]["lpips"] is None
        assert " nan " in capsys.readouterr().out

    def test_a_failed_download_is_reported_below_the_table(
        self, tmp_path, capsys, monkeypatch
    ):
        for package in ("torchmetrics", "torchvision"):
            pytest.importorskip(package, reason="needs pip install -e '.[quality]'")

        def unreachable(*_, **__):
            raise OSError("Name or service not known")

        monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        write(sample_part(64, 64), tmp_path / "hr/a.png")
        with torch.device("meta"):  # the networks' random weights would take seconds
            found = measured(tmp_path, "--data", tmp_path / "hr", "--scale", 2)
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].split()[:4] == ["method", "PSNR-Y", "SSIM-Y", "s/MP"]
        assert lines[-2].startswith("Without LPIPS: It needs AlexNet")
        assert lines[-1].startswith("Without DISTS: It needs VGG-16")
        assert {*found["left_out"]} == {"LPIPS", "DISTS"}

    def test_without_the_extra_there_is_one_line(self, folder, capsys, monkeypatch):
        for name in ("torchmetrics", "torchmetrics.image.lpip"):
            monkeypatch.setitem(sys.modules, name, None)
        functional = "torchmetrics.functional.image.dists"
        monkeypatch.setitem(sys.modules, functional, None)
        assert quality("--data", folder / "hr", "--scale", 2) == 0
        (line,) = capsys.readouterr().out.splitlines()[5:]
        assert line.startswith("Without LPIPS and DISTS: ")
        assert "[quality]" in line
