"""A block of the network on the Triton kernels: to run it, and to train it."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from aethernet.aether_core import AetherBlock, AetherNet, ReparamLargeKernelConv
from aethernet.checkpoints.folded import BLOCK_EPS, Block, Folded
from aethernet.checkpoints.rewrites import (
    ProductBlock,
    as_linear,
    as_module,
    exact_float32,
)
from aethernet.runtimes.triton.depthwise import (
    LARGEST_KERNEL,
    bands_gradient,
    bands_of,
    convolve,
    kernel_gradient,
    new_bands_gradients,
)
from aethernet.runtimes.triton.feed_forward import (
    LARGEST_WIDTH,
    Projections,
    feed_forward,
    projections,
)
from aethernet.runtimes.triton.feed_forward_gradients import (
    Partial,
    feed_forward_gradients,
)

MOST_ERROR = 0.02
"""Of an output or a gradient, relative, in half precision: bfloat16 rounds to 0.004."""


class TritonBlock(nn.Module):
    """A folded block, to run. Input and output `(B, C, H, W)`, float16 or bfloat16."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.conv = as_module(block.depthwise, depthwise=True)
        self.gate, self.main, self.last = map(
            as_linear, (block.gate, block.main, block.last)
        )
        self._packed: tuple[Tensor, Projections] | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`x` through the block; a `residual` is added to the branch instead of `x`."""
        bands, weights = self.packed(x.dtype)
        u = convolve(x, bands, self.conv.bias)
        return feed_forward(u, x if residual is None else residual, weights, BLOCK_EPS)

    def packed(self, dtype: torch.dtype) -> tuple[Tensor, Projections]:
        """The weights in the forms that the kernels read; made once."""
        if self._packed is None or self._packed[0].dtype is not dtype:
            (gate, gate_bias), (main, main_bias), (last, last_bias) = (
                (layer.weight, layer.bias)
                for layer in (self.gate, self.main, self.last)
            )
            weights = (gate, gate_bias, main, main_bias, last, last_bias)
            bands = bands_of(self.conv.weight, dtype)
            self._packed = bands, projections(*weights, dtype)
        return self._packed


class _Blocks(torch.autograd.Function):
    """A chain of L blocks with its gradients; what is one per block is stacked.

    Of the features it keeps each block's input and convolution.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (B, C, H, W)
        kernels: Tensor,  # (L, C, 1, K, K)
        biases: Tensor,  # (L, C)
        gates: Tensor,  # (L, hidden, C)
        gate_biases: Tensor,  # (L, hidden)
        mains: Tensor,  # as the gates
        main_biases: Tensor,
        lasts: Tensor,  # (L, C, hidden)
        last_biases: Tensor,  # (L, C)
        eps: float,
    ) -> Tensor:
        weights = projections(
            gates, gate_biases, mains, main_biases, lasts, last_biases, x.dtype
        )
        bands = bands_of(kernels, x.dtype)
        features = [x.contiguous()]
        for number, block in enumerate(_each(weights)):
            x = features[-1]
            u = convolve(x, bands[number], biases[number])
            features += [u, feed_forward(u, x, block, eps)]
        ctx.save_for_backward(kernels, *weights, *features[:-1])
        ctx.eps, ctx.hidden = eps, gates.shape[1]
        return features[-1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gradient = gradients[0].contiguous()
        kernels, *rest = ctx.saved_tensors
        weights, features = Projections(*rest[:6]), [*rest[6:]]
        channels, size = kernels.shape[1], kernels.shape[-1]
        bands = bands_of(kernels, gradient.dtype, mirrored=True)
        of_bands = new_bands_gradients(kernels)
        parts = Partial.room(weights, gradient)
        for number, block in [*enumerate(_each(weights))][::-1]:
            u, x = features.pop(), features.pop()
            into = Partial(*(part[number] for part in parts))
            of_u = feed_forward_gradients(u, gradient, block, ctx.eps, into)
            bands_gradient(x, of_u, size, of_bands[number])
            gradient = convolve(of_u, bands[number], residual=gradient)
        found, of_biases = parts.summed()
        return (
            gradient,
            kernel_gradient(of_bands, size),
            of_biases[:, :channels],
            found.gate[:, :channels, : ctx.hidden].mT,
            found.gate_bias[:, : ctx.hidden],
            found.main[:, :channels, : ctx.hidden].mT,
            found.main_bias[:, : ctx.hidden],
            found.last[:, :channels, : ctx.hidden],
            found.last_bias[:, :channels],
            None,
        )


def _each(stacked: Projections) -> Iterator[Projections]:
    return (Projections(*parts) for parts in zip(*stacked, strict=True))


def run_error(folded: Folded, precision: str, device: torch.device) -> float:
    """How far a network on these blocks is off on this GPU, in half precision.

    The relative error (Frobenius norm) of the first block's branch against PyTorch in
    float32, on noise. Infinite for blocks that the kernels cannot compute.
    """
    block = folded.blocks[0]
    channels, _, size, _ = block.depthwise.weight.shape
    if not fits(channels, size):
        return math.inf
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 21, 37, generator=noise).to(device)
    with torch.inference_mode(), exact_float32():
        exact = ProductBlock(block).to(device)(x) - x
        dtype = getattr(torch, precision)
        x = x.to(dtype)
        found = TritonBlock(block).to(device, dtype)(x, torch.zeros_like(x)).float()
        return float((found - exact).norm() / exact.norm())


