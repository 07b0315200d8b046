"""Write the fused form of a checkpoint, and verify that it computes the same."""

import copy
import dataclasses
import logging
from pathlib import Path

import torch

from aethernet.checkpoints.checkpoint import Checkpoint, save_checkpoint
from aethernet.checkpoints.verification import (
    Difference,
    compare,
    exact_float32,
    natural_image,
    noise_image,
)
from aethernet.errors import VerificationError
from aethernet.files import check_target

_log = logging.getLogger(__name__)

# Largest error of a written file against its source, by dtype. Adding the kernels costs
# about 1e-6 in float32. Rounding the weights to float16 changes the output of trained
# and fresh networks by 1e-4 to 7e-4, so the limit there is half an 8-bit step.
MAX_ERRORS = {torch.float32: 1e-4, torch.float16: 0.5 / 255}

# LR size of the pictures compared: larger than any kernel, small enough for a CPU.
_HEIGHT, _WIDTH = 64, 96


def fuse_checkpoint(
    source: Checkpoint, target: str | Path, dtype: torch.dtype = torch.float32
) -> dict[str, Difference]:
    """Write the fused form of a checkpoint.

    The written file is read again and compared with the source's network on a
    photograph and on noise. It is kept only if no value differs by more than
    `MAX_ERRORS`. A source in fused form is written with bare keys and our metadata.

    Args:
        source: either form; the comparison runs on its `device`.
        target: `.safetensors` or `.pth`.
        dtype: of the written weights, a key of `MAX_ERRORS`.

    Returns:
        By picture: the written file against the source.

    Raises:
        VerificationError: when the file would differ too much; nothing is written.
        AetherError: when the target cannot be written, or is the source.
    """
    target = Path(target)
    check_target(target, source.path)  # training cannot go on from a fused file
    fused = copy.deepcopy(source.build()).fuse()
    differences: dict[str, Difference] = {}
    save_checkpoint(
        fused,
        target,
        dtype,
        lambda written: differences.update(_check(source, written)),
    )
    return differences


def _check(source: Checkpoint, written: Checkpoint) -> dict[str, Difference]:
    """Compare a written file with its source."""
    reference = source.reference()
    network = dataclasses.replace(written, device=source.device).reference()
    limit = MAX_ERRORS[written.dtype]
    differences = {}
    for name, make in (("natural image", natural_image), ("noise", noise_image)):
        _log.info("checking %s", name)
        image = make(_HEIGHT, _WIDTH, source.in_chans).to(source.device)
        with torch.inference_mode(), exact_float32():
            difference = compare(network(image), reference(image))
        if not difference.max_abs_error <= limit:
            raise VerificationError(
                f"Not written: the fused form differs on the {name} "
                f"({difference}; the limit is {limit:.1e}).",
                written.path,
            )
        differences[name] = difference
    return differences
