"""neosr itself: 0.1.0 from the package index, and 1.0.0 from a clone (NEOSR_DIR).

Every test session works on its own copy of neosr, with today's drop-in file and option
files in it, as a user's neosr has them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import NEOSR_FILE, clone_of, interpreter_of
from helpers import ROOT, random_image
from PIL import Image

from aethernet.cache import cache_folder

OPTIONS = ROOT / "neosr/options"
DRIVER = ROOT / "tests/training/neosr_driver.py"
FIDELITY = {
    "aether_small": "train_aether_small.toml",
    "aether_medium": "2xBHI_aether_medium_l1pretrain.toml",
    "aether_large": "train_aether_large.toml",
}
# The user's cache; read here, before conftest.py sets another one for the tests.
CACHE = cache_folder()
# neosr 0.1.0 imports these besides torch, torchvision and numpy. Its own pins, such as
# numpy < 2, and its minimum Python exclude every interpreter we support.
NEOSR_0_1_0 = "neosr==0.1.0"
ITS_PACKAGES = (
    "PyWavelets",
    "einops",
    "lmdb",
    "opencv-python-headless<5",
    "scipy",
    "tqdm",
)
# Small enough for a CPU; everything else is as shipped.
QUICK = {
    "patch_size": "8",
    "batch_size": "1\nnum_worker_per_gpu = 1",
    "total_iter": "2",
    "save_checkpoint_freq": "2",
}


@dataclass
class Neosr:
    version: str
    root: Path  # the folder of neosr: train.py, options/, experiments/
    python: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
        """Run jobs of neosr_driver.py in one process; a job's `opt` is its -opt."""
        whole = []
        for job in map(dict, jobs):
            option_file = job.pop("opt", None)
            words = [] if option_file is None else ["-opt", str(option_file)]
            whole.append({**job, "argv": ["train.py", *words, *job.get("argv", [])]})
        with tempfile.TemporaryDirectory() as folder:
            asked, done = Path(folder) / "jobs.json", Path(folder) / "results.json"
            asked.write_text(json.dumps(whole, default=str), "utf-8")
            process = subprocess.run(
                [str(self.python), str(DRIVER), str(self.root), str(asked), str(done)],
                cwd=self.root,
                env={**os.environ, **self.environment},
                capture_output=True,
                text=True,
                check=False,
                timeout=1200,
            )
            tail = f"{process.stdout[-3000:]}\n{process.stderr[-6000:]}"
            where = self.environment.get("PYTHONPATH", self.python)
            assert done.exists(), f"{where}: exit {process.returncode}\n{tail}"
            return json.loads(done.read_text("utf-8"))

    def option_file(
        self, name: str, lines: Mapping[str, str] | None = None, as_name: str = ""
    ) -> Path:
        """A shipped option file in neosr's options/, with these lines changed."""
        text = with_lines((OPTIONS / name).read_text("utf-8"), lines or {})
        target = self.root / "options" / (f"{as_name}.toml" if as_name else name)
        if as_name:
            text = with_lines(text, {"name": f'"{as_name}"'}, count=1)
        target.write_text(text, "utf-8")
        return target


def with_lines(text: str, lines: Mapping[str, str], count: int = 0) -> str:
    """The text with the value of every `key = value` line of these keys replaced."""
    for key, value in lines.items():
        line = re.compile(rf"^{re.escape(key)} = .*$", re.M)
        assert line.search(text), f"no line {key!r}"
        text = line.sub(lambda _, new=f"{key} = {value}": new, text, count=count)
    return text


def quoted(path: Path) -> str:
    return f"'{path}'"


def pictures(folder: Path, scale: int, size: int = 32, number: int = 4) -> None:
    """Pairs for training: `lr` with pictures of `size` pixels, and their `hr`."""
    for name, pixels in (("lr", size), ("hr", size * scale)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            noise = random_image(3, 8, 8, seed=index).permute(1, 2, 0).numpy()
            picture = Image.fromarray((noise * 255).astype(np.uint8))
            picture.resize((pixels, pixels)).save(folder / name / f"{index}.png")


def dataroots(folder: Path, scale: int) -> dict[str, str]:
    """Make pictures; return the two lines of the option file that a user edits."""
    if not (folder / "lr").exists():
        pictures(folder, scale)
    return {
        "dataroot_gt": quoted(folder / "hr"),
        "dataroot_lq": quoted(folder / "lr"),
    }


def few_blocks(neosr: Neosr, folder: Path) -> Path:
    """The fidelity option file with a small network, on pictures in this folder."""
    variant, run = "aether_small", "few_blocks"
    lines = {**QUICK, **dataroots(folder, 2), "scale": "2"}
    option_file = neosr.option_file(FIDELITY[variant], lines, as_name=run)
    text = option_file.read_text("utf-8")
    assert f'type = "{variant}"\n' in text
    few = 'type = "aether"\nembed_dim = 16\ndepths = [1, 2]\n'
    option_file.write_text(text.replace(f'type = "{variant}"\n', few), "utf-8")
    return option_file


def of_clone(folder: Path) -> Neosr:
    """A copy of the clone that NEOSR_DIR names; skips where it is not set."""
    clone = clone_of("NEOSR_DIR")
    for name in ("neosr", "options"):
        shutil.copytree(
            clone / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("train.py", "test.py"):
        shutil.copy2(clone / name, folder)
    shutil.copy2(NEOSR_FILE, folder / "neosr/archs")
    return Neosr("1.0.0", folder, interpreter_of(clone))


def of_package_index(folder: Path) -> Neosr:
    """A copy of neosr 0.1.0; skips where it cannot be installed."""
    packages = _installed_0_1_0()
    shutil.copytree(packages / "neosr", folder / "neosr")
    shutil.copy2(NEOSR_FILE, folder / "neosr/archs")
    (folder / "options").mkdir()
    path = os.pathsep.join([str(folder), str(packages)])
    return Neosr("0.1.0", folder, Path(sys.executable), {"PYTHONPATH": path})


def _installed_0_1_0() -> Path:
    """neosr 0.1.0 and what it imports, in a folder kept between test sessions.

    Beside this interpreter's packages, none of which is touched: torch is shared.
    """
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    target = CACHE / f"neosr-0.1.0-{tag}-{sysconfig.get_platform()}"
    if target.exists():
        return target
    for name in ("torchvision", "pip"):
        pytest.importorskip(name, reason=f"neosr 0.1.0 needs {name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Under another name until it is complete: two sessions may do this at once.
    part = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        for words in ([NEOSR_0_1_0, "--ignore-requires-python"], ITS_PACKAGES):
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--retries=1"]
            done = subprocess.run(
                [*command, "--no-deps", "--target", str(part), *words],
                capture_output=True,
                text=True,
                check=False,
                timeout=600,
            )
            if done.returncode:
                said = (done.stderr.strip() or done.stdout.strip())[-300:]
                pytest.skip(
                    "neosr 0.1.0 and what it needs could not be installed from the "
                    f"package index. pip says: {said}"
                )
        try:
            part.rename(target)
        except OSError:
            assert target.exists()  # the other session was faster
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target
