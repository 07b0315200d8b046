"""Which runtime runs a model: the choice is fast, checked and kept."""

import json
import logging
import os
import shutil
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch")

from helpers import (
    check_one_error,
    lively_network,
    photo,
    run,
    sample_part,
    without_hidden,
    write,
)
from runtime_helpers import NEEDS_KERNELS, SMALLEST, picture_network

import aethernet
from aethernet.cache import cache_folder
from aethernet.checkpoints.checkpoint import save_checkpoint
from aethernet.commands.main import main
from aethernet.errors import (
    AetherError,
    CheckpointError,
    MissingExtraError,
    VerificationError,
)
from aethernet.runtimes import choice, trial
from aethernet.runtimes.pytorch import PyTorchRuntime
from aethernet.runtimes.registry import open_model, try_runtimes

pytest.importorskip("onnx", reason="needs pip install onnx onnxruntime")
pytest.importorskip("onnxruntime", reason="needs pip install onnx onnxruntime")


def kept(**change):
    """The content of a kept file, with a change."""
    content = {"runtime": "openvino", "device": "cpu", "precision": "float32"}
    content |= {"why": "", "settled": True, "trials": 1}
    return json.dumps(content | change).encode()


def skipped(caplog):
    """Warnings, without the line that says that there is a trial."""
    return [r for r in caplog.records if "comparing the speed" not in r.message]


