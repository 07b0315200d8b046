"""int8 files: calibrated on pictures, and verified on them."""

from collections import Counter

import numpy as np
import pytest
from helpers import SHIPPED_MODEL, lively_arrays, lively_file, without_hidden
from PIL import Image

from aethernet.checkpoints.checkpoint import load_checkpoint, write_checkpoint
from aethernet.checkpoints.int8 import export_int8
from aethernet.checkpoints.onnx import ExportOptions, ShapeRange
from aethernet.checkpoints.verification import natural_image
from aethernet.commands.main import main
from aethernet.errors import VerificationError
from aethernet.pictures.calibration import calibration_pictures

REASON = "needs pip install onnx onnxruntime"
onnx = pytest.importorskip("onnx", reason=REASON)
onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)


def save_picture(path, image):
    pixels = np.rint(image[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.squeeze(pixels)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and pictures: two in colour, one in a subfolder, and a gray one."""
    folder = tmp_path_factory.mktemp("int8")
    lively_file(folder / "model.safetensors", depths=(1,))
    save_picture(folder / "pictures/a.png", natural_image(44, 56))
    save_picture(folder / "pictures/more/b.jpg", natural_image(50, 48))
    save_picture(folder / "pictures/gray.png", natural_image(40, 40, 1))
    (folder / "pictures/notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def written(folder):
    """The shipped model: the promises are about trained weights."""
    target = folder / "model.onnx"
    source = load_checkpoint(SHIPPED_MODEL)
    pictures = calibration_pictures(folder / "pictures", 3, None)
    done = export_int8(source, target, pictures, ExportOptions(dynamic=True))
    return target, done


def test_the_projections_are_int8_and_the_rest_is_float32(written):
    model = onnx.load(written[0])
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    weights = {w.name: w for w in graph.initializer}
    kinds = Counter()
    for node in graph.node:
        if node.op_type == "Conv":
            from_int8 = {
                makers[name].op_type if name in makers else "float"
                for name in node.input[:2]
            }
            quantised = from_int8 == {"DequantizeLinear"}
            weight = makers[node.input[1]].input[0] if quantised else node.input[1]
            projection = weight.rpartition(".")[0].endswith((".gate", ".main", ".last"))
            assert quantised == projection
            kinds[quantised] += 1
    assert kinds[True] == 3 * 16
    # Symmetric, as TensorRT requires: zero points of 0, biases in float32.
    for node in graph.node:
        if node.op_type.endswith("QuantizeLinear") or node.op_type.startswith("Deq"):
            point = onnx.numpy_helper.to_array(weights[node.input[2]])
            assert point.dtype == np.int8
            assert not point.any()


def test_the_metadata_describe_it(written):
    model = onnx.load(written[0])
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["precision"] == "int8"
    assert metadata["scale"] == "2"
    assert [entry.domain for entry in model.opset_import] == [""]
    assert b".py" not in written[0].read_bytes()
    assert "--stronglyTyped" in written[1].trtexec


def test_reports_every_picture_and_every_frame(written):
    differences = written[1].differences
    assert {"a.png", "more/b.jpg", "checkerboard", "1 x 1x1"} <= set(differences)
    assert "gray.png" not in differences
    # Coarser than half precision, else nothing was quantized.
    assert 40 <= differences["a.png"].psnr < 70


def test_takes_any_size(written):
    session = onnxruntime.InferenceSession(
        written[0], providers=["CPUExecutionProvider"]
    )
    for size in ((1, 3, 1, 1), (2, 3, 7, 5)):
        output = session.run(None, {"input": np.zeros(size, np.float32)})[0]
        assert output.shape == (*size[:2], 2 * size[2], 2 * size[3])


def test_a_file_below_the_psnr_is_refused_unless_allowed(folder, tmp_path, capsys):
    source, target = folder / "model.safetensors", tmp_path / "m.onnx"
    target.write_bytes(b"an older file")
    words = ["export", str(source), "-o", str(target), "--precision", "int8"]
    words += ["--calibrate", str(folder / "pictures")]
    assert main([*words, "--min-psnr", "99", "--static", "48x40"]) == 1
    error = capsys.readouterr().err
    assert "less than 99 dB" in error
    assert "Nothing was written" in error
    assert target.read_bytes() == b"an older file"
    assert without_hidden(tmp_path) == ["m.onnx"]
    assert main([*words, "--min-psnr", "10", "--static", "48x40"]) == 0
    shape = onnx.load(target).graph.input[0].type.tensor_type.shape
    assert [side.dim_value for side in shape.dim] == [1, 3, 40, 48]
    assert "a.png" in capsys.readouterr().out


def test_a_network_that_int8_ruins_is_refused_by_default(folder, tmp_path):
    weights, arguments = lively_arrays(depths=(1,))
    # One activation far beyond the others uses all the steps.
    weights["layers.0.0.ffn.fc1_main.bias"][0] = 3e4
    weights["layers.0.0.ffn.fc2.weight"][:, 0] = 1e-5
    write_checkpoint(weights, arguments, tmp_path / "model.safetensors")
    size = (1, 24, 32)
    with pytest.raises(VerificationError, match="less than 40 dB"):
        export_int8(
            load_checkpoint(tmp_path / "model.safetensors"),
            tmp_path / "m.onnx",
            calibration_pictures(folder / "pictures", 3, size),
            ExportOptions(shapes=ShapeRange(size, size, size)),
        )
    assert without_hidden(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--precision", "int8"], "int8 needs --calibrate FOLDER"),
        (["--calibrate", "x"], "--calibrate does not apply to float32"),
        (["--min-psnr", "30"], "--min-psnr does not apply to float32"),
        (["--precision", "int8", "--calibrate", "x"], "x: There is no such folder"),
        (
            ["--precision", "int8", "--calibrate", "x", "--atol", "1"],
            "--atol does not apply to int8",
        ),
    ],
)
def test_flags_that_do_not_go_together(folder, tmp_path, capsys, words, reason):
    source, target = folder / "model.safetensors", tmp_path / "m.onnx"
    assert main(["export", str(source), "-o", str(target), *words]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not target.exists()
