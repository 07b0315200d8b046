"""The Python API, as docs/python.md describes it."""

import re

import numpy as np
import onnx
import pytest
from helpers import (
    LIBRARY,
    PLAIN,
    ROOT,
    SAMPLE,
    SUFFIX,
    Repeat,
    lively_file,
    photo,
    random_image,
    write,
)
from PIL import Image, ImageCms
from runtime_helpers import picture_file, picture_network

import aethernet
from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.errors import AetherError, ImageError
from aethernet.pictures.files import read_picture
from aethernet.runtimes.tiling import Tiled

NAMES = {
    *("AetherError", "AetherNet", "Checkpoint", "Upscaler", "__version__"),
    *("aether_large", "aether_medium", "aether_small", "export", "fuse"),
    *("hyperparameters_from_state_dict", "load", "load_checkpoint", "load_network"),
    *("save_checkpoint", "upscale_file"),
}


def test_the_public_names():
    assert {*aethernet.__all__} == NAMES


@pytest.fixture
def doubling():
    """A model whose every output pixel is the input's."""
    return aethernet.Upscaler(Tiled(Repeat(2)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return picture_file(tmp_path_factory.mktemp("api") / f"net_g{SUFFIX}")


@pytest.fixture(scope="module")
def model(checkpoint):
    return aethernet.load(checkpoint, runtime=PLAIN, device="cpu", precision="float32")


class TestArrays:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    @pytest.mark.parametrize("bands", [None, 1, 2, 3, 4])
    def test_the_same_kind_comes_back(self, doubling, dtype, bands):
        deep = photo(9, 14, bands or 1, np.uint16)
        array = deep if dtype == np.uint16 else (deep >> 8).astype(np.uint8)
        if dtype == np.float32:
            array = deep / np.float32(65535)
        array = array[..., 0] if bands is None else array
        result = doubling.upscale(array)
        assert result.dtype == dtype
        expected = array.repeat(2, axis=0).repeat(2, axis=1)
        assert result.shape == expected.shape
        slack = 1e-5 if dtype == np.float32 else 0
        assert np.abs(result.astype(np.float64) - expected).max() <= slack

    def test_equals_the_command(self, model, checkpoint, tmp_path):
        pixels = photo(33, 21, 4)
        source, target = write(pixels, tmp_path / "in.png"), tmp_path / "out.png"
        done = aethernet.upscale_file(source, target, model=model)
        assert done.size_after == (42, 66)
        assert np.array_equal(read_picture(target).pixels, model.upscale(pixels))

    def test_strided_and_read_only_arrays(self, doubling):
        array = photo(20, 30)[::2, ::-3]
        array.flags.writeable = False
        expected = array.repeat(2, axis=0).repeat(2, axis=1)
        assert np.array_equal(doubling.upscale(array), expected)

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (np.zeros((4, 4, 3), np.float64), "float64; uint8"),
            (np.zeros((4, 4, 3), bool), "bool; uint8"),
            (np.zeros((3, 40, 50), np.uint8), "channels come last"),
            (np.zeros((1, 4, 4, 3), np.uint8), "one by one"),
            (np.zeros((4, 4, 5), np.uint8), "1 to 4 channels"),
            (np.zeros(4, np.uint8), r"\(4,\)"),
            (np.zeros((0, 4, 3), np.uint8), "no pixel"),
            (np.full((4, 4, 3), 200, np.float32), "Divide by 255"),
            (np.full((4, 4, 3), -1, np.float32), "from -1 to -1"),
            (np.full((4, 4), np.nan, np.float32), "from nan to nan"),
            ("photo.jpg", "a str; a PIL image or a NumPy array"),
            ([[0.5]], "a list; a PIL image or a NumPy array"),
        ],
    )
    def test_wrong_ones_are_refused_by_what_they_are(self, doubling, array, words):
        with pytest.raises(ImageError, match=words):
            doubling.upscale(array)


class TestPilImages:
    @pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
    def test_the_same_mode_comes_back(self, doubling, mode):
        with Image.open(SAMPLE) as opened:
            image = opened.crop((0, 0, 13, 8)).convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        result = doubling.upscale(image)
        assert (result.mode, result.size) == (mode, (26, 16))
        enlarged = np.asarray(image).repeat(2, axis=0).repeat(2, axis=1)
        assert np.array_equal(np.asarray(result), enlarged)

    def test_palettes_and_bits_become_colours_and_gray(self, doubling):
        with Image.open(SAMPLE) as opened:
            image = opened.crop((0, 0, 13, 8))
        assert doubling.upscale(image.convert("P")).mode == "RGB"
        assert doubling.upscale(image.convert("1")).mode == "L"
        clear = image.convert("P")
        clear.info["transparency"] = 0
        assert doubling.upscale(clear).mode == "RGBA"

    def test_the_profile_is_kept(self, doubling):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        image = Image.new("RGB", (4, 3))
        image.info["icc_profile"] = profile
        assert doubling.upscale(image).info["icc_profile"] == profile

    @pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "F", "I"])
    def test_other_modes_are_named(self, doubling, mode):
        with pytest.raises(ImageError, match=f"mode {mode}, not one of L") as raised:
            doubling.upscale(Image.new(mode, (4, 3)))
        assert 'convert("RGB")' in raised.value.hint


