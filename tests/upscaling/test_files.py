"""Upscaling pictures: pixels, formats, runtimes, and the command."""

import threading

import numpy as np
import pytest
import pyvips
import torch
from helpers import SAMPLE, SHIPPED_MODEL, lively_network, run, without_hidden
from PIL import Image, ImageCms

from aethernet.checkpoints.checkpoint import save_checkpoint
from aethernet.checkpoints.onnx import export_onnx
from aethernet.checkpoints.verification import natural_image
from aethernet.commands.main import main
from aethernet.errors import AetherError
from aethernet.pictures import files as images
from aethernet.pictures.files import Picture, PictureReader, read_picture
from aethernet.pictures.write import PictureWriter, write_picture
from aethernet.runtimes.base import Limits
from aethernet.runtimes.pytorch import PyTorchRuntime
from aethernet.runtimes.registry import open_model
from aethernet.runtimes.tiling import Tiled
from aethernet.upscaling import files as upscale
from aethernet.upscaling.files import Options, Size, upscale_file, upscale_files
from aethernet.upscaling.folders import Job
from aethernet.upscaling.planes import upscale_picture


class Repeat:
    """Stands in for a model: each pixel becomes a square of scale x scale."""

    limits = Limits()

    def __init__(self, scale=2, channels=3, bad=None):
        self.scale, self.channels, self.bad = scale, channels, bad
        self.seen = []

    def run(self, image):
        assert image.dtype == np.float32
        assert image.shape[1] == self.channels
        self.seen.append(image)
        output = image.repeat(self.scale, 2).repeat(self.scale, 3)
        if self.bad is not None:
            output[0, 0, 0, 0] = self.bad
        return output

    def describe(self):
        return "a stand-in"


def photo(height=20, width=31, bands=3, dtype=np.uint8):
    """A natural picture `(height, width, bands)`, alpha a gradient."""
    peak = np.iinfo(dtype).max
    colours = natural_image(height, width, 1 if bands < 3 else 3)[0]
    planes = [*colours.numpy()]
    if bands in (2, 4):
        planes.append(np.linspace(0.01, 1, height * width).reshape(height, width))
    return np.rint(np.stack(planes, -1) * peak).astype(dtype)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_checkpoint(lively_network(), path)
    return open_model(path, "pytorch", "cpu")


class TestPixels:
    @pytest.mark.parametrize("bands", [1, 2, 3, 4])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_every_kind_of_picture_keeps_its_values(self, bands, dtype, channels):
        pixels = photo(bands=bands, dtype=dtype)
        depth = 8 * np.dtype(dtype).itemsize
        result = upscale_picture(Picture(pixels), Repeat(channels=channels), depth)
        assert result.pixels.dtype == dtype
        assert np.array_equal(result.pixels, pixels.repeat(2, 0).repeat(2, 1))

    def test_16_bit_ramp_keeps_every_step(self):
        # No 8-bit step on the way: all 65536 values come out as they went in.
        ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
        result = upscale_picture(Picture(ramp), Repeat(scale=1), 16)
        assert np.array_equal(result.pixels, ramp)

    def test_output_is_clamped_and_rounded(self):
        class Beyond(Repeat):
            def run(self, image):
                return np.stack([image[0] * 0 + v for v in (-0.3, 0.4999, 1.7)])[
                    None, :, 0
                ]

        result = upscale_picture(Picture(photo(1, 1)), Beyond(scale=1), 8)
        assert result.pixels.tolist() == [[[0, 127, 255]]]

    def test_gray_of_an_rgb_model_is_the_mean_of_its_channels(self):
        class Tinted(Repeat):
            def run(self, image):
                return image + np.float32([0, 0.1, 0.2])[None, :, None, None]

        gray = np.full((2, 2, 1), 51, np.uint8)  # 0.2
        result = upscale_picture(Picture(gray), Tinted(scale=1), 8)
        assert result.pixels.shape == (2, 2, 1)
        assert set(result.pixels.flatten().tolist()) == {round(0.3 * 255)}

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nan_and_infinity_are_errors_not_black_pictures(self, bad):
        with pytest.raises(AetherError, match="NaN or infinite"):
            upscale_picture(Picture(photo()), Repeat(bad=bad), 8)

    def test_a_model_of_other_channels_is_refused(self):
        with pytest.raises(AetherError, match="takes 4 channels"):
            upscale_picture(Picture(photo()), Repeat(channels=4), 8)


