"""Make training pairs: `python benchmarks/bicubic_pairs.py PHOTOS OUT --scale 2`.

Writes each picture of the folder PHOTOS to OUT/hr, and its bicubic reduction to
OUT/lr, as PNG files with the same name. Existing pairs are skipped.
"""

import argparse
import sys
from pathlib import Path

from aethernet.aether_core import UPSAMPLE_FACTORS
from aethernet.errors import AetherError
from aethernet.files import files_in
from aethernet.pictures.files import SUFFIXES, Picture
from aethernet.pictures.training_crops import training_pair
from aethernet.pictures.write import write_picture


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photos", type=Path, help="folder of 8-bit RGB pictures")
    parser.add_argument("out", type=Path, help="folder to make hr/ and lr/ in")
    scales = tuple(UPSAMPLE_FACTORS)
    parser.add_argument("--scale", type=int, default=2, choices=scales)
    given = parser.parse_args()
    if not given.photos.is_dir():
        parser.error(f"{given.photos} is no folder")
    try:
        paths = files_in(given.photos, SUFFIXES, "pictures")
        for number, path in enumerate(paths, 1):
            make_pair(path, given.out, given.scale)
            print(f"\r{number} of {len(paths)}", end="", flush=True)
    except AetherError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(f"\n{given.out / 'hr'} and {given.out / 'lr'}")
    return 0


def make_pair(path: Path, out: Path, scale: int) -> None:
    targets = [out / kind / f"{path.stem}.png" for kind in ("lr", "hr")]
    if all(target.exists() for target in targets):
        return
    pair = training_pair(path, scale)
    for target, pixels in zip(targets, pair, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_picture(Picture(pixels.permute(1, 2, 0).contiguous().numpy()), target)


if __name__ == "__main__":
    sys.exit(main())
