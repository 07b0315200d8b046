"""`aethernet upscale` with checkpoints of other networks, which spandrel knows."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import check_one_error, photo, write

from aethernet.commands.main import main
from aethernet.pictures.files import read_picture

pytest.importorskip("spandrel", reason="needs the extra spandrel")


@pytest.fixture
def network(tmp_path):
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    made = Compact(num_feat=8, num_conv=2, upscale=3).eval()
    torch.save({"params": made.state_dict()}, tmp_path / "compact.pth")
    return made


def words(tmp_path, *more):
    write(photo(20, 31), tmp_path / "in.png")
    names = ["upscale", tmp_path / "in.png", "-o", tmp_path / "out.png"]
    model = ["--model", tmp_path / "compact.pth", "--device", "cpu"]
    return [*map(str, (*names, *model, *more))]


def test_a_picture(network, tmp_path, capsys):
    assert main(words(tmp_path)) == 0
    printed = capsys.readouterr()
    assert "PyTorch float32 on cpu" in printed.out
    assert printed.err == ""
    image = torch.from_numpy(photo(20, 31)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = network(image)[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    made = read_picture(tmp_path / "out.png").pixels
    assert made.shape == (60, 93, 3)
    assert np.abs(made - expected).max() <= 0.51


def test_the_name_beside_the_source_has_its_scale(network, tmp_path):
    arguments = words(tmp_path)
    del arguments[2:4]
    assert main(arguments) == 0
    assert (tmp_path / "in_3x.png").exists()


def test_only_pytorch_runs_it(network, tmp_path, capsys):
    assert main(words(tmp_path, "--runtime", "onnxruntime")) == 1
    printed = capsys.readouterr().err
    check_one_error(printed)
    assert "only PyTorch runs it" in printed


def test_weights_of_no_known_network_are_one_error(tmp_path, capsys):
    torch.save({"params": {"a.weight": torch.ones(3)}}, tmp_path / "compact.pth")
    assert main(words(tmp_path)) == 1
    printed = capsys.readouterr().err
    check_one_error(printed)
    assert "of no architecture that AetherNet or spandrel" in printed
