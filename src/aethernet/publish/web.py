"""A folder with a web page that upscales in the visitor's browser, with any models.

The page itself is TypeScript, in the folder `web/` of the repository. It is built there
with npm, once for all models; wheels of a release bring it. Here the models are added
to it: for each an ONNX file with float32 arithmetic, one with float16 arithmetic, the
weights for the kernels on a processor, and the right result for a small picture, with
which the page checks every device before it uses it.
"""

import base64
import hashlib
import json
import logging
import math
import shutil
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aethernet.checkpoints.checkpoint import Checkpoint, load_checkpoint
from aethernet.checkpoints.folded import Folded
from aethernet.checkpoints.onnx import ExportOptions, export_onnx
from aethernet.checkpoints.onnx_check import open_session, session_run
from aethernet.checkpoints.reference import evaluate
from aethernet.errors import AetherError, VerificationError, first_line
from aethernet.files import check_target_folder, replacing_folder, sha256_of
from aethernet.publish.page_model import page_model
from aethernet.runtimes.native.build import PAGE_KERNELS, is_current
from aethernet.version import PACKAGE

_log = logging.getLogger(__name__)

LIST = "models.json"
"""The list of models, which tells a page of ours from another folder."""

CHECK_SIDE = 12
"""Pixels along each side of the picture with which a device is checked."""

CARD_BYTES, PROCESSOR_BYTES = 2**27, 2**26
"""Of the largest tensor of a tile. Every graphics card with WebGPU takes one of 2**27
bytes; the kernels for the processor never hold a whole one."""

_NEEDS_NODE = (
    "Install Node.js 20.19 or newer, which has npm: AetherNet builds the page with it."
)


def write_page(models: Sequence[Path], target: str | Path) -> list[str]:
    """Make a folder that any web server can offer.

    Args:
        models: checkpoints, at least one; the page starts with the first.
        target: a new or empty folder, or an earlier page, which is replaced.

    Returns:
        The names of the models.

    Raises:
        AetherError: when the page is not built and cannot be, a model cannot be read or
            exported, or the folder cannot be written. Nothing is written then.
        VerificationError: when an exported file would not compute what the model does.
    """
    target = Path(target)
    _check_place(target)
    checkpoints = [load_checkpoint(path) for path in models]
    names = _names(models)
    page, kernels = built_page(), page_kernels()
    with replacing_folder(target) as folder:
        shutil.copytree(page, folder, dirs_exist_ok=True)
        (folder / "models").mkdir()
        added = [_add_file(folder, name, content) for name, content in kernels.items()]
        entries = [
            {**_add_model(folder, name, checkpoint), "kernels": added}
            for name, checkpoint in zip(names, checkpoints, strict=True)
        ]
        content = json.dumps(entries)
        (folder / LIST).write_text(f"{content}\n", "utf-8")
    return names


def check_picture(channels: int) -> np.ndarray:
    """The picture with which a device is checked.

    Returns:
        `(1, channels, CHECK_SIDE, CHECK_SIDE)`, float32: steps of 8 bits, 0..1.
    """
    rows, columns = np.mgrid[:CHECK_SIDE, :CHECK_SIDE]
    planes = [(31 * c + 7 * rows + 13 * columns) % 64 for c in range(channels)]
    return np.stack(planes)[None].astype(np.float32) * np.float32(4 / 255)


def built_page() -> Path:
    """The folder of the built page: in the package, or built in the clone.

    Raises:
        AetherError: when there is none, and it cannot be built here.
    """
    shipped = PACKAGE / "page"
    if shipped.is_dir():
        return shipped
    source = PACKAGE.parents[1] / "web"
    if not (source / "package.json").is_file():
        raise AetherError(
            "This installation does not have the page.",
            hint="Install a wheel of a release, or `pip install -e` a clone.",
        )
    if _is_older(source / "build/index.html", source):
        _build(source)
    return source / "build"


def page_kernels() -> dict[str, bytes]:
    """The kernels in WebAssembly by the names of their files, best first.

    Raises:
        AetherError: when they are missing, or not built from the sources beside them.
    """
    kernels = {path.name: path.read_bytes() for path in PAGE_KERNELS if path.is_file()}
    if len(kernels) < len(PAGE_KERNELS) or not all(map(is_current, kernels.values())):
        raise AetherError(
            "The page's kernels have not been built, or from other sources.",
            PAGE_KERNELS[0].parent,
            "Install a wheel of a release, or build them in a clone: "
            "pip install ziglang, then python tools/build_native.py.",
        )
    return kernels


def _check_place(target: Path) -> None:
    check_target_folder(target)
    if target.is_dir() and any(target.iterdir()) and not (target / LIST).is_file():
        raise AetherError(
            "This folder holds something else than a page of AetherNet.",
            target,
            "Name a new or an empty folder.",
        )


