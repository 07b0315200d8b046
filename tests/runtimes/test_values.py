"""Models that want other values than RGB of 0 to 1: found out, or as the user says."""

import logging

import numpy as np
import pytest
from helpers import SHIPPED_MODEL, check_one_error, lively_arrays, photo, write
from runtime_helpers import PICTURE, SMALLEST, write_model
from safetensors.numpy import load_file, save_file

from aethernet.checkpoints.checkpoint import load_checkpoint, write_checkpoint
from aethernet.checkpoints.folded import fold
from aethernet.checkpoints.reference import evaluate
from aethernet.checkpoints.verification import natural_image
from aethernet.commands.main import main
from aethernet.pictures.files import read_picture
from aethernet.runtimes.base import AskedValues
from aethernet.runtimes.registry import open_any

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FLOAT, UINT8 = 1, 2
ORDER = onnx.helper.make_tensor("order", 7, [3], [2, 1, 0])
SCALES = onnx.helper.make_tensor("scales", FLOAT, [4], [1, 1, 2, 2])


def constant(name, *values):
    shape = [len(values), 1, 1] if len(values) > 1 else []
    return onnx.helper.make_tensor(name, FLOAT, shape, values)


def doubling(path, *steps, weights=(), dtype=FLOAT, channels=3):
    """A model that repeats pixels and then does these steps, (operator, inputs ..)."""
    nodes = [onnx.helper.make_node("Resize", ["x", "", "scales"], ["v0"], "n0")]
    for number, (op, *inputs) in enumerate(steps):
        axis = {"axis": 1} if op == "Gather" else {}
        names = [f"v{number}", *inputs], [f"v{number + 1}"], f"n{number + 1}"
        nodes.append(onnx.helper.make_node(op, *names, **axis))
    nodes[-1].output[0] = "y"
    shapes = {"x": [PICTURE[0], channels, *PICTURE[2:]], "y": [None] * 4}
    return write_model(path, nodes, shapes, dtype, [SCALES, *weights])


@pytest.fixture
def upscaled(tmp_path, caplog):
    """Upscales a picture; returns the pixels it was made of, the result and the log."""

    def run(model, *flags, bands=3):
        pixels = photo(20, 31)[..., :bands]
        write(pixels, tmp_path / "in.png")
        words = ["upscale", tmp_path / "in.png", "-o", tmp_path / "out.png"]
        words += ["--model", model, "--device", "cpu", *flags]
        with caplog.at_level(logging.WARNING):
            code = main([*map(str, words)])
        if code:
            return code
        return pixels.repeat(2, 0).repeat(2, 1), read_picture(tmp_path / "out.png")

    return run


def to_255(path):
    """Rounds to whole numbers, as networks with eight bits inside."""
    return doubling(path, ("Round",))


def makes_255(path):
    return doubling(path, ("Mul", "white"), weights=[constant("white", 255)])


def takes_255(path):
    return doubling(path, ("Div", "white"), weights=[constant("white", 255)])


def reversed_colours(path):
    return doubling(path, ("Gather", "order"), weights=[ORDER])


def reversed_to_255(path):
    return doubling(path, ("Gather", "order"), ("Round",), weights=[ORDER])


def of_bytes(path):
    return doubling(path, dtype=UINT8)


@pytest.mark.parametrize("runtime", ["auto", "openvino"])
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (to_255, "takes RGB of 0 to 255 and makes the same"),
        (makes_255, "takes RGB of 0 to 1 and makes RGB of 0 to 255"),
        (takes_255, "takes RGB of 0 to 255 and makes RGB of 0 to 1"),
        (reversed_colours, "makes BGR of 0 to 1"),
        (reversed_to_255, "makes BGR of 0 to 255"),
        (of_bytes, ""),
        (doubling, ""),
    ],
)
def test_other_values_are_found_out(make, told, runtime, tmp_path, upscaled, caplog):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    expected, made = upscaled(make(tmp_path / "m.onnx"), "--runtime", runtime)
    assert np.array_equal(made.pixels, expected)
    assert len(caplog.records) == bool(told), caplog.text
    assert told in caplog.text
    assert ("(--range 255)" in caplog.text) == (make is to_255)


