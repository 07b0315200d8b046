"""How many threads are worth starting here."""

import os
from contextlib import suppress
from pathlib import Path

import psutil

from aethernet.devices import cgroup_numbers, own_cgroups, told_threads

_CPUS = Path("/sys/devices/system/cpu")


def usable_cores() -> int:
    """Physical cores that this process may use: affinity and cgroup limits counted."""
    allowed = _allowed()
    if allowed is None:
        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    else:
        cores = len({_siblings(cpu) for cpu in allowed})
    return max(1, min(cores, _quota(cores)))


def threads_to_use() -> int:
    """`usable_cores`, or fewer where this process was told so (`told_threads`)."""
    cores = usable_cores()
    return min(cores, told_threads() or cores)


def _allowed() -> set[int] | None:
    """Logical processors of this process; None where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return None


def _siblings(cpu: int) -> str:
    """What names the physical core of a logical processor (Linux)."""
    with suppress(OSError):
        file = _CPUS / f"cpu{cpu}/topology/thread_siblings_list"
        return file.read_text("ascii").strip()
    return str(cpu)


def _quota(cores: int) -> int:
    """Processors that the cgroup's time limit amounts to, rounded up."""
    least = float(cores)
    for folder in own_cgroups():
        limit = cgroup_numbers(folder / "cpu.max") or [
            *cgroup_numbers(folder / "cpu.cfs_quota_us"),
            *cgroup_numbers(folder / "cpu.cfs_period_us"),
        ]
        if len(limit) == 2 and limit[0] > 0 and limit[1] > 0:
            least = min(least, limit[0] / limit[1])
    return int(-(-least // 1))