class TestRuntimes:
    def test_pytorch_runs_both_forms_as_the_network_does(self, tmp_path):
        network = lively_network(scale=3)
        save_checkpoint(network, tmp_path / "training.pth")
        save_checkpoint(lively_network(scale=3).fuse(), tmp_path / "fused.safetensors")
        image = natural_image(11, 13)
        with torch.inference_mode():
            expected = network(image).numpy()
        for name in ("training.pth", "fused.safetensors"):
            model = open_model(tmp_path / name, "pytorch", "cpu")
            assert (model.scale, model.channels) == (3, 3)
            output = model.run(image.numpy())
            np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("precision", ["float32", "float16"])
    def test_onnxruntime_agrees_and_knows_the_scale(self, tmp_path, precision):
        network = lively_network(depths=(1,), scale=4, in_chans=1)
        with torch.no_grad():  # into the range of pictures, where half precision lives
            network.conv_last.weight.mul_(0.1)
        save_checkpoint(network, tmp_path / "model.pth")
        files = tmp_path / "model.pth", tmp_path / "m.onnx"
        export_onnx(*files, dynamic=True, precision=precision)
        model = open_model(tmp_path / "m.onnx", "onnxruntime", "cpu")
        assert (model.scale, model.channels) == (4, 1)
        image = natural_image(9, 14, 1)
        with torch.inference_mode():
            expected = network(image).numpy()
        limit = {"float32": 1e-5, "float16": 1e-2}[precision]
        output = model.run(image.numpy())
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, expected, rtol=0, atol=limit)

    def test_onnx_of_a_fixed_size_says_so(self, tmp_path):
        from aethernet.checkpoints.onnx import ShapeRange

        save_checkpoint(lively_network(depths=(1,)), tmp_path / "model.pth")
        size = (1, 8, 9)
        export_onnx(
            tmp_path / "model.pth", tmp_path / "m.onnx", shapes=ShapeRange(*[size] * 3)
        )
        model = open_model(tmp_path / "m.onnx", "onnxruntime", "cpu")
        assert model.scale == 2
        with pytest.raises(AetherError, match="height of 8 only, not 7"):
            model.run(natural_image(7, 9).numpy())

    def test_runtime_and_file_must_fit(self, tmp_path):
        save_checkpoint(lively_network(), tmp_path / "model.pth")
        with pytest.raises(AetherError, match=r"tensorrt does not load \.pth"):
            open_model(tmp_path / "model.pth", "tensorrt")
        (tmp_path / "model.onnx").write_bytes(b"x")
        with pytest.raises(AetherError, match=r"pytorch does not load \.onnx"):
            open_model(tmp_path / "model.onnx", "pytorch")
        with pytest.raises(AetherError, match="no ONNX model"):
            open_model(tmp_path / "model.onnx")
        with pytest.raises(AetherError, match="no model by its name"):
            open_model(SAMPLE)

    def test_a_device_that_is_not_there_is_said(self, tmp_path):
        for device in ("cuda:77", "toaster", "meta", "hpu"):
            with pytest.raises(AetherError, match=device):
                open_model(SHIPPED_MODEL, "pytorch", device)

    def test_out_of_memory_is_a_sentence(self):
        def fail(*_):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        runtime = PyTorchRuntime(lively_network(), torch.device("cpu"))
        runtime.module = fail
        with pytest.raises(AetherError, match=r"Out of memory on cpu .* 7x5"):
            runtime.run(np.zeros((1, 3, 5, 7), np.float32))


