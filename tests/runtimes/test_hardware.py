"""GPUs are found by their drivers, and what uses them by what is installed."""

import ctypes
import logging
import subprocess
import sys
import types

import pytest

from aethernet.cache import cache_folder
from aethernet.runtimes import hardware, support
from aethernet.runtimes.hardware import (
    AMD,
    APPLE,
    INTEL,
    NVIDIA,
    FoundGpu,
    find_gpus,
    nvidia_cards,
)
from aethernet.runtimes.support import (
    SUPPORT,
    hint_at_idle_gpu,
    idle_gpus,
    may_use_gpu,
    pytorch_builds,
    supports_of,
)

CARD = FoundGpu(NVIDIA, "NVIDIA GeForce RTX 3060", "libcuda.so.1")


@pytest.fixture
def nothing_found(tmp_path, monkeypatch):
    """A Linux computer without any GPU."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(hardware.platform, "system", lambda: "Linux")
    monkeypatch.setattr(hardware, "driver_library", lambda: None)
    monkeypatch.setattr(hardware, "_DISPLAYS", tmp_path / "drm")
    monkeypatch.setattr(hardware, "_NVIDIA_CARDS", tmp_path / "nvidia")
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    find_gpus.cache_clear()
    yield tmp_path
    find_gpus.cache_clear()


class TestNvidia:
    def test_is_found_by_the_library_of_its_driver(self, nothing_found, monkeypatch):
        assert find_gpus() == ()
        find_gpus.cache_clear()
        monkeypatch.setattr(hardware, "driver_library", lambda: "libcuda.so.1")
        assert find_gpus() == (FoundGpu(NVIDIA, "GPU", "libcuda.so.1"),)

    @pytest.mark.parametrize(
        ("system", "name"), [("linux", "libcuda.so.1"), ("win32", "nvcuda.dll")]
    )
    def test_the_library_is_loaded_by_its_name(self, monkeypatch, system, name):
        loaded = []
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(ctypes, "CDLL", loaded.append)
        assert hardware.driver_library() == name
        assert loaded == [name]

        def missing(name):
            raise OSError(name)

        monkeypatch.setattr(ctypes, "CDLL", missing)
        assert hardware.driver_library() is None

    def test_its_name_is_in_a_file_of_the_driver(self, nothing_found, monkeypatch):
        monkeypatch.setattr(hardware, "driver_library", lambda: "libcuda.so.1")
        folder = nothing_found / "nvidia/0000:01:00.0"
        folder.mkdir(parents=True)
        text = "Model: \t\t NVIDIA GeForce RTX 3060\nIRQ:   \t\t 99\n"
        (folder / "information").write_text(text)
        assert find_gpus() == (CARD,)
        assert str(CARD) == "NVIDIA GeForce RTX 3060"

    def pretend_smi(self, monkeypatch, code, output):
        monkeypatch.setattr(hardware.shutil, "which", lambda name: f"/bin/{name}")

        def run(command, **_):
            assert command[0] == "/bin/nvidia-smi"
            return subprocess.CompletedProcess(command, code, output, "")

        monkeypatch.setattr(hardware.subprocess, "run", run)

    def test_nvidia_smi_lists_cards_and_driver(self, nothing_found, monkeypatch):
        assert nvidia_cards() is None
        self.pretend_smi(monkeypatch, 0, "NVIDIA A, 581.15\nNVIDIA B, 581.15\n")
        assert nvidia_cards() == (
            "NVIDIA A, driver 581.15",
            "NVIDIA B, driver 581.15",
        )

    def test_nvidia_smi_that_finds_nothing(self, nothing_found, monkeypatch):
        self.pretend_smi(monkeypatch, 9, "No devices were found\n")
        assert nvidia_cards() == ()


class TestOthers:
    def test_linux_lists_their_makers(self, nothing_found):
        for name, vendor in (("card0", "0x8086"), ("card1", "0x1002"), ("card2", "?")):
            device = nothing_found / f"drm/{name}/device"
            device.mkdir(parents=True)
            (device / "vendor").write_text(f"{vendor}\n")
        assert [gpu.maker for gpu in find_gpus()] == [INTEL, AMD]
        assert not any(gpu.is_a_card for gpu in find_gpus())  # they may be, who knows

    def test_windows_lists_them_in_its_registry(self, nothing_found, monkeypatch):
        adapters = {
            "0000": "AMD Radeon RX 7800 XT",
            "0001": "Intel(R) UHD Graphics 770",
            "0002": "Microsoft Basic Display Adapter",
            "Properties": None,
        }

        class Key:
            def __init__(self, root, name):
                self.name = name
                if adapters.get(name.rpartition("\\")[2], "") is None:
                    raise PermissionError(5, "Access is denied")

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

        registry = types.ModuleType("winreg")
        registry.HKEY_LOCAL_MACHINE = 0
        registry.OpenKey = Key
        registry.QueryInfoKey = lambda key: (len(adapters), 0, 0)
        registry.EnumKey = lambda key, number: [*adapters][number]
        registry.QueryValueEx = lambda key, name: (
            adapters[key.name.rpartition("\\")[2]],
            1,
        )
        monkeypatch.setitem(sys.modules, "winreg", registry)
        monkeypatch.setattr(sys, "platform", "win32")
        found = find_gpus()
        assert [(gpu.maker, gpu.is_a_card) for gpu in found] == [
            *((AMD, True), (INTEL, False))
        ]
        assert str(found[0]) == "AMD Radeon RX 7800 XT"

    def test_apple_silicon_has_one(self, nothing_found, monkeypatch):
        monkeypatch.setattr(hardware.platform, "system", lambda: "Darwin")
        monkeypatch.setattr(hardware.platform, "machine", lambda: "arm64")
        (gpu,) = find_gpus()
        assert gpu.maker == APPLE
        assert gpu.is_a_card


@pytest.fixture
def installed(monkeypatch):
    """Pretended installations: distributions, and the builds of PyTorch."""
    versions, builds = {}, set()
    monkeypatch.setattr(
        support,
        "installed_versions",
        lambda names: {n: "1" for n in names if n in versions},
    )
    monkeypatch.setattr(support, "pytorch_builds", lambda: frozenset(builds))
    return versions, builds


class TestSupport:
    @pytest.mark.parametrize(
        ("text", "builds"),
        [
            ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", {"cuda"}),
            ("cuda = None\nhip: Optional[str] = '6.4'\n", {"hip"}),
            ("cuda: Optional[str] = None\nxpu: Optional[str] = '2025'\n", {"xpu"}),
            ("cuda: Optional[str] = None\n", set()),
        ],
    )
    def test_the_build_of_pytorch_is_read_not_imported(
        self, tmp_path, monkeypatch, text, builds
    ):
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch/version.py").write_text(f"debug = False\n{text}")
        (tmp_path / "torch/__init__.py").write_text("raise RuntimeError('imported')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        assert pytorch_builds() == builds

    def test_a_card_without_a_library_for_it_is_idle(self, installed, monkeypatch):
        versions, builds = installed
        monkeypatch.setattr(sys, "platform", "win32")
        versions |= {"torch": "2", "onnxruntime": "1"}  # as the index has them
        assert idle_gpus([CARD]) == [CARD]
        builds.add("cuda")
        assert idle_gpus([CARD]) == []
        builds.clear()
        versions["onnxruntime-directml"] = "1"
        assert idle_gpus([CARD]) == []

    def test_what_there_is_for_a_card_depends_on_the_system(self, monkeypatch):
        for system, expected in {
            "win32": {"cuda", "dml"},
            "linux": {"cuda"},
            "darwin": set(),
        }.items():
            monkeypatch.setattr(sys, "platform", system)
            assert {each.device for each in supports_of(CARD)} == expected

    def test_every_way_has_a_line_that_installs_it(self):
        for each in SUPPORT:
            assert each.install
            assert all(line.startswith("python -m pip ") for line in each.install)

    def test_libraries_are_asked_only_where_a_gpu_may_be(
        self, installed, nothing_found, monkeypatch
    ):
        versions, builds = installed
        builds.add("cuda")
        versions["openvino"] = "1"
        everything = ("pytorch", "onnxruntime", "openvino", "native")
        assert not may_use_gpu(everything)
        monkeypatch.setattr(support, "find_gpus", lambda: (CARD,))
        assert may_use_gpu(everything)
        assert not may_use_gpu(["openvino", "native"])  # another maker's
        builds.clear()
        assert not may_use_gpu(everything)
        builds.add("xpu")  # nobody has that build without an Intel GPU
        assert may_use_gpu(everything)


class TestHint:
    @pytest.fixture(autouse=True)
    def a_card_lies_idle(self, tmp_path, monkeypatch, installed):
        monkeypatch.setenv("AETHERNET_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(support, "find_gpus", lambda: (CARD,))
        monkeypatch.setattr(support, "nvidia_cards", lambda: None)

    def test_it_comes_once_a_day(self, caplog):
        for _ in range(2):
            hint_at_idle_gpu()
        (line,) = caplog.records
        assert line.levelno == logging.WARNING
        assert "NVIDIA GeForce RTX 3060 is not used" in line.message
        assert "`aethernet runtimes`" in line.message
        (cache_folder() / "hints/gpu.json").write_text('{"day": "2020-01-01"}')
        hint_at_idle_gpu()
        assert len(caplog.records) == 2

    def test_not_where_a_library_uses_it(self, installed, caplog):
        installed[1].add("cuda")
        hint_at_idle_gpu()
        assert not caplog.records
        assert not cache_folder().exists()

    def test_not_for_a_driver_without_a_card(self, monkeypatch, caplog):
        monkeypatch.setattr(support, "nvidia_cards", lambda: ())
        hint_at_idle_gpu()
        assert not caplog.records

    def test_not_for_graphics_inside_a_processor(self, monkeypatch, caplog):
        inside = FoundGpu(INTEL, "Intel(R) UHD Graphics 770", "Windows")
        monkeypatch.setattr(support, "find_gpus", lambda: (inside,))
        hint_at_idle_gpu()
        assert not caplog.records

    def test_not_each_time_where_nothing_can_be_kept(
        self, tmp_path, monkeypatch, caplog
    ):
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv("AETHERNET_CACHE", str(tmp_path / "file"))
        hint_at_idle_gpu()
        assert not caplog.records
