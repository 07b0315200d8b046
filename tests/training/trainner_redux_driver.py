"""Runs traiNNer-redux itself where there is no GPU; its own interpreter runs this.

    python trainner_redux_driver.py parse FILE ..     -> result.json
    python trainner_redux_driver.py build FILE ..     -> result.json
    python trainner_redux_driver.py train FILE [--auto_resume]
    python trainner_redux_driver.py upscale FILE IN OUT
    python trainner_redux_driver.py onnx FILE         -> result.json

FILE is an option file; the clone is on PYTHONPATH. What the framework writes under its
own folder appears under the current one.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file, save_file

from traiNNer.utils.config import Config

HERE = str(Path.cwd())


def read_options(file: str, *flags: str, is_train: bool = True) -> Any:
    sys.argv[1:] = ["-opt", file, *flags]
    Config._config = None  # noqa: SLF001 - else it keeps the first file of a process
    return Config.load_config_from_file(HERE, is_train=is_train)[0]


def report(task: Callable[[str], dict[str, Any]], files: tuple[str, ...]) -> None:
    """Write the task's result for each file, or its error, to result.json."""
    results = {}
    for file in files:
        try:
            results[Path(file).name] = task(file)
        except Exception:  # a test reports the error of each file
            results[Path(file).name] = {"error": traceback.format_exc()}
    Path("result.json").write_text(json.dumps(results), "utf-8")


def parse(*files: str) -> None:
    report(lambda file: {"name": read_options(file).name}, files)


def build(*files: str) -> None:
    """Build everything that a training option file names, and take one step."""
    from traiNNer.models import realesrgan_model

    # The degradations call .cuda(); their filter wants plain strides, which padding
    # gives on a GPU. The perceptual loss would download VGG19: here it is random.
    torch.nn.Module.cuda = torch.Tensor.cuda = lambda self: self
    filter2d = realesrgan_model.filter2d
    realesrgan_model.filter2d = lambda image, kernel: filter2d(
        image.contiguous(), kernel
    )
    vgg19 = torchvision.models.vgg19()
    torchvision.models.vgg19 = lambda **_: vgg19
    report(_build, files)


def _build(file: str) -> dict[str, Any]:
    from torch.utils.data import DataLoader

    from traiNNer.data import build_dataset
    from traiNNer.models import build_model

    options = read_options(file)
    data = options.datasets["train"]
    data.gt_size = data.lq_size * options.scale  # as train.py does
    model = build_model(options)
    loader = DataLoader(build_dataset(data), batch_size=data.batch_size_per_gpu)
    model.feed_data(next(iter(loader)))
    model.optimize_parameters(1, 0, True)
    model.update_learning_rate(1, warmup_iter=options.train.warmup_iter)
    return {
        "model": type(model).__name__,
        "network": type(model.net_g).__name__,
        "discriminator": type(model.net_d).__name__,
        "schedulers": [type(scheduler).__name__ for scheduler in model.schedulers],
        "LR": [*model.lq.shape],
        "HR": [*model.gt.shape],
        "log": {key: float(value) for key, value in model.get_current_log().items()},
    }


def train(file: str, *flags: str) -> None:
    """Run train.py from start to end, except what reads a GPU's name and memory."""
    import train as framework

    has_cuda = torch.cuda.is_available

    def first_answer_is_yes() -> bool:
        torch.cuda.is_available = has_cuda
        return True

    torch.cuda.is_available = first_answer_is_yes
    torch.cuda.set_per_process_memory_fraction = lambda fraction: None
    framework.get_env_info = lambda: "without a GPU"
    sys.argv[1:] = ["-opt", file, *flags]
    framework.train_pipeline(HERE)


def upscale(file: str, source: str, target: str) -> None:
    """Compute what test.py computes, in float32 instead of a PNG."""
    from traiNNer.models import build_model

    model = build_model(read_options(file, is_train=False))
    model.feed_data({"lq": load_file(source)["image"]})
    model.test()
    save_file({"image": model.output.contiguous()}, target)


def onnx(file: str) -> None:
    """Export as convert_to_onnx.py does, on the CPU."""
    report(_onnx, (file,))


def _onnx(file: str) -> dict[str, Any]:
    import convert_to_onnx as framework

    from traiNNer.models import build_model
    from traiNNer.utils import get_root_logger

    options = read_options(file, is_train=False)
    model = build_model(options)
    model.net_g.eval()
    shape, dynamic = framework.parse_input_shape(
        options.onnx.shape, options.network_g["type"]
    )
    os.makedirs("onnx", exist_ok=True)
    _, _, path, _ = framework.convert_and_save_onnx(
        model,
        get_root_logger(),
        options,
        torch.rand(shape),
        dynamic,
        "onnx",
        shape,
        options.onnx.dtype,
    )
    return {"path": path}


if __name__ == "__main__":
    tasks = {task.__name__: task for task in (parse, build, train, upscale, onnx)}
    tasks[sys.argv[1]](*sys.argv[2:])
