"""`aethernet web`: the folder, and what is said when it cannot be made.

The page itself is tested in a browser by `npm --prefix web test`.
"""

import base64
import hashlib
import json
import re
import zlib
from itertools import pairwise

import numpy as np
import pytest
from helpers import (
    ROOT,
    check_one_error,
    lively_file,
    tiny_weights_file,
    without_hidden,
)

from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.onnx_check import open_session, session_run
from aethernet.checkpoints.onnx_graph import Writing, to_onnx
from aethernet.checkpoints.reference import evaluate
from aethernet.commands.main import main
from aethernet.errors import AetherError
from aethernet.publish import web
from aethernet.publish.page_model import CONSTANTS, page_model
from aethernet.runtimes.native import build
from aethernet.runtimes.native.pack import Ending, pack_convolution

TINY = {"embed_dim": 8, "depths": (1,)}
MOST_LINES = 600
"""Of TypeScript in the page, without comments and empty lines: there are fewer."""


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A built page, so that no test needs npm."""
    if not all(path.is_file() for path in build.PAGE_KERNELS):
        pytest.skip("needs the page's kernels: python tools/build_native.py")
    built = tmp_path / "built"
    (built / "assets").mkdir(parents=True)
    for name in ("index.html", "sw.js", "assets/main-1.js"):
        (built / name).write_text("content", "utf-8")
    monkeypatch.setattr(web, "built_page", lambda: built)
    return built


@pytest.fixture
def model(tmp_path):
    return lively_file(tmp_path / "tiny.safetensors", **TINY)


def write(*words):
    return main(["web", *map(str, words)])


def test_without_a_name_all_that_ship_are_offered(page, tmp_path):
    assert write("-o", tmp_path / "out") == 0
    entries = json.loads((tmp_path / "out" / web.LIST).read_text("utf-8"))
    names = [entry["name"] for entry in entries]
    assert names[0] == "2x_aether_small"
    assert sorted(names) == sorted(
        path.stem
        for path in (ROOT / "models").glob("*.safetensors")
        if not path.stem.endswith("_training")
    )


def test_the_folder_holds_the_page_and_correct_models(page, model, tmp_path, capsys):
    target = tmp_path / "out"
    gray = lively_file(tmp_path / "gray.safetensors", **TINY, in_chans=1, scale=4)
    assert write("-o", target, "--model", model, gray) == 0
    assert "http://localhost:8000" in capsys.readouterr().out
    assert (target / "assets/main-1.js").read_text("utf-8") == "content"
    entries = json.loads((target / web.LIST).read_text("utf-8"))
    assert [entry["name"] for entry in entries] == ["tiny", "gray"]
    for entry, path in zip(entries, (model, gray), strict=True):
        checkpoint = load_checkpoint(path)
        assert entry["scale"] == checkpoint.scale
        assert entry["channels"] == checkpoint.in_chans
        picture = web.check_picture(checkpoint.in_chans)
        expected = evaluate(checkpoint.folded, picture)
        for text, values in zip(entry["check"], (picture, expected), strict=True):
            steps = np.frombuffer(base64.b64decode(text), np.uint8)
            shown = np.clip(values, 0, 1).ravel() * 255
            assert np.abs(steps - shown).max() <= 0.51
        for key in ("file", "half"):
            run = session_run(open_session((target / entry[key]).read_bytes()))
            assert np.abs(run(picture) - expected).max() < 1 / 255, key
        assert len(entry["kernels"]) == 2
        for name in (*entry["kernels"], entry["weights"]):
            content = (target / name).read_bytes()
            assert hashlib.sha256(content).hexdigest()[:12] in name
            assert content.startswith((b"\0asm", b"\x78"))  # WebAssembly, zlib
        program, weights = entry["program"], zlib.decompress(content)
        singles = program["weights"][1] - program["halves"]
        assert len(weights) == 2 * program["halves"] + 4 * singles
        assert program["halves"] > 10 * singles
    # 64 channels before the picture is enlarged; at 4x four times as many, once.
    assert [entry["most"]["processor"] for entry in entries] == [512, 256]
    assert [entry["most"]["card"] for entry in entries] == [512, 352]


def test_weights_that_float16_does_not_hold_stay_as_they_are(page, tmp_path):
    model = tiny_weights_file(tmp_path / "tiny.safetensors", **TINY)
    assert write("-o", tmp_path / "out", "--model", model) == 0
    (entry,) = json.loads((tmp_path / "out" / web.LIST).read_text("utf-8"))
    weights = zlib.decompress((tmp_path / "out" / entry["weights"]).read_bytes())
    assert entry["program"]["halves"] == 0
    values = np.frombuffer(weights, np.float32)
    assert len(values) == entry["program"]["weights"][1]
    assert np.isin(load_checkpoint(model).folded.before_upsample.weight, values).all()


@pytest.mark.parametrize(
    ("size", "widest", "expected"),
    [(2**27, 64, 512), (2**26, 192, 288), (2**26, 4096, 64), (2**10, 3, 64)],
)
def test_windows_whose_largest_tensor_fits(size, widest, expected):
    assert web.largest_window(size, widest) == expected


MOST = 80
"""Pixels along each side of the largest picture of `made`."""


@pytest.fixture(scope="module", params=[(3, 2), (1, 3), (3, 4)])
def made(request, tmp_path_factory):
    """A folded network, its weights for the page, and its program."""
    channels, scale = request.param
    path = tmp_path_factory.mktemp("model") / "a.safetensors"
    options = {**TINY, "depths": (2,), "in_chans": channels, "scale": scale}
    folded = load_checkpoint(lively_file(path, **options)).folded
    return folded, *page_model(folded, True, MOST)


class TestProgram:
    def test_places_follow_each_other(self, made):
        folded, content, program = made
        words, weights, maps = (program[key] for key in ("words", "weights", "maps"))
        pixels = folded.in_chans * MOST**2
        areas = [
            *(words, weights, maps, [program["image"], pixels]),
            [program["result"], pixels * folded.scale**2],
        ]
        assert words[0] == 2**16  # below lies what belongs to the kernels
        for (start, count), (after, _) in pairwise(areas):
            assert start + 4 * count <= after < start + 4 * count + 64
        stack = program["scratch"] - 2**14
        assert stack >= program["result"] + 4 * areas[-1][1]
        assert program["each"] > 2**14 and program["each"] % 64 == 0
        assert words[1] == 3 + len(program["steps"])
        assert len(content) == 4 * weights[1] - 2 * program["halves"]

    def test_what_calls_name_is_where_it_should_be(self, made):
        _, content, program = made
        start, count = program["weights"]
        ends = program["weights"][0] + 4 * count
        first, tail = program["steps"][0][0], program["steps"][-1][0]
        assert [first[0], tail[0]] == ["first", "tail"]
        assert first[1] == program["image"] and tail[2] == program["result"]
        names = {
            word for step in program["steps"] for call in step for word in call[1:]
        }
        names = {word for word in names if isinstance(word, str)}
        assert names == {"height", "width", "top", "bottom", "scratch"}
        addresses = np.frombuffer(content[-128:], np.uint32)
        assert [*tail[-3:-1]] == [ends - 128, ends - 64]
        assert np.all((addresses >= start) & (addresses < ends - 128))
        step = program["mixed"] // 16 * 4
        assert addresses[:16].tolist() == [start + step * i for i in range(16)]

    def test_the_kernels_of_the_edges_lie_mixed(self, made):
        folded, content, program = made
        mixed = np.frombuffer(content[: 2 * program["mixed"]], np.float16)
        ending = Ending(folded)
        for edge in (0, 5, 15):
            packed = pack_convolution(ending.at(edge), CONSTANTS.lanes).weights
            assert np.array_equal(mixed[edge::16], packed.astype(np.float16))

    def test_maps_hold_the_largest_picture_with_zeros_around_it(self, made):
        _, _, program = made
        (start, count), (_, a, b, row, plane) = (
            program["maps"],
            program["steps"][1][0][:5],
        )
        margin = row // CONSTANTS.lanes - MOST
        assert margin == 3 and plane == (MOST + margin) * row
        corner = 4 * margin * (row + CONSTANTS.lanes)
        assert [a, b] == [start + corner, start + 2 * count + corner]


@pytest.mark.parametrize("case", ["missing", "stale"])
def test_kernels_that_are_not_built_are_refused(
    case, page, model, tmp_path, monkeypatch, capsys
):
    kernels = [tmp_path / path.name for path in build.PAGE_KERNELS]
    if case == "stale":
        for here, path in zip(build.PAGE_KERNELS, kernels, strict=True):
            path.write_bytes(here.read_bytes())
        others = build.sources() + 1
        monkeypatch.setattr(build, "sources", lambda: others)
    monkeypatch.setattr(web, "PAGE_KERNELS", kernels)
    assert write("-o", tmp_path / "out", "--model", model) == 1
    error = capsys.readouterr().err
    check_one_error(error)
    assert "tools/build_native.py" in error
    assert "out" not in without_hidden(tmp_path)


def test_kernels_in_float16_make_small_files_that_compute_in_float32(model):
    folded = load_checkpoint(model).folded
    small = to_onnx(folded, Writing(half_weights=True)).SerializeToString()
    full = to_onnx(folded).SerializeToString()
    assert len(small) < 0.75 * len(full)
    image = web.check_picture(3)
    outputs = [session_run(open_session(content))(image) for content in (small, full)]
    assert 0 < np.abs(outputs[0] - outputs[1]).max() < 0.5 / 255
    with pytest.raises(AetherError, match="Only a float32 file"):
        Writing(precision="float16", half_weights=True)


def test_an_earlier_page_is_replaced_and_another_folder_is_not(
    page, model, tmp_path, capsys
):
    target = tmp_path / "out"
    assert write("-o", target, "--model", model) == 0
    (target / "old.txt").write_text("of the earlier page", "utf-8")
    assert write("-o", target, "--model", model) == 0
    assert not (target / "old.txt").exists()
    (target / web.LIST).unlink()
    capsys.readouterr()
    assert write("-o", target, "--model", model) == 1
    error = capsys.readouterr().err
    check_one_error(error)
    assert "holds something else" in error


@pytest.mark.parametrize("case", ["damaged", "twice", "missing"])
def test_bad_models_leave_nothing(case, page, model, tmp_path, capsys):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no weights")
    given = {"damaged": [damaged], "twice": [model, model], "missing": ["x.pth"]}
    assert write("-o", tmp_path / "out", "--model", *given[case]) == 1
    check_one_error(capsys.readouterr().err)
    assert "out" not in without_hidden(tmp_path)


class TestBuilding:
    @pytest.fixture
    def clone(self, tmp_path, monkeypatch):
        source = tmp_path / "web"
        for folder in ("src", "public"):
            (source / folder).mkdir(parents=True)
        (source / "package.json").write_text("{}", "utf-8")
        monkeypatch.setattr(web, "PACKAGE", tmp_path / "src/aethernet")
        return source

    def test_without_the_page_and_its_sources(self, tmp_path, monkeypatch):
        monkeypatch.setattr(web, "PACKAGE", tmp_path / "src/aethernet")
        with pytest.raises(AetherError, match="does not have the page") as error:
            web.built_page()
        assert "wheel of a release" in error.value.hint

    def test_without_npm(self, clone, monkeypatch):
        monkeypatch.setattr(web.shutil, "which", lambda _: None)
        with pytest.raises(AetherError, match="is not built yet") as error:
            web.built_page()
        assert "Node.js" in error.value.hint

    def test_a_page_that_is_newer_than_its_sources_is_taken(self, clone, monkeypatch):
        (clone / "build").mkdir()
        (clone / "build/index.html").write_text("page", "utf-8")
        monkeypatch.setattr(web.shutil, "which", lambda _: None)
        assert web.built_page() == clone / "build"

    def test_a_failure_of_npm_is_one_error(self, clone, monkeypatch):
        (clone / "package-lock.json").write_text("{}", "utf-8")
        said = web.subprocess.CompletedProcess([], 1, "", "\nnpm error: no disk\n at x")
        monkeypatch.setattr(web.shutil, "which", lambda _: "npm")
        monkeypatch.setattr(web.subprocess, "run", lambda *_, **__: said)
        with pytest.raises(AetherError, match="npm error: no disk") as error:
            web.built_page()
        assert "at x" not in str(error.value)


class TestSources:
    def test_the_lock_file_names_no_registry(self):
        lock = json.loads((ROOT / "web/package-lock.json").read_text("utf-8"))
        assert len(lock["packages"]) > 10
        assert not [name for name, one in lock["packages"].items() if "resolved" in one]

    def test_the_page_is_small(self):
        files = sorted((ROOT / "web/src").glob("*.ts"))
        lines = [line.strip() for f in files for line in f.read_text().splitlines()]
        code = [
            line for line in lines if line and not line.startswith(("//", "*", "/*"))
        ]
        assert 100 < len(code) < MOST_LINES

    def test_the_page_names_no_other_host(self):
        folder = ROOT / "web"
        files = [folder / "index.html", *(folder / "src").iterdir()]
        for path in files:
            assert not re.search(r"https?://", path.read_text("utf-8")), path
        policy = (folder / "index.html").read_text("utf-8")
        assert "default-src 'none'" in policy
