"""LPIPS and DISTS: how different two pictures look to networks that know photographs.

Lower is better. Both compare RGB pictures of 8 bits as they are, not resized, with
`border` pixels left out along every edge as in `metrics`: LPIPS of version 0.1 on
AlexNet (Zhang et al., "The unreasonable effectiveness of deep features as a perceptual
metric", 2018), DISTS on VGG-16 (Ding et al., "Image quality assessment: unifying
structure and texture similarity", 2020).

torchmetrics computes them: it is released and maintained (1.9.0 is of March 2026), free
to use, needs next to nothing besides PyTorch, and brings what was trained for both
metrics. The authors' own packages stopped in 2021 and 2020, piq in 2023; pyiqa takes 27
packages and forbids commercial use. The backbones, trained on ImageNet, torchvision
downloads once into PyTorch's cache.
"""

import contextlib
import logging
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aethernet.devices import choose_device
from aethernet.errors import MissingExtraError, import_optional

_log = logging.getLogger(__name__)

# Seconds that a server may be silent before a backbone counts as out of reach.
_PATIENCE = 20.0


@dataclass(frozen=True)
class Perceptual:
    """A metric that a network computes."""

    name: str
    """"LPIPS" or "DISTS"."""
    compare: Callable[[Tensor, Tensor], float]
    """Of two `(1, 3, H, W)`, float32, 0..1, on `device`."""
    device: torch.device

    def measure(self, pixels: np.ndarray, reference: np.ndarray, border: int) -> float:
        """Compare a picture with its HR picture, both `(H, W, 3)`, uint8.

        Returns:
            NaN, with a warning, where they are too small for the network, or the
            memory is.
        """
        inner = (slice(border, -border or None),) * 2
        planes = [
            torch.from_numpy(each[inner]).permute(2, 0, 1)[None].to(self.device) / 255
            for each in (pixels, reference)
        ]
        try:
            with torch.no_grad():
                return self.compare(planes[0], planes[1])
        except (MemoryError, RuntimeError, ValueError) as error:
            height, width = pixels.shape[:2]
            said = str(error).partition("\n")[0]
            _log.warning("no %s of %dx%d pixels: %s", self.name, width, height, said)
            return float("nan")


def open_perceptual(device: str = "auto") -> tuple[list[Perceptual], dict[str, str]]:
    """The metrics that are to be had here; of the others, by name, why not.

    Args:
        device: as for `choose_device`.
    """
    found, missing = [], {}
    where = choose_device(device)
    for name, backbone, load in (
        ("LPIPS", "AlexNet", _lpips),
        ("DISTS", "VGG-16", _dists),
    ):
        try:
            import_optional("torchvision", "quality")
            with (
                _at_most(_PATIENCE),
                contextlib.redirect_stdout(sys.stderr),  # where downloads are told
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # on code that is not ours
                compare = load(where)
        except MissingExtraError as error:
            missing[name] = str(error)
        except Exception as error:  # of the network, the cache, or the library
            said = str(error).partition("\n")[0].rstrip(".")
            missing[name] = (
                f"It needs {backbone}, trained on ImageNet, which torchvision "
                f"downloads, and that failed: {type(error).__name__}: {said}."
            )
        else:
            found.append(Perceptual(name, compare, where))
    return found, missing


def _lpips(device: torch.device) -> Callable[[Tensor, Tensor], float]:
    library = import_optional("torchmetrics.image.lpip", "quality")
    metric = library.LearnedPerceptualImagePatchSimilarity("alex", normalize=True)
    metric.to(device)

    def compare(planes: Tensor, reference: Tensor) -> float:
        metric.reset()
        return float(metric(planes, reference))

    return compare


def _dists(device: torch.device) -> Callable[[Tensor, Tensor], float]:
    # The metric built of this one reads VGG-16 again for every picture.
    library = import_optional("torchmetrics.functional.image.dists", "quality")
    network = library.DISTSNetwork().to(device).eval()
    return lambda planes, reference: float(network(planes, reference))


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Let no connection wait for longer; torch's downloads would for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