class TestFiles:
    @pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".jpeg", ".PNG"])
    @pytest.mark.parametrize("bands", [1, 3])
    def test_formats(self, tmp_path, suffix, bands, model):
        source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
        write_picture(Picture(photo(bands=bands)), source)
        done = upscale_file(source, target, model)
        assert (done.size_before, done.size_after) == ((31, 20), (62, 40))
        with Image.open(target) as image:
            assert image.size == (62, 40)
            gray = bands == 1 and suffix != ".webp"  # which has no gray
            assert image.mode == ("L" if gray else "RGB")
        assert without_hidden(tmp_path) == sorted([source.name, target.name])

    @pytest.mark.parametrize("bands", [2, 4])
    @pytest.mark.parametrize("suffix", [".png", ".webp"])
    def test_alpha_is_kept(self, tmp_path, bands, suffix):
        pixels = photo(bands=bands)
        write_picture(Picture(pixels), tmp_path / "in.png")
        upscale_file(tmp_path / "in.png", tmp_path / f"out{suffix}", Repeat())
        result = read_picture(tmp_path / f"out{suffix}")
        assert result.has_alpha
        wanted = pixels.repeat(2, 0).repeat(2, 1)[..., -1]
        assert np.array_equal(result.pixels[..., -1], wanted)

    def test_16_bit_png_stays_16_bit_and_becomes_8_elsewhere(self, tmp_path):
        pixels = photo(dtype=np.uint16)
        write_picture(Picture(pixels), tmp_path / "in.png")
        upscale_file(tmp_path / "in.png", tmp_path / "out.png", Repeat(scale=1))
        assert np.array_equal(read_picture(tmp_path / "out.png").pixels, pixels)
        upscale_file(tmp_path / "in.png", tmp_path / "out.webp", Repeat(scale=1))
        result = read_picture(tmp_path / "out.webp").pixels
        assert result.dtype == np.uint8
        error = result.astype(float) - pixels / 257
        assert np.sqrt(np.square(error).mean()) < 5  # WebP's loss, not a wrong depth

    def test_a_picture_written_again_is_read_again(self, tmp_path):
        for value in (10, 200):
            flat = np.full((4, 4, 3), value, np.uint8)
            write_picture(Picture(flat), tmp_path / "same.png")
            assert np.array_equal(read_picture(tmp_path / "same.png").pixels, flat)

    def test_palette_and_one_bit_pictures_become_colours(self, tmp_path):
        colours = Image.fromarray(photo(12, 12)).quantize(8)
        colours.save(tmp_path / "palette.png")
        upscale_file(tmp_path / "palette.png", tmp_path / "out.png", Repeat(scale=1))
        wanted = np.asarray(colours.convert("RGB"))
        assert np.array_equal(read_picture(tmp_path / "out.png").pixels, wanted)
        bits = Image.fromarray(photo(12, 12, 1)[..., 0]).convert("1")
        bits.save(tmp_path / "bits.png")
        upscale_file(tmp_path / "bits.png", tmp_path / "out.png", Repeat(scale=1))
        wanted = np.asarray(bits.convert("L"))[..., None]
        assert np.array_equal(read_picture(tmp_path / "out.png").pixels, wanted)

    def test_cmyk_becomes_rgb(self, tmp_path):
        Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "cyan.jpg")
        upscale_file(tmp_path / "cyan.jpg", tmp_path / "out.png", Repeat())
        red, _, blue = read_picture(tmp_path / "out.png").pixels[4, 4].tolist()
        assert red < 100 < blue

    def test_orientation_is_applied_once_and_the_profile_kept(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # rotate by 90 degrees to the right to look at it
        exif[0x010F] = "Camera maker"
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        image = Image.fromarray(photo(10, 30))
        image.save(tmp_path / "in.webp", exif=exif, lossless=True)
        done = upscale_file(tmp_path / "in.webp", tmp_path / "out.png", Repeat())
        assert done.size_after == (20, 60)
        with Image.open(tmp_path / "out.png") as result:
            assert result.size == (20, 60)
            assert result.getexif().get(0x0112, 1) == 1
            assert result.getexif()[0x010F] == "Camera maker"
            turned = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
            wanted = turned.repeat(2, 0).repeat(2, 1)
            assert np.array_equal(np.asarray(result), wanted)
        image.save(tmp_path / "profile.png", icc_profile=profile)
        upscale_file(tmp_path / "profile.png", tmp_path / "out.png", Repeat())
        with Image.open(tmp_path / "out.png") as result:
            assert result.info["icc_profile"] == profile

    def test_no_metadata_is_invented_and_the_resolution_kept(self, tmp_path):
        image = Image.fromarray(photo(10, 12))
        image.save(tmp_path / "plain.png")
        image.save(tmp_path / "dpi.png", dpi=(300, 300))
        for suffix in (".png", ".jpg", ".webp"):
            upscale_file(tmp_path / "plain.png", tmp_path / f"o{suffix}", Repeat())
            with Image.open(tmp_path / f"o{suffix}") as result:
                assert not result.getexif(), suffix
                assert result.info.get("dpi", 72) in (72, pytest.approx((72, 72), 0.01))
        upscale_file(tmp_path / "dpi.png", tmp_path / "out.png", Repeat())
        with Image.open(tmp_path / "out.png") as result:
            assert result.info["dpi"] == pytest.approx((300, 300), abs=1)

    def test_xmp_is_kept_unless_it_repeats_the_orientation(self, tmp_path):
        xmp = b"<x:xmpmeta tiff:Orientation='6'/>"
        exif = Image.Exif()
        image = Image.fromarray(photo(10, 12))
        for orientation, kept in ((1, True), (6, False)):
            exif[0x0112] = orientation
            image.save(tmp_path / "in.webp", exif=exif, xmp=xmp)
            upscale_file(tmp_path / "in.webp", tmp_path / "out.webp", Repeat())
            content = (tmp_path / "out.webp").read_bytes()
            assert (b"xmpmeta" in content) is kept

    @pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
    def test_extreme_shapes(self, tmp_path, size, model):
        write_picture(Picture(photo(*size)), tmp_path / "in.png")
        done = upscale_file(tmp_path / "in.png", tmp_path / "out.png", model)
        assert done.size_after == (2 * size[1], 2 * size[0])

    def test_the_picture_itself_is_never_overwritten(self, tmp_path):
        write_picture(Picture(photo()), tmp_path / "in.png")
        before = (tmp_path / "in.png").read_bytes()
        with pytest.raises(AetherError, match="name another output"):
            upscale_file(tmp_path / "in.png", tmp_path / "in.png", Repeat())
        assert (tmp_path / "in.png").read_bytes() == before


class TestBadPictures:
    def refused(self, source, target, said, model=None):
        with pytest.raises(AetherError, match=said) as error:
            upscale_file(source, target, model or Repeat())
        assert "\n" not in str(error.value)
        assert not target.exists()

    def test_missing_empty_text_and_folder(self, tmp_path):
        target = tmp_path / "out.png"
        self.refused(tmp_path / "absent.png", target, "no file")
        self.refused(tmp_path, target, "folder")
        for name, content in (("empty.png", b""), ("text.png", b"hello " * 99)):
            (tmp_path / name).write_bytes(content)
            self.refused(tmp_path / name, target, "is no picture that can be read")

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
    def test_truncated(self, tmp_path, suffix):
        write_picture(Picture(photo(200, 200)), tmp_path / f"whole{suffix}")
        content = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) * 2 // 3])
        self.refused(
            tmp_path / f"cut{suffix}", tmp_path / "out.png", "damaged|no picture"
        )

    def test_animation(self, tmp_path):
        frames = [Image.fromarray(photo(8, 8)), Image.new("RGB", (8, 8))]
        frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
        self.refused(tmp_path / "a.webp", tmp_path / "out.png", "animated")
        frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
        self.refused(tmp_path / "a.png", tmp_path / "out.png", "animated")

    def test_other_formats_by_content(self, tmp_path):
        (tmp_path / "table.csv").write_text("1,2\n3,4\n")
        self.refused(tmp_path / "table.csv", tmp_path / "out.png", "no picture that")

    def test_targets_that_cannot_hold_the_picture(self, tmp_path):
        write_picture(Picture(photo(bands=4)), tmp_path / "alpha.png")
        self.refused(tmp_path / "alpha.png", tmp_path / "a.jpg", "no transparency")
        self.refused(tmp_path / "alpha.png", tmp_path / "a.gif", "name it")
        write_picture(Picture(photo(1, 9000)), tmp_path / "wide.png")
        self.refused(tmp_path / "wide.png", tmp_path / "a.webp", "Cannot write")
        assert without_hidden(tmp_path) == ["alpha.png", "wide.png"]


