"""The network in PyTorch: as it is trained, and the folded network as a module.

The module is made of the arrays of a folded network (`folded`), so it computes the same
function in fewer steps. Checkpoints never hold this form: their keys are the public
format.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from aethernet.aether_core import AetherNet
from aethernet.checkpoints.arrays import Array
from aethernet.checkpoints.folded import (
    BLOCK_EPS,
    LEAKY_SLOPE,
    NORM_EPS,
    Block,
    Convolution,
    Edges,
    Folded,
    Tail,
    fold,
)


def build_network(
    hyperparameters: Mapping[str, Any], state_dict: Mapping[str, Array]
) -> AetherNet:
    """The network as it is trained: float32, on the CPU, in evaluation mode."""
    network = AetherNet(**hyperparameters)
    network.load_state_dict(as_tensors(state_dict))
    return network.eval()


def as_tensors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict whose arrays are tensors; other values stay as they are."""
    return {
        key: value if isinstance(value, Tensor) else torch.tensor(value)
        for key, value in state_dict.items()
    }


def fold_network(network: AetherNet, dtype: str = "float32") -> Folded:
    """Fold a network in PyTorch, see `folded.fold`; "float64" is for proofs."""
    arrays = {
        key: value.detach().cpu().double().numpy()
        for key, value in network.state_dict().items()
    }
    return fold(arrays, network.img_range, dtype)


def run_network(network: nn.Module, image: Array, device: str = "cpu") -> Array:
    """The output of a network in exact float32, which is moved to the device.

    In channels last, which halves the time on a CPU.

    Args:
        network: takes `(B, C, H, W)`, 0..1.
        image: that, in float32.
        device: of PyTorch.
    """
    network = network.to(device).to(memory_format=torch.channels_last)
    with torch.inference_mode(), exact_float32():
        return network(torch.tensor(image).to(device)).cpu().numpy()


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Stop a GPU from computing float32 convolutions in TF32 (10-bit mantissa)."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


class ProductBlock(nn.Module):
    """A block as matrix products over pixels, for PyTorch in channels last."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.conv = as_module(block.depthwise, depthwise=True)
        self.gate, self.main, self.last = map(
            as_linear, (block.gate, block.main, block.last)
        )

    def forward(self, x: Tensor) -> Tensor:
        t = self.conv(x).permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
        pixels = t.flatten(0, 2)  # (B * H * W, C), without a copy in channels last
        # PyTorch sums in float32 here in every dtype.
        pixels = functional.layer_norm(pixels, t.shape[-1:], eps=BLOCK_EPS)
        pixels = functional.gelu(self.gate(pixels)) * self.main(pixels)
        return x + self.last(pixels).view(t.shape).permute(0, 3, 1, 2)


class ConvolutionBlock(nn.Module):
    """A block as 1x1 convolutions, for exported graphs.

    Runtimes with a blocked channel layout then leave it once per block, for LayerNorm,
    and add bias and residual inside the convolutions. LayerNorm is in float32: sums of
    squares overflow float16 at 65504.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.conv = as_module(block.depthwise, depthwise=True)
        self.gate, self.main, self.last = map(
            as_module, (block.gate, block.main, block.last)
        )

    def forward(self, x: Tensor) -> Tensor:
        t = _wide(self.conv(x).permute(0, 2, 3, 1))  # (B, C, H, W) -> (B, H, W, C)
        t = functional.layer_norm(t, t.shape[-1:], eps=BLOCK_EPS)
        t = t.to(x.dtype).permute(0, 3, 1, 2)  # -> (B, C, H, W)
        return x + self.last(functional.gelu(self.gate(t)) * self.main(t))


