"""ONNX files of other programs: sizes they want, and files made to do harm."""

import importlib
import itertools
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from helpers import SHARED, photo, run, write
from limited import serving
from runtime_helpers import PICTURE, node, write_model

from aethernet.commands.main import main
from aethernet.errors import AetherError, OutOfMemoryError, TooSlowError
from aethernet.pictures.files import read_picture
from aethernet.runtimes.base import Description, library_failures
from aethernet.runtimes.registry import open_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CASES = SHARED / "cases"
OUT = {"y": [None] * 4}


def step(op, *names, **attributes):
    made = node(op, *names, **attributes)
    made.name = names[-1]  # ONNX Runtime takes no name twice
    return made


def scales(*values):
    return onnx.helper.make_tensor("s", 1, [4], values)


def unshuffling(path, factor, scale=2):
    """A model that divides pictures into blocks, as a pixel-unshuffle does."""
    nodes = [
        step("SpaceToDepth", "x", "blocks", blocksize=factor),
        step("DepthToSpace", "blocks", "same", blocksize=factor),
        step("Resize", "same", "", "s", "y", mode="nearest"),
    ]
    return write_model(
        path, nodes, {"x": PICTURE, **OUT}, weights=[scales(1, 1, scale, scale)]
    )


def needing(path, least, scale=2):
    """A model that mirrors `least - 1` pixels at each border, and cuts them off."""
    pads = [0, 0, least - 1, least - 1] * 2
    weights = [
        scales(1, 1, scale, scale),
        onnx.helper.make_tensor("p", 7, [8], pads),
        onnx.helper.make_tensor("n", 7, [8], [-pad for pad in pads]),
    ]
    nodes = [
        step("Pad", "x", "p", "wide", mode="reflect"),
        step("Pad", "wide", "n", "same"),
        step("Resize", "same", "", "s", "y", mode="nearest"),
    ]
    return write_model(path, nodes, {"x": PICTURE, **OUT}, weights=weights)


def upscaled(tmp_path, model, pixels, *words):
    write(pixels, tmp_path / "in.png")
    words = ("--model", model, "--device", "cpu", *words)
    code = main(
        [
            "upscale",
            *map(str, (tmp_path / "in.png", "-o", tmp_path / "out.png", *words)),
        ]
    )
    return code if code else read_picture(tmp_path / "out.png").pixels


class TestSizes:
    @pytest.mark.parametrize("runtime", ["auto", "openvino"])
    @pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])
    def test_sides_that_have_to_be_divisible(self, tmp_path, factor, runtime):
        if runtime == "openvino":
            pytest.importorskip("openvino")
        path = unshuffling(tmp_path / "m.onnx", factor)
        pixels = photo(33, 51)
        made = upscaled(tmp_path, path, pixels, "--runtime", runtime)
        assert np.array_equal(made, pixels.repeat(2, 0).repeat(2, 1))

    def test_in_tiles(self, tmp_path):
        path = unshuffling(tmp_path / "m.onnx", 8)
        pixels = photo(101, 93)
        made = upscaled(tmp_path, path, pixels, "--tile", 37, "--context", 5)
        assert np.array_equal(made, pixels.repeat(2, 0).repeat(2, 1))

    @pytest.mark.parametrize("size", [(1, 1), (3, 50), (33, 51)])
    def test_pictures_that_are_too_small(self, tmp_path, size):
        path = needing(tmp_path / "m.onnx", 20)
        pixels = photo(*size)
        made = upscaled(tmp_path, path, pixels)
        assert np.array_equal(made, pixels.repeat(2, 0).repeat(2, 1))

    def test_the_shared_case(self, tmp_path):
        if not CASES.exists():
            pytest.skip("needs ../shared/cases")
        pixels = read_picture(CASES / "odd_51x33.png").pixels
        made = upscaled(tmp_path, CASES / "unshuffle2x.onnx", pixels)
        assert made.shape == (66, 102, 3)
        # A padded border must not change what is inside.
        even = np.pad(pixels, ((0, 1), (0, 1), (0, 0)), mode="reflect")
        whole = upscaled(tmp_path, CASES / "unshuffle2x.onnx", even)
        assert np.array_equal(made, whole[:66, :102])

    def test_an_error_of_an_operator_is_not_called_out_of_memory(self):
        by = Description("ONNX Runtime", "cpu", "float32")
        for text, kind in (
            ("Failed to allocate memory for requested buffer of size 9", True),
            ("std::bad_alloc", True),
            ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", True),
            ("DefaultCPUAllocator: can't allocate memory", True),
            ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
            ("Reshape: allocator.h:91 the input cannot be reshaped", False),
            ("unsupported allowzero in the node alloc_1", False),
        ):
            with (
                pytest.raises(AetherError) as caught,
                library_failures(by, (1, 3, 2, 2)),
            ):
                raise RuntimeError(text)
            assert isinstance(caught.value, OutOfMemoryError) == kind, text


