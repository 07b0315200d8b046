"""Fusing: the function, the command and the script."""

import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import (
    FUSE_SCRIPT,
    SHIPPED_MODEL,
    SHIPPED_TRAINING_FORM,
    block_imports,
    call_script,
    check_one_error,
    lively_network,
    random_image,
    run,
    without_hidden,
)
from safetensors.torch import load_file

from aethernet.checkpoints import fuse
from aethernet.checkpoints.checkpoint import CheckpointOptions, load_checkpoint
from aethernet.checkpoints.folded import depthwise_kernel
from aethernet.checkpoints.fuse import fuse_checkpoint, fused_state_dict
from aethernet.checkpoints.verification import verification_frames
from aethernet.commands.main import main
from aethernet.errors import AetherError, VerificationError


@pytest.fixture
def trained(tmp_path):
    """A checkpoint as a framework leaves it, and the network in it."""
    network = lively_network(scale=4, sk_kernel=5)
    path = tmp_path / "net_g_1000.pth"
    other = lively_network(9, scale=4, sk_kernel=5)
    content = {"params": other.state_dict(), "params_ema": network.state_dict()}
    torch.save(content, path)
    return path, network


class TestFuseCheckpoint:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_writes_the_same_function_in_fused_form(self, trained, tmp_path, suffix):
        path, network = trained
        target = tmp_path / f"fused{suffix}"
        differences = fuse_checkpoint(load_checkpoint(path), target).differences
        written = load_checkpoint(target)
        assert written.form == "fused"
        assert written.hyperparameters["scale"] == 4
        assert {*verification_frames(2, 2)} <= {*differences}
        image = random_image(1, 3, 20, 21)
        difference = (written.build()(image) - network(image)).abs().max()
        assert difference < 1e-5
        reported = max(d.max_abs_error for d in differences.values())
        assert reported < 1e-5

    def test_reports_the_error_that_is_there(self, trained, tmp_path, monkeypatch):
        # Weights moved by a known amount: the last bias moves every pixel as far.
        path, _ = trained

        def fused_and_shifted(*given):
            state_dict = fused_state_dict(*given)
            return {**state_dict, "conv_last.bias": state_dict["conv_last.bias"] + 5e-5}

        monkeypatch.setattr(fuse, "fused_state_dict", fused_and_shifted)
        done = fuse_checkpoint(load_checkpoint(path), tmp_path / "fused.pth")
        differences = done.differences
        for difference in differences.values():
            assert difference.max_abs_error == pytest.approx(5e-5, rel=0.1)
            assert difference.psnr == pytest.approx(86, abs=0.5)  # -20 log10(5e-5)

    @pytest.mark.parametrize("old", [None, b"an older file"])
    def test_a_wrong_fusion_is_refused_and_leaves_the_old_file(
        self, trained, tmp_path, monkeypatch, old
    ):
        path, _ = trained

        def shifted(exact, prefix):  # forgets to centre the small kernel
            key = f"{prefix}sk_conv.weight"
            return depthwise_kernel({**exact, key: np.roll(exact[key], 1, -1)}, prefix)

        monkeypatch.setattr(fuse, "depthwise_kernel", shifted)
        target = tmp_path / "fused.safetensors"
        if old:
            target.write_bytes(old)
        with pytest.raises(VerificationError, match="differs from its branches"):
            fuse_checkpoint(load_checkpoint(path), target)
        if old is None:
            assert without_hidden(tmp_path) == [path.name]
        else:
            assert without_hidden(tmp_path) == [target.name, path.name]
            assert target.read_bytes() == old

    def test_param_key_chooses(self, trained, tmp_path):
        path, network = trained
        source = load_checkpoint(path, CheckpointOptions(param_key="params"))
        fuse_checkpoint(source, tmp_path / "raw.pth")
        raw = load_checkpoint(tmp_path / "raw.pth").state_dict["conv_first.weight"]
        assert np.array_equal(raw, source.state_dict["conv_first.weight"])
        assert not np.array_equal(raw, network.conv_first.weight.detach())

    def test_float16_is_checked_against_half_an_8_bit_step(self, trained, tmp_path):
        # Weights of unit gain leave the range of pictures, and half precision with it.
        path, _ = trained
        with pytest.raises(
            VerificationError, match=r"fused form differs from .*atol 0\.00196"
        ):
            fuse_checkpoint(load_checkpoint(path), tmp_path / "h.pth", "float16")
        assert not (tmp_path / "h.pth").exists()
        source = load_checkpoint(SHIPPED_MODEL)
        done = fuse_checkpoint(source, tmp_path / "h.pth", "float16")
        assert load_checkpoint(tmp_path / "h.pth").dtype == "float16"
        errors = [d.max_abs_error for d in done.differences.values()]
        assert all(1e-6 < error <= 0.5 / 255 for error in errors)

    def test_a_fused_source_is_written_with_bare_keys(self, tmp_path):
        network = lively_network().fuse()
        source = tmp_path / "release.pth"
        weights = {f"module.{k}": v for k, v in network.state_dict().items()}
        torch.save({"state_dict": weights}, source)
        fuse_checkpoint(load_checkpoint(source), tmp_path / "out.safetensors")
        written = load_file(tmp_path / "out.safetensors")
        assert written.keys() == network.state_dict().keys()
        for key, value in network.state_dict().items():
            assert torch.equal(written[key], value)

    def test_the_source_is_never_overwritten(self, trained):
        path, _ = trained
        before = path.read_bytes()
        with pytest.raises(AetherError, match="Name another output"):
            fuse_checkpoint(load_checkpoint(path), path)
        assert path.read_bytes() == before


