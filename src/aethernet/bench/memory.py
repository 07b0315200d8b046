"""Peak memory of a contender, in a process of its own."""

import importlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from aethernet.bench.contenders import Contender, load
from aethernet.bench.peers import PEERS
from aethernet.checkpoints.verification import natural_image
from aethernet.errors import AetherError, import_optional
from aethernet.version import PACKAGE

_CHILD = "import sys; from aethernet.bench.memory import report; report(sys.argv[1:])"

_LIBRARIES = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "auto": ("onnxruntime", "openvino"),
}


def peak_memory(
    contender: Contender,
    file: Path | None,
    device: str,
    image: np.ndarray,
    timeout: float = 600,
) -> int | None:
    """Peak bytes of a process of its own that runs the contender.

    On a CUDA device PyTorch's peak there. None where it cannot be known: on Windows,
    and of other runtimes on a GPU.

    Raises:
        AetherError: when that process fails, with its last words, or takes longer than
            `timeout` seconds for two runs.
    """
    words = [json.dumps(asdict(contender)), str(file or ""), device]
    words += map(str, image.shape[2:])
    home = str(PACKAGE.parent)
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH", ""))))
    # glibc keeps what was freed for later use, so that memory in use would not show
    # unless large blocks are the system's own.
    environment = {**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "65536"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD, *words],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise AetherError(f"two runs take more than {timeout:.0f} seconds") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        last = said[-1].partition(": ")[2] or said[-1] if said else ""
        raise AetherError(last or f"its process ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def report(words: list[str]) -> None:
    """What the child does; prints bytes or null."""
    contender = Contender(**json.loads(words[0]))
    file, device = Path(words[1]) if words[1] else None, words[2]
    height, width = map(int, words[3:])
    for library in _LIBRARIES.get(contender.runtime, ()):
        with suppress(ImportError):  # loading will say so
            importlib.import_module(library)
    if contender.kind == "peer":
        import_optional(f"spandrel.architectures.{PEERS[contender.network].module}")
    image = natural_image(height, width).numpy()
    before = _resident_bytes()
    model = load(contender, file, device)
    _forget_peak()
    for _ in range(2):  # the second run may need what the first one keeps
        model.run(image)
    peak = _resident_peak()
    used = None if peak is None or before is None else max(peak - before, 0)
    if torch.device(device).type == "cuda":
        used = torch.cuda.max_memory_allocated() or None
    elif torch.device(device).type != "cpu":
        used = None
    print(json.dumps(used))


def _status(name: str) -> int | None:
    """A figure of /proc/self/status in bytes, where there is one."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux's word for it


def _resident_bytes() -> int | None:
    return _status("VmRSS") or _resident_peak()


def _resident_peak() -> int | None:
    peak = _status("VmHWM")
    if peak is None:
        with suppress(ModuleNotFoundError):
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak *= 1 if sys.platform == "darwin" else 1024
    return peak