class TestChoice:
    @pytest.mark.parametrize("fastest", ["pytorch", "onnxruntime", "openvino"])
    def test_takes_what_the_clock_says_is_fastest(self, stage, checkpoint, fastest):
        stage.seconds[fastest] = 0.8
        assert open_model(checkpoint).describe().runtime == fastest

    def test_where_the_work_is_not_known_there_is_no_trial(
        self, stage, checkpoint, tmp_path
    ):
        write(photo(8, 9), tmp_path / "in.png")
        words = ["compare", tmp_path / "in.png", "-o", tmp_path / "page.html"]
        assert main([*map(str, words), "--model", str(checkpoint)]) == 0
        usual = aethernet.load(checkpoint).model.describe()
        assert usual.runtime == "onnxruntime"
        assert stage.timed == []
        try_runtimes(checkpoint)
        assert aethernet.load(checkpoint).model.describe().runtime == "openvino"

    def test_says_why(self, stage, checkpoint):
        why = open_model(checkpoint).describe().why
        assert why == (
            "fastest of 3 tried on a 24x24 tile, 0.50 of the time of onnxruntime "
            "float32 on cpu"
        )

    def test_the_trial_can_be_watched(self, stage, checkpoint, caplog):
        with caplog.at_level(logging.INFO, "aethernet"):
            open_model(checkpoint)
        for line in ("trying pytorch", "openvino in float32 on cpu: 1000 ms"):
            assert line in caplog.text

    def test_a_hopeless_candidate_is_not_run_again(self, stage, checkpoint):
        stage.seconds = {"pytorch": 0.31, "onnxruntime": 0.1, "openvino": 0.29}
        open_model(checkpoint)
        runs = [word.split()[0] for word in stage.timed]
        assert (runs.count("pytorch"), runs.count("openvino")) == (1, trial.ROUNDS)
        # In turns, every other round backwards.
        turns = ["openvino", "onnxruntime", "onnxruntime", "openvino"]
        assert runs[3:] == turns * 2

    def test_slow_models_are_not_run_for_minutes(self, stage, checkpoint):
        stage.seconds = {"pytorch": 6.0, "onnxruntime": 5.0, "openvino": 7.0}
        open_model(checkpoint)
        assert len(stage.timed) == 3 * trial.LEAST_ROUNDS

    def test_the_result_is_kept(self, stage, checkpoint):
        first = open_model(checkpoint).describe()
        assert len(without_hidden(cache_folder() / "trials")) == 1
        stage.loaded.clear()
        stage.timed.clear()
        stage.seconds["openvino"] = 9.0
        assert open_model(checkpoint).describe() == first
        assert stage.loaded == ["openvino float32"]
        assert stage.timed == []

    @pytest.mark.parametrize(
        "change",
        ["library", "weights", "device", "precision", "machine", "threads", "code"],
    )
    def test_there_is_a_new_trial_when_what_decides_it_changes(
        self, stage, checkpoint, monkeypatch, change
    ):
        open_model(checkpoint)
        stage.seconds["openvino"] = 9.0
        words = {}
        if change == "library":
            stage.versions["openvino"] = "2"
        elif change == "weights":
            save_checkpoint(picture_network(scale=1, seed=1, **SMALLEST), checkpoint)
        elif change == "machine":
            monkeypatch.setattr(choice, "processor_name", lambda: "another")
        elif change == "code":
            monkeypatch.setattr(choice, "code_version", lambda code: "another")
        elif change == "threads":
            monkeypatch.setattr(choice, "allowed_threads", lambda: 99)
        else:
            words = {change: "cpu" if change == "device" else "float32"}
        assert open_model(checkpoint, **words).describe().runtime == "onnxruntime"

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff\x00",
            b"[1]",
            b'{"runtime": 7}',
            kept(runtime="toaster"),
            kept(device="x"),
            kept(precision=""),
            kept(settled=None),
            kept(trials="1"),
            b"[" * 100_000,
        ],
    )
    def test_a_damaged_result_is_ignored_and_replaced(self, stage, checkpoint, content):
        open_model(checkpoint)
        (kept,) = (cache_folder() / "trials").iterdir()
        good = kept.read_bytes()
        kept.write_bytes(content)
        assert open_model(checkpoint).describe().runtime == "openvino"
        assert kept.read_bytes() == good

    def test_a_cache_that_cannot_be_written_costs_only_time(
        self, stage, checkpoint, monkeypatch
    ):
        monkeypatch.setenv("AETHERNET_CACHE", str(checkpoint / "cache"))
        assert open_model(checkpoint).describe().runtime == "openvino"

    def test_a_choice_that_fails_later_is_replaced_with_a_warning(
        self, stage, checkpoint, caplog
    ):
        open_model(checkpoint)
        stage.broken["openvino"] = "its driver is gone"
        assert open_model(checkpoint).describe().runtime == "onnxruntime"
        assert "its driver is gone" in caplog.text
        caplog.clear()
        assert open_model(checkpoint).describe().runtime == "onnxruntime"
        assert not caplog.records  # the new result is kept

    def test_a_runtime_that_fails_is_skipped_with_a_warning(
        self, stage, checkpoint, caplog
    ):
        stage.broken["openvino"] = "no such instruction"
        model = open_model(checkpoint)
        assert model.describe().runtime == "onnxruntime"
        (warning,) = skipped(caplog)
        assert warning.levelno == logging.WARNING
        assert "openvino" in warning.message
        assert "no such instruction" in warning.message

    def test_a_named_one_that_fails_is_an_error(self, stage, checkpoint, caplog):
        open_model(checkpoint, "openvino")
        stage.broken["openvino"] = "no such instruction"
        another = checkpoint.with_suffix(".pt")
        shutil.copy(checkpoint, another)
        for path in (checkpoint, another):  # with a kept result, and without
            with pytest.raises(AetherError, match="no such instruction"):
                open_model(path, "openvino")
        assert not caplog.records
        assert {word.split()[0] for word in stage.loaded} == {"openvino"}

    def test_a_runtime_that_does_not_start_is_not_tried_in_another_precision(
        self, stage, checkpoint
    ):
        stage.more["openvino"] = ("float16", "bfloat16")
        stage.broken["openvino"] = "no driver"
        open_model(checkpoint)
        assert "openvino float32" in stage.loaded
        assert "openvino float16" not in stage.loaded

    def test_all_failing_is_one_error(self, stage, checkpoint, caplog):
        stage.broken = dict.fromkeys(stage.seconds, "on fire")
        with pytest.raises(AetherError, match="on fire"):
            open_model(checkpoint)
        assert not caplog.records

    def test_a_damaged_checkpoint_is_one_error(self, stage, checkpoint, caplog):
        checkpoint.write_bytes(b"hello")
        with pytest.raises(CheckpointError) as caught:
            open_model(checkpoint)
        assert caught.value.path == checkpoint
        assert not caplog.records
        assert stage.loaded == []

    @pytest.mark.parametrize("error", [0.01, float("nan"), float("inf")])
    def test_a_wrong_answer_is_never_used(self, stage, checkpoint, caplog, error):
        stage.noise["openvino"] = error
        for _ in range(2):
            assert open_model(checkpoint).describe().runtime == "onnxruntime"
        (warning,) = skipped(caplog)
        assert warning.levelno == logging.WARNING
        assert "differs from the reference" in warning.message
        with pytest.raises(VerificationError, match="differs from the reference"):
            open_model(checkpoint, "openvino", precision="float32")

    def test_an_answer_of_another_size_is_never_used(
        self, stage, checkpoint, monkeypatch
    ):
        sliced = PyTorchRuntime.run
        monkeypatch.setattr(
            PyTorchRuntime, "run", lambda self, batch: sliced(self, batch)[..., 1:]
        )
        with pytest.raises(VerificationError, match="its output has the shape"):
            open_model(checkpoint)

    def test_the_limit_loses_as_much_as_it_says(self):
        error = 10 ** (-trial.AUTO_MIN_PSNR / 10) + 10 ** (-trial.USUAL_PSNR / 10)
        loss = trial.USUAL_PSNR + 10 * np.log10(error)
        assert loss == pytest.approx(trial.MAX_LOSS)
        assert pytest.approx(56.3, abs=0.1) == trial.AUTO_MIN_PSNR

    @pytest.mark.parametrize(("psnr", "taken"), [(57, "bfloat16"), (55, "float32")])
    def test_a_reduced_precision_is_taken_where_no_picture_shows_it(
        self, stage, checkpoint, caplog, psnr, taken
    ):
        stage.more["openvino"] = ("bfloat16",)
        stage.seconds["openvino bfloat16"] = 0.5
        stage.noise["openvino bfloat16"] = 10 ** (-psnr / 20)
        assert open_model(checkpoint).describe().precision == taken
        assert not skipped(caplog)  # a precision that does not suit a model: no defect

    @pytest.mark.parametrize(
        ("precision", "psnr", "right"),
        [
            ("float16", 51, True),
            ("float16", 49, False),
            ("bfloat16", 41, True),
            ("bfloat16", 39, False),
        ],
    )
    def test_a_precision_asked_for_by_name_has_a_limit_of_its_own(
        self, stage, checkpoint, precision, psnr, right
    ):
        stage.noise = dict.fromkeys(stage.seconds, 10 ** (-psnr / 20))
        if right:
            model = open_model(checkpoint, precision=precision)
            assert model.describe().precision == precision
        else:
            with pytest.raises(AetherError, match=f"{precision} on cpu is not used"):
                open_model(checkpoint, precision=precision)

    def test_a_better_device_that_works_leaves_no_work_to_the_cpu(
        self, stage, checkpoint
    ):
        stage.devices = ("cuda", "cpu")
        open_model(checkpoint, "openvino")
        assert len(stage.loaded) == 1
        stage.broken["openvino"] = "no driver"
        with pytest.raises(AetherError, match="no driver"):
            open_model(checkpoint, "openvino", precision="float32")
        assert len(stage.loaded) == 3

    def test_without_onnx_checkpoints_stay_with_pytorch(self, stage, checkpoint):
        del stage.versions["onnx"]
        model = open_model(checkpoint)
        assert str(model.describe()) == "pytorch float32 on cpu: no other is installed"
        assert stage.timed == []


