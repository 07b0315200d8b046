"""Measure how much context a tile needs, by the differences at its seams.

    python benchmarks/context.py --data FOLDER [--model CHECKPOINT] [--pictures 8]

The middle of each picture is upscaled whole and in tiles of 64 pixels. Printed are the
largest difference between both outputs in 8-bit steps (255 of the range 0..1), and the
share of the values that differ once they are rounded.
"""

import argparse
from pathlib import Path

import numpy as np

from aethernet.checkpoints.shipped import shipped_model
from aethernet.files import files_in
from aethernet.pictures.files import SUFFIXES, read_picture
from aethernet.runtimes.registry import open_model
from aethernet.runtimes.tiling import Tiled

SIDE, TILE = 192, 64
CONTEXTS = (8, 16, 24, 32, 40, 48, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="photographs")
    parser.add_argument("--model", type=Path, default=shipped_model())
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    arguments = parser.parse_args()
    model = open_model(arguments.model, "pytorch", "cpu", "float32")
    files = files_in(arguments.data, SUFFIXES, "pictures")
    files = files[:: max(len(files) // arguments.pictures, 1)][: arguments.pictures]
    worst = dict.fromkeys(arguments.contexts, 0.0)
    changed = dict.fromkeys(arguments.contexts, 0)
    values = 0
    for file in files:
        pixels = read_picture(file).pixels
        top, left = ((side - min(side, SIDE)) // 2 for side in pixels.shape[:2])
        pixels = pixels[top : top + SIDE, left : left + SIDE, :3]
        batch = pixels.transpose(2, 0, 1)[np.newaxis].astype(np.float32) / 255
        whole = model.run(np.ascontiguousarray(batch))
        values += whole.size
        for context in arguments.contexts:
            tiled = Tiled(model, TILE, context).run(batch)
            step = 255 * np.abs(tiled - whole).max()
            worst[context] = max(worst[context], float(step))
            pair = [np.rint(255 * image.clip(0, 1)) for image in (whole, tiled)]
            changed[context] += int((pair[0] != pair[1]).sum())
    print(f"{len(files)} pictures, tiles of {TILE}")
    for context in arguments.contexts:
        share = changed[context] / values
        print(f"context {context:3}: {worst[context]:8.4f} steps, {share:.1e} differ")


if __name__ == "__main__":
    main()
