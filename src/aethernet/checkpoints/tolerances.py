"""How far an exported file may differ from the network it was made from."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from aethernet.checkpoints.verification import compare
from aethernet.errors import AetherError

# Limits for files against the network in float32. A float32 file differs by rounding:
# 2e-6 on the shipped model, more on deeper ones; 1e-4 is 1/40 of an 8-bit step. The
# other types round as part of the format, to 11, 8 and 8 bits, and have to reach a PSNR
# in dB.
FLOAT32_ATOL, FLOAT32_RTOL = 1e-4, 1e-4
MIN_PSNR = {"float16": 50.0, "bfloat16": 40.0, "int8": 40.0}


@dataclass(frozen=True)
class Tolerance:
    """What an output has to reach to pass as equal: a PSNR, or `atol` and `rtol`."""

    min_psnr: float | None = None
    """In dB. None: the output has to be within `atol + rtol * |expected|`."""
    atol: float = FLOAT32_ATOL
    rtol: float = FLOAT32_RTOL

    @classmethod
    def of(
        cls, precision: str, atol: float | None = None, rtol: float | None = None
    ) -> Self:
        """The usual tolerance of a precision, or the given limits.

        Raises:
            AetherError: when a limit is below 0 or NaN.
        """
        for limit in (atol, rtol):
            if limit is not None and not limit >= 0:  # NaN is not
                raise AetherError(f"atol and rtol must be 0 or more, not {limit}.")
        if atol is None and rtol is None:
            return cls(MIN_PSNR.get(precision))
        atol = FLOAT32_ATOL if atol is None else atol
        return cls(None, atol, FLOAT32_RTOL if rtol is None else rtol)

    def problem(
        self, output: npt.NDArray[Any], expected: npt.NDArray[Any]
    ) -> str | None:
        """Why two arrays of one shape are too different, or None if they are not."""
        if self.min_psnr is not None:
            if compare(output, expected).psnr >= self.min_psnr:
                return None
            return f"less than {self.min_psnr:g} dB"
        output, expected = (np.asarray(x, np.float64) for x in (output, expected))
        if np.allclose(output, expected, rtol=self.rtol, atol=self.atol):
            return None
        return f"more than atol {self.atol:g} + rtol {self.rtol:g}"