def test_with_torch_alone_nothing_is_tried_kept_or_imported(tmp_path):
    save_checkpoint(lively_network(depths=(1,)), tmp_path / "model.pth")
    write(photo(8, 9), tmp_path / "in.png")
    code = """
import sys
from aethernet.commands.main import main
from aethernet.runtimes import choice
choice.installed_versions = lambda names: {"torch": "2"}
choice.has_reduced_precision_units = lambda: False
assert main(["upscale", "in.png", "--model", "model.pth", "--device", "cpu"]) == 0
print(sorted({"onnx", "onnxruntime", "onnxscript", "openvino"} & set(sys.modules)))
"""
    cache = tmp_path / "cache"
    environment = {**os.environ, "AETHERNET_CACHE": str(cache)}
    done = run("-c", code, cwd=tmp_path, env=environment)
    assert done.stderr == ""
    assert "PyTorch float32 on cpu: no other is installed\n[]\n" in done.stdout
    assert not cache.exists()


@NEEDS_KERNELS
def test_little_work_imports_no_library_to_ask_it(tmp_path):
    """On a processor with units for bfloat16, which others may be faster in."""
    save_checkpoint(lively_network(depths=(1,)), tmp_path / "m.safetensors")
    code = """
import math, sys
from aethernet.runtimes import choice
from aethernet.runtimes.registry import open_model
choice.has_reduced_precision_units = lambda: True
choice.may_use_gpu = lambda names: False
libraries = {"torch", "onnxruntime", "openvino"}
for pixels in (1000, math.inf):
    model = open_model("m.safetensors", pixels=lambda: pixels)
    print(model.describe(), sorted(libraries & set(sys.modules)))
"""
    environment = {**os.environ, "AETHERNET_CACHE": str(tmp_path / "cache")}
    done = run("-c", code, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    little, much = done.stdout.splitlines()
    assert little.endswith("the fastest known here; no trial for so little work []")
    assert "'torch'" in much  # which is asked then


class TestCommand:
    @pytest.fixture
    def words(self, tmp_path, networks):
        write(sample_part(20, 30), tmp_path / "in.png")
        target = str(tmp_path / "out.png")
        model = str(networks["rgb"][0])
        return ["upscale", str(tmp_path / "in.png"), "-o", target, "--model", model]

    def test_runs_as_told_and_prints_it(self, words, capsys):
        told = ["--runtime", "onnxruntime", "--precision", "float32"]
        assert main([*words, *told, "--device", "cpu"]) == 0
        assert "rgb.safetensors: ONNX Runtime float32 on cpu" in capsys.readouterr().out

    def test_without_flags_prints_why(self, words, capsys):
        assert main([*words, "--device", "cpu"]) == 0
        assert "on cpu: the fastest known here" in capsys.readouterr().out

    def test_a_missing_library_names_its_extra(self, words, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        assert main([*words, "--runtime", "openvino"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: The package openvino is missing")
        assert '"aethernet-sr[openvino]"' in error
        check_one_error(error)
        with pytest.raises(MissingExtraError):
            open_model(words[-1], "openvino")

    def test_a_failing_runtime_is_reported_on_stderr(self, tmp_path, networks):
        # In a process of its own, where no test framework takes the messages.
        code = f"""
from aethernet.errors import AetherError
from aethernet.runtimes import choice, onnxruntime, openvino
from aethernet.runtimes.native.runtime import NativeRuntime
from aethernet.runtimes.registry import open_model
choice.has_reduced_precision_units = lambda: False
def fail(*words):
    raise AetherError("Its library is broken.")
onnxruntime.OnnxRuntime.load = openvino.OpenVINORuntime.load = fail
NativeRuntime.load = fail
print(open_model({str(networks["rgb"][0])!r}, device="cpu").describe())
"""
        environment = {**os.environ, "AETHERNET_CACHE": str(tmp_path)}
        done = run("-c", code, env=environment)
        assert "PyTorch float32 on cpu: the only one that works here" in done.stdout
        assert "is skipped: Its library is broken." in done.stderr
        (kept,) = (tmp_path / "trials").iterdir()
        assert json.loads(kept.read_text("utf-8"))["runtime"] == "pytorch"
