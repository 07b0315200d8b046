"""Peak memory of a contender, in a process of its own."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from aethernet.bench.contenders import Contender, load
from aethernet.bench.peers import PEERS
from aethernet.checkpoints.verification import natural_image
from aethernet.errors import AetherError, MissingExtraError, import_optional
from aethernet.runtimes.base import TriedRuntime
from aethernet.runtimes.registry import RUNTIMES
from aethernet.version import PACKAGE

_CHILD = "import sys; from aethernet.bench.memory import report; report(sys.argv[1])"


def peak_memory(
    contender: Contender,
    file: Path | None,
    device: str,
    image: np.ndarray,
    timeout: float = 600,
) -> int | None:
    """Peak memory, in bytes, of a process that runs a contender.

    Counted is what it uses beyond what the process held before loading it; on a CUDA
    device what PyTorch allocated there.

    Args:
        contender: which to run.
        file: to load it from.
        device: as PyTorch names it.
        image: `(1, 3, H, W)`; only its size is used.
        timeout: seconds for loading and two runs.

    Returns:
        None where it cannot be measured: on Windows, and for other runtimes on a GPU.

    Raises:
        AetherError: when the contender fails, or takes longer than `timeout`.
    """
    request = {
        "contender": asdict(contender),
        "file": None if file is None else str(file),
        "device": device,
        "size": image.shape[2:],
    }
    home = str(PACKAGE.parent)
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH", ""))))
    # By default glibc keeps freed memory for later, so that the memory in use would
    # not show.
    environment = {**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "65536"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD, json.dumps(request)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise AetherError(f"Two runs take more than {timeout:.0f} seconds.") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        ended = f"Its process ended with code {done.returncode}."
        raise AetherError(lines[-1] if lines else ended)
    answer = json.loads(done.stdout.splitlines()[-1])
    if "reason" in answer:
        raise AetherError(answer["reason"], answer["path"], answer["hint"])
    return answer["peak"]


def report(request: str) -> None:
    """Run a contender in this process, and print its peak memory or its error as JSON.

    Args:
        request: JSON, as `peak_memory` makes it.
    """
    asked = json.loads(request)
    contender = Contender(**asked["contender"])
    file = Path(asked["file"]) if asked["file"] else None
    answer: dict[str, Any]
    try:
        answer = {"peak": _measured(contender, file, asked["device"], *asked["size"])}
    except AetherError as error:
        path = None if error.path is None else str(error.path)
        answer = {"reason": error.reason, "path": path, "hint": error.hint}
    print(json.dumps(answer))


def _measured(
    contender: Contender, file: Path | None, device: str, height: int, width: int
) -> int | None:
    _load_libraries(contender)
    image = natural_image(height, width)
    before = resident_bytes()
    model = load(contender, file, device)
    _forget_peak()
    for _ in range(2):  # the second run may need what the first one keeps
        model.run(image)
    peak = peak_resident_bytes()
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.max_memory_allocated() or None
    if kind != "cpu" or peak is None or before is None:
        return None
    return max(peak - before, 0)


def _load_libraries(contender: Contender) -> None:
    """Load the libraries that the contender may use, which are not counted."""
    for name, spec in RUNTIMES.items():
        if contender.runtime in (name, "auto") and spec.tried:
            with suppress(MissingExtraError):  # loading the contender raises it again
                cast("type[TriedRuntime]", spec.import_class()).devices()
    if contender.kind == "peer":
        import_optional(f"spandrel.architectures.{PEERS[contender.network].module}")


def _status(name: str) -> int | None:
    """An entry of /proc/self/status in bytes; None on other systems than Linux."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak on Linux


def resident_bytes() -> int | None:
    """Memory that this process uses; its peak on other systems than Linux."""
    return _status("VmRSS") or peak_resident_bytes()


def peak_resident_bytes() -> int | None:
    """Peak memory of this process; None on Windows."""
    peak = _status("VmHWM")
    if peak is None:
        with suppress(ModuleNotFoundError):
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak *= 1 if sys.platform == "darwin" else 1024
    return peak
