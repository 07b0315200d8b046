"""What this machine is and has."""

import importlib.metadata
import json
import sys

import psutil
import pytest
from helpers import run

from aethernet import devices
from aethernet.devices import (
    choose_device,
    describe_machine,
    device_kind,
    free_memory,
    has_bfloat16_units,
    installed_versions,
    limit_threads,
    processor_name,
    told_threads,
)
from aethernet.errors import AetherError


def test_names_of_devices():
    assert device_kind("cuda:1") == "cuda"


def test_devices_of_pytorch():
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(AetherError, match="'toaster' is not available") as caught:
        choose_device("toaster")
    assert caught.value.hint == "Try --device cpu."


def test_free_memory_is_less_than_there_is():
    assert 2**20 < free_memory("cpu") <= psutil.virtual_memory().total


def test_a_container_limits_the_free_memory(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    # Cached files make room when memory is asked for.
    (tmp_path / "memory.stat").write_text("anon 9\ninactive_file 100000\n")
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    assert free_memory("cpu") == 600000


def test_only_installed_libraries_have_a_version():
    found = installed_versions(["numpy", "no-such-library"])
    assert found == {"numpy": importlib.metadata.version("numpy")}


@pytest.mark.parametrize(("found", "has"), [("amx_bf16", True), ("avx2", False)])
def test_units_for_bfloat16(monkeypatch, tmp_path, found, has):
    (tmp_path / "cpuinfo").write_text(f"flags : fpu {found}\n")
    monkeypatch.setattr(devices, "Path", lambda path: tmp_path / "cpuinfo")
    assert has_bfloat16_units() == has


def test_the_machine_is_described_for_people_and_json():
    machine = describe_machine("cpu", ["pytest", "no-such-library"])
    assert machine["cpu"] == processor_name() != ""
    assert machine["cores"] >= 1
    assert machine["threads"] == (told_threads() or machine["cores"])
    assert {"aethernet", "python", "numpy", "pytest"} <= {*machine["versions"]}
    assert "no-such-library" not in machine["versions"]
    assert json.loads(json.dumps(machine)) == machine


def test_a_system_without_proc_has_a_name_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "Path", lambda path: tmp_path / "absent")
    assert processor_name()


class TestThreads:
    @pytest.mark.parametrize(
        ("stated", "told"), [("3", 3), ("2,1", 2), ("", None), ("0", None), ("x", None)]
    )
    def test_without_pytorch_the_environment_tells(self, monkeypatch, stated, told):
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
        assert told_threads() == told

    def test_what_is_told_reaches_libraries_that_are_loaded_later(self):
        code = (
            "from aethernet.devices import limit_threads, told_threads\n"
            "from aethernet.runtimes.onnx_files import allowed_threads\n"
            "limit_threads(1)\n"
            "import psutil\n"
            "psutil.cpu_count = lambda logical: 4\n"
            "print(told_threads(), allowed_threads())\n"
        )
        assert run("-c", code).stdout.split() == ["1", "1"]

    def test_pytorch_is_told_too(self, monkeypatch):
        torch = pytest.importorskip("torch", reason="needs PyTorch")
        before = torch.get_num_threads()
        monkeypatch.setenv("OMP_NUM_THREADS", str(before))  # restored afterwards
        limit_threads(1)
        assert torch.get_num_threads() == told_threads() == 1
        torch.set_num_threads(before)
