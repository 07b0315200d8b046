"""Compare the output of a written file with the network it was made from.

The network's own output comes from PyTorch where it is loaded anyway, as for a `.pth`
file, and where it is asked for by its device or for a full comparison. Else NumPy
computes it (`reference`): the import of PyTorch alone costs more than all of it. The
tests compare both on every kind of network.
"""

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aethernet.checkpoints.checkpoint import Checkpoint
from aethernet.checkpoints.reference import evaluate
from aethernet.checkpoints.tolerances import Tolerance
from aethernet.checkpoints.verification import (
    Difference,
    Image,
    compare,
    natural_image,
    noise_image,
    verification_frames,
)
from aethernet.errors import VerificationError

_log = logging.getLogger(__name__)

Run = Callable[[Image], npt.NDArray[Any]]
"""Computes a file or a network: `(B, in_chans, H, W)` float32 to any float type."""

VERIFICATIONS = ("quick", "full")
"""How much is compared: small pictures, in about a second for `aether_small`; or
larger ones of more sizes, by PyTorch where it is installed."""

# LR sizes (height, width): of the photograph and the noise, and of the other frames.
_QUICK_FRAMES = (16, 24), (12, 16)
_FULL_FRAMES = (64, 96), (64, 96)

# LR sizes (batch, height, width) that a file with free sizes has to accept.
_QUICK_SIZES = ((1, 1, 1), (2, 7, 5))
_FULL_SIZES = ((1, 1, 1), (1, 7, 5), (2, 13, 17), (3, 33, 31), (1, 64, 96))


@dataclass(frozen=True, eq=False)
class Case:
    """A picture to compare on."""

    name: str
    image: Image
    """`(B, in_chans, H, W)`, float32, 0..1."""
    expected: npt.NDArray[Any]
    """The output of the network itself."""


@dataclass(frozen=True, eq=False)
class Network:
    """The network of a checkpoint, to compare files with."""

    by: str
    """What computes it: "PyTorch float32" or "NumPy float32"."""
    run: Run

    def cases(self, images: Iterable[tuple[str, Image]]) -> list[Case]:
        """Compute these images, by name.

        Raises:
            VerificationError: when the network gives values that are not finite.
        """
        found = []
        for name, image in images:
            expected = self.run(image)
            if not np.isfinite(expected).all():
                raise VerificationError(
                    f"The network itself gives NaN or infinite values on {name}. "
                    "Nothing was written."
                )
            found.append(Case(name, image, expected))
        return found


def network_of(checkpoint: Checkpoint, verify: str = "quick") -> Network:
    """The network to compare files with.

    Args:
        checkpoint: PyTorch computes on its `device`, if it has one.
        verify: a member of `VERIFICATIONS`.
    """
    loaded = "torch" in sys.modules
    wanted = verify == "full" and importlib.util.find_spec("torch") is not None
    if checkpoint.device is None and not (loaded or wanted):
        folded = checkpoint.folded
        return Network("NumPy float32", lambda image: evaluate(folded, image))
    from aethernet.checkpoints.rewrites import run_network

    network, device = checkpoint.build(), checkpoint.device or "cpu"
    return Network("PyTorch float32", lambda image: run_network(network, image, device))


def verification_images(
    channels: int, verify: str = "quick", fixed: tuple[int, int, int] | None = None
) -> Iterator[tuple[str, Image]]:
    """Images to verify a file with, by name: `(B, channels, H, W)`, float32, 0..1.

    Args:
        channels: of the images.
        verify: a member of `VERIFICATIONS`.
        fixed: batch, height and width of the file; None adds images of several sizes.
    """
    full = verify == "full"
    ordinary, others = _FULL_FRAMES if full else _QUICK_FRAMES
    if fixed:
        batch, height, width = fixed
        ordinary = others = height, width
    else:
        batch = 1
    frames = verification_frames(*others, channels)
    frames["natural image"] = natural_image(*ordinary, channels)
    frames["noise"] = noise_image(*ordinary, channels)
    for name, frame in frames.items():
        yield name, np.repeat(frame, batch, 0)
    sizes = _FULL_SIZES if full else _QUICK_SIZES
    for count, rows, columns in () if fixed else sizes:
        images = [natural_image, noise_image]
        batch_of = [images[i % 2](rows, columns, channels) for i in range(count)]
        yield f"{count} x {columns}x{rows}", np.concatenate(batch_of)


def verify_outputs(
    run: Run,
    file: str,
    cases: Iterable[Case],
    tolerance: Tolerance | None,
    half: bool = False,
) -> dict[str, Difference]:
    """Compare what a file computes with its network.

    Args:
        run: computes the file.
        file: what it is, for messages: "ONNX file".
        cases: to compare on.
        tolerance: None accepts all finite values of the right shape.
        half: whether the file computes in float16, which overflows.

    Returns:
        By the name of the image.

    Raises:
        VerificationError: at the first image on which the outputs differ too much.
    """
    differences: dict[str, Difference] = {}
    for case in cases:
        name, expected = case.name, case.expected
        _log.info("checking %s", name)
        output = run(case.image)
        if not np.isfinite(output).all():
            raise VerificationError(
                f"The {file} gives NaN or infinite values on {name}"
                f"{' (float16 ends at 65504)' if half else ''}. Nothing was written."
            )
        if output.shape != expected.shape:
            raise VerificationError(
                f"On {name} the {file} gives the shape {[*output.shape]}, and the "
                f"network gives {[*expected.shape]}. Nothing was written."
            )
        differences[name] = compare(output, expected)
        problem = tolerance and tolerance.problem(output, expected)
        if problem:
            raise VerificationError(
                f"The {file} differs from the network on {name}: {differences[name]}, "
                f"{problem}. Nothing was written."
            )
    return differences
