"""Print errors of the Triton kernels as JSON; Triton interprets them, without a GPU."""

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, in the whole process

import torch
from torch import Tensor
from torch.nn import functional

from aethernet.aether_core import AetherNet
from aethernet.checkpoints.rewrites import ProductBlock, fold_network, rewritten
from aethernet.runtimes.triton import depthwise, feed_forward
from aethernet.runtimes.triton.block import TritonBlock, accelerate, run_error

# Batch, channels, height, width, kernel: tiles that end outside, a picture smaller than
# the kernel, the largest kernel, the smallest.
SHAPES = [(2, 2, 9, 21, 11), (1, 2, 2, 3, 13), (1, 1, 5, 33, 17), (1, 1, 1, 1, 1)]


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).detach().norm() / exact.detach().norm())


def convolution(shape: tuple[int, ...]) -> dict[str, float]:
    """Of the result and of all gradients, against PyTorch in float64."""
    batch, channels, height, width, size = shape
    x = torch.randn(batch, channels, height, width).double().requires_grad_()
    kernel = torch.randn(channels, 1, size, size).double().requires_grad_()
    bias, extra = torch.randn(channels), torch.randn(batch, channels, height, width)
    exact = functional.conv2d(x, kernel, bias.double(), 1, "same", 1, channels)
    exact = exact + extra
    push = torch.randn_like(exact)
    exact.backward(push)
    x_, kernel_, push_ = (part.detach().float() for part in (x, kernel, push))
    bands = depthwise.bands_of(kernel_, torch.float32)
    of_bands = depthwise.new_bands_gradients(kernel_)
    depthwise.bands_gradient(x_, push_, size, of_bands)
    mirrored = depthwise.bands_of(kernel_, torch.float32, mirrored=True)
    return {
        "result": error(depthwise.convolve(x_, bands, bias, extra), exact),
        "gradient of x": error(depthwise.convolve(push_, mirrored), x.grad),
        "gradient of the kernel": error(
            depthwise.kernel_gradient(of_bands, size), kernel.grad
        ),
    }


def kept(channels: int) -> dict[str, float]:
    """Of a feed-forward in float16, whose programs keep the weights, and in float32."""
    hidden, shape = 2 * channels + 4, (3, channels, 9, 21)
    gate, main = torch.randn(2, hidden, channels) / channels**0.5
    last = torch.randn(channels, hidden) / hidden**0.5
    gate_bias, main_bias = torch.randn(2, hidden)
    weights = (gate, gate_bias, main, main_bias, last, torch.randn(channels))
    u, x = torch.randn(2, *shape)
    u = u * 3 + 1
    gate, gate_bias, main, main_bias, last, last_bias = (
        part.double() for part in weights
    )
    normal = functional.layer_norm(u.double().movedim(1, -1), [channels], eps=1e-6)
    branch = functional.gelu(normal @ gate.T + gate_bias) * (
        normal @ main.T + main_bias
    )
    branch = (branch @ last.T + last_bias).movedim(-1, 1)
    found = {}
    for dtype in (torch.float16, torch.float32):
        packed = feed_forward.projections(*weights, dtype)
        programs = feed_forward.kept_programs(packed, u.to(dtype))
        assert bool(programs) is (dtype is torch.float16)
        zero = torch.zeros(shape, dtype=dtype)
        output = feed_forward.feed_forward(u.to(dtype), zero, packed, 1e-6)
        found[str(dtype)] = error(output, branch)
        sums = feed_forward.feed_forward(u.to(dtype), x.to(dtype), packed, 1e-6)
        found[f"{dtype} with residual"] = error(sums, branch + x.double())
    return found


def training(network: AetherNet, size: tuple[int, int]) -> dict[str, float]:
    """Of the output and of every gradient of a network in training form."""
    image = torch.rand(2, 3, *size)

    def run(image: Tensor) -> dict[str, Tensor]:
        network.zero_grad()
        output = network(image)
        (
            output * torch.linspace(-1, 1, output.numel()).view_as(output)
        ).sum().backward()
        found = {name: value.grad for name, value in network.named_parameters()}
        return {"output": output.detach(), **found}

    exact = run(image.double())
    network.float()
    accelerate(network)
    found = run(image)
    return {name: error(found[name], exact[name]) for name in exact}


def small_network(**more: object) -> AetherNet:
    """A network in float64 whose every weight shows in the output."""
    shape = {"embed_dim": 6, "depths": (1, 1), "lk_kernel": 5, "scale": 2}
    network = AetherNet(**{**shape, "drop_path_rate": 0.0, **more}).double()
    with torch.no_grad():
        for parameter in network.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5
            parameter.add_(torch.randn_like(parameter) * spread)
    return network


def running() -> dict[str, float]:
    """Of a folded network on the kernels: whole, and what the runtime asks for."""
    folded = fold_network(small_network())
    image = torch.rand(1, 3, 7, 10)
    with torch.inference_mode():
        exact, found = (
            rewritten(folded, "float32", block)(image).double()
            for block in (ProductBlock, TritonBlock)
        )
    wrong = fold_network(small_network(lk_kernel=19))
    processor = torch.device("cpu")
    return {
        "whole": error(found, exact),
        "float16": run_error(folded, "float16", processor),
        "kernel too large": run_error(wrong, "float16", processor),
    }


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for shape in SHAPES:
        found[f"convolution {shape}"] = convolution(shape)
    found["training"] = training(small_network(), (4, 6))
    # Dropped samples and hidden channels that no step fills stay with PyTorch.
    odd = small_network(mlp_ratio=11.3, depths=(1,), drop_path_rate=0.5)
    found["odd sizes, in evaluation"] = training(odd.eval(), (3, 3))
    found["running"] = running()
    for channels in (8, 24, 60, 96, 128):
        found[f"kept {channels}"] = kept(channels)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
