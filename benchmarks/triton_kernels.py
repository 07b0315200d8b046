"""The Triton kernels against PyTorch: `python benchmarks/triton_kernels.py`.

    python benchmarks/triton_kernels.py [--parts errors convolution block network step]
        [--variants aether_small ..] [--peers compact ..] [--seconds 0.2]
        [--compile] [--search [--keep]]

Needs an NVIDIA GPU and Triton. Times are medians of CUDA events over repeated calls,
one thing after another on the same card; the bound of a block is the time in which the
card copies what the block has to read and write, measured in the same run. `--search`
times ways to compile each kernel instead.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch.nn import functional
from triton.testing import do_bench

from aethernet.aether_core import VARIANTS, AetherBlock, AetherNet
from aethernet.bench.peer_networks import build_peer
from aethernet.bench.peers import PEERS
from aethernet.checkpoints.rewrites import ProductBlock, fold_network, rewritten
from aethernet.runtimes.triton import (
    depthwise,
    feed_forward,
    feed_forward_gradients,
)
from aethernet.runtimes.triton.block import (
    TritonBlock,
    accelerate,
    training_error,
)

LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
PICTURE = (480, 640)  # LR, of the block and the network
BATCH, CROP = 32, 64  # of a training step, and of the convolution in it


def milliseconds(call: Callable[[], Any], seconds: float) -> float:
    """Median time of a call on the GPU."""
    found = do_bench(call, warmup=50, rep=1000 * seconds, return_mode="median")
    return float(found)


def say(name: str, time: float, other: float | None = None, note: str = "") -> None:
    ratio = "" if other is None else f"{other / time:6.2f} times as fast as the first"
    print(f"  {name:44} {time:9.3f} ms  {ratio}{note}", flush=True)


def copy_rate(seconds: float) -> float:
    """Bytes a millisecond, read and written, of a large copy."""
    source = torch.randn(1 << 28, device="cuda", dtype=torch.float16)
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / milliseconds(lambda: target.copy_(source), seconds)
    print(f"copies {rate / 1e9:.2f} TB/s", flush=True)
    return rate


def errors(name: str, given: argparse.Namespace) -> None:
    """Errors of a block in training, and of the network in both half precisions."""
    size = VARIANTS[name]
    error = training_error(size["embed_dim"], size["lk_kernel"], size["mlp_ratio"])
    print(f"  block, output and gradients in bfloat16: {error:.4f} of the norm")
    folded = fold_network(network_of(name))
    image = torch.rand(1, 3, 67, 91, device="cuda")
    with torch.inference_mode():
        exact = rewritten(folded).cuda()(image)
        for precision in ("float16", "bfloat16"):
            for block in (ProductBlock, TritonBlock):
                output = rewritten(folded, precision, block).cuda()(image)
                error = float((output - exact).norm() / exact.norm())
                print(f"  network, {block.__name__}, {precision}: {error:.5f}")


def convolution(name: str, given: argparse.Namespace) -> None:
    """The depthwise convolution, forward and with both gradients, bfloat16."""
    channels, size = VARIANTS[name]["embed_dim"], VARIANTS[name]["lk_kernel"]
    for shape in ((BATCH, channels, CROP, CROP), (1, channels, *PICTURE)):
        x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        weight = torch.randn(channels, 1, size, size, device="cuda")
        weight = weight.bfloat16() / size
        print(f"  depthwise {size}x{size} on {shape}")
        first = None
        for layout, form in LAYOUTS.items():
            leaf = x.detach().to(memory_format=form).requires_grad_()
            kernel = weight.detach().clone().requires_grad_()

            run = partial(functional.conv2d, leaf, kernel, None, 1, "same", 1, channels)
            time = milliseconds(run, given.seconds)
            first = first or time
            say(f"PyTorch, {layout}, forward", time, first)
            if shape[0] > 1:
                back = partial(
                    run().backward, torch.randn_like(leaf), retain_graph=True
                )
                say(f"PyTorch, {layout}, backward", milliseconds(back, given.seconds))
        bands = depthwise.bands_of(weight, x.dtype)
        ours = milliseconds(partial(depthwise.convolve, x, bands), given.seconds)
        say("Triton, forward (and gradient of x)", ours, first)
        if shape[0] > 1:
            room = depthwise.new_bands_gradients(weight)
            sums = partial(depthwise.bands_gradient, x, x, size, room)
            ours = milliseconds(sums, given.seconds)
            say("Triton, gradient of the kernels", ours)


def block(name: str, given: argparse.Namespace) -> None:
    """One block to run, float16, and the part of it that is not the convolution."""
    folded = fold_network(network_of(name)).blocks[0]
    channels = VARIANTS[name]["embed_dim"]
    shape = (1, channels, *PICTURE)
    x = torch.randn(shape, device="cuda", dtype=torch.float16)
    with torch.inference_mode():
        first = None
        for layout, form in LAYOUTS.items():
            eager = ProductBlock(folded).cuda().half().to(memory_format=form)
            picture = x.to(memory_format=form)
            time = milliseconds(partial(eager, picture), given.seconds)
            first = first or time
            say(f"PyTorch, {layout}", time, first)
            if given.compile:
                fast = torch.compile(eager)
                time = milliseconds(partial(fast, picture), given.seconds)
                say(f"torch.compile, {layout}", time, first)
        ours = TritonBlock(folded).cuda()
        bound = 5 * x.nbytes / given.rate
        time = milliseconds(lambda: ours(x), given.seconds)
        say("Triton", time, first, f", {bound / time:.0%} of its traffic's bound")
        bands, weights = ours.packed(x.dtype)
        parts: dict[str, tuple[Callable[[], Tensor], int]] = {
            "convolution": (lambda: depthwise.convolve(x, bands), 2),
            "feed-forward": (
                lambda: feed_forward.feed_forward(x, x, weights, 1e-6),
                3,
            ),
        }
        for part, (call, times) in parts.items():
            time = milliseconds(call, given.seconds)
            bound = times * x.nbytes / given.rate
            say(f"Triton, {part}", time, None, f"{bound / time:.0%} of its bound")


def network(name: str, given: argparse.Namespace) -> None:
    """The whole network at 2x, float16, with the picture on the GPU already."""
    folded = fold_network(network_of(name))
    image = torch.rand(1, 3, *PICTURE, device="cuda")
    with torch.inference_mode():
        first = None
        for layout, form in LAYOUTS.items():
            eager = rewritten(folded, "float16").cuda().to(memory_format=form)
            picture = image.to(memory_format=form)
            time = milliseconds(partial(eager, picture), given.seconds)
            first = first or time
            say(f"PyTorch, {layout}", time, first, f", {1000 / time:.0f} a second")
            if given.compile and form is torch.channels_last:
                fast = torch.compile(eager)
                time = milliseconds(partial(fast, picture), given.seconds)
                note = f", {1000 / time:.0f} a second"
                say(f"torch.compile, {layout}", time, first, note)
        ours = rewritten(folded, "float16", TritonBlock).cuda()
        ours = ours.to(memory_format=torch.channels_last)
        time = milliseconds(lambda: ours(image), given.seconds)
        say("Triton", time, first, f", {1000 / time:.0f} a second")


def peers(given: argparse.Namespace) -> None:
    """Other networks at 2x in float16 PyTorch, each in its faster layout."""
    image = torch.rand(1, 3, *PICTURE, device="cuda", dtype=torch.float16)
    with torch.inference_mode():
        for name in given.peers:
            times = []
            for form in LAYOUTS.values():
                peer = build_peer(name, 2).cuda().half().to(memory_format=form)
                picture = image.to(memory_format=form)
                times.append(milliseconds(partial(peer, picture), given.seconds))
            time = min(times)
            say(f"{PEERS[name].name}", time, None, f", {1000 / time:.0f} a second")


def step(name: str, given: argparse.Namespace) -> None:
    """Forward and backward in training form, bfloat16 under autocast."""
    lr = torch.rand(BATCH, 3, CROP, CROP, device="cuda")
    hr = torch.rand(BATCH, 3, 2 * CROP, 2 * CROP, device="cuda")

    def call(trained: nn.Module, lr: Tensor) -> None:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            output = trained(lr)
        functional.l1_loss(output.float(), hr).backward()
        trained.zero_grad()

    first = None
    for layout, form in LAYOUTS.items():
        trained = network_of(name).cuda().to(memory_format=form).train()
        crops = lr.to(memory_format=form)
        time = milliseconds(partial(call, trained, crops), given.seconds)
        first = first or time
        say(f"PyTorch, {layout}", time, first)
    trained = network_of(name).cuda().to(memory_format=torch.channels_last).train()
    accelerate(trained)
    time = milliseconds(partial(call, trained, crops), given.seconds)
    say("Triton", time, first)
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        torch.cuda.make_graphed_callables(trained, (crops,))
    time = milliseconds(partial(call, trained, crops), given.seconds)
    say("Triton, as a CUDA graph", time, first)


Tried = tuple[str, dict[str, int], Callable[[], object], dict[str, tuple[int, ...]]]


def tried_of(name: str) -> list[Tried]:
    """Of each kernel: its name, what is chosen now, a call, and what to try."""
    size = VARIANTS[name]
    channels, hidden = size["embed_dim"], int(size["embed_dim"] * size["mlp_ratio"])
    shape = (BATCH, channels, CROP, CROP)
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    kernel = torch.randn(channels, 1, *2 * [size["lk_kernel"]], device="cuda") / 11
    bands = depthwise.bands_of(kernel, x.dtype)
    matrices = [torch.randn(hidden, channels, device="cuda") / 10 for _ in range(3)]
    bias = torch.zeros(hidden, device="cuda")
    weights = feed_forward.projections(
        *(matrices[0], bias, matrices[1], bias),
        *(matrices[2].T, bias[:channels]),
        x.dtype,
    )
    wide = weights.gate.shape[0] > 128
    room = depthwise.new_bands_gradients(kernel)

    def gradients() -> object:
        out = feed_forward_gradients.Partial.room(weights, x)
        return feed_forward_gradients.feed_forward_gradients(x, x, weights, 1e-6, out)

    compiled = {"num_warps": (4, 8), "num_stages": (3,)}
    kept = feed_forward.kept_programs(weights, x)
    chosen = feed_forward.KEPT if kept else feed_forward.FORWARD[wide]
    return [
        (
            "convolve",
            depthwise.CONVOLVE,
            lambda: depthwise.convolve(x, bands),
            {"BLOCK": (64, 128), **compiled, "num_stages": (1, 3)},
        ),
        (
            "gradient of the kernels",
            depthwise.GRADIENT,
            lambda: depthwise.bands_gradient(x, x, size["lk_kernel"], room),
            {"BLOCK": (64, 128), **compiled},
        ),
        (
            "forward",
            chosen,
            lambda: feed_forward.feed_forward(x, x, weights, 1e-6),
            {"BLOCK": (64, 128), "STEP": (32, 64), **compiled, "num_stages": (1, 2)},
        ),
        (
            "backward",
            feed_forward_gradients.BACKWARD[wide],
            gradients,
            {"BLOCK": (32, 64), "STEP": (16, 32), **compiled, "num_stages": (1,)},
        ),
        (
            "products",
            feed_forward_gradients.PRODUCTS[wide],
            gradients,
            {"BLOCK": (64, 128), "ROWS": (64,), **compiled},
        ),
    ]


def search(name: str, given: argparse.Namespace) -> None:
    """Time ways to compile the kernels at the sizes of a training step."""
    for part, chosen, call, ways in tried_of(name):
        found = []
        before = {**chosen}
        for way in itertools.product(*ways.values()):
            chosen.update(zip(ways, way, strict=True))
            try:
                found.append((milliseconds(call, given.seconds / 4), {**chosen}))
            except triton.runtime.errors.OutOfResources as error:
                print(f"  {part} {chosen}: {error}")
        found.sort(key=lambda entry: entry[0])
        for time, best in found[:3] + found[-1:]:
            say(f"{part} {[*best.values()]}", time)
        chosen.update(found[0][1] if given.keep else before)


def network_of(name: str) -> AetherNet:
    torch.manual_seed(0)
    made = AetherNet(**VARIANTS[name], scale=2)
    for module in made.modules():
        if isinstance(module, AetherBlock):
            module.drop_path.rate = 0.0  # noise has no part in a time
    return made.eval()


PARTS = {part.__name__: part for part in (errors, convolution, block, network, step)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=["aether_small"]
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[])
    parser.add_argument("--seconds", type=float, default=0.2, help="for each time")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--search", action="store_true")
    parser.add_argument(
        "--keep", action="store_true", help="use what --search found in the parts"
    )
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here.")
    print(torch.cuda.get_device_name(), "torch", torch.__version__, end=" ")
    print("triton", triton.__version__, flush=True)
    given.rate = copy_rate(given.seconds)
    for name in given.variants:
        if given.search:
            print(f"{name}, search")
            search(name, given)
        for part in given.parts:
            print(f"{name}, {part}")
            PARTS[part](name, given)
    if given.peers:
        print("other networks")
        peers(given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
