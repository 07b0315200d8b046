"""`aethernet upscale` with checkpoints of other networks, which spandrel knows."""

import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import check_one_error, photo, write

from aethernet.commands.main import main
from aethernet.pictures.files import read_picture
from aethernet.runtimes.request import ModelRequest
from aethernet.upscaling.cluster.worker import Worker, WorkerSetup
from aethernet.upscaling.files import Options
from aethernet.upscaling.folders import Job

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


def test_one_of_0_to_255_is_found_out(tmp_path, caplog):
    """Its picture is one in 0 to 255, to which it adds 8."""
    from spandrel.architectures.Compact import Compact

    weights = Compact(num_feat=4, num_conv=1, upscale=2).state_dict()
    last = max(int(key.split(".")[1]) for key in weights)
    weights[f"body.{last}.weight"].zero_()
    weights[f"body.{last}.bias"].fill_(8)
    torch.save({"params": weights}, tmp_path / "compact.pth")
    assert main(words(tmp_path)) == 0
    told = "the network takes RGB of 0 to 255 and makes the same"
    assert told in caplog.text
    made = read_picture(tmp_path / "out.png").pixels
    expected = photo(20, 31).repeat(2, 0).repeat(2, 1).astype(int) + 8
    assert np.abs(made - expected.clip(max=255)).max() <= 1
    caplog.clear()
    assert main(words(tmp_path, "--range", "255", "--bgr")) == 0
    assert caplog.text == ""
    assert np.array_equal(read_picture(tmp_path / "out.png").pixels, made)
    # A worker of a cluster runs it, too, and hands on what it has to say.
    model = ModelRequest(tmp_path / "compact.pth", "auto", "cpu")
    files = {"compact.pth": model.path.read_bytes()}
    worker = Worker(WorkerSetup(model, files, Options(), "12ab", 1, False))
    job = Job(tmp_path / "in.png", tmp_path / "other.png")
    answer = pickle.loads(worker({"job": pickle.dumps((0, job))})["answer"])
    assert answer.outcome.status == "done"
    assert [told in note for note in answer.notes] == [True]
    assert np.array_equal(read_picture(tmp_path / "other.png").pixels, made)


def test_weights_of_no_known_network_are_one_error(tmp_path, capsys):
    torch.save({"params": {"a.weight": torch.ones(3)}}, tmp_path / "compact.pth")
    assert main(words(tmp_path)) == 1
    printed = capsys.readouterr().err
    check_one_error(printed)
    assert "of no architecture that AetherNet or spandrel" in printed
