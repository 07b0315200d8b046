"""Run an ONNX file in ONNX Runtime and compare it with its network."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from aethernet.checkpoints.comparison import Case, Run, verify_outputs
from aethernet.checkpoints.tolerances import Tolerance
from aethernet.checkpoints.verification import Difference
from aethernet.devices import told_threads
from aethernet.errors import import_optional


def open_session(content: bytes) -> Any:
    """Load the content of an ONNX file in ONNX Runtime on the CPU.

    Takes the content because Windows cannot move a file that a session holds open.
    """
    ort = import_optional("onnxruntime", "onnx")
    return _session(content, ort.SessionOptions())


def rounding_session(content: bytes) -> Any:
    """As `open_session`, with each intermediate result rounded to its type in the file.

    A processor that multiplies in half precision and sums in float32 computes like
    this. ONNX Runtime on a CPU has no bfloat16, and computes chains of float16
    operators in float32. An overflow between two of them would not show there, although
    it makes the picture of a GPU black.
    """
    ort = import_optional("onnxruntime", "onnx")
    options = ort.SessionOptions()
    # Optimisation could remove a Cast together with its inverse.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _session(_rounding(content), options)


def verify(
    session: Any, cases: Iterable[Case], tolerance: Tolerance | None
) -> dict[str, Difference]:
    """Compare an ONNX file in ONNX Runtime with its network, see `verify_outputs`.

    Args:
        session: from `open_session` or `rounding_session`.
        cases, tolerance: as for `verify_outputs`.
    """
    half = session.get_inputs()[0].type == "tensor(float16)"
    return verify_outputs(session_run(session), "ONNX file", cases, tolerance, half)


def session_run(session: Any) -> Run:
    """What computes a session of ONNX Runtime; its input gets the type it takes."""
    half = session.get_inputs()[0].type == "tensor(float16)"
    dtype = np.float16 if half else np.float32
    return lambda image: session.run(
        ["output"], {"input": np.ascontiguousarray(image, dtype)}
    )[0]


def _session(content: bytes, options: Any) -> Any:
    ort = import_optional("onnxruntime", "onnx")
    # ONNX Runtime does not look itself, and would use all of the machine's cores.
    options.intra_op_num_threads = told_threads() or 0
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _rounding(content: bytes) -> bytes:
    """The same graph in float32; results in half precision are cast to it and back."""
    onnx = import_optional("onnx", "onnx")
    helper, arrays = onnx.helper, onnx.numpy_helper
    kinds = onnx.TensorProto
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    graph = model.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    half = {kinds.FLOAT16, kinds.BFLOAT16}

    def widen(tensor: Any) -> None:
        if tensor.data_type in half:
            wide = arrays.to_array(tensor).astype("float32")
            tensor.CopyFrom(arrays.from_array(wide, tensor.name))

    for weight in graph.initializer:
        widen(weight)
    inputs = {i.name: f"{i.name} wide" for i in graph.input if types[i.name] in half}
    nodes = [
        helper.make_node("Cast", [narrow], [wide], to=kinds.FLOAT)
        for narrow, wide in inputs.items()
    ]
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in half:
                attribute.i = kinds.FLOAT
            widen(attribute.t)
        node.input[:] = [inputs.get(name, name) for name in node.input]
        for index, name in enumerate(node.output):
            if types.get(name) not in half:
                continue
            exact = node.output[index] = f"{name} exact"
            rounded = name if name in outputs else f"{name} rounded"
            nodes.append(helper.make_node("Cast", [exact], [rounded], to=types[name]))
            if rounded != name:
                cast = helper.make_node("Cast", [rounded], [name], to=kinds.FLOAT)
                nodes.append(cast)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model.SerializeToString()
