"""Measure the share of each operator in ONNX Runtime's time for an exported model.

    python benchmarks/onnx_profile.py [--size 128] [--runs 8]

Runs the shipped model in float32, plain and rewritten, in turns. Convolutions are
listed by the shape of their weights, with the GFLOP/s of each kind.
"""

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from aethernet.bench.torch_exporter import plain_onnx
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.onnx_graph import Writing, to_onnx
from aethernet.checkpoints.shipped import shipped_model
from aethernet.errors import import_optional


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=128, help="LR pixels of each side")
    parser.add_argument("--runs", type=int, default=8)
    arguments = parser.parse_args()
    size = (1, arguments.size, arguments.size)
    checkpoint = load_checkpoint(shipped_model())
    files = {
        "plain": plain_onnx(checkpoint.build().fuse(), size),
        "rewritten": to_onnx(checkpoint.folded, Writing(size=size)).SerializeToString(),
    }
    ort = import_optional("onnxruntime")
    image = np.random.default_rng(0).random((1, 3, *size[1:]), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        sessions: dict[str, Any] = {}
        for name, content in files.items():
            options = ort.SessionOptions()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder, name))
            providers = ["CPUExecutionProvider"]
            sessions[name] = ort.InferenceSession(content, options, providers)
        for _ in range(arguments.runs):
            for session in sessions.values():
                session.run(None, {"input": image})
        for name, session in sessions.items():
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
            _report(name, events, arguments.runs)


def _report(name: str, events: list[dict[str, Any]], runs: int) -> None:
    spent: Counter[str] = Counter()
    work: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        facts = event["args"]
        kind, operations = _kind(facts)
        spent[kind] += event["dur"]
        work[kind] += operations
    total = sum(spent.values())
    print(f"{name}: {total / runs / 1000:.0f} ms in operators")
    for kind, microseconds in spent.most_common():
        if microseconds >= 0.005 * total:
            speed = f"{work[kind] / microseconds / 1e3:5.0f} GFLOP/s"
            share = f"{microseconds / total:6.1%}"
            print(f"  {kind:24} {share}  {speed if work[kind] else ''}")


def _kind(facts: dict[str, Any]) -> tuple[str, float]:
    """The kind of an operator, and its number of floating-point operations."""
    shapes = [next(iter(s.values())) for s in facts.get("input_type_shape", [])]
    made = [next(iter(s.values())) for s in facts.get("output_type_shape", [])]
    name = facts["op_name"]
    if name == "Conv":
        rows, inputs, height, width = shapes[1]
        what = "depthwise" if inputs == 1 else f"{rows}x{inputs}"
        per_pixel = 2 * rows * inputs * height * width
        return f"Conv {height}x{width} {what}", per_pixel * made[0][2] * made[0][3]
    if name == "MatMul":
        return name, 2.0 * np.prod(made[0]) * shapes[1][0]
    return name, 0.0


if __name__ == "__main__":
    main()