def fits(embed_dim: int, lk_kernel: int) -> bool:
    """Whether the kernels can compute blocks of this size."""
    return embed_dim <= LARGEST_WIDTH and lk_kernel <= LARGEST_KERNEL


def accelerate(network: AetherNet) -> None:
    """Let a network's blocks run on the kernels, in place.

    The weights stay where they are, so training, saving and averaging go on as before.
    Blocks compute in the dtype that reaches them: half precision under autocast.
    Stochastic depth, dropout and activation checkpointing stay with PyTorch.
    """
    blocks = [part for part in network.modules() if isinstance(part, AetherBlock)]
    layers = network.layers
    layers.forward = partial(_chain, blocks)


def _chain(blocks: Sequence[AetherBlock], x: Tensor) -> Tensor:
    if any(map(_needs_pytorch, blocks)):
        for block in blocks:
            x = block(x)
        return x
    # In one call for all blocks, since a kernel as small as these costs its start.
    kernels, biases = map(
        torch.stack, zip(*(_kernel_and_bias(block) for block in blocks), strict=True)
    )
    scale, shift = (
        torch.stack([getattr(block.norm, name) for block in blocks])[:, None]
        for name in ("weight", "bias")
    )
    layers = {
        name: tuple(
            torch.stack([getattr(getattr(block.ffn, name), part) for block in blocks])
            for part in ("weight", "bias")
        )
        for name in ("fc1_gate", "fc1_main", "fc2")
    }
    # LayerNorm's weight and bias, moved into the projections; without a matrix product,
    # which autocast would round.
    gates, mains = (
        (weight * scale, bias + (weight * shift).sum(2))
        for weight, bias in (layers["fc1_gate"], layers["fc1_main"])
    )
    eps = blocks[0].norm.eps
    result = _Blocks.apply(x, kernels, biases, *gates, *mains, *layers["fc2"], eps)
    assert isinstance(result, Tensor)
    return result


def _kernel_and_bias(block: AetherBlock) -> tuple[Tensor, Tensor]:
    convolution = cast(ReparamLargeKernelConv, block.conv)
    if hasattr(convolution, "fused_conv"):
        return convolution.fused_conv.weight, cast(Tensor, convolution.fused_conv.bias)
    return convolution.kernel_and_bias()


def _needs_pytorch(block: AetherBlock) -> bool:
    drops = any(getattr(part, "p", 0) for part in block.ffn.children())
    drops = drops or block.drop_path.rate > 0
    return block.training and (drops or block.use_checkpoint)


def training_error(embed_dim: int, lk_kernel: int, mlp_ratio: float) -> float:
    """How far a block of this size is off on this GPU, in bfloat16.

    The largest relative error (Frobenius norm) of the output and of each gradient,
    against PyTorch in float32, on noise. Compiles the kernels.
    """
    torch.manual_seed(0)
    network = AetherNet(
        embed_dim=embed_dim, depths=(1,), lk_kernel=lk_kernel, mlp_ratio=mlp_ratio
    )
    reference = next(m for m in network.modules() if isinstance(m, AetherBlock))
    reference = reference.cuda().eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5
            parameter.normal_(std=spread)
        reference.norm.weight.add_(1)
    x, push = torch.randn(2, 2, embed_dim, 21, 37, device="cuda").unbind()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = x.detach().to(dtype).requires_grad_()
        reference.zero_grad()
        with exact_float32():
            exact = dtype is torch.float32
            output = reference(leaf) if exact else _chain([reference], leaf)
            output.backward(push.to(dtype))
        weights = [parameter.grad for parameter in reference.parameters()]
        found.append([output.detach(), leaf.grad, *weights])
    return max(
        float((mine.float() - right).norm() / right.norm())
        for right, mine in zip(*found, strict=True)
    )
