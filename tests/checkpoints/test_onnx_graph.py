"""ONNX files written from the folded network, in ONNX Runtime."""

import json
from collections import Counter

import numpy as np
import pytest
from helpers import SHIPPED_MODEL, lively_arrays, lively_folded, random_array

from aethernet.checkpoints import onnx_check
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.folded import fold
from aethernet.checkpoints.onnx_check import open_session, rounding_session
from aethernet.checkpoints.onnx_graph import (
    BFLOAT16_OPSET,
    Writing,
    onnx_properties,
    to_onnx,
)
from aethernet.checkpoints.reference import evaluate
from aethernet.errors import AetherError

REASON = "needs pip install onnx onnxruntime"
onnx = pytest.importorskip("onnx", reason=REASON)
onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)

SIZES = [(1, 1), (1, 7), (3, 1), (2, 2), (13, 17)]


def session(model):
    onnx.checker.check_model(model, full_check=True)
    return open_session(model.SerializeToString())


def psnr(output, expected):
    return -10 * np.log10(np.square(output.astype(np.float64) - expected).mean())


@pytest.fixture(scope="module")
def shipped():
    """The shipped model, a picture, and what it makes of it."""
    folded = load_checkpoint(SHIPPED_MODEL).folded
    image = random_array(1, 3, 24, 32)
    return folded, image, evaluate(folded, image)


class TestFunction:
    @pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
    @pytest.mark.parametrize("arguments", [{}, {"in_chans": 1, "img_range": 255.0}])
    @pytest.mark.parametrize(
        "writing",
        [Writing(), Writing(opset=20), Writing(opset=18, norm="parts")],
        ids=["default", "opset 20", "LayerNorm in parts"],
    )
    def test_is_that_of_the_network_on_every_size(self, scale, arguments, writing):
        network, folded = lively_folded(scale=scale, depths=(1,), **arguments)
        run = session(to_onnx(folded, writing)).run
        for size in SIZES:
            image = random_array(2, folded.in_chans, *size)
            expected = network(image)
            output = run(["output"], {"input": image})[0]
            # Float32 in another order of sums, on values around 1 to 4.
            np.testing.assert_allclose(output, expected, rtol=0, atol=2e-5)

    def test_fused_form_odd_widths_and_kernels(self):
        arguments = {"mlp_ratio": 2.6, "lk_kernel": 9, "sk_kernel": 5, "in_chans": 4}
        network, folded = lively_folded(**arguments)
        image = random_array(1, 4, 9, 6)
        expected = network(image)
        output = session(to_onnx(folded)).run(None, {"input": image})[0]
        np.testing.assert_allclose(output, expected, rtol=0, atol=2e-5)

    def test_one_channel_inside(self):  # which is depthwise and dense at once
        network, folded = lively_folded(embed_dim=1, mlp_ratio=1.0, scale=1)
        image = random_array(1, 3, 5, 6)
        expected = network(image)
        output = session(to_onnx(folded)).run(None, {"input": image})[0]
        np.testing.assert_allclose(output, expected, rtol=0, atol=2e-5)


class TestHalfPrecision:
    @pytest.mark.parametrize("norm", ["operator", "parts"])
    @pytest.mark.parametrize("float32_io", [False, True])
    def test_float16_reaches_50_db(self, shipped, float32_io, norm):
        folded, image, expected = shipped
        writing = Writing("float16", float32_io=float32_io, norm=norm)
        run = session(to_onnx(folded, writing))
        dtype = np.float32 if float32_io else np.float16
        output = run.run(None, {"input": image.astype(dtype)})[0]
        assert output.dtype == dtype
        assert psnr(output, expected) >= 50

    @pytest.mark.parametrize(
        ("writing", "bar"), [(Writing("float16"), 50), (Writing("bfloat16"), 40)]
    )
    def test_is_close_where_every_step_is_rounded(self, shipped, writing, bar):
        onnx_check = pytest.importorskip("aethernet.checkpoints.onnx_check")
        folded, image, expected = shipped
        content = to_onnx(folded, writing).SerializeToString()
        run = onnx_check.rounding_session(content)
        dtype = {"float32": np.float32, "float16": np.float16}[writing.io_precision]
        output = run.run(None, {"input": image.astype(dtype)})[0]
        assert bar <= psnr(output, expected) < 100

    @pytest.mark.parametrize("precision", ["float16", "bfloat16"])
    def test_layer_norm_is_float32_and_convolutions_are_not(self, precision):
        _, folded = lively_folded()
        model = to_onnx(folded, Writing(precision))
        graph = onnx.shape_inference.infer_shapes(model).graph
        kinds = onnx.TensorProto
        half = {"float16": kinds.FLOAT16, "bfloat16": kinds.BFLOAT16}[precision]
        types = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
        weights = {weight.name: weight.data_type for weight in graph.initializer}
        norms = [n for n in graph.node if n.op_type == "LayerNormalization"]
        assert {types[n.input[0]] for n in norms} == {kinds.FLOAT}
        convolutions = [n for n in graph.node if n.op_type == "Conv"]
        assert {weights[n.input[1]] for n in convolutions} == {half}
        version = BFLOAT16_OPSET if precision == "bfloat16" else 17
        assert model.opset_import[0].version == version

    def test_bfloat16_weights_are_rounded_to_the_nearest(self):
        _, folded = lively_folded()
        ml_dtypes = pytest.importorskip("ml_dtypes")
        model = to_onnx(folded, Writing("bfloat16"))
        weights = {w.name: w for w in model.graph.initializer}
        found = onnx.numpy_helper.to_array(weights["first.weight"])
        expected = folded.first.weight.astype(ml_dtypes.bfloat16)
        assert np.array_equal(found.astype(np.float32), expected.astype(np.float32))

    def test_a_weight_beyond_float16_is_named(self):
        state_dict, _ = lively_arrays()
        state_dict["conv_after_body.weight"][0, 0, 0, 0] = 1e5
        with pytest.raises(AetherError, match=r"after_body\.weight .* 65504"):
            to_onnx(fold(state_dict), Writing("float16"))


