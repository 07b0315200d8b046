"""Files that were damaged at random: one result or one error line, in bounded time.

`pytest -n 0 -s -m fuzz` runs each kind for a minute; FUZZ_SECONDS and FUZZ_SEED in the
environment change that. It prints what it counted.
"""

import os
import random
import sys
import time
import zlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

import picture_files
import PIL.Image
from helpers import lively_network, photo, repeating_onnx, write
from limited import Attempt, serving
from picture_files import XMP, exif_block, jxl_file

from aethernet.checkpoints.checkpoint import save_checkpoint

pytestmark = [
    pytest.mark.fuzz,
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="limits processes as Linux can"
    ),
]

SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))

# Of one file that is refused or read; ordinary ones take less than a second.
MOST_SECONDS, MOST_MEGABYTES = 10, 1000

EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80")


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A file with up to eight changes."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(changed) + 1)
        match chance.randrange(6):
            case 0:  # a bit
                place %= len(changed) or 1
                changed[place : place + 1] = bytes(
                    byte ^ 1 << chance.randrange(8)
                    for byte in changed[place : place + 1]
                )
            case 1:  # a byte, mostly near the start, where headers are
                place = chance.randrange(min(len(changed), 300) + 1)
                changed[place : place + 1] = chance.randbytes(1)
            case 2:
                changed[place : place + 4] = chance.choice(EXTREMES)
            case 3:
                del changed[place:]
            case 4:
                del changed[place : place + chance.randint(1, 64)]
            case _:
                changed[place:place] = changed[place : place + chance.randint(1, 64)]
    return bytes(changed)


def with_right_sums(data: bytes) -> bytes:
    """A PNG file with right checksums, for more than them to fail."""
    made, place = data[:8], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if place + 12 + size > len(data):
            break
        body = data[place + 4 : place + 8 + size]
        made += data[place : place + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        place += 12 + size
    return made + data[place:]


def old_checkpoint(path: Path) -> None:
    weights = lively_network(depths=(1,)).state_dict()
    torch.save({"params": weights}, path, _use_new_zipfile_serialization=False)


def checkpoint(path: Path) -> None:
    save_checkpoint(lively_network(depths=(1,)), path)


def picture(path: Path) -> None:
    write(photo(40, 50, 4 if path.suffix in (".webp", ".avif") else 3), path)


def png(path: Path) -> None:
    """With texts, profiles in texts, EXIF and a resolution."""
    exif = exif_block(maker_note=True)
    digits = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
    picture_files.png(
        path,
        (b"tEXt", b"Author\0me"),
        (b"iTXt", b"Title\0\1\0\0\0" + zlib.compress(b"a title")),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(digits)),
        (b"eXIf", exif),
        (b"pHYs", b"\0\0\0\1\0\0\0\2\0"),
        pixels=photo(40, 50, 4),
    )


def jpeg(path: Path) -> None:
    image = PIL.Image.fromarray(photo(40, 50))
    exif = exif_block(maker_note=True, thumbnail=b"\xff\xd8\xff\xd9")
    image.save(path, exif=exif, xmp=XMP, comment=b"by hand", dpi=(300, 300))


def gif(path: Path) -> None:
    image = PIL.Image.fromarray(photo(40, 50)).convert("P")
    image.save(path, comment=b"by hand")


def animation(path: Path) -> None:
    frames = [PIL.Image.fromarray(photo(20, 25 - n)).resize((25, 20)) for n in (0, 5)]
    first, *rest = [
        frame.convert("P") if path.suffix == ".gif" else frame for frame in frames
    ]
    first.save(path, save_all=True, append_images=rest, duration=[100, 50])


def jxl(path: Path) -> None:
    pytest.importorskip("pillow_jxl", reason="needs the extra formats")
    jxl_file(path, "many")


VIDEOS = (".mkv", ".mp4", ".ts", ".avi")


def video(path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as file:
        stream = file.add_stream(
            "ffv1" if path.suffix == ".mkv" else "libx264", rate=25
        )
        file.metadata["title"] = file.metadata["service_name"] = "A title"
        stream.width, stream.height, stream.pix_fmt = 50, 40, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(photo(40, 50), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


KINDS = {
    "new.pth": checkpoint,
    "old.pth": old_checkpoint,
    "model.safetensors": checkpoint,
    "model.onnx": repeating_onnx,
    "in.png": png,
    "in.jpg": jpeg,
    **{f"in{s}": picture for s in (".webp", ".tif", ".avif", ".bmp")},
    "in.gif": gif,
    **{f"moving{s}": animation for s in (".gif", ".png", ".webp", ".avif")},
    "in.jxl": jxl,
    **{f"in{s}": video for s in VIDEOS},
}


def words(path: Path, model: Path) -> list[object]:
    if path.suffix in (".pth", ".safetensors"):
        return ["info", path]
    if path.suffix == ".onnx":
        source = write(photo(), path.with_name("good.png"))
        return ["upscale", source, "-o", path.with_name("out.png"), "--model", path]
    out = path.with_name("out.mkv" if path.suffix in VIDEOS else "out.png")
    plainly = ["--runtime", "pytorch", "--device", "cpu", "--overwrite"]
    return ["upscale", path, "-o", out, "--model", model, *plainly]


def is_wrong(done: Attempt) -> bool:
    lines = done.error.splitlines()
    clean = done.code == 0 or (done.code == 1 and lines[-1:] != [])
    told = "Traceback" not in done.error and "unexpected" not in done.error
    within = done.seconds < MOST_SECONDS and done.megabytes < MOST_MEGABYTES
    return not (clean and told and within)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(name, tmp_path):
    path, model = tmp_path / name, tmp_path / "tiny.safetensors"
    KINDS[name](path)
    save_checkpoint(lively_network(embed_dim=4, depths=(1,)), model)
    whole, chance = path.read_bytes(), random.Random(f"{name} {SEED}")
    wrong, codes, most = [], [0, 0], [0.0, 0.0]
    with serving(AETHERNET_CACHE=str(tmp_path / "cache")) as server:
        assert server.run(*words(path, model)).code == 0  # as it is
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            data = mutated(whole, chance)
            if name == "in.png" and chance.random() < 0.8:
                data = with_right_sums(data)
            path.write_bytes(data)
            done = server.run(*words(path, model))
            if is_wrong(done):
                wrong.append(done)
                kept = os.environ.get("FUZZ_KEEP")  # a folder for files to look at
                if kept:
                    Path(kept, f"{len(wrong)}-{SEED}-{name}").write_bytes(data)
                continue
            codes[done.code] += 1
            most = [max(most[0], done.seconds), max(most[1], done.megabytes)]
            left = [one for one in os.listdir(tmp_path) if ".part" in one]
            assert not left, left
    read, refused = codes
    print(
        f"\n{name}: {read + refused} files, {read} read, {refused} refused; most "
        f"{most[0]:.1f} CPU seconds, {most[1]:.0f} MB; {len(wrong)} wrong"
    )
    assert not wrong, wrong[:3]
