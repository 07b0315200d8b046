"""Without much work the usual runtime is taken; a trial needs a clear win."""

import json
import logging
import time

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch")
from choice_helpers import little
from runtime_helpers import SMALLEST, picture_network

from aethernet.cache import cache_folder
from aethernet.checkpoints.checkpoint import save_checkpoint
from aethernet.errors import CheckpointError
from aethernet.runtimes import choice, trial
from aethernet.runtimes.native import library, runtime
from aethernet.runtimes.registry import open_model, try_runtimes
from aethernet.runtimes.trial import Cost


class TestLittleWork:
    """The trial never delays a picture by more than it can win."""

    def test_the_usual_runtime_is_taken_without_a_trial(self, stage, checkpoint):
        described = open_model(checkpoint, pixels=little).describe()
        assert described.runtime == "onnxruntime"
        assert described.why == "the fastest known here; no trial for so little work"
        assert stage.loaded == ["onnxruntime float32"]
        assert stage.timed == []

    def test_its_output_is_checked_once(self, stage, checkpoint, monkeypatch):
        computed = []

        def counted(folded, tile):
            computed.append(tile.shape)
            return evaluate(folded, tile)

        evaluate = trial.evaluate
        monkeypatch.setattr(trial, "evaluate", counted)
        for _ in range(2):
            open_model(checkpoint, pixels=little)
        assert computed == [(1, 3, *trial.CHECK_SIZE)]

    def test_one_that_fails_is_replaced_by_the_next(self, stage, checkpoint, caplog):
        stage.broken["onnxruntime"] = "no such instruction"
        model = open_model(checkpoint, pixels=little)
        assert model.describe().runtime == "openvino"
        (warning,) = caplog.records
        assert "no such instruction" in warning.message

    def test_longer_work_later_makes_the_trial(self, stage, checkpoint, caplog):
        open_model(checkpoint, pixels=little)
        assert not caplog.records
        assert open_model(checkpoint).describe().runtime == "openvino"
        (line,) = caplog.records  # on stderr
        assert line.levelno == logging.WARNING
        assert line.message == (
            "comparing the speed of 3 runtimes for this model, once (up to 19 s)"
        )
        timed = len(stage.timed)
        assert open_model(checkpoint, pixels=little).describe().runtime == "openvino"
        assert len(stage.timed) == timed

    @pytest.mark.parametrize(("seconds", "tried"), [(30, False), (50, True)])
    def test_work_is_long_where_half_of_it_is_more_than_a_trial(
        self, stage, checkpoint, seconds, tried
    ):
        weights = checkpoint.stat().st_size / 4
        open_model(checkpoint, pixels=lambda: seconds * 2e10 / weights)
        assert bool(stage.timed) == tried

    def test_pixels_are_counted_only_where_they_decide(self, stage, checkpoint):
        open_model(checkpoint)

        def never():
            raise AssertionError("not needed")

        open_model(checkpoint, pixels=never)  # the result is kept
        open_model(checkpoint, "openvino", pixels=never)  # there is no other


