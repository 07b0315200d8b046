"""AetherNet: an efficient super-resolution network and the tools around it.

Importing this package costs torch and nothing else: every other library is imported
where it is used.
"""

__version__ = "0.1.0"

from aethernet.aether_core import (
    AetherNet,
    aether_large,
    aether_medium,
    aether_small,
    hyperparameters_from_state_dict,
)
from aethernet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from aethernet.errors import AetherError

__all__ = [
    "AetherError",
    "AetherNet",
    "Checkpoint",
    "__version__",
    "aether_large",
    "aether_medium",
    "aether_small",
    "hyperparameters_from_state_dict",
    "load_checkpoint",
    "save_checkpoint",
]
