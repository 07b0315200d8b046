"""Names, links and permissions of pictures, and notes about what is asked for."""

import logging
import os
import stat
import sys

import numpy as np
import pytest
import pyvips
from helpers import photo, repeating_onnx, without_hidden, write
from picture_files import patches, png, upscaled
from PIL import Image

from aethernet.commands.main import main
from aethernet.pictures.files import read_picture


def upscale_folder(folder, out, *flags, model=None):
    model = repeating_onnx((model or folder.parent) / "double.onnx", 2)
    words = ["upscale", folder, "-o", out, "--model", model, *flags]
    return main([*map(str, words), "--runtime", "onnxruntime", "--device", "cpu"])


class TestNames:
    @pytest.mark.parametrize(
        "name", ["photo.png[page=0]", "a[1].png", "b[Q=5].jpg", "c.png[", "d].webp"]
    )
    def test_brackets_are_part_of_a_name(self, tmp_path, name):
        write(patches(), tmp_path / "in.png")
        os.rename(tmp_path / "in.png", tmp_path / name)
        assert upscaled(tmp_path / name, tmp_path / "out.png") == 0
        assert read_picture(tmp_path / "out.png").pixels.shape == (32, 160, 3)

    @pytest.mark.parametrize(
        "suffix", [".png", ".jpg", ".webp", ".tif", ".avif", ".bmp"]
    )
    def test_brackets_in_the_name_of_an_output(self, tmp_path, suffix):
        write(patches(), tmp_path / "in.png")
        folder = tmp_path / "folder[page=1]"
        folder.mkdir()
        target = folder / f"out[Q=5]{suffix}"
        assert upscaled(tmp_path / "in.png", target) == 0
        assert target.name in os.listdir(folder)
        assert (
            np.abs(read_picture(target).pixels[8, 8].astype(int) - (230, 40, 30)).max()
            < 8
        )

    def test_an_output_whose_suffix_has_brackets_is_refused(self, tmp_path, capsys):
        write(patches(), tmp_path / "in.png")
        assert upscaled(tmp_path / "in.png", tmp_path / "out.png[compression=0]") == 1
        assert "the suffix is not that of a format" in capsys.readouterr().err
        assert without_hidden(tmp_path) == [".double.onnx", "in.png"]

    def test_a_pattern_in_a_folder_with_brackets(self, tmp_path):
        write(patches(), tmp_path / "in[1]/a.png")
        write(patches(), tmp_path / "in[1]/b.png")
        pattern = tmp_path / "in[1]" / "*.png"
        assert upscale_folder(pattern, tmp_path / "out", model=tmp_path) == 0
        assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.png"]

    @pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JFIF"])
    def test_other_suffixes_of_jpeg(self, tmp_path, suffix):
        folder = tmp_path / "in"
        write(patches(), folder / "a.jpg")
        os.rename(folder / "a.jpg", folder / f"a{suffix}")
        assert upscale_folder(folder, tmp_path / "out") == 0
        target = tmp_path / "out" / f"a{suffix}"
        assert target.read_bytes()[:3] == b"\xff\xd8\xff"
        assert upscaled(folder / f"a{suffix}", tmp_path / f"b{suffix}") == 0
        assert (tmp_path / f"b{suffix}").read_bytes()[:3] == b"\xff\xd8\xff"


@pytest.mark.skipif(os.name == "nt", reason="Windows has other links and permissions")
class TestPlaces:
    def test_a_link_stays_and_its_file_is_replaced(self, tmp_path):
        write(patches(), tmp_path / "in.png")
        (tmp_path / "else").mkdir()
        real = tmp_path / "else/real.png"
        real.write_bytes(b"an older picture")
        (tmp_path / "link.png").symlink_to(real)
        (tmp_path / "chain.png").symlink_to("link.png")
        for name in ("link.png", "chain.png"):
            assert upscaled(tmp_path / "in.png", tmp_path / name) == 0
            assert (tmp_path / name).is_symlink()
            assert read_picture(real).pixels.shape == (32, 160, 3)
        assert without_hidden(tmp_path / "else") == ["real.png"]

    def test_a_link_to_nothing_gets_its_file(self, tmp_path):
        write(patches(), tmp_path / "in.png")
        (tmp_path / "link.png").symlink_to("made.png")
        assert upscaled(tmp_path / "in.png", tmp_path / "link.png") == 0
        assert (tmp_path / "link.png").is_symlink()
        assert read_picture(tmp_path / "made.png").pixels.shape == (32, 160, 3)

    def test_a_link_into_a_missing_folder_is_an_error(self, tmp_path, capsys):
        write(patches(), tmp_path / "in.png")
        (tmp_path / "link.png").symlink_to("absent/made.png")
        assert upscaled(tmp_path / "in.png", tmp_path / "link.png") == 1
        assert "absent does not exist" in capsys.readouterr().err
        assert (tmp_path / "link.png").is_symlink()

    def test_a_link_to_the_source_does_not_replace_it(self, tmp_path, capsys):
        write(patches(), tmp_path / "in.png")
        before = (tmp_path / "in.png").read_bytes()
        (tmp_path / "link.png").symlink_to("in.png")
        assert upscaled(tmp_path / "in.png", tmp_path / "link.png") == 1
        assert "replace its own input" in capsys.readouterr().err
        assert (tmp_path / "in.png").read_bytes() == before

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
    def test_a_replaced_file_keeps_its_permissions(self, tmp_path, mode, suffix):
        write(patches(), tmp_path / "in.png")
        target = tmp_path / f"out{suffix}"
        target.write_bytes(b"older")
        target.chmod(mode)
        assert upscaled(tmp_path / "in.png", target) == 0
        assert stat.S_IMODE(target.stat().st_mode) == mode
        assert read_picture(target).pixels.shape == (32, 160, 3)

    def test_a_new_file_has_the_usual_permissions(self, tmp_path):
        write(patches(), tmp_path / "in.png")
        old = os.umask(0o027)
        try:
            assert upscaled(tmp_path / "in.png", tmp_path / "out.png") == 0
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "out.png").stat().st_mode) == 0o640


