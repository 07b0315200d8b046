"""Measure which convolutions can be in int8: PSNR against float32, and time.

    python benchmarks/int8_parts.py FOLDER_OF_PICTURES

Calibrates the shipped model on one half of the pictures and measures it on the other.
The ratio is of the time of the float32 file in ONNX Runtime on the CPU, in turns.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.int8 import convolutions, quantized
from aethernet.checkpoints.onnx_check import open_session
from aethernet.checkpoints.onnx_graph import to_onnx
from aethernet.checkpoints.shipped import shipped_model
from aethernet.checkpoints.verification import compare
from aethernet.pictures.calibration import calibration_pictures

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    checkpoint = load_checkpoint(shipped_model())
    folder = parser.parse_args().folder
    images = [*calibration_pictures(folder, checkpoint.in_chans, None).values()]
    known, unknown = images[::2], images[1::2]
    float32 = to_onnx(checkpoint.folded)
    sessions = {"float32": open_session(float32.SerializeToString())}
    for name, kinds in (
        ("1x1 in int8", ("projections",)),
        ("1x1 and depthwise in int8", ("projections", "depthwise")),
        ("all convolutions in int8", ("projections", "depthwise", "others")),
    ):
        nodes = [node for kind in kinds for node in convolutions(float32)[kind]]
        content = quantized(float32, known, nodes).SerializeToString()
        sessions[name] = open_session(content)

    def run(name: str, image: Any) -> tuple[Any, float]:
        start = time.perf_counter()
        output = sessions[name].run(None, {"input": image})[0]
        return output, time.perf_counter() - start

    quality: dict[str, list[float]] = {name: [] for name in sessions}
    spent: dict[str, list[float]] = {name: [] for name in sessions}
    for image in unknown:
        expected, _ = run("float32", image)
        for name in sessions:
            output, _ = run(name, image)
            quality[name].append(compare(output, expected).psnr)
    for _ in range(ROUNDS):
        for name in sessions:
            spent[name].append(run(name, unknown[0])[1])
    for name, values in quality.items():
        pairs = zip(spent[name], spent["float32"], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        print(
            f"{name:26}  PSNR {np.min(values):.1f} to {np.max(values):.1f} dB, "
            f"median {np.median(values):.1f}; {ratio:.2f} of the time of float32"
        )


if __name__ == "__main__":
    main()
