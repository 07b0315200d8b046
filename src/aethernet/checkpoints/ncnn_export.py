"""Write checkpoints as ncnn files, and verify that these compute the same."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aethernet.checkpoints.checkpoint import Checkpoint
from aethernet.checkpoints.comparison import (
    Case,
    Run,
    network_of,
    verification_images,
    verify_outputs,
)
from aethernet.checkpoints.ncnn import check_ncnn_target, write_ncnn
from aethernet.checkpoints.ncnn_reader import NcnnModel, read_ncnn
from aethernet.checkpoints.tolerances import Tolerance
from aethernet.checkpoints.verification import Difference, Image
from aethernet.errors import MissingExtraError, VerificationError, import_optional

_log = logging.getLogger(__name__)

# `(C, H, W)` -> `(C, scale * H, scale * W)`
RunOne = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class NcnnOptions:
    """How ncnn files are written, and how close to the network they compute."""

    precision: str = "float32"
    """Of the weights: "float32" or "float16"."""
    atol: float | None = None
    rtol: float | None = None
    """As in `onnx.ExportOptions`."""
    verify: str = "quick"
    """How much is compared, a member of `comparison.VERIFICATIONS`."""


@dataclass(frozen=True)
class NcnnExport:
    """How the files were verified."""

    differences: dict[str, Difference]
    """By image: the written files against the reference."""
    reference: str
    """What computed the reference, e.g. "NumPy float32"."""
    library: str | None
    """The release of ncnn that computed them. None: ncnn is not installed, and NumPy
    computed them."""


def export_ncnn(
    source: Checkpoint, target: str | Path, options: NcnnOptions | None = None
) -> NcnnExport:
    """Write a checkpoint as ncnn files: "data" to "output", 0..1, of any size.

    Both files are read back and computed with NumPy on small pictures, and with the
    package ncnn, if it is installed, on the pictures that ONNX files are verified with.
    The files are kept only if all outputs agree with the network. With float16
    weights NumPy rounds each result to float16, as programs that use Vulkan do. With
    float32 weights it does so in a second run, which only warns.

    Args:
        source: either form.
        target: `.param`; the `.bin` file is written beside it.
        options: None is `NcnnOptions()`.

    Raises:
        VerificationError: when the files would not compute the same; nothing is
            written.
        AetherError: when the network cannot be written so, or the files not written.
    """
    target, options = Path(target), options or NcnnOptions()
    tolerance = Tolerance.of(options.precision, options.atol, options.rtol)
    check_ncnn_target(target)
    half = options.precision == "float16"
    network = network_of(source, options.verify)
    cases = network.cases(verification_images(source.in_chans))
    differences: dict[str, Difference] = {}
    library = None

    def check(param: Path, weights: Path) -> None:
        nonlocal differences, library
        model = read_ncnn(param, weights)
        differences = _verify_in_numpy(model, cases, tolerance, rounded=half)
        if not half:
            _warn_of_float16(model, cases[2:])  # the extreme and the smallest ones
        try:
            ncnn = import_optional("ncnn", "ncnn")
        except MissingExtraError as error:
            _log.info("not run in ncnn: %s", error)
            return
        library = f"ncnn {ncnn.__version__}"
        more = cases
        if options.verify == "full":
            images = verification_images(source.in_chans, options.verify)
            more = network.cases(images)
        run = _batched(_package_run(ncnn, param, weights))
        in_ncnn = verify_outputs(run, "ncnn file", more, tolerance)
        in_numpy = {f"{name} (NumPy)": found for name, found in differences.items()}
        differences = {**in_ncnn, **in_numpy}

    write_ncnn(source.folded, target, options.precision, check)
    return NcnnExport(differences, network.by, library)


def _verify_in_numpy(
    model: NcnnModel, cases: Iterable[Case], tolerance: Tolerance, rounded: bool
) -> dict[str, Difference]:
    run = _batched(lambda image: model.run(image, rounded=rounded))
    name = "ncnn file computed with NumPy"
    return verify_outputs(run, name, cases, tolerance, rounded)


def _warn_of_float16(model: NcnnModel, cases: Iterable[Case]) -> None:
    """Warn if the files are wrong in programs that keep features in float16."""
    try:
        _verify_in_numpy(model, cases, Tolerance.of("float16"), rounded=True)
    except VerificationError as error:
        _log.warning("Programs that use Vulkan compute in float16. There, %s", error)


def _batched(run: RunOne) -> Run:
    """ncnn has no batches: their pictures are run one by one."""

    def run_all(batch: Image) -> np.ndarray:
        return np.stack([run(image) for image in batch])

    return run_all


def _package_run(ncnn: Any, param: Path, weights: Path) -> RunOne:
    """Run the files in ncnn on the CPU, in float32.

    Raises:
        VerificationError: when ncnn does not load or run them.
    """
    net = ncnn.Net()
    net.opt.num_threads = 1  # on small pictures, threads mostly wait for each other
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{name}", False)
    with _ascii_path(param) as layers, _ascii_path(weights) as content:
        if net.load_param(str(layers)) or net.load_model(str(content)):
            raise VerificationError(
                "ncnn does not load the files. Nothing was written."
            )

    def run(image: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        # A Mat does not keep the array alive that it looks at.
        pixels = np.ascontiguousarray(image)
        extractor.input("data", ncnn.Mat(pixels).clone())
        code, result = extractor.extract("output")
        if code:
            raise VerificationError("ncnn cannot run the files. Nothing was written.")
        output = np.array(result)
        return output.reshape(-1, *output.shape[-2:])

    return run


@contextlib.contextmanager
def _ascii_path(path: Path) -> Iterator[Path]:
    """The file, or a copy of it: on Windows ncnn opens no other names than ASCII."""
    if str(path).isascii():
        yield path
        return
    usual = tempfile.gettempdir()
    # On Windows the usual folder has the user's name in it.
    place = usual if usual.isascii() else os.environ.get("PROGRAMDATA")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(shutil.copyfile(path, Path(folder, f"copy{path.suffix}")))
