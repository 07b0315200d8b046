"""TensorRT engines, run by a stand-in for the library; loading one needs a GPU."""

import contextlib
import ctypes
import hashlib
import importlib.util
import math
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import random_image
from runtime_helpers import PICTURE, engine_header, write_engine, write_model

from aethernet.errors import AetherError, MissingExtraError, VerificationError
from aethernet.runtimes.tensorrt import library, run
from aethernet.runtimes.tensorrt.build import compare_here
from aethernet.runtimes.tensorrt.library import Library, Messages, open_library
from aethernet.runtimes.tensorrt.run import TensorRTRuntime

onnx = pytest.importorskip("onnx", reason="needs pip install onnx onnxruntime")

needs_builder = pytest.mark.skipif(
    not importlib.util.find_spec("tensorrt_rtx"),
    reason="needs TensorRT for RTX (Linux, Windows): pip install -e '.[tensorrt]'",
)


class TestLoading:
    def test_a_device_that_is_no_nvidia_gpu(self, tmp_path):
        with pytest.raises(AetherError, match="run on an NVIDIA GPU"):
            TensorRTRuntime.load(write_engine(tmp_path), device="cpu")

    def test_another_precision_than_the_engine_s(self, tmp_path):
        with pytest.raises(AetherError, match="computes in float16, not in float32"):
            TensorRTRuntime.load(write_engine(tmp_path), precision="float32")

    def test_the_library_that_built_it_is_missing(self, monkeypatch):
        def missing(name, extra=None):
            raise MissingExtraError(name, hint="Install it.")

        monkeypatch.setattr(library, "import_optional", missing)
        library.open_library.cache_clear()
        try:
            with pytest.raises(MissingExtraError, match=r"aethernet-sr\[tensorrt\]"):
                library.open_library("tensorrt_rtx")
        finally:
            library.open_library.cache_clear()


class StandIn:
    """A stand-in for the library: enlarges by repeating, on the CPU."""

    __version__ = "1.7.1.116"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)

    def __init__(self):
        self.shapes, self.addresses, self.memory = [], {}, None
        self.works, self.unit, self.error = True, ctypes.c_uint16, 0
        self.Runtime = lambda logger: self

    def deserialize_cuda_engine(self, content):
        return self if content == b"a plan" else None

    def create_execution_context(self, strategy):
        assert strategy == 2
        return self

    def set_input_shape(self, name, shape):
        assert name == "input"
        self.shapes.append(shape)
        return self.works

    def update_device_memory_size_for_shapes(self):
        return math.prod(self.shapes[-1])

    def set_device_memory(self, address, size):
        self.memory = (address, size)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        shape = self.shapes[-1]
        count = math.prod(shape)
        given = (self.unit * count).from_address(self.addresses["input"])
        made = (self.unit * (4 * count)).from_address(self.addresses["output"])
        image = np.frombuffer(given, self.unit).reshape(shape)
        larger = image.repeat(2, axis=2).repeat(2, axis=3)
        np.frombuffer(made, self.unit)[:] = larger.ravel() + self.error
        return self.works


@pytest.fixture
def stand_in(monkeypatch):
    """Engines load on a machine without a GPU, into a stand-in for the library."""
    library = StandIn()
    monkeypatch.setattr(
        run,
        "open_library",
        lambda name: Library(name, library, None, Messages()),
    )
    monkeypatch.setattr(run, "on_stream", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(run, "choose_gpu", lambda _: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "NVIDIA A")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (8, 9))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: SimpleNamespace(cuda_stream=7))
    return library


