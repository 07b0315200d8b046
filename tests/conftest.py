import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SHARED, SHIPPED_MODEL


def pytest_configure() -> None:
    """Share the processor's cores among the processes that run the tests."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max((os.cpu_count() or 1) // workers, 1)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for the processes they start
        torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for the tests, also in the processes they start, never the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AETHERNET_CACHE", str(folder))
        yield folder


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


@pytest.fixture(scope="session")
def shipped_half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The shipped model in float16 with free sizes, and what its export reported.

    Exporting a network of this size takes half a minute, so it is done once.
    """
    pytest.importorskip("onnx", reason="needs pip install -e '.[onnx]'")
    from aethernet.onnx_export import export_onnx

    path = tmp_path_factory.mktemp("half") / "2x_float16.onnx"
    return path, export_onnx(SHIPPED_MODEL, path, dynamic=True, precision="float16")


@pytest.fixture(scope="session")
def shipped_bfloat16(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """As `shipped_half`, in bfloat16."""
    pytest.importorskip("onnx", reason="needs pip install -e '.[onnx]'")
    from aethernet.onnx_export import export_onnx

    path = tmp_path_factory.mktemp("bfloat16") / "2x_bfloat16.onnx"
    return path, export_onnx(SHIPPED_MODEL, path, dynamic=True, precision="bfloat16")
