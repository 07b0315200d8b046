"""Which runtime runs a model: the choice is fast, checked and kept."""

import json
import logging
import os
import shutil
import sys
import time

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
from runtime_helpers import SMALLEST, picture_network

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
from aethernet.runtimes.base import Description, RuntimeSpec
from aethernet.runtimes.native import library, runtime
from aethernet.runtimes.pytorch import PyTorchRuntime
from aethernet.runtimes.registry import open_model, try_runtimes
from aethernet.runtimes.trial import Cost

pytest.importorskip("onnx", reason="needs pip install onnx onnxruntime")
pytest.importorskip("onnxruntime", reason="needs pip install onnx onnxruntime")

EVERYTHING = dict.fromkeys(("torch", "onnx", "onnxruntime", "openvino"), "1")


def little():
    """Pixels of a small picture."""
    return 1000


def kept(**change):
    """The content of a kept file, with a change."""
    content = {"runtime": "openvino", "device": "cpu", "precision": "float32"}
    content |= {"why": "", "settled": True, "trials": 1}
    return json.dumps(content | change).encode()


class Stage:
    """Stand-ins for all runtimes, and a clock that shows the times given here.

    `seconds`, `noise` and `broken` are by runtime, or by "runtime precision". Seconds
    are a number; or a list of costs, one for each round.
    """

    def __init__(self, monkeypatch):
        self.seconds = {"pytorch": 3.0, "onnxruntime": 2.0, "openvino": 1.0}
        self.noise, self.broken, self.more = {}, {}, {}
        self.loaded, self.timed, self.asked = [], [], []
        self.devices = ("cpu",)
        self.versions = dict(EVERYTHING)
        monkeypatch.setattr(
            RuntimeSpec, "import_class", lambda spec: self.stand_in(spec.name)
        )
        monkeypatch.setattr(
            choice,
            "installed_versions",
            lambda names: {n: v for n, v in self.versions.items() if n in names},
        )
        monkeypatch.setattr(choice, "may_use_gpu", lambda names: True)
        monkeypatch.setattr(choice, "has_reduced_precision_units", lambda: True)
        monkeypatch.setattr(trial, "measure", self.clock)
        monkeypatch.setattr(trial, "TILE", 24)  # to save time

    def of(self, table, name, precision, default=None):
        return table.get(f"{name} {precision}", table.get(name, default))

    def clock(self, model, tile):
        assert tile.shape[-2:] == (24, 24)
        precision = model.describe().precision
        self.timed.append(f"{model.name} {precision}")
        given = self.of(self.seconds, model.name, precision)
        if isinstance(given, list):
            return given[self.timed.count(self.timed[-1]) - 1]
        return Cost(given, given)

    def stand_in(self, name):
        stage = self

        class StandIn(PyTorchRuntime):
            @classmethod
            def load(cls, path, device, precision):
                stage.loaded.append(f"{name} {precision}")
                problem = stage.of(stage.broken, name, precision)
                if problem:
                    raise AetherError(problem)
                model = super().load(path, "cpu", "float32")
                model.name, model.asked, model.where = name, precision, device
                return model

            @classmethod
            def devices(cls):
                stage.asked.append(name)
                return stage.devices if name != "native" else ("cpu",)

            @classmethod
            def precisions(cls, path, device):
                return ("float32", *stage.more.get(name, ()))

            def run(self, batch):
                noise = stage.of(stage.noise, name, self.asked, 0.0)
                return super().run(batch) + np.float32(noise)

            def describe(self):
                return Description(name, self.where, self.asked, self.why)

        return StandIn


@pytest.fixture
def stage(monkeypatch):
    return Stage(monkeypatch)


def skipped(caplog):
    """Warnings, without the line that says that there is a trial."""
    return [r for r in caplog.records if "comparing the speed" not in r.message]


class TestChoice:
    @pytest.mark.parametrize("fastest", ["pytorch", "onnxruntime", "openvino"])
    def test_takes_what_the_clock_says_is_fastest(self, stage, checkpoint, fastest):
        stage.seconds[fastest] = 0.8
        assert open_model(checkpoint).describe().runtime == fastest

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

    def counted(path):
        read.append(path)
        return load(path)

    load = reader.load_checkpoint
    monkeypatch.setattr(reader, "load_checkpoint", counted)
    open_model(checkpoint)
    assert len(stage.loaded) == 3
    assert read == [checkpoint]


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
from aethernet.runtimes import onnxruntime, openvino
from aethernet.runtimes.native.runtime import NativeRuntime
from aethernet.runtimes.registry import open_model
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