class TestBusyMachine:
    """What another program takes from one of them must not decide for ever."""

    def costs(self, *ratios, cpu=None):
        """Costs of rounds, as multiples of a tenth of a second."""
        return [Cost(ratio / 10, (cpu or ratio) / 10) for ratio in ratios]

    def taken(self, stage, checkpoint, *ratios, cpu=None):
        stage.seconds = dict.fromkeys(stage.seconds, 0.1)
        stage.seconds["openvino"] = self.costs(*ratios, cpu=cpu)
        stage.timed.clear()
        return open_model(checkpoint).describe().runtime

    def settled(self):
        (kept,) = (cache_folder() / "trials").iterdir()
        content = json.loads(kept.read_text("utf-8"))
        return content["settled"], content["trials"]

    def test_a_clear_win_of_all_rounds(self, stage, checkpoint):
        assert self.taken(stage, checkpoint, 0.7, 0.8, 0.7, 0.6, 0.8) == "openvino"
        assert self.settled() == (True, 1)

    def test_a_small_win_is_none(self, stage, checkpoint):
        usual = self.taken(stage, checkpoint, 0.95, 0.93, 0.96, 0.95, 0.94)
        assert usual == "onnxruntime"
        assert self.settled() == (True, 1)
        why = open_model(checkpoint).describe().why
        assert why == "none of 2 others tried on a 24x24 tile is clearly faster"

    def test_a_win_in_wall_time_that_costs_more_cpu_time(self, stage, checkpoint):
        assert (
            self.taken(stage, checkpoint, 0.66, 0.7, 0.6, 0.6, 0.7, cpu=1.09)
            == "onnxruntime"
        )

    def test_one_round_that_errs_in_each_direction(self, stage, checkpoint):
        assert self.taken(stage, checkpoint, 0.7, 3.0, 0.1, 0.7, 0.7) == "openvino"
        assert self.settled() == (True, 1)

    def test_rounds_that_disagree_are_repeated_in_a_later_run(self, stage, checkpoint):
        unclear = (0.6, 0.7, 1.2, 1.3, 0.7)
        assert self.taken(stage, checkpoint, *unclear) == "openvino"
        assert self.settled() == (False, 1)
        # A little work takes what was found and tries nothing.
        assert open_model(checkpoint, pixels=little).describe().runtime == "openvino"
        # On the quiet machine it is slower.
        assert self.taken(stage, checkpoint, *[1.1] * 5) == "onnxruntime"
        assert self.settled() == (True, 2)

    def test_a_machine_that_is_always_busy_ends_it(self, stage, checkpoint):
        for number in range(1, choice.MOST_TRIALS + 1):
            self.taken(stage, checkpoint, 0.6, 1.2, 1.3, 1.2, 0.7)
            assert self.settled() == (number == choice.MOST_TRIALS, number)
        stage.timed.clear()
        assert open_model(checkpoint).describe().runtime == "onnxruntime"
        assert stage.timed == []

    def test_the_real_clock_counts_all_threads(self):
        class Waits:
            def run(self, batch):
                time.sleep(0.05)

        cost = trial.measure(Waits(), np.zeros(1))
        assert cost.wall >= 0.05
        assert cost.cpu < cost.wall


class TestGpus:
    def test_where_there_is_none_no_library_is_asked(
        self, stage, checkpoint, monkeypatch
    ):
        monkeypatch.setattr(choice, "may_use_gpu", lambda names: False)
        open_model(checkpoint, pixels=little)
        assert stage.asked == []

    def test_the_fastest_known_is_half_precision_in_pytorch(self, stage, checkpoint):
        stage.devices = ("cuda", "cpu")
        stage.more["pytorch"] = ("float16", "bfloat16")
        described = open_model(checkpoint, pixels=little).describe()
        found = (described.runtime, described.device, described.precision)
        assert found == ("pytorch", "cuda", "float16")
        assert stage.loaded == ["pytorch float16"]

    def test_processors_are_not_tried_beside_a_fast_gpu(self, stage, checkpoint):
        stage.devices = ("cuda", "cpu")
        open_model(checkpoint)
        assert sorted(stage.loaded) == [
            *("onnxruntime float32", "openvino float32", "pytorch float32")
        ]

    def test_another_gpu_may_be_slower_than_the_processor(self, stage, checkpoint):
        stage.devices = ("xpu", "cpu")
        described = open_model(checkpoint, pixels=little).describe()
        assert (described.runtime, described.device) == ("onnxruntime", "cpu")
        stage.seconds = dict.fromkeys(stage.seconds, 0.1)
        open_model(checkpoint)
        runs = [word.split()[0] for word in stage.timed]
        assert {each: runs.count(each) for each in runs} == dict.fromkeys(
            stage.seconds, 2 * trial.ROUNDS
        )


