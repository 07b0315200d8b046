"""Bounds on the graphs of ONNX files, so that no small file runs for ever.

The libraries that run ONNX files do what a graph says, however long it takes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aethernet.errors import AetherError, import_optional

# Nodes of a graph, functions written out; the largest networks that spandrel knows have
# about 20,000.
MOST_NODES = 100_000

# Functions that call one another; files have one or two levels.
_MOST_LEVELS = 20

# Operators that run a graph of their own many times.
_LOOPS = ("Loop", "Scan", "SequenceMap")


def check_onnx_limits(content: bytes, path: Path) -> None:
    """Check the content of an ONNX file before a library loads it.

    Args:
        content: of the file.
        path: of the file, for the message.

    Raises:
        AetherError: when it is no ONNX model, repeats a part of itself, or is too
            large.
    """
    onnx = import_optional("onnx", "onnx")
    try:
        model = onnx.load_model_from_string(content)
        functions = _functions(model)
        nodes = [*_nodes(model.graph.node)]
        for part in (nodes, *functions.values()):
            _check_loops(part, path)
    except AetherError:
        raise
    except Exception as error:  # protobuf's errors have no base class of their own
        raise AetherError("This is no valid ONNX file.", path) from error
    if _written_out(nodes, functions, {}, 0) > MOST_NODES:
        raise AetherError(
            f"Not run: the model has more than {MOST_NODES:,} nodes, or functions that "
            "call themselves.",
            path,
        )


def _functions(model: Any) -> dict[tuple[str, str], list[Any]]:
    """The nodes of a model's functions by domain and name, overloads together."""
    found: dict[tuple[str, str], list[Any]] = {}
    for function in model.functions:
        key = (function.domain, function.name)
        found.setdefault(key, []).extend(_nodes(function.node))
    return found


def _nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    """These nodes, and those of the graphs in them."""
    for node in nodes:
        yield node
        for graph in _graphs(node):
            yield from _nodes(graph.node)


def _graphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _check_loops(nodes: Iterable[Any], path: Path) -> None:
    for node in nodes:
        kind = node.op_type
        # Any other operator with a graph may run it many times; If runs it once.
        if kind in _LOOPS or (kind != "If" and any(_graphs(node))):
            raise AetherError(
                f"Not run: the model holds the operator {kind}, which can repeat a "
                "part of it for ever. No known network for pictures needs that.",
                path,
                "Export it without loops.",
            )


def _written_out(
    nodes: list[Any],
    functions: dict[tuple[str, str], list[Any]],
    sizes: dict[tuple[str, str], int],
    level: int,
) -> int:
    """How many nodes there are once functions are written out; `sizes` are known."""
    if level > _MOST_LEVELS:
        return MOST_NODES + 1
    total = len(nodes)
    for node in nodes:
        key = (node.domain, node.op_type)
        if key in functions:
            if key not in sizes:
                sizes[key] = _written_out(functions[key], functions, sizes, level + 1)
            total += sizes[key]
    return total
