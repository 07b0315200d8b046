"""AetherNet for spandrel.

Installed with AetherNet this package is `spandrel_aethernet`: `install()` makes every
`spandrel.ModelLoader` know the architecture. Copied into spandrel, the same folder is
`spandrel.architectures.AetherNet`, to be listed in spandrel's `MAIN_REGISTRY`.
"""

from __future__ import annotations

try:
    from typing_extensions import override

    # By these names, because the package `spandrel` itself is not ready yet when it
    # imports this folder as one of its own architectures.
    from spandrel.__helpers.model_descriptor import (
        Architecture,
        ImageModelDescriptor,
        StateDict,
    )
    from spandrel.__helpers.registry import ArchSupport
    from spandrel.util import KeyCondition
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    raise ModuleNotFoundError(
        f"AetherNet for spandrel needs {missing}, which is not installed. "
        'Install it: python -m pip install "aethernet-sr[spandrel]".',
        name=error.name,
    ) from error

from .__arch.aether_core import (
    AetherNet,
    hyperparameters_from_state_dict,
    variant_name,
)


class AetherNetArch(Architecture[AetherNet]):
    """Detects and loads AetherNet of any size, scale and form."""

    def __init__(self) -> None:
        super().__init__(
            id="AetherNet",
            detect=KeyCondition.has_all(
                "conv_first.weight",
                "layers.0.0.norm.weight",
                "layers.0.0.ffn.fc1_gate.weight",
                "layers.0.0.ffn.fc1_main.weight",
                "layers.0.0.ffn.fc2.weight",
                "conv_after_body.weight",
                "conv_before_upsample.0.weight",
                "conv_last.weight",
                KeyCondition.has_any(
                    "layers.0.0.conv.lk_conv.weight",
                    "layers.0.0.conv.fused_conv.weight",
                ),
            ),
        )

    @override
    def load(self, state_dict: StateDict) -> ImageModelDescriptor[AetherNet]:
        """Build the network that the weights describe.

        `img_range` is not in the weights: as in all published models it is taken as 1.
        Raises ValueError naming the first key that does not belong.
        """
        hyperparameters = hyperparameters_from_state_dict(state_dict)
        model = AetherNet(**hyperparameters)
        scale = hyperparameters["scale"]
        channels = hyperparameters["in_chans"]
        return ImageModelDescriptor(
            model,
            state_dict,
            architecture=self,
            purpose="Restoration" if scale == 1 else "SR",
            tags=_tags(model),
            supports_half=True,
            supports_bfloat16=True,
            scale=scale,
            input_channels=channels,
            output_channels=channels,
        )


def _tags(model: AetherNet) -> list[str]:
    hyperparameters = model.hyperparameters
    variant = variant_name(hyperparameters)
    if variant is not None:
        size = [variant.removeprefix("aether_")]
    else:
        blocks = sum(hyperparameters["depths"])
        size = [f"{hyperparameters['embed_dim']}dim", f"{blocks}nb"]
    kernels = f"{hyperparameters['lk_kernel']}lk"
    if model.is_fused:
        return [*size, "fused", kernels]
    return [*size, "training", kernels, f"{hyperparameters['sk_kernel']}sk"]


def install(*, ignore_duplicates: bool = False) -> list[ArchSupport]:
    """Add AetherNet to spandrel's main registry and return what was added.

    Raises spandrel's DuplicateArchitectureError when it is there already, unless
    `ignore_duplicates` is true.
    """
    from spandrel import MAIN_REGISTRY

    return MAIN_REGISTRY.add(
        ArchSupport.from_architecture(AetherNetArch()),
        ignore_duplicates=ignore_duplicates,
    )


__all__ = ["AetherNet", "AetherNetArch", "install"]