class TestFile:
    def test_names_types_and_free_sizes(self):
        _, folded = lively_folded(scale=3)
        graph = to_onnx(folded).graph
        for values, name, sides in (
            (graph.input, "input", ["batch", 3, "height", "width"]),
            (graph.output, "output", ["batch", 3, "3*height", "3*width"]),
        ):
            (value,) = values
            tensor = value.type.tensor_type
            assert value.name == name
            assert tensor.elem_type == onnx.TensorProto.FLOAT
            assert [d.dim_param or d.dim_value for d in tensor.shape.dim] == sides

    def test_fixed_size(self):
        network, folded = lively_folded(scale=3, in_chans=1)
        run = session(to_onnx(folded, Writing(size=(2, 10, 12))))
        assert run.get_inputs()[0].shape == [2, 1, 10, 12]
        assert run.get_outputs()[0].shape == [2, 1, 30, 36]
        image = random_array(2, 1, 10, 12)
        expected = network(image)
        output = run.run(None, {"input": image})[0]
        np.testing.assert_allclose(output, expected, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("scale", [1, 2, 8])
    @pytest.mark.parametrize(
        "writing", [Writing(), Writing("float16"), Writing(opset=20)]
    )
    def test_has_only_operators_that_readers_know(self, scale, writing):
        _, folded = lively_folded(scale=scale, depths=(1,))
        kinds = Counter(node.op_type for node in to_onnx(folded, writing).graph.node)
        known = {"Add", "Cast", "Conv", "DepthToSpace", "Div", "Erf", "Gelu"}
        known |= {"LayerNormalization", "LeakyRelu", "Mul", "Sub", "Transpose"}
        assert set(kinds) <= known
        assert kinds["LayerNormalization"] == 2
        assert kinds["Transpose"] == 4
        assert ("Gelu" in kinds) == (writing.version >= 20)

    @pytest.mark.parametrize("scale", [1, 3, 8])
    def test_states_the_shapes_of_all_convolutions(self, scale):
        # ONNX Runtime adds inside convolutions only where it knows that shapes agree.
        _, folded = lively_folded(scale=scale, depths=(1,))
        free = to_onnx(folded)
        made = [node.output[0] for node in free.graph.node if node.op_type == "Conv"]
        stated = {value.name: value.type for value in free.graph.value_info}
        assert set(made) - {"output"} == set(stated)
        fixed = to_onnx(folded, Writing(size=(2, 5, 6)))
        stated = {value.name: value.type for value in fixed.graph.value_info}
        del fixed.graph.value_info[:]
        for value in onnx.shape_inference.infer_shapes(fixed).graph.value_info:
            assert stated.get(value.name, value.type) == value.type
        sides = free.graph.value_info[0].type.tensor_type.shape.dim
        assert [s.dim_param for s in sides] == ["batch", "", "height", "width"]

    @pytest.mark.parametrize("opened", [open_session, rounding_session])
    @pytest.mark.parametrize(("told", "taken"), [(3, 3), (None, 0)])
    def test_a_check_takes_no_more_threads_than_it_is_told(
        self, monkeypatch, opened, told, taken
    ):
        monkeypatch.setattr(onnx_check, "told_threads", lambda: told)
        _, folded = lively_folded(depths=(1,))
        options = opened(to_onnx(folded).SerializeToString()).get_session_options()
        assert options.intra_op_num_threads == taken

    def test_onnx_runtime_computes_gelu_in_one_pass(self, tmp_path):
        _, folded = lively_folded(depths=(1,))
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(
            to_onnx(folded).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
        kinds = Counter(node.op_type for node in nodes)
        assert kinds["Gelu"] == 1
        assert "Erf" not in kinds

    def test_is_as_old_as_its_opset_allows(self):
        _, folded = lively_folded()
        # ONNX Runtime 1.17 reads opset 20 and version 9 of the format at most.
        for writing, opset, version in (
            (Writing(), 17, 8),
            (Writing(opset=20), 20, 9),
            (Writing("bfloat16"), 22, 10),
        ):
            model = to_onnx(folded, writing)
            assert [(o.domain, o.version) for o in model.opset_import] == [("", opset)]
            assert model.ir_version == version

    def test_properties_tell_what_it_is(self, tmp_path):
        checkpoint = load_checkpoint(SHIPPED_MODEL)
        properties = onnx_properties(checkpoint.hyperparameters, "float32", 17, "MIT")
        arguments = json.loads(properties["hyperparameters"])
        assert arguments["depths"] == [4, 4, 4, 4]
        assert arguments["fused_init"] is True
        assert properties["variant"] == "aether_small"
        _, folded = lively_folded()
        model = to_onnx(folded, properties=properties)
        assert {e.key: e.value for e in model.metadata_props} == properties

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            ({"precision": "int4"}, "int4"),
            ({"opset": 16}, "opset 17 to"),
            ({"opset": 999}, "not 999"),
            ({"opset": 20, "precision": "bfloat16"}, "opset 22 to"),
            ({"size": (1, 0, 4)}, "start at 1"),
        ],
    )
    def test_impossible_writings_are_refused(self, arguments, word):
        with pytest.raises(AetherError, match=word):
            Writing(**arguments)
