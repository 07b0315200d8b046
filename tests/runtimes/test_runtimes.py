"""Which runtime executes a model: each one right, the choice fast, checked and kept."""

import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers import SAMPLE, lively_network, random_image, run, without_hidden

from aethernet.cache import cache_folder
from aethernet.checkpoints.checkpoint import save_checkpoint
from aethernet.checkpoints.verification import natural_image
from aethernet.commands.main import main
from aethernet.errors import AetherError, MissingExtraError
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture
from aethernet.runtimes import choice, onnx_files
from aethernet.runtimes.base import Description
from aethernet.runtimes.pytorch import PyTorchRuntime
from aethernet.runtimes.registry import DEVICES, open_model

onnx = pytest.importorskip("onnx", reason="needs pip install -e '.[onnx]'")
ort = pytest.importorskip("onnxruntime", reason="needs pip install -e '.[onnx]'")
from aethernet.runtimes.onnxruntime import PROVIDERS, OnnxRuntime  # noqa: E402

# Rounding of float32 sums in another order, of values around 1.
FLOAT32 = {"rtol": 0, "atol": 1e-5}
EVERYTHING = {"torch": "1", "onnx": "1", "onnxscript": "1", "onnxruntime": "1"}
EVERYTHING["openvino"] = "1"
SMALLEST = {"embed_dim": 4, "depths": (1,), "lk_kernel": 3}
INSTALLED = [
    "pytorch",
    "onnxruntime",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(
            "openvino" not in choice._versions(),
            reason="needs pip install -e '.[openvino]'",
        ),
    ),
]


def picture_network(**arguments):
    """A lively network whose output is in the range of pictures."""
    network = lively_network(**arguments)
    with torch.no_grad():
        network.conv_last.weight.mul_(0.1)
    return network


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Name -> file and network, each exported once in all tests of this file."""
    folder = tmp_path_factory.mktemp("networks")
    made = {}
    for name, arguments in (
        ("rgb", {"depths": (1,)}),
        ("gray", {"in_chans": 1, "scale": 3, **SMALLEST}),
    ):
        network = picture_network(**arguments)
        save_checkpoint(network, folder / f"{name}.safetensors")
        made[name] = (folder / f"{name}.safetensors", network)
    return made


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint, and a cache of its own."""
    monkeypatch.setenv("AETHERNET_CACHE", str(tmp_path / "cache"))
    save_checkpoint(picture_network(scale=1, **SMALLEST), tmp_path / "model.pth")
    return tmp_path / "model.pth"


class Stage:
    """Stand-ins for all runtimes, and a clock that reads what each is said to take.

    `seconds`, `noise` and `broken` are by runtime, or by "runtime precision".
    """

    def __init__(self, monkeypatch):
        self.seconds = {"pytorch": 3.0, "onnxruntime": 2.0, "openvino": 1.0}
        self.noise, self.broken, self.more = {}, {}, {}
        self.loaded, self.timed = [], []
        self.versions = dict(EVERYTHING)
        monkeypatch.setattr(choice, "runtime_class", self.stand_in)
        monkeypatch.setattr(choice, "_versions", lambda: self.versions)
        monkeypatch.setattr(choice, "seconds", self.clock)
        monkeypatch.setattr(choice, "TILE", 24)  # for time's sake

    def of(self, table, name, precision, default=None):
        return table.get(f"{name} {precision}", table.get(name, default))

    def clock(self, model, tile):
        assert tile.shape[-2:] == (24, 24)
        precision = model.describe().precision
        self.timed.append(f"{model.name} {precision}")
        return self.of(self.seconds, model.name, precision)

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
                model.name, model.asked = name, precision
                return model

            @classmethod
            def devices(cls):
                return ("cpu",)

            @classmethod
            def precisions(cls, path, device):
                return ("float32", *stage.more.get(name, ()))

            def run(self, batch):
                noise = stage.of(stage.noise, name, self.asked, 0.0)
                return super().run(batch) + np.float32(noise)

            def describe(self):
                return Description(name, "cpu", self.asked, self.why)

        return StandIn


