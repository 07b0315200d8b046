"""How many threads are worth starting here, and how much memory is left."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
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
    """`usable_cores`, or fewer where PyTorch has been told to use fewer.

    The other runtimes follow PyTorch, too: so a program sets one number for all.
    """
    torch = sys.modules.get("torch")  # not imported for this
    cores = usable_cores()
    return min(cores, torch.get_num_threads()) if torch else cores


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


def _own_cgroups() -> list[Path]:
    """Folders of this process's cgroup and those above it, version 2 and 1."""
    found = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            names = ["", *controllers.split(",")] if controllers else [""]
            for name in names:
                folder = CGROUP / name / path.lstrip("/")
                found += [folder, *folder.parents]
    roots = (CGROUP, CGROUP / "cpu", CGROUP / "memory")
    inside = (f for f in (*found, *roots) if f.is_relative_to(CGROUP))
    return [*dict.fromkeys(inside)]


def _numbers(file: Path) -> list[float]:
    """Numbers in a file of one line; "max" is infinite, no file has none."""
    with suppress(OSError, ValueError):
        words = file.read_text("ascii").split()
        return [float("inf") if word == "max" else float(word) for word in words]
    return []


def _quota(cores: int) -> int:
    """Processors that the cgroup's time limit amounts to, rounded up."""
    least = float(cores)
    for folder in _own_cgroups():
        limit = _numbers(folder / "cpu.max") or [
            *_numbers(folder / "cpu.cfs_quota_us"),
            *_numbers(folder / "cpu.cfs_period_us"),
        ]
        if len(limit) == 2 and limit[0] > 0 and limit[1] > 0:
            least = min(least, limit[0] / limit[1])
    return int(-(-least // 1))


def free_memory() -> int:
    """Bytes that this process can still get without swapping."""
    free = float(psutil.virtual_memory().available)
    for folder in _own_cgroups():
        for most, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, now = _numbers(folder / most), _numbers(folder / used)
            if limit and now:
                free = min(free, limit[0] - now[0] + _reclaimable(folder))
    return max(0, int(free))


def _reclaimable(folder: Path) -> float:
    """Bytes of a cgroup's use that are cached files, which make room when asked."""
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text("ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                return float(value)
    return 0
