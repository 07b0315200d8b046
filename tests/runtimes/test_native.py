"""The native kernels against the network in PyTorch."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import SHIPPED_MODEL, lively_network, random_image
from runtime_helpers import NEEDS_KERNELS

from aethernet import devices
from aethernet.aether_core import AetherNet
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.folded import Folded, fold
from aethernet.errors import AetherError, OutOfMemoryError
from aethernet.runtimes import cores
from aethernet.runtimes.native import build as builder
from aethernet.runtimes.native import library, run, threads
from aethernet.runtimes.native.library import Kernels, load_kernels
from aethernet.runtimes.native.pack import (
    Ending,
    aligned,
    pack_block,
    pack_convolution,
)
from aethernet.runtimes.native.run import NativeNetwork

TOLERANCE = 2e-5


pytestmark = NEEDS_KERNELS


def folded(network: AetherNet) -> Folded:
    arrays = {key: value.numpy() for key, value in network.state_dict().items()}
    return fold(arrays, network.img_range)


def native(network: AetherNet, count: int = 2, kernels: Kernels | None = None):
    return NativeNetwork(folded(network), count, kernels)


@torch.inference_mode()
def error_of(engine: NativeNetwork, network: AetherNet, image: torch.Tensor) -> float:
    """The largest error, in parts of the largest output where that is over 1."""
    expected = network(image).numpy()
    largest = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(engine(image.numpy()) - expected).max()) / largest


class TestOutput:
    @pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
    @pytest.mark.parametrize(
        "size", [(1, 1), (1, 2), (2, 1), (1, 7), (9, 1), (2, 2), (3, 3), (7, 61)]
    )
    def test_every_scale_and_odd_sizes(self, scale, size):
        network = lively_network(scale=scale, embed_dim=8, depths=(1,))
        image = random_image(1, 3, *size)
        assert error_of(native(network), network, image) < TOLERANCE

    @pytest.mark.parametrize("kernel", [1, 3, 5, 9, 11, 13, 15, 31])
    def test_every_kernel(self, kernel):
        network = lively_network(lk_kernel=kernel, sk_kernel=1)
        image = random_image(1, 3, 14, 37)
        assert error_of(native(network), network, image) < TOLERANCE

    @pytest.mark.parametrize(
        ("embed_dim", "mlp_ratio"),
        [(1, 1), (2, 1.5), (7, 3), (12, 2), (20, 1.5), (96, 2), (100, 0.3), (180, 2.5)],
    )
    def test_widths_that_fill_no_vector(self, embed_dim, mlp_ratio):
        network = lively_network(embed_dim=embed_dim, mlp_ratio=mlp_ratio)
        image = random_image(1, 3, 10, 27)
        assert error_of(native(network), network, image) < TOLERANCE

    @pytest.mark.parametrize("channels", [1, 2, 4, 17])
    def test_pictures_of_other_channels(self, channels):
        network = lively_network(in_chans=channels, scale=3)
        image = random_image(2, channels, 6, 50)
        assert error_of(native(network), network, image) < TOLERANCE

    def test_img_range_is_folded(self):
        network = lively_network(img_range=255.0)
        image = random_image(1, 3, 9, 9)
        assert error_of(native(network), network, image) < TOLERANCE

    def test_the_shipped_model(self):
        network = load_checkpoint(SHIPPED_MODEL).build().eval()
        image = random_image(1, 3, 20, 27)
        assert error_of(native(network), network, image) < TOLERANCE

    def test_a_view_of_another_layout(self):
        network = lively_network()
        image = random_image(1, 3, 20, 30)
        engine = native(network)
        turned = np.asfortranarray(image.numpy())
        assert np.array_equal(engine(turned), engine(image.numpy()))

    def test_what_is_not_finite_stays_visible(self):
        network = lively_network()
        image = random_image(1, 3, 20, 30).numpy()
        image[0, 0, 10, 10] = np.nan
        assert np.isnan(native(network)(image)).any()

    @pytest.mark.slow
    def test_random_configurations(self):
        generator = np.random.default_rng(0)
        for seed in range(300):
            kernel = int(generator.integers(0, 16)) * 2 + 1
            network = lively_network(
                seed,
                embed_dim=int(generator.integers(1, 70)),
                mlp_ratio=float(generator.uniform(1, 3)),
                depths=tuple(generator.integers(1, 3, 2).tolist()),
                lk_kernel=kernel,
                sk_kernel=1,
                scale=int(generator.choice([1, 2, 3, 4, 8])),
                in_chans=int(generator.choice([1, 3])),
            )
            size = generator.integers(1, 40, 2).tolist()
            image = random_image(1, network.in_chans, *size, seed=seed)
            engine = native(network, int(generator.integers(1, 9)))
            assert error_of(engine, network, image) < TOLERANCE, seed


class TestVariants:
    @pytest.mark.slow
    @pytest.mark.parametrize("lanes", [4, 8, 16])
    def test_every_width_of_vectors(self, lanes, tmp_path):
        """The sources of all variants, compiled for this processor."""
        flags = [f"-DLANES={lanes}"]
        path = builder.build(tmp_path / builder.LIBRARY.name, extra=flags)
        kernels = Kernels(path, library.variants(path)[-1])
        assert kernels.lanes == lanes
        for scale, embed_dim in ((1, 12), (2, 20), (4, 36)):
            network = lively_network(embed_dim=embed_dim, scale=scale)
            image = random_image(1, 3, 13, 31)
            engine = native(network, 2, kernels)
            assert error_of(engine, network, image) < TOLERANCE

    def test_a_variant_that_the_processor_lacks_is_refused(self):
        with pytest.raises(AetherError, match="no sse"):
            load_kernels(library.LIBRARY, "sse")

    def test_an_older_processor_is_told_what_is_missing(self, monkeypatch, tmp_path):
        monkeypatch.setattr(library, "variants", lambda _: ())
        with pytest.raises(AetherError, match="needs a processor with AVX2"):
            load_kernels(tmp_path / "kernels.so")

    def test_a_library_of_other_sources_is_refused(self, monkeypatch):
        monkeypatch.setattr(library, "sources", lambda: 0)
        with pytest.raises(AetherError, match=r"other sources.*build_native"):
            library.variants()


class TestThreads:
    @pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
    def test_the_result_is_the_same_for_any_number(self, count):
        network = lively_network(embed_dim=16)
        image = random_image(1, 3, 65, 50).numpy()
        expected = native(network, 1)(image)
        assert np.array_equal(native(network, count)(image), expected)

    @pytest.mark.parametrize("count", [1, 2, 8, 64])
    @pytest.mark.parametrize("size", [(1, 1), (128, 128), (37, 500), (1000, 3)])
    def test_rectangles_cover_the_picture_once(self, count, size):
        seen = np.zeros(size, int)
        for y0, y1, x0, x1 in threads.rectangles(*size, count, 5000, 8):
            assert (y1 - y0) * (x1 - x0) <= 5000
            seen[y0:y1, x0:x1] += 1
        assert (seen == 1).all()

    def test_64_threads_all_get_work(self):
        assert len(threads.rectangles(128, 128, 64, 10**9, 8)) >= 64

    def test_calls_from_several_threads_and_two_models_at_once(self):
        networks = [lively_network(embed_dim=16), lively_network(1, embed_dim=24)]
        engines = [native(network) for network in networks]
        images = [random_image(1, 3, 30 + i, 40, seed=i).numpy() for i in range(4)]
        work = [(engine, image) for engine in engines for image in images]
        expected = [engine(image) for engine, image in work]
        with ThreadPoolExecutor(8) as pool:
            found = [*pool.map(lambda job: job[0](job[1]), work * 3)]
        for one, other in zip(found, expected * 3, strict=True):
            assert np.array_equal(one, other)

    def test_no_thread_outlives_a_call(self):
        before = threading.active_count()
        native(lively_network(), 4)(random_image(1, 3, 64, 64).numpy())
        assert threading.active_count() == before

    def test_an_error_in_one_job_ends_the_call(self):
        def fail(_: int) -> None:
            raise ValueError("of a job")

        steps = [[lambda _: None] * 4, [lambda _: None, fail, lambda _: None]]
        with pytest.raises(ValueError, match="of a job"):
            threads.run_steps(steps, 3)

    @pytest.mark.parametrize("possible", [0, 1, 2])
    def test_fewer_threads_where_the_system_gives_no_more(self, monkeypatch, possible):
        network = lively_network(embed_dim=16)
        image = random_image(1, 3, 65, 50).numpy()
        expected = native(network, 1)(image)
        start, started = threading.Thread.start, []

        def limited(thread: threading.Thread) -> None:
            if len(started) == possible:
                raise RuntimeError("can't start new thread")
            started.append(thread)
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)
        assert np.array_equal(native(network, 5)(image), expected)
        assert len(started) == possible
        assert not any(thread.is_alive() for thread in started)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.skipif(sys.platform != "linux", reason="fork is safe on Linux only")
    def test_a_forked_process_computes_too(self):
        engine = native(lively_network())
        image = random_image(1, 3, 40, 40).numpy()
        expected = engine(image)
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(engine(image), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0

    @pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals")
    def test_ctrl_c_ends_a_long_call(self):
        network = load_checkpoint(SHIPPED_MODEL).build().eval()
        engine = native(network)
        image = np.zeros((1, 3, 768, 768), np.float32)
        sent: list[float] = []

        def interrupt() -> None:
            sent.append(time.monotonic())
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        timer = threading.Timer(0.5, interrupt)
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                engine(image)
            late = time.monotonic() - sent[0]
        finally:
            timer.join()
            signal.signal(signal.SIGINT, previous)
        # `benchmarks/native_engine.py` measures it: here others may have the machine.
        assert late < 5
        assert threading.active_count() < 10

    @pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals")
    def test_after_ctrl_c_no_thread_takes_another_job(self):
        begun: list[int] = []

        def job(_: int) -> None:
            begun.append(0)
            if len(begun) == 10:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.005)

        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                threads.run_steps([[job] * 1000], 3)
        finally:
            signal.signal(signal.SIGINT, previous)
        assert len(begun) < 100  # 10 and one of each thread, if nothing else runs here

    def test_affinity_limits_the_cores(self, monkeypatch):
        if not hasattr(os, "sched_getaffinity"):
            pytest.skip("needs affinity")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
        assert cores.usable_cores() == 1

    def test_cgroups_limit_the_cores(self, monkeypatch, tmp_path):
        (tmp_path / "cpu.max").write_text("150000 100000\n")
        monkeypatch.setattr(devices, "CGROUP", tmp_path)
        eight = {*range(10**6, 10**6 + 8)}  # of which nothing is known
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: eight, raising=False)
        assert cores.usable_cores() == 2

    def test_a_number_that_pytorch_was_told_counts(self, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        assert cores.threads_to_use() == 1


class TestMemory:
    def test_a_call_allocates_what_memory_says(self, monkeypatch):
        engine = native(lively_network(embed_dim=96), 2)
        taken: list[int] = []

        def counted(count: int) -> np.ndarray:
            taken.append(4 * count)
            return aligned(count)

        for module in (run, library):
            monkeypatch.setattr(module, "aligned", counted)
        engine(np.zeros((1, 3, 50, 70), np.float32))
        assert sum(taken) == engine.memory(50, 70)

    def test_large_pictures_take_two_maps(self):
        engine = native(lively_network(embed_dim=96), 2)
        in_and_out = 4 * 3 * (1 + 2**2)
        each = engine.memory(4000, 4000) / 4000**2 + in_and_out
        assert each == pytest.approx(engine.bytes_per_pixel, rel=0.01)
        assert engine.bytes_per_pixel == 2 * 96 * 4 + in_and_out

    def test_too_large_is_an_error_before_any_computation(self, monkeypatch):
        engine = native(lively_network())
        monkeypatch.setattr(run, "free_memory", lambda _: 10**6)
        monkeypatch.setattr(run, "run_steps", pytest.fail)
        with pytest.raises(OutOfMemoryError, match=r"500x400: \d+ MiB are needed"):
            engine(np.zeros((1, 3, 400, 500), np.float32))

    def test_no_memory_for_a_map_is_the_same_error(self, monkeypatch):
        engine = native(lively_network())

        def none(*_: int) -> None:
            raise MemoryError

        monkeypatch.setattr(engine.kernels, "new_map", none)
        with pytest.raises(OutOfMemoryError):
            engine(np.zeros((1, 3, 4, 5), np.float32))


class TestChecks:
    @pytest.mark.parametrize("shape", [(3, 4, 4), (1, 1, 4, 4), (1, 3, 0, 4)])
    def test_other_shapes_are_refused(self, shape):
        engine = native(lively_network())
        with pytest.raises(AetherError, match="takes"):
            engine(np.zeros(shape, np.float32))

    def test_other_types_are_refused(self):
        engine = native(lively_network())
        with pytest.raises(AetherError, match="float32"):
            engine(np.zeros((1, 3, 4, 4)))

    def test_an_empty_batch_is_an_empty_result(self):
        engine = native(lively_network())
        assert engine(np.zeros((0, 3, 4, 4), np.float32)).shape == (0, 3, 8, 8)

    def test_kernels_refuse_what_does_not_fit(self):
        kernels = load_kernels()
        network = folded(lively_network(embed_dim=16))
        block = pack_block(network.blocks[0], kernels.lanes)
        small, other, large = (kernels.new_map(16, h, 8, 3) for h in (8, 8, 9))
        scratch = np.zeros(10**6, np.float32)
        everything = (0, 8, 0, 8)
        kernels.block(small, other, everything, block, 1e-6, scratch)
        for source, target, where, packed in (
            (small, small, everything, block),
            (small, large, everything, block),
            (small, other, (0, 9, 0, 8), block),
            (small, other, (0, 8, -1, 8), block),
            (small, other, everything, replace(block, kernel=99)),
            (small, other, everything, replace(block, hidden=10**6)),
            (small, other, everything, replace(block, channels=24)),
            (small, other, everything, replace(block, depthwise=block.depthwise[1:])),
        ):
            with pytest.raises(AetherError, match="cannot compute"):
                kernels.block(source, target, where, packed, 1e-6, scratch)
        with pytest.raises(AetherError, match="scratch"):
            kernels.block(small, other, everything, block, 1e-6, scratch[:9])
        after = pack_convolution(network.after_body, kernels.lanes)
        for source, target, packed in (
            (small, small, after),
            (small, other, replace(after, kernel=5)),
            (small, other, replace(after, weights=after.weights[:10])),
            (small, kernels.new_map(16, 8, 8, 0), after),
        ):
            with pytest.raises(AetherError, match="cannot compute"):
                kernels.conv(source, target, everything, packed, library.PLAIN, scratch)
        with pytest.raises(AetherError, match="scratch"):
            kernels.conv(small, other, everything, after, library.PLAIN, scratch[:9])

    def test_the_ending_is_one_convolution_at_any_scale(self):
        for scale in (2, 4, 8):
            ending = Ending(folded(lively_network(scale=scale)))
            assert ending.at(0).weight.shape == (3 * scale**2, 64, 5, 5)


def test_the_library_is_built_beside_its_source() -> None:
    assert Path(builder.__file__).parent == library.LIBRARY.parent
