"""Keys, shapes and metadata of an AetherNet state dict, without PyTorch and NumPy.

What `aether_core.hyperparameters_from_state_dict` finds by building a network, found
from the table of shapes. `aether_core` cannot share it: that file is copied alone into
training frameworks. The tests compare both on every configuration.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from aethernet.errors import CheckpointError, first_line

T = TypeVar("T")

PRECISIONS = ("float32", "float16", "bfloat16")
"""Types that a network can be computed in."""

UPSAMPLE_FACTORS: dict[int, tuple[int, ...]]  # of the PixelShuffle steps, by scale
UPSAMPLE_FACTORS = {1: (), 2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
UPSAMPLE_CHANNELS = 64
_LK11 = {"lk_kernel": 11, "sk_kernel": 3}
_LK13 = {"lk_kernel": 13, "sk_kernel": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "aether_small": {"embed_dim": 96, "depths": (4,) * 4, "mlp_ratio": 2.0, **_LK11},
    "aether_medium": {"embed_dim": 128, "depths": (6,) * 6, "mlp_ratio": 2.0, **_LK11},
    "aether_large": {"embed_dim": 180, "depths": (8,) * 8, "mlp_ratio": 2.5, **_LK13},
}

MOST_BLOCKS = 500
"""Blocks of a network; aether_large has 64."""

# What DataParallel, torch.compile, AveragedModel and GAN trainers put before every key.
PREFIXES = ("module.", "_orig_mod.", "netG.")

_BLOCK = re.compile(r"(?m)^layers\.(\d{1,3})\.(\d{1,3})\.")
_LARGE_KERNEL = re.compile(r"layers\.\d+\.\d+\.conv\.(lk|fused)_conv\.weight")


def variant_name(hyperparameters: Mapping[str, Any]) -> str | None:
    """Name the variant that these hyper-parameters describe, or None."""
    given = hyperparameters.items()
    return next((name for name, v in VARIANTS.items() if v.items() <= given), None)


def hyperparameters_from_shapes(
    shapes: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """Find the arguments of `AetherNet` that a state dict of these shapes needs.

    Args:
        shapes: by key, of the training form or the fused form.

    Returns:
        The same as `aether_core.hyperparameters_from_state_dict`: `img_range` and the
        drop rates are left out, and `sk_kernel` is a possible one in the fused form.

    Raises:
        CheckpointError: naming the first wrong key of another network, of a mix of both
            forms, or of a gap.
    """
    found = {str(key): [*shape] for key, shape in shapes.items()}
    arguments = _deduced(found)
    wanted = {key: [*shape] for key, shape in expected_shapes(arguments).items()}
    for key in [*found, *wanted]:
        need, have = (table.get(key, "no such key") for table in (wanted, found))
        if need != have:
            raise CheckpointError(
                "Not an AetherNet, or an incomplete one, or one with both forms: "
                f"key {key!r}, expected {need}, found {have}.",
                hint=_hint_at_prefix(found),
            )
    return arguments


def _hint_at_prefix(keys: Iterable[str]) -> str:
    """How to read a network whose keys begin with the name of a module."""
    first = ".conv_first.weight"
    names = [key.removesuffix(first) for key in keys if key.endswith(first)]
    if not names:
        return ""
    flags = " or ".join(f"--param-key {name}" for name in names[:3])
    return f"Name what the keys of the network begin with: {flags}."


def without_prefixes(state_dict: Mapping[Any, T]) -> dict[str, T]:
    """The same state dict without what trainers put before every key."""
    # AveragedModel counts its updates in "n_averaged", with or without a prefix.
    left = {str(key): value for key, value in state_dict.items()}
    left = {k: v for k, v in left.items() if k.rpartition(".")[2] != "n_averaged"}
    while left:
        prefix = next((p for p in PREFIXES if all(k.startswith(p) for k in left)), None)
        if prefix is None:
            break
        left = {key.removeprefix(prefix): value for key, value in left.items()}
    return left


def arguments_from_metadata(
    metadata: Mapping[str, str], found: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of `AetherNet` that no weight tells, as far as the metadata tell them.

    They are `img_range`, the drop rates and, in the fused form, `sk_kernel`.

    Args:
        metadata: of a file of ours or of traiNNer-redux.
        found: what the shapes tell.

    Raises:
        CheckpointError: when the metadata are damaged, or a value is impossible.
    """
    stored: Mapping[str, Any] = metadata  # traiNNer-redux's, in a .pth
    told: dict[str, Any] = {}
    try:
        # Ours, and traiNNer-redux's in a .safetensors.
        for key in ("hyperparameters", "metadata"):
            if metadata.get(key, "").startswith("{"):
                stored = json.loads(metadata[key])
        for key in ("img_range", "drop_rate", "drop_path_rate"):
            if key in stored:
                told[key] = float(stored[key])
        if found["fused_init"] and "sk_kernel" in stored:
            told["sk_kernel"] = int(stored["sk_kernel"])  # fused weights lost it
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        detail = first_line(error).rstrip(".")
        raise CheckpointError(f"The metadata is damaged ({detail}).") from error
    small = told.get("sk_kernel", 1)
    rules = {
        "img_range": 0 < told.get("img_range", 1.0) < math.inf,
        "drop_rate": 0 <= told.get("drop_rate", 0.0) < 1,
        "drop_path_rate": 0 <= told.get("drop_path_rate", 0.0) < 1,
        "sk_kernel": small % 2 == 1 and 1 <= small <= found["lk_kernel"],
    }
    for key, holds in rules.items():
        if not holds:
            raise CheckpointError(
                f"The metadata is damaged ({key} cannot be {told[key]})."
            )
    return told


