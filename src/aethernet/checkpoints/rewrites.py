"""The network as it is exported and run: the same function in fewer steps.

Each step is exact for all weights, and is computed in float64:

- The projections after a LayerNorm take over its scale g and shift b:
  `W (g * n + b) + c = (W g) n + (W b + c)`.
- The last 3x3 convolution before the last PixelShuffle, that PixelShuffle and
  `conv_last` have nothing non-linear between them. They become one 5x5 convolution on
  the smaller grid and a PixelShuffle. At 2x it takes an eighth of their multiply-adds.
  The padding differs for the outermost output pixels only, which are computed in the
  original way.
- The first and the last convolution take over `img_range`.

Checkpoints never hold this form: their keys are the public format.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from aethernet.aether_core import AetherBlock, AetherNet
from aethernet.checkpoints.folded import Folded, fold

PRECISIONS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class ProductBlock(nn.Module):
    """An AetherBlock as matrix products over pixels, for PyTorch in channels last."""

    def __init__(self, block: AetherBlock) -> None:
        super().__init__()
        self.conv = block.conv
        self.eps = block.norm.eps
        self.gate, self.main, self.last = projections(block)

    def forward(self, x: Tensor) -> Tensor:
        t = self.conv(x).permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
        pixels = t.flatten(0, 2)  # (B * H * W, C), without a copy in channels last
        # PyTorch sums in float32 here in every dtype.
        pixels = functional.layer_norm(pixels, t.shape[-1:], eps=self.eps)
        pixels = functional.gelu(self.gate(pixels)) * self.main(pixels)
        return x + self.last(pixels).view(t.shape).permute(0, 3, 1, 2)


class ConvolutionBlock(nn.Module):
    """An AetherBlock as 1x1 convolutions, for exported graphs.

    Runtimes with a blocked channel layout then leave it once per block, for LayerNorm,
    and add bias and residual inside the convolutions. LayerNorm is in float32: sums of
    squares overflow float16 at 65504.
    """

    def __init__(self, block: AetherBlock) -> None:
        super().__init__()
        self.conv = block.conv
        self.eps = block.norm.eps
        self.gate, self.main, self.last = map(as_convolution, projections(block))

    def forward(self, x: Tensor) -> Tensor:
        t = self.conv(x).permute(0, 2, 3, 1).float()  # (B, C, H, W) -> (B, H, W, C)
        t = functional.layer_norm(t, t.shape[-1:], eps=self.eps)
        t = t.to(x.dtype).permute(0, 3, 1, 2)  # -> (B, C, H, W)
        return x + self.last(functional.gelu(self.gate(t)) * self.main(t))


class ShuffledConvolution(nn.Module):
    """`last(PixelShuffle(widen(x)))`, two 3x3 convolutions, as one of 5x5."""

    def __init__(self, widen: nn.Conv2d, factor: int, last: nn.Conv2d) -> None:
        super().__init__()
        self.widen, self.last, self.factor = widen, last, factor
        channels = widen.in_channels
        rows = last.out_channels * factor**2
        # The response to zeros is the bias, and to a single 1 among zeros the kernel.
        impulses = torch.zeros(channels, channels, 5, 5).to(widen.weight)
        impulses[range(channels), range(channels), 2, 2] = 1
        padded = functional.pad(impulses, [2] * 4)
        responses = functional.pixel_unshuffle(self.in_two_steps(padded), factor)
        to_zeros = self.in_two_steps(torch.zeros_like(padded[:1]))
        bias = functional.pixel_unshuffle(to_zeros, factor)[0, :, 4, 4]
        kernel = (responses - bias.view(1, -1, 1, 1))[:, :, 2:-2, 2:-2]
        self.both = nn.Conv2d(channels, rows, 5, padding=2)
        self.both.weight = nn.Parameter(kernel.flip(2, 3).transpose(0, 1).contiguous())
        self.both.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.pixel_shuffle(self.both(x), self.factor)
        # `last` pads with zeros; `both` has the output of `widen` on its padding there.
        top = self.in_two_steps(x[:, :, :2])[:, :, :1]
        bottom = self.in_two_steps(x[:, :, -2:])[:, :, -1:]
        y = torch.cat([top, y[:, :, 1:-1], bottom], 2)
        left = self.in_two_steps(x[:, :, :, :2])[:, :, :, :1]
        right = self.in_two_steps(x[:, :, :, -2:])[:, :, :, -1:]
        return torch.cat([left, y[:, :, :, 1:-1], right], 3)

    def in_two_steps(self, x: Tensor) -> Tensor:
        return self.last(functional.pixel_shuffle(self.widen(x), self.factor))


class RewrittenNet(nn.Module):
    """An AetherNet in fewer steps.

    Input `(B, in_chans, H, W)`, float32 or the precision's dtype, 0..1; output
    `(B, in_chans, scale*H, scale*W)` in the dtype of the input, not clamped.
    """

    def __init__(
        self,
        network: AetherNet,
        dtype: torch.dtype,
        block_type: Callable[[AetherBlock], nn.Module],
    ) -> None:
        super().__init__()
        self.hyperparameters = network.hyperparameters
        self.in_chans, self.mean = network.in_chans, network.mean
        network = copy.deepcopy(network).fuse().double()
        network.conv_first.weight.mul_(network.img_range)
        for parameter in network.conv_last.parameters():
            parameter.div_(network.img_range)
        self.conv_first = network.conv_first
        groups: Any = network.layers  # modules of any type to the type checker
        blocks = (block_type(block) for group in groups for block in group)
        self.blocks = nn.Sequential(*blocks)
        self.conv_after_body = network.conv_after_body
        self.conv_before_upsample = network.conv_before_upsample
        *earlier, self.tail = _upsampling(network)
        self.upsample = nn.Sequential(*earlier)
        self.to(dtype)
        self.norm = network.norm.float()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv_first((x - self.mean).to(self.dtype))
        features = self.blocks(first)
        normal = self.norm(features.permute(0, 2, 3, 1).float()).to(self.dtype)
        features = self.conv_after_body(normal.permute(0, 3, 1, 2)) + first
        features = self.upsample(self.conv_before_upsample(features))
        return self.tail(features).to(x.dtype) + self.mean


@torch.no_grad()
def rewritten(
    network: AetherNet,
    precision: str = "float32",
    block_type: Callable[[AetherBlock], nn.Module] = ProductBlock,
) -> RewrittenNet:
    """The same function as `network` in evaluation mode; `network` is not changed.

    In float32 the results differ by rounding only, about 2e-6 on the shipped model.

    Args:
        network: either form.
        precision: of weights and activations, a key of `PRECISIONS`. LayerNorm is
            always in float32.
        block_type: `ProductBlock` to run in PyTorch, `ConvolutionBlock` to export;
            docs/performance.md has the measurements.
    """
    return RewrittenNet(network, PRECISIONS[precision], block_type).eval()


def fold_tensors(state_dict: Mapping[str, Tensor], img_range: float = 1.0) -> Folded:
    """Fold a state dict of tensors on any device, see `folded.fold`; in float32."""
    arrays = {k: v.detach().cpu().double().numpy() for k, v in state_dict.items()}
    return fold(arrays, img_range)


def projections(block: AetherBlock) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """Copies of the projections of a block: gate, main and last.

    The first two include the scale and shift of LayerNorm, so they take its output
    before these are applied. The block is not changed.
    """
    ffn: Any = block.ffn  # a submodule of any type to the type checker
    gate, main = (_with_norm(each, block.norm) for each in (ffn.fc1_gate, ffn.fc1_main))
    return gate, main, copy.deepcopy(ffn.fc2)


@torch.no_grad()
def _with_norm(linear: nn.Linear, norm: nn.LayerNorm) -> nn.Linear:
    """`linear(norm.weight * x + norm.bias)` as one linear layer."""
    folded = copy.deepcopy(linear)
    folded.bias.add_(linear.weight @ norm.bias)
    folded.weight.mul_(norm.weight)
    return folded


def as_convolution(linear: nn.Linear) -> nn.Conv2d:
    """A 1x1 convolution that shares the weights of a linear layer."""
    convolution = nn.Conv2d(linear.in_features, linear.out_features, 1)
    convolution.weight = nn.Parameter(linear.weight[:, :, None, None])
    convolution.bias = linear.bias
    return convolution


def _upsampling(network: AetherNet) -> list[nn.Module]:
    """The modules after `conv_before_upsample`; the last one is the tail."""
    if not len(network.upsample):  # scale 1
        return [network.conv_last]
    upsample: Any = network.upsample
    *earlier, widen, shuffle = upsample
    tail = ShuffledConvolution(widen, shuffle.upscale_factor, network.conv_last)
    return [*earlier, tail]