class TestCommandAndScript:
    def script(self, monkeypatch, *words):
        return call_script(monkeypatch, FUSE_SCRIPT, *words)

    def test_script_fuses_and_prints_what_it_proved(
        self, trained, tmp_path, monkeypatch, capsys
    ):
        path, _ = trained
        target = tmp_path / "fused.pth"
        words = ["--model_path", path, "--output_path", target, "--upscale", 4]
        assert self.script(monkeypatch, *words, "--model_type", "aether") == 0
        printed = capsys.readouterr().out
        assert "max abs error" in printed
        assert "PSNR" in printed
        assert "params_ema" in printed
        assert load_checkpoint(target).form == "fused"

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            (["--upscale", 2], "scale was given as 2"),
            (["--model_type", "aether_medium"], "aether_medium"),
            (["--param_key", "net_g"], "net_g"),
        ],
    )
    def test_script_stops_at_a_contradiction(
        self, trained, tmp_path, monkeypatch, capsys, words, reason
    ):
        path, _ = trained
        target = tmp_path / "fused.pth"
        first = ["--model_path", path, "--output_path", target]
        assert self.script(monkeypatch, *first, *words) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert reason in error
        assert not target.exists()

    def test_command_says_that_a_file_is_fused_already(self, tmp_path, capsys):
        target = tmp_path / "again.safetensors"
        assert main(["fuse", str(SHIPPED_MODEL), "-o", str(target)]) == 0
        assert "already fused" in capsys.readouterr().out
        ours, again = load_file(SHIPPED_MODEL), load_file(target)
        assert all(torch.equal(ours[key], again[key]) for key in ours)

    def test_script_needs_only_torch_and_numpy_and_runs_in_any_folder(
        self, trained, tmp_path
    ):
        """Every other library that AetherNet uses cannot be imported here."""
        block_imports(
            tmp_path,
            *("safetensors", "pyvips", "PIL", "onnx", "onnxruntime"),
            *("onnxscript", "spandrel", "psutil", "cv2", "av", "rich", "openvino"),
            *("packaging", "filelock"),
        )
        path, _ = trained
        options = {"env": {"PYTHONPATH": str(tmp_path)}, "cwd": tmp_path}
        blocked = run("-c", "import safetensors", **options)
        assert "blocked: safetensors" in blocked.stderr
        words = ["--model_path", path.name, "--output_path", "fused.pth"]
        done = run(FUSE_SCRIPT, *words, **options)
        assert done.returncode == 0, done.stderr
        assert load_checkpoint(tmp_path / "fused.pth").form == "fused"

    def test_without_safetensors_its_files_are_one_error(
        self, trained, tmp_path, monkeypatch, capsys
    ):
        for name in ("safetensors", "safetensors.torch", "safetensors.numpy"):
            monkeypatch.setitem(sys.modules, name, None)
        words = [
            "--model_path",
            trained[0],
            "--output_path",
            tmp_path / "f.safetensors",
        ]
        assert call_script(monkeypatch, FUSE_SCRIPT, *words) == 1
        error = capsys.readouterr().err
        check_one_error(error)
        assert "pip install safetensors" in error


class TestShippedModel:
    def test_is_the_fused_form_of_its_training_form(self):
        network = load_checkpoint(SHIPPED_TRAINING_FORM).build().fuse()
        shipped = load_file(SHIPPED_MODEL)
        for key, value in network.state_dict().items():
            assert torch.equal(shipped[key], value), key

    def test_has_a_card_and_fits_the_repository(self):
        assert SHIPPED_MODEL.with_suffix(".md").exists()
        assert SHIPPED_MODEL.stat().st_size < 6 * 2**20
