"""Measure the memory that a large picture takes, and how busy the network is.

    python benchmarks/large_picture.py --megapixels 100 --model stand-in
    python benchmarks/large_picture.py --megapixels 4 [--model CHECKPOINT] [--tile 256]

Draws a picture of that size and upscales it as `aethernet upscale` does. Prints the
peak memory beyond what the process used after loading the model and running one tile.
The stand-in is a single bilinear layer, which shows the share of the picture alone.
Not on Windows.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyvips
import torch

from aethernet.bench.memory import peak_resident_bytes
from aethernet.checkpoints.shipped import shipped_model
from aethernet.runtimes.base import Description, InputSizes, Model
from aethernet.runtimes.registry import open_model
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling.files import upscale_file


class OneLayer:
    """A model of one layer."""

    scale, channels, input_sizes = 2, 3, InputSizes()

    def run(self, batch: np.ndarray) -> np.ndarray:
        return torch.nn.functional.interpolate(
            torch.from_numpy(batch), scale_factor=2.0, mode="bilinear"
        ).numpy()

    def describe(self) -> Description:
        return Description("one layer", "cpu", "float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megapixels", type=float, default=100)
    parser.add_argument("--model", default=str(shipped_model()))
    parser.add_argument("--tile", type=int)
    parser.add_argument("--suffix", default=".png")
    arguments = parser.parse_args()
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        # By default glibc keeps freed memory, so that memory in use would not show.
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    model: Model = OneLayer()
    if arguments.model != "stand-in":
        model = open_model(Path(arguments.model), "pytorch", "cpu", "float32")
    tiled = Tiled(model, arguments.tile)
    side = round((arguments.megapixels * 1e6) ** 0.5)
    window = min(side, (tiled.tile or side) + 2 * tiled.context)
    with tempfile.TemporaryDirectory() as folder:
        source, target = (Path(folder, f"{n}{arguments.suffix}") for n in ("in", "out"))
        draw(source, side)
        model.run(np.zeros((1, model.channels, window, window), np.float32))
        own = peak_resident_bytes() or 0  # of the runtime, for windows of that size
        start = time.perf_counter()
        upscale_file(source, target, tiled)
        seconds = time.perf_counter() - start
    print(f"{side}x{side}, tile {tiled.tile}, {model.describe()}")
    peak = (peak_resident_bytes() or 0) - own
    print(f"peak {peak >> 20} MiB beyond {own >> 20} MiB of the runtime's own")
    print(f"the network ran {tiled.busy / seconds:.0%} of {seconds:.0f} s")


def draw(path: Path, side: int) -> None:
    """Write a square picture of clouds; it repeats one piece, which is fast."""
    piece = pyvips.Image.perlin(*(min(side, 1000),) * 2, cell_size=50, uchar=True)
    clouds = piece.copy_memory().replicate(*(-(-side // 1000),) * 2)
    clouds = clouds.crop(0, 0, side, side)
    colours = clouds.bandjoin([clouds.invert(), clouds])
    colours.copy(interpretation="srgb").write_to_file(str(path))


if __name__ == "__main__":
    main()
