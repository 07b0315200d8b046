"""Pictures in and out: formats, depths, alpha, metadata, in strips and whole."""

import gc
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import pyvips
from helpers import ROOT, SAMPLE, without_hidden
from PIL import Image

from aethernet.errors import AetherError, ImageError
from aethernet.pictures import write
from aethernet.pictures.files import (
    FORMATS,
    READABLE,
    SUFFIXES,
    Header,
    Picture,
    PictureEncoding,
    PictureReader,
    read_picture,
    stored_depth,
    with_colours_spread,
)
from aethernet.pictures.write import PictureWriter, write_picture

EXACT = (".png", ".tif", ".tiff", ".bmp")
DEEP = (".png", ".tif", ".avif")
WRITABLE = [s for s in SUFFIXES if s != ".jxl" or find_spec("pillow_jxl")]


def sample(bands=3, dtype=np.uint8, size=96):
    """A photograph `(size, size, bands)`, alpha a gradient; 16 bits use all of them."""
    pixels = read_picture(SAMPLE).pixels[100 : 100 + size, 100 : 100 + size, :3]
    if bands < 3:
        pixels = pixels[..., 1:2]
    if bands in (2, 4):
        ramp = np.linspace(0, 255, size * size).reshape(size, size, 1)
        pixels = np.concatenate((pixels, ramp.astype(np.uint8)), -1)
    if dtype == np.uint16:
        noise = np.random.default_rng(0).integers(0, 256, pixels.shape)
        pixels = pixels.astype(np.uint16) * 256 + noise.astype(np.uint16)
    return np.ascontiguousarray(pixels)


def psnr(one, other, peak):
    error = one.astype(float) - other.astype(float)
    return 10 * np.log10(peak**2 / max(np.square(error).mean(), 1e-12))


