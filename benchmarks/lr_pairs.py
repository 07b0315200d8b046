"""Make pairs of HR and LR: `python benchmarks/lr_pairs.py PHOTOS OUT --scale 2`.

Writes each picture of the folder PHOTOS to OUT/hr, and its LR picture to OUT/lr, as PNG
files with the same name. LR is the bicubic reduction, or with --degrade what phones and
the web make of it. Existing pairs are skipped. To measure models on degraded pictures:

    python benchmarks/lr_pairs.py PHOTOS OUT --degrade drawn
    aethernet quality --data OUT/hr --lr OUT/lr --model 2x-small mine_2x.safetensors
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from aethernet.aether_core import UPSAMPLE_FACTORS
from aethernet.errors import AetherError
from aethernet.files import files_in
from aethernet.pictures.degradations import Degradation, draw
from aethernet.pictures.files import SUFFIXES, Picture
from aethernet.pictures.training_crops import training_pair
from aethernet.pictures.write import write_picture

KINDS = {
    "none": Degradation(),
    "soft": Degradation(blur=(0.5, 0.5)),
    "noise": Degradation(noise=5.0),
    "jpeg": Degradation(codec="JPEG", quality=75),
}
"""The same for every picture. "drawn", beside them, differs from one to the next."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photos", type=Path, help="folder of 8-bit RGB pictures")
    parser.add_argument("out", type=Path, help="folder to make hr/ and lr/ in")
    scales = tuple(UPSAMPLE_FACTORS)
    parser.add_argument("--scale", type=int, default=2, choices=scales)
    parser.add_argument(
        "--degrade",
        default="none",
        choices=(*KINDS, "drawn"),
        help="drawn: at random, as training/train.py --degrade validates; the same in "
        "every run; default: none",
    )
    given = parser.parse_args()
    if not given.photos.is_dir():
        parser.error(f"{given.photos} is no folder")
    try:
        paths = files_in(given.photos, SUFFIXES, "pictures")
        for number, path in enumerate(paths):
            random = np.random.default_rng(number)
            kind = KINDS.get(given.degrade) or draw(random, clean_share=0)
            make_pair(path, given.out, given.scale, kind, random)
            print(f"\r{number + 1} of {len(paths)}", end="", flush=True)
    except AetherError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(f"\n{given.out / 'hr'} and {given.out / 'lr'}")
    return 0


def make_pair(
    path: Path,
    out: Path,
    scale: int,
    degradation: Degradation,
    random: np.random.Generator,
) -> None:
    targets = [out / kind / f"{path.stem}.png" for kind in ("lr", "hr")]
    if all(target.exists() for target in targets):
        return
    _, planes = training_pair(path, scale)
    hr = planes.permute(1, 2, 0).contiguous().numpy()
    pair = degradation.lr(hr, scale, random), hr
    for target, pixels in zip(targets, pair, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_picture(Picture(pixels), target)


if __name__ == "__main__":
    sys.exit(main())