def expected_shapes(arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the state dict of a network, in the order it stores them.

    Args:
        arguments: as `hyperparameters_from_shapes` returns them.
    """
    dim, channels = arguments["embed_dim"], arguments["in_chans"]
    narrow = UPSAMPLE_CHANNELS

    def layers() -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "conv_first", (dim, channels, 3, 3)
        for group, depth in enumerate(arguments["depths"]):
            for block in range(depth):
                yield from _block_layers(f"layers.{group}.{block}.", arguments)
        yield "norm", (dim,)
        yield "conv_after_body", (dim, dim, 3, 3)
        yield "conv_before_upsample.0", (narrow, dim, 3, 3)
        for step, factor in enumerate(UPSAMPLE_FACTORS[arguments["scale"]]):
            yield f"upsample.{2 * step}", (narrow * factor**2, narrow, 3, 3)
        yield "conv_last", (channels, narrow, 3, 3)

    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in layers():
        if name.endswith("_bias"):
            shapes[name] = shape
            continue
        shapes[f"{name}.weight"] = shape
        if not name.endswith((".lk_conv", ".sk_conv")):
            shapes[f"{name}.bias"] = shape[:1]
    return shapes


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Check arguments of `AetherNet`, by the rules of `aether_core`.

    Args:
        arguments: at least those that `hyperparameters_from_shapes` returns.

    Raises:
        LookupError, TypeError, ArithmeticError: when one is missing or no number.
        ValueError: when they describe no network.
    """
    large, small = arguments["lk_kernel"], arguments["sk_kernel"]
    hidden = int(arguments["embed_dim"] * arguments["mlp_ratio"])
    starts = [arguments["in_chans"], arguments["embed_dim"], hidden]
    if (
        min([*starts, min(arguments["depths"], default=0)]) < 1
        or not large % 2 == small % 2 == 1 <= small <= large
        or arguments["scale"] not in UPSAMPLE_FACTORS
        or not 0 < arguments.get("img_range", 1.0) < math.inf
    ):
        raise ValueError(f"These arguments describe no network: {arguments}.")


def receptive_radius(arguments: Mapping[str, Any]) -> int:
    """How many LR pixels on each side can influence an output pixel."""
    radius = 1  # conv_last
    for factor in reversed(UPSAMPLE_FACTORS[arguments["scale"]]):
        radius = math.ceil(radius / factor) + 1  # PixelShuffle, then its 3x3
    radius += sum(arguments["depths"]) * (arguments["lk_kernel"] // 2)
    return radius + 3  # conv_before_upsample, conv_after_body, conv_first


def _block_layers(
    prefix: str, arguments: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    dim = arguments["embed_dim"]
    hidden = int(dim * arguments["mlp_ratio"])
    large, small = arguments["lk_kernel"], arguments["sk_kernel"]
    if arguments["fused_init"]:
        yield f"{prefix}conv.fused_conv", (dim, 1, large, large)
    else:
        yield f"{prefix}conv.lk_bias", (dim,)
        yield f"{prefix}conv.sk_bias", (dim,)
        yield f"{prefix}conv.lk_conv", (dim, 1, large, large)
        yield f"{prefix}conv.sk_conv", (dim, 1, small, small)
    yield f"{prefix}norm", (dim,)
    yield f"{prefix}ffn.fc1_gate", (hidden, dim)
    yield f"{prefix}ffn.fc1_main", (hidden, dim)
    yield f"{prefix}ffn.fc2", (dim, hidden)


def _deduced(found: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Arguments that fit most of the shapes; the caller compares the rest."""

    def size(key: str, dim: int) -> int:  # 1 if missing: the comparison fails then
        return max([*found.get(key, []), 1, 1, 1, 1][dim], 1)

    blocks = _BLOCK.findall("\n".join(found))
    last: dict[int, int] = {}  # the highest block by group
    for group, block in blocks:
        last[int(group)] = max(last.get(int(group), 0), int(block))
    depths = [last.get(group, 0) + 1 for group in range(max(last, default=0) + 1)]
    if sum(depths) > min(len(found), MOST_BLOCKS):
        depths = [1]  # no huge network for one index
    large = next(filter(_LARGE_KERNEL.fullmatch, found), "")
    fused = "fused_conv" in large
    embed_dim = size("conv_first.weight", 0)
    hidden = size(large.split("conv.")[0] + "ffn.fc1_gate.weight", 0)
    ratio = hidden / embed_dim
    if int(embed_dim * ratio) < hidden:  # the quotient was rounded down
        ratio = math.nextafter(ratio, math.inf)
    lk_kernel = size(large, 3) | 1  # made odd: the comparison finds an even one
    sk_kernel = 3 if fused else size(large.replace("lk_conv", "sk_conv"), 3) | 1
    rows = [size(f"upsample.{i}.weight", 0) for i in (0, 2, 4)]
    factors = tuple(math.isqrt(r // UPSAMPLE_CHANNELS) for r in rows if r > 1)
    scales = {factors: scale for scale, factors in UPSAMPLE_FACTORS.items()}
    return {
        "in_chans": size("conv_first.weight", 1),
        "embed_dim": embed_dim,
        "depths": tuple(depths),
        "mlp_ratio": ratio,
        "lk_kernel": lk_kernel,
        "sk_kernel": min(sk_kernel, lk_kernel),
        "scale": scales.get(factors, 1),
        "fused_init": fused,
    }
