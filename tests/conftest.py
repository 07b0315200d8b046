from pathlib import Path

import pytest
from helpers import SHARED


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(
            "needs the folder 'shared' beside the clone (golden vectors, Set5, a "
            "training checkpoint), which a clone does not bring"
        )
    return SHARED


@pytest.fixture(scope="session")
def demo_checkpoint(shared: Path) -> Path:
    """The training-form checkpoint that models/2x_aether_small was fused from."""
    return shared / "checkpoints/2x_aether_small_demo.pth"