class TestFormats:
    @pytest.mark.parametrize("suffix", WRITABLE)
    @pytest.mark.parametrize("bands", [1, 2, 3, 4])
    def test_what_is_written_is_read_again(self, tmp_path, suffix, bands):
        pixels = sample(bands)
        path = tmp_path / f"a{suffix.upper()}"
        if bands in (2, 4) and not FORMATS[suffix].alpha:
            with pytest.raises(ImageError, match="no transparency"):
                write_picture(Picture(pixels), path)
            return
        write_picture(Picture(pixels), path)
        found = read_picture(path).pixels
        if suffix in EXACT:
            assert np.array_equal(found, pixels)
        else:
            if found.shape[2] == pixels.shape[2] + 2:  # WebP, AVIF: gray as RGB
                assert np.ptp(found[..., :3].astype(int), -1).max() <= 6
                found = found[..., 2:] if bands == 2 else found[..., 1:2]
            assert found.shape == pixels.shape
            # WebP halves the resolution of chroma; JPEG XL has values of its own.
            assert psnr(found, pixels, 255) > (
                34 if suffix in (".webp", ".jxl") else 38
            )
        assert without_hidden(tmp_path) == [path.name]

    @pytest.mark.parametrize("suffix", DEEP)
    @pytest.mark.parametrize("bands", [1, 3, 4])
    def test_16_bits_stay(self, tmp_path, suffix, bands):
        pixels = sample(bands, np.uint16)
        path = tmp_path / f"a{suffix}"
        write_picture(Picture(pixels), path)
        found = read_picture(path).pixels
        assert found.dtype == np.uint16
        if suffix == ".avif":  # 12 bits at most, and some loss
            assert len(np.unique(found[..., 0])) > 400
            found = found[..., :3] if bands == 3 else found[..., -1:]
            pixels = pixels[..., :3] if bands == 3 else pixels[..., -1:]
            assert psnr(found, pixels, 65535) > 38
        else:
            assert np.array_equal(found, pixels)

    @pytest.mark.parametrize("bits", [10, 12])
    def test_white_in_deep_avif_is_white(self, tmp_path, bits):
        white = pyvips.Image.new_from_array(np.full((32, 32, 4), 65535, np.uint16))
        white.copy(interpretation="rgb16").heifsave(
            str(tmp_path / "a.avif"), compression="av1", bitdepth=bits, lossless=True
        )
        found = read_picture(tmp_path / "a.avif").pixels
        assert set(found[..., 3].flat) == {65535}
        assert found.min() > 65535 - (65535 >> (bits - 3))

    @pytest.mark.parametrize("suffix", [".webp", ".avif"])
    def test_lossless_where_the_format_can(self, tmp_path, suffix):
        pixels = sample()
        path = tmp_path / f"a{suffix}"
        write_picture(Picture(pixels), path, PictureEncoding(lossless=True))
        found = read_picture(path).pixels.astype(int)
        # AVIF turns RGB into luma and chroma, and back, in integers.
        assert np.abs(found - pixels).max() <= (0 if suffix == ".webp" else 3)

    @pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
    def test_quality_is_obeyed(self, tmp_path, suffix):
        sizes = []
        for quality in (30, 70, 97):
            path = tmp_path / f"a{suffix}"
            write_picture(Picture(sample()), path, PictureEncoding(quality))
            sizes.append(path.stat().st_size)
        assert sizes[0] < sizes[1] < sizes[2]

    def test_a_gif_of_one_frame_is_read(self, tmp_path):
        colours = Image.fromarray(sample()).quantize(64)
        colours.save(tmp_path / "a.gif")
        assert ".gif" in READABLE
        found = read_picture(tmp_path / "a.gif").pixels[..., :3]
        assert np.array_equal(found, np.asarray(colours.convert("RGB")))

    def test_cmyk_of_8_and_16_bits_becomes_rgb(self, tmp_path):
        cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
        cmyk.save(tmp_path / "a.tif")
        cmyk.save(tmp_path / "a.jpg")
        pixels = np.zeros((16, 16, 4), np.uint16)
        pixels[..., 0] = 65535
        deep = pyvips.Image.new_from_array(pixels, interpretation="cmyk")
        deep.tiffsave(str(tmp_path / "b.tif"))
        for name in ("a.tif", "a.jpg", "b.tif"):
            pixels = read_picture(tmp_path / name).pixels
            assert pixels.shape == (16, 16, 3)
            peak = np.iinfo(pixels.dtype).max
            red, _, blue = (pixels[8, 8] / peak).tolist()
            assert red < 0.4 < blue, name

    def test_pictures_of_other_kinds_are_refused(self, tmp_path):
        image = pyvips.Image.new_from_array(np.zeros((8, 8, 3), np.float32))
        image.tiffsave(str(tmp_path / "float.tif"))
        with pytest.raises(ImageError, match="values of the type float"):
            read_picture(tmp_path / "float.tif")
        five = pyvips.Image.new_from_array(np.zeros((8, 8, 5), np.uint8))
        five.tiffsave(str(tmp_path / "five.tif"))
        with pytest.raises(ImageError, match="5 channels"):
            read_picture(tmp_path / "five.tif")
        page = Image.new("L", (8, 8))
        page.save(tmp_path / "pages.tif", save_all=True, append_images=[page, page])
        with pytest.raises(ImageError, match="3 pages"):
            read_picture(tmp_path / "pages.tif")
        page.save(
            tmp_path / "a.gif",
            save_all=True,
            append_images=[Image.new("L", (8, 8), 255)],
        )
        with pytest.raises(ImageError, match="animated"):
            read_picture(tmp_path / "a.gif")

    def test_lab_of_16_bits_becomes_rgb_and_of_8_bits_is_refused(self, tmp_path):
        image = pyvips.Image.new_from_array(sample(), interpretation="srgb")
        image.colourspace("labs").tiffsave(str(tmp_path / "deep.tif"))
        found = read_picture(tmp_path / "deep.tif").pixels
        assert found.dtype == np.uint16
        assert np.abs(found / 257 - sample()).max() < 0.5
        Image.new("LAB", (16, 16)).save(tmp_path / "a.tif")
        with pytest.raises(ImageError, match=r"in Lab with 8 bits .* save it as RGB"):
            read_picture(tmp_path / "a.tif")

    @pytest.mark.parametrize("size", [(160, 130), (161, 131), (64, 400)])
    def test_of_a_pyramid_the_first_page_is_the_picture(self, tmp_path, size):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        tiles = {"tile": True, "tile_width": 16, "tile_height": 16}
        for name, apart in (("a.tif", False), ("b.tif", True)):
            image = pyvips.Image.new_from_array(pixels, interpretation="srgb")
            image.tiffsave(str(tmp_path / name), pyramid=True, subifd=apart, **tiles)
            assert np.array_equal(read_picture(tmp_path / name).pixels, pixels)
        assert pyvips.Image.new_from_file(str(tmp_path / "a.tif")).get_n_pages() > 3

    def test_a_smaller_page_alone_makes_no_pyramid(self, tmp_path):
        pages = [Image.new("L", size) for size in ((40, 40), (20, 20), (20, 20))]
        pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
        with pytest.raises(ImageError, match="3 pages"):
            read_picture(tmp_path / "a.tif")

    @pytest.mark.parametrize(
        "suffix", [".png", ".webp", ".tif", ".gif", ".bmp", ".jpg"]
    )
    def test_the_content_tells_the_format_not_the_name(self, tmp_path, suffix):
        Image.fromarray(sample(1)[..., 0]).save(tmp_path / f"a{suffix}")
        (tmp_path / f"a{suffix}").rename(tmp_path / "named.xyz")
        assert read_picture(tmp_path / "named.xyz").pixels.shape[:2] == (96, 96)

    @pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
    def test_too_large_for_the_format_is_found_at_once(self, tmp_path, suffix):
        with pytest.raises(ImageError, match=r"70000x10 is too large .* \.png or"):
            PictureWriter(tmp_path / f"a{suffix}", Header(70000, 10, 3))
        assert os.listdir(tmp_path) == []