class TailModule(nn.Module):
    """`folded.Tail`: one convolution and a PixelShuffle, exact at the edges."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self.factor = tail.factor
        self.whole = as_module(tail.whole)
        self.edges = nn.ModuleList()
        if tail.edges is not None:
            self.edges.extend(_edge_modules(tail.edges, tail.factor))

    def forward(self, x: Tensor) -> Tensor:
        y = self.whole(x)
        if len(self.edges):
            y = self._correct(x, y)
        return functional.pixel_shuffle(y, self.factor)

    def _correct(self, x: Tensor, y: Tensor) -> Tensor:
        """`whole(x) - rows(x) - columns(x) + corners(x)`, see `folded.Edges`."""
        top, bottom, left, right, *corners = self.edges
        first_row, last_row = x[:, :, :1], x[:, :, -1:]
        above, below = top(first_row), bottom(last_row)
        before = left(x[..., :1])
        before = _plus_ends(
            before, corners[0](first_row[..., :1]), corners[2](last_row[..., :1]), 2
        )
        after = right(x[..., -1:])
        after = _plus_ends(
            after, corners[1](first_row[..., -1:]), corners[3](last_row[..., -1:]), 2
        )
        y = _plus_ends(y, above, below, 2)
        return _plus_ends(y, before, after, 3)


class RewrittenNet(nn.Module):
    """A folded network as a module.

    Input `(B, in_chans, H, W)`, float32 or the precision's dtype, 0..1; output
    `(B, in_chans, scale*H, scale*W)` in the dtype of the input, not clamped.
    """

    def __init__(
        self,
        folded: Folded,
        dtype: torch.dtype,
        block_type: Callable[[Block], nn.Module],
    ) -> None:
        super().__init__()
        self.in_chans, self.mean, self.scale = (
            folded.in_chans,
            folded.mean,
            folded.scale,
        )
        self.conv_first = as_module(folded.first)
        self.blocks = nn.Sequential(*map(block_type, folded.blocks))
        self.conv_after_body = as_module(folded.after_body)
        self.conv_before_upsample = nn.Sequential(
            as_module(folded.before_upsample), nn.LeakyReLU(LEAKY_SLOPE)
        )
        self.upsample = nn.Sequential()
        for convolution, factor in folded.steps:
            self.upsample.append(as_module(convolution))
            self.upsample.append(nn.PixelShuffle(factor))
        self.tail: nn.Module = TailModule(folded.tail)
        self.norm = nn.LayerNorm(len(folded.norm_bias), NORM_EPS)
        self.norm.weight = _parameter(folded.norm_weight)
        self.norm.bias = _parameter(folded.norm_bias)
        self.to(dtype)
        if dtype.itemsize < 4:
            self.norm.float()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv_first((x - self.mean).to(self.dtype))
        features = self.blocks(first)
        normal = self.norm(_wide(features.permute(0, 2, 3, 1))).to(self.dtype)
        features = self.conv_after_body(normal.permute(0, 3, 1, 2)) + first
        features = self.upsample(self.conv_before_upsample(features))
        return self.tail(features).to(x.dtype) + self.mean


@torch.no_grad()
def rewritten(
    folded: Folded,
    precision: str = "float32",
    block_type: Callable[[Block], nn.Module] = ProductBlock,
) -> RewrittenNet:
    """A folded network as a module.

    In float32 the results differ from the network's by rounding only, about 2e-6 on the
    shipped model.

    Args:
        folded: as `Checkpoint.folded` or `fold_network`.
        precision: of weights and activations, a member of `layout.PRECISIONS`, or
            "float64" for proofs. LayerNorm is in float32 in lower precisions.
        block_type: `ProductBlock` to run in PyTorch, `ConvolutionBlock` to export;
            docs/performance.md has the measurements.
    """
    return RewrittenNet(folded, getattr(torch, precision), block_type).eval()


def as_module(convolution: Convolution, depthwise: bool = False) -> nn.Conv2d:
    """A convolution of the folded network as a module."""
    out, channels, rows, columns = convolution.weight.shape
    groups = out if depthwise else 1
    module = nn.Conv2d(
        channels * groups,
        out,
        (rows, columns),
        padding=(rows // 2, columns // 2),
        groups=groups,
        device="meta",  # its own weights are not needed
    )
    module.weight, module.bias = map(_parameter, (convolution.weight, convolution.bias))
    return module


def as_linear(convolution: Convolution) -> nn.Linear:
    """A 1x1 convolution of the folded network as a linear layer over channels."""
    out, channels = convolution.weight.shape[:2]
    module = nn.Linear(channels, out, device="meta")
    module.weight = _parameter(convolution.weight[:, :, 0, 0])
    module.bias = _parameter(convolution.bias)
    return module


def _parameter(values: Array) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def _wide(x: Tensor) -> Tensor:
    """In float32, unless it is wider already."""
    return x.float() if x.dtype.itemsize < 4 else x


def _edge_modules(edges: Edges, factor: int) -> Iterator[nn.Conv2d]:
    """What to add at the edges, where each is right for all channels.

    First row, last row, first column, last column; then the corners: row by row.
    """
    ends = (0, factor - 1)
    for end in ends:
        yield _only(edges.rows, factor, -1, rows=end)
    for end in ends:
        yield _only(edges.columns, factor, -1, columns=end)
    for row in ends:
        for column in ends:
            yield _only(edges.corners, factor, 1, rows=row, columns=column)


def _only(
    convolution: Convolution,
    factor: int,
    sign: int,
    rows: int | None = None,
    columns: int | None = None,
) -> nn.Conv2d:
    """`sign` times a convolution, 0 except for some pixels of a position."""
    kept = torch.zeros(len(convolution.bias) // factor**2, factor, factor)
    row = slice(None) if rows is None else rows
    column = slice(None) if columns is None else columns
    kept[:, row, column] = sign
    module = as_module(convolution)
    with torch.no_grad():
        module.weight.mul_(kept.view(-1, 1, 1, 1))
        module.bias.mul_(kept.view(-1))  # type: ignore[union-attr]
    return module


def _plus_ends(x: Tensor, first: Tensor, last: Tensor, dim: int) -> Tensor:
    """`x` with `first` added to its first row or column and `last` to its last.

    They may be the same.
    """
    size = x.shape[dim]
    x = torch.cat([x.narrow(dim, 0, 1) + first, x.narrow(dim, 1, size - 1)], dim)
    return torch.cat(
        [x.narrow(dim, 0, size - 1), x.narrow(dim, size - 1, 1) + last], dim
    )
