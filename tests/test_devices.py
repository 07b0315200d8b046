"""What this machine is and has."""

import importlib.metadata
import json

import psutil
import pytest
import torch

from aethernet import devices
from aethernet.devices import (
    choose_device,
    describe_machine,
    device_kind,
    free_memory,
    has_bfloat16_units,
    installed_versions,
    processor_name,
)
from aethernet.errors import AetherError


def test_names_of_devices():
    assert device_kind("cuda:1") == "cuda"
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
    found = installed_versions(["torch", "no-such-library"])
    assert found == {"torch": importlib.metadata.version("torch")}


@pytest.mark.parametrize(("found", "has"), [("amx_bf16", True), ("avx2", False)])
def test_units_for_bfloat16(monkeypatch, found, has):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {found: True}, raising=False
    )
    assert has_bfloat16_units() == has


def test_the_machine_is_described_for_people_and_json():
    machine = describe_machine("cpu", ["pytest", "no-such-library"])
    assert machine["cpu"] == processor_name() != ""
    assert machine["cores"] >= 1
    assert machine["threads"] == torch.get_num_threads()
    assert {"aethernet", "python", "torch", "pytest"} <= {*machine["versions"]}
    assert "no-such-library" not in machine["versions"]
    assert json.loads(json.dumps(machine)) == machine


def test_a_system_without_proc_has_a_name_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "Path", lambda path: tmp_path / "absent")
    assert processor_name()
