"""The most arithmetic per second that a machine reaches: a large matrix product."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

PRODUCT_SIDES = (512, 1024, 2048, 4096, 8192)
"""Sides of the square products of which the fastest is the ceiling."""

_PRODUCT_SECONDS = 0.1  # a product that takes longer is the last that is tried


@dataclass(frozen=True)
class Ceiling:
    """The fastest large matrix product of PyTorch, timed in the benchmark's rounds."""

    side: int
    seconds: list[float]
    """By round."""

    @property
    def gflops(self) -> float:
        """GFLOP/s by the median time."""
        return 2 * self.side**3 / statistics.median(self.seconds) / 1e9


def largest_product(precision: str, device: str) -> tuple[int, Callable[[], object]]:
    """Side and call of the square product with the most arithmetic per second."""
    best, found = 0.0, None
    for side in PRODUCT_SIDES:
        factor = torch.rand(side, side, device=device).to(getattr(torch, precision))

        def product(factor: torch.Tensor = factor) -> object:
            return (factor @ factor)[0, 0].item()  # waits for a GPU

        product()  # the first call is slower
        start = time.perf_counter()
        product()
        seconds = time.perf_counter() - start
        if found is None or side**3 / seconds > best:
            best, found = side**3 / seconds, (side, product)
        if seconds > _PRODUCT_SECONDS:
            break
    assert found is not None
    return found
