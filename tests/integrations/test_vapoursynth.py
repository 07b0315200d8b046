"""The VapourSynth script, in VapourSynth itself (VAPOURSYNTH_PYTHON) and a stand-in."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, lively_network, photo

import aethernet
from aethernet.checkpoints.checkpoint import save_checkpoint

FOLDER = ROOT / "integrations/vapoursynth"


@pytest.fixture
def vapoursynth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in that notes what the plugin and vsmlrt were asked."""
    asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def note(name: str) -> Any:
        return lambda *words, **options: asked.append((name, words, options))

    module, vsmlrt = ModuleType("vapoursynth"), ModuleType("vsmlrt")
    ort = SimpleNamespace(Model=note("ort"))
    vars(module).update(
        RGBS=1, RGBH=2, VideoNode=object, core=SimpleNamespace(ort=ort), asked=asked
    )
    vars(vsmlrt)["inference"] = note("vsmlrt")
    monkeypatch.setitem(sys.modules, "vapoursynth", module)
    monkeypatch.setitem(sys.modules, "vsmlrt", vsmlrt)
    return module


@pytest.fixture
def upscale(vapoursynth: ModuleType) -> Any:
    path = FOLDER / "aethernet_vs.py"
    spec = importlib.util.spec_from_file_location("aethernet_vs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.AetherNet


def clip_of(kind: int) -> Any:
    return SimpleNamespace(format=SimpleNamespace(id=kind), width=40, height=30)


def test_the_whole_frame_needs_no_overlap(upscale, vapoursynth):
    upscale(clip_of(vapoursynth.RGBS), "a.onnx")
    ((name, words, options),) = vapoursynth.asked
    assert (name, len(words[0])) == ("ort", 1)
    assert (options["tilesize"], options["overlap"]) == ([40, 30], [0, 0])
    assert options["provider"] == "CPU"


def test_tiles_have_our_context(upscale, vapoursynth):
    upscale(clip_of(vapoursynth.RGBS), "a.onnx", tilesize=(256, 192))
    ((_, _, options),) = vapoursynth.asked
    assert (options["tilesize"], options["overlap"]) == ([256, 192], [64, 64])


def test_a_backend_goes_to_vsmlrt(upscale, vapoursynth):
    upscale(clip_of(vapoursynth.RGBH), "a.onnx", backend="TRT")
    ((name, _, options),) = vapoursynth.asked
    assert (name, options["backend"]) == ("vsmlrt", "TRT")
    assert (options["tilesize"], options["overlap"]) == ((40, 30), (0, 0))


def test_another_format_is_refused(upscale):
    with pytest.raises(ValueError, match="has to be RGBS"):
        upscale(clip_of(7), "a.onnx")


IN_VAPOURSYNTH = """
import sys
import numpy as np, vapoursynth as vs
from aethernet_vs import AetherNet
pixels = np.load("in.npy")
def filled(n, f):
    frame = f.copy()
    for plane in range(3):
        np.copyto(np.asarray(frame[plane]), pixels[..., plane])
    return frame
height, width = pixels.shape[:2]
blank = vs.core.std.BlankClip(format=vs.RGBS, width=width, height=height, length=1)
clip = vs.core.std.ModifyFrame(blank, blank, filled)
for name, options in (("whole", {}), ("tiles", {"tilesize": (144, 136)})):
    frame = AetherNet(clip, "model.onnx", **options).get_frame(0)
    planes = [np.asarray(frame[plane]) for plane in range(3)]
    np.save(f"{name}.npy", np.stack(planes, -1))
"""


@pytest.fixture(scope="module")
def python() -> str:
    path = os.environ.get("VAPOURSYNTH_PYTHON")
    if not path:
        pytest.skip(
            "set VAPOURSYNTH_PYTHON to a Python with numpy, vapoursynth, "
            "vapoursynth-mlrt-ort and vapoursynth-bestsource (CONTRIBUTING.md)"
        )
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vapoursynth")
    save_checkpoint(lively_network(), folder / "model.safetensors")
    return aethernet.export(folder / "model.safetensors", folder / "model.onnx")


@pytest.mark.frameworks
def test_frames_in_vapoursynth_equal_ours(python, model):
    pixels = np.random.default_rng(0).random((150, 170, 3), np.float32)
    np.save(model.with_name("in.npy"), pixels)
    done = subprocess.run(
        [python, "-c", IN_VAPOURSYNTH],
        cwd=model.parent,
        env={**os.environ, "PYTHONPATH": str(FOLDER)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    network = aethernet.load(
        model.with_name("model.safetensors"), device="cpu", precision="float32"
    )
    expected = network.upscale(pixels)
    for name in ("whole", "tiles"):  # the context is larger than what is seen
        found = np.load(model.with_name(f"{name}.npy")).clip(0, 1)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-5, name


@pytest.mark.frameworks
def test_the_script_upscales_a_video(python, model):
    av = pytest.importorskip("av", reason="needs pip install -e '.[video]'")
    source = model.with_name("clip.mkv")
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(photo(32, 48), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())
    # As vspipe does with -a, which needs a Python with a shared library.
    code = (
        "import runpy, sys, vapoursynth as vs\n"
        "given = {'source': sys.argv[2], 'model': sys.argv[3]}\n"
        "runpy.run_path(sys.argv[1], init_globals=given)\n"
        "vs.get_output(0).clip.output(sys.stdout.buffer, y4m=True)\n"
    )
    done = subprocess.run(
        [python, "-c", code, FOLDER / "upscale.vpy", source, model],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    header = done.stdout.split(b"\n", 1)[0].split()
    assert header[:3] == [b"YUV4MPEG2", b"C420p10", b"W96"]
    assert b"H64" in header
    assert done.stdout.count(b"FRAME\n") == 3
