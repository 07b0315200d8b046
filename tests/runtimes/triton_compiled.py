"""Print the shared memory of the Triton kernels as JSON; compiles them, without a GPU.

For NVIDIA's compute capability 9.0, at the sizes of a variant.
"""

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from aethernet.aether_core import VARIANTS
from aethernet.runtimes.triton import (
    depthwise,
    feed_forward,
    feed_forward_gradients,
)

FLOATS = ("bias_ptr", "sums_ptr")  # endings of the names of what is float32


def kind(name: str) -> str:
    if name.endswith("_ptr"):
        return "*fp32" if name.endswith(FLOATS) else "*fp16"
    return "fp32" if name == "eps" else "i32"


def compiled(kernel: Any, sizes: dict[str, int], ways: dict[str, int]) -> int:
    """Bytes of shared memory."""
    names = kernel.arg_names
    known = {**sizes, **ways}
    constants = {name: known[name] for name in names if name.isupper()}
    source = ASTSource(
        kernel,
        {name: "constexpr" if name in constants else kind(name) for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {
            (number,): [["tt.divisibility", 16]]
            for number, name in enumerate(names)
            if name.endswith("_ptr") or name in ("height", "width", "pixels")
        },
    )
    how = {name: ways[name] for name in ("num_warps", "num_stages")}
    target = GPUTarget("cuda", 90, 32)
    return int(triton.compile(source, target, how).metadata.shared)


def main() -> None:
    size = VARIANTS[sys.argv[1]]
    channels, hidden = size["embed_dim"], int(size["embed_dim"] * size["mlp_ratio"])
    sizes = {
        "KERNEL": size["lk_kernel"],
        "HAS_BIAS": True,
        "HAS_RESIDUAL": True,
        "WIDTH": triton.next_power_of_2(channels),
        "FIRST": 64,
        "SECOND": triton.next_power_of_2(channels - 64),
        "HIDDEN": hidden + -hidden % 64,
    }
    wide = channels > 128
    ways = {
        "convolve": depthwise.CONVOLVE,
        "gather_bands_gradient": depthwise.GRADIENT,
        "forward": feed_forward.FORWARD[wide],
        "forward_kept": feed_forward.KEPT,
        "backward": feed_forward_gradients.BACKWARD[wide],
        "products": feed_forward_gradients.PRODUCTS[wide],
    }
    if wide:
        del ways["forward_kept"]
    found = {}
    for module in (depthwise, feed_forward, feed_forward_gradients):
        for name, kernel in vars(module).items():
            if isinstance(kernel, JITFunction) and name.strip("_") in ways:
                short = name.strip("_")
                found[short] = compiled(kernel, sizes, ways.pop(short))
    assert not ways, ways
    print(json.dumps(found))


if __name__ == "__main__":
    main()