class TestNative:
    """On a processor the native runtime is the usual one."""

    @pytest.fixture
    def checkpoint(self, tmp_path, monkeypatch):
        monkeypatch.setenv("AETHERNET_CACHE", str(tmp_path / "cache"))
        choice.warn_once.cache_clear()
        path = tmp_path / "model.safetensors"
        save_checkpoint(picture_network(scale=1, **SMALLEST), path)
        return path

    @pytest.fixture
    def native_stage(self, stage):
        stage.versions["numpy"] = "2"
        stage.seconds["native"] = 0.5
        return stage

    def test_it_is_taken_at_once_and_nothing_is_tried(self, native_stage, checkpoint):
        described = open_model(checkpoint).describe()
        assert str(described) == "native float32 on cpu: the fastest known here"
        assert native_stage.loaded == ["native float32"]
        assert not (cache_folder() / "trials").exists()

    @pytest.mark.parametrize(
        ("seconds", "taken"), [(0.3, "openvino"), (0.48, "native")]
    )
    def test_a_reduced_precision_has_to_be_proven_faster(
        self, native_stage, checkpoint, seconds, taken
    ):
        native_stage.more["openvino"] = ("bfloat16",)
        native_stage.seconds["openvino bfloat16"] = seconds
        assert open_model(checkpoint, pixels=little).describe().runtime == "native"
        for _ in range(2):
            assert open_model(checkpoint).describe().runtime == taken
        assert "onnxruntime float32" not in native_stage.loaded

    def test_another_precision_is_not_asked_of_it(self, native_stage, checkpoint):
        described = open_model(checkpoint, precision="bfloat16").describe()
        assert described.precision == "bfloat16"
        assert "native bfloat16" not in native_stage.loaded

    def test_wrong_output_is_a_warning_and_another_runtime(
        self, native_stage, checkpoint, caplog, monkeypatch
    ):
        native_stage.broken["native"] = "its output differs"
        assert open_model(checkpoint, pixels=little).describe().runtime != "native"
        assert "native in float32 on cpu is skipped: its output" in caplog.text

    def test_a_trial_of_everything_can_be_asked_for(self, native_stage, checkpoint):
        native_stage.seconds["openvino"] = 0.1
        verdict = try_runtimes(checkpoint)
        assert verdict.winner.spec.name == "openvino"
        assert [row.candidate.spec.name for row in verdict.rows] == [
            *("native", "openvino", "onnxruntime", "pytorch")
        ]
        assert open_model(checkpoint).describe().runtime == "openvino"

    @pytest.mark.parametrize("pretended", ["not built", "an old processor"])
    def test_without_it_onnx_runtime_is_taken_and_one_line_says_so(
        self, checkpoint, monkeypatch, tmp_path, caplog, pretended
    ):
        if pretended == "not built":
            missing = tmp_path / "kernels.so"
            monkeypatch.setattr(
                runtime, "load_kernels", lambda: library.load_kernels(missing)
            )
            reason = "The native kernels have not been built"
        else:
            monkeypatch.setattr(library, "variants", lambda path: ())
            monkeypatch.setattr(
                runtime, "load_kernels", lambda: library.load_kernels(tmp_path)
            )
            reason = "needs a processor with AVX2 and FMA"
        for _ in range(2):
            model = open_model(checkpoint, device="cpu", pixels=little)
            assert model.describe().runtime == "ONNX Runtime"
        (line,) = caplog.records
        assert line.message.startswith("native in float32 on cpu is skipped: ")
        assert reason in line.message

    def test_a_damaged_file_is_one_error(self, checkpoint, caplog):
        checkpoint.write_bytes(b"hello")
        with pytest.raises(CheckpointError) as caught:
            open_model(checkpoint)
        assert caught.value.path == checkpoint
        assert not caplog.records


def test_a_checkpoint_is_read_once_for_all_runtimes(stage, checkpoint, monkeypatch):
    from aethernet.checkpoints import checkpoint as reader

    read = []

    def counted(path, *options):
        read.append(path)
        return load(path, *options)

    load = reader.load_checkpoint
    monkeypatch.setattr(reader, "load_checkpoint", counted)
    open_model(checkpoint)
    assert len(stage.loaded) == 3
    assert read == [checkpoint]
