"""Keeps the files that torch's exporter made, for all processes of a test run.

An export takes 3 seconds for the smallest network and half a minute for the shipped
one, and many tests need the same file. It is used again only for the same modules with
the same code, settings and weights, and for the same size, opset and type.
"""

import hashlib
import marshal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

_PLAIN = (bool, int, float, str, tuple, torch.dtype)


def key_of(network: nn.Module, *settings: Any) -> str:
    """A digest of everything that decides what the exporter writes."""
    digest = hashlib.sha256(repr(settings).encode())
    # A test may replace the exporter.
    digest.update(marshal.dumps(getattr(torch.onnx.export, "__code__", None)))
    for name, module in network.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, _PLAIN)}
        digest.update(repr((name, type(module).__qualname__, sorted(plain))).encode())
        digest.update(repr([plain[key] for key in sorted(plain)]).encode())
        for function in vars(type(module)).values():
            if hasattr(function, "__code__"):
                digest.update(marshal.dumps(function.__code__))
        for kept in vars(module).values():  # a method replaced in one object
            if callable(kept) and hasattr(kept, "__code__"):
                digest.update(marshal.dumps(kept.__code__))
    for name, tensor in network.state_dict().items():
        digest.update(repr((name, tensor.shape, tensor.dtype)).encode())
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy().tobytes())
    return digest.hexdigest()


def cached(export: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """`checkpoints.onnx.exported` with a memory on the disk."""

    def exported(network: nn.Module, *settings: Any) -> Any:
        import onnx

        path = folder / f"{key_of(network, *settings)}.onnx"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                model = export(network, *settings)
                path.write_bytes(model.SerializeToString())
            return onnx.load(path)

    return exported