def enlarging(factor):
    def make(path):
        nodes = [step("Resize", "x", "", "s", "y", mode="nearest")]
        weights = [scales(1, 1, factor, factor)]
        write_model(path, nodes, {"x": PICTURE, **OUT}, weights=weights)

    make.__name__ = f"enlarging_{factor}_times"
    return make


def a_large_intermediate(path):
    nodes = [
        step("Resize", "x", "", "s", "large", mode="nearest"),
        step("ReduceMean", "large", "mean", keepdims=0),
        step("Add", "x", "mean", "y"),
    ]
    weights = [scales(1, 1, 3000, 3000)]
    write_model(path, nodes, {"x": PICTURE, **OUT}, weights=weights)


def a_large_constant(path):
    shape = onnx.helper.make_tensor("s", 7, [4], [1, 3, 27000, 27000])
    nodes = [
        step("ConstantOfShape", "s", "large"),
        step("ReduceMean", "large", "mean", keepdims=0),
        step("Add", "x", "mean", "y"),
    ]
    write_model(path, nodes, {"x": PICTURE, **OUT}, weights=[shape])


def a_large_input(path):
    nodes = [step("Identity", "x", "y")]
    sides = [1, 3, 30_000, 30_000]
    write_model(path, nodes, {"x": sides, "y": sides})


def always_making(height, width):
    """Models whose output is constant, and right for one size of input at most."""

    def make(path):
        shape = onnx.helper.make_tensor("s", 7, [4], [1, 3, height, width])
        nodes = [step("ConstantOfShape", "s", "y")]
        write_model(path, nodes, {"x": PICTURE, **OUT}, weights=[shape])

    make.__name__ = f"always_making_{height}x{width}"
    return make


def an_unknown_type(path):
    enlarging(2)(path)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = 2**31 - 1
    path.write_bytes(model.SerializeToString())


def metadata_that_is_not_utf8(path):
    enlarging(2)(path)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"key": "a_longer_value"})
    data = model.SerializeToString()
    assert data.count(b"a_longer_value") == 1
    path.write_bytes(data.replace(b"a_longer_value", b"a_l\xff\xfe_r_value"))


def value(name, dtype=1, shape=None):
    return onnx.helper.make_tensor_value_info(name, dtype, shape)


def graph(nodes, inputs, outputs):
    return onnx.helper.make_graph(nodes, "inner", inputs, outputs)


def endless(name, out):
    """A loop around a sine, and what it needs."""
    body = graph(
        [step("Identity", "go", "on"), step("Sin", "v", "sine")],
        [value("i", 7, []), value("go", 9, []), value("v")],
        [value("on", 9, []), value("sine")],
    )
    count = onnx.helper.make_tensor("n", 7, [], [2**62])
    yes = onnx.helper.make_tensor("t", 9, [], [True])
    return [
        onnx.helper.make_node("Constant", [], ["n"], value=count),
        onnx.helper.make_node("Constant", [], ["t"], value=yes),
        step("Loop", "n", "t", name, out, body=body),
    ]


def doubled(path, nodes, functions=(), weights=()):
    """Write a model of nodes from "x" to "z", enlarged twice."""
    nodes = [*nodes, step("Resize", "z", "", "s", "y", mode="nearest")]
    weights = [*weights, scales(1, 1, 2, 2)]
    write_model(path, nodes, {"x": PICTURE, **OUT}, weights=weights)
    model = onnx.load(path)
    model.functions.extend(functions)
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    model.ir_version = 10
    onnx.save(model, path)


def function(name, nodes):
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("mine", 1)]
    return onnx.helper.make_function("mine", name, ["a"], ["b"], nodes, opsets)