class TestStrips:
    @pytest.mark.parametrize("suffix", [*WRITABLE, ".gif"])
    def test_read_in_pieces_it_is_the_same_picture(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix}"
        if suffix == ".gif":
            Image.fromarray(sample()).quantize(32).save(path)
        else:
            write_picture(Picture(sample()), path)
        reader = PictureReader(path)
        pieces = [reader.rows(count) for count in (1, 40, 7, 100, 3)]
        assert [len(piece) for piece in pieces] == [1, 40, 7, 48, 0]
        assert np.array_equal(np.concatenate(pieces), read_picture(path).pixels)

    def test_what_lies_in_memory_stays_there_until_it_is_read(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
        write_picture(Picture(pixels), tmp_path / "a.bmp")
        reader = PictureReader(tmp_path / "a.bmp")
        gc.collect()
        taken = [np.ones((700, 700, 3), np.uint8) for _ in range(20)]
        assert np.array_equal(reader.rows(700), pixels)
        del taken

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation_is_applied_in_pieces_too(self, tmp_path, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = Image.fromarray(sample()[:50])
        turned.save(tmp_path / "a.png", exif=exif)
        with Image.open(tmp_path / "a.png") as image:
            from PIL import ImageOps

            wanted = np.asarray(ImageOps.exif_transpose(image))
        reader = PictureReader(tmp_path / "a.png")
        assert reader.header.size == (wanted.shape[1], wanted.shape[0])
        pieces = [reader.rows(30) for _ in range(4)]
        assert np.array_equal(np.concatenate(pieces), wanted)

    def test_written_in_pieces_beyond_memory_it_is_the_same(
        self, tmp_path, monkeypatch
    ):
        for dtype in (np.uint8, np.uint16):
            pixels = sample(4, dtype)
            write_picture(Picture(pixels), tmp_path / "whole.png")
            with monkeypatch.context() as patch:
                patch.setattr(write, "SPOOL_BYTES", 1000)
                writer = PictureWriter(tmp_path / "pieces.png", Picture(pixels).header)
                writer.write(pixels[:50])
                hidden = [n for n in os.listdir(tmp_path) if n.startswith(".")]
                assert len(hidden) == 1
                writer.write(pixels[50:])
                writer.finish()
            assert without_hidden(tmp_path) == ["pieces.png", "whole.png"]
            assert np.array_equal(read_picture(tmp_path / "pieces.png").pixels, pixels)

    def test_what_is_discarded_leaves_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(write, "SPOOL_BYTES", 1000)
        writer = PictureWriter(tmp_path / "a.png", Picture(sample()).header)
        writer.write(sample()[:50])
        assert len(os.listdir(tmp_path)) == 1
        writer.discard()
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("suffix", [".png", ".bmp"])
    def test_a_limit_is_checked_before_decoding(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix}"
        write_picture(Picture(sample()), path)
        PictureReader(path, limit_mp=0.01)
        path.write_bytes(path.read_bytes()[:100])  # enough to know its size
        with pytest.raises(ImageError, match=r"96x96 pixels.*--limit"):
            PictureReader(path, limit_mp=0.009)

    def test_a_full_disk_leaves_nothing_but_an_error(self, tmp_path):
        code = (
            "import resource, sys, numpy as np\n"
            "from aethernet.errors import AetherError\n"
            "from aethernet.pictures.files import Picture\n"
            "from aethernet.pictures.write import write_picture\n"
            "random = np.random.default_rng(0)\n"
            "pixels = random.integers(0, 256, (400, 400, 3), np.uint8)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "try:\n"
            "    write_picture(Picture(pixels), sys.argv[1])\n"
            "except AetherError as error:\n"
            "    print(error)\n"
        )
        pytest.importorskip("resource", reason="limits of a process, which POSIX has")
        target = tmp_path / "a.png"
        target.write_bytes(b"older")
        done = subprocess.run(
            [sys.executable, "-c", code, str(target)],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.stdout.startswith(f"{target}: Cannot be written: "), done.stderr
        assert target.read_bytes() == b"older"
        assert without_hidden(tmp_path) == ["a.png"]


class TestMetadata:
    def test_png_texts_and_iptc_are_carried(self, tmp_path):
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("parameters", "a portrait, steps: 20")
        Image.fromarray(sample()).save(tmp_path / "a.png", pnginfo=info)
        write_picture(read_picture(tmp_path / "a.png"), tmp_path / "b.png")
        with Image.open(tmp_path / "b.png") as image:
            assert image.info["parameters"] == "a portrait, steps: 20"

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
    def test_profile_and_camera_go_from_format_to_format(self, tmp_path, suffix):
        from PIL import ImageCms

        exif = Image.Exif()
        exif[0x010F] = "Camera maker"
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        Image.fromarray(sample()).save(
            tmp_path / "in.jpg", exif=exif, icc_profile=profile
        )
        write_picture(read_picture(tmp_path / "in.jpg"), tmp_path / f"out{suffix}")
        found = read_picture(tmp_path / f"out{suffix}").metadata
        assert found.profile == profile
        assert b"Camera maker" in found.exif

    def test_a_thumbnail_of_the_picture_as_it_lay_is_dropped(self, tmp_path):
        thumbnail = pyvips.Image.black(16, 12).jpegsave_buffer()
        image = pyvips.Image.new_from_array(sample())
        image.set_type(pyvips.GValue.blob_type, "jpeg-thumbnail-data", thumbnail)
        image.set_type(pyvips.GValue.gint_type, "orientation", 6)
        image.jpegsave(str(tmp_path / "a.jpg"))
        write_picture(read_picture(tmp_path / "a.jpg"), tmp_path / "b.jpg")
        assert thumbnail in (tmp_path / "a.jpg").read_bytes()
        assert thumbnail not in (tmp_path / "b.jpg").read_bytes()
        with Image.open(tmp_path / "b.jpg") as found:
            assert found.getexif()[0x0112] == 1
            assert not found.getexif().get_ifd(1)


class TestColoursUnderTransparency:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_visible_colours_spread_into_what_cannot_be_seen(self, dtype):
        peak = np.iinfo(dtype).max
        pixels = np.zeros((60, 60, 4), dtype)
        pixels[20:40, 20:40] = (peak, peak // 4, 0, peak)
        found = with_colours_spread(Picture(pixels)).pixels
        assert np.array_equal(found[..., 3], pixels[..., 3])
        assert np.array_equal(found[20:40, 20:40], pixels[20:40, 20:40])
        around = found[15:20, 25:35, :3] / peak
        assert np.abs(around - (1, 0.25, 0)).max() < 0.01
        assert found[0, 0].tolist() == [0, 0, 0, 0]  # far from anything seen

    def test_pixels_hardly_seen_keep_their_colours(self):
        pixels = sample(4)
        pixels[..., 3] = np.maximum(pixels[..., 3], 1)
        assert np.array_equal(with_colours_spread(Picture(pixels)).pixels, pixels)

    def test_the_reader_does_it_strip_by_strip(self, tmp_path):
        pixels = np.zeros((200, 50, 4), np.uint8)
        pixels[60:140, 10:40] = (200, 100, 50, 255)
        write_picture(Picture(pixels), tmp_path / "a.png")
        reader = PictureReader(tmp_path / "a.png", spread_colours=True)
        pieces = np.concatenate([reader.rows(33) for _ in range(7)])
        wanted = with_colours_spread(Picture(pixels)).pixels
        assert np.array_equal(pieces, wanted)


class TestResampling:
    @pytest.mark.parametrize("bands", [1, 2, 3, 4])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_final_size_is_exact_and_flat_stays_flat(self, tmp_path, bands, dtype):
        pixels = np.full((40, 60, bands), 100, dtype)
        header = Picture(pixels).header
        writer = PictureWriter(tmp_path / "a.png", header, final_size=(47, 31))
        writer.write(pixels)
        writer.finish()
        found = read_picture(tmp_path / "a.png").pixels
        assert found.shape == (31, 47, bands)
        assert found.dtype == dtype
        assert np.abs(found.astype(int) - 100).max() <= 1

    def test_depth_is_reduced_after_resampling(self, tmp_path):
        pixels = np.full((40, 60, 3), 257 * 100 + 120, np.uint16)
        header = Picture(pixels).header
        writer = PictureWriter(
            tmp_path / "a.png", header, final_size=(30, 20), final_depth=8
        )
        writer.write(pixels)
        writer.finish()
        assert set(read_picture(tmp_path / "a.png").pixels.flat) == {100}

    def test_invisible_colours_do_not_bleed(self, tmp_path):
        pixels = np.zeros((40, 40, 4), np.uint8)
        pixels[:, :20] = (250, 250, 250, 255)
        writer = PictureWriter(
            tmp_path / "a.png", Picture(pixels).header, final_size=(27, 27)
        )
        writer.write(pixels)
        writer.finish()
        found = read_picture(tmp_path / "a.png").pixels
        seen = found[found[..., 3] > 8]
        assert seen[:, :3].min() > 230


def test_depth_stored_is_what_format_and_picture_have(tmp_path):
    deep, shallow = Header(1, 1, 3, 16), Header(1, 1, 3, 8)
    for suffix, wanted in ((".png", 16), (".tif", 16), (".avif", 16), (".jpg", 8)):
        assert stored_depth(tmp_path / f"a{suffix}", deep) == wanted
        assert stored_depth(tmp_path / f"a{suffix}", shallow) == 8


def test_a_name_that_is_not_utf8_is_an_error(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (tmp_path / name).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes names of valid UTF-8 only")
    with pytest.raises(AetherError):
        read_picture(tmp_path / name)
