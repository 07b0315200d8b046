"""What an export of the shipped model costs, beside PyTorch's exporter.

    python benchmarks/export_cost.py [--rounds 3]

Each row is a process of its own, from its start to its end: CPU seconds of all its
threads and of the system for it. In a round each runs once, in turn; ratios are taken
round by round, to the first row. That row is how the file was made before: the module
goes through PyTorch's exporter, and all frames and sizes are compared with PyTorch.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from aethernet.checkpoints.shipped import shipped_model

EXPORTER = """
import sys, torch
from aethernet.bench.torch_exporter import EXPORTER_OPSET, exported
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.comparison import network_of, verification_images
from aethernet.checkpoints.onnx_check import open_session, verify
from aethernet.checkpoints.rewrites import ConvolutionBlock, rewritten
from aethernet.checkpoints.tolerances import Tolerance

source = load_checkpoint(sys.argv[1])
module = rewritten(source.folded, block_type=ConvolutionBlock)
model = exported(module, source.in_chans, None, EXPORTER_OPSET, torch.float32)
session = open_session(model.SerializeToString())
cases = network_of(source, "full").cases(verification_images(source.in_chans, "full"))
verify(session, cases, Tolerance.of("float32"))
"""

BASELINE = "PyTorch's exporter and full check"


def rows(model: Path, folder: Path) -> dict[str, list[object]]:
    """Words after `python` by the name of the row."""
    command: list[object] = ["-m", "aethernet"]
    export = [*command, "export", model, "-o"]
    return {
        BASELINE: ["-c", EXPORTER, model],
        "export m.onnx": [*export, folder / "m.onnx"],
        "export m.onnx --precision float16": [
            *(*export, folder / "h.onnx", "--precision", "float16")
        ],
        "export m.onnx --verify full": [
            *(*export, folder / "f.onnx", "--verify", "full")
        ],
        "export m.param": [*export, folder / "m.param"],
        "fuse": [*command, "fuse", model, "-o", folder / "fused.safetensors"],
    }


def cpu_seconds(words: list[object]) -> float:
    """CPU seconds of a process of Python with these words."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run(
        [sys.executable, *map(str, words)], check=True, stdout=subprocess.DEVNULL
    )
    return spent() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        given = rows(shipped_model(), Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in given}
        for _ in range(rounds):
            for name, words in given.items():
                seconds[name].append(cpu_seconds(words))
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds[BASELINE], strict=True)]
        print(
            f"{name}: {statistics.median(own):.1f} CPU seconds, "
            f"ratio {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
