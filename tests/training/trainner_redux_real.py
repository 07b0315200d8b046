"""Training in a clone of traiNNer-redux without a GPU, for the tests that need it."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from frameworks import TRAINNER_FILE, dropped_in, interpreter_of
from helpers import ROOT, SAMPLE
from PIL import Image

OPTIONS = ROOT / "traiNNer-redux/options"
DRIVER = ROOT / "tests/training/trainner_redux_driver.py"
LR_SIZE = 16  # of a training crop


def train_few_steps(
    clone: Path,
    folder: Path,
    name: str = "aether_small",
    scale: int = 2,
    file_format: str = "safetensors",
) -> Path:
    """Take two steps with the fidelity options; return the averaged checkpoint.

    Everything is written under `folder`; `file_format` is "safetensors" or "pth".
    """
    options = for_cpu(
        OPTIONS / f"train/aether/{name}_fidelity.yml",
        folder,
        {"scale": scale, "logger.save_checkpoint_format": file_format},
    )
    finished(drive(clone, folder, "train", options))
    return experiment(options) / f"models/net_g_ema_latest.{file_format}"


def for_cpu(source: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """A training option file edited as a user would, for two small steps on a CPU.

    `changes` are by dotted key; None removes one. Its pictures are made beside it.
    """
    options = yaml.safe_load(source.read_text("utf-8"))
    scale = changes.get("scale", options["scale"])
    write_pairs(folder / f"pictures_{scale}x", scale)
    data = options["datasets"]["train"]
    for key, kind in (("dataroot_gt", "hr"), ("dataroot_lq", "lr")):
        if key in data:
            data[key] = [str(folder / f"pictures_{scale}x" / kind)]
    data.update(lq_size=LR_SIZE, batch_size_per_gpu=2)
    data.update(num_worker_per_gpu=0, prefetch_factor=None, persistent_workers=False)
    cpu = {
        "num_gpu": 0,
        "use_amp": False,
        "train.total_iter": 2,
        "logger.print_freq": 1,
        "logger.save_checkpoint_freq": 2,
        "logger.use_tb_logger": False,
    }
    return _edited(options, cpu | changes, folder / source.name)


def for_use(source: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """A test or ONNX option file edited as a user would, for a CPU."""
    options = yaml.safe_load(source.read_text("utf-8"))
    return _edited(options, {"num_gpu": 0} | changes, folder / source.name)


def _edited(options: dict[str, Any], changes: dict[str, Any], target: Path) -> Path:
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        place = options
        for section in sections:
            place = place[section]
        place[key] = value
        if value is None:
            del place[key]
    target.write_text(yaml.safe_dump(options), "utf-8")
    return target


def write_pairs(folder: Path, scale: int) -> None:
    """Five pictures of the shipped sample, HR and LR, of the same names."""
    side = 2 * LR_SIZE * scale + 32  # the degradations crop LR_SIZE * scale + 32
    sample = Image.open(SAMPLE).convert("RGB")
    for kind in ("hr", "lr"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(5):
        corner = 16 * number
        hr = sample.crop((corner, corner, corner + side, corner + side))
        lr = hr.resize((side // scale, side // scale), Image.Resampling.BICUBIC)
        hr.save(folder / f"hr/{number}.png")
        lr.save(folder / f"lr/{number}.png")


def experiment(options: Path) -> Path:
    """The folder in which the run of this option file saves."""
    name = yaml.safe_load(options.read_text("utf-8"))["name"]
    return options.parent / "experiments" / name


def drive(
    clone: Path, folder: Path, *words: object
) -> subprocess.CompletedProcess[str]:
    """Run the driver with the clone's interpreter, our file dropped in."""
    with dropped_in(TRAINNER_FILE, clone / "traiNNer/archs"):
        return in_clone(clone, folder, DRIVER, *words)


def in_clone(
    clone: Path, folder: Path, *words: object
) -> subprocess.CompletedProcess[str]:
    """Run the clone's interpreter; name a missing package in the failure."""
    python = interpreter_of(clone)
    done = subprocess.run(
        [python, *map(str, words)],
        cwd=folder,
        # One line a message: rich breaks them at the width of the terminal.
        env={
            **os.environ,
            "PYTHONPATH": str(clone),
            "PYTHONDONTWRITEBYTECODE": "1",  # nothing of ours stays in the clone
            "COLUMNS": "1000",
        },
        timeout=1200,
        capture_output=True,
        text=True,
        check=False,
    )
    missing = re.search(r"ModuleNotFoundError: .*", done.stderr)
    if missing:
        pytest.fail(f"{python} lacks what traiNNer-redux needs. {missing[0]}")
    return done


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a command, which must have succeeded."""
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def finished(done: subprocess.CompletedProcess[str]) -> str:
    """The log of a training run that reached its end: crashed ones exit with 0 too."""
    log = succeeded(done)
    assert "End of training." in log, log[-6000:] + done.stderr[-2000:]
    return log


def result_of(done: subprocess.CompletedProcess[str], folder: Path) -> dict[str, Any]:
    """The driver's report for each file."""
    succeeded(done)
    return json.loads((folder / "result.json").read_text("utf-8"))
