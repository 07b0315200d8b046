"""Checkpoint in, fused checkpoint out, proven to compute the same."""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from aethernet.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
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

# Largest error against the training form that a written file may have, by its dtype.
# Adding the kernels costs about 1e-6 in float32. Rounding the weights to float16 moves
# trained and fresh networks by 1e-4 to 7e-4, so the limit there is half an 8-bit step.
LIMITS = {torch.float32: 1e-4, torch.float16: 0.5 / 255}

# LR size of the pictures compared: more than any kernel, small enough for a CPU.
_HEIGHT, _WIDTH = 64, 96


@dataclass(frozen=True)
class Fusion:
    """What `fuse_checkpoint` found and proved."""

    source: Checkpoint
    was_fused: bool
    """Whether the source was in fused form already."""
    differences: dict[str, Difference]
    """By picture: the written file, read again, against the source's network."""


def fuse_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    model_type: str | None = None,
    scale: int | None = None,
    param_key: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Fusion:
    """Write the fused form of a checkpoint.

    The written file is read again and compared with the source's network on a
    photograph and on noise; it takes its place only when it differs by no more than
    `LIMITS`. A source in fused form is written the same way: bare keys, our metadata.

    Args:
        source: any checkpoint `load_checkpoint` reads.
        target: `.safetensors` or `.pth`.
        model_type, scale: what the user believes the file is; None reads the weights.
        param_key: as for `load_checkpoint`.
        dtype: of the written weights, a key of `LIMITS`.
        device: where the comparison runs.

    Raises:
        CheckpointError, ContradictionError: about the source.
        VerificationError: when the file would differ too much; nothing is written.
        AetherError: when the target cannot be written, or is the source.
    """
    source, target = Path(source), Path(target)
    checkpoint = load_checkpoint(source, param_key)
    checkpoint.expect(model_type, scale)
    check_target(target, source)  # training cannot go on from a fused file
    reference = checkpoint.build()
    fused = copy.deepcopy(reference).fuse()
    differences: dict[str, Difference] = {}

    def check(written: Checkpoint) -> None:
        network = written.build().to(device)
        channels = checkpoint.hyperparameters["in_chans"]
        for name, make in (("natural image", natural_image), ("noise", noise_image)):
            _log.info("checking %s", name)
            image = make(_HEIGHT, _WIDTH, channels).to(device)
            with torch.inference_mode(), exact_float32():
                difference = compare(network(image), reference.to(device)(image))
            if not difference.max_abs_error <= LIMITS[dtype]:
                raise VerificationError(
                    f"{target} was not written: fused, it differs on the {name} "
                    f"({difference}; the limit is {LIMITS[dtype]:.1e})."
                )
            differences[name] = difference

    save_checkpoint(fused, target, dtype, check)
    return Fusion(checkpoint, checkpoint.hyperparameters["fused_init"], differences)
