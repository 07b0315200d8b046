"""Exporting: the function, the command and the script, in ONNX Runtime."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import (
    ONNX_SCRIPT,
    SHIPPED_MODEL,
    block_imports,
    call_script,
    lively_network,
    random_image,
    run,
    without_hidden,
)

import aethernet
from aethernet.checkpoints import onnx as onnx_export
from aethernet.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from aethernet.checkpoints.comparison import VERIFICATIONS
from aethernet.checkpoints.folded import Convolution
from aethernet.checkpoints.onnx import ExportOptions, ShapeRange, export_onnx
from aethernet.checkpoints.onnx_check import open_session
from aethernet.checkpoints.rewrites import fold_network, rewritten, run_network
from aethernet.checkpoints.verification import (
    compare,
    natural_image,
    verification_frames,
)
from aethernet.commands.main import main
from aethernet.errors import AetherError, VerificationError

REASON = "needs pip install onnx onnxruntime"
onnx = pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxruntime", reason=REASON)


# One fixed size: free sizes are verified on five more.
SMALL = ShapeRange(*[(1, 24, 32)] * 3)


def checkpoint(folder, **arguments):
    network = lively_network(depths=(1,), **arguments)
    save_checkpoint(network, folder / "model.safetensors")
    return folder / "model.safetensors", network


def write(source, target, **options):
    """Export a checkpoint file; the options are those of `ExportOptions`."""
    return export_onnx(load_checkpoint(source), target, ExportOptions(**options))


def session(path):
    return open_session(path.read_bytes())


def largest_input(network, name):
    """The largest absolute input of a module on the verification frames."""
    seen = []
    module = network.get_submodule(name)
    hook = module.register_forward_pre_hook(lambda _, x: seen.append(x[0].abs().max()))
    with torch.inference_mode():
        for image in verification_frames(*SMALL.typical[1:]).values():
            network(torch.from_numpy(image))
    hook.remove()
    return max(seen).item()


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """A float32 file with free sizes, exported once because that takes seconds.

    It has few channels, so that large pictures take seconds, too.
    """
    folder = tmp_path_factory.mktemp("free")
    source, network = checkpoint(folder, embed_dim=4)
    result = write(source, folder / "model.onnx", dynamic=True)
    return folder / "model.onnx", network, result


class TestFreeSizes:
    @pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 40), (2, 37, 11), (3, 8, 64)])
    def test_any_batch_height_and_width(self, free, size):
        path, network, _ = free
        image = random_image(size[0], 3, *size[1:])
        output = session(path).run(["output"], {"input": image.numpy()})[0]
        with torch.inference_mode():
            expected = network(image).numpy()
        # Float32 against float32, on values around 1 after unit-gain layers.
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)

    def test_names_types_and_shapes_are_what_readers_expect(self, free):
        graph = onnx.load(free[0]).graph
        assert [value.name for value in graph.input] == ["input"]
        assert [value.name for value in graph.output] == ["output"]
        sides = graph.input[0].type.tensor_type.shape.dim
        assert [d.dim_param or d.dim_value for d in sides] == [
            "batch",
            3,
            "height",
            "width",
        ]
        assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT

    def test_is_valid_and_of_the_default_opset(self, free):
        model = onnx.load(free[0])
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
        assert model.ir_version == 8  # the first that knows opset 17

    def test_metadata_describe_the_network_and_not_the_machine(self, free):
        path, network, _ = free
        model = onnx.load(path)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        arguments = json.loads(metadata.pop("hyperparameters"))
        expected = {**network.hyperparameters, "fused_init": True}
        del expected["use_checkpoint"]  # of training; no file has it
        assert arguments == json.loads(json.dumps(expected))
        assert metadata == {
            "architecture": "AetherNet",
            "variant": "of none of the named sizes",
            "form": "fused",
            "scale": "2",
            "precision": "float32",
            "opset": "17",
            "license": "not stated",
            "aethernet_version": aethernet.__version__,
        }
        content = path.read_bytes()
        assert b".py" not in content
        assert b"stack_trace" not in content

    @pytest.mark.parametrize("verify", VERIFICATIONS)
    def test_reports_five_frames_and_sizes(self, free, tmp_path, verify):
        source = free[0].with_name("model.safetensors")
        target = tmp_path / "model.onnx"
        differences = write(source, target, dynamic=True, verify=verify).differences
        assert set(verification_frames(2, 2)) <= set(differences)
        assert len(differences) == {"quick": 7, "full": 10}[verify]
        assert any("1x1" in name for name in differences)
        assert all(0 <= d.max_abs_error < 1e-4 for d in differences.values())

    def test_training_form_was_fused(self, free):
        nodes = [n for n in onnx.load(free[0]).graph.node if n.op_type == "Conv"]
        depthwise = [
            n for n in nodes if any(a.name == "group" and a.i > 1 for a in n.attribute)
        ]
        assert len(depthwise) == 1

    def test_a_block_leaves_the_layout_of_convolutions_once(self, free):
        kinds = Counter(node.op_type for node in onnx.load(free[0]).graph.node)
        # Of one block, and LayerNorm before the last 3x3.
        assert kinds["LayerNormalization"] == 2
        assert kinds["Transpose"] == 4
        assert kinds["Erf"] == 1
        assert not {"MatMul", "Gemm", "Slice", "Concat", "Reshape"} & set(kinds)


class TestSizesFromOnePixelTo8K:
    """2x: an LR image of 3840x2160 becomes one of 7680x4320.

    Float32 in another order of sums, on values up to 4: hence 2e-5.
    """

    @pytest.mark.parametrize(
        ("height", "width"),
        [(1, 1), (1, 2), (3, 1), (2, 2), (31, 33), (1, 7680), (7680, 1), (270, 480)],
    )
    def test_the_whole_picture(self, free, height, width):
        image = random_image(1, 3, height, width)
        output = session(free[0]).run(None, {"input": image.numpy()})[0]
        with torch.inference_mode():
            expected = free[1](image).numpy()
        np.testing.assert_allclose(output, expected, rtol=0, atol=2e-5)

    def test_8k_in_its_corners_and_its_middle(self, tmp_path):
        # In gray, which has half the work; the features take over 2 GB all the same.
        source, network = checkpoint(tmp_path, embed_dim=4, in_chans=1)
        write(source, tmp_path / "model.onnx", dynamic=True)
        height, width, side, context = 2160, 3840, 32, network.receptive_radius
        image = random_image(1, 1, height, width)
        feed = {"input": image.numpy()}
        output = session(tmp_path / "model.onnx").run(None, feed)[0]
        assert output.shape == (1, 1, 4320, 7680)
        for top in (0, height // 2, height - side):
            for left in (0, width // 2, width - side):
                above, before = min(top, context), min(left, context)
                window = image[
                    ...,
                    top - above : top + side + context,
                    left - before : left + side + context,
                ]
                with torch.inference_mode():
                    expected = network(window).numpy()
                rows, columns = (2 * above, 2 * before)
                np.testing.assert_allclose(
                    output[..., 2 * top :, 2 * left :][..., : 2 * side, : 2 * side],
                    expected[..., rows:, columns:][..., : 2 * side, : 2 * side],
                    rtol=0,
                    atol=2e-5,
                )


class TestFixedSize:
    def test_takes_that_size_only(self, tmp_path):
        source, network = checkpoint(tmp_path, scale=3, in_chans=1)
        shapes = ShapeRange((1, 8, 9), (2, 10, 12), (2, 20, 20))
        target = tmp_path / "model.onnx"
        result = write(source, target, shapes=shapes)
        assert session(target).get_inputs()[0].shape == [2, 1, 10, 12]
        assert session(target).get_outputs()[0].shape == [2, 1, 30, 36]
        image = random_image(2, 1, 10, 12)
        output = session(target).run(None, {"input": image.numpy()})[0]
        with torch.inference_mode():
            expected = network(image).numpy()
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)
        assert "Shapes" not in result.trtexec
        assert len(result.differences) == 7  # of the same graph with free sizes
        full = write(source, target, shapes=shapes, verify="full")
        assert len(full.differences) == 5
        assert "natural image" in full.differences


class TestFloat16:
    def test_reaches_50_db_on_every_frame(self, shipped_half):
        _, result = shipped_half
        assert len(result.differences) == 7
        for name, difference in result.differences.items():
            assert difference.finite, name
            assert difference.psnr >= 50, name
            assert difference.max_abs_error > 1e-5, name  # it is half precision

    def test_input_and_output_are_float16_and_layer_norm_is_float32(self, shipped_half):
        path, result = shipped_half
        graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
        half = onnx.TensorProto.FLOAT16
        for value in (*graph.input, *graph.output):
            assert value.type.tensor_type.elem_type == half
        types = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
        norms = [n for n in graph.node if n.op_type == "LayerNormalization"]
        assert len(norms) == 17
        assert {types[n.input[0]] for n in norms} == {onnx.TensorProto.FLOAT}
        weights = {i.name: i.data_type for i in graph.initializer}
        convs = [n for n in graph.node if n.op_type == "Conv"]
        assert {weights[n.input[1]] for n in convs} == {half}
        assert "--stronglyTyped" in result.trtexec

    def test_input_and_output_are_float32_on_request(self, tmp_path):
        source, network = checkpoint(tmp_path)
        target = tmp_path / "model.onnx"
        result = write(
            source, target, dynamic=True, precision="float16", float32_io=True, atol=0.1
        )
        graph = onnx.load(target).graph
        for value in (*graph.input, *graph.output):
            assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        weights = {i.name: i.data_type for i in graph.initializer}
        convs = [n for n in graph.node if n.op_type == "Conv"]
        assert {weights[n.input[1]] for n in convs} == {onnx.TensorProto.FLOAT16}
        assert all(d.max_abs_error > 1e-6 for d in result.differences.values())
        metadata = {e.key: e.value for e in onnx.load(target).metadata_props}
        assert metadata["precision"] == "float16"
        image = natural_image(9, 7)
        output = session(target).run(None, {"input": image})[0]
        assert output.dtype == np.float32
        assert compare(output, run_network(network, image)).psnr > 40


class TestBfloat16:
    def test_computes_shipped_bfloat16_between_float32_input_and_output(
        self, shipped_bfloat16
    ):
        graph = onnx.shape_inference.infer_shapes(onnx.load(shipped_bfloat16[0])).graph
        kinds = onnx.TensorProto
        for value in (*graph.input, *graph.output):
            assert value.type.tensor_type.elem_type == kinds.FLOAT
        weights = {i.name: i.data_type for i in graph.initializer}
        convs = [n for n in graph.node if n.op_type == "Conv"]
        assert {weights[n.input[1]] for n in convs} == {kinds.BFLOAT16}
        types = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
        norms = [n for n in graph.node if n.op_type == "LayerNormalization"]
        assert {types[n.input[0]] for n in norms} == {kinds.FLOAT}
        assert "--stronglyTyped" in shipped_bfloat16[1].trtexec

    def test_what_was_checked_is_rounded_to_bfloat16(self, shipped_bfloat16):
        network = load_checkpoint(SHIPPED_MODEL).build()
        differences = shipped_bfloat16[1].differences
        # 8 bits of mantissa: errors of a thousandth; in float32 it is a millionth.
        assert all(40 <= d.psnr < 80 for d in differences.values())
        # PyTorch in bfloat16 has a similar error; it sums in another order.
        image = natural_image(32, 48)
        half = run_network(rewritten(fold_network(network), "bfloat16"), image)
        psnr = compare(half, run_network(network, image)).psnr
        assert abs(psnr - differences["natural image"].psnr) < 4

    def test_an_opset_without_bfloat16_convolutions_is_refused(self, tmp_path):
        source, _ = checkpoint(tmp_path)
        with pytest.raises(AetherError, match="opset 22 to"):
            write(source, tmp_path / "m.onnx", opset=20, precision="bfloat16")


class TestRefusals:
    @pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
    def test_a_file_that_differs_is_not_written(self, tmp_path, monkeypatch, precision):
        source, _ = checkpoint(tmp_path)
        target = tmp_path / "model.onnx"
        target.write_bytes(b"an older file")
        to_onnx = onnx_export.to_onnx

        def wrong(folded, *rest):
            first = Convolution(folded.first.weight, folded.first.bias + 0.05)
            return to_onnx(replace(folded, first=first), *rest)

        monkeypatch.setattr(onnx_export, "to_onnx", wrong)
        with pytest.raises(VerificationError, match="Nothing was written"):
            write(source, target, shapes=SMALL, precision=precision)
        assert target.read_bytes() == b"an older file"
        assert without_hidden(tmp_path) == ["model.onnx", "model.safetensors"]

    @pytest.mark.parametrize(
        # A module that grows beyond float16, and one that brings it back.
        ("grows", "shrinks"),
        [
            ("conv_before_upsample.0", "upsample.0"),
            ("layers.0.0.ffn.fc1_main", "layers.0.0.ffn.fc2"),
        ],
    )
    def test_overflow_inside_is_found_with_any_limits(self, tmp_path, grows, shrinks):
        network = lively_network(depths=(1,))
        with torch.no_grad():
            network.get_submodule(grows).weight.mul_(1e5)
            network.get_submodule(shrinks).weight.mul_(1e-4)
        save_checkpoint(network, tmp_path / "model.safetensors")
        # The scale of LayerNorm brings a weight of the second network beyond it, too.
        reason = r"(NaN or infinite|too large) .*float16"
        with pytest.raises(AetherError, match=reason):
            write(
                tmp_path / "model.safetensors",
                tmp_path / "model.onnx",
                shapes=SMALL,
                precision="float16",
                atol=1e30,
                rtol=1e30,
            )
        assert without_hidden(tmp_path) == ["model.safetensors"]

    @pytest.mark.parametrize(
        # A module that comes near 65504, and one that brings it back, unless LayerNorm
        # does.
        ("grows", "shrinks", "precision", "min_psnr"),
        [
            ("layers.0.0.ffn.fc1_main", "layers.0.0.ffn.fc2", "float16", 50),
            ("layers.0.0.conv.lk_conv", None, "float16", 50),
            ("layers.0.0.conv.lk_conv", None, "bfloat16", 40),  # which ends far beyond
        ],
    )
    def test_halves_survive_activations_near_the_end_of_float16(
        self, tmp_path, grows, shrinks, precision, min_psnr
    ):
        network = lively_network(depths=(1,), sk_kernel=1)
        with torch.no_grad():
            network.layers[0][0].conv.sk_conv.weight.zero_()
        peak = largest_input(network, shrinks or "layers.0.0.norm")
        factor = 6e4 / peak
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.startswith(grows) or (not shrinks and name.endswith("k_bias")):
                    parameter.mul_(factor)
            if shrinks:
                network.get_submodule(shrinks).weight.div_(factor)
        assert 5.5e4 < largest_input(network, shrinks or "layers.0.0.norm") < 6.5e4
        save_checkpoint(network, tmp_path / "model.safetensors")
        result = write(
            tmp_path / "model.safetensors",
            tmp_path / "model.onnx",
            shapes=SMALL,
            precision=precision,
            verify="full",  # on the frames of `largest_input`
        )
        assert all(d.finite and d.psnr >= min_psnr for d in result.differences.values())

    def test_an_infinite_output_is_refused_though_both_agree(self, tmp_path):
        network = lively_network(depths=(1,))
        with torch.no_grad():
            network.conv_last.weight.fill_(3e38)
        save_checkpoint(network, tmp_path / "model.safetensors")
        with pytest.raises(VerificationError, match="NaN or infinite"):
            write(tmp_path / "model.safetensors", tmp_path / "m.onnx", shapes=SMALL)
        assert without_hidden(tmp_path) == ["model.safetensors"]

    def test_a_fixed_size_that_differs_from_free_sizes_is_refused(
        self, tmp_path, monkeypatch
    ):
        source, _ = checkpoint(tmp_path)
        to_onnx = onnx_export.to_onnx

        def wrong(folded, writing):
            model = to_onnx(folded, writing)
            if writing.size:
                model.graph.initializer[1].raw_data = bytes(
                    len(model.graph.initializer[1].raw_data)
                )
            return model

        monkeypatch.setattr(onnx_export, "to_onnx", wrong)
        with pytest.raises(VerificationError, match="fixed size differs"):
            write(source, tmp_path / "m.onnx", shapes=SMALL)
        assert without_hidden(tmp_path) == ["model.safetensors"]

    def test_an_unknown_verification_is_refused(self):
        with pytest.raises(AetherError, match="no verification 'slow'"):
            ExportOptions(verify="slow")

    @pytest.mark.parametrize("limit", [-1, float("nan")])
    def test_negative_limits_and_nan_are_refused(self, tmp_path, limit):
        source, _ = checkpoint(tmp_path)
        with pytest.raises(AetherError, match="0 or more"):
            write(source, tmp_path / "m.onnx", atol=limit)

    def test_limits_are_those_given(self, tmp_path):
        source, _ = checkpoint(tmp_path)
        with pytest.raises(VerificationError, match="atol 0 \\+ rtol 0"):
            write(source, tmp_path / "m.onnx", shapes=SMALL, atol=0, rtol=0)

    def test_an_opset_that_cannot_be_written_is_an_error(self, tmp_path):
        source, _ = checkpoint(tmp_path)
        for opset in (5, 999):
            with pytest.raises(AetherError, match="opset"):
                write(source, tmp_path / "m.onnx", shapes=SMALL, opset=opset)
        assert without_hidden(tmp_path) == ["model.safetensors"]

    def test_sizes_must_not_fall(self):
        with pytest.raises(AetherError, match="height"):
            ShapeRange((1, 64, 32), (1, 32, 32), (1, 128, 128))
        with pytest.raises(AetherError, match="batch"):
            ShapeRange((0, 8, 8), (1, 32, 32), (1, 128, 128))

    def test_other_suffixes_are_refused(self, tmp_path):
        source, _ = checkpoint(tmp_path)
        with pytest.raises(AetherError, match=r"suffix is not \.onnx"):
            write(source, tmp_path / "model.engine")


class TestCommandAndScript:
    def test_script_with_every_flag(self, tmp_path, monkeypatch, capsys):
        source, _ = checkpoint(tmp_path, scale=1)
        target = tmp_path / "with space.onnx"
        words = ["--input_model_path", source, "--output_onnx_path", target]
        words += ["--model_type", "aether", "--scale", 1, "--input_channels", 3]
        words += ["--dynamic_shapes", "--opset_version", 17, "--fp_mode", "fp32"]
        words += ["--verify_onnx", "--atol", 1e-3, "--rtol", 1e-3, "--device", "cpu"]
        words += ["--verify", "full", "--io", "float32"]
        for bound, size in (("min", 16), ("opt", 48), ("max", 96)):
            words += [f"--{bound}_height", size, f"--{bound}_width", 2 * size]
            words += [f"--{bound}_batch_size", 1]
        assert call_script(monkeypatch, ONNX_SCRIPT, *words) == 0
        printed = capsys.readouterr().out
        assert "training form" in printed
        assert "checkerboard" in printed
        assert "3 x 31x33" in printed  # a size of the full verification
        line = printed.splitlines()[-1]
        assert line.startswith("trtexec ")
        assert f"'--onnx={target}'" in line
        assert "--minShapes=input:1x3x16x32 --optShapes=input:1x3x48x96" in line
        assert line.endswith("--maxShapes=input:1x3x96x192")
        assert onnx.load(target).opset_import[0].version == 17

    def test_script_needs_torch_onnx_and_onnxruntime_only(self, tmp_path):
        """As in the environment of a training framework, without AetherNet."""
        torch.save(lively_network(depths=(1,)).state_dict(), tmp_path / "model.pth")
        block_imports(
            tmp_path,
            *("pyvips", "PIL", "psutil", "rich", "filelock", "safetensors", "cv2"),
            *("onnxscript", "spandrel", "av", "openvino", "torchvision"),
        )
        options = {"env": {"PYTHONPATH": str(tmp_path)}, "cwd": tmp_path}
        target = tmp_path / "model.onnx"
        words = ["--input_model_path", tmp_path / "model.pth"]
        done = run(ONNX_SCRIPT, *words, "--output_onnx_path", target, **options)
        assert done.returncode == 0, done.stderr
        assert target.is_file()

    def test_script_takes_any_fixed_size(self, tmp_path, monkeypatch, capsys):
        # It is below the default min, which does not apply to a fixed size.
        source, _ = checkpoint(tmp_path)
        target = tmp_path / "model.onnx"
        words = ["--input_model_path", source, "--output_onnx_path", target]
        words += ["--opt_height", 6, "--opt_width", 7]
        assert call_script(monkeypatch, ONNX_SCRIPT, *words) == 0
        assert session(target).get_inputs()[0].shape == [1, 3, 6, 7]

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            (["--scale", 4], "scale was given as 4"),
            (["--model_type", "aether_small"], "aether_small"),
            (["--input_channels", 1], "channels was given as 1"),
            (["--dynamic_shapes", "--min_height", 999], "height must not fall"),
            (["--device", "cuda:77"], "cuda:77"),
        ],
    )
    def test_script_stops_at_a_contradiction(
        self, tmp_path, monkeypatch, capsys, words, reason
    ):
        source, _ = checkpoint(tmp_path)
        target = tmp_path / "model.onnx"
        first = ["--input_model_path", source, "--output_onnx_path", target]
        assert call_script(monkeypatch, ONNX_SCRIPT, *first, *words) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert reason in error
        assert not target.exists()

    def test_command_exports_free_sizes_unless_told_otherwise(self, tmp_path, capsys):
        source, _ = checkpoint(tmp_path)
        target = tmp_path / "model.onnx"
        words = ["export", str(source), "-o", str(target)]
        assert main(words) == 0
        assert session(target).get_inputs()[0].shape == ["batch", 3, "height", "width"]
        assert main([*words, "--static", "12x10", "--license", "CC0-1.0"]) == 0
        metadata = {e.key: e.value for e in onnx.load(target).metadata_props}
        assert metadata["license"] == "CC0-1.0"
        assert session(target).get_inputs()[0].shape == [1, 3, 10, 12]
        with pytest.raises(SystemExit):
            main([*words, "--static", "12"])
        assert "expected WxH" in capsys.readouterr().err