class TestRunningOnAStandIn:
    def test_a_picture_comes_back_enlarged(self, stand_in, tmp_path):
        model = TensorRTRuntime.load(write_engine(tmp_path))
        image = random_image(1, 3, 10, 12).half().float().numpy()
        output = model.run(image)
        assert output.dtype == np.float32
        assert np.array_equal(output, image.repeat(2, axis=2).repeat(2, axis=3))
        assert (model.scale, model.channels) == (2, 3)
        words = str(model.describe())
        assert "TensorRT for RTX 1.7.1.116 float16 on " in words
        assert "NVIDIA A" in words

    def test_memory_is_of_the_picture_s_size_and_kept_for_the_next(
        self, stand_in, tmp_path
    ):
        model = TensorRTRuntime.load(write_engine(tmp_path))
        for _ in range(2):
            model.run(np.zeros((1, 3, 10, 12), np.float32))
        assert stand_in.shapes == [(1, 3, 10, 12)]
        assert stand_in.memory[1] == 360

    def test_a_batch_beyond_the_profile_goes_in_parts(self, stand_in, tmp_path):
        model = TensorRTRuntime.load(write_engine(tmp_path))
        batch = random_image(5, 3, 8, 8).half().float().numpy()
        assert np.array_equal(
            model.run(batch), batch.repeat(2, axis=2).repeat(2, axis=3)
        )
        assert stand_in.shapes == [(2, 3, 8, 8), (1, 3, 8, 8)]

    def test_a_layout_of_other_strides(self, stand_in, tmp_path):
        model = TensorRTRuntime.load(write_engine(tmp_path))
        image = random_image(1, 3, 12, 10).half().float().numpy().swapaxes(2, 3)
        assert np.array_equal(
            model.run(image), image.repeat(2, axis=2).repeat(2, axis=3)
        )

    def test_a_picture_outside_the_profile(self, stand_in, tmp_path):
        model = TensorRTRuntime.load(write_engine(tmp_path))
        with pytest.raises(AetherError, match="takes images of 8x8 to 48x32 pixels"):
            model.run(np.zeros((1, 3, 7, 12), np.float32))

    def test_a_failure_is_an_error(self, stand_in, tmp_path):
        model = TensorRTRuntime.load(write_engine(tmp_path))
        stand_in.works = False
        with pytest.raises(AetherError, match="failed on an image of 12x10"):
            model.run(np.zeros((1, 3, 10, 12), np.float32))

    def test_an_engine_that_the_library_refuses(self, stand_in, tmp_path):
        content = b"a plan for nobody"
        checksum = hashlib.sha256(content).hexdigest()
        engine = write_engine(tmp_path, content, engine_sha256=checksum)
        with pytest.raises(AetherError, match=r"does not load this engine on NVIDIA A"):
            TensorRTRuntime.load(engine)

    def test_another_gpu_of_its_kind_gets_a_warning(self, stand_in, tmp_path, caplog):
        facts = {
            "library": "tensorrt",
            "compute_capabilities": ("8.9",),
            "gpu": "NVIDIA B",
        }
        TensorRTRuntime.load(write_engine(tmp_path, **facts))
        assert "was tuned on NVIDIA B and may be slower on NVIDIA A" in caplog.text

    @pytest.mark.parametrize("error", [0, 1 << 20])
    def test_a_built_engine_is_compared_with_onnx_runtime(
        self, stand_in, tmp_path, monkeypatch, error
    ):
        pytest.importorskip("onnxruntime", reason="needs pip install onnx onnxruntime")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        stand_in.unit, stand_in.error = ctypes.c_uint32, error
        scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")
        resize = onnx.helper.make_node(
            "Resize",
            ["input", "", "s"],
            ["output"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        shapes = {"input": PICTURE, "output": ["b", 3, "h2", "w2"]}
        source = write_model(tmp_path / "m.onnx", [resize], shapes, weights=[scales])
        types = {"input_dtype": "float32", "output_dtype": "float32"}
        header = engine_header(precision="float32", **types)
        words = (tmp_path / "m.engine", header, b"a plan", source.read_bytes())
        if error:  # in the bits of a float32: about an eighth of each value
            with pytest.raises(VerificationError, match="differs from ONNX Runtime"):
                compare_here(*words)
        else:
            assert compare_here(*words).max_abs_error == 0

    @needs_builder
    def test_the_library_has_what_is_called(self):
        library = open_library("tensorrt_rtx").module
        own = [name for name in vars(StandIn) if not name.startswith("__")]
        assert "execute_async_v3" in own
        owners = (
            library,
            library.Runtime,
            library.ICudaEngine,
            library.IExecutionContext,
        )
        for name in own:
            assert any(hasattr(owner, name) for owner in owners), name
        assert library.ExecutionContextAllocationStrategy.USER_MANAGED
