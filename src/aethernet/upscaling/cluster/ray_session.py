"""Start Ray or connect to a cluster, and decide how many workers there are."""

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from aethernet.devices import device_kind
from aethernet.errors import AetherError, import_optional
from aethernet.upscaling.cluster.storage import reason_without_keys
from aethernet.version import PACKAGE

# Processors and bytes of memory for a worker without a GPU, or less where the smallest
# machine has less. More threads help a network little. The size of a tile follows from
# the free memory.
_CPUS, _MEMORY = 4, 8 * 2**30

# Bytes for Ray's object store, which only names and outcomes go through.
_OBJECT_STORE = 256 * 2**20

_SECONDS_TO_CONNECT = 10


class Pool(NamedTuple):
    """How many workers there are, and what each of them gets."""

    workers: int
    cpus: float
    gpus: float
    memory: float
    """Bytes; 0 for no limit."""


def configure(data: ModuleType, workers: int) -> None:
    """Change what Ray Data does by default.

    Args:
        data: the module `ray.data`.
        workers: of the pool.
    """
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # the next round has a dead worker's jobs
    context.max_consecutive_actor_init_deaths = 2 * workers
    context.execution_no_progress_timeout_s = -1  # a picture may take hours
    context.target_max_block_size = 1  # so that outcomes do not wait for each other
    logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)


def worker_pool(nodes: Sequence[Mapping[str, Any]], device: str) -> Pool:
    """Plan one worker for each GPU, or for every four processors and 8 GiB of memory.

    Args:
        nodes: the machines of the cluster, as `ray.nodes()` describes them.
        device: as for `open_model`.

    Raises:
        AetherError: when no machine offers a processor.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    machines = [machine for machine in machines if machine.get("CPU", 0) >= 1]
    if not machines:
        raise AetherError("No machine of the cluster offers a processor.")
    with_gpus = [machine for machine in machines if machine.get("GPU", 0) >= 1]
    if with_gpus and device_kind(device) in ("auto", "cuda", "tensorrt", "xpu"):
        share = min(machine["CPU"] // machine["GPU"] for machine in with_gpus)
        count = sum(int(machine["GPU"]) for machine in with_gpus)
        return Pool(count, max(int(share), 1), 1, 0)
    cpus = min(_CPUS, *(int(machine["CPU"]) for machine in machines))
    memory = min(_MEMORY, *(int(machine.get("memory", 0)) for machine in machines))
    count = sum(
        int(min(machine["CPU"] // cpus, machine["memory"] // memory if memory else 1e9))
        for machine in machines
    )
    return Pool(count, cpus, 0, memory)


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[ModuleType]:
    """Connect to a cluster, or start Ray on this machine until the block ends.

    Yields the module `ray`. A program that has called `ray.init` keeps its connection.

    Args:
        address: as `ray.init` takes it ("host:6379", "auto"); None for this machine.

    Raises:
        AetherError: when the cluster cannot be reached, or Ray does not start.
        MissingExtraError: when Ray is not installed.
    """
    ray = import_optional("ray", "cluster")
    import_optional("ray.data", "cluster")
    if ray.is_initialized():
        yield ray
        return
    if address:
        check_reachable(address)
    settings: dict[str, Any] = {"address": address or "local"}
    if address:
        # Every machine runs this code; the libraries it needs have to be there.
        settings["runtime_env"] = {
            "py_modules": [str(PACKAGE)],
            "excludes": ["__pycache__"],
        }
    # Paths of sockets in this folder may have at most 107 characters.
    folder = tempfile.mkdtemp(
        prefix="aethernet_", dir="/tmp" if os.name == "posix" else None
    )
    if not address:
        settings |= {
            "_temp_dir": folder,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE,
        }
    with _environment(PACKAGE.parent):
        try:
            _start(ray, settings, folder)
            yield ray
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _start(ray: ModuleType, settings: Mapping[str, Any], folder: str) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        # Workers import modules from the folder in which Ray was started, so that must
        # not be a folder with other people's files.
        with _silent(), contextlib.chdir(folder):
            ray.init(**settings, logging_level=logging.CRITICAL, log_to_driver=False)
    except Exception as error:
        raise AetherError(
            f"Cannot reach Ray at {settings['address']}: {reason_without_keys(error)}"
        ) from error
    finally:
        # Ray has replaced it by its own, which ends with another exit code.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _environment(code: Path) -> Iterator[None]:
    """Variables for Ray and its processes: where our code is, and to print nothing."""
    path = os.environ.get("PYTHONPATH")
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(code), path))),
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what Ray's C++ code writes to stderr from the terminal."""
    with open(os.devnull, "wb") as nothing:
        stderr = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def check_reachable(address: str) -> None:
    """Check that something listens at host:port; Ray itself would wait for a minute.

    Args:
        address: others than host:port are not checked.

    Raises:
        AetherError: when nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        where = (host.strip("[]"), int(port))
        socket.create_connection(where, _SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise AetherError(
            f"Cannot reach the cluster at {address}: {reason_without_keys(error)}"
        ) from error
