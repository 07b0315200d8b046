"""Models for the tests of runtimes."""

from pathlib import Path

import pytest
from runtime_helpers import SMALLEST, picture_network

from aethernet.aether_core import AetherNet
from aethernet.checkpoints.checkpoint import save_checkpoint


@pytest.fixture(scope="session")
def networks(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Path, AetherNet]]:
    """Name -> file and network; exports of them are made once in a process."""
    folder = tmp_path_factory.mktemp("networks")
    made = {}
    for name, arguments in (
        ("rgb", {"depths": (1,)}),
        ("gray", {"in_chans": 1, "scale": 3, **SMALLEST}),
    ):
        network = picture_network(**arguments)
        save_checkpoint(network, folder / f"{name}.safetensors")
        made[name] = (folder / f"{name}.safetensors", network)
    return made


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of scale 1, and a cache of its own."""
    monkeypatch.setenv("AETHERNET_CACHE", str(tmp_path / "cache"))
    save_checkpoint(picture_network(scale=1, **SMALLEST), tmp_path / "model.pth")
    return tmp_path / "model.pth"
