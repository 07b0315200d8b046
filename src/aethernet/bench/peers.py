"""Networks that one could use instead of AetherNet, in the configurations of papers."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Peer:
    """A published configuration of a network."""

    name: str
    """As its authors write it."""
    module: str
    """Under `spandrel.architectures`."""
    architecture: str
    """Class in that module."""
    scale: str
    """The name of its argument for the scale."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Other arguments, where spandrel's defaults are not the published ones."""


_DIRECT = {"img_size": 64, "upsampler": "pixelshuffledirect"}

# The configurations of the papers, described in docs/performance.md.
PEERS = {
    "compact": Peer("Compact", "Compact", "Compact", "upscale"),
    "span": Peer(
        "SPAN",
        "SPAN",
        "SPAN",
        "upscale",
        {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 52},
    ),
    "span_s": Peer(
        "SPAN-S",
        "SPAN",
        "SPAN",
        "upscale",
        {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 48},
    ),
    "plksr_tiny": Peer(
        "PLKSR-tiny",
        "PLKSR",
        "PLKSR",
        "upscaling_factor",
        {"ccm_type": "DCCM", "n_blocks": 12, "kernel_size": 13, "use_ea": False},
    ),
    "plksr": Peer("PLKSR", "PLKSR", "PLKSR", "upscaling_factor", {"ccm_type": "DCCM"}),
    "realplksr": Peer("RealPLKSR", "PLKSR", "RealPLKSR", "upscaling_factor"),
    "swinir_light": Peer(
        "SwinIR light",
        "SwinIR",
        "SwinIR",
        "upscale",
        {
            "embed_dim": 60,
            "depths": [6, 6, 6, 6],
            "num_heads": [6, 6, 6, 6],
            "window_size": 8,
            "mlp_ratio": 2,
            **_DIRECT,
        },
    ),
    "dat_light": Peer(
        "DAT light",
        "DAT",
        "DAT",
        "upscale",
        {
            "embed_dim": 60,
            "depth": [18],
            "num_heads": [6],
            "split_size": [8, 32],
            "expansion_factor": 2,
            "resi_connection": "3conv",
            **_DIRECT,
        },
    ),
    "omnisr": Peer("OmniSR", "OmniSR", "OmniSR", "up_scale", {"res_num": 5}),
}
