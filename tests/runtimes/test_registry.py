"""The registry: each runtime is one entry, and everything else is made from it."""

import json
import sys
import tomllib
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import ROOT, SAMPLE, lively_network, random_image, run

from aethernet.bench import ceiling
from aethernet.cache import cache_folder
from aethernet.checkpoints.checkpoint import save_checkpoint
from aethernet.commands.main import command_parser, main
from aethernet.devices import installed_versions
from aethernet.errors import AetherError, MissingExtraError, OutOfMemoryError
from aethernet.runtimes import choice, trial
from aethernet.runtimes.base import (
    Description,
    ModelFile,
    RuntimeSpec,
    check_upscales,
    library_failures,
)
from aethernet.runtimes.pytorch import PyTorchRuntime
from aethernet.runtimes.registry import (
    RUNTIMES,
    device_kinds,
    model_suffixes,
    open_model,
    register,
    runtime_class,
    runtimes_for,
)
from aethernet.runtimes.trial import Cost

# Rounding of float32 sums in another order, of values around 1.
FLOAT32 = {"rtol": 0, "atol": 1e-5}
INSTALLED = [
    pytest.param(
        spec.name,
        marks=pytest.mark.skipif(
            not installed_versions(spec.distributions),
            reason=f"needs pip install -e '.[{spec.extra}]'",
        ),
    )
    for spec in RUNTIMES.values()
    if spec.tried
]


class ToyRuntime(PyTorchRuntime):
    """What a new runtime has: PyTorch under another name."""

    @classmethod
    def devices(cls):
        return ("cpu",)

    def describe(self):
        return Description("Toy", "cpu", self.precision, self.why)


@pytest.fixture
def toy():
    """The entry of a runtime that is registered during a test."""
    spec = RuntimeSpec(
        name="toy",
        load=f"{__name__}:ToyRuntime",
        suffixes=(".pth", ".toy"),
        devices=("cpu", "abacus"),
        distributions=("numpy",),
        extra=None,
    )
    register(spec)
    yield spec
    del RUNTIMES["toy"]


class TestANewRuntime:
    def test_is_a_choice_of_the_flag(self, toy):
        arguments = command_parser(["upscale"]).parse_args(
            ["upscale", "in.png", "--runtime", "toy"]
        )
        assert arguments.runtime == "toy"

    def test_has_its_devices_in_the_help(self, toy, capsys):
        with pytest.raises(SystemExit):
            main(["upscale", "--help"])
        assert "abacus" in capsys.readouterr().out

    def test_takes_part_in_the_trial_of_auto_and_in_the_key_of_the_kept_result(
        self, toy, checkpoint, monkeypatch
    ):
        monkeypatch.setattr(trial, "TILE", 24)  # to save time
        monkeypatch.setattr(
            trial,
            "measure",
            lambda model, tile: Cost(*[1 if isinstance(model, ToyRuntime) else 2] * 2),
        )
        described = open_model(checkpoint, device="cpu", precision="float32").describe()
        assert described.runtime == "Toy"
        assert described.why.startswith("fastest of ")
        (kept,) = (cache_folder() / "trials").iterdir()
        facts = json.loads(kept.read_text("utf-8"))["facts"]
        assert "toy" in facts["runtimes"]
        assert facts["versions"]["numpy"] == np.__version__

    def test_that_is_not_automatic_has_to_be_named(self, toy, checkpoint, monkeypatch):
        monkeypatch.setitem(RUNTIMES, "toy", replace(toy, automatic=False))
        monkeypatch.setattr(trial, "TILE", 24)
        assert runtimes_for("abacus") == ()
        assert open_model(checkpoint).describe().runtime != "Toy"
        for kept in (cache_folder() / "trials").glob("*"):
            facts = json.loads(kept.read_text("utf-8"))["facts"]
            assert "toy" not in facts["runtimes"]
        assert open_model(checkpoint, "toy").describe().runtime == "Toy"

    def test_without_it_the_key_is_another(self, toy, checkpoint):
        request = choice.Request(checkpoint)
        keys = [
            choice.trial_facts(request, specs, ModelFile(checkpoint))
            for specs in ([RUNTIMES["pytorch"]], [RUNTIMES["pytorch"], toy])
        ]
        assert keys[0] != keys[1]

    def test_is_compared_by_bench(self, toy, tmp_path, monkeypatch, capsys):
        pytest.importorskip("spandrel", reason="needs pip install -e '.[bench]'")
        monkeypatch.setattr(ceiling, "PRODUCT_SIDES", (64,))
        save_checkpoint(lively_network(depths=(1,)), tmp_path / "tiny.pth")
        words = ["bench", "--model", str(tmp_path / "tiny.pth"), "--runtimes", "toy"]
        words += ["--variants", "--peers", "compact", "--precisions", "float32"]
        words += ["--size", "16x16", "--runs", "1", "--device", "cpu", "--no-memory"]
        assert main([*words, "--json", str(tmp_path / "b.json")]) == 0
        content = json.loads((tmp_path / "b.json").read_text("utf-8"))
        found = {c["runtime"]: c for c in content["contenders"]}
        assert {*found} == {"auto", "toy"}  # it reads no ONNX file, so no peer either
        assert found["toy"]["ms"] > 0
        assert found["toy"]["description"] == "Toy float32 on cpu"

    def test_gives_its_suffixes_and_devices(self, toy):
        assert ".toy" in model_suffixes()
        assert "abacus" in device_kinds()
        assert runtimes_for("abacus:1") == ("toy",)

    def test_needs_a_name_of_its_own(self, toy):
        for name in ("toy", "auto"):
            spec = RuntimeSpec(name, toy.load, (".toy",), ("cpu",), (), None)
            with pytest.raises(ValueError, match=f"runtime '{name}' already"):
                register(spec)