class TestLoading:
    def test_by_name_by_path_and_by_default(self):
        how = {"runtime": PLAIN, "device": "cpu", "precision": "float32"}
        named = aethernet.load("2x-small", **how)
        assert (named.scale, named.channels) == (2, 3)
        assert repr(named).startswith(f"<2x model, {LIBRARY} float32 on cpu")
        image = photo(8, 9)
        by_default = aethernet.load(tile=0, **how)
        assert np.array_equal(named.upscale(image), by_default.upscale(image))

    def test_an_unknown_name_is_an_error(self):
        with pytest.raises(AetherError, match="no model of this name ships"):
            aethernet.load("7x-huge")

    def test_a_file_by_a_name(self, checkpoint, tmp_path):
        source = write(photo(8, 9), tmp_path / "a.png")
        done = aethernet.upscale_file(
            source, tmp_path / "b.png", model="2x-small", scale=3
        )
        assert done.size_after == (27, 24)

    @pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
    def test_a_scale_that_is_none(self, model, tmp_path, scale):
        source = write(photo(8, 9), tmp_path / "a.png")
        with pytest.raises(AetherError, match="a number above 0"):
            aethernet.upscale_file(source, tmp_path / "b.png", model=model, scale=scale)
        assert not (tmp_path / "b.png").exists()

    def test_a_network(self, checkpoint):
        torch = pytest.importorskip("torch", reason="needs PyTorch")
        network = aethernet.load_network(checkpoint)
        assert isinstance(network, aethernet.AetherNet)
        assert not network.training
        image = random_image(1, 3, 8, 9)
        with torch.inference_mode():
            expected = picture_network()(image)
            assert torch.allclose(network(image), expected, atol=1e-6)


class TestConversions:
    def test_fuse(self, checkpoint, tmp_path):
        target = aethernet.fuse(checkpoint, tmp_path / "f.safetensors")
        written = load_checkpoint(target)
        assert written.form == "fused"
        with pytest.raises(AetherError, match="no dtype 'int4', only float32"):
            aethernet.fuse(checkpoint, tmp_path / "g.pth", dtype="int4")

    def test_export(self, checkpoint, model, tmp_path):
        target = aethernet.export(checkpoint, tmp_path / "m.onnx", precision="float16")
        exported = aethernet.load(target, runtime="onnxruntime", device="cpu")
        image = photo(12, 15)
        difference = exported.upscale(image).astype(int) - model.upscale(image)
        assert np.abs(difference).max() <= 1

    def test_export_of_a_fixed_size(self, checkpoint, tmp_path):
        target = aethernet.export(checkpoint, tmp_path / "m.onnx", size=(40, 24))
        (given,) = onnx.load(target).graph.input
        sides = [side.dim_value for side in given.type.tensor_type.shape.dim]
        assert sides == [1, 3, 24, 40]

    @pytest.mark.parametrize("size", [5, (0, 3), (4, 5, 6)])
    def test_export_of_a_size_that_is_none(self, checkpoint, tmp_path, size):
        with pytest.raises(AetherError, match=r"The size has to be \(width, height\)"):
            aethernet.export(checkpoint, tmp_path / "n.onnx", size=size)

    def test_export_for_ncnn(self, checkpoint, tmp_path):
        target = aethernet.export(checkpoint, tmp_path / "m.param")
        assert target.with_suffix(".bin").stat().st_size > 1000
        with pytest.raises(AetherError, match="take any size"):
            aethernet.export(checkpoint, tmp_path / "n.param", size=(9, 9))

    def test_a_precision_that_does_not_exist(self, checkpoint, tmp_path):
        with pytest.raises(AetherError, match="no precision 'int4'"):
            aethernet.export(checkpoint, tmp_path / "m.onnx", precision="int4")


def test_the_page_that_documents_it_runs(tmp_path, monkeypatch):
    """Every block of Python in docs/python.md, one after the other."""
    pytest.importorskip("torch", reason="needs PyTorch, to read a .pth file")
    page = (ROOT / "docs/python.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    with Image.open(SAMPLE) as image:
        image.crop((0, 0, 24, 20)).save("photo.jpg")
    lively_file(tmp_path / "net_g.pth")
    for name in NAMES - {"Checkpoint", "Upscaler", "__version__"}:
        assert f"`{name}" in page or f"aethernet.{name}" in page, name
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), scope)
    assert {"photo_2x.png", "my_2x.safetensors", "my_2x.onnx"} <= {
        path.name for path in tmp_path.iterdir()
    }