class TestSize:
    @pytest.mark.parametrize(
        ("size", "wanted"),
        [
            (Size(), (200, 100)),
            (Size(scale=3), (300, 150)),
            (Size(scale=0.5), (50, 25)),
            (Size(width=150), (150, 75)),
            (Size(height=75), (150, 75)),
            (Size(width=150, height=60), (120, 60)),
            (Size(max_mp=0.005), (100, 50)),
            (Size(scale=4, max_mp=1), (400, 200)),
        ],
    )
    def test_what_was_asked_for(self, tmp_path, size, wanted):
        assert size.of(100, 50, 2) == wanted
        pixels = photo(50, 100)
        write_picture(Picture(pixels), tmp_path / "in.png")
        model = Repeat()
        done = upscale_file(
            tmp_path / "in.png", tmp_path / "out.png", model, Options(size)
        )
        assert done.size_after == wanted
        result = read_picture(tmp_path / "out.png").pixels
        assert result.shape == (wanted[1], wanted[0], 3)
        assert result.dtype == np.uint8
        assert len(model.seen) == (2 if max(wanted) > 200 else 1)

    def test_at_most_means_at_most(self):
        random = np.random.default_rng(0)
        for _ in range(2000):
            width, height = random.integers(1, 5000, 2).tolist()
            limit = float(random.uniform(1e-6, 20))
            across, down = Size(max_mp=limit).of(width, height, 2)
            assert across >= 1 <= down
            assert across * down <= max(limit * 1e6, 1)

    def test_a_ramp_keeps_its_place_and_values(self, tmp_path):
        # Once by the model, the rest by resampling: no shift, no change of brightness.
        ramp = np.linspace(5000, 60000, 64).astype(np.uint16)
        pixels = np.broadcast_to(ramp[None, :, None], (32, 64, 1))
        write_picture(Picture(np.ascontiguousarray(pixels)), tmp_path / "in.png")
        upscale_file(
            *(tmp_path / "in.png", tmp_path / "out.png", Repeat()),
            Options(Size(scale=1.5)),
        )
        found = read_picture(tmp_path / "out.png").pixels[24, :, 0]
        positions = (np.arange(96) + 0.5) / 1.5 - 0.5
        wanted = np.interp(positions, np.arange(64), ramp)
        assert np.abs(found - wanted)[6:-6].max() < 300  # of steps of 870

    def test_more_than_two_passes_give_is_resampled_and_said(self, tmp_path, caplog):
        write_picture(Picture(photo(10, 12)), tmp_path / "in.png")
        done = upscale_file(
            *(tmp_path / "in.png", tmp_path / "out.png", Repeat()),
            Options(Size(scale=6)),
        )
        assert done.size_after == (72, 60)
        assert "48x40 after two passes" in caplog.text


