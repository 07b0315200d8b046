"""Measure the memory that training takes: `python benchmarks/training_memory.py`.

Prints, for each variant, the memory that a step keeps for backward per LR pixel of the
batch. It is counted on fake CUDA tensors, without a GPU. Also prints the total in GiB
for patches of several sizes, with weights, gradients, AdamW's state and an EMA, and on
a machine with a GPU PyTorch's peak of a real step. `--check` runs small steps on the
CPU instead, and compares the count with the growth of the process (Linux with glibc).
"""

import argparse
import os
import subprocess
import sys

import torch
from peak_memory import PeakMemory
from torch._subclasses.fake_tensor import FakeTensorMode

from aethernet import aether_core
from aethernet.aether_core import UPSAMPLE_FACTORS, VARIANTS, AetherNet
from aethernet.bench.memory import peak_resident_bytes

# float32 weights, gradients, two moments of AdamW, EMA
BYTES_PER_PARAMETER = 4 * (1 + 1 + 2 + 1)
SCALES = tuple(UPSAMPLE_FACTORS)
PATCHES = (32, 48, 64, 96)  # LR side
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
GIB = 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=8, help="default: 8")
    parser.add_argument("--scale", type=int, default=2, choices=SCALES)
    parser.add_argument("--check", action="store_true", help="compare with the CPU")
    parser.add_argument("--grown", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.batch < 1:
        parser.error("--batch must be 1 or more")
    if given.grown:
        variant, size, again = given.grown
        print(grown(build(variant, 2, bool(int(again))), int(size)))
    elif given.check:
        check()
    else:
        table(given.batch, given.scale)
    return 0


def table(batch: int, scale: int) -> None:
    patches = "".join(f"{patch:>14}" for patch in PATCHES)
    print(f"{scale}x, batch {batch}: GiB by LR patch size", end="")
    print(" (in brackets: measured)" * torch.cuda.is_available())
    print(f"{'':42}{'KB/pixel':>10}{patches}")
    for variant in VARIANTS:
        for precision, dtype in PRECISIONS.items():
            for again in (False, True):
                per_pixel = saved_per_pixel(variant, scale, again, dtype)
                network = build(variant, scale, again)
                parameters = sum(p.numel() for p in network.parameters())
                cells = ""
                for patch in PATCHES:
                    total = per_pixel * batch * patch**2
                    total += parameters * BYTES_PER_PARAMETER
                    cell = f"{total / GIB:.2f}"
                    if torch.cuda.is_available():
                        cell += f" ({measured(network, dtype, batch, patch)})"
                    cells += f"{cell:>14}"
                name = f"{variant} {precision}{' use_checkpoint' * again}"
                print(f"{name:42}{per_pixel / 1000:10.1f}{cells}")


def build(variant: str, scale: int, use_checkpoint: bool) -> AetherNet:
    """A network without weights, in training mode."""
    make = getattr(aether_core, variant)
    with torch.device("meta"):
        return make(scale=scale, use_checkpoint=use_checkpoint).train()


def saved_per_pixel(
    variant: str, scale: int, again: bool, dtype: torch.dtype | None
) -> float:
    """Bytes kept for backward per LR pixel: the slope between two sizes."""
    small, large = (
        kept(build(variant, scale, again), size, dtype) for size in (32, 64)
    )
    per_pixel = (large - small) / (64**2 - 32**2)
    if again:  # and in backward what one block at a time keeps
        blocks = sum(VARIANTS[variant]["depths"])
        plain = saved_per_pixel(variant, scale, False, dtype)
        per_pixel += (plain - per_pixel) / blocks
    return per_pixel


def kept(network: AetherNet, size: int, dtype: torch.dtype | None) -> int:
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = network.to_empty(device="cuda")
        image = torch.rand(1, 3, size, size, device="cuda")
        # torch.autocast turns itself off where there is no CUDA.
        torch.set_autocast_enabled("cuda", dtype is not None)
        torch.set_autocast_dtype("cuda", dtype or torch.bfloat16)
        try:
            with PeakMemory() as memory:
                output = fake(image)
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()
        live = memory.live
        del output
    return live


def measured(
    network: AetherNet, dtype: torch.dtype | None, batch: int, patch: int
) -> str:
    """GiB PyTorch held at most on the GPU in a step, the EMA included."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        train(network, dtype, batch, patch)
    except torch.cuda.OutOfMemoryError:
        return "too much"
    return f"{torch.cuda.max_memory_allocated() / GIB:.2f}"


def train(
    network: AetherNet, dtype: torch.dtype | None, batch: int, patch: int
) -> None:
    network = type(network)(**network.hyperparameters).cuda()
    network = network.to(memory_format=torch.channels_last)
    ema = torch.optim.swa_utils.AveragedModel(network)
    image = torch.rand(batch, 3, patch, patch, device="cuda")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
    for _ in range(2):  # the first creates the state of the optimizer
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            output = network(image)
        output.float().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(network)


def check() -> None:
    print("float32 on the CPU, one step: grown / counted, bytes per LR pixel")
    for variant in VARIANTS:
        for again in (False, True):
            # Each size in a process of its own, because a process does not shrink.
            # By default glibc keeps freed memory, with holes.
            sizes = (32, 64)
            words = [[variant, str(size), str(int(again))] for size in sizes]
            pairs = [
                subprocess.run(
                    [sys.executable, __file__, "--grown", *each],
                    env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.split()
                for each in words
            ]
            pixels = sizes[1] ** 2 - sizes[0] ** 2
            slopes = [(int(b) - int(a)) / pixels for a, b in zip(*pairs, strict=True)]
            name = f"{variant}{' use_checkpoint' * again}"
            print(f"{name:30}{slopes[0]:9.0f}/{slopes[1]:9.0f}", end="")
            print(f" = {slopes[0] / slopes[1]:.2f}", flush=True)


def grown(network: AetherNet, size: int) -> str:
    """Bytes that this process grows by in a step, and the counted peak of another."""
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    image = torch.rand(1, 3, size, size)
    network(torch.rand(1, 3, 8, 8)).mean().backward()  # sets up libraries
    network.zero_grad()
    before = peak_resident_bytes() or 0
    network(image).mean().backward()
    after = peak_resident_bytes() or 0
    network.zero_grad()
    with PeakMemory() as memory:
        network(image).mean().backward()
    return f"{after - before} {memory.peak}"


if __name__ == "__main__":
    sys.exit(main())
