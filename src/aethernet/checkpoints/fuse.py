"""Write the fused form of a checkpoint, and verify that it computes the same."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aethernet.checkpoints.arrays import Array
from aethernet.checkpoints.checkpoint import (
    Checkpoint,
    check_checkpoint_target,
    write_checkpoint,
)
from aethernet.checkpoints.comparison import (
    network_of,
    verification_images,
    verify_outputs,
)
from aethernet.checkpoints.folded import Convolution, depthwise_kernel
from aethernet.checkpoints.layout import expected_shapes
from aethernet.checkpoints.reference import convolve_depthwise
from aethernet.checkpoints.tolerances import Tolerance
from aethernet.checkpoints.verification import Difference
from aethernet.errors import VerificationError

# Largest error of a written file against its source, by dtype. Adding the kernels costs
# about 1e-6 in float32. Rounding the weights to float16 changes the output of trained
# and fresh networks by 1e-4 to 7e-4, so the limit there is half an 8-bit step.
MAX_ERRORS = {"float32": 1e-4, "float16": 0.5 / 255}


@dataclasses.dataclass(frozen=True)
class Fusion:
    """How a fused file was verified."""

    differences: dict[str, Difference]
    """By picture: the written file against its source."""
    reference: str
    """What computed both, e.g. "NumPy float32"."""


def fuse_checkpoint(
    source: Checkpoint,
    target: str | Path,
    dtype: str = "float32",
    verify: str = "quick",
) -> Fusion:
    """Write the fused form of a checkpoint.

    Each fused kernel is compared with its two branches. The written file is read again
    and compared with the source on a photograph, noise and extreme frames. It is kept
    only if no value differs by more than `MAX_ERRORS`. A source in fused form is
    written with bare keys and our metadata.

    Args:
        source: either form.
        target: `.safetensors` or `.pth`.
        dtype: of the written weights, a key of `MAX_ERRORS`.
        verify: how much is compared, a member of `comparison.VERIFICATIONS`.

    Raises:
        VerificationError: when the file would differ too much; nothing is written.
        AetherError: when the target cannot be written, or is the source.
    """
    target = Path(target)
    # Training cannot go on from a fused file.
    check_checkpoint_target(target, source.path)
    arguments = {**source.hyperparameters, "fused_init": True}
    state_dict = fused_state_dict(source.state_dict, arguments)
    _check_branches(source.state_dict, state_dict)
    found: list[Fusion] = []

    def check(written: Checkpoint) -> None:
        network = network_of(source, verify)
        images = verification_images(source.in_chans, verify)
        limit = Tolerance(atol=MAX_ERRORS[dtype], rtol=0)
        fused = network_of(dataclasses.replace(written, device=source.device), verify)
        try:
            differences = verify_outputs(
                fused.run, "fused form", network.cases(images), limit
            )
        except VerificationError as error:
            raise error.about(written.path) from error
        found.append(Fusion(differences, network.by))

    write_checkpoint(state_dict, arguments, target, dtype, check)
    return found[0]


def fused_state_dict(
    state_dict: Mapping[str, Array], arguments: Mapping[str, Any]
) -> dict[str, Array]:
    """The state dict of the fused form, float64, in the order it is stored.

    Args:
        state_dict: of either form.
        arguments: of the fused form.
    """
    exact = {key: np.asarray(value, np.float64) for key, value in state_dict.items()}
    fused = {}
    for key in expected_shapes(arguments):
        if key not in exact:  # written with its bias
            prefix, _, part = key.rpartition("fused_conv.")
            kernel, bias = depthwise_kernel(exact, prefix)
            fused[key] = kernel if part == "weight" else bias
        else:
            fused[key] = exact[key]
    return fused


def _check_branches(source: Mapping[str, Array], fused: Mapping[str, Array]) -> None:
    """Compare each fused kernel with both branches, which are computed one by one.

    Raises:
        VerificationError: when they differ by more than rounding in float64.
    """
    for prefix, branches in _branches(source):
        kernel = Convolution(*_pair(fused, f"{prefix}fused_conv"))
        channels, _, side, _ = kernel.weight.shape
        noise = np.random.default_rng(0).standard_normal((channels, side, side))
        expected = sum(convolve_depthwise(noise, branch) for branch in branches)
        error = np.abs(convolve_depthwise(noise, kernel) - expected).max()
        if not error <= 1e-9 * (1 + np.abs(expected).max()):
            raise VerificationError(
                f"Not written: the fused kernel {prefix} differs from its branches by "
                f"{error:.1e}."
            )


def _branches(
    source: Mapping[str, Array],
) -> Iterator[tuple[str, tuple[Convolution, Convolution]]]:
    for key in source:
        prefix, found, _ = key.rpartition("lk_conv.weight")
        if found:
            large, small = (
                Convolution(
                    np.asarray(source[f"{prefix}{name}_conv.weight"], np.float64),
                    np.asarray(source[f"{prefix}{name}_bias"], np.float64),
                )
                for name in ("lk", "sk")
            )
            yield prefix, (large, small)


def _pair(state_dict: Mapping[str, Array], name: str) -> tuple[Array, Array]:
    return state_dict[f"{name}.weight"], state_dict[f"{name}.bias"]
