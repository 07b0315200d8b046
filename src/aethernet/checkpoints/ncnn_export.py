"""Write checkpoints as ncnn files, and verify that these compute the same."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aethernet.checkpoints.checkpoint import Checkpoint
from aethernet.checkpoints.comparison import verification_images, verify_outputs
from aethernet.checkpoints.ncnn import check_ncnn_target, write_ncnn
from aethernet.checkpoints.ncnn_reader import NcnnModel, read_ncnn
from aethernet.checkpoints.rewrites import fold_tensors
from aethernet.checkpoints.tolerances import Tolerance
from aethernet.checkpoints.verification import (
    Difference,
    natural_image,
    verification_frames,
)
from aethernet.errors import MissingExtraError, VerificationError, import_optional

_log = logging.getLogger(__name__)

# `(C, H, W)` -> `(C, scale * H, scale * W)`
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class NcnnOptions:
    """How ncnn files are written, and how close to PyTorch they have to compute."""

    precision: str = "float32"
    """Of the weights: "float32" or "float16"."""
    atol: float | None = None
    rtol: float | None = None
    """As in `onnx.ExportOptions`."""


@dataclass(frozen=True)
class NcnnExport:
    """How the files were verified."""

    differences: dict[str, Difference]
    """By image: the written files against PyTorch float32."""
    library: str | None
    """The release of ncnn that computed them. None: ncnn is not installed, and NumPy
    computed them."""


def export_ncnn(
    source: Checkpoint, target: str | Path, options: NcnnOptions | None = None
) -> NcnnExport:
    """Write a checkpoint as ncnn files: "data" to "output", 0..1, of any size.

    Both files are read back and computed with NumPy on small pictures, and with the
    package ncnn, if it is installed, on the pictures that ONNX files are verified with.
    The files are kept only if all outputs agree with PyTorch float32. With float16
    weights NumPy rounds each result to float16, as programs that use Vulkan do. With
    float32 weights it does so in a second run, which only warns.

    Args:
        source: either form; PyTorch computes on its `device`.
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
    differences: dict[str, Difference] = {}
    library = None

    def check(param: Path, weights: Path) -> None:
        nonlocal differences, library
        model = read_ncnn(param, weights)
        differences = _verify_in_numpy(model, source, tolerance, rounded=half)
        if not half:
            _warn_of_float16(model, source)
        try:
            ncnn = import_optional("ncnn", "ncnn")
        except MissingExtraError as error:
            _log.info("not run in ncnn: %s", error)
            return
        library = f"ncnn {ncnn.__version__}"
        in_numpy = {f"{name} (NumPy)": found for name, found in differences.items()}
        in_ncnn = verify_outputs(
            _batched(_package_run(ncnn, param, weights)),
            "ncnn file",
            source,
            verification_images(source, None),
            tolerance,
        )
        differences = {**in_ncnn, **in_numpy}

    img_range = source.hyperparameters.get("img_range", 1.0)
    folded = fold_tensors(source.state_dict, img_range)
    write_ncnn(folded, target, options.precision, check)
    return NcnnExport(differences, library)


def _verify_in_numpy(
    model: NcnnModel, source: Checkpoint, tolerance: Tolerance, rounded: bool
) -> dict[str, Difference]:
    return verify_outputs(
        _batched(lambda image: model.run(image, rounded=rounded)),
        "ncnn file computed with NumPy",
        source,
        _small_images(source.in_chans),
        tolerance,
        rounded,
    )


def _warn_of_float16(model: NcnnModel, source: Checkpoint) -> None:
    """Warn if the files are wrong in programs that keep features in float16."""
    try:
        tolerance = Tolerance.of("float16", None, None)
        _verify_in_numpy(model, source, tolerance, rounded=True)
    except VerificationError as error:
        _log.warning("Programs that use Vulkan compute in float16. There, %s", error)


def _small_images(channels: int) -> Iterable[tuple[str, Tensor]]:
    """Pictures that NumPy computes in a few seconds, the extreme ones among them."""
    yield from verification_frames(24, 32, channels).items()
    for height, width in ((1, 1), (7, 5)):
        yield f"1 x {width}x{height}", natural_image(height, width, channels)


def _batched(run: Run) -> Callable[[Tensor], Tensor]:
    """ncnn has no batches: their pictures are run one by one."""

    def run_all(batch: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([run(image) for image in batch.numpy()]))

    return run_all


def _package_run(ncnn: Any, param: Path, weights: Path) -> Run:
    """Run the files in ncnn on the CPU, in float32.

    Raises:
        VerificationError: when ncnn does not load or run them.
    """
    net = ncnn.Net()
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{name}", False)
    if net.load_param(str(param)) or net.load_model(str(weights)):
        raise VerificationError("ncnn does not load the files. Nothing was written.")

    def run(image: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        # A Mat does not keep the array alive that it looks at.
        content = np.ascontiguousarray(image)
        extractor.input("data", ncnn.Mat(content).clone())
        code, result = extractor.extract("output")
        if code:
            raise VerificationError("ncnn cannot run the files. Nothing was written.")
        output = np.array(result)
        return output.reshape(-1, *output.shape[-2:])

    return run
