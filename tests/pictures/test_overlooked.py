"""What the libraries overlook in a file: read by us, or named as left out."""

import struct
import zlib

import numpy as np
import pytest
from helpers import run
from picture_files import (
    IIM,
    XMP,
    chunk,
    chunks_of,
    exif_block,
    patches,
    png,
    srgb_profile,
    upscaled,
    with_segments,
)
from PIL import Image, IptcImagePlugin, TiffImagePlugin

from aethernet.pictures.files import read_picture

PACKET = b"XML:com.adobe.xmp"


def behind_pixels(path, *chunks):
    """A PNG file with chunks before its end, as ExifTool adds them."""
    content = png(path).read_bytes()
    end = content.index(b"IEND") - 4
    added = b"".join(chunk(*each) for each in chunks)
    path.write_bytes(content[:end] + added + content[end:])
    return path


def lost(caplog):
    texts = [record.getMessage() for record in caplog.records]
    return [text.partition("left out ")[2] for text in texts]


class TestPng:
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
    def test_xmp_behind_the_pixels_is_carried(self, tmp_path, suffix, packed, caplog):
        data = b"\0\1\0\0\0" + zlib.compress(XMP) if packed else bytes(5) + XMP
        source = behind_pixels(tmp_path / "in.png", (b"iTXt", PACKET + data))
        assert upscaled(source, tmp_path / f"out{suffix}") == 0
        assert XMP in (tmp_path / f"out{suffix}").read_bytes()
        assert lost(caplog) == []

    def test_damaged_xmp_is_named(self, tmp_path, caplog):
        text = (b"iTXt", PACKET + b"\0\1\0\0\0not packed")
        source = behind_pixels(tmp_path / "in.png", text)
        assert upscaled(source, tmp_path / "out.png") == 0
        assert lost(caplog) == ["XMP, which is damaged"]

    def test_exif_behind_the_pixels_turns_the_picture(self, tmp_path, caplog):
        source = behind_pixels(tmp_path / "in.png", (b"eXIf", exif_block(6)))
        assert upscaled(source, tmp_path / "out.png") == 0
        wanted = np.rot90(patches(), -1).repeat(2, 0).repeat(2, 1)
        with Image.open(tmp_path / "out.png") as image:
            assert image.getexif()[0x010F] == "Camera maker"
            assert image.getexif()[0x0112] == 1
            assert np.array_equal(np.asarray(image), wanted)
        assert lost(caplog) == []

    def test_exif_with_the_prefix_of_jpeg(self, tmp_path, caplog):
        source = png(tmp_path / "in.png", (b"eXIf", b"Exif\0\0" + exif_block()))
        assert upscaled(source, tmp_path / "out.png") == 0
        assert (b"eXIf", exif_block()) in chunks_of(tmp_path / "out.png")
        assert lost(caplog) == []

    @pytest.mark.parametrize("line", [b"iptc", b"IPTC profile", b"generic profile"])
    def test_iptc_as_each_program_writes_it(self, tmp_path, line, caplog):
        resource = b"8BIM" + struct.pack(">H2xI", 0x404, len(IIM)) + IIM + b"\0"
        digits = b"\n%s\n%8d\n%s\n" % (line, len(resource), resource.hex().encode())
        text = b"Raw profile type iptc\0\0" + zlib.compress(digits)
        source = png(tmp_path / "in.png", (b"zTXt", text))
        assert upscaled(source, tmp_path / "out.jpg") == 0
        with Image.open(tmp_path / "out.jpg") as image:
            found = IptcImagePlugin.getiptcinfo(image)
        assert found[2, 120] == b"Written below"
        assert lost(caplog) == []


