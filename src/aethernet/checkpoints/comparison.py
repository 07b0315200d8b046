"""Compare the output of a written file with the network it was made from."""

import logging
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from aethernet.checkpoints.checkpoint import Checkpoint
from aethernet.checkpoints.tolerances import Tolerance
from aethernet.checkpoints.verification import (
    Difference,
    compare,
    exact_float32,
    natural_image,
    noise_image,
    verification_frames,
)
from aethernet.errors import VerificationError

_log = logging.getLogger(__name__)

# LR sizes (batch, height, width) that a file with free sizes has to accept.
_FREE_SIZES = ((1, 1, 1), (1, 7, 5), (2, 13, 17), (3, 33, 31), (1, 64, 96))
_FRAME_SIZE = (64, 96)


def verification_images(
    checkpoint: Checkpoint, fixed: tuple[int, int, int] | None
) -> Iterator[tuple[str, Tensor]]:
    """Images to verify a file with, by name: `(B, in_chans, H, W)`, float32, 0..1.

    Args:
        checkpoint: the source of the file.
        fixed: batch, height and width of the file; None adds images of several sizes.
    """
    channels = checkpoint.in_chans
    batch, height, width = fixed or (1, *_FRAME_SIZE)
    for name, frame in verification_frames(height, width, channels).items():
        yield name, frame.expand(batch, -1, -1, -1)
    for count, rows, columns in () if fixed else _FREE_SIZES:
        images = [natural_image, noise_image]
        batch_of = [images[i % 2](rows, columns, channels) for i in range(count)]
        yield f"{count} x {columns}x{rows}", torch.cat(batch_of)


def verify_outputs(
    run: Callable[[Tensor], Tensor],
    file: str,
    checkpoint: Checkpoint,
    images: Iterable[tuple[str, Tensor]],
    tolerance: Tolerance | None,
    half: bool = False,
) -> dict[str, Difference]:
    """Compare what a file computes with its checkpoint in PyTorch float32.

    Args:
        run: computes the file, `(B, in_chans, H, W)` float32 to any float type.
        file: what it is, for messages: "ONNX file".
        checkpoint: PyTorch computes on its `device`.
        images: by name, `(B, in_chans, H, W)`, float32, 0..1.
        tolerance: None accepts all finite values of the right shape.
        half: whether the file computes in float16, which overflows.

    Returns:
        By the name of the image.

    Raises:
        VerificationError: at the first image on which the outputs differ too much.
    """
    reference = checkpoint.reference()
    differences: dict[str, Difference] = {}
    for name, image in images:
        _log.info("checking %s", name)
        with torch.inference_mode(), exact_float32():
            expected = reference(image.to(checkpoint.device)).cpu()
        output = run(image)
        for what, values in ((file, output), ("network itself", expected)):
            if not torch.isfinite(values).all():
                raise VerificationError(
                    f"The {what} gives NaN or infinite values on {name}"
                    f"{' (float16 ends at 65504)' if half else ''}. "
                    "Nothing was written."
                )
        if output.shape != expected.shape:
            raise VerificationError(
                f"On {name} the {file} gives the shape {[*output.shape]}, and "
                f"PyTorch gives {[*expected.shape]}. Nothing was written."
            )
        differences[name] = compare(output, expected)
        problem = tolerance and tolerance.problem(output, expected)
        if problem:
            raise VerificationError(
                f"The {file} differs from PyTorch on {name}: {differences[name]}, "
                f"{problem}. Nothing was written."
            )
    return differences
