"""`aethernet bench`: contenders, rounds, figures, and the command."""

import contextlib
import dataclasses
import io
import json
import re
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import check_one_error, lively_network, random_image, without_hidden

from aethernet.bench import ceiling, rounds
from aethernet.bench import contenders as contenders_module
from aethernet.bench.ceiling import Ceiling
from aethernet.bench.contenders import (
    FUSED,
    PLAIN,
    PUBLISHED,
    REWRITTEN,
    TRAINING,
    BenchPlan,
    Contender,
    contenders,
)
from aethernet.bench.memory import peak_memory
from aethernet.bench.peer_networks import build_peer, count_multiply_adds, peer_onnx
from aethernet.bench.peers import PEERS
from aethernet.bench.plot import draw
from aethernet.bench.report import as_table, figures, write_json
from aethernet.bench.rounds import BenchReport, Entry, Ratio
from aethernet.checkpoints.checkpoint import save_checkpoint
from aethernet.checkpoints.info import multiply_adds_per_pixel
from aethernet.checkpoints.verification import natural_image
from aethernet.commands.main import main
from aethernet.errors import AetherError
from aethernet.pictures.files import read_picture

spandrel = pytest.importorskip("spandrel", reason="needs pip install -e '.[bench]'")


@pytest.fixture(scope="module", autouse=True)
def small_product():
    """The ceiling by a small product: its figure does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceiling, "PRODUCT_SIDES", (64,))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(lively_network(depths=(1,)), path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of its own for what runtime auto keeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AETHERNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def bench(*words):
    """Exit code and output of the smallest run, unless words ask for more."""
    printed = io.StringIO()
    few = ["--size", "16x16", "--runs", "2", "--device", "cpu", "--no-memory"]
    with contextlib.redirect_stdout(printed):
        code = main(["bench", *few, *map(str, words)])
    return code, printed.getvalue()


def smaller(key, **arguments):
    peer = PEERS[key]
    return dataclasses.replace(peer, arguments={**peer.arguments, **arguments})


@pytest.fixture(scope="module")
def ran(model, cache, small_product, tmp_path_factory):
    """One run of the command: what it printed, its JSON, its picture."""
    pytest.importorskip("onnxruntime", reason="needs pip install -e '.[bench]'")
    pytest.importorskip("matplotlib", reason="needs pip install -e '.[bench]'")
    folder = tmp_path_factory.mktemp("ran")
    out = ("--json", folder / "b.json", "--plot", folder / "b.png")
    networks = ("--model", model, "--variants", "--peers", "compact")
    how = ("--runtimes", "pytorch", "onnxruntime", "--precisions", "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PEERS, "compact", smaller("compact", num_conv=1))
        code, printed = bench(*networks, *how, *out)
    assert code == 0
    assert without_hidden(folder) == ["b.json", "b.png"]
    content = json.loads((folder / "b.json").read_text(encoding="utf-8"))
    return printed, content, folder / "b.png"


class TestTheCommand:
    def test_all_contenders_have_figures(self, ran):
        _, content, _ = ran
        found = [
            (c["network"], c["form"], c["runtime"], c["reason"])
            for c in content["contenders"]
        ]
        ours = "tiny.safetensors"
        assert found == [
            (ours, REWRITTEN, "auto", ""),
            (ours, PLAIN, "onnxruntime", ""),
            (ours, TRAINING, "pytorch", ""),
            (ours, FUSED, "pytorch", ""),
            (ours, REWRITTEN, "pytorch", ""),
            (ours, REWRITTEN, "onnxruntime", ""),
            ("Compact", PUBLISHED, "pytorch", ""),
            ("Compact", PUBLISHED, "onnxruntime", ""),
        ]

    def test_the_table_has_a_line_for_each_and_the_ratios(self, ran):
        printed, content, _ = ran
        lines = printed.splitlines()
        assert sum(line.startswith("tiny.safetensors  ") for line in lines) == 6
        assert sum(line.startswith("Compact  ") for line in lines) == 2
        assert "ceiling in float32: " in printed
        assert "auto chose " in printed
        ort = "in ONNX Runtime float32"
        assert [ratio["name"] for ratio in content["ratios"]] == [
            f"tiny.safetensors: time of auto / plain export {ort}",
            f"tiny.safetensors: time of our export / plain export {ort}",
            "tiny.safetensors: time of fused / training form in PyTorch",
            f"tiny.safetensors: GFLOP/s / Compact's {ort}",
        ]
        for ratio in content["ratios"]:
            assert ratio["name"] in printed
            assert len(ratio["by_round"]) == 2

    def test_the_figures_are_arithmetic_on_the_times(self, ran):
        _, content, _ = ran
        ceiling = content["ceilings"]["float32"]
        product = np.median(ceiling["ms_by_round"])
        assert ceiling["gflops"] == pytest.approx(
            2 * ceiling["side"] ** 3 / product / 1e6
        )
        for c in content["contenders"]:
            assert c["ms"] == pytest.approx(np.median(c["ms_by_round"]))
            operations = 2 * c["multiply_adds_per_pixel"] * 16 * 16
            assert c["gflops"] == pytest.approx(operations / c["ms"] / 1e6)
            assert c["megapixels_per_second"] == pytest.approx(32 * 32 / c["ms"] / 1e3)
            assert c["runs"] == 2

    def test_the_json_says_where_and_how(self, ran):
        _, content, _ = ran
        found = content["machine"]
        assert found["cpu"] and found["cores"] >= 1 and found["threads"] >= 1
        wanted = {"aethernet", "python", "torch", "onnx", "onnxruntime", "spandrel"}
        assert wanted <= {*found["versions"]}
        assert content["command"].startswith("aethernet bench --size 16x16 --runs 2 ")
        assert content["plan"]["model"] == "tiny.safetensors"

    def test_the_plot_is_a_picture(self, ran):
        *_, plot = ran
        pixels = read_picture(plot).pixels
        assert min(pixels.shape[:2]) > 500
        assert len(np.unique(pixels)) > 50  # letters and lines, not one colour

    def test_a_network_that_cannot_be_built_is_listed_with_the_reason(
        self, model, monkeypatch
    ):
        def broken(*_):
            raise RuntimeError("it has no such part\nand more of that")

        monkeypatch.setattr(contenders_module, "build_peer", broken)
        networks = ("--model", model, "--variants", "--peers", "span", "compact")
        monkeypatch.setattr(contenders_module, "open_model", broken)
        code, printed = bench(*networks, "--runtimes", "pytorch", "--precisions")
        assert code == 0
        assert "  SPAN, as published, pytorch float32: it has no such part\n" in printed
        assert "and more of that" not in printed
        assert "tiny.safetensors  fused form" in printed

    def test_a_network_that_takes_too_long_is_listed_with_the_reason(self):
        few = ("--variants", "--peers", "compact", "--runtimes", "pytorch")
        code, printed = bench(*few, "--seconds", "1e-9")
        assert code == 0
        line = "  Compact, as published, pytorch float32: One run takes"
        assert re.search(line + r" \d+ seconds; the limit is 1e-09\.", printed)

    def test_an_interrupt_leaves_the_old_file(
        self, model, tmp_path, monkeypatch, capsys
    ):
        def interrupted(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(rounds, "timed_turn", interrupted)
        old = tmp_path / "b.json"
        old.write_text("old")
        few = ("--variants", "--peers", "compact", "--runtimes", "pytorch")
        code, _ = bench(*few, "--json", old)
        assert code == 130
        assert "interrupted" in capsys.readouterr().err
        assert without_hidden(tmp_path) == ["b.json"]
        assert old.read_text() == "old"


class TestRefusals:
    @pytest.mark.parametrize(
        "words",
        [("--peers", "esrgan"), ("--size", "128"), ("--size", "0x9"), ("--scale", "5")],
    )
    def test_unknown_values(self, words, capsys):
        with pytest.raises(SystemExit) as stopped:
            main(["bench", *words])
        assert stopped.value.code == 2
        assert words[1] in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (("--plot", "{folder}/b.pdf"), "Name it .png or .svg."),
            (("--json", "{folder}/no/b.json"), "does not exist."),
            (("--runs", "0"), "must be above 0"),
            (("--seconds", "nan"), "must be above 0"),
            (("--model", "{folder}/no.pth"), "There is no "),
            (("--model", "{model}", "--scale", "4"), "scale"),
        ],
    )
    def test_one_line(self, words, text, model, tmp_path, capsys):
        words = [word.format(folder=tmp_path, model=model) for word in words]
        assert bench(*words) == (1, "")
        error = capsys.readouterr().err
        check_one_error(error)
        assert text in error

    @pytest.mark.parametrize(
        ("package", "words"),
        [("spandrel", ("--peers", "span")), ("matplotlib", ("--plot", "b.png"))],
    )
    def test_a_missing_extra(self, package, words, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, package, None)
        assert bench(*words) == (1, "")
        error = capsys.readouterr().err
        assert f"The package {package} is missing" in error
        assert "[bench]" in error


def entry(name="a", seconds=(), form=REWRITTEN, runtime="onnxruntime", **facts):
    kind = "peer" if name in PEERS else "variant"
    form = PUBLISHED if kind == "peer" else form
    who = Contender(name, kind, form, runtime, "float32", 2)
    return Entry(who, precision="float32", seconds=[*seconds], **facts)


class TestRounds:
    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch):
        monkeypatch.setattr(rounds, "SETTLE_SECONDS", 0)

    def test_contenders_take_turns_with_the_ceiling(self):
        order = []
        entries = [entry("a"), entry("b")]
        calls = [lambda: order.append("a"), lambda: order.append("b")]
        products = {"float32": (8, lambda: order.append("product"))}
        ceilings = rounds.take_turns(entries, calls, products, BenchPlan(runs=3))
        turn = ["product", "product", "a", "a", "b", "b"]  # the first of two warms up
        assert order == turn * 3
        assert [len(e.seconds) for e in entries] == [3, 3]
        assert [len(e.cpu_seconds) for e in entries] == [3, 3]
        assert len(ceilings["float32"].seconds) == 3

    def test_a_contender_whose_time_is_used_up_is_left_out_of_later_rounds(self):
        entries, count = [entry()], []
        plan = BenchPlan(runs=4, seconds=1e-9)
        rounds.take_turns(entries, [lambda: count.append(1)], {}, plan)
        assert entries[0].seconds[0] is not None
        assert entries[0].seconds[1:] == [None] * 3
        assert entries[0].cpu_seconds[1:] == [None] * 3
        assert len(count) == 2

    def test_a_contender_that_fails_in_a_round_does_not_stop_the_others(self):
        def fails():
            raise MemoryError("no more")

        entries = [entry("a"), entry("b")]
        rounds.take_turns(entries, [fails, int], {}, BenchPlan(runs=2))
        assert entries[0].reason == "Failed in round 1: no more"
        assert len(entries[1].times) == 2


class TestFigures:
    def report(self, *entries, **plan):
        where = {"cpu": "A", "cores": 2, "threads": 2, "device": "cpu"}
        where |= {"versions": {}, "instructions": ["avx2"]}
        ceilings = {"float32": Ceiling(1000, [0.001, 0.002, 0.004])}
        sizes = {"width": 100, "height": 50, **plan}
        return BenchReport(BenchPlan(**sizes), where, ceilings, [*entries], [])

    def test_units(self):
        one = entry(
            seconds=(0.030, 0.010, None, 0.020),
            multiply_adds_per_pixel=1e6,
            peak_bytes=3 * 2**20,
        )
        found = figures(one, self.report(one))
        assert found["ms"] == pytest.approx(20)
        assert found["ms_quartiles"] == pytest.approx([15, 25])
        assert found["ms_least"] == pytest.approx(10)
        # 5000 pixels in, four times as many out; 2e6 operations for each pixel in.
        assert found["megapixels_per_second"] == pytest.approx(1)
        assert found["gflops"] == pytest.approx(500)
        assert found["of_ceiling"] == pytest.approx(0.5)
        assert found["peak_mib"] == 3
        assert found["runs"] == 3

    def test_a_precision_without_units_is_compared_with_float32(self):
        one = entry(seconds=(0.020,), multiply_adds_per_pixel=1e6)
        one.precision = "bfloat16"
        report = self.report(one)
        report.ceilings["bfloat16"] = Ceiling(1000, [1.0])
        assert figures(one, report)["of_ceiling"] == pytest.approx(0.5)

    def test_only_rounds_with_both_contenders_make_a_ratio(self):
        ours = entry("aether_small", (2, 8, 9, None), multiply_adds_per_pixel=2)
        compact = entry("compact", (1, 2, None, 1), multiply_adds_per_pixel=1)
        found = rounds.ratios([ours, compact])
        # Twice the work in twice the time, then in four times the time.
        name = "aether_small: GFLOP/s / Compact's in ONNX Runtime float32"
        assert found == [Ratio(name, [1, 0.5])]
        assert found[0].median == 0.75

    def test_native_is_compared_in_time_and_in_processor_time(self):
        times = {"seconds": (4, 4), "cpu_seconds": [3, 5]}
        plain = entry(form=PLAIN, multiply_adds_per_pixel=3, **times)
        native = entry(
            runtime="native",
            seconds=(1, 2),
            cpu_seconds=[1.5, 2],
            multiply_adds_per_pixel=3,
        )
        compact = entry("compact", (1, 1), multiply_adds_per_pixel=1)
        compact.cpu_seconds = [1, 1]
        onnx = "in ONNX Runtime float32"
        assert rounds.ratios([plain, native, compact]) == [
            Ratio(f"a: time of native / plain export {onnx}", [0.25, 0.5]),
            Ratio(f"a: GFLOP/s in the native runtime / Compact's {onnx}", [3, 1.5]),
        ]
        what = f"a: CPU time of native / plain export {onnx}"
        found = rounds.ratios([plain, native, compact], cpu_time=True)
        assert found[0] == Ratio(what, [0.5, 0.4])
        rate = "a: GFLOP per CPU second in the native runtime / Compact's "
        assert found[1] == Ratio(f"{rate}{onnx}", [2, 1.5])

    def test_processor_time_is_a_column_on_request(self):
        one = entry(seconds=(0.020,), cpu_seconds=[0.03], multiply_adds_per_pixel=1e6)
        lines = as_table(self.report(one)).splitlines()
        assert "CPU ms" not in "".join(lines)
        *_, names, row = as_table(self.report(one, cpu_time=True)).splitlines()
        assert names.split()[7:10] == ["CPU", "ms", "MP/s"]
        assert row.split()[9] == "30.0"

    def test_a_contender_with_a_reason_makes_no_ratio(self):
        ours = entry("aether_small", (2, 8), multiply_adds_per_pixel=2)
        compact = entry("compact", (1,), multiply_adds_per_pixel=1, reason="failed")
        assert rounds.ratios([ours, compact]) == []

    def test_nothing_to_draw_is_an_error(self, tmp_path):
        pytest.importorskip("matplotlib", reason="needs pip install -e '.[bench]'")
        report = self.report(entry(reason="it is missing"))
        assert "it is missing" in as_table(report)
        with pytest.raises(AetherError, match="nothing to draw"):
            draw(report, tmp_path / "b.svg")
        write_json(report, tmp_path / "b.json", "aethernet bench")
        assert without_hidden(tmp_path) == ["b.json"]


def test_precisions_and_runtimes_multiply_for_ours_only():
    plan = BenchPlan(
        variants=("aether_small",),
        peers=("span",),
        runtimes=("onnxruntime", "tensorrt"),
        precisions=("float32", "float16"),
    )
    assert [str(contender) for contender in contenders(plan)] == [
        "aether_small, plain export, onnxruntime float32",
        "aether_small, rewritten, onnxruntime float32",
        "aether_small, rewritten, onnxruntime float16",
        "aether_small, rewritten, tensorrt float32",
        "aether_small, rewritten, tensorrt float16",
        "span, as published, onnxruntime float32",
    ]


class TestMemory:
    def test_a_process_that_takes_too_long_is_ended(self, model):
        who = Contender("tiny", "model", FUSED, "pytorch", "float32", 2)
        with pytest.raises(AetherError, match="more than 0 seconds"):
            peak_memory(who, model, "cpu", natural_image(8, 8), timeout=0.01)

    def test_holds_at_least_what_it_makes(self, model):
        who = Contender("tiny", "model", FUSED, "pytorch", "float32", 2)
        size = 256
        image = natural_image(size, size)
        peak = peak_memory(who, model, "cpu", image)
        if peak is None:
            pytest.skip("this system does not report a process's memory")
        # float32: the picture, and a block's two hidden maps, 24 channels each.
        least = 4 * max(3 * (2 * size) ** 2, 2 * 24 * size**2)
        assert least < peak < 20 * least

    def test_passes_on_the_error(self, tmp_path):
        who = Contender("gone", "model", REWRITTEN, "pytorch", "float32", 2)
        image = natural_image(8, 8)
        with pytest.raises(AetherError, match="There is no such file") as caught:
            peak_memory(who, tmp_path / "gone.pth", "cpu", image)
        assert caught.value.path == tmp_path / "gone.pth"


# Thousands of parameters at 4x; SPAN's of the form that is run.
PUBLISHED_PARAMETERS = {
    "compact": 621,  # Real-ESRGAN's realesr-animevideov3, which has this configuration
    "span": 498,  # Wan et al. 2023
    "span_s": 426,
    "plksr": 7386,  # Lee et al. 2024
    "swinir_light": 930,  # as counted in SRFormer (Zhou et al. 2023)
    "dat_light": 573,  # Chen et al. 2023
}


class TestPeers:
    @pytest.mark.parametrize("key", PUBLISHED_PARAMETERS)
    def test_are_of_the_published_size(self, key):
        parameters = sum(p.numel() for p in build_peer(key, 4).parameters())
        assert round(parameters / 1000) == PUBLISHED_PARAMETERS[key]

    def test_multiply_adds_of_plain_convolutions(self):
        # 3 -> 64, 16 times 64 -> 64, 64 -> 4 x 3, all 3x3 at LR.
        expected = 9 * (3 * 64 + 16 * 64 * 64 + 64 * 12)
        assert count_multiply_adds(build_peer("compact", 2), 7, 9) == expected

    def test_multiply_adds_of_a_network_that_has_to_be_run(self):
        # SwinIR's masks depend on values.
        network = build_peer("swinir_light", 2)
        weights = sum(p.numel() for p in network.parameters() if p.ndim in (2, 4))
        assert 1.0 < count_multiply_adds(network, 16, 16) / weights < 1.5

    @pytest.mark.parametrize("form", ["training", "fused"])
    def test_multiply_adds_of_ours_are_those_of_the_formula(self, form):
        network = lively_network(scale=4)
        if form == "fused":
            network.fuse()
        counted = count_multiply_adds(network, 16, 24)
        assert counted == multiply_adds_per_pixel(network.hyperparameters)

    def test_folded_span_is_the_same_function(self):
        from spandrel.architectures.SPAN import SPAN

        torch.manual_seed(0)
        whole = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=48, upscale=2).eval()
        image = random_image(1, 3, 12, 12)
        with torch.inference_mode():
            torch.testing.assert_close(
                build_peer("span_s", 2)(image), whole(image), rtol=1e-4, atol=1e-4
            )

    def test_exported_plksr_is_the_same_function(self, monkeypatch):
        ort = pytest.importorskip(
            "onnxruntime", reason="needs pip install -e '.[bench]'"
        )
        small = smaller("plksr_tiny", dim=16, n_blocks=1)
        monkeypatch.setitem(PEERS, "plksr_tiny", small)
        network = build_peer("plksr_tiny", 2)
        image = random_image(1, 3, 10, 14)
        session = ort.InferenceSession(peer_onnx(network, (1, 10, 14)))
        with torch.inference_mode():
            expected = network(image.clone())
        output = session.run(None, {"input": image.numpy()})[0]
        np.testing.assert_allclose(output, expected.numpy(), atol=1e-5)

    def test_a_network_that_spandrel_cannot_build_is_an_error(self, monkeypatch):
        monkeypatch.setitem(PEERS, "compact", smaller("compact", num_feat=-1))
        with pytest.raises(
            AetherError, match=r"^spandrel cannot build Compact at 2x: "
        ):
            build_peer("compact", 2)
