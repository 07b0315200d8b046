"""Offer a page to the tests: `python serve.py PORT FOLDER`.

Writes a page with small models, pictures, and what the command makes of them, into a
folder, and serves the page like any static server.
"""

import contextlib
import functools
import http.server
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "src")]

from helpers import lively_file, tiny_weights_file  # noqa: E402

from aethernet.checkpoints.shipped import shipped_model  # noqa: E402
from aethernet.commands.main import main  # noqa: E402

TINY = {"embed_dim": 8, "depths": (1,)}
# Gray, of widths that do not fill the kernels' vectors.
SCALES = {
    "gray1": {"embed_dim": 10, "scale": 1},
    "gray3": {"embed_dim": 18, "scale": 3},
    "gray8": {"embed_dim": 10, "scale": 8},
}
FEW = ("odd.png", "gray.png", "clear.png")
SAMPLE = REPOSITORY / "assets/sample.png"


def pictures(folder: Path) -> None:
    """Pictures of every kind, by the model that enlarges them."""
    photo = Image.open(SAMPLE).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    alpha = np.zeros((61, 75), np.uint8)
    alpha[10:50, 5:70] = np.linspace(0, 255, 65).astype(np.uint8)
    seen = photo.crop((200, 80, 275, 141))
    clear = Image.fromarray(np.dstack([np.asarray(seen), alpha]))
    save = {
        "sample.png": photo,
        "odd.png": photo.crop((200, 80, 237, 133)),
        "one.png": photo.crop((200, 80, 201, 81)),
        "clear.png": clear,
        "flat.png": Image.merge("RGBA", [*seen.split(), Image.new("L", seen.size, 99)]),
        "gray.png": photo.convert("L").crop((180, 60, 250, 120)),
        "fog.png": clear.convert("LA"),
        "webp.webp": seen,
        "wide.png": photo.resize((700, 70)),  # more than one tile
    }
    for model in ("tiny", "gray2", "gray4", *SCALES):
        (folder / model).mkdir(parents=True)
        for name, picture in save.items():
            few = ("odd.png", "one.png") if model in SCALES else FEW
            if model == "tiny" or name in few:
                lossless = {"lossless": True} if name.endswith("webp") else {}
                picture.save(folder / model / name, **lossless)
    seen.save(folder / "tiny/turned.jpg", exif=turned, quality=90)
    for name in ("shipped", "shipped4"):
        (folder / name).mkdir()
        photo.crop((200, 60, 295, 132)).save(folder / name / "part.png")


def prepare(folder: Path) -> None:
    """Write everything, unless it is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    models = {
        "tiny": lively_file(folder / "tiny.safetensors", **TINY),
        "shipped": shipped_model(),
        "shipped4": REPOSITORY / "models/4x_aether_small.safetensors",
        "gray4": lively_file(folder / "gray4.safetensors", **TINY, in_chans=1, scale=4),
    }
    models["gray2"] = tiny_weights_file(
        folder / "gray2.safetensors", **TINY, in_chans=1
    )
    for name, own in SCALES.items():
        file = folder / f"{name}.safetensors"
        models[name] = lively_file(file, **{**TINY, **own, "in_chans": 1})
    words = ["web", "-o", folder / "site", "--model", *models.values()]
    assert main([*map(str, words)]) == 0
    pictures(folder / "pictures")
    for name, model in models.items():
        source, target = folder / "pictures" / name, folder / "expected" / name
        words = ["upscale", source, "-o", target, "--format", "png", "--model", model]
        assert main([*map(str, words)]) == 0
    sample = (folder / "pictures/tiny/sample.png").read_bytes()
    (folder / "pictures/damaged.png").write_bytes(sample[:200] + bytes(300))
    Image.new("1", (6000, 5000)).save(folder / "pictures/large.png")
    if os.environ.get("SLOW"):
        camera(folder, models["tiny"])


def camera(folder: Path, model: Path) -> None:
    """A picture as large as those of cameras, for the slow test."""
    places = [folder / place / "slow" for place in ("pictures", "expected")]
    for place in places:
        place.mkdir()
    source, target = (place / "camera.png" for place in places)
    photo = Image.open(SAMPLE).convert("RGB").resize((4000, 3000))
    photo.save(source, compress_level=1)
    words = ["upscale", source, "-o", target, "--model", model]
    assert main([*map(str, words)]) == 0


def serve(port: int, folder: Path) -> None:
    """Offer the page on this computer until the process is ended."""
    prepare(folder)
    handler = functools.partial(Quiet, directory=folder / "site")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    serve(int(sys.argv[1]), Path(sys.argv[2]))
