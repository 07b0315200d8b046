"""AetherNet: an efficient super-resolution network and the tools around it.

Importing this package imports next to nothing, so that a command can decide soon what
Ctrl-C does. Each public name is loaded on first use (PEP 562).
"""

import importlib

TYPE_CHECKING = False  # as in `typing`, whose import takes its time
if TYPE_CHECKING:
    from typing import Any

    from aethernet.aether_core import (
        AetherNet,
        aether_large,
        aether_medium,
        aether_small,
        hyperparameters_from_state_dict,
    )
    from aethernet.api import (
        Upscaler,
        export,
        fuse,
        load,
        load_network,
        upscale_file,
    )
    from aethernet.checkpoints.checkpoint import (
        Checkpoint,
        load_checkpoint,
        save_checkpoint,
    )
    from aethernet.errors import AetherError
    from aethernet.version import __version__

__all__ = [
    "AetherError",
    "AetherNet",
    "Checkpoint",
    "Upscaler",
    "__version__",
    "aether_large",
    "aether_medium",
    "aether_small",
    "export",
    "fuse",
    "hyperparameters_from_state_dict",
    "load",
    "load_checkpoint",
    "load_network",
    "save_checkpoint",
    "upscale_file",
]

# Modules of the names that are not in `aether_core`.
_MODULES = {
    "AetherError": "errors",
    "__version__": "version",
    **dict.fromkeys(
        ("Upscaler", "export", "fuse", "load", "load_network", "upscale_file"), "api"
    ),
    "Checkpoint": "checkpoints.checkpoint",
    "load_checkpoint": "checkpoints.checkpoint",
    "save_checkpoint": "checkpoints.checkpoint",
}


def __getattr__(name: str) -> "Any":
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _MODULES:  # a part of the network, which is written in PyTorch
        errors = importlib.import_module(f"{__name__}.errors")
        errors.import_optional("torch", "torch")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'aether_core')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