class TestTransparency:
    def test_no_dark_fringe_around_what_is_seen(self, tmp_path, model):
        pixels = np.zeros((64, 64, 4), np.uint8)
        y, x = np.mgrid[:64, :64]
        disc = (y - 32) ** 2 + (x - 32) ** 2 < 20**2
        pixels[disc] = (180, 120, 60, 255)
        write_picture(Picture(pixels), tmp_path / "in.png")
        shipped = open_model(SHIPPED_MODEL, "pytorch", "cpu", "float32")
        for alpha in ("network", "bicubic"):
            upscale_file(
                *(tmp_path / "in.png", tmp_path / "out.png", shipped),
                Options(alpha=alpha),
            )
            found = read_picture(tmp_path / "out.png").pixels.astype(int)
            seen = found[found[..., 3] > 10][:, :3]
            assert np.abs(seen - (180, 120, 60)).max() <= 12
            assert found[64, 64, 3] > 250
            assert found[4, 4, 3] < 5

    def test_bicubic_leaves_alpha_to_no_network(self, tmp_path):
        write_picture(Picture(photo(bands=4)), tmp_path / "in.png")
        model = Repeat()
        upscale_file(
            *(tmp_path / "in.png", tmp_path / "out.png", model),
            Options(alpha="bicubic"),
        )
        assert len(model.seen) == 1

    def test_opaque_pictures_cost_no_second_pass(self, tmp_path):
        pixels = photo(bands=4)
        pixels[..., 3] = 255
        write_picture(Picture(pixels), tmp_path / "in.png")
        model = Repeat()
        upscale_file(tmp_path / "in.png", tmp_path / "out.png", model)
        assert len(model.seen) == 1
        assert set(read_picture(tmp_path / "out.png").pixels[..., 3].flat) == {255}