class TestNotes:
    def test_a_folder_says_what_it_did_not_look_at(self, tmp_path, caplog):
        folder = tmp_path / "in"
        for name in ("a.png", "deep/b.png"):
            write(patches(), folder / name)
        for name in ("a.psd", "b.PSD", "notes.txt", "deep/c.xcf", "README", ".hidden"):
            (folder / name).write_bytes(b"x")
        assert upscale_folder(folder, tmp_path / "out") == 0
        (line,) = [r.getMessage() for r in caplog.records if "not looked" in r.message]
        assert line.startswith(
            f"{folder}: 5 files not looked at, by the suffix: 2 .psd"
        )
        for part in ("1 .txt", "1 .xcf", "1 without a suffix"):
            assert part in line

    def test_a_pattern_says_so_too(self, tmp_path, caplog):
        write(patches(), tmp_path / "in/a.png")
        (tmp_path / "in/a.psd").write_bytes(b"x")
        pattern = tmp_path / "in/*"
        assert upscale_folder(pattern, tmp_path / "out", model=tmp_path) == 0
        assert "1 file not looked at, by the suffix: 1 .psd" in caplog.text

    def test_a_width_that_shrinks_is_said(self, tmp_path, caplog):
        write(photo(40, 80), tmp_path / "in.png")
        assert upscaled(tmp_path / "in.png", tmp_path / "out.png", "--width", "40") == 0
        assert "40x20, is smaller than the picture, 80x40" in caplog.text
        caplog.clear()
        assert (
            upscaled(tmp_path / "in.png", tmp_path / "out.png", "--width", "100") == 0
        )
        assert "smaller" not in caplog.text

    def test_tiles_that_take_thousands_of_runs_are_said(self, tmp_path, caplog):
        write(np.zeros((300, 300, 3), np.uint8), tmp_path / "in.png")
        flags = ["--tile", "8", "--context", "4"]
        assert upscaled(tmp_path / "in.png", tmp_path / "out.png", *flags) == 0
        (line,) = [
            r.getMessage() for r in caplog.records if "runs of" in r.getMessage()
        ]
        assert "tiles of 8 make 1369 runs of the model" in line
        caplog.clear()
        flags = ["--tile", "128"]
        assert upscaled(tmp_path / "in.png", tmp_path / "out.png", *flags) == 0
        assert "runs of" not in caplog.text


class TestFormatsByName:
    @pytest.mark.parametrize(
        ("name", "format"),
        [("JPEG2000", "JPEG 2000"), ("TGA", "Targa"), ("PPM", "Pbmplus")],
    )
    def test_what_pillow_knows_is_refused_by_name(self, tmp_path, capsys, name, format):
        Image.fromarray(patches()).save(tmp_path / "in.png", name)
        assert upscaled(tmp_path / "in.png", tmp_path / "out.png") == 1
        printed = capsys.readouterr().err
        assert f"a picture of the format {format}" in printed
        assert "which is not read" in printed

    def test_a_drawing_is_refused_by_name(self, tmp_path, capsys):
        (tmp_path / "in.svg").write_text(
            "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>"
        )
        assert upscaled(tmp_path / "in.svg", tmp_path / "out.png") == 1
        assert "an SVG drawing, which has no pixels" in capsys.readouterr().err

    def test_a_camera_raw_file_is_refused_by_name(self, tmp_path, capsys):
        tags = {50706: (1, 4, 0, 0)}
        Image.fromarray(patches()).save(tmp_path / "in.tif", tiffinfo=tags)
        content = (tmp_path / "in.tif").read_bytes()
        (tmp_path / "in.dng").write_bytes(content)
        assert upscaled(tmp_path / "in.dng", tmp_path / "out.png") == 1
        assert "camera's raw file" in capsys.readouterr().err

    @pytest.mark.skipif(sys.platform != "linux", reason="the loader is a stand-in")
    def test_a_loader_that_libvips_has_but_we_do_not_know_is_used(
        self, tmp_path, monkeypatch
    ):
        write(patches(), tmp_path / "in.png")
        from aethernet.pictures import opening

        monkeypatch.setattr(opening, "STARTS", {})
        assert upscaled(tmp_path / "in.png", tmp_path / "out.png") == 0
        assert read_picture(tmp_path / "out.png").pixels.shape == (32, 160, 3)