def test_the_user_knows_better(tmp_path, upscaled, caplog):
    _, made = upscaled(to_255(tmp_path / "m.onnx"), "--range", "1")
    assert {*np.unique(made.pixels)} == {0, 255}
    expected, made = upscaled(to_255(tmp_path / "m.onnx"), "--range", "255")
    assert np.array_equal(made.pixels, expected)
    assert caplog.text == ""


def test_bgr(tmp_path, upscaled, caplog):
    """A network in the order of OpenCV that halves blue, the first channel."""
    halves = constant("halves", 0.5, 1, 1)
    path = doubling(tmp_path / "m.onnx", ("Mul", "halves"), weights=[halves])
    expected, made = upscaled(path, "--bgr")
    assert np.abs(made.pixels - expected * [1, 1, 0.5]).max() <= 0.51
    assert caplog.text == ""
    steps = ("Round",), ("Mul", "halves")
    path = doubling(tmp_path / "m.onnx", *steps, weights=[halves])
    expected, made = upscaled(path, "--bgr", "--range", "255")
    assert np.abs(made.pixels - expected * [1, 1, 0.5]).max() <= 0.51


def test_gray(tmp_path, upscaled, caplog, capsys):
    path = doubling(tmp_path / "m.onnx", ("Round",), channels=1)
    expected, made = upscaled(path, bands=1)
    assert np.array_equal(made.pixels, expected)
    assert "takes values of 0 to 255 and makes the same" in caplog.text
    assert upscaled(path, "--bgr", bands=1) == 1
    check_one_error(capsys.readouterr().err)


def test_what_makes_no_picture_in_any_way_is_not_changed(tmp_path, upscaled, caplog):
    """An inversion, say: the network may mean it."""
    path = doubling(
        tmp_path / "m.onnx", ("Sub", "one"), ("Neg",), weights=[constant("one", 1)]
    )
    expected, made = upscaled(path)
    assert np.array_equal(made.pixels, 255 - expected)
    assert caplog.text == ""


class TestAetherNet:
    @pytest.fixture
    def wide(self, tmp_path):
        """The trained network with the weights of a training with 255, bare."""
        weights = dict(load_checkpoint(SHIPPED_MODEL).state_dict)
        weights["conv_first.weight"] = weights["conv_first.weight"] / np.float32(255)
        for key in ("conv_last.weight", "conv_last.bias"):
            weights[key] = weights[key] * np.float32(255)
        save_file(weights, tmp_path / "wide.safetensors")
        return tmp_path / "wide.safetensors"

    def test_another_img_range_is_found_out(self, wide, upscaled, caplog):
        _, made = upscaled(wide)
        assert "trained with an img_range of 255, so it is used" in caplog.text
        _, right = upscaled(SHIPPED_MODEL)
        assert np.abs(made.pixels.astype(int) - right.pixels).max() <= 1

    @pytest.mark.parametrize("runtime", ["auto", "onnxruntime", "pytorch"])
    def test_each_runtime_uses_it(self, tmp_path, runtime):
        if runtime == "pytorch":
            pytest.importorskip("torch", reason="needs PyTorch")
        weights, arguments = lively_arrays(**SMALLEST)
        write_checkpoint(weights, arguments, tmp_path / "bare.safetensors")
        right = evaluate(fold(weights, 255.0), natural_image(16, 16))
        content = load_file(tmp_path / "bare.safetensors")
        save_file(content, tmp_path / "bare.safetensors")  # without what it says
        how = (tmp_path / "bare.safetensors", runtime, "cpu", "float32")
        for asked in (AskedValues(255.0), AskedValues(1.0)):
            made = open_any(*how, asked=asked).run(natural_image(16, 16))
            error = np.abs(made - right).max()
            assert (error < 1e-4) == (asked.range == 255)

    def test_it_takes_rgb(self, upscaled, capsys):
        assert upscaled(SHIPPED_MODEL, "--bgr") == 1
        printed = capsys.readouterr().err
        check_one_error(printed)
        assert "takes RGB" in printed

    def test_what_the_file_says_is_not_overruled(self, upscaled, capsys):
        assert upscaled(SHIPPED_MODEL, "--range", "255") == 1
        printed = capsys.readouterr().err
        check_one_error(printed)
        assert "img_range was given as 255, but the file says 1" in printed
