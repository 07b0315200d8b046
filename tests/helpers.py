"""Paths, networks, stand-ins, pictures and commands that tests share."""

import contextlib
import copy
import importlib.util
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aethernet.checkpoints.checkpoint import write_checkpoint
from aethernet.checkpoints.folded import Folded, fold
from aethernet.checkpoints.layout import expected_shapes
from aethernet.checkpoints.reference import evaluate
from aethernet.checkpoints.verification import natural_image
from aethernet.errors import OutOfMemoryError
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture
from aethernet.runtimes.base import Description, InputSizes

if TYPE_CHECKING:
    import torch

    from aethernet.aether_core import AetherNet

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
FUSE_SCRIPT = ROOT / "fuse_script/fuse_aether.py"
ONNX_SCRIPT = ROOT / "onnx/aether2onnx.py"
SHIPPED_MODEL = ROOT / "models/2x_aether_small.safetensors"
SHIPPED_TRAINING_FORM = ROOT / "models/2x_aether_small_training.safetensors"
SAMPLE = ROOT / "assets/sample.png"

HAS_TORCH = importlib.util.find_spec("torch") is not None

PLAIN = "pytorch" if HAS_TORCH else "onnxruntime"
"""The runtime that tests name where any would do."""

LIGHT = "onnxruntime"
"""As `PLAIN`, in processes that tests start: PyTorch takes seconds to import."""

LIBRARY = "PyTorch" if HAS_TORCH else "ONNX Runtime"
"""Its name for people."""

SUFFIX = ".pth" if HAS_TORCH else ".safetensors"
"""Of checkpoints, where tests write what frameworks write."""

DEFAULTS = {
    "in_chans": 3,
    "mlp_ratio": 2.0,
    "drop_rate": 0.0,
    "drop_path_rate": 0.1,
    "img_range": 1.0,
    "fused_init": False,
    "use_checkpoint": False,
}
TINY = {"embed_dim": 12, "depths": (1, 2), "lk_kernel": 7, "sk_kernel": 3, "scale": 2}


def lively_arrays(
    seed: int = 0, **arguments: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A small network whose every weight shows in the output: weights, arguments.

    Fresh weights (standard deviation 0.02, zero biases) give an almost constant
    picture, on which any two networks agree.
    """
    hyperparameters = {**DEFAULTS, **TINY, **arguments}
    random = np.random.default_rng(seed)
    weights = {}
    for key, shape in expected_shapes(hyperparameters).items():
        noise = random.standard_normal(shape, np.float32)
        if key.endswith("norm.weight"):
            weights[key] = 1 + np.float32(0.1) * noise
        elif len(shape) == 1:
            weights[key] = np.float32(0.1) * noise
        else:
            weights[key] = noise / np.float32(math.prod(shape[1:]) ** 0.5)
    return weights, hyperparameters


def lively_file(path: Path, seed: int = 0, **arguments: Any) -> Path:
    """Write the checkpoint of a small network, see `lively_arrays`."""
    write_checkpoint(*lively_arrays(seed, **arguments), path)
    return path


def tiny_weights_file(path: Path, **arguments: Any) -> Path:
    """The same; some weights are too small for float16, and those after them large."""
    weights, hyperparameters = lively_arrays(**arguments)
    for key, factor in (
        ("conv_before_upsample.0.weight", 1e-5),
        ("conv_before_upsample.0.bias", 1e-5),
        ("upsample.0.weight", 1e5),
    ):
        weights[key] = weights[key] * np.float32(factor)
    write_checkpoint(weights, hyperparameters, path)
    return path


def lively_network(seed: int = 0, **arguments: Any) -> "AetherNet":
    """The network of `lively_arrays` in PyTorch, in evaluation mode."""
    from aethernet.checkpoints.rewrites import build_network

    weights, hyperparameters = lively_arrays(seed, **arguments)
    return build_network(hyperparameters, weights)


def both_forms(**arguments: Any) -> "tuple[AetherNet, AetherNet]":
    """The network of `lively_network` in training form and fused."""
    network = lively_network(**arguments)
    return network, copy.deepcopy(network).fuse()


def lively_folded(
    seed: int = 0, **arguments: Any
) -> tuple[Callable[[np.ndarray], np.ndarray], Folded]:
    """What computes `(B, C, H, W)` as the network of `lively_arrays`, and it folded.

    It is computed in PyTorch where that is installed, else in NumPy in float64.
    """
    weights, hyperparameters = lively_arrays(seed, **arguments)
    img_range = hyperparameters["img_range"]
    if HAS_TORCH:
        from aethernet.checkpoints.rewrites import build_network, run_network

        run = partial(run_network, build_network(hyperparameters, weights))
    else:
        run = partial(evaluate, fold(weights, img_range, np.float64))
    return run, fold(weights, img_range)


def random_array(*shape: int, seed: int = 0) -> np.ndarray:
    """Uniform noise, float32, 0..1."""
    return np.random.default_rng(seed).random(shape, np.float32)


def random_image(*shape: int, seed: int = 0) -> "torch.Tensor":
    """As `random_array`, in PyTorch."""
    import torch

    return torch.from_numpy(random_array(*shape, seed=seed))


def photo(
    height: int = 20, width: int = 31, bands: int = 3, dtype: Any = np.uint8
) -> np.ndarray:
    """A natural picture `(height, width, bands)`; alpha is a gradient, nowhere 0."""
    colours = natural_image(height, width, 1 if bands < 3 else 3)[0]
    planes = [*colours]
    if bands in (2, 4):
        planes.append(np.linspace(0.01, 1, height * width).reshape(height, width))
    return np.rint(np.stack(planes, -1) * np.iinfo(dtype).max).astype(dtype)


def sample_part(height: int, width: int, top: int = 20) -> np.ndarray:
    """A part of the sample, a photograph of 256x256: `(height, width, 3)`, uint8."""
    pixels = read_picture(SAMPLE).pixels[top : top + height, 60 : 60 + width]
    assert pixels.shape == (height, width, 3)
    return pixels


def tracked_files() -> list[Path]:
    """The files of the repository; skips the test outside a git checkout."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("needs a git checkout")
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in files if path.exists()]


