"""The custom node in ComfyUI itself (COMFYUI_DIR), and in a stand-in for it."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from frameworks import interpreter_of
from helpers import ROOT, SHIPPED_MODEL, lively_network, photo, sample_part, write

import aethernet
from aethernet.checkpoints.checkpoint import save_checkpoint
from aethernet.pictures.files import read_picture

FOLDER = ROOT / "integrations/comfyui"
ADAPTER = ROOT / "spandrel/architectures/AetherNet"

pytest.importorskip("spandrel", reason="needs spandrel: pip install -e '.[spandrel]'")


class InterruptedByUserError(Exception):
    pass


class Bar:
    made: ClassVar[list["Bar"]] = []

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.made.append(self)

    def update(self, steps: int) -> None:
        self.done += steps


class Comfy:
    """What the node uses of ComfyUI, with a folder for models."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self.interrupted = False
        self.freed: list[tuple[int, torch.device]] = []

    def modules(self) -> dict[str, ModuleType]:
        contents: dict[str, dict[str, Any]] = {
            "comfy": {},
            "comfy.utils": {"ProgressBar": Bar},
            "comfy.model_management": {
                "get_torch_device": lambda: torch.device("cpu"),
                "free_memory": lambda size, device: self.freed.append((size, device)),
                "throw_exception_if_processing_interrupted": self.check,
            },
            "folder_paths": {
                "get_filename_list": lambda _: sorted(os.listdir(self.models)),
                "get_full_path": self.full_path,
            },
        }
        made = {name: ModuleType(name) for name in contents}
        for name, content in contents.items():
            vars(made[name]).update(content)
        made["comfy"].utils = made["comfy.utils"]  # type: ignore[attr-defined]
        made["comfy"].model_management = made[  # type: ignore[attr-defined]
            "comfy.model_management"
        ]
        return made

    def check(self) -> None:
        if self.interrupted:
            raise InterruptedByUserError

    def full_path(self, kind: str, name: str) -> str | None:
        assert kind == "upscale_models"
        path = self.models / name
        return str(path) if path.is_file() else None


@pytest.fixture
def comfy(tmp_path: Path) -> Comfy:
    models = tmp_path / "upscale_models"
    models.mkdir()
    save_checkpoint(lively_network(), models / "mine.safetensors")
    (models / "other.pth").write_bytes(b"no model")
    return Comfy(models)


