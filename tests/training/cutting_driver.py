"""Cut crops by a thread and by processes: `python cutting_driver.py PICTURE ..`.

The device decides which; there is no GPU behind this one's name.
"""

import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
import train
import trainer

from aethernet.pictures.training_crops import TrainingCrops

RECIPE = trainer.Recipe(
    variant="small", scale=2, iterations=6, batch=2, crop=8, optimizer="muon",
    rate=1e-3, warm_up=2, ema=0.9, drop_path=0.0, seed=0, precision="float32",
    start="", photographs="", val="",
)  # fmt: skip


def main() -> None:
    warnings.filterwarnings("ignore", "'pin_memory' argument")  # without a GPU
    os.cpu_count = lambda: 3
    crops = TrainingCrops([*map(Path, sys.argv[1:])], 2)

    def cut(device: str, first: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
        made = SimpleNamespace(
            recipe=RECIPE, iteration=first, device=torch.device(device)
        )
        with train.batches(crops, made) as found:
            return [(lr.clone(), hr.clone()) for lr, hr in found]

    by_thread, by_processes = cut("cpu"), cut("cuda")
    found = zip(by_thread, by_processes, strict=True)
    resumed = zip(by_thread[4:], cut("cuda", 4), strict=True)
    for one, other in (*found, *resumed):
        assert all(map(torch.equal, one, other))
    print(f"{len(by_thread)} batches, the same by processes, also from the fifth")


if __name__ == "__main__":
    main()
