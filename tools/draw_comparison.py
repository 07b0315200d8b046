"""Draw README's first picture: `python tools/draw_comparison.py`.

It shows two parts of the sample picture, bicubic beside the shipped model. Each output
pixel is drawn as 2x2, because browsers would smooth the difference away.
"""

import sys
from pathlib import Path

import pyvips

from aethernet.checkpoints.shipped import shipped_model
from aethernet.runtimes.registry import open_model
from aethernet.upscaling.files import upscale_file

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "assets/sample.png"
TARGET = ROOT / "assets/comparison.png"
PARTS = ((70, 20, 96, 64), (50, 160, 96, 64))  # left, top, width, height; LR pixels
ZOOM = 2
MARGIN = 8
LABEL_HEIGHT = 28
BESIDE = {"expand": True, "shim": MARGIN, "background": 255}


def main() -> int:
    model = open_model(shipped_model(), "pytorch", precision="float32")
    upscaled = TARGET.with_name(".upscaled.png")
    try:
        upscale_file(SAMPLE, upscaled, model)
        ours = pyvips.Image.new_from_file(str(upscaled)).copy_memory()
    finally:
        upscaled.unlink(missing_ok=True)
    sample = pyvips.Image.new_from_file(str(SAMPLE))
    bicubic = sample.resize(model.scale, kernel="cubic")
    columns = []
    for name, image in (("bicubic", bicubic), (shipped_model().stem, ours)):
        column = _label(name, PARTS[0][2] * model.scale * ZOOM)
        for part in PARTS:
            drawn = image.crop(*(side * model.scale for side in part)).zoom(ZOOM, ZOOM)
            column = column.join(drawn, "vertical", **BESIDE)
        columns.append(column)
    picture = columns[0].join(columns[1], "horizontal", **BESIDE)
    picture.write_to_file(str(TARGET), compression=9)
    print(f"wrote {TARGET.relative_to(ROOT)} ({picture.width}x{picture.height})")
    return 0


def _label(text: str, width: int) -> pyvips.Image:
    ink = pyvips.Image.text(text, font="sans 14", dpi=96)
    left, top = (width - ink.width) // 2, (LABEL_HEIGHT - ink.height) // 2
    label = ink.invert().embed(left, top, width, LABEL_HEIGHT, background=255)
    return label.colourspace("srgb")


if __name__ == "__main__":
    sys.exit(main())
