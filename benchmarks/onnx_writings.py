"""The ONNX files that `onnx_graph` writes, beside PyTorch's exporter's.

    python benchmarks/onnx_writings.py [MODEL] [--size 128] [--rounds 7] [--threads 1]

Each row is the same network, in float32 with free sizes. In a round each runs
once, in turn. CPU seconds are those of the process; ratios are taken round by round,
to the file of PyTorch's exporter in the same runtime.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import openvino
import torch

from aethernet.bench.torch_exporter import EXPORTER_OPSET, exported
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.onnx_graph import GELU_OPSET, Writing, to_onnx
from aethernet.checkpoints.rewrites import ConvolutionBlock, rewritten
from aethernet.checkpoints.shipped import shipped_model
from aethernet.errors import import_optional

Run = Callable[[np.ndarray], np.ndarray]

BASELINE = "PyTorch's exporter"


def timed(action: Callable[[], bytes], name: str) -> bytes:
    """What `action` returns; prints its CPU seconds."""
    start = time.process_time()
    content = action()
    print(f"{name}: written in {time.process_time() - start:.2f} CPU seconds")
    return content


def contents(path: Path) -> dict[str, bytes]:
    """ONNX files by name."""

    def old() -> bytes:
        folded = load_checkpoint(path).folded
        module = rewritten(folded, block_type=ConvolutionBlock)
        model = exported(module, module.in_chans, None, EXPORTER_OPSET, torch.float32)
        return model.SerializeToString()

    def new(writing: Writing) -> bytes:
        return to_onnx(load_checkpoint(path).folded, writing).SerializeToString()

    found = {BASELINE: timed(old, BASELINE)}
    for name, writing in (
        ("opset 17", Writing()),
        ("opset 20", Writing(opset=GELU_OPSET)),
        ("LayerNorm in parts", Writing(norm="parts")),
    ):
        found[name] = timed(partial(new, writing), name)
    return found


def onnxruntime_run(content: bytes, threads: int) -> Run:
    onnxruntime = import_optional("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )
    return lambda image: session.run(None, {"input": image})[0]


def openvino_run(content: bytes, threads: int) -> Run:
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    return lambda image: compiled(image)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    path = arguments.model or shipped_model()
    sides = (arguments.size, arguments.size)
    image = np.random.default_rng(0).random((1, 3, *sides), dtype=np.float32)
    files = contents(path)
    for runtime, load in (
        ("ONNX Runtime", onnxruntime_run),
        ("OpenVINO", openvino_run),
    ):
        runs = {name: load(file, arguments.threads) for name, file in files.items()}
        expected = runs[BASELINE](image)
        for name, run in runs.items():
            error = np.abs(run(image) - expected).max()
            assert error < 1e-4, (runtime, name, error)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                start = time.process_time()
                run(image)
                seconds[name].append(time.process_time() - start)
        for name, own in seconds.items():
            ratios = [a / b for a, b in zip(own, seconds[BASELINE], strict=True)]
            print(
                f"{runtime}, {name}: {statistics.median(own):.3f} CPU seconds, "
                f"ratio {statistics.median(ratios):.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f})"
            )


if __name__ == "__main__":
    main()
