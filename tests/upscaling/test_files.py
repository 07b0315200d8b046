"""Upscaling picture files: formats, metadata, transparency, damaged files."""

import numpy as np
import pytest
from helpers import PLAIN, SHIPPED_MODEL, Repeat, photo, without_hidden
from PIL import Image, ImageCms

from aethernet.errors import AetherError
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.write import write_picture
from aethernet.runtimes.registry import open_model
from aethernet.upscaling.files import Options, upscale_file


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
                assert "dpi" not in result.info, suffix
        upscale_file(tmp_path / "dpi.png", tmp_path / "out.png", Repeat())
        with Image.open(tmp_path / "out.png") as result:
            assert result.info["dpi"] == pytest.approx((300, 300), abs=1)

    def test_xmp_is_kept_and_its_orientation_is_that_of_the_result(self, tmp_path):
        xmp = b"<x:xmpmeta tiff:Orientation='6' a='2'/>"
        exif = Image.Exif()
        exif[0x0112] = 6
        image = Image.fromarray(photo(10, 12))
        image.save(tmp_path / "in.webp", exif=exif, xmp=xmp)
        upscale_file(tmp_path / "in.webp", tmp_path / "out.webp", Repeat())
        with Image.open(tmp_path / "out.webp") as found:
            assert found.info["xmp"] == xmp.replace(b"'6'", b"'1'")

    @pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
    def test_extreme_shapes(self, tmp_path, size, model):
        write_picture(Picture(photo(*size)), tmp_path / "in.png")
        done = upscale_file(tmp_path / "in.png", tmp_path / "out.png", model)
        assert done.size_after == (2 * size[1], 2 * size[0])

    def test_the_picture_itself_is_never_overwritten(self, tmp_path):
        write_picture(Picture(photo()), tmp_path / "in.png")
        before = (tmp_path / "in.png").read_bytes()
        with pytest.raises(AetherError, match="Name another output"):
            upscale_file(tmp_path / "in.png", tmp_path / "in.png", Repeat())
        assert (tmp_path / "in.png").read_bytes() == before


class TestTransparency:
    def test_no_dark_fringe_around_what_is_seen(self, tmp_path, model):
        pixels = np.zeros((64, 64, 4), np.uint8)
        y, x = np.mgrid[:64, :64]
        disc = (y - 32) ** 2 + (x - 32) ** 2 < 20**2
        pixels[disc] = (180, 120, 60, 255)
        write_picture(Picture(pixels), tmp_path / "in.png")
        shipped = open_model(SHIPPED_MODEL, PLAIN, "cpu", "float32")
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


class TestBadPictures:
    def refused(self, source, target, reason):
        with pytest.raises(AetherError, match=reason) as error:
            upscale_file(source, target, Repeat())
        assert error.value.path in (source, target)
        assert "\n" not in str(error.value)
        assert not target.exists()

    def test_missing_empty_text_and_folder(self, tmp_path):
        target = tmp_path / "out.png"
        self.refused(tmp_path / "absent.png", target, "no such file")
        self.refused(tmp_path, target, "folder")
        for name, content in (("empty.png", b""), ("text.png", b"hello " * 99)):
            (tmp_path / name).write_bytes(content)
            self.refused(tmp_path / name, target, "no picture that can be read")

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
    def test_truncated(self, tmp_path, suffix):
        write_picture(Picture(photo(200, 200)), tmp_path / f"whole{suffix}")
        content = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(content[: len(content) * 2 // 3])
        self.refused(
            tmp_path / f"cut{suffix}", tmp_path / "out.png", "damaged|no picture"
        )

    def test_an_animation_where_only_still_pictures_are_written(self, tmp_path):
        frames = [Image.fromarray(photo(8, 8)), Image.new("RGB", (8, 8))]
        frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
        self.refused(tmp_path / "a.webp", tmp_path / "out.jpg", "animated")
        frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
        self.refused(tmp_path / "a.png", tmp_path / "out.tif", "animated")

    def test_other_formats_by_content(self, tmp_path):
        (tmp_path / "table.csv").write_text("1,2\n3,4\n")
        self.refused(tmp_path / "table.csv", tmp_path / "out.png", "no picture that")

    def test_targets_that_cannot_hold_the_picture(self, tmp_path):
        write_picture(Picture(photo(bands=4)), tmp_path / "alpha.png")
        self.refused(tmp_path / "alpha.png", tmp_path / "a.jpg", "no transparency")
        self.refused(tmp_path / "alpha.png", tmp_path / "a.gif", "Name it")
        write_picture(Picture(photo(1, 9000)), tmp_path / "wide.png")
        self.refused(tmp_path / "wide.png", tmp_path / "a.webp", "too large for WebP")
        assert without_hidden(tmp_path) == ["alpha.png", "wide.png"]

    def test_a_target_that_cannot_be_written_is_found_before_the_work(self, tmp_path):
        write_picture(Picture(photo()), tmp_path / "in.png")
        model = Repeat()
        with pytest.raises(AetherError, match="does not exist"):
            upscale_file(tmp_path / "in.png", tmp_path / "absent/out.png", model)
        assert model.seen == []