def a_loop(path):
    doubled(path, endless("x", "z"))


def a_loop_in_a_branch(path):
    branch = graph(endless("x", "w"), [], [value("w")])
    other = graph([step("Identity", "x", "v")], [], [value("v")])
    yes = onnx.helper.make_tensor("c", 9, [], [True])
    node = step("If", "c", "z", then_branch=branch, else_branch=other)
    doubled(path, [node], weights=[yes])


def a_loop_in_a_function(path):
    made = function("f", endless("a", "b"))
    doubled(path, [step("f", "x", "z", domain="mine")], [made])


def a_scan(path):
    body = graph([step("Sin", "v", "w")], [value("v")], [value("w")])
    doubled(path, [step("Scan", "x", "z", body=body, num_scan_inputs=1)])


def nested_functions(path):
    """Ten levels of ten calls each: ten billion nodes."""
    made = []
    for level in range(10):
        names = ["a", *(f"v{i}" for i in range(9)), "b"]
        called = ("f" + str(level - 1), {"domain": "mine"}) if level else ("Sin", {})
        pairs = itertools.pairwise(names)
        nodes = [step(called[0], *pair, **called[1]) for pair in pairs]
        made.append(function(f"f{level}", nodes))
    doubled(path, [step("f9", "x", "z", domain="mine")], made)


def a_function_that_calls_itself(path):
    made = function("f", [step("f", "a", "b", domain="mine")])
    doubled(path, [step("f", "x", "z", domain="mine")], [made])


REPEATING = {
    a_loop: "operator Loop,",
    a_loop_in_a_branch: "operator Loop,",
    a_loop_in_a_function: "operator Loop,",
    a_scan: "operator Scan,",
    nested_functions: "more than 100,000 nodes",
    a_function_that_calls_itself: "functions that call themselves",
}


def wide(nodes):
    """These nodes from a much enlarged picture to its mean."""
    return [
        step("Resize", "x", "", "many", "v0", mode="nearest"),
        *nodes,
        step("ReduceMean", nodes[-1].output[0], "mean", keepdims=0),
        step("Add", "x", "mean", "z"),
    ]


def a_slow_operator(path):
    many = onnx.helper.make_tensor("many", 1, [4], [1, 1, 350, 350])
    nodes = wide([step("MaxPool", "v0", "v1", kernel_shape=[1500, 1500])])
    doubled(path, nodes, weights=[many])


def many_slow_operators(path):
    many = onnx.helper.make_tensor("many", 1, [4], [1, 1, 200, 200])
    nodes = wide([step("Sin", f"v{i}", f"v{i + 1}") for i in range(2000)])
    doubled(path, nodes, weights=[many])


HARMFUL = [
    enlarging(40),
    enlarging(3000),
    a_large_intermediate,
    a_large_constant,
    a_large_input,
    always_making(8, 8),
    always_making(18, 22),  # twice the first input that is tried
    an_unknown_type,
    metadata_that_is_not_utf8,
]


@pytest.fixture(scope="module")
def limited():
    if not sys.platform.startswith("linux"):
        pytest.skip("limits processes as Linux can")
    with serving() as server:
        yield server


@pytest.mark.parametrize("make", HARMFUL)
def test_a_harmful_file_is_refused_at_once(limited, make, tmp_path):
    write(photo(), tmp_path / "in.png")
    path = tmp_path / "model.onnx"
    make(path)
    words = [
        "upscale",
        tmp_path / "in.png",
        "-o",
        tmp_path / "out.png",
        "--model",
        path,
    ]
    limited.run(*words, "--device", "cpu").check_refused("model.onnx: ")
    assert not (tmp_path / "out.png").exists()
    limited.run("info", path).check_no_traceback()


def refused(server, tmp_path, make, reason, runtime, **bounds):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    write(photo(), tmp_path / "in.png")
    path, out = tmp_path / "model.onnx", tmp_path / "out.png"
    make(path)
    words = ["upscale", tmp_path / "in.png", "-o", out, "--model", path]
    words += ["--device", "cpu", "--runtime", runtime]
    server.run(*words).check_refused(reason, **bounds)
    assert not out.exists()