class TestJpeg:
    def test_a_thumbnail_of_jfif_is_named(self, tmp_path, caplog):
        content = with_segments(tmp_path / "in.jpg").read_bytes()
        jfif = b"JFIF\0\1\2\0\0\1\0\1\4\3" + bytes(36)
        head = content[:2] + struct.pack(">2H", 0xFFE0, len(jfif) + 2) + jfif
        (tmp_path / "in.jpg").write_bytes(head + content[20:])
        assert upscaled(tmp_path / "in.jpg", tmp_path / "out.png") == 0
        assert lost(caplog) == ["the thumbnail"]

    def test_a_profile_without_its_first_part_is_named(self, tmp_path, caplog):
        part = b"ICC_PROFILE\0\2\2" + srgb_profile()[200:]
        source = with_segments(tmp_path / "in.jpg", (0xE2, part))
        assert upscaled(source, tmp_path / "out.png") == 0
        assert lost(caplog) == ["the colour profile, which is damaged"]

    @pytest.mark.parametrize("kind", [2, 3])
    def test_texts_of_ducky_are_named(self, tmp_path, kind, caplog):
        quality = b"Ducky" + struct.pack(">2HI", 1, 4, 80)
        text = struct.pack(">2HI", kind, 6, 1) + b"\0a" + bytes(2)
        for added in (b"", text):
            source = with_segments(tmp_path / "in.jpg", (0xEC, quality + added))
            assert upscaled(source, tmp_path / "out.png", "--overwrite") == 0
        assert lost(caplog) == ["the texts of Ducky"]

    @pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp"])
    def test_paths_stay_and_guides_do_not(self, tmp_path, suffix, caplog):
        def resource(number, data):
            return b"8BIM" + struct.pack(">H2xI", number, len(data)) + data

        path = resource(2000, bytes(26))
        added = path + resource(0x408, bytes(16)) + resource(0x41A, bytes(20))
        source = with_segments(tmp_path / "in.jpg", (0xED, b"Photoshop 3.0\0" + added))
        target = tmp_path / f"out{suffix}"
        assert upscaled(source, target) == 0
        named = "Photoshop's guides and slices"
        if suffix == ".webp":
            assert lost(caplog) == [f"{named} and what Photoshop added"]
            return
        assert lost(caplog) == [named]
        content = target.read_bytes()
        assert path in content
        assert content.count(b"8BIM") == 1


class TestExif:
    @pytest.mark.parametrize("turn", range(1, 9))
    def test_places_in_the_picture_follow_it(self, tmp_path, turn):
        exif = Image.Exif()
        exif[274] = turn
        exif.get_ifd(0x8769).update(
            {
                40962: 80,
                40963: 16,
                37396: (10, 3, 6, 4),
                41492: (10, 3),
                41486: TiffImagePlugin.IFDRational(3000, 1),
                41487: TiffImagePlugin.IFDRational(1500, 7),
            }
        )
        pixels = np.zeros((16, 80), np.uint8)
        pixels[3, 10] = 255
        Image.fromarray(pixels).save(tmp_path / "in.png", exif=exif)
        assert upscaled(tmp_path / "in.png", tmp_path / "out.png") == 0
        with Image.open(tmp_path / "out.png") as image:
            found = image.getexif().get_ifd(0x8769)
            rows, columns = np.nonzero(np.asarray(image))
        place = (columns.min(), rows.min())
        across = 12, 8
        sensor = 6000, 3000 / 7
        assert found[41492] == place
        assert found[37396] == (*place, *(across[::-1] if turn > 4 else across))
        stated = float(found[41486]), float(found[41487])
        assert stated == pytest.approx(sensor[::-1] if turn > 4 else sensor, rel=1e-6)

    def test_sides_in_the_first_directory_are_those_of_the_result(self, tmp_path):
        exif = Image.Exif()
        exif[256], exif[257] = 80, 16
        Image.fromarray(patches()).save(tmp_path / "in.jpg", exif=exif)
        assert upscaled(tmp_path / "in.jpg", tmp_path / "out.jpg") == 0
        with Image.open(tmp_path / "out.jpg") as image:
            found = image.getexif()
        assert (found[256], found[257]) == (160, 32)

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".avif"])
    def test_sides_in_xmp_are_those_of_the_result(self, tmp_path, suffix):
        stated = (
            b"tiff:ImageWidth=\"80\" tiff:ImageLength='16'><exif:PixelXDimension> 80"
            b"</exif:PixelXDimension><exif:PixelYDimension>16</exif:PixelYDimension>"
            b"<x:Width>80</x:Width>"
        )
        packet = b"<rdf:Description " + stated + b"</rdf:Description>"
        source = png(tmp_path / "in.png", (b"iTXt", PACKET + bytes(5) + packet))
        assert upscaled(source, tmp_path / f"out{suffix}") == 0
        wanted = packet.replace(b"16", b"32").replace(b"80", b"160")
        wanted = wanted.replace(b"<x:Width>160", b"<x:Width>80")
        assert wanted in (tmp_path / f"out{suffix}").read_bytes()


class TestWebp:
    def file(self, path, *chunks, behind=b""):
        Image.fromarray(patches()).save(path, lossless=True, exif=exif_block())
        body = path.read_bytes()[12:]
        for kind, data in chunks:
            padding = bytes(len(data) % 2)
            body += kind + struct.pack("<I", len(data)) + data + padding
        whole = b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
        path.write_bytes(whole + behind)
        return path

    @pytest.mark.parametrize(
        ("chunks", "behind", "name"),
        [
            ([(b"EXIF", exif_block(maker_note=True))], b"", "another EXIF block"),
            ([(b"XMP ", XMP), (b"XMP ", XMP + b" ")], b"", "another XMP packet"),
            ([], bytes(range(200)), "200 bytes behind the picture"),
            ([], bytes(4), None),
        ],
    )
    def test_what_comes_twice_or_behind(self, tmp_path, chunks, behind, name, caplog):
        source = self.file(tmp_path / "in.webp", *chunks, behind=behind)
        assert upscaled(source, tmp_path / "out.png") == 0
        assert lost(caplog) == [name] * bool(name)