class TestInStrips:
    @pytest.mark.parametrize("bands", [1, 3, 4])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_strips_tiles_and_pieces_are_not_seen(
        self, tmp_path, monkeypatch, bands, dtype
    ):
        monkeypatch.setattr(upscale, "_STRIP_BYTES", 100_000)
        monkeypatch.setattr(upscale, "_PIECE_BYTES", 3000)
        monkeypatch.setattr(images, "SPOOL_BYTES", 1000)
        pixels = photo(211, 150, bands, dtype)
        write_picture(Picture(pixels), tmp_path / "in.png")
        model = Repeat()
        upscale_file(tmp_path / "in.png", tmp_path / "out.png", Tiled(model, 40, 5))
        assert max(max(seen.shape[2:]) for seen in model.seen) <= 50
        found = read_picture(tmp_path / "out.png").pixels
        assert np.array_equal(found, pixels.repeat(2, 0).repeat(2, 1))
        assert without_hidden(tmp_path) == ["in.png", "out.png"]

    def test_two_passes_in_strips(self, tmp_path, monkeypatch):
        monkeypatch.setattr(upscale, "_STRIP_BYTES", 100_000)
        pixels = photo(101, 80)
        write_picture(Picture(pixels), tmp_path / "in.png")
        upscale_file(
            *(tmp_path / "in.png", tmp_path / "out.png", Tiled(Repeat(), 40, 5)),
            Options(Size(scale=4)),
        )
        found = read_picture(tmp_path / "out.png").pixels
        assert np.array_equal(found, pixels.repeat(4, 0).repeat(4, 1))

    def test_tiles_of_the_network_itself(self, tmp_path, model):
        write_picture(Picture(photo(120, 90)), tmp_path / "in.png")
        for name, one in (("whole", model), ("tiled", Tiled(model, 32, 16))):
            upscale_file(tmp_path / "in.png", tmp_path / f"{name}.png", one)
        whole, tiled = (
            read_picture(tmp_path / f"{name}.png").pixels.astype(int)
            for name in ("whole", "tiled")
        )
        off = np.abs(whole - tiled)
        assert off.max() <= 1
        assert np.count_nonzero(off) <= off.size // 10_000