def write(pixels: np.ndarray, path: Path) -> Path:
    """Write a picture, and its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(Picture(np.ascontiguousarray(pixels)), path)
    return path


def run(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with these words in a process of its own, as a user would."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        **{"cwd": ROOT, **options},
    )


@contextlib.contextmanager
def spandrel_of(folder: Path) -> Iterator[Any]:
    """A copy of spandrel from this folder in place of the installed one, in this block.

    In this process, because a new one takes seconds to import torch.
    """
    before = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "spandrel"}
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        copy = importlib.import_module("spandrel")
        assert copy.__path__[0].startswith(str(folder))
        yield copy
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n.split(".")[0] == "spandrel"]:
            del sys.modules[name]
        sys.modules.update(before)


def call_script(monkeypatch: Any, script: Path, *words: object) -> int:
    """Run a script in this process (a new one costs seconds to import torch)."""
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


class Repeat:
    """Stands in for a model: each pixel becomes a square of scale x scale.

    Args:
        input_sizes: that it claims to accept.
        capacity: pixels that its memory is enough for; None: any number.
        bad: the value of the first pixel of every output, if given: NaN, for instance.
    """

    def __init__(
        self,
        scale: int = 2,
        channels: int = 3,
        *,
        input_sizes: InputSizes | None = None,
        capacity: int | None = None,
        bad: float | None = None,
    ) -> None:
        self.scale, self.channels = scale, channels
        self.input_sizes = input_sizes or InputSizes()
        self.capacity, self.bad = capacity, bad
        self.seen: list[np.ndarray] = []
        """The batches it was given, except those too large for its memory."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        height, width = batch.shape[2:]
        assert batch.dtype == np.float32
        assert batch.shape[1] == self.channels
        if self.capacity is not None and height * width > self.capacity:
            raise OutOfMemoryError(f"Out of memory for {width}x{height}.")
        self.seen.append(batch)
        output = batch.repeat(self.scale, 2).repeat(self.scale, 3)
        if self.bad is not None:
            output[0, 0, 0, 0] = self.bad
        return output

    def describe(self) -> Description:
        return Description("a stand-in", "cpu", "float32")


def repeating_onnx(
    path: Path,
    scale: int = 3,
    sides: tuple[Any, ...] = ("batch", 3, "height", "width"),
    dtype: str = "FLOAT",
) -> Path:
    """Write a foreign ONNX file: each pixel becomes a square.

    Args:
        sides: the shape of its input; a name stands for a free side.
        dtype: of its input and output, by the name ONNX has for it.
    """
    import onnx
    from onnx import helper

    kind = getattr(onnx.TensorProto, dtype)
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


def without_hidden(folder: Path) -> list[str]:
    """Names in a folder; fails where a temporary file was left behind."""
    names = sorted(os.listdir(folder))
    assert not [name for name in names if ".part" in name], names
    return names


def check_one_error(text: str) -> None:
    """Check that a command printed one line, an error, and no traceback."""
    assert text.startswith("error: "), text
    assert text.count("\n") == 1, text
    assert "Traceback" not in text


def block_imports(folder: Path, *names: str) -> None:
    """Write a `sitecustomize.py`: with the folder on PYTHONPATH these do not import.

    AetherNet itself is only found in `src/`, as in a clone that is not installed.
    """
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        root = name.partition('.')[0]\n"
        "        ours = any(p.endswith('src') for p in sys.path)\n"
        f"        if root in {names!r} or (\n"
        "            root == 'aethernet' and not ours):\n"
        "            raise ModuleNotFoundError(f'blocked: {name}', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )
