"""Compare ways to compute a training step: `python benchmarks/training_step.py`.

Prints two ratios of the time of forward and backward in training form: with each
block's two depthwise kernels added first, to convolving with one after the other; and
with `use_checkpoint`, to without. Each ratio is the median over pairs of runs.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from aethernet import aether_core
from aethernet.aether_core import AetherBlock, AetherNet, ReparamLargeKernelConv

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convolve_twice(self: ReparamLargeKernelConv, x: Tensor) -> Tensor:
    """The training form, with one convolution for each kernel."""
    bias = (self.lk_bias + self.sk_bias).view(-1, 1, 1)
    return self.lk_conv(x) + self.sk_conv(x) + bias


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--variant", default="aether_small", choices=aether_core.VARIANTS
    )
    parser.add_argument("--size", type=int, default=32, help="LR side; default: 32")
    parser.add_argument("--batch", type=int, default=2, help="default: 2")
    parser.add_argument("--pairs", type=int, default=7, help="paired runs; default: 7")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: cpu")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=DTYPES
    )
    given = parser.parse_args()
    if min(given.size, given.batch, given.pairs) < 1:
        parser.error("--size, --batch and --pairs must be 1 or more")
    if given.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {given.device}: PyTorch finds no GPU here")
    shape = (given.batch, 3, given.size, given.size)
    print(f"{given.variant}, 2x, {shape}, {given.device}", end="")
    print(f", {torch.get_num_threads()} threads, torch {torch.__version__}")
    for dtype in given.dtypes:
        for layout, memory_format in LAYOUTS.items():
            torch.manual_seed(0)
            network = getattr(aether_core, given.variant)(scale=2, drop_path_rate=0.0)
            network = network.to(given.device, memory_format=memory_format).train()
            image = torch.rand(shape, device=given.device)
            image = image.to(memory_format=memory_format)
            run = partial(step, network, image, DTYPES[dtype])
            report = partial(print, f"{dtype:9}{layout:14}", sep="")
            report("added first / convolved twice  ", paired(run, twice(run), given))
            report("checkpointed / not             ", paired(again(run), run, given))
    return 0


def step(network: AetherNet, image: Tensor, dtype: torch.dtype | None) -> None:
    with torch.autocast(image.device.type, dtype, enabled=dtype is not None):
        output = network(image)
    nn.functional.l1_loss(output.float(), torch.zeros_like(output.float())).backward()
    network.zero_grad()


def twice(run: Callable[[], None]) -> Callable[[], None]:
    def patched() -> None:
        added_first = ReparamLargeKernelConv.forward
        ReparamLargeKernelConv.forward = convolve_twice  # type: ignore[method-assign]
        try:
            run()
        finally:
            ReparamLargeKernelConv.forward = added_first  # type: ignore[method-assign]

    return patched


def again(run: "partial[None]") -> Callable[[], None]:
    def switch(on: bool) -> None:
        for module in run.args[0].modules():
            if isinstance(module, AetherBlock):
                module.use_checkpoint = on

    def checkpointed() -> None:
        switch(True)
        try:
            run()
        finally:
            switch(False)

    return checkpointed


def paired(
    first: Callable[[], None], second: Callable[[], None], given: argparse.Namespace
) -> str:
    """Median, least and largest ratio of the time of `first` to that of `second`."""
    ratios = []
    for _ in range(given.pairs + 1):
        ratios.append(seconds(first, given.device) / seconds(second, given.device))
    ratios = ratios[1:]  # the first pair warms up
    low, high = min(ratios), max(ratios)
    return f"median {statistics.median(ratios):.2f}, {low:.2f} to {high:.2f}"


def seconds(run: Callable[[], None], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
