"""Compare layouts in PyTorch: `python benchmarks/pytorch_runtime.py`.

Prints the time of channels-last weights as a fraction of the time of contiguous ones,
in paired runs of the shipped model, and the peak memory per LR pixel of one picture
(not on Windows).
"""

import argparse
import copy
import statistics
import sys
import time

import torch

from aethernet.bench.memory import peak_resident_bytes
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.rewrites import RewrittenNet, rewritten
from aethernet.checkpoints.shipped import shipped_model


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=256, help="LR side; default: 256")
    parser.add_argument("--pairs", type=int, default=3, help="paired runs; default: 3")
    arguments = parser.parse_args()
    contiguous = rewritten(load_checkpoint(shipped_model()).folded)
    last = copy.deepcopy(contiguous).to(memory_format=torch.channels_last)
    image = torch.rand(1, 3, arguments.size, arguments.size)
    image_last = image.to(memory_format=torch.channels_last)
    before = peak_resident_bytes()
    seconds(last, image_last)  # the first run allocates
    if before is not None:
        used = (peak_resident_bytes() or before) - before
        print(f"peak memory: {used / arguments.size**2:.0f} bytes per LR pixel")
    seconds(contiguous, image)
    ratios = [
        seconds(last, image_last) / seconds(contiguous, image)
        for _ in range(arguments.pairs)
    ]
    print(
        f"channels last / contiguous: median {statistics.median(ratios):.2f}, "
        f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} pairs"
    )
    return 0


def seconds(network: RewrittenNet, image: torch.Tensor) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        network(image)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
