"""LPIPS and DISTS: how different two pictures look, judged by trained networks.

Lower is better. Both compare 8-bit RGB pictures without resizing them, and leave out
`border` pixels along every edge like `metrics`. LPIPS is version 0.1 on AlexNet (Zhang
et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018).
DISTS uses VGG-16 (Ding et al., "Image quality assessment: unifying structure and
texture similarity", 2020).

Both are computed by torchmetrics, which brings the weights trained for the metrics.
torchvision downloads the backbones, trained on ImageNet, once into PyTorch's cache.
docs/quality.md says why torchmetrics.
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
from aethernet.errors import MissingExtraError, first_line, import_optional

_log = logging.getLogger(__name__)

# Seconds without an answer from the server after which a download fails.
_TIMEOUT = 20.0


@dataclass(frozen=True)
class Perceptual:
    """A metric that is computed by a network."""

    name: str
    """"LPIPS" or "DISTS"."""
    compare: Callable[[Tensor, Tensor], float]
    """Compares two pictures `(1, 3, H, W)`, float32, 0..1, on `device`."""
    device: torch.device

    def measure(self, pixels: np.ndarray, reference: np.ndarray, border: int) -> float:
        """Compare a picture with its HR picture.

        Args:
            pixels, reference: `(H, W, 3)`, uint8.
            border: pixels to leave out along every edge.

        Returns:
            The distance, 0 for equal pictures. NaN, with a warning, if the pictures are
            too small for the network or memory is not sufficient.
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
            _log.warning(
                "no %s of %dx%d pixels: %s", self.name, width, height, first_line(error)
            )
            return float("nan")


def open_perceptual(device: str = "auto") -> tuple[list[Perceptual], dict[str, str]]:
    """Open both metrics.

    Args:
        device: as for `choose_device`.

    Returns:
        The metrics that are available, and for the others, by name, the reason why not.
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
                _network_timeout(_TIMEOUT),
                contextlib.redirect_stdout(sys.stderr),  # downloads are reported there
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # they are about code that is not ours
                compare = load(where)
        except MissingExtraError as error:
            missing[name] = str(error)
        except Exception as error:  # of the network, the cache, or the library
            missing[name] = (
                f"It needs {backbone}, trained on ImageNet; torchvision's download "
                f"failed: {type(error).__name__}: {first_line(error).rstrip('.')}."
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
    # torchmetrics' own metric class reads VGG-16 again for every picture.
    library = import_optional("torchmetrics.functional.image.dists", "quality")
    network = library.DISTSNetwork().to(device).eval()
    return lambda planes, reference: float(network(planes, reference))


@contextlib.contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """Limit how long connections wait; torch's downloads would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