@pytest.fixture
def node(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The node, imported as ComfyUI imports a custom node's folder."""
    for name, module in comfy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("a_node", FOLDER / "__init__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (key,) = module.NODE_CLASS_MAPPINGS
    assert module.NODE_DISPLAY_NAME_MAPPINGS[key] == "Upscale with AetherNet"
    return module.NODE_CLASS_MAPPINGS[key]()


class TestNode:
    def test_offers_shipped_models_and_those_of_comfyui(self, node):
        names = node.INPUT_TYPES()["required"]["model_name"][0]
        assert names[0] == "2x-small"
        assert names[-2:] == ["mine.safetensors", "other.pth"]

    def test_upscales_a_batch_as_the_package_does(self, node, comfy):
        pictures = np.stack([photo(21, 34), photo(21, 34)[::-1]]) / np.float32(255)
        pictures[0, 0, 0] = 1.25  # nodes before may leave 0..1
        (result,) = node.upscale(
            torch.from_numpy(pictures), "mine.safetensors", "float32"
        )
        model = aethernet.load(
            comfy.models / "mine.safetensors", device="cpu", precision="float32"
        )
        expected = [model.upscale(picture) for picture in pictures.clip(0, 1)]
        assert result.dtype == torch.float32
        np.testing.assert_array_equal(result.numpy(), np.stack(expected))
        assert [size > 0 for size, _ in comfy.freed] == [True]

    def test_the_bar_counts_tiles(self, node, monkeypatch):
        monkeypatch.setattr("aethernet.runtimes.tiling.free_memory", lambda _: 0)
        Bar.made.clear()
        node.upscale(torch.rand(2, 90, 150, 3), "mine.safetensors", "float32")
        (bar,) = Bar.made
        assert bar.done == bar.total == 4  # two pictures of two tiles

    def test_an_interruption_stops_between_tiles(self, node, comfy):
        comfy.interrupted = True
        with pytest.raises(InterruptedByUserError):
            node.upscale(torch.rand(1, 8, 8, 3), "mine.safetensors", "auto")

    def test_another_model_is_refused_by_name(self, node):
        with pytest.raises(aethernet.AetherError, match=r"other\.pth"):
            node.upscale(torch.rand(1, 8, 8, 3), "other.pth", "auto")


def test_a_missing_package_is_explained(comfy, monkeypatch):
    for name, module in comfy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "spandrel_aethernet", None)
    spec = importlib.util.spec_from_file_location("a_node", FOLDER / "__init__.py")
    assert spec and spec.loader
    with pytest.raises(ImportError, match=r'" -m pip install PATH/TO/AETHERNET$'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_registry_gets_what_it_asks_for():
    settings = tomllib.loads((FOLDER / "pyproject.toml").read_text("utf-8"))
    project, comfy = settings["project"], settings["tool"]["comfy"]
    assert project["version"] == aethernet.__version__
    assert project["urls"]["Repository"].startswith("https://github.com/")
    assert comfy["PublisherId"]
    needs = (FOLDER / "requirements.txt").read_text("utf-8").split()
    assert project["dependencies"] == needs
    licence = (FOLDER / project["license"]["file"]).read_text("utf-8")
    assert licence == (ROOT / "LICENSE").read_text("utf-8")


class Server:
    """A ComfyUI that runs on the CPU, in a folder of its own."""

    def __init__(self, clone: Path, folder: Path) -> None:
        self.folder = folder
        for name in ("input", "output", "custom_nodes", "models/upscale_models"):
            (folder / name).mkdir(parents=True)
        shutil.copytree(FOLDER, folder / "custom_nodes/aethernet")
        # This checkout's two packages, not those that may be installed there.
        shutil.copytree(ADAPTER, folder / "packages/spandrel_aethernet")
        packages = os.pathsep.join((f"{folder / 'packages'}", f"{ROOT / 'src'}"))
        shutil.copy2(SHIPPED_MODEL, folder / "models/upscale_models")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(interpreter_of(clone), "main.py", "--cpu", "--port"),
                    *(str(self.port), "--base-directory", folder),
                    *("--disable-auto-launch", "--disable-api-nodes"),
                    *("--database-url", "sqlite:///:memory:"),
                ],
                cwd=clone,
                env={**os.environ, "PYTHONPATH": packages},
                stdout=log,
                stderr=log,
            )
        self.wait(lambda: self.ask("system_stats"), "start")

    def wait(self, ready: Any, what: str, seconds: int = 300) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if found := ready():
                    return found
            except urllib.error.HTTPError as error:
                raise AssertionError(error.read().decode()) from error
            except urllib.error.URLError:
                pass  # it does not listen yet
            time.sleep(0.3)
        raise AssertionError(f"no {what}:\n{self.log.read_text('utf-8')[-5000:]}")

    def ask(self, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def run(self, workflow: dict[str, Any]) -> dict[str, Path]:
        """Run a workflow; the picture of each node that saves one."""
        asked = {"prompt": workflow}
        key = self.wait(lambda: self.ask("prompt", asked), "answer")["prompt_id"]
        done = self.wait(lambda: self.ask(f"history/{key}").get(key), "result")
        assert done["status"]["status_str"] == "success", done["status"]
        return {
            node: self.folder / "output" / output["images"][0]["filename"]
            for node, output in done["outputs"].items()
        }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    clone = os.environ.get("COMFYUI_DIR")
    if not clone:
        pytest.skip(
            "set COMFYUI_DIR to the folder of a clone of ComfyUI whose .venv has its "
            "requirements and AetherNet (CONTRIBUTING.md)"
        )
    server = Server(Path(clone).resolve(), tmp_path_factory.mktemp("comfyui"))
    yield server
    server.process.terminate()
    server.process.wait(60)


@pytest.mark.frameworks
def test_both_ways_in_comfyui_equal_ours(server):
    pixels = sample_part(70, 90)
    write(pixels, server.folder / "input/in.png")
    save = {"class_type": "SaveImage"}
    saved = server.run(
        {
            "1": {"class_type": "LoadImage", "inputs": {"image": "in.png"}},
            "2": {
                "class_type": "UpscaleModelLoader",
                "inputs": {"model_name": SHIPPED_MODEL.name},
            },
            "3": {
                "class_type": "ImageUpscaleWithModel",
                "inputs": {"upscale_model": ["2", 0], "image": ["1", 0]},
            },
            "4": {
                "class_type": "UpscaleWithAetherNet",
                "inputs": {
                    "image": ["1", 0],
                    "model_name": "2x-small",
                    "precision": "float32",
                },
            },
            "5": {**save, "inputs": {"images": ["3", 0], "filename_prefix": "theirs"}},
            "6": {**save, "inputs": {"images": ["4", 0], "filename_prefix": "ours"}},
        }
    )
    model = aethernet.load("2x-small", device="cpu", precision="float32")
    values = model.upscale(pixels / np.float32(255))
    expected = (255 * values).astype(np.uint8)  # SaveImage does not round
    for node in ("5", "6"):
        found = read_picture(saved[node]).pixels
        assert found.shape == expected.shape
        differ = np.abs(found.astype(int) - expected)
        # Values at the edge between two integers may fall either way.
        assert differ.max() <= 1
        assert (differ > 0).mean() < 0.002