class TestSeveral:
    def test_one_that_fails_does_not_stop_the_rest(self, tmp_path):
        jobs = []
        for index in range(6):
            source = tmp_path / f"{index}.png"
            write_picture(Picture(photo(20 + index)), source)
            jobs.append(Job(source, tmp_path / f"{index}_out.png"))
        content = jobs[2].source.read_bytes()
        jobs[2].source.write_bytes(content[: len(content) // 2])
        jobs[4].source.write_text("no picture")
        jobs.append(Job(tmp_path / "absent.png", tmp_path / "x.png"))
        outcomes = [*upscale_files(jobs, Repeat())]
        assert [outcome.job for outcome in outcomes] == jobs
        status = [outcome.status for outcome in outcomes]
        assert status == ["done", "done", "failed", "done", "failed", "done", "failed"]
        assert "ends early" in outcomes[2].reason
        assert "no picture" in outcomes[4].reason
        for outcome in outcomes:
            assert outcome.job.target.exists() is (outcome.status == "done")
        without_hidden(tmp_path)

    @pytest.mark.parametrize("why", ["its target", "the model"])
    def test_a_picture_that_is_refused_is_read_no_further(
        self, tmp_path, monkeypatch, why
    ):
        monkeypatch.setattr(upscale, "_PIECE_BYTES", 1)  # a row at a time
        write_picture(Picture(photo(300, 8, 4)), tmp_path / "long.png")
        write_picture(Picture(photo()), tmp_path / "next.png")
        read = []

        class Reader(PictureReader):
            def rows(self, count):
                read.append(self.path.name)
                return super().rows(count)

        monkeypatch.setattr(upscale, "PictureReader", Reader)
        targets = ["long.jpg" if why == "its target" else "long_.png", "next_.png"]
        sources = ["long.png", "next.png"]
        jobs = [
            Job(tmp_path / source, tmp_path / target)
            for source, target in zip(sources, targets, strict=True)
        ]

        class OnlySmall(Repeat):
            def run(self, image):
                if image.shape[3] < 20:
                    raise AetherError("Too narrow.")
                return super().run(image)

        outcomes = [*upscale_files(jobs, Tiled(OnlySmall(), 16, 4))]
        assert [outcome.status for outcome in outcomes] == ["failed", "done"]
        # What a strip and the queue hold, of 300.
        assert read.count("long.png") < 50
        assert read.count("next.png") == 20

    def test_progress_is_told_in_pixels_of_the_source(self, tmp_path):
        write_picture(Picture(photo(100, 30)), tmp_path / "in.png")
        told = []
        job = Job(tmp_path / "in.png", tmp_path / "out.png")
        list(
            upscale_files(
                [job], Tiled(Repeat(), 20, 4), advanced=lambda _, *n: told.append(n)
            )
        )
        assert told[0] == (0, 3000)
        assert told[-1] == (3000, 3000)
        assert told == sorted(told)
        assert len(told) > 4

    def test_reading_running_and_writing_overlap(self, tmp_path, monkeypatch):
        # A picture is read before the network is done with the last, which in turn is
        # written while the network works: seen by what waits for what.
        jobs = []
        for index in range(3):
            write_picture(Picture(photo()), tmp_path / f"{index}.png")
            jobs.append(Job(tmp_path / f"{index}.png", tmp_path / f"{index}_.png"))
        read, second, written = (threading.Event() for _ in range(3))

        class Waiting(Repeat):
            def run(self, image):
                if not self.seen:
                    assert read.wait(10), "the second is not read meanwhile"
                elif len(self.seen) == 1:
                    second.set()
                    assert written.wait(10), "the first is not written meanwhile"
                return super().run(image)

        class Reader(PictureReader):
            def __init__(self, path, *rest, **options):
                super().__init__(path, *rest, **options)
                if path.name == "1.png":
                    read.set()

        class Writer(PictureWriter):
            def finish(self):
                if self.path.name == "0_.png":
                    assert second.wait(10), "the network waits for the writer"
                super().finish()
                written.set()

        monkeypatch.setattr(upscale, "PictureReader", Reader)
        monkeypatch.setattr(upscale, "PictureWriter", Writer)
        outcomes = [*upscale_files(jobs, Waiting())]
        assert [outcome.status for outcome in outcomes] == ["done"] * 3


class TestCommand:
    def test_upscales_the_sample_with_the_shipped_model(self, tmp_path, capsys):
        target = tmp_path / "sample_2x.png"
        # A quarter of it, for time's sake.
        pixels = read_picture(SAMPLE).pixels[:128, :128]
        write_picture(Picture(pixels), tmp_path / "in.png")
        words = ["upscale", str(tmp_path / "in.png"), "-o", str(target)]
        assert main([*words, "--device", "cpu", "--runtime", "pytorch"]) == 0
        printed = capsys.readouterr().out
        assert "128x128" in printed
        assert "256x256" in printed
        assert "2x_aether_small" in printed
        result = read_picture(target).pixels.astype(float)
        # Reduced again it is the sample: bicubic inverts any sensible upscaling.
        small = Image.fromarray(result.astype(np.uint8)).resize(
            (128, 128), Image.Resampling.BICUBIC
        )
        error = np.asarray(small, float) - pixels
        assert np.sqrt(np.square(error).mean()) < 1

    def test_names_the_output_itself_and_makes_it_once(self, tmp_path, capsys):
        save_checkpoint(lively_network(scale=3), tmp_path / "m.pth")
        write_picture(Picture(photo()), tmp_path / "my photo.jpg")
        words = ["upscale", str(tmp_path / "my photo.jpg"), "--runtime", "pytorch"]
        words += ["--model", str(tmp_path / "m.pth")]
        assert main(words) == 0
        done = tmp_path / "my photo_3x.jpg"
        done.write_bytes(b"finished, and then somebody changed it")
        assert main(words) == 0
        assert "my photo_3x.jpg" in capsys.readouterr().out
        assert done.read_bytes().startswith(b"finished")
        assert main([*words, "--overwrite"]) == 0
        assert read_picture(done).pixels.shape == (60, 93, 3)

    def test_a_target_that_cannot_be_written_is_said_before_the_work(self, tmp_path):
        write_picture(Picture(photo()), tmp_path / "in.png")
        model = Repeat()
        with pytest.raises(AetherError, match="does not exist"):
            upscale_file(tmp_path / "in.png", tmp_path / "absent/out.png", model)
        assert model.seen == []

    def test_a_failed_write_leaves_the_old_picture(self, tmp_path, capsys, monkeypatch):
        write_picture(Picture(photo()), tmp_path / "in.png")
        save_checkpoint(lively_network(), tmp_path / "m.pth")
        target = tmp_path / "out.png"
        target.write_bytes(b"an older picture")

        def fail(*args, **options):
            raise pyvips.Error("unable to write", "no space left on device")

        monkeypatch.setattr(pyvips.Image, "write_to_file", fail)
        words = ["upscale", str(tmp_path / "in.png"), "-o", str(target)]
        words += ["--runtime", "pytorch"]
        assert main([*words, "--model", str(tmp_path / "m.pth")]) == 1
        assert target.read_bytes() == b"an older picture"
        assert without_hidden(tmp_path) == ["in.png", "m.pth", "out.png"]

    @pytest.mark.parametrize("words", [[], ["upscale"], ["info"], ["fuse"], ["export"]])
    def test_help_is_worth_reading(self, capsys, words):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--help"])
        assert stop.value.code == 0
        assert len(capsys.readouterr().out.splitlines()) > 8

    def test_version_and_module_entry(self):
        done = run("-m", "aethernet", "--version")
        assert done.stdout.strip() == "0.1.0"
