"""Models for the tests of runtimes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import HAS_TORCH, SUFFIX
from runtime_helpers import SMALLEST, picture_file, picture_network

if TYPE_CHECKING:
    from choice_helpers import Stage

    from aethernet.aether_core import AetherNet


@pytest.fixture(scope="session")
def networks(
    tmp_path_factory: pytest.TempPathFactory,
) -> "dict[str, tuple[Path, AetherNet | None]]":
    """Name -> file, and network where PyTorch is; exported once in a process."""
    folder = tmp_path_factory.mktemp("networks")
    settings: dict[str, dict[str, Any]] = {
        "rgb": {"depths": (1,)},
        "gray": {"in_chans": 1, "scale": 3, **SMALLEST},
    }
    made = {}
    for name, arguments in settings.items():
        path = picture_file(folder / f"{name}.safetensors", **arguments)
        made[name] = (path, picture_network(**arguments) if HAS_TORCH else None)
    return made


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of scale 1, and a cache of its own."""
    monkeypatch.setenv("AETHERNET_CACHE", str(tmp_path / "cache"))
    return picture_file(tmp_path / f"model{SUFFIX}", scale=1, **SMALLEST)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> "Stage":
    """Stand-ins for all runtimes, which compute with PyTorch."""
    from choice_helpers import Stage

    return Stage(monkeypatch)
