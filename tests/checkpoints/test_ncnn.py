"""ncnn files written from the folded network, run by the package ncnn on the CPU."""

import re

import numpy as np
import pytest
from helpers import (
    SHIPPED_MODEL,
    lively_arrays,
    lively_folded,
    random_array,
    without_hidden,
)

from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.folded import fold
from aethernet.checkpoints.ncnn import to_ncnn, write_ncnn
from aethernet.checkpoints.ncnn_reader import read_ncnn
from aethernet.checkpoints.reference import evaluate, largest_deviations
from aethernet.errors import AetherError

SIZES = [(1, 1), (1, 7), (3, 1), (2, 2), (13, 17)]


def loaded(path):
    """Runs a pair of files: `(C, H, W)` -> `(C, H, W)`, in float32."""
    ncnn = pytest.importorskip("ncnn", reason="needs pip install -e '.[ncnn]'")
    net = ncnn.Net()
    net.opt.num_threads = 1  # on small pictures, threads mostly wait for each other
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{name}", False)
    assert net.load_param(str(path)) == 0
    assert net.load_model(str(path.with_suffix(".bin"))) == 0

    def run(image):
        extractor = net.create_extractor()
        content = np.ascontiguousarray(image)
        extractor.input("data", ncnn.Mat(content).clone())
        code, result = extractor.extract("output")
        assert code == 0
        return np.array(result)

    return run


@pytest.fixture(scope="module")
def shipped():
    """The shipped model, and pictures with what it makes of each."""
    folded = load_checkpoint(SHIPPED_MODEL).folded
    sizes = ((1, 1), (7, 5), (13, 17), (9, 31), (24, 32))
    images = [random_array(1, 3, *size) for size in sizes]
    return folded, [(image[0], evaluate(folded, image)[0]) for image in images]


class TestFunction:
    @pytest.mark.parametrize(
        ("scale", "arguments"),
        [
            *((scale, {}) for scale in (1, 2, 3, 4, 8)),
            *((scale, {"in_chans": 1, "img_range": 255.0}) for scale in (1, 8)),
            (2, {"mlp_ratio": 2.6, "lk_kernel": 9, "sk_kernel": 5}),
        ],
    )
    def test_is_that_of_the_network_on_every_size(self, tmp_path, scale, arguments):
        network, folded = lively_folded(scale=scale, depths=(1,), **arguments)
        write_ncnn(folded, tmp_path / "model.param")
        run = loaded(tmp_path / "model.param")
        for size in SIZES:
            image = random_array(1, folded.in_chans, *size)
            expected = network(image)[0]
            output = run(image[0]).reshape(expected.shape)
            # Float32 in another order of sums, on values around 1 to 4.
            np.testing.assert_allclose(output, expected, rtol=0, atol=2e-5)

    @pytest.mark.parametrize(
        # As onnx/Readme.md states; float32 sums in another order, on values around 1.
        ("precision", "limit"),
        [("float32", 2.5e-6), ("float16", 1e-3)],
    )
    def test_the_shipped_model(self, tmp_path, shipped, precision, limit):
        folded, pictures = shipped
        write_ncnn(folded, tmp_path / "model.param", precision)
        run = loaded(tmp_path / "model.param")
        for image, expected in pictures:
            assert np.abs(run(image) - expected).max() < limit, image.shape

    @pytest.mark.parametrize("rounded", [False, True])
    @pytest.mark.parametrize(
        # LayerNorm undoes it: that of a block, and that after the blocks.
        ("part", "factor", "where"),
        [(".conv.", 3000, slice(-1)), (".fc2.", 300, slice(-1, None))],
    )
    def test_values_whose_squares_float16_cannot_hold(
        self, tmp_path, part, factor, where, rounded
    ):
        state_dict, _ = lively_arrays()
        for key in state_dict:
            if part in key:
                state_dict[key] = state_dict[key] * factor
        folded = fold(state_dict)
        image = random_array(1, folded.in_chans, 16, 17)
        assert max(largest_deviations(folded, image[0])[where]) > 256
        write_ncnn(folded, tmp_path / "model.param")
        model = read_ncnn(tmp_path / "model.param", tmp_path / "model.bin")
        found = model.run(image[0], rounded=rounded)
        expected = evaluate(folded, image)[0]
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < (5e-3 if rounded else 1e-5)


class TestFiles:
    def test_count_their_layers_and_blobs(self):
        _, folded = lively_folded(scale=4)
        magic, counts, *layers = to_ncnn(folded)[0].splitlines()
        assert magic == "7767517"
        written = [line.split() for line in layers]
        made = [word for w in written for word in w[4 + int(w[2]) :][: int(w[3])]]
        used = [word for w in written for word in w[4 : 4 + int(w[2])]]
        assert counts == f"{len(layers)} {len(made)}"
        assert len(set(made)) == len(made)
        assert len({w[1] for w in written}) == len(written)
        # Every blob is read once, a Split makes copies; the result is left.
        assert sorted([*used, "output"]) == sorted(made)

    def test_names_are_those_that_clients_expect(self):
        _, folded = lively_folded()
        lines = to_ncnn(folded)[0].splitlines()
        assert re.fullmatch(r"Input +data +0 1 data", lines[2])
        assert lines[-1].split()[5] == "output"

    def test_layers_are_those_that_upscayl_has(self):
        kinds = set()
        for scale in (1, 2, 4):
            _, folded = lively_folded(scale=scale)
            lines = to_ncnn(folded)[0].splitlines()[2:]
            kinds |= {line.split()[0] for line in lines}
        known = {"BinaryOp", "Convolution", "ConvolutionDepthWise", "GELU", "Input"}
        assert kinds == known | {"PixelShuffle", "ReLU", "Split"}

    def test_float16_halves_the_weights(self):
        _, folded = lively_folded()
        text, content = to_ncnn(folded)
        other, half = to_ncnn(folded, "float16")
        assert text == other
        assert 0.5 < len(half) / len(content) < 0.6

    def test_are_written_together(self, tmp_path):
        _, folded = lively_folded()
        write_ncnn(folded, tmp_path / "model.param")
        text, content = to_ncnn(folded)
        assert without_hidden(tmp_path) == ["model.bin", "model.param"]
        assert (tmp_path / "model.param").read_bytes() == text.encode()
        assert (tmp_path / "model.bin").read_bytes() == content

    def test_refusals(self, tmp_path):
        _, folded = lively_folded()
        with pytest.raises(AetherError, match=r"not \.param"):
            write_ncnn(folded, tmp_path / "model.bin")
        with pytest.raises(AetherError, match="bfloat16"):
            write_ncnn(folded, tmp_path / "model.param", "bfloat16")
        state_dict, _ = lively_arrays()
        state_dict["conv_after_body.weight"][0, 0, 0, 0] = 1e5
        with pytest.raises(AetherError, match=r"after_body .* 65504"):
            write_ncnn(fold(state_dict), tmp_path / "model.param", "float16")
        assert without_hidden(tmp_path) == []
