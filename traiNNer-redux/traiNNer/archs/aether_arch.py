"""AetherNet for traiNNer-redux: copy this file into traiNNer/archs/.

Registers `aether`, `aether_small`, `aether_medium` and `aether_large`. traiNNer-redux
passes the `scale` of the option file as a keyword.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from traiNNer.utils.registry import ARCH_REGISTRY

# --- AetherNet begins: written by tools/sync_core.py from the core ---

UPSAMPLE_FACTORS: dict[int, tuple[int, ...]]  # of the PixelShuffle steps, by scale
UPSAMPLE_FACTORS = {1: (), 2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
UPSAMPLE_CHANNELS = 64  # the same in every variant
_LK11 = {"lk_kernel": 11, "sk_kernel": 3}
_LK13 = {"lk_kernel": 13, "sk_kernel": 3}
# What `aether_small`, `aether_medium` and `aether_large` build unless overridden.
VARIANTS: dict[str, dict[str, Any]] = {
    "aether_small": {"embed_dim": 96, "depths": (4,) * 4, "mlp_ratio": 2.0, **_LK11},
    "aether_medium": {"embed_dim": 128, "depths": (6,) * 6, "mlp_ratio": 2.0, **_LK11},
    "aether_large": {"embed_dim": 180, "depths": (8,) * 8, "mlp_ratio": 2.5, **_LK13},
}


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): drops whole samples in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        return x * (x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep) / keep)


class ReparamLargeKernelConv(nn.Module):
    """Depthwise, a large and a small kernel side by side, "same" zero padding."""

    def __init__(self, dim: int, lk_kernel: int, sk_kernel: int, fused: bool) -> None:
        super().__init__()
        if fused:
            self.fused_conv = self._depthwise(dim, lk_kernel, bias=True)
        else:
            self.lk_conv = self._depthwise(dim, lk_kernel, bias=False)
            self.sk_conv = self._depthwise(dim, sk_kernel, bias=False)
            self.lk_bias = nn.Parameter(torch.zeros(dim))
            self.sk_bias = nn.Parameter(torch.zeros(dim))

    @staticmethod
    def _depthwise(dim: int, kernel: int, bias: bool) -> nn.Conv2d:
        return nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "fused_conv"):
            return self.fused_conv(x)
        weight, bias = self.kernel_and_bias()  # their sum first saves a convolution
        return nn.functional.conv2d(x, weight, bias, padding="same", groups=len(weight))

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        """Kernel (the small one centred in the large one) and bias of both branches."""
        large, small = self.lk_conv.weight, self.sk_conv.weight
        margin = (large.shape[-1] - small.shape[-1]) // 2
        weight = large + nn.functional.pad(small, [margin] * 4)
        return weight.view_as(large), self.lk_bias + self.sk_bias  # shape for exporters

    @torch.no_grad()
    def fuse(self) -> None:
        """Replace both branches by one convolution. Does nothing once fused."""
        if hasattr(self, "fused_conv"):
            return
        trains = self.lk_conv.weight.requires_grad
        weight, bias = (nn.Parameter(part, trains) for part in self.kernel_and_bias())
        self.fused_conv = self.lk_conv  # has the right size already
        self.fused_conv.weight, self.fused_conv.bias = weight, bias
        del self.lk_conv, self.sk_conv, self.lk_bias, self.sk_bias


class GatedFeedForward(nn.Module):
    """Gated linear unit over the last dimension: `fc2(GELU(fc1_gate) * fc1_main)`."""

    def __init__(self, dim: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.fc1_gate = nn.Linear(dim, hidden)
        self.fc1_main = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(nn.functional.gelu(self.fc1_gate(x)) * self.fc1_main(x))
        return self.drop(self.fc2(x))


class AetherBlock(nn.Module):
    """Mix pixels (depthwise convolution), then channels (gated feed-forward)."""

    def __init__(self, dim: int, conv: nn.Module, ffn: nn.Module, rate: float) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = ffn
        self.drop_path = DropPath(rate)
        self.use_checkpoint = False  # in training: keep only the input, compute twice

    def forward(self, x: Tensor) -> Tensor:
        if self.use_checkpoint and self.training:
            return x + checkpoint(self.branch, x, use_reentrant=False)
        return x + self.branch(x)

    def branch(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))  # (B, C, H, W) -> (B, H, W, C)
        return self.drop_path(self.ffn(x).permute(0, 3, 1, 2))  # -> (B, C, H, W)


class AetherNet(nn.Module):
    """The network. Impossible arguments raise ValueError.

    Input: `(B, in_chans, H, W)`, H and W from 1 up, values 0..1, dtype of the weights.
    Output: `(B, in_chans, scale*H, scale*W)`, the same range, not clamped.
    `hyperparameters` holds the arguments: `AetherNet(**net.hyperparameters)` loads
    `net.state_dict()`, also after `net.fuse()`.
    """

    def __init__(
        self,
        in_chans: int = 3,  # channels of the image, in and out; 3 is RGB
        embed_dim: int = 128,  # channels of the blocks
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),  # number of blocks in each group
        mlp_ratio: float = 2.0,  # int(embed_dim * mlp_ratio) hidden channels
        drop_rate: float = 0.0,  # dropout in the feed-forward
        drop_path_rate: float = 0.1,  # of the last block, rising linearly from 0
        lk_kernel: int = 11,  # large depthwise kernel, odd
        sk_kernel: int = 3,  # small depthwise kernel, odd, no larger than lk_kernel
        scale: int = 4,  # 1 restores without enlarging
        img_range: float = 1.0,  # the image is multiplied by this inside
        fused_init: bool = False,  # build the fused form, to load a fused checkpoint
        use_checkpoint: bool = False,  # training: less memory, blocks computed twice
    ) -> None:
        super().__init__()
        self.hyperparameters: dict[str, Any] = {
            "in_chans": in_chans,
            "embed_dim": embed_dim,
            "depths": tuple(depths),
            "mlp_ratio": mlp_ratio,
            "drop_rate": drop_rate,
            "drop_path_rate": drop_path_rate,
            "lk_kernel": lk_kernel,
            "sk_kernel": sk_kernel,
            "scale": scale,
            "img_range": img_range,
            "fused_init": fused_init,
            "use_checkpoint": use_checkpoint,
        }
        _check_arguments(self.hyperparameters)
        self.in_chans, self.img_range = in_chans, img_range
        self.mean = 0.5 if in_chans == 3 else 0.0  # a number follows device and dtype

        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()

        def block() -> AetherBlock:
            conv = ReparamLargeKernelConv(embed_dim, lk_kernel, sk_kernel, fused_init)
            ffn = GatedFeedForward(embed_dim, int(embed_dim * mlp_ratio), drop_rate)
            made = AetherBlock(embed_dim, conv, ffn, rates.pop(0))
            made.use_checkpoint = use_checkpoint
            return made

        groups = ((block() for _ in range(depth)) for depth in depths)
        self.layers = nn.Sequential(*(nn.Sequential(*group) for group in groups))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)
        self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)
        narrow = nn.Conv2d(embed_dim, UPSAMPLE_CHANNELS, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(narrow, nn.LeakyReLU(0.01))
        self.upsample = nn.Sequential()
        for factor in UPSAMPLE_FACTORS[scale]:
            rows = UPSAMPLE_CHANNELS * factor**2
            self.upsample.append(nn.Conv2d(UPSAMPLE_CHANNELS, rows, 3, padding=1))
            self.upsample.append(nn.PixelShuffle(factor))
        self.conv_last = nn.Conv2d(UPSAMPLE_CHANNELS, in_chans, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            wanted = f"(B, {self.in_chans}, H, W)"
            raise ValueError(f"AetherNet takes {wanted}, not {tuple(x.shape)}.")
        first = self.conv_first((x - self.mean) * self.img_range)
        features = self.layers(first)
        features = self.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        features = self.conv_after_body(features) + first
        features = self.upsample(self.conv_before_upsample(features))
        return self.conv_last(features) / self.img_range + self.mean

    @property
    def is_fused(self) -> bool:
        return self.hyperparameters["fused_init"]

    def fuse(self) -> AetherNet:
        """Turn the training form into the fused form in place, and return self."""
        for module in [*self.modules()]:
            if isinstance(module, ReparamLargeKernelConv):
                module.fuse()
        self.hyperparameters["fused_init"] = True
        return self

    @property
    def receptive_radius(self) -> int:
        """How many LR pixels on each side can influence an output pixel."""
        arguments, radius = self.hyperparameters, 1  # conv_last
        for factor in reversed(UPSAMPLE_FACTORS[arguments["scale"]]):
            radius = math.ceil(radius / factor) + 1  # PixelShuffle, then its 3x3
        radius += sum(arguments["depths"]) * (arguments["lk_kernel"] // 2)
        return radius + 3  # conv_before_upsample, conv_after_body, conv_first


def _check_arguments(given: Mapping[str, Any]) -> None:
    """Raise ValueError for arguments of `AetherNet` that describe no network."""
    embed_dim, mlp_ratio = given["embed_dim"], given["mlp_ratio"]
    hidden = int(embed_dim * mlp_ratio) if math.isfinite(mlp_ratio) else 0
    large, small = given["lk_kernel"], given["sk_kernel"]
    kernels = large % 2 == small % 2 == 1 <= small <= large
    drops = all(0 <= given[key] < 1 for key in ("drop_rate", "drop_path_rate"))
    rules = {
        "in_chans and embed_dim start at 1": min(given["in_chans"], embed_dim) >= 1,
        "embed_dim * mlp_ratio must be 1 or more, and finite": hidden >= 1,
        "depths needs groups of at least one block": min(given["depths"], default=0)
        > 0,
        "kernels must be odd, sk_kernel no larger than lk_kernel": kernels,
        f"scale is one of {[*UPSAMPLE_FACTORS]}": given["scale"] in UPSAMPLE_FACTORS,
        "drop_rate and drop_path_rate must be in [0, 1)": drops,
        "img_range must be positive and finite": 0 < given["img_range"] < math.inf,
    }
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(f"AetherNet: {rule}; given were {given}.")


def aether_small(**overrides: Any) -> AetherNet:
    return AetherNet(**{**VARIANTS["aether_small"], **overrides})


def aether_medium(**overrides: Any) -> AetherNet:
    return AetherNet(**{**VARIANTS["aether_medium"], **overrides})


def aether_large(**overrides: Any) -> AetherNet:
    return AetherNet(**{**VARIANTS["aether_large"], **overrides})


def variant_name(hyperparameters: Mapping[str, Any]) -> str | None:
    """Name the variant that these arguments of `AetherNet` describe, or None."""
    given = hyperparameters.items()
    return next((name for name, v in VARIANTS.items() if v.items() <= given), None)


def hyperparameters_from_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Find arguments with which `AetherNet` loads this state dict, `strict=True`.

    They follow from keys and shapes, which do not tell `img_range` and the drop rates
    (left out) and, once fused, `sk_kernel` (a possible one). Raises ValueError naming
    the first wrong key of another network, of a mix of both forms, or of a gap.
    """
    found = {str(k): [*getattr(v, "shape", [0])] for k, v in state_dict.items()}

    def size(key: str, dim: int) -> int:  # 1 if missing: the comparison below fails
        return max([*found.get(key, []), 1, 1, 1, 1][dim], 1)

    blocks = re.findall(r"(?m)^layers\.(\d{1,3})\.(\d{1,3})\.", "\n".join(found))
    numbers = {(int(group), int(block)) for group, block in blocks}
    groups = range(max(numbers, default=(0, 0))[0] + 1)
    depths = [max((b for g, b in numbers if g == i), default=0) + 1 for i in groups]
    depths = depths if sum(depths) <= len(found) else [1]  # no huge net for one index
    kernel = re.compile(r"layers\.\d+\.\d+\.conv\.(lk|fused)_conv\.weight")
    large = next(filter(kernel.fullmatch, found), "")
    fused = "fused_conv" in large
    embed_dim = size("conv_first.weight", 0)
    hidden = size(large.split("conv.")[0] + "ffn.fc1_gate.weight", 0)
    ratio = hidden / embed_dim
    if int(embed_dim * ratio) < hidden:  # the quotient was rounded down
        ratio = math.nextafter(ratio, math.inf)
    lk_kernel = size(large, 3) | 1  # made odd: the comparison below finds an even one
    sk_kernel = 3 if fused else size(large.replace("lk_conv", "sk_conv"), 3) | 1
    rows = [size(f"upsample.{i}.weight", 0) for i in (0, 2, 4)]
    factors = tuple(math.isqrt(r // UPSAMPLE_CHANNELS) for r in rows if r > 1)
    scales = {factors: scale for scale, factors in UPSAMPLE_FACTORS.items()}
    arguments: dict[str, Any] = {
        "in_chans": size("conv_first.weight", 1),
        "embed_dim": embed_dim,
        "depths": tuple(depths),
        "mlp_ratio": ratio,
        "lk_kernel": lk_kernel,
        "sk_kernel": min(sk_kernel, lk_kernel),
        "scale": scales.get(factors, 1),
        "fused_init": fused,
    }
    with torch.device("meta"):  # shapes without memory
        net = AetherNet(**arguments)
    wanted = {key: [*value.shape] for key, value in net.state_dict().items()}
    for key in [*found, *wanted]:
        need, have = (shapes.get(key, "no such key") for shapes in (wanted, found))
        if need != have:
            raise ValueError(
                "Not an AetherNet, or an incomplete one, or one with both forms: "
                f"key {key!r}, expected {need}, found {have}."
            )
    return arguments


# --- AetherNet ends ---


def aether(**options: Any) -> AetherNet:
    """Any size; `options` are arguments of `AetherNet`."""
    return AetherNet(**options)


for builder in (aether, aether_small, aether_medium, aether_large):
    ARCH_REGISTRY.register(builder)