class TestEntries:
    def test_extras_are_those_of_the_project_and_bring_a_distribution(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        extras = project["optional-dependencies"]
        for spec in RUNTIMES.values():
            lines = extras[spec.extra] if spec.extra else project["dependencies"]
            names = {line.partition(">")[0].strip() for line in lines}
            assert names & {*spec.distributions}, spec.name

    def test_auto_has_a_runtime_for_every_file(self):
        automatic = [spec for spec in RUNTIMES.values() if spec.automatic]
        assert {s for spec in automatic for s in spec.suffixes} == {*model_suffixes()}
        assert "native" in runtimes_for("cpu")

    def test_classes_are_there(self):
        for name in RUNTIMES:
            assert callable(runtime_class(name).load)

    def test_every_one_is_in_the_documents(self):
        text = (ROOT / "docs/runtimes.md").read_text("utf-8")
        for spec in RUNTIMES.values():
            start = f"| `{spec.name}`"
            (row,) = [line for line in text.splitlines() if line.startswith(start)]
            assert all(f"`{device}" in row for device in spec.devices), row
            assert spec.extra is None or f"`{spec.extra}`" in row

    def test_importing_it_imports_no_large_library(self):
        code = (
            "import sys, aethernet.devices, aethernet.cache, aethernet.runtimes.base, "
            "aethernet.runtimes.registry\n"
            "print({'torch', 'numpy', 'onnx', 'onnxruntime'} & {*sys.modules})"
        )
        assert run("-c", code).stdout == "set()\n"


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
        described = open_model(networks["rgb"][0], runtime, "cpu", "float32").describe()
        names = {
            "pytorch": "PyTorch",
            "onnxruntime": "ONNX Runtime",
            "openvino": "OpenVINO",
            "native": "native kernels",
        }
        assert (described.runtime, described.device) == (names[runtime], "cpu")
        assert described.precision == "float32"
        assert described.why


class TestOpenModel:
    @pytest.mark.parametrize(
        ("runtime", "device"),
        [("auto", "toaster"), ("openvino", "cuda"), ("pytorch", "dml")],
    )
    def test_a_device_of_no_runtime_is_an_error(self, networks, runtime, device):
        with pytest.raises(AetherError, match=f"'{device}' is none of cpu"):
            open_model(networks["rgb"][0], runtime, device)

    def test_unknown_names_are_errors(self, networks):
        with pytest.raises(AetherError, match="no runtime 'tvm'"):
            open_model(networks["rgb"][0], "tvm")
        with pytest.raises(AetherError, match="no precision 'int4'"):
            open_model(networks["rgb"][0], precision="int4")

    def test_runtime_and_file_must_fit(self, tmp_path):
        save_checkpoint(lively_network(), tmp_path / "model.pth")
        with pytest.raises(AetherError, match=r"tensorrt does not load \.pth"):
            open_model(tmp_path / "model.pth", "tensorrt")
        (tmp_path / "model.onnx").write_bytes(b"x")
        with pytest.raises(AetherError, match=r"pytorch does not load \.onnx"):
            open_model(tmp_path / "model.onnx", "pytorch")
        with pytest.raises(AetherError, match="no valid ONNX file"):
            open_model(tmp_path / "model.onnx")
        with pytest.raises(AetherError, match="name is not that of a model") as caught:
            open_model(SAMPLE)
        assert caught.value.path == SAMPLE

    def test_no_library_at_all_is_an_error_that_says_what_to_install(
        self, checkpoint, monkeypatch
    ):
        monkeypatch.setattr(choice, "installed_versions", lambda names: {})
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        (checkpoint.parent / "model.onnx").write_bytes(b"x")
        with pytest.raises(MissingExtraError, match="pip install onnxruntime"):
            open_model(checkpoint.parent / "model.onnx")


class TestFailures:
    BY = Description("A library", "cuda:0", "float16")

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            RuntimeError("DefaultCPUAllocator: not enough memory"),
            ValueError("CUDNN_STATUS_ALLOC_FAILED"),
        ],
    )
    def test_out_of_memory_is_recognised(self, error):
        with (
            pytest.raises(OutOfMemoryError, match="on cuda:0 for a picture of 7x5"),
            library_failures(self.BY, (1, 3, 5, 7)),
        ):
            raise error

    def test_other_failures_are_one_line(self):
        with (
            pytest.raises(AetherError) as caught,
            library_failures(self.BY, (1, 3, 5, 7)),
        ):
            raise RuntimeError("an illegal memory access\nand where it was")
        assert not isinstance(caught.value, OutOfMemoryError)
        assert caught.value.reason == (
            "A library failed in float16 on cuda:0 on an image of 7x5: "
            "an illegal memory access."
        )

    def test_errors_of_ours_and_unexpected_ones_pass(self):
        for error in (AetherError("mine"), KeyError("a bug")):
            with (
                pytest.raises(type(error)) as caught,
                library_failures(self.BY, (1, 3, 5, 7), (RuntimeError,)),
            ):
                raise error
            assert caught.value is error

    @pytest.mark.parametrize(
        ("made", "scale"),
        [
            ((1, 3, 10, 14), 2),
            ((1, 3, 5, 7), 1),
            ((1, 3, 10, 15), None),
            ((1, 1, 10, 14), None),
            ((1, 3, 2, 3), None),
            ((1, 10), None),
        ],
    )
    def test_an_upscaler_makes_pictures_larger_by_a_whole_number(
        self, tmp_path, made, scale
    ):
        if scale:
            assert check_upscales(tmp_path, (1, 3, 5, 7), made) == scale
            return
        with pytest.raises(AetherError, match="no upscaler") as caught:
            check_upscales(tmp_path, (1, 3, 5, 7), made)
        assert caught.value.path == tmp_path
