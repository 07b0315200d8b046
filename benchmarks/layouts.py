"""Compare ways to write a block, as the reason for those in `checkpoints.rewrites`.

    python benchmarks/layouts.py [--size 128] [--rounds 7]

Each row is the shipped model, written in one way, in float32. The ONNX files have free
sizes. Prints median milliseconds, and the ratio to the plain export in ONNX Runtime,
taken round by round; in a round each runs once.
"""

import argparse
import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import openvino
import torch
from torch import Tensor, nn
from torch.nn import functional

from aethernet.aether_core import AetherNet
from aethernet.bench.torch_exporter import EXPORTER_OPSET, exported
from aethernet.checkpoints.checkpoint import Checkpoint, load_checkpoint
from aethernet.checkpoints.folded import BLOCK_EPS, Block, Convolution
from aethernet.checkpoints.onnx_check import open_session
from aethernet.checkpoints.rewrites import (
    ConvolutionBlock,
    ProductBlock,
    as_linear,
    as_module,
    rewritten,
)
from aethernet.checkpoints.shipped import shipped_model


class MergedProducts(nn.Module):
    """As `ProductBlock`, with both first projections in one product."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.conv = as_module(block.depthwise, depthwise=True)
        self.first = as_linear(_stacked(block))
        self.last = as_linear(block.last)

    def forward(self, x: Tensor) -> Tensor:
        t = self.conv(x).permute(0, 2, 3, 1)
        pixels = t.flatten(0, 2)
        pixels = functional.layer_norm(pixels, t.shape[-1:], eps=BLOCK_EPS)
        gate, main = self.first(pixels).chunk(2, -1)
        pixels = self.last(functional.gelu(gate) * main)
        return x + pixels.view(t.shape).permute(0, 3, 1, 2)


class MergedConvolutions(nn.Module):
    """As `ConvolutionBlock`, with both first projections in one convolution."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.conv = as_module(block.depthwise, depthwise=True)
        self.first = as_module(_stacked(block))
        self.last = as_module(block.last)

    def forward(self, x: Tensor) -> Tensor:
        t = self.conv(x).permute(0, 2, 3, 1)
        t = functional.layer_norm(t, t.shape[-1:], eps=BLOCK_EPS)
        gate, main = self.first(t.permute(0, 3, 1, 2)).chunk(2, 1)
        return x + self.last(functional.gelu(gate) * main)


class NormInParts(ConvolutionBlock):
    """As `ConvolutionBlock`, with LayerNorm in parts, which needs no transposes."""

    def mean(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        t = self.conv(x)
        t = t - self.mean(t)
        t = t / torch.sqrt(self.mean(t * t) + BLOCK_EPS)
        return x + self.last(functional.gelu(self.gate(t)) * self.main(t))


class MeanAsConvolution(NormInParts):
    """As `NormInParts`, with means over channels as 1x1 convolutions."""

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        channels = self.last.out_channels
        self.average = nn.Conv2d(channels, 1, 1, bias=False)
        self.average.weight.fill_(1 / channels)

    def mean(self, x: Tensor) -> Tensor:
        return self.average(x)


def _stacked(block: Block) -> Convolution:
    return Convolution(
        np.concatenate([block.gate.weight, block.main.weight]),
        np.concatenate([block.gate.bias, block.main.bias]),
    )


def writings(checkpoint: Checkpoint, network: AetherNet) -> dict[str, nn.Module]:
    """Networks by name; the last two alone have one convolution at the end."""
    found: dict[str, nn.Module] = {"plain": network}
    for name, block_type in (
        ("products", ProductBlock),
        ("products, first two merged", MergedProducts),
        ("convolutions", ConvolutionBlock),
        ("convolutions, first two merged", MergedConvolutions),
        ("convolutions, LayerNorm in parts", NormInParts),
        ("convolutions, means as convolutions", MeanAsConvolution),
    ):
        module = rewritten(checkpoint.folded, block_type=block_type)
        module.upsample, module.tail = network.upsample, network.conv_last
        found[name] = module
    found["products, one 5x5 at the end"] = rewritten(checkpoint.folded)
    found["convolutions, one 5x5 at the end"] = rewritten(
        checkpoint.folded, block_type=ConvolutionBlock
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="LR pixels of each side")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(shipped_model())
    network = checkpoint.build().fuse()
    image = torch.rand(1, 3, arguments.size, arguments.size)
    image = image.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = network(image).numpy()
    core: Any = openvino.Core()
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, module in writings(checkpoint, network).items():
        content = exported(module, 3, None, EXPORTER_OPSET, torch.float32)
        content = content.SerializeToString()
        session = open_session(content)
        compiled = core.compile_model(
            core.read_model(io.BytesIO(content)),
            "CPU",
            {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"},
        )
        module.to(memory_format=torch.channels_last)
        feed = {"input": image.numpy()}
        runs[name, "ONNX Runtime"] = partial(session.run, None, feed)
        runs[name, "OpenVINO"] = partial(compiled, feed)
        runs[name, "PyTorch"] = partial(module, image)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    with torch.inference_mode():
        for key, run in runs.items():  # the first run warms up and is checked
            output = np.asarray(run()[0]).reshape(expected.shape)
            error = float(np.abs(output - expected).max())
            assert error < 1e-5, (key, error)
        for _ in range(arguments.rounds):
            for key, run in runs.items():
                time.sleep(0.1)  # until threads of the one before stop spinning
                start = time.perf_counter()
                run()
                times[key].append(time.perf_counter() - start)
    base = times["plain", "ONNX Runtime"]
    print(f"{'writing':36}  runtime          ms  ratio")
    for (name, runtime), spent in times.items():
        ratio = statistics.median(a / b for a, b in zip(spent, base, strict=True))
        ms = 1000 * statistics.median(spent)
        print(f"{name:36}  {runtime:12}  {ms:5.0f}  {ratio:.2f}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        warnings.simplefilter("ignore")
        main()
