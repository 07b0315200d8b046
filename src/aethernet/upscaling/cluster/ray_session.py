"""Start Ray or connect to it, and make a pool of workers."""

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
from aethernet.upscaling.cluster.storage import first_line
from aethernet.version import PACKAGE

# What a worker without a GPU takes, or less where no machine has so much: more threads
# help a network little, and a tile is sized for a share of the memory that is free.
_CPUS, _MEMORY = 4, 8 * 2**30

# Nothing but names and outcomes goes through the object store.
_OBJECT_STORE = 256 * 2**20

_SECONDS_TO_CONNECT = 10


class Pool(NamedTuple):
    """How many workers there are, and what each of them takes."""

    workers: int
    cpus: float
    gpus: float
    memory: float


def configure(data: ModuleType, workers: int) -> None:
    """What Ray Data should do otherwise than it does of itself."""
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a dead worker's jobs are for the next round
    context.max_consecutive_actor_init_deaths = 2 * workers
    context.execution_no_progress_timeout_s = -1  # a picture may take hours
    context.target_max_block_size = 1  # each outcome comes when it is there
    logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)


def worker_pool(nodes: Sequence[Mapping[str, Any]], device: str) -> Pool:
    """As many workers as the cluster has GPUs, or fours of processors.

    Args:
        nodes: as `ray.nodes` describes them.
        device: as for `open_model`.

    Raises:
        AetherError: when no machine has a processor to give.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    machines = [machine for machine in machines if machine.get("CPU", 0) >= 1]
    if not machines:
        raise AetherError("The cluster has no machine with a processor to give.")
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
    """Ray, connected to that cluster or to one of this machine that ends with us."""
    ray = import_optional("ray", "cluster")
    import_optional("ray.data", "cluster")
    if ray.is_initialized():  # by whoever calls us
        yield ray
        return
    if address:
        _check_reachable(address)
    settings: dict[str, Any] = {"address": address or "local"}
    if address:
        # So that every machine runs the same code; what it needs has to be there.
        settings["runtime_env"] = {
            "py_modules": [str(PACKAGE)],
            "excludes": ["__pycache__"],
        }
    # Names of sockets, which are in that folder, may have 107 characters.
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
        # Workers import from the folder in which Ray was started: not from one with
        # pictures of anybody.
        with _silent(), contextlib.chdir(folder):
            ray.init(**settings, logging_level=logging.CRITICAL, log_to_driver=False)
    except Exception as error:
        raise AetherError(
            f"Cannot reach Ray at {settings['address']}: {first_line(error)}"
        ) from error
    finally:
        # Ray has put its own there, with another exit code.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _environment(code: Path) -> Iterator[None]:
    """What Ray and its processes are told: where our code is, to be quiet."""
    path = os.environ.get("PYTHONPATH")
    words = {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(code), path))),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    before = {name: os.environ.get(name) for name in words}
    os.environ.update(words)
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
    """Keep from the terminal what Ray's C++ says of how much it will say."""
    with open(os.devnull, "wb") as nothing:
        stderr = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _check_reachable(address: str) -> None:
    """Say so when nothing listens at host:port, for which Ray waits a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        where = (host.strip("[]"), int(port))
        socket.create_connection(where, _SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise AetherError(
            f"Cannot reach the cluster at {address}: {first_line(error)}"
        ) from error
