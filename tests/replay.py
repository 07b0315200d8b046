"""Record the calls of the kernels that a network makes, for `replay.c`."""

import ctypes
import struct
from typing import Any

import numpy as np
import pytest

from aethernet.checkpoints.folded import Folded
from aethernet.runtimes.native import library, pack, run
from aethernet.runtimes.native.library import Kernels
from aethernet.runtimes.native.run import NativeNetwork

FUNCTIONS = ("block", "norm", "conv", "first", "tail")
NUMBER, FLOAT, PLACE, TABLE = range(4)


class Recorder(Kernels):
    """Kernels that also write down what they are asked."""

    calls: list[tuple[str, tuple[Any, ...]]]

    def call(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments))
        super().call(name, *arguments)


class _Buffers:
    """Arrays one after another, each at a multiple of 64 bytes."""

    def __init__(self) -> None:
        self.arrays: list[tuple[np.ndarray, int]] = []
        self.content = bytearray()

    def add(self, array: np.ndarray, content: bytes | None = None) -> int:
        place = len(self.content)
        self.content += array.tobytes() if content is None else content
        self.content += bytes(-len(self.content) % 64)
        self.arrays.append((array, place))
        return place

    def place(self, address: int) -> int:
        for array, place in self.arrays:
            start = array.ctypes.data
            if start <= address < start + array.nbytes:
                return place + address - start
        raise AssertionError("a pointer to nothing that is known")


def record(
    folded: Folded, kernels: Recorder, image: np.ndarray, patch: pytest.MonkeyPatch
) -> tuple[bytes, np.ndarray]:
    """What `replay.c` reads, and what it should answer, for one picture."""
    weights: list[np.ndarray] = []
    zeros: list[np.ndarray] = []
    aligned = pack.aligned
    for module, kept in ((pack, weights), (library, zeros), (run, zeros)):

        def counted(count: int, kept: list[np.ndarray] = kept) -> np.ndarray:
            kept.append(aligned(count))
            return kept[-1]

        patch.setattr(module, "aligned", counted)
    kernels.calls = []
    result = NativeNetwork(folded, 1, kernels)(image)
    buffers = _Buffers()
    for array in (*weights, image):
        buffers.add(array)
    for array in (*zeros, result):
        buffers.add(array, bytes(array.nbytes))
    written = [_written(buffers, *call) for call in kernels.calls]
    answer = buffers.place(result.ctypes.data)
    head = (len(buffers.content), len(written), answer, result.nbytes)
    return b"".join((struct.pack("<4q", *head), buffers.content, *written)), result


def _written(buffers: _Buffers, name: str, arguments: tuple[Any, ...]) -> bytes:
    kinds = library.ARGUMENTS[name]
    words = [FUNCTIONS.index(name), len(arguments)]
    for kind, value in zip(kinds, arguments, strict=True):
        if kind is ctypes.c_float:
            words += FLOAT, struct.unpack("<I", struct.pack("<f", value))[0]
        elif kind is ctypes.c_int64:
            words += NUMBER, value
        elif isinstance(value, int):
            words += PLACE, buffers.place(value)
        else:
            table = [buffers.place(p) if p else -1 for p in value]
            packed = np.array(table, np.int64)
            words += TABLE, buffers.add(packed)
    return struct.pack(f"<{len(words)}q", *words)
