"""ONNX Runtime whose threads spin while they wait, and whose threads sleep.

    python benchmarks/spinning.py [--model FILE] [--size 128] [--rounds 9]

Both sessions run in turns. Printed are the medians of the ratios, sleeping to spinning,
taken round by round. CPU time counts until a little after the run, because threads go
on spinning for a while. Run it on a quiet machine and on a busy one.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from aethernet.checkpoints.shipped import shipped_model
from aethernet.runtimes import onnxruntime
from aethernet.runtimes.onnxruntime import OnnxRuntime

# How long threads may go on spinning after a run.
AFTERWARDS = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=shipped_model())
    parser.add_argument("--size", type=int, default=128, help="LR pixels of each side")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    models = {}
    for spinning in (True, False):
        onnxruntime.SPINNING = spinning
        models[spinning] = OnnxRuntime.load(given.model, "cpu", "auto")
    shape = (1, models[True].channels, given.size, given.size)
    image = np.random.default_rng(0).random(shape, np.float32)
    for model in models.values():
        model.run(image)
    walls, cpus = [], []
    for _ in range(given.rounds):
        spent = {spins: measure(model, image) for spins, model in models.items()}
        walls.append(spent[False][0] / spent[True][0])
        cpus.append(spent[False][1] / spent[True][1])
    for name, ratios in (("wall time", walls), ("CPU time", cpus)):
        print(
            f"{name:9} without / with spinning: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    return 0


def measure(model: OnnxRuntime, image: np.ndarray) -> tuple[float, float]:
    """Seconds of wall time, and of CPU time until a little later."""
    wall, cpu = time.perf_counter(), time.process_time()
    model.run(image)
    wall = time.perf_counter() - wall
    time.sleep(AFTERWARDS)
    return wall, time.process_time() - cpu


if __name__ == "__main__":
    sys.exit(main())