@pytest.mark.parametrize("runtime", ["auto", "openvino"])
@pytest.mark.parametrize(("make", "reason"), REPEATING.items())
def test_a_file_that_repeats_a_part_is_refused(
    limited, make, reason, runtime, tmp_path
):
    refused(limited, tmp_path, make, reason, runtime)
    path = tmp_path / "model.onnx"
    done = limited.run("info", path)
    done.check_no_traceback()
    assert done.seconds < 2
    words = ["quality", "--data", tmp_path, "--model", path, "--device", "cpu"]
    limited.run(*words).check_refused(reason)


@pytest.mark.parametrize("runtime", ["auto", "openvino"])
@pytest.mark.parametrize("make", [a_slow_operator, many_slow_operators])
def test_a_file_that_takes_long_is_refused(limited, make, runtime, tmp_path):
    reason = "takes more than 1.0 s for a picture of 11x9"
    refused(limited, tmp_path, make, reason, runtime)


def folding(path):
    """A model whose constant a library computes for long while it loads it."""
    many = onnx.helper.make_tensor("many", 7, [4], [1, 1, 2000, 2000])
    half = onnx.helper.make_tensor("half", 1, [1], [0.5])
    nodes = [
        step("ConstantOfShape", "many", "v0", value=half),
        *(step("Sin", f"v{i}", f"v{i + 1}") for i in range(2000)),
        step("ReduceMean", "v2000", "mean", keepdims=0),
        step("Add", "x", "mean", "z"),
    ]
    doubled(path, nodes, weights=[many])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [(many_slow_operators, "for a picture of 11x9"), (folding, "Loading it takes")],
)
def test_each_runtime_has_its_own_limit(make, reason, runtime, tmp_path):
    pytest.importorskip(runtime)
    module = importlib.import_module(f"aethernet.runtimes.{runtime}")
    names = {"onnxruntime": "OnnxRuntime", "openvino": "OpenVINORuntime"}
    make(tmp_path / "m.onnx")
    load = getattr(module, names[runtime]).of_file
    # What folding makes may fill the memory first.
    with pytest.raises((TooSlowError, OutOfMemoryError), match=reason):
        load(tmp_path / "m.onnx", "cpu", "auto")


def test_a_condition_is_allowed(tmp_path):
    branches = {
        f"{name}_branch": graph([step("Identity", "x", name)], [], [value(name)])
        for name in ("then", "else")
    }
    yes = onnx.helper.make_tensor("c", 9, [], [True])
    path, pixels = tmp_path / "m.onnx", photo()
    doubled(path, [step("If", "c", "z", **branches)], weights=[yes])
    made = upscaled(tmp_path, path, pixels)
    assert np.array_equal(made, pixels.repeat(2, 0).repeat(2, 1))


def long(path):
    """A model that takes long for each pixel, and nothing to speak of for a few."""
    many = onnx.helper.make_tensor("many", 1, [4], [1, 1, 8, 8])
    sines = [step("Sin", f"v{i}", f"v{i + 1}") for i in range(400)]
    nodes = [
        step("Resize", "x", "", "many", "v0", mode="nearest"),
        *sines,
        step("MaxPool", "v400", "z", kernel_shape=[8, 8], strides=[8, 8]),
    ]
    doubled(path, nodes, weights=[many])


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (15, 143)])
def test_a_signal_ends_a_long_run(tmp_path, number, code):
    write(photo(500, 700), tmp_path / "in.png")
    long(tmp_path / "m.onnx")
    words = ["upscale", tmp_path / "in.png", "-o", tmp_path / "out.png"]
    words += ["--model", tmp_path / "m.onnx", "--device", "cpu", "--tile", 700]
    program = [sys.executable, "-m", "aethernet", *words, "--runtime", "onnxruntime"]
    with subprocess.Popen([*map(str, program)], stderr=subprocess.PIPE) as process:
        used = psutil.Process(process.pid)
        while used.cpu_times().user < 6:  # the rest takes a second or two
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        before = sum(used.cpu_times()[:2])
        process.send_signal(number)
        while process.poll() is None:
            after = sum(used.cpu_times()[:2])
            assert after - before < 3 * (psutil.cpu_count() or 1)
            time.sleep(0.02)
        assert process.returncode == code
    assert not (tmp_path / "out.png").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize("entry", ["__main__", "commands.main"])
