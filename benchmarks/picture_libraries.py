"""Compare libraries that read pictures: why `pictures.files` is built on libvips.

    pip install opencv-python-headless imageio tifffile
    python benchmarks/picture_libraries.py

Small pictures with known values are written, read by each library in its simplest
documented way, and compared. Then each reads a large PNG from top to bottom, and its
peak memory is printed.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageCms
import pyvips

SIDE = 10_000  # of the large picture: 100 megapixels

# Run in a process of its own, whose peak memory is that of one library.
_READ = {
    "libvips (pyvips)": """
import pyvips
image = pyvips.Image.new_from_file(path, access="sequential")
region = pyvips.Region.new(image)
for top in range(0, image.height, 500):
    region.fetch(0, top, image.width, min(500, image.height - top))
""",
    "Pillow": """
import PIL.Image
PIL.Image.MAX_IMAGE_PIXELS = None
PIL.Image.open(path).load()
""",
    "OpenCV": """
import os
os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(2**40)
import cv2
cv2.imread(path, cv2.IMREAD_UNCHANGED)
""",
}
_PEAK = """
import sys
path = sys.argv[1]
{code}
import resource
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def with_libvips(path: Path) -> Any:
    return pyvips.Image.new_from_file(str(path)).autorot().numpy()


def with_pillow(path: Path) -> Any:
    return np.asarray(PIL.Image.open(path))


def with_opencv(path: Path) -> Any:
    import cv2

    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("cannot be read")
    if pixels.ndim < 3:
        return pixels
    order = [2, 1, 0, 3][: pixels.shape[2]]
    return pixels[:, :, order]


READERS: dict[str, Callable[[Path], Any]] = {
    "libvips (pyvips)": with_libvips,
    "Pillow": with_pillow,
    "OpenCV": with_opencv,
}


def write_samples(folder: Path) -> dict[str, tuple[Path, Any]]:
    """Files with their pixels; None where only success is checked."""
    random = np.random.default_rng(0)
    deep = random.integers(0, 65536, (16, 24, 3), np.uint16)
    alpha = random.integers(0, 65536, (16, 24, 4), np.uint16)
    gray_alpha = random.integers(0, 256, (16, 24, 2), np.uint8)
    plain = random.integers(0, 256, (16, 24, 3), np.uint8)

    def file(name: str) -> Path:
        return folder / name

    for name, pixels in (("16-bit RGB.png", deep), ("16-bit RGBA.png", alpha)):
        pyvips.Image.new_from_array(pixels, interpretation="rgb16").pngsave(
            str(file(name))
        )
    pyvips.Image.new_from_array(deep, interpretation="rgb16").tiffsave(
        str(file("16-bit RGB.tif"))
    )
    PIL.Image.fromarray(gray_alpha, "LA").save(file("gray and alpha.png"))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(plain).save(file("turned by EXIF.png"), exif=exif)
    palette = PIL.Image.fromarray(plain).quantize(8)
    palette.save(file("palette.png"))
    PIL.Image.new("CMYK", (24, 16), (255, 0, 0, 0)).save(file("CMYK.tif"))
    PIL.Image.fromarray(plain).save(file("AVIF.avif"))
    PIL.Image.fromarray(plain).save(file("BMP.bmp"))
    samples = {
        "16-bit RGB.png": deep,
        "16-bit RGBA.png": alpha,
        "16-bit RGB.tif": deep,
        "gray and alpha.png": gray_alpha,
        "turned by EXIF.png": np.rot90(plain, -1),
        "palette.png": np.asarray(palette.convert("RGB")),
        "BMP.bmp": plain,
        "CMYK.tif": None,
        "AVIF.avif": None,
    }
    return {name: (file(name), pixels) for name, pixels in samples.items()}


def verdict(read: Callable[[Path], Any], path: Path, wanted: Any) -> str:
    try:
        pixels = read(path)
    except Exception as error:  # any error is a result
        return f"fails ({type(error).__name__})"
    if wanted is None or np.array_equal(pixels, wanted):
        return f"{pixels.shape[2] if pixels.ndim > 2 else 1} channels, {pixels.dtype}"
    return f"other values ({pixels.shape}, {pixels.dtype})"


def main() -> None:
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for sample, (path, wanted) in write_samples(folder).items():
            found[sample] = {
                library: verdict(read, path, wanted)
                for library, read in READERS.items()
            }
        large = folder / "large.png"
        noise = pyvips.Image.perlin(SIDE, SIDE, uchar=True)
        noise.bandjoin([noise, noise]).copy(interpretation="srgb").pngsave(
            str(large), compression=1
        )
        peaks = {}
        for library, code in _READ.items():
            done = subprocess.run(
                [sys.executable, "-c", _PEAK.format(code=code), str(large)],
                capture_output=True,
                text=True,
                check=False,
            )
            peaks[library] = f"{done.stdout.strip() or 'fails'} MB"
        found[f"peak of memory, {SIDE}x{SIDE} RGB.png"] = peaks
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
