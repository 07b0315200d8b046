"""Random networks and pictures in the native kernels, against NumPy in float64.

    python benchmarks/native_random.py [--count 10000] [--first 0] [--library FILE]

Each is a configuration of its own: width, hidden width, kernel, depth, scale, channels,
size from 1x1, number of threads. It needs no PyTorch. `--library` is another build of
the kernels, e.g. one with sanitizers (`nox -s sanitize`). Prints the largest error, in
parts of the largest output where that is over 1. Fails where it is above 2e-5 and ten
times that of NumPy in float32: LayerNorm over few channels enlarges any rounding.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from aethernet.checkpoints.folded import fold
from aethernet.checkpoints.layout import UPSAMPLE_FACTORS
from aethernet.checkpoints.reference import evaluate
from aethernet.runtimes.native.build import LIBRARY
from aethernet.runtimes.native.library import Kernels, variants
from aethernet.runtimes.native.run import NativeNetwork

LIMIT = 2e-5
TAIL = 64  # channels after `conv_before_upsample`


def random_weights(
    rng: np.random.Generator, width: int, hidden: int, kernel: int, depth: int
) -> dict[str, np.ndarray]:
    """The state dict of a fused network, all but its ends."""
    shapes: dict[str, tuple[int, ...]] = {
        "norm": (width,),
        "conv_after_body": (width, width, 3, 3),
        "conv_before_upsample.0": (TAIL, width, 3, 3),
    }
    for block in (f"layers.0.{i}." for i in range(depth)):
        shapes[f"{block}conv.fused_conv"] = (width, 1, kernel, kernel)
        shapes[f"{block}norm"] = (width,)
        for part in ("gate", "main"):
            shapes[f"{block}ffn.fc1_{part}"] = (hidden, width)
        shapes[f"{block}ffn.fc2"] = (width, hidden)
    return filled(rng, shapes)


def random_ends(
    rng: np.random.Generator, width: int, channels: int, scale: int
) -> dict[str, np.ndarray]:
    """The first convolution, and all after `conv_before_upsample`."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv_first": (width, channels, 3, 3),
        "conv_last": (channels, TAIL, 3, 3),
    }
    for i, factor in enumerate(UPSAMPLE_FACTORS[scale]):
        shapes[f"upsample.{2 * i}"] = (TAIL * factor**2, TAIL, 3, 3)
    return filled(rng, shapes)


def filled(
    rng: np.random.Generator, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Weights of which every one shows in the output, and biases."""
    found = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape, np.float32)
        is_norm = len(shape) == 1
        fan_in = int(np.prod(shape[1:]))
        weight = 1 + 0.1 * noise if is_norm else noise / np.float32(fan_in**0.5)
        found[f"{name}.weight"] = weight.astype(np.float32)
        bias = 0.1 * rng.standard_normal(shape[0], np.float32)
        found[f"{name}.bias"] = bias.astype(np.float32)
    return found


def error_of(seed: int, kernels: Kernels) -> tuple[float, float, str]:
    """The error of one configuration, what is allowed, and a description."""
    rng = np.random.default_rng(seed)
    width, hidden = int(rng.integers(1, 37)), int(rng.integers(1, 49))
    kernel = int(rng.choice([1, 3, 5, 7, 11, 13, 15]))
    depth = int(rng.integers(1, 3))
    channels = int(rng.choice([1, 2, 3, 4]))
    # The ends of 4x and 8x take half a second to join.
    scale = int(rng.choice([1, 2, 3, 4, 8], p=[0.3, 0.32, 0.32, 0.05, 0.01]))
    height, wide = rng.integers(1, int(rng.choice([3, 8, 16])) + 1, 2).tolist()
    batch = int(rng.choice([1, 1, 1, 2]))
    threads = int(rng.choice([1, 2, 3, 8]))
    img_range = float(rng.choice([1, 255]))
    weights = random_weights(rng, width, hidden, kernel, depth)
    weights |= random_ends(rng, width, channels, scale)
    image = rng.random((batch, channels, height, wide), np.float32)
    expected = evaluate(fold(weights, img_range, np.float64), image)
    folded = fold(weights, img_range)
    found = NativeNetwork(folded, threads, kernels)(image)
    largest = max(1.0, float(np.abs(expected).max()))
    error = float(np.abs(found - expected).max()) / largest
    allowed = LIMIT
    if error > LIMIT:
        rounding = float(np.abs(evaluate(folded, image) - expected).max()) / largest
        allowed = max(LIMIT, 10 * rounding)
    text = (
        f"seed {seed}: width {width}, hidden {hidden}, kernel {kernel}, depth {depth}, "
        f"{channels} channels, {scale}x, {image.shape}, {threads} threads"
    )
    return error, allowed, text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed")
    parser.add_argument("--library", type=Path, default=LIBRARY)
    given = parser.parse_args()
    for variant in variants(given.library):
        kernels = Kernels(given.library, variant)
        worst, start = (-1.0, ""), time.process_time()
        for seed in range(given.first, given.first + given.count):
            error, allowed, text = error_of(seed, kernels)
            if not error <= allowed:
                raise SystemExit(f"error {error:.1e}, {text}")
            worst = max(worst, (error, text))
            done = seed - given.first + 1
            if done % 1000 == 0:
                print(f"{variant}: {done} configurations are right", flush=True)
        seconds = time.process_time() - start
        print(f"{variant}: {given.count} configurations in {seconds:.0f} CPU seconds")
        print(f"largest error {worst[0]:.1e}, {worst[1]}")


if __name__ == "__main__":
    main()