def heic(path, pixels, **options):
    heif = pytest.importorskip("pillow_heif", reason="needs the extra formats")
    kind = "RGB;16" if pixels.dtype == np.uint16 else "RGB"
    size = pixels.shape[1::-1]
    made = heif.from_bytes(mode=kind, size=size, data=pixels.tobytes())
    made.save(path, quality=-1, chroma=444, **options)
    return path


class TestPlugins:
    @pytest.mark.parametrize("name", ["in.heic", "in.jxl"])
    def test_without_the_plugin_the_extra_is_named(
        self, tmp_path, capsys, monkeypatch, name
    ):
        if name == "in.jxl":
            (tmp_path / name).write_bytes(b"\xff\x0a" + bytes(40))
        else:
            heic(tmp_path / name, patches())
        for module in ("pillow_heif", "pillow_jxl"):
            monkeypatch.setitem(sys.modules, module, None)
        assert upscaled(tmp_path / name, tmp_path / "out.png") == 1
        assert "[formats]" in capsys.readouterr().err
        if name == "in.jxl":
            source = png(tmp_path / "in.png")
            assert upscaled(source, tmp_path / "out.jxl") == 1
            assert "[formats]" in capsys.readouterr().err
            assert not (tmp_path / "out.jxl").exists()

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_heic_is_read(self, tmp_path, dtype):
        source = heic(tmp_path / "in.heic", patches(dtype=dtype))
        assert upscaled(source, tmp_path / "out.png") == 0
        found = read_picture(tmp_path / "out.png").pixels
        assert found.dtype == dtype
        wanted = patches(dtype=dtype).repeat(2, 0).repeat(2, 1).astype(float)
        peak = np.iinfo(dtype).max
        assert np.abs(found - wanted).mean() / peak < 0.01
        assert found.max() <= peak

    def test_white_in_heic_of_10_bits_is_white(self, tmp_path):
        white = np.full((32, 32, 3), 65535, np.uint16)
        source = heic(tmp_path / "in.heic", white)
        assert upscaled(source, tmp_path / "out.png") == 0
        assert read_picture(tmp_path / "out.png").pixels.min() > 65300

    def test_of_several_pictures_the_main_one_is_upscaled(self, tmp_path, caplog):
        heif = pytest.importorskip("pillow_heif", reason="needs the extra formats")
        made = heif.HeifFile()
        for side in (16, 20):  # what libvips calls pages
            made.add_from_pillow(Image.fromarray(patches(side)))
        made.save(tmp_path / "in.heic", quality=-1, chroma=444, primary_index=1)
        assert upscaled(tmp_path / "in.heic", tmp_path / "out.png") == 0
        assert "left out 1 more picture in the file" in caplog.text
        assert read_picture(tmp_path / "out.png").pixels.shape == (40, 200, 3)

    @pytest.mark.parametrize("bands", [1, 2, 3, 4])
    def test_jpeg_xl_is_written_and_read(self, tmp_path, bands):
        pytest.importorskip("pillow_jxl", reason="needs the extra formats")
        source = png(tmp_path / "in.png", pixels=photo(16, 24, bands))
        flags = ("--quality", "lossless")
        assert upscaled(source, tmp_path / "a.jxl", *flags) == 0
        assert upscaled(tmp_path / "a.jxl", tmp_path / "b.png") == 0
        wanted = read_picture(source).pixels.repeat(4, 0).repeat(4, 1)
        assert np.array_equal(read_picture(tmp_path / "b.png").pixels, wanted)

    def test_damaged_jpeg_xl_is_an_error(self, tmp_path, capsys):
        pytest.importorskip("pillow_jxl", reason="needs the extra formats")
        source = png(tmp_path / "in.png", pixels=photo(64, 64))
        assert upscaled(source, tmp_path / "a.jxl") == 0
        content = (tmp_path / "a.jxl").read_bytes()
        for cut in (10, 30, len(content) // 2):
            (tmp_path / "cut.jxl").write_bytes(content[:cut])
            capsys.readouterr()
            assert upscaled(tmp_path / "cut.jxl", tmp_path / "out.png") == 1
            assert "Traceback" not in capsys.readouterr().err
            assert not (tmp_path / "out.png").exists()


def test_pyvips_prints_no_warning_about_our_files(tmp_path, caplog):
    # Of what we write, libvips complains in its log when a file is not as it should be.
    write(patches(), tmp_path / "in.png")
    for suffix in (".png", ".jpg", ".webp", ".tif", ".avif"):
        assert upscaled(tmp_path / "in.png", tmp_path / f"out{suffix}") == 0
        with caplog.at_level(logging.WARNING, "pyvips"):
            pyvips.Image.new_from_file(str(tmp_path / f"out{suffix}")).avg()
    assert not [r for r in caplog.records if r.name == "pyvips"]