def test_a_call_that_goes_on_does_not_abort_python(tmp_path, entry):
    write(photo(500, 700), tmp_path / "in.png")
    long(tmp_path / "m.onnx")
    words = ["upscale", tmp_path / "in.png", "-o", tmp_path / "out.png"]
    words += ["--model", tmp_path / "m.onnx", "--device", "cpu", "--tile", 700]
    # The call is not waited for, and Python takes long to end, as on a busy machine.
    program = [
        "import sys, time",
        "class Slow:",
        "    def __del__(self, sleep=time.sleep): sleep(2)",
        "slow = Slow()",
        "from aethernet.runtimes import waiting",
        "waiting._PATIENCE = 0",
        f"from aethernet.{entry} import main",
        "sys.exit(main())",
    ]
    command = [sys.executable, "-c", "\n".join(program), *map(str, words)]
    command += ["--runtime", "onnxruntime"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        used = psutil.Process(process.pid)
        while used.cpu_times().user < 6:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert (process.returncode, said) == (143, b"")


@pytest.mark.parametrize("name", ["onnx-103", "onnx-253"])
def test_a_shared_case_is_refused_at_once(limited, name, tmp_path):
    path = CASES / f"hostile/{name}.onnx"
    if not path.exists():
        pytest.skip("needs ../shared/cases")
    write(photo(), tmp_path / "in.png")
    words = [
        "upscale",
        tmp_path / "in.png",
        "-o",
        tmp_path / "out.png",
        "--model",
        path,
    ]
    limited.run(*words, "--device", "cpu").check_refused(f"{name}.onnx: ")
    limited.run("info", path).check_no_traceback()


def filling(path):
    """A model that takes 32 MB more with each of its operators."""
    large = onnx.helper.make_tensor("large", 7, [4], [1, 1, 2048, 4096])
    count = 14
    nodes = [step("ReduceMean", "x", "m0", keepdims=1)]
    for i in range(count):
        nodes.append(step("Expand", f"m{i}", "large", f"v{i}"))
        nodes.append(step("ReduceMax", f"v{i}", f"m{i + 1}", keepdims=1))
    used = [f"v{i}" for i in range(count)]
    nodes.append(step("Max", *used, "all"))
    nodes.append(step("ReduceMax", "all", "most", keepdims=1))
    nodes.append(step("Add", "x", "most", "z"))
    doubled(path, nodes, weights=[large])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("bounded", [True, False])
def test_memory_is_bounded_where_the_system_refuses_none(
    tmp_path, runtime, bounded, monkeypatch
):
    from aethernet.runtimes import probing

    pytest.importorskip(runtime)
    filling(tmp_path / "m.onnx")
    monkeypatch.setattr(probing, "_SYSTEM_REFUSES", False)
    monkeypatch.setattr(probing, "_FOR_A_THREAD", 0)
    monkeypatch.setattr(probing, "_FOR_THE_LIBRARY", 2 ** (27 if bounded else 31))
    monkeypatch.setattr(probing, "_SECONDS", 60)
    if not bounded:
        open_model(tmp_path / "m.onnx", runtime, "cpu")
        return
    with pytest.raises(AetherError, match="takes too much memory"):
        open_model(tmp_path / "m.onnx", runtime, "cpu")


def test_the_limit_ends_with_the_trial(tmp_path):
    resource = pytest.importorskip(
        "resource", reason="limits of a process, as POSIX has"
    )
    before = resource.getrlimit(resource.RLIMIT_AS)
    enlarging(2)(tmp_path / "m.onnx")
    open_model(tmp_path / "m.onnx", "onnxruntime", "cpu")
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_lower_limit_of_the_user_stays(tmp_path):
    pytest.importorskip("resource", reason="limits of a process, as POSIX has")
    enlarging(2)(tmp_path / "m.onnx")
    code = (
        "import resource, sys\n"
        "limit = (40 * 10**9, 40 * 10**9)\n"
        "resource.setrlimit(resource.RLIMIT_AS, limit)\n"
        "from aethernet.runtimes.registry import open_model\n"
        "open_model(sys.argv[1], 'onnxruntime', 'cpu')\n"
        "assert resource.getrlimit(resource.RLIMIT_AS) == limit\n"
    )
    done = run("-c", code, tmp_path / "m.onnx")
    assert done.returncode == 0, done.stderr
