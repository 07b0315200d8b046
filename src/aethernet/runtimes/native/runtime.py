"""The native engine as a runtime: loaded from a file, and proven before it is used."""

import logging
from pathlib import Path
from typing import Any, Self

import numpy as np

from aethernet.cache import code_version, file_of, read_json, write_json
from aethernet.checkpoints.folded import Folded
from aethernet.checkpoints.reference import evaluate
from aethernet.devices import installed_versions, processor_name
from aethernet.errors import AetherError, VerificationError
from aethernet.runtimes.base import (
    Description,
    InputSizes,
    ModelFile,
    library_failures,
)
from aethernet.runtimes.cores import threads_to_use
from aethernet.runtimes.native.library import load_kernels
from aethernet.runtimes.native.run import NativeNetwork
from aethernet.version import PACKAGE

_log = logging.getLogger(__name__)

PROOF_SIZE = (13, 18)
"""Height and width of the tile on which a model is compared with NumPy, in LR pixels:
four of the kernels' tiles, one of them whole."""

PROOF_LIMIT = 1e-4
"""The difference allowed there, plus this part of the value: that of a float32 file in
`checkpoints.tolerances`, which needs PyTorch."""

# The code that decides whether a model passes. The folder has the library, too.
_PROVING_CODE = (
    Path(__file__).parent,
    *(
        PACKAGE / "checkpoints" / f"{name}.py"
        for name in ("arrays", "checkpoint", "folded", "layout", "reference")
    ),
)


class NativeRuntime:
    """A `.safetensors` checkpoint on this computer's processor, in float32."""

    def __init__(self, network: NativeNetwork) -> None:
        """Wrap a network, which is not compared with anything here."""
        self._network = network
        self.scale: int = network.scale
        self.channels: int = network.channels
        self.input_sizes = InputSizes()
        self.why = ""
        self.bytes_per_pixel = network.bytes_per_pixel
        """As `tiling.Tiled` reads it."""

    @classmethod
    def load(
        cls, file: Path | ModelFile, device: str = "auto", precision: str = "auto"
    ) -> Self:
        """As `base.Runtime.load`.

        Raises:
            VerificationError: when the output for a tile is not that of NumPy. This is
                computed once for a model and a machine.
        """
        if device not in ("auto", "cpu"):
            raise AetherError(
                f"The native runtime has no device {device!r}, only cpu.",
                hint="Use another one: --runtime auto.",
            )
        if precision not in ("auto", "float32"):
            raise AetherError(
                f"The native runtime computes in float32 only, not in {precision}.",
                hint="Use another one: --runtime auto.",
            )
        kernels = load_kernels()  # first: without them the file does not matter
        file = ModelFile.of(file)
        folded = file.checkpoint.folded
        model = cls(NativeNetwork(folded, threads_to_use(), kernels))
        _prove_once(model, folded, file)
        return model

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        return ("cpu",)

    @classmethod
    def precisions(cls, path: Path, device: str) -> tuple[str, ...]:
        return ("float32",)

    def run(self, batch: np.ndarray) -> np.ndarray:
        with library_failures(self.describe(), batch.shape, ()):
            return self._network(batch)

    def describe(self) -> Description:
        return Description("native kernels", "cpu", "float32", self.why)

    @property
    def variant(self) -> str:
        """The instruction set of the kernels: "v3", "v4" or "neon"."""
        return self._network.kernels.variant


def check_output(model: NativeRuntime, folded: Folded) -> None:
    """Compare the model's output for a tile of noise with NumPy's.

    Raises:
        VerificationError: when they differ by more than `PROOF_LIMIT`.
    """
    shape = (1, model.channels, *PROOF_SIZE)
    tile = np.random.default_rng(0).random(shape, np.float32)
    expected = evaluate(folded, tile)
    with np.errstate(invalid="ignore"):  # what is not finite is not right
        error = np.abs(model.run(tile) - expected)
    if not (error <= PROOF_LIMIT * (1 + np.abs(expected))).all():
        raise VerificationError(
            "The native runtime is not used for this model: on a tile its output "
            f"differs from NumPy's by {error.max():.1e}, and the limit is "
            f"{PROOF_LIMIT:g}.",
            hint="Use another one: --runtime auto.",
        )


def proof_facts(file: ModelFile, variant: str) -> dict[str, Any]:
    """All that the comparison depends on; the key of its kept result."""
    return {
        "model": file.digest,
        "machine": [processor_name(), variant],
        "versions": {
            "aethernet": code_version(_PROVING_CODE),
            **installed_versions(("numpy",)),
        },
    }


def _prove_once(model: NativeRuntime, folded: Folded, file: ModelFile) -> None:
    facts = proof_facts(file, model.variant)
    try:
        kept = file_of("native", facts)
    except AetherError as error:
        _log.info("that the output is right is not kept: %s", error)
        kept = None
    if kept and read_json(kept).get("facts") == facts:
        return
    try:
        check_output(model, folded)
    except VerificationError as error:
        raise error.about(file.path) from None
    if kept is None:
        return
    try:
        write_json(kept, {"facts": facts})
    except AetherError as error:  # the next call compares again
        _log.info("that the output is right is not kept: %s", error)
