"""`aethernet runtimes`: what is here, what is missing, and which is fastest."""

import json
import sys

import pytest
from helpers import SHIPPED_MODEL, check_one_error, run

from aethernet.commands import runtimes
from aethernet.commands.main import main
from aethernet.errors import AetherError
from aethernet.runtimes import support, trial
from aethernet.runtimes.hardware import NVIDIA, FoundGpu
from aethernet.runtimes.native import library
from aethernet.runtimes.registry import RUNTIMES, open_model
from aethernet.runtimes.trial import Cost

CARD = FoundGpu(NVIDIA, "NVIDIA GeForce RTX 3060", "nvcuda.dll")


@pytest.fixture
def windows(monkeypatch):
    """A computer with Windows and an NVIDIA card, which nothing uses."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(runtimes, "find_gpus", lambda: (CARD,))
    monkeypatch.setattr(runtimes, "nvidia_cards", lambda: None)
    monkeypatch.setattr(support, "pytorch_builds", frozenset)
    monkeypatch.setattr(support, "installed_versions", lambda names: {})


class TestList:
    def test_every_runtime_has_a_row_with_its_library(self, capsys):
        assert main(["runtimes"]) == 0
        lines = capsys.readouterr().out.splitlines()
        for name in RUNTIMES:
            assert any(line.startswith(name) for line in lines)
        assert any("onnxruntime " in line for line in lines if line[0:4] == "onnx")
        assert any(line.startswith("Processor: ") for line in lines)

    @pytest.mark.parametrize(
        ("found", "text"),
        [
            (("v4", "v3"), "kernels v4"),
            ((), "not for this processor"),
            (None, "The native kernels have not been built"),
        ],
    )
    def test_the_native_kernels_have_a_state(self, monkeypatch, capsys, found, text):
        def variants():
            if found is None:
                raise AetherError("The native kernels have not been built.")
            return found

        monkeypatch.setattr(library, "variants", variants)
        assert main(["runtimes"]) == 0
        (line,) = [
            line for line in capsys.readouterr().out.splitlines() if "native" in line
        ]
        assert text in line

    def test_a_card_comes_with_the_lines_that_install_what_uses_it(
        self, windows, capsys
    ):
        assert main(["runtimes"]) == 0
        printed = capsys.readouterr().out
        assert "GPU: NVIDIA GeForce RTX 3060 (found by nvcuda.dll)" in printed
        index = "https://download.pytorch.org/whl/cu130"
        for line in (
            f"python -m pip install --force-reinstall torch --index-url {index}",
            "python -m pip uninstall -y onnxruntime",
            'python -m pip install "onnxruntime-gpu[cuda,cudnn]"',
            'python -m pip install "aethernet-sr[tensorrt]"',
            "python -m pip install onnxruntime-directml",
        ):
            assert f"    {line}\n" in printed

    def test_nvidia_smi_has_the_last_word_on_names(self, windows, monkeypatch, capsys):
        names = ("NVIDIA A, driver 581.15", "NVIDIA B, driver 581.15")
        monkeypatch.setattr(runtimes, "nvidia_cards", lambda: names)
        assert main(["runtimes"]) == 0
        printed = capsys.readouterr().out
        for name in names:
            assert f"GPU: {name} (found by nvidia-smi)" in printed
        assert str(CARD) not in printed

    def test_json_has_the_same(self, windows, capsys):
        assert main(["runtimes", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [row["runtime"] for row in found["runtimes"]] == [*RUNTIMES]
        (gpu,) = found["gpus"]
        assert gpu["name"] == str(CARD)
        assert {each["device"] for each in gpu["supports"]} == {"cuda", "dml"}

    def test_no_large_library_is_imported(self):
        code = (
            "import sys\n"
            "from aethernet.commands.main import main\n"
            "main(['runtimes'])\n"
            "print({'torch', 'onnx', 'onnxruntime', 'openvino'} & {*sys.modules})"
        )
        done = run("-c", code)
        assert done.stdout.splitlines()[-1] == "set()", done.stderr

    def test_a_model_without_try_is_an_error(self, capsys):
        assert main(["runtimes", "--model", str(SHIPPED_MODEL)]) == 1
        check_one_error(capsys.readouterr().err)


class TestTry:
    @pytest.fixture(autouse=True)
    def quick(self, tmp_path, monkeypatch):
        monkeypatch.setenv("AETHERNET_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(trial, "TILE", 24)
        monkeypatch.setattr(
            trial,
            "measure",
            lambda model, tile: Cost(
                *[1 if model.describe().runtime == "PyTorch" else 2] * 2
            ),
        )

    def words(self, model):
        return ["runtimes", "--try", "--model", str(model), "--device", "cpu"]

    def test_prints_a_table_and_upscale_uses_the_result(self, model, capsys):
        pytest.importorskip("torch", reason="needs PyTorch, which wins")
        assert main(self.words(model)) == 0
        printed = capsys.readouterr().out
        assert "pytorch in float32 on cpu" in printed
        assert "fastest of " in printed
        assert "0.50 of the time of " in printed
        described = open_model(model, device="cpu").describe()
        assert described.runtime == "PyTorch"

    def test_json(self, model, capsys):
        pytest.importorskip("torch", reason="needs PyTorch, which wins")
        assert main([*self.words(model), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["winner"] == "pytorch in float32 on cpu"
        assert found["agreed"]
        assert found["candidates"][0]["ratio"] == 1

    def test_an_engine_has_no_other_runtime(self, tmp_path, capsys):
        (tmp_path / "m.engine").write_bytes(b"x")
        assert main(["runtimes", "--try", "--model", str(tmp_path / "m.engine")]) == 1
        error = capsys.readouterr().err
        check_one_error(error)
        assert "Only tensorrt runs such a file" in error