class TestAvif:
    def test_bytes_behind_the_boxes_are_named(self, tmp_path, caplog):
        Image.fromarray(patches()).save(tmp_path / "in.avif")
        content = (tmp_path / "in.avif").read_bytes()
        (tmp_path / "in.avif").write_bytes(content + b"a" * 99)
        assert upscaled(tmp_path / "in.avif", tmp_path / "out.png") == 0
        assert lost(caplog) == ["99 bytes behind the picture"]

    @pytest.mark.parametrize("suffix", [".avif", ".heic"])
    @pytest.mark.parametrize("alpha", [128, 0])
    def test_colours_multiplied_by_alpha_come_out_plain(self, tmp_path, suffix, alpha):
        colour = (200, 100, 40)
        pixels = np.full((64, 64, 4), (*colour, alpha), np.uint8)
        pixels[:, 32:, 3] = 255
        source = tmp_path / f"in{suffix}"
        if suffix == ".avif":
            options = {"quality": 100, "subsampling": "4:4:4"}
            image = Image.fromarray(pixels)
            image.save(source, alpha_premultiplied=True, **options)
        else:
            heif = pytest.importorskip("pillow_heif", reason="needs the extra formats")
            stored = pixels[..., :3] * (pixels[..., 3:] / 255)
            pixels[..., :3] = np.rint(stored)
            made = heif.from_bytes(mode="RGBa", size=(64, 64), data=pixels.tobytes())
            made.save(source, quality=-1, chroma=444)
        assert b"prem" in source.read_bytes()
        assert upscaled(source, tmp_path / "out.png") == 0
        found = read_picture(tmp_path / "out.png").pixels.astype(int)
        for column in (24, 104) if alpha else (104,):
            assert np.abs(found[64, column, :3] - colour).max() <= 4
        assert abs(found[64, 24, 3] - alpha) <= 1


class TestTiff:
    def with_tag(self, path, tag, value, pixels=None):
        image = Image.fromarray(patches() if pixels is None else pixels)
        image.save(path, tiffinfo={tag: value})
        return path

    @pytest.mark.parametrize(
        ("tag", "value", "name"),
        [
            (297, (3, 7), "the number of the page"),
            (337, "Printer", "the TIFF tags 337"),
        ],
    )
    def test_tags_of_the_page_are_named(self, tmp_path, tag, value, name, caplog):
        source = self.with_tag(tmp_path / "in.tif", tag, value)
        assert upscaled(source, tmp_path / "out.tif") == 0
        assert lost(caplog) == [name]

    @pytest.mark.parametrize("tag", [11, 285])
    def test_names_of_program_and_page_are_carried(self, tmp_path, tag, caplog):
        source = self.with_tag(tmp_path / "in.tif", tag, "cover")
        assert upscaled(source, tmp_path / "out.tif") == 0
        with Image.open(tmp_path / "out.tif") as image:
            assert image.tag_v2[tag] == "cover"
        assert lost(caplog) == []

    def test_a_fourth_channel_without_a_kind_is_named(self, tmp_path, caplog):
        path = tmp_path / "in.tif"
        pixels = np.dstack((patches(), np.full((16, 80), 128, np.uint8)))
        Image.fromarray(pixels).save(path)
        content = path.read_bytes()
        kind = struct.pack("<HHI", 338, 3, 1)
        assert content.count(kind) == 1
        # Another tag in its place: the order of tags stays.
        path.write_bytes(content.replace(kind, struct.pack("<HHI", 336, 3, 1)))
        assert upscaled(path, tmp_path / "out.png") == 0
        name = "the kind of the last channel (unknown, now transparency)"
        assert lost(caplog) == [name]


def test_names_from_a_file_do_not_reach_the_terminal_raw(tmp_path):
    png(tmp_path / "in.png", (b"tEXt", b"a\x1b[2Jb\0x"))
    words = ["-m", "aethernet", "upscale", tmp_path / "in.png"]
    done = run(*words, "-o", tmp_path / "out.jpg")
    assert done.returncode == 0
    assert "the text a\\x1b[2Jb" in done.stderr
    assert "\x1b" not in done.stderr