@pytest.fixture
def stage(monkeypatch):
    return Stage(monkeypatch)


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
        for said in ("trying pytorch", "openvino in float32 on cpu: 1000 ms"):
            assert said in caplog.text

    def test_who_is_hopeless_is_not_run_again(self, stage, checkpoint):
        stage.seconds = {"pytorch": 0.31, "onnxruntime": 0.1, "openvino": 0.29}
        open_model(checkpoint)
        runs = [word.split()[0] for word in stage.timed]
        assert (runs.count("pytorch"), runs.count("openvino")) == (1, 3)
        assert runs[3:] == ["onnxruntime", "openvino"] * 2  # in turns

    def test_slow_models_are_not_run_for_minutes(self, stage, checkpoint):
        stage.seconds = {"pytorch": 6.0, "onnxruntime": 5.0, "openvino": 7.0}
        open_model(checkpoint)
        assert len(stage.timed) == 3

    def test_the_outcome_is_kept(self, stage, checkpoint):
        first = open_model(checkpoint).describe()
        assert len(without_hidden(cache_folder() / "trials")) == 1
        stage.loaded.clear()
        stage.timed.clear()
        stage.seconds["openvino"] = 9.0
        assert open_model(checkpoint).describe() == first
        assert stage.loaded == ["openvino float32"]
        assert stage.timed == []

    @pytest.mark.parametrize(
        "change", ["library", "weights", "device", "precision", "machine", "threads"]
    )
    def test_it_is_tried_again_when_what_it_hangs_on_changes(
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
        elif change == "threads":
            monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
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
            b'{"runtime": "toaster", "device": "cpu", "precision": "auto", "why": ""}',
            b'{"runtime": "openvino", "device": "x", "precision": "auto", "why": ""}',
            b'{"runtime": "openvino", "device": "cpu", "precision": "", "why": ""}',
            b"[" * 100_000,
        ],
    )
    def test_a_damaged_outcome_is_ignored_and_written_anew(
        self, stage, checkpoint, content
    ):
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

    def test_who_fails_later_is_replaced_with_a_warning(
        self, stage, checkpoint, caplog
    ):
        open_model(checkpoint)
        stage.broken["openvino"] = "its driver is gone"
        assert open_model(checkpoint).describe().runtime == "onnxruntime"
        assert "its driver is gone" in caplog.text
        caplog.clear()
        assert open_model(checkpoint).describe().runtime == "onnxruntime"
        assert not caplog.records  # it is known by now

    def test_who_fails_at_start_falls_back_with_a_warning(
        self, stage, checkpoint, caplog
    ):
        stage.broken["openvino"] = "no such instruction"
        model = open_model(checkpoint)
        assert model.describe().runtime == "onnxruntime"
        (warning,) = caplog.records
        assert warning.levelno == logging.WARNING
        assert "openvino" in warning.message
        assert "no such instruction" in warning.message

    def test_a_named_one_that_fails_is_an_error(self, stage, checkpoint, caplog):
        open_model(checkpoint, "openvino")
        stage.broken["openvino"] = "no such instruction"
        another = checkpoint.with_suffix(".pt")
        shutil.copy(checkpoint, another)
        for path in (checkpoint, another):  # whose outcome is kept, and is not
            with pytest.raises(AetherError, match="no such instruction"):
                open_model(path, "openvino")
        assert not caplog.records
        assert {word.split()[0] for word in stage.loaded} == {"openvino"}

    def test_who_does_not_start_is_not_asked_again_in_another_precision(
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
        with pytest.raises(AetherError, match="is no"):
            open_model(checkpoint)
        assert not caplog.records
        assert stage.loaded == []

    @pytest.mark.parametrize("error", [0.01, float("nan"), float("inf")])
    def test_a_wrong_answer_is_never_used(self, stage, checkpoint, caplog, error):
        stage.noise["openvino"] = error
        for _ in range(2):
            assert open_model(checkpoint).describe().runtime == "onnxruntime"
        (warning,) = caplog.records
        assert warning.levelno == logging.WARNING
        assert "differs from the reference" in warning.message
        with pytest.raises(AetherError, match="differs from the reference"):
            open_model(checkpoint, "openvino", precision="float32")

    def test_an_answer_of_another_size_is_never_used(
        self, stage, checkpoint, monkeypatch
    ):
        sliced = PyTorchRuntime.run
        monkeypatch.setattr(
            PyTorchRuntime, "run", lambda self, batch: sliced(self, batch)[..., 1:]
        )
        with pytest.raises(AetherError, match="is right"):
            open_model(checkpoint)

    def test_the_bar_loses_no_more_than_it_says(self):
        error = 10 ** (-choice.AUTO_MIN_PSNR / 10) + 10 ** (-choice.USUAL_PSNR / 10)
        loss = choice.USUAL_PSNR + 10 * np.log10(error)
        assert loss == pytest.approx(choice.MAX_LOSS)
        assert pytest.approx(56.3, abs=0.1) == choice.AUTO_MIN_PSNR

    @pytest.mark.parametrize(("psnr", "taken"), [(57, "bfloat16"), (55, "float32")])
    def test_a_reduced_precision_is_taken_where_no_picture_shows_it(
        self, stage, checkpoint, caplog, psnr, taken
    ):
        stage.more["openvino"] = ("bfloat16",)
        stage.seconds["openvino bfloat16"] = 0.5
        stage.noise["openvino bfloat16"] = 10 ** (-psnr / 20)
        assert open_model(checkpoint).describe().precision == taken
        assert not caplog.records  # that it does not suit a model is no defect

    @pytest.mark.parametrize(
        ("precision", "psnr", "right"),
        [
            ("float16", 51, True),
            ("float16", 49, False),
            ("bfloat16", 41, True),
            ("bfloat16", 39, False),
        ],
    )
    def test_a_precision_asked_for_by_name_has_a_bar_of_its_own(
        self, stage, checkpoint, precision, psnr, right
    ):
        stage.noise = dict.fromkeys(stage.seconds, 10 ** (-psnr / 20))
        if right:
            model = open_model(checkpoint, precision=precision)
            assert model.describe().precision == precision
        else:
            with pytest.raises(AetherError, match=f"{precision}.* is not used"):
                open_model(checkpoint, precision=precision)

    def test_a_better_device_that_works_leaves_no_work_to_the_cpu(
        self, stage, checkpoint, monkeypatch
    ):
        def of_two_devices(name):
            cls = stage.stand_in(name)
            cls.devices = classmethod(lambda cls: ("cuda", "cpu"))
            return cls

        monkeypatch.setattr(choice, "runtime_class", of_two_devices)
        open_model(checkpoint, "openvino")
        assert len(stage.loaded) == 1
        stage.broken["openvino"] = "no driver"
        with pytest.raises(AetherError, match="no driver"):
            open_model(checkpoint, "openvino", precision="float32")
        assert len(stage.loaded) == 3

    def test_without_an_exporter_checkpoints_stay_with_pytorch(self, stage, checkpoint):
        del stage.versions["onnxscript"]
        model = open_model(checkpoint)
        assert str(model.describe()) == "pytorch float32 on cpu: no other is installed"
        assert stage.timed == []


def test_with_torch_alone_nothing_is_tried_kept_or_imported(tmp_path):
    save_checkpoint(lively_network(depths=(1,)), tmp_path / "model.pth")
    pixels = np.rint(natural_image(8, 9)[0].permute(1, 2, 0).numpy() * 255)
    write_picture(Picture(pixels.astype(np.uint8)), tmp_path / "in.png")
    code = """
import sys
from aethernet.commands.main import main
from aethernet.runtimes import choice, pytorch
choice._versions = lambda: {"torch": "2"}
pytorch.has_bfloat16_units = lambda: False
assert main(["upscale", "in.png", "--model", "model.pth", "--device", "cpu"]) == 0
print(sorted({"onnx", "onnxruntime", "onnxscript", "openvino"} & set(sys.modules)))
"""
    cache = tmp_path / "cache"
    environment = {**os.environ, "AETHERNET_CACHE": str(cache)}
    done = run("-c", code, cwd=tmp_path, env=environment)
    assert done.stderr == ""
    assert "PyTorch float32 on cpu: no other is installed\n[]\n" in done.stdout
    assert not cache.exists()


class TestEachRuntime:
    @pytest.mark.parametrize("runtime", INSTALLED)
    @pytest.mark.parametrize("name", ["rgb", "gray"])
    def test_computes_what_the_network_computes(self, networks, name, runtime):
        path, network = networks[name]
        model = open_model(path, runtime, "cpu", "float32")
        assert (model.scale, model.channels) == (
            network.hyperparameters["scale"],
            network.in_chans,
        )
        for size in ((1, 1, 1), (1, 7, 5), (3, 13, 18), (1, 40, 33)):
            image = random_image(size[0], model.channels, *size[1:])
            with torch.inference_mode():
                expected = network(image)
            output = model.run(image.numpy())
            assert output.dtype == np.float32
            assert output.flags.c_contiguous
            torch.testing.assert_close(torch.from_numpy(output), expected, **FLOAT32)

    @pytest.mark.parametrize("runtime", INSTALLED)
    def test_an_output_is_not_overwritten_by_the_next(self, networks, runtime):
        model = open_model(networks["gray"][0], runtime, "cpu")
        first = model.run(np.zeros((1, 1, 9, 9), np.float32))
        before = first.copy()
        model.run(np.ones((1, 1, 9, 9), np.float32))
        assert np.array_equal(first, before)

    @pytest.mark.parametrize("runtime", INSTALLED)
    def test_describes_itself(self, networks, runtime):
        said = open_model(networks["rgb"][0], runtime, "cpu", "float32").describe()
        names = {
            "pytorch": "PyTorch",
            "onnxruntime": "ONNX Runtime",
            "openvino": "OpenVINO",
        }
        assert (said.runtime, said.device) == (names[runtime], "cpu")
        assert said.precision == "float32"
        assert said.why

    def test_pytorch_in_reduced_precision_gives_float32(self, networks):
        path, network = networks["rgb"]
        image = natural_image(12, 10)
        with torch.inference_mode():
            expected = network(image).numpy()
        for precision, limit in (("float16", 50), ("bfloat16", 40)):
            model = PyTorchRuntime.load(path, "cpu", precision)
            output = model.run(image.numpy())
            assert output.dtype == np.float32
            psnr = -10 * np.log10(np.square(output - expected).mean())
            assert limit <= psnr < 100

    def test_pytorch_compiles_on_request(self, networks, monkeypatch):
        seen = []
        monkeypatch.setattr(
            torch, "compile", lambda module, **words: seen.append(words) or module
        )
        PyTorchRuntime.load(networks["gray"][0], "cpu", "float32", compiled=True)
        assert seen == [{"dynamic": True}]

    def test_layer_norm_overflows_in_no_precision(self, tmp_path):
        network = picture_network()
        with torch.no_grad():  # sums of squares beyond 65504, values far below
            network.conv_first.weight.mul_(2000)
            network.conv_first.bias.mul_(2000)
        save_checkpoint(network, tmp_path / "large.pth")
        model = PyTorchRuntime.load(tmp_path / "large.pth", "cpu", "float16")
        assert np.isfinite(model.run(natural_image(9, 9).numpy())).all()

    def test_memory_that_does_not_suffice_is_a_sentence(self, networks):
        model = OnnxRuntime.load(networks["gray"][0], "cpu", "auto")

        class Full:
            def get_inputs(self):
                raise MemoryError

        model._session = Full()
        with pytest.raises(AetherError, match=r"Out of memory on cpu .* 7x5"):
            model.run(np.zeros((1, 1, 5, 7), np.float32))


class TestExports:
    def test_an_export_is_made_once(self, networks, monkeypatch):
        path, _ = networks["rgb"]
        OnnxRuntime.load(path, "cpu", "float32")
        monkeypatch.setattr("aethernet.checkpoints.onnx.export_onnx", None)
        assert OnnxRuntime.load(path, "cpu", "float32").scale == 2

    def test_a_damaged_one_is_made_again_and_old_ones_go(self, checkpoint, monkeypatch):
        def export(source, target, **options):
            repeating_onnx(target, 2)

        monkeypatch.setattr("aethernet.checkpoints.onnx.export_onnx", export)
        OnnxRuntime.load(checkpoint, "cpu", "float32")
        folder = cache_folder() / "exports"
        (made,) = folder.iterdir()
        for number in range(20):
            old = folder / f"{number}.onnx"
            old.touch()
            os.utime(old, (number, number))
        made.write_bytes(made.read_bytes()[:99])
        assert OnnxRuntime.load(checkpoint, "cpu", "float32").scale == 2
        names = without_hidden(folder)
        assert len(names) == onnx_files._KEPT_EXPORTS
        assert made.name in names
        assert "0.onnx" not in names

    def test_onnxruntime_takes_one_in_the_precision_asked_for(
        self, checkpoint, monkeypatch
    ):
        asked = []

        def export(source, target, **options):
            asked.append((source, options))
            repeating_onnx(target, 2, dtype="FLOAT16")

        monkeypatch.setattr("aethernet.checkpoints.onnx.export_onnx", export)
        model = OnnxRuntime.load(checkpoint, "cpu", "float16")
        assert model.describe().precision == "float16"
        assert asked == [(checkpoint, {"dynamic": True, "precision": "float16"})]

    def test_other_code_makes_another(self, networks, monkeypatch):
        path, _ = networks["rgb"]
        OnnxRuntime.load(path, "cpu", "float32")
        monkeypatch.setattr(onnx_files, "code_version", lambda: "another")
        monkeypatch.setattr("aethernet.checkpoints.onnx.export_onnx", None)
        with pytest.raises(TypeError):  # None is called
            OnnxRuntime.load(path, "cpu", "float32")

    @pytest.mark.parametrize(
        ("variables", "folder"),
        [
            ({"AETHERNET_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
            ({"XDG_CACHE_HOME": "/b", "LOCALAPPDATA": "/c"}, "/b/aethernet"),
            ({"LOCALAPPDATA": "/c"}, "/c/aethernet"),
            ({"HOME": "/d", "USERPROFILE": "/d"}, "/d/.cache/aethernet"),
        ],
    )
    def test_where_the_cache_is(self, monkeypatch, variables, folder):
        for name in ("AETHERNET_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert cache_folder() == Path(folder)


def repeating_onnx(path, scale=3, sides=("batch", 3, "height", "width"), dtype="FLOAT"):
    """A file of others: each pixel becomes a square."""
    helper, kind = onnx.helper, getattr(onnx.TensorProto, dtype)
    scales = helper.make_tensor("s", onnx.TensorProto.FLOAT, [4], [1, 1, scale, scale])
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest")
    graph = helper.make_graph(
        [node],
        "others",
        [helper.make_tensor_value_info("x", kind, sides)],
        [helper.make_tensor_value_info("y", kind, [None] * 4)],
        [scales],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


class TestOnnxFiles:
    @pytest.mark.parametrize("runtime", ["auto", *INSTALLED[1:]])
    def test_files_of_others_run(self, tmp_path, runtime):
        path = repeating_onnx(tmp_path / "others.onnx")
        model = open_model(path, runtime, "cpu")
        assert (model.scale, model.channels) == (3, 3)
        image = random_image(2, 3, 5, 4).numpy()
        wanted = image.repeat(3, 2).repeat(3, 3)
        assert np.array_equal(model.run(image), wanted)

    def test_threads_that_pytorch_was_told_to_take_are_onnxruntime_s(
        self, tmp_path, monkeypatch
    ):
        path = repeating_onnx(tmp_path / "others.onnx")
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
        # 0: as many as it likes, which is said where nobody told PyTorch anything.
        for told, taken in ((1, 1), (3, 3), (4, 0), (8, 0)):
            monkeypatch.setattr(torch, "get_num_threads", lambda told=told: told)
            session = OnnxRuntime.load(path, "cpu", "auto")._session
            assert session.get_session_options().intra_op_num_threads == taken

    @pytest.mark.parametrize("runtime", INSTALLED[1:])
    def test_fixed_sizes_and_float16_run(self, tmp_path, runtime):
        sides = (1, 1, 24, 16)
        path = repeating_onnx(tmp_path / "half.onnx", 2, sides, "FLOAT16")
        model = open_model(path, runtime, "cpu")
        assert (model.scale, model.channels) == (2, 1)
        assert model.describe().precision == "float16"
        image = random_image(*sides).half().float().numpy()
        assert np.array_equal(model.run(image), image.repeat(2, 2).repeat(2, 3))
        with pytest.raises(AetherError, match="height of 24 only, not 23"):
            model.run(image[:, :, 1:])
        with pytest.raises(AetherError, match="float16"):
            open_model(path, runtime, "cpu", "float32")

    @pytest.mark.parametrize("runtime", ["auto", *INSTALLED[1:]])
    def test_what_is_no_model_is_one_error(self, tmp_path, runtime, caplog):
        (tmp_path / "bad.onnx").write_bytes(b"hello" * 99)
        with pytest.raises(AetherError, match="no ONNX model"):
            open_model(tmp_path / "bad.onnx", runtime)
        assert not caplog.records

    def test_a_file_is_not_run_in_a_precision_it_is_not_in(self, tmp_path):
        path = repeating_onnx(tmp_path / "others.onnx")
        with pytest.raises(AetherError, match="is in float32"):
            open_model(path, "onnxruntime", "cpu", "float16")

    def test_onnxruntime_refuses_bfloat16_on_the_cpu_before_it_exports(
        self, checkpoint
    ):
        with pytest.raises(AetherError, match="no bfloat16 on the CPU"):
            open_model(checkpoint, "onnxruntime", "cpu", "bfloat16")
        assert not (cache_folder() / "exports").exists()

    def test_what_a_file_says_of_its_precision_is_not_believed_blindly(self, tmp_path):
        path = repeating_onnx(tmp_path / "others.onnx")
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {"precision": "\x1b[31mfloat99"})
        onnx.save(model, path)
        assert OnnxRuntime.load(path, "cpu", "auto").describe().precision == "float32"


class TestDevices:
    def test_every_device_of_the_scheme_has_its_provider(self):
        assert set(PROVIDERS) == set(DEVICES["onnxruntime"])

    @pytest.mark.filterwarnings("ignore:Specified provider")
    def test_a_session_that_falls_back_to_the_cpu_is_no_gpu(
        self, tmp_path, monkeypatch, caplog
    ):
        # As onnxruntime-gpu where no driver is: built in, and not to be started.
        path = repeating_onnx(tmp_path / "others.onnx")
        both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(ort, "get_available_providers", lambda: both)
        with pytest.raises(AetherError, match="could not start CUDAExecutionProvider"):
            open_model(path, "onnxruntime", "cuda:0")
        assert open_model(path, "onnxruntime").describe().device == "cpu"
        assert "could not start CUDAExecutionProvider" in caplog.text

    @pytest.mark.parametrize("device", ["cuda", "dml:x", "cpu:1", "coreml", "tensorrt"])
    def test_onnxruntime_says_what_it_lacks(self, networks, device):
        with pytest.raises(AetherError, match=f"{device}.* ONNX Runtime here"):
            open_model(networks["rgb"][0], "onnxruntime", device)

    @pytest.mark.parametrize(
        ("runtime", "device"),
        [("auto", "toaster"), ("openvino", "cuda"), ("pytorch", "dml")],
    )
    def test_a_device_of_no_runtime_is_said(self, networks, runtime, device):
        with pytest.raises(AetherError, match=f"'{device}' is none of cpu"):
            open_model(networks["rgb"][0], runtime, device)

    def test_words_that_there_are_not(self, networks):
        with pytest.raises(AetherError, match="no 'tvm'"):
            open_model(networks["rgb"][0], "tvm")
        with pytest.raises(AetherError, match="no 'int4'"):
            open_model(networks["rgb"][0], precision="int4")

    def test_bfloat16_pays_on_processors_with_units_for_it(self, monkeypatch):
        for found, pays in (({"amx_bf16": True}, True), ({"avx2": True}, False)):
            monkeypatch.setattr(
                torch.cpu, "get_capabilities", lambda f=found: f, raising=False
            )
            offered = PyTorchRuntime.precisions(Path("m.pth"), "cpu")
            assert offered == ("float32", *["bfloat16"] * pays)


class TestOpenVINO:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("openvino", reason="needs pip install -e '.[openvino]'")

    def test_float32_is_float32(self, networks):
        from aethernet.runtimes.openvino import OpenVINORuntime

        model = OpenVINORuntime.load(networks["rgb"][0], "cpu", "auto")
        taken = model._compiled.get_property("INFERENCE_PRECISION_HINT")
        assert taken.get_type_name() == "f32"

    def test_takes_no_more_threads_than_pytorch_was_told_to(
        self, tmp_path, monkeypatch
    ):
        import openvino

        path = repeating_onnx(tmp_path / "others.onnx")
        usual = openvino.compile_model(path, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        name = "INFERENCE_NUM_THREADS"
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
        for told, taken in ((1, 1), (4, usual.get_property(name))):
            monkeypatch.setattr(torch, "get_num_threads", lambda told=told: told)
            model = open_model(path, "openvino", "cpu")
            assert model._compiled.get_property(name) == taken

    def test_offers_what_the_device_says_it_computes(self, monkeypatch, tmp_path):
        from aethernet.runtimes import openvino

        for has, offered in (
            (["FP32", "INT8"], ("float32",)),
            (["FP32", "BF16"], ("float32", "bfloat16")),
            (["FP32", "FP16", "BF16"], ("float32", "float16", "bfloat16")),
        ):

            class Core:
                available_devices = ("CPU", "GPU.0")

                def get_property(self, name, what, has=has):
                    assert (name, what) == ("GPU.1", "OPTIMIZATION_CAPABILITIES")
                    return has

            monkeypatch.setattr(openvino, "_core", Core)
            cls = openvino.OpenVINORuntime
            assert cls.precisions(tmp_path / "m.pth", "xpu:1") == offered
        assert openvino.OpenVINORuntime.devices() == ("xpu", "cpu")

    def test_a_precision_without_hardware_is_refused(self, networks, monkeypatch):
        from aethernet.runtimes import openvino

        monkeypatch.setattr(openvino, "_computes", lambda _, name: name == "float32")
        with pytest.raises(AetherError, match="does not compute in bfloat16 on cpu"):
            open_model(networks["rgb"][0], "openvino", "cpu", "bfloat16")

    def test_a_precision_that_the_library_takes_by_itself_is_refused(
        self, tmp_path, monkeypatch
    ):
        from aethernet.runtimes import openvino

        path = repeating_onnx(tmp_path / "others.onnx")
        monkeypatch.setitem(openvino._HINTS, "bfloat16", ("bf16", "FP32"))
        if "BF16" in openvino._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("needs a processor without bfloat16 units")
        with pytest.raises(AetherError, match="takes f32 on cpu, not bf16"):
            openvino.OpenVINORuntime.load(path, "cpu", "bfloat16")

    def test_a_gpu_that_is_not_there_is_said(self, networks):
        with pytest.raises(AetherError, match="'xpu:7' is not available to OpenVINO"):
            open_model(networks["rgb"][0], "openvino", "xpu:7")


class TestCommand:
    @pytest.fixture
    def words(self, tmp_path, networks):
        pixels = read_picture(SAMPLE).pixels[:20, :30]
        write_picture(Picture(pixels), tmp_path / "in.png")
        target = str(tmp_path / "out.png")
        model = str(networks["rgb"][0])
        return ["upscale", str(tmp_path / "in.png"), "-o", target, "--model", model]

    def test_runs_as_told_and_says_so(self, words, capsys):
        told = ["--runtime", "onnxruntime", "--precision", "float32"]
        assert main([*words, *told, "--device", "cpu"]) == 0
        assert "rgb.safetensors: ONNX Runtime float32 on cpu" in capsys.readouterr().out

    def test_runs_and_says_why_without_being_told(self, words, capsys):
        assert main([*words, "--device", "cpu"]) == 0
        said = capsys.readouterr()
        assert re.search(r" on a 128x128 tile, [01]\.\d\d of the time of ", said.out)
        assert said.err == ""

    def test_a_missing_library_names_its_extra(self, words, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        assert main([*words, "--runtime", "openvino"]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: The package openvino is missing")
        assert "'.[openvino]'" in said
        assert said.count("\n") == 1
        with pytest.raises(MissingExtraError):
            open_model(words[-1], "openvino")

    def test_a_failing_runtime_is_told_on_stderr(self, tmp_path, networks):
        # In a process of its own, where no test framework takes the messages.
        code = f"""
from aethernet.errors import AetherError
from aethernet.runtimes import onnxruntime, openvino
from aethernet.runtimes.registry import open_model
def fail(*words):
    raise AetherError("Its library is broken.")
onnxruntime.OnnxRuntime.load = openvino.OpenVINORuntime.load = fail
print(open_model({str(networks["rgb"][0])!r}, device="cpu").describe())
"""
        environment = {**os.environ, "AETHERNET_CACHE": str(tmp_path)}
        done = run("-c", code, env=environment)
        assert "PyTorch float32 on cpu: the only one that works here" in done.stdout
        assert "left out: Its library is broken." in done.stderr
        (kept,) = (tmp_path / "trials").iterdir()
        assert json.loads(kept.read_text("utf-8"))["runtime"] == "pytorch"