def _names(models: Sequence[Path]) -> list[str]:
    """What the page calls the models; each name once."""
    stems = [path.stem for path in models]
    for name in stems:
        if stems.count(name) > 1:
            raise AetherError(
                f"Two models are called {name}.", hint="Rename one of the files."
            )
    return stems


def _is_older(built: Path, source: Path) -> bool:
    """Whether the page is missing, or older than one of its sources."""
    if not built.is_file():
        return True
    files = [*(source / "src").iterdir(), *(source / "public").iterdir()]
    files += [path for path in source.iterdir() if path.is_file()]
    return max(path.stat().st_mtime for path in files) > built.stat().st_mtime


def _build(source: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise AetherError("The page is not built yet.", source, _NEEDS_NODE)
    lock, installed = (
        source / "package-lock.json",
        source / "node_modules/.package-lock.json",
    )
    steps = [["run", "page"]]
    if not installed.is_file() or installed.stat().st_mtime < lock.stat().st_mtime:
        steps.insert(0, ["ci", "--no-audit", "--no-fund"])
    for step in steps:
        _log.info("npm %s", " ".join(step))
        done = subprocess.run(
            [npm, *step], cwd=source, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = first_line(AetherError(done.stderr.strip() or done.stdout.strip()))
            raise AetherError(
                f"`npm {' '.join(step)}` failed: {said}",
                source,
                f"Run it there to see all of it. {_NEEDS_NODE}",
            )


def _add_model(folder: Path, name: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Write a model's files, and return its entry in the list."""
    folded, picture = checkpoint.folded, check_picture(checkpoint.in_chans)
    expected = evaluate(folded, picture)
    full = _export(folder, name, checkpoint, ExportOptions(True, half_weights=True))
    in_half = full is not None and _is_exact(folder / full, picture, expected)
    if not in_half:
        if full:
            (folder / full).unlink()
        full = _export(folder, name, checkpoint, ExportOptions(True))
    half = ExportOptions(True, precision="float16", float32_io=True)
    on_card, on_processor = (
        largest_window(size, _widest(folded)) for size in (CARD_BYTES, PROCESSOR_BYTES)
    )
    weights, program = page_model(folded, in_half, on_processor)
    packed = zlib.compress(weights, 9)
    return {
        "name": name,
        "scale": checkpoint.scale,
        "channels": checkpoint.in_chans,
        "most": {"card": on_card, "processor": on_processor},
        "file": full,
        "half": _export(folder, f"{name}-half", checkpoint, half),
        "weights": _add_file(folder, f"{name}.bin", packed),
        "program": program,
        "check": [_steps(picture), _steps(expected)],
    }


def _steps(values: np.ndarray) -> str:
    """Values of 0..1 as 8 bits in base64."""
    steps = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return base64.b64encode(steps.tobytes()).decode("ascii")


def _export(
    folder: Path, name: str, checkpoint: Checkpoint, options: ExportOptions
) -> str | None:
    """Write an ONNX file, with a part of its hash in its name: browsers keep it.

    Returns:
        Its path in the folder; None where the model cannot have such a file.
    """
    path = folder / f"models/{name}.onnx"
    try:
        export_onnx(checkpoint, path, options)
    except VerificationError as error:
        if options.precision == "float32" and not options.half_weights:
            raise
        _log.warning("%s is left out: %s", name, error)
        return None
    kept = path.with_stem(f"{name}-{sha256_of(path)[:12]}")
    path.rename(kept)
    return kept.relative_to(folder).as_posix()


def _add_file(folder: Path, name: str, content: bytes) -> str:
    """Write a file as `_export` does."""
    digest = hashlib.sha256(content).hexdigest()[:12]
    stem, suffix = name.rsplit(".", 1)
    path = folder / f"models/{stem}-{digest}.{suffix}"
    path.write_bytes(content)
    return path.relative_to(folder).as_posix()


def _is_exact(path: Path, picture: np.ndarray, expected: np.ndarray) -> bool:
    """Whether a file computes what is expected to half an 8-bit step."""
    output = session_run(open_session(path.read_bytes()))(picture)
    return float(np.abs(output - expected).max()) <= 0.5 / 255


def largest_window(size: int, widest: int) -> int:
    """Pixels along each side of a tile whose largest tensor takes `size` bytes.

    Args:
        size: in bytes.
        widest: values of that tensor, in float32, for each pixel of the picture.

    Returns:
        A multiple of 16 from 64 to 512.
    """
    side = math.isqrt(size // (4 * widest)) // 16 * 16
    return min(max(side, 64), 512)


def _widest(folded: Folded) -> int:
    """Values per LR pixel in the largest tensor, which decides the size of tiles."""
    widths = [len(block.gate.bias) for block in folded.blocks]
    widest = max(len(folded.before_upsample.bias), *widths)
    enlarged = 1
    for convolution, factor in folded.steps:
        widest = max(widest, len(convolution.bias) * enlarged**2)
        enlarged *= factor
    return max(widest, len(folded.tail.whole.bias) * enlarged**2)
