"""AetherNet in ComfyUI.

"Load Upscale Model" loads AetherNet's files once this folder is in `custom_nodes`, and
the node "Upscale with AetherNet" runs them as the command `aethernet upscale` does.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy import model_management

try:
    import spandrel_aethernet

    import aethernet
    from aethernet.checkpoints.shipped import find_model, shipped_models
    from aethernet.runtimes.tiling import windows
except ImportError as error:
    raise ImportError(
        f"AetherNet's node needs AetherNet itself ({error}). Install it from a "
        f'clone: "{sys.executable}" -m pip install PATH/TO/AETHERNET'
    ) from error

spandrel_aethernet.install(ignore_duplicates=True)

UPSCALE_MODELS = "upscale_models"
PRECISIONS = ("auto", "float32", "float16", "bfloat16")

# Asked of ComfyUI, in bytes, before the tile is chosen by the free memory.
_MEMORY = 4 * 2**30

# Kinds of device that both ComfyUI and AetherNet know.
_DEVICES = ("cpu", "cuda", "xpu", "mps")


class UpscaleWithAetherNet:
    """Upscales pictures in overlapping tiles as large as the free memory allows."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = "Upscales pictures with an AetherNet model, in tiles without seams."
    FUNCTION = "upscale"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """Pictures, a model that ships or lies in `models/upscale_models`, and more."""
        shipped = [model.name for model in shipped_models()]
        own = folder_paths.get_filename_list(UPSCALE_MODELS)
        return {
            "required": {
                "image": ("IMAGE",),
                "model_name": ([*shipped, *own],),
                "precision": ([*PRECISIONS], {"default": PRECISIONS[0]}),
            }
        }

    def upscale(
        self, image: torch.Tensor, model_name: str, precision: str
    ) -> tuple[torch.Tensor]:
        """Upscale a batch.

        Args:
            image: `(B, H, W, channels)`, float32, 0..1.
            model_name: a shipped model, or a file in `models/upscale_models`.
            precision: one of `PRECISIONS`.

        Returns:
            `(B, scale * H, scale * W, channels)`, float32, 0..1, on the CPU.

        Raises:
            AetherError: when the file is no AetherNet, or nothing here runs it so.
        """
        path = folder_paths.get_full_path(UPSCALE_MODELS, model_name)
        device = model_management.get_torch_device()
        model_management.free_memory(_MEMORY, device)
        name = str(device) if device.type in _DEVICES else "auto"
        file = path or str(find_model(model_name))
        upscaler, watched = _opened(file, name, precision)
        tiled = upscaler.model
        count, height, width = image.shape[:3]
        down = windows(height, tiled.most(0) or height, tiled.context)
        across = windows(width, tiled.most(1) or width, tiled.context)
        watched.bar = comfy.utils.ProgressBar(count * len(down) * len(across))
        pictures = image.cpu().numpy().astype(np.float32).clip(0, 1)
        return (torch.stack([torch.from_numpy(upscaler.upscale(p)) for p in pictures]),)


class _Watched:
    """A model that moves ComfyUI's bar, and stops when ComfyUI is told to."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.bar: Any = None  # of the pictures that are upscaled now

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run(self, batch: np.ndarray) -> np.ndarray:
        model_management.throw_exception_if_processing_interrupted()
        output = self._model.run(batch)
        self.bar.update(1)
        return output


@functools.lru_cache(maxsize=1)
def _opened(path: str, device: str, precision: str) -> tuple[Any, _Watched]:
    upscaler = aethernet.load(path, device=device, precision=precision)
    watched = _Watched(upscaler.model.model)
    upscaler.model.model = watched
    return upscaler, watched


NODE_CLASS_MAPPINGS = {"UpscaleWithAetherNet": UpscaleWithAetherNet}
NODE_DISPLAY_NAME_MAPPINGS = {"UpscaleWithAetherNet": "Upscale with AetherNet"}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
