import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers import SHARED, SHIPPED_MODEL

from aethernet.checkpoints import onnx
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.devices import limit_threads


def pytest_configure() -> None:
    """Share the processor's cores among the processes that run the tests."""
    # Else each process of a test compiles again all that it imports.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job ignores Ctrl-C, and so would every child of a test.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        # For this process, which has not loaded PyTorch yet, and those it starts.
        limit_threads(max((os.cpu_count() or 1) // workers, 1))


# Files that take longest, the longest first.
LONGEST = (
    *("training/test_training.py", "training/test_neosr.py"),
    *("upscaling/test_cluster.py", "ui/test_page.py", "bench/test_bench.py"),
    *("checkpoints/test_onnx.py", "training/test_train_tool.py"),
    *("publish/test_release.py", "checkpoints/test_rewrites.py", "test_spandrel.py"),
    *("checkpoints/test_limits.py", "quality/test_compare.py", "test_set5.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process is left with one at the end.

    The processes take the files in this order (`--no-loadscope-reorder`).
    """
    place = {Path(__file__).parent / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for the tests and the processes they start, not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AETHERNET_CACHE", str(folder))
        patch.setenv("AETHERNET_MODELS", str(folder / "models"))
        yield folder


def of_all_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all processes of this run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


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
    """A training-form checkpoint in the wrapper that frameworks write."""
    return shared / "checkpoints/2x_aether_small_demo.pth"


@pytest.fixture(scope="session")
def shipped_exports(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[Path, Any]]:
    """Export the shipped model with free sizes in a precision: path and report.

    Verifying a network of this size takes seconds, so it is done once, by the process
    that asks first; the others wait for it.
    """
    folder = of_all_processes(tmp_path_factory)

    def export(precision: str) -> tuple[Path, Any]:
        path, found = folder / f"2x_{precision}.onnx", folder / f"{precision}.pickle"
        with FileLock(folder / f"{precision}.lock"):
            if not found.exists():
                options = onnx.ExportOptions(dynamic=True, precision=precision)
                done = onnx.export_onnx(load_checkpoint(SHIPPED_MODEL), path, options)
                found.write_bytes(pickle.dumps(done))
        return path, pickle.loads(found.read_bytes())

    return export


@pytest.fixture(scope="session")
def shipped_float32(shipped_exports: Callable[[str], tuple[Path, Any]]) -> Path:
    """The shipped model as an ONNX file with free sizes."""
    return shipped_exports("float32")[0]


@pytest.fixture(scope="session")
def shipped_half(
    shipped_exports: Callable[[str], tuple[Path, Any]],
) -> tuple[Path, Any]:
    """As `shipped_float32`, in float16, and what its export reported."""
    return shipped_exports("float16")


@pytest.fixture(scope="session")
def shipped_bfloat16(
    shipped_exports: Callable[[str], tuple[Path, Any]],
) -> tuple[Path, Any]:
    """As `shipped_half`, in bfloat16."""
    return shipped_exports("bfloat16")
