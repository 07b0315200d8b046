"""AetherNet for spandrel.

Installed with AetherNet this package is `spandrel_aethernet`: `install()` makes every
`spandrel.ModelLoader` know the architecture. Copied into spandrel, the same folder is
`spandrel.architectures.AetherNet`, to be listed in spandrel's `MAIN_REGISTRY`.
"""

from __future__ import annotations

import warnings

try:
    import torch
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

    def __init__(self, img_range: float = 1.0) -> None:
        """Detect AetherNet; `img_range` is what its networks were trained with."""
        self._img_range = img_range
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

        `img_range` is not in the weights: it is the one given to this architecture, by
        default 1, as in all published models. Raises ValueError naming the first key
        that does not belong. Warns when the network enlarges a test picture only with
        another `img_range`.
        """
        hyperparameters = hyperparameters_from_state_dict(state_dict)
        model = AetherNet(**hyperparameters, img_range=self._img_range)
        scale = hyperparameters["scale"]
        channels = hyperparameters["in_chans"]
        descriptor = ImageModelDescriptor(
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
        likely = _likely_img_range(model)
        if likely != model.img_range:
            warnings.warn(
                "This AetherNet was trained with an img_range of "
                f"{likely:g}, as a test shows, and makes no picture with "
                f"{model.img_range:g}. Load it with img_range={likely:g}, or let "
                "`aethernet fuse` put it into the weights.",
                stacklevel=2,
            )
        return descriptor


# Largest mean difference of a picture from the test picture with its pixels repeated.
# That of a trained network is 0.03, and with a wrong `img_range` 0.13 or 0.32.
_RIGHT = 0.05


def _likely_img_range(model: AetherNet) -> float:
    """The `img_range` with which a loaded network enlarges a picture; else its own."""
    given = model.img_range
    ramp = torch.linspace(0.1, 0.9, 8)
    across, down = torch.meshgrid(ramp, ramp, indexing="xy")
    planes = (across, down, 1 - across)
    channels = model.hyperparameters["in_chans"]
    image = torch.stack([planes[i % 3] for i in range(channels)])[None]
    scale = model.hyperparameters["scale"]
    wanted = image.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    training = model.training
    try:
        model.eval()
        for img_range in (given, 1.0, 255.0):
            model.img_range = img_range
            with torch.inference_mode():
                difference = (model(image) - wanted).abs().mean()
            if difference < _RIGHT:
                return img_range
    finally:
        model.img_range = given
        model.train(training)
    return given


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


def install(
    *, ignore_duplicates: bool = False, img_range: float = 1.0
) -> list[ArchSupport]:
    """Add AetherNet to spandrel's main registry and return what was added.

    Its networks are taken to be trained with this `img_range`; `aethernet fuse
    --img-range` puts another one into the weights of a file instead.
    Raises spandrel's DuplicateArchitectureError when it is there already, unless
    `ignore_duplicates` is true.
    """
    from spandrel import MAIN_REGISTRY

    return MAIN_REGISTRY.add(
        ArchSupport.from_architecture(AetherNetArch(img_range)),
        ignore_duplicates=ignore_duplicates,
    )


__all__ = ["AetherNet", "AetherNetArch", "install"]
