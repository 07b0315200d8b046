"""The native kernels beside ONNX Runtime's plain export, and where their time goes.

    python benchmarks/native_engine.py [--variant aether_small] [--scale 2]
        [--size 128] [--rounds 7] [--threads 2] [--onnx FILE]

In a round each runs once, in turn, and ratios are taken round by round: what else the
machine does then hits both. Wall time and CPU seconds are medians over the rounds.
Then Ctrl-C is sent during a call. The last table has one thread's CPU time in each
kernel, the rate in multiply-adds and its share of what the registers alone can do
(`peak`): the least of the rounds, when other programs disturbed least.
"""

import argparse
import contextlib
import functools
import signal
import statistics
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import torch

from aethernet.aether_core import VARIANTS, AetherNet
from aethernet.bench.torch_exporter import plain_onnx
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.folded import fold
from aethernet.checkpoints.shipped import shipped_model
from aethernet.runtimes.native.library import Kernels
from aethernet.runtimes.native.run import NativeNetwork
from aethernet.runtimes.onnxruntime import SPINNING

KERNELS = ("first", "block", "norm", "conv", "tail")


def network_of(variant: str, scale: int) -> AetherNet:
    """The shipped model where it is that variant, or fresh weights."""
    if (variant, scale) == ("aether_small", 2):
        return load_checkpoint(shipped_model()).build().fuse().eval()
    torch.manual_seed(0)
    return AetherNet(**VARIANTS[variant], scale=scale).fuse().eval()


def native(network: AetherNet, threads: int) -> NativeNetwork:
    arrays = {key: value.numpy() for key, value in network.state_dict().items()}
    return NativeNetwork(fold(arrays, network.img_range), threads)


def session_of(
    network: AetherNet, path: Path | None, threads: int, size: int
) -> onnxruntime.InferenceSession:
    """ONNX Runtime with a file, or with the network exported as it stands.

    The export is for pictures of `size` x `size`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # As `aethernet upscale` sets it: spinning threads are no work.
    spinning = str(int(SPINNING))
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    content: Any = str(path) if path else None
    if content is None:
        content = plain_onnx(network, (1, size, size))
    return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of wall time and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(runs: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Print medians, and ratios to the first of `runs`."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(0.1)  # threads of the one before stop spinning
            times[name].append(timed(run))
    base = next(iter(times.values()))
    print(f"{'':24} wall ms  CPU ms  wall ratio  CPU ratio")
    for name, spent in times.items():
        figures = [1000 * statistics.median(t[i] for t in spent) for i in (0, 1)]
        figures += [
            statistics.median(t[i] / b[i] for t, b in zip(spent, base, strict=True))
            for i in (0, 1)
        ]
        wall, cpu, wall_ratio, cpu_ratio = figures
        print(f"{name:24} {wall:7.0f} {cpu:7.0f} {wall_ratio:11.2f} {cpu_ratio:10.2f}")


def interrupted_after(network: NativeNetwork, size: int, tries: int) -> list[float]:
    """Seconds from Ctrl-C during a call to its end, in order."""
    image = np.zeros((1, network.channels, size, size), np.float32)
    found = []
    for _ in range(tries):
        sent: list[float] = []

        def interrupt(sent: list[float] = sent) -> None:
            sent.append(time.perf_counter())
            signal.raise_signal(signal.SIGINT)

        timer = threading.Timer(0.3, interrupt)
        timer.start()
        try:
            network(image)
        except KeyboardInterrupt:
            found.append(time.perf_counter() - sent[0])
        timer.join()
    return sorted(found)


def peak_rate(kernels: Kernels) -> float:
    """Multiply-adds in a CPU second, the best of some tries."""
    rates = []
    for _ in range(9):
        start = time.thread_time()
        count = kernels.peak(200_000)
        rates.append(count / (time.thread_time() - start))
    return max(rates)


def profile(network: NativeNetwork, image: "np.ndarray", rounds: int) -> None:
    """Print the CPU time in each kernel, of one thread."""
    spent: dict[str, list[float]] = defaultdict(list)
    kernels = network.kernels
    now: dict[str, float] = {}
    originals = {name: getattr(kernels, name) for name in KERNELS}

    def measured(name: str, *given: Any) -> None:
        start = time.thread_time()
        originals[name](*given)
        now[name] = now.get(name, 0) + time.thread_time() - start

    for name in KERNELS:
        setattr(kernels, name, functools.partial(measured, name))
    try:
        for _ in range(rounds):
            now.clear()
            start = time.thread_time()
            network(image)
            now["all"] = time.thread_time() - start
            for name, seconds in now.items():
                spent[name].append(seconds)
    finally:
        for name in KERNELS:
            delattr(kernels, name)
    peak = peak_rate(kernels)
    work = {**operations(network), "all": network.operations()}
    pixels = image.shape[-2] * image.shape[-1]
    total = min(spent["all"])
    print(f"\n{kernels.variant}, one thread; peak {peak / 1e9:.1f} G multiply-adds/s")
    print("kernel     CPU ms   share   G/s  of peak")
    for name in (*KERNELS, "all"):
        seconds = min(spent[name])
        rate = work.get(name, 0) * pixels / seconds
        print(
            f"{name:8} {1000 * seconds:8.1f} {seconds / total:7.1%} "
            f"{rate / 1e9:5.1f} {rate / peak:8.2f}"
        )


def operations(network: NativeNetwork) -> dict[str, int]:
    """Multiply-adds for each pixel of the input in each kernel."""
    c, narrow = network.embed_dim, network.before_upsample.out_channels
    found = {
        "first": 2 * 9 * network.channels * c,
        "conv": 9 * c * (c + narrow),
        "block": sum(b.channels * (b.kernel**2 + 3 * b.hidden) for b in network.blocks),
    }
    found["tail"] = network.operations() - sum(found.values())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", choices=[*VARIANTS], default="aether_small")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--size", type=int, default=128, help="LR pixels of each side")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--onnx", type=Path, help="in place of the plain export")
    parser.add_argument("--profile-only", action="store_true")
    given = parser.parse_args()
    network = network_of(given.variant, given.scale)
    image = np.random.default_rng(0).random((1, 3, given.size, given.size), np.float32)
    ours = native(network, given.threads)
    with torch.inference_mode():
        expected = network(torch.from_numpy(image)).numpy()
    print(f"{given.variant} {given.scale}x, {given.size}x{given.size}")
    print(f"largest error against PyTorch {np.abs(ours(image) - expected).max():.1e}")
    if not given.profile_only:
        session = session_of(network, given.onnx, given.threads, given.size)
        feed = {session.get_inputs()[0].name: image}
        name = given.onnx.name[-10:] if given.onnx else "plain"
        runs: dict[str, Callable[[], Any]] = {
            f"ONNX Runtime, {name}": functools.partial(session.run, None, feed),
            "native": functools.partial(ours, image),
        }
        for run in runs.values():
            run()
        compare(runs, given.rounds)
        waits = interrupted_after(ours, 1024, 5)
        print(f"Ctrl-C ends a call after {waits[len(waits) // 2]:.3f} s (median of 5)")
    profile(native(network, 1), image, max(given.rounds // 2, 3))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        warnings.simplefilter("ignore")
        main()
