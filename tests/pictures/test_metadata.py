"""Texts, XMP, EXIF, IPTC and gain maps, from file to file."""

import hashlib
import io
import re
import struct
import zlib

import numpy as np
import pytest
import pyvips
from picture_files import (
    IIM,
    MAKER_NOTE,
    XMP,
    chunks_of,
    exif_block,
    patches,
    png,
    shared_case,
    srgb_profile,
    upscaled,
)
from PIL import Image, ImageCms, IptcImagePlugin
from PIL.MpoImagePlugin import MpoImageFile

from aethernet.pictures import tiff
from aethernet.pictures.metadata import Metadata

WORKFLOW = '{"nodes": ["' + "k" * 50_000 + '"], "title": "café 猫"}'
PARAMETERS = "a café, 猫\nSteps: 20, Sampler: Euler"


def segments(path):
    """Of a JPEG file: marker and content of each segment before the pixels."""
    content, place, found = path.read_bytes(), 2, []
    while content[place + 1] != 0xDA:
        (size,) = struct.unpack_from(">H", content, place + 2)
        found.append((content[place + 1], content[place + 4 : place + 2 + size]))
        place += 2 + size
    return found


def jpeg(path, *added, **options):
    """A JPEG file with these segments, (marker, content) each, after its first."""
    stream = io.BytesIO()
    Image.fromarray(patches()).save(stream, "JPEG", quality=95, **options)
    content = stream.getvalue()
    (size,) = struct.unpack_from(">H", content, 4)
    made = b"".join(
        struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data
        for marker, data in added
    )
    path.write_bytes(content[: 4 + size] + made + content[4 + size :])
    return path


def resource(number, data):
    padded = data + bytes(len(data) % 2)
    return b"8BIM" + struct.pack(">H2xI", number, len(data)) + padded


def xmp_of(path):
    """The XMP as Pillow reads it."""
    with Image.open(path) as image:
        return image.info.get("xmp") or image.info.get("XML:com.adobe.xmp", "").encode()


class TestTexts:
    def test_kinds_and_characters_stay(self, tmp_path):
        texts = (
            (b"tEXt", b"workflow\0" + WORKFLOW.encode("latin-1", "ignore")),
            (b"iTXt", b"parameters" + bytes(5) + PARAMETERS.encode()),
            (b"zTXt", b"Zed\0\0" + zlib.compress(b"z" * 99)),
            (b"iTXt", b"Title\0\1\0de\0Titel\0" + zlib.compress("für".encode())),
            (b"tEXt", b"parameters\0caf\xe9"),
        )
        source = png(tmp_path / "in.png", *texts)
        assert upscaled(source, tmp_path / "out.png") == 0
        kinds = (b"tEXt", b"zTXt", b"iTXt")
        assert texts == tuple(
            c for c in chunks_of(tmp_path / "out.png") if c[0] in kinds
        )
        with Image.open(source) as before, Image.open(tmp_path / "out.png") as after:
            assert before.text == after.text
            assert after.text["Title"] == "für"

    def test_the_shared_case_reads_back(self, tmp_path):
        source = shared_case("text_utf8.png")
        assert upscaled(source, tmp_path / "out.png") == 0
        with Image.open(source) as before, Image.open(tmp_path / "out.png") as after:
            assert before.info["workflow"] == after.info["workflow"]
            assert after.info["prompt"] == '{"a": 1}'
            assert after.info["parameters"] == "a café, 猫\nSteps: 20"

    def test_other_formats_name_the_texts(self, tmp_path, caplog):
        texts = [(b"tEXt", b"prompt\0{}"), (b"tEXt", b"workflow\0{}")]
        source = png(tmp_path / "in.png", *texts)
        for suffix in (".jpg", ".webp", ".tif", ".avif", ".bmp"):
            caplog.clear()
            assert upscaled(source, tmp_path / f"out{suffix}") == 0
            assert "left out the texts prompt, workflow" in caplog.text

    @pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif", ".avif"])
    def test_those_with_a_place_in_exif_go_there(self, tmp_path, suffix, caplog):
        """As programs that generate pictures write and read them in these formats."""
        texts = [
            (b"tEXt", b"Author\0caf\xe9"),
            (b"iTXt", b"Description\0\1\0\0\0" + zlib.compress("猫".encode())),
            (b"iTXt", b"parameters" + bytes(5) + PARAMETERS.encode()),
            (b"tEXt", b"Comment\0there is one place"),
        ]
        target = tmp_path / f"out{suffix}"
        assert upscaled(png(tmp_path / "in.png", *texts), target) == 0
        assert "left out the text Comment" in caplog.text
        with Image.open(target) as image:
            found = image.getexif()
            comment = found.get_ifd(0x8769)[37510]
        described = [found[315], found[270]]
        # Pillow reads texts in EXIF as Latin-1.
        assert [text.encode("latin-1").decode() for text in described] == ["café", "猫"]
        assert comment == b"UNICODE\0" + PARAMETERS.encode("utf-16-be")

    def test_profiles_that_are_stored_as_texts_keep_their_meaning(
        self, tmp_path, caplog
    ):
        def raw(name, data):
            digits = f"\n{name}\n{len(data):8}\n{data.hex()}\n".encode()
            return b"zTXt", f"Raw profile type {name}\0\0".encode() + zlib.compress(
                digits
            )

        texts = [
            raw("exif", b"Exif\0\0" + exif_block()),
            raw("xmp", XMP),
            raw("icc", srgb_profile()),
        ]
        source = png(tmp_path / "in.png", *texts)
        for suffix in (".png", ".jpg"):
            assert upscaled(source, tmp_path / f"out{suffix}") == 0
            with Image.open(tmp_path / f"out{suffix}") as image:
                assert image.getexif()[271] == "Camera maker"
                assert image.info["icc_profile"] == srgb_profile()
            assert xmp_of(tmp_path / f"out{suffix}") == XMP
        assert "left out" not in caplog.text

    def test_comments_stay_comments(self, tmp_path, caplog):
        jpeg(tmp_path / "in.jpg", (0xFE, "Grüße 猫".encode()))
        assert upscaled(tmp_path / "in.jpg", tmp_path / "out.jpg") == 0
        assert (0xFE, "Grüße 猫".encode()) in segments(tmp_path / "out.jpg")
        assert upscaled(tmp_path / "in.jpg", tmp_path / "out.png") == 0
        with Image.open(tmp_path / "out.png") as image:
            assert image.text["Comment"] == "Grüße 猫"
        Image.fromarray(patches()).save(tmp_path / "in.gif", comment=b"made by hand")
        assert upscaled(tmp_path / "in.gif", tmp_path / "gif.png") == 0
        with Image.open(tmp_path / "gif.png") as image:
            assert image.text["Comment"] == "made by hand"
        assert "left out" not in caplog.text

    def test_unknown_chunks_and_segments_are_named(self, tmp_path, caplog):
        source = png(tmp_path / "in.png", (b"caBX", b"jumbf"), (b"prVt", b"x"))
        assert upscaled(source, tmp_path / "out.png") == 0
        assert "content credentials (C2PA) and the chunk prVt" in caplog.text
        caplog.clear()
        jpeg(tmp_path / "in.jpg", (0xE5, b"RMETA\0something"))
        assert upscaled(tmp_path / "in.jpg", tmp_path / "out.jpg") == 0
        assert "left out the segment APP5 (RMETA)" in caplog.text


def gif(path, *extensions, aspect=0):
    """A GIF file with these extensions, (label, name, data) each."""
    Image.fromarray(patches()).convert("P").save(path)
    content = bytearray(path.read_bytes())
    content[12] = aspect
    made = b""
    for label, name, data in extensions:
        made += bytes((0x21, label)) + (bytes((len(name),)) + name if name else b"")
        for start in range(0, len(data), 255):
            block = data[start : start + 255]
            made += bytes((len(block),)) + block
        made += b"\0"
    place = 13 + 3 * 2 ** ((content[10] & 7) + 1)
    content[place:place] = made
    path.write_bytes(content)
    return path


def bmp(path, pixels):
    """A BMP file with an alpha channel, as Windows' version 5 has it."""
    height, width = pixels.shape[:2]
    data = pixels[::-1, :, [2, 1, 0, 3]].tobytes()
    head = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, 0, 0, 0, 0, 0)
    head += struct.pack("<4I4s", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs")
    start = struct.pack("<IHHI", 138 + len(data), 0, 0, 138)
    path.write_bytes(b"BM" + start + head.ljust(124, b"\0") + data)
    return path


ORIGIN = struct.pack(">iiB", 10, 10, 0)


class TestLessUsual:
    """What formats can carry and few files do: kept, or named."""

    @pytest.mark.parametrize(
        ("chunks", "named"),
        [
            ([(b"sBIT", bytes((5, 6, 5)))], "the number of significant bits"),
            ([(b"sBIT", bytes((8, 8, 8)))], ""),
            ([(b"bKGD", bytes(6))], "the background colour"),
            ([(b"hIST", bytes(2))], "the histogram of the palette"),
            ([(b"oFFs", ORIGIN), (b"caNv", bytes(16))], "the chunk caNv and the chunk"),
        ],
    )
    def test_chunks_of_png(self, tmp_path, chunks, named, caplog):
        source = png(tmp_path / "in.png", *chunks)
        assert upscaled(source, tmp_path / "out.png") == 0
        assert ("left out" in caplog.text) == bool(named)
        assert named in caplog.text

    def test_the_time_of_the_last_change(self, tmp_path, caplog):
        time = b"tIME", struct.pack(">H5B", 2020, 1, 2, 3, 4, 5)
        source = png(tmp_path / "in.png", time)
        assert upscaled(source, tmp_path / "out.png") == 0
        assert time in chunks_of(tmp_path / "out.png")
        assert "left out" not in caplog.text
        assert upscaled(source, tmp_path / "out.webp") == 0
        assert "left out the time of the last change" in caplog.text

    def test_a_profile_for_other_pixels(self, tmp_path, caplog):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        gray = Image.new("L", (8, 9), 77)
        gray.save(tmp_path / "in.png", icc_profile=profile)
        assert upscaled(tmp_path / "in.png", tmp_path / "out.png") == 0
        assert "the colour profile, which is damaged or for other pixels" in caplog.text

    def test_bytes_behind_a_png(self, tmp_path, caplog):
        source = png(tmp_path / "in.png")
        source.write_bytes(source.read_bytes() + b"something else")
        assert upscaled(source, tmp_path / "out.png") == 0
        assert "left out 14 bytes behind the picture" in caplog.text

    def test_segments_of_jpeg(self, tmp_path, caplog):
        source = jpeg(tmp_path / "in.jpg", (0xE0, b"JFXX\0\x13\1\1" + bytes(3)))
        content = bytearray(source.read_bytes())
        content[13:18] = struct.pack(">BHH", 0, 1, 2)
        source.write_bytes(content)
        assert upscaled(source, tmp_path / "out.png") == 0
        assert "left out the thumbnail\n" in caplog.text
        assert (b"pHYs", struct.pack(">IIB", 1, 2, 0)) in chunks_of(
            tmp_path / "out.png"
        )

    def test_tags_of_tiff(self, tmp_path, caplog):
        unit = {282: 2.0, 283: 3.0, 296: 1}
        tags = {**unit, 286: 1.0, 50838: (4,), 50839: b"IJIJ"}
        Image.fromarray(patches()).save(tmp_path / "in.tif", tiffinfo=tags)
        assert upscaled(tmp_path / "in.tif", tmp_path / "out.png") == 0
        for name in ("place on the page", "ImageJ's metadata"):
            assert name in caplog.text
        assert upscaled(tmp_path / "in.tif", tmp_path / "out.webp") == 0
        assert "the shape of the pixels (3:2)" in caplog.text

    def test_extensions_of_gif(self, tmp_path, caplog):
        source = gif(
            tmp_path / "in.gif",
            (0xFF, b"ICCRGBG1012", srgb_profile()),
            (0xFE, b"", b"one"),
            (0xFE, b"", b"other"),
            (0xFF, b"NETSCAPE2.0", b"\1\0\0"),
        )
        assert upscaled(source, tmp_path / "out.png") == 0
        assert "left out" not in caplog.text
        with Image.open(tmp_path / "out.png") as image:
            assert image.info["icc_profile"] == srgb_profile()
            assert image.text["Comment"] == "one\nother"
        more = (0x01, bytes(12), b"drawn"), (0xFF, b"VENDOR  1.0", b"abc")
        source = gif(tmp_path / "in.gif", *more, aspect=113)
        assert upscaled(source, tmp_path / "out.png") == 0
        for name in ("a text that is drawn", "data of VENDOR  1.0"):
            assert name in caplog.text
        assert (b"pHYs", struct.pack(">IIB", 64, 128, 0)) in chunks_of(
            tmp_path / "out.png"
        )

    def test_alpha_of_bmp(self, tmp_path):
        alpha = np.full((16, 80, 1), 100, np.uint8)
        pixels = np.concatenate((patches(), alpha), axis=2)
        assert upscaled(bmp(tmp_path / "in.bmp", pixels), tmp_path / "out.png") == 0
        with Image.open(tmp_path / "out.png") as image:
            made = np.asarray(image)
        assert np.array_equal(made[::2, ::2], pixels)

    def test_auxiliary_pictures_of_heif(self, tmp_path, caplog):
        """Of a portrait, say; the file is an AVIF whose alpha is called a matte."""
        pixels = np.dstack((patches(), np.full((16, 80), 100, np.uint8)))
        Image.fromarray(pixels).save(tmp_path / "in.avif")
        content = (tmp_path / "in.avif").read_bytes()
        name = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"
        assert name in content
        other = b"urn:com:apple:photo:2018:aux:hairmatte".ljust(len(name), b"_")
        (tmp_path / "in.avif").write_bytes(content.replace(name, other))
        assert upscaled(tmp_path / "in.avif", tmp_path / "out.png") == 0
        assert "the auxiliary picture urn:com:apple:photo:2018:aux:hair" in caplog.text


class TestXmp:
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
    def test_it_is_in_its_standard_place(self, tmp_path, suffix):
        source = png(
            tmp_path / "in.png", (b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + XMP)
        )
        assert upscaled(source, tmp_path / f"out{suffix}") == 0
        assert xmp_of(tmp_path / f"out{suffix}") == XMP

    def test_more_than_64_kb_in_jpeg_is_extended(self, tmp_path, caplog):
        large = XMP.replace(b"%s", b"x" * 200_000)
        chunk = (b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + large)
        assert upscaled(png(tmp_path / "in.png", chunk), tmp_path / "out.jpg") == 0
        found = segments(tmp_path / "out.jpg")
        start = b"http://ns.adobe.com/xap/1.0/\0"
        (first,) = [data for _, data in found if data.startswith(start)]
        digest = re.search(rb'xmpNote:HasExtendedXMP="([0-9A-F]{32})"', first)[1]
        start = b"http://ns.adobe.com/xmp/extension/\0" + digest
        parts = [data[len(start) :] for _, data in found if data.startswith(start)]
        assert len(parts) == 4
        assert all(struct.unpack_from(">I", part)[0] == len(large) for part in parts)
        whole = b"".join(part[8:] for part in parts)
        assert whole == large
        assert (
            hashlib.md5(whole, usedforsecurity=False).hexdigest().upper().encode()
            == digest
        )
        # And back: what is in both is one packet again.
        assert upscaled(tmp_path / "out.jpg", tmp_path / "back.png") == 0
        packet = xmp_of(tmp_path / "back.png")
        assert b"x" * 200_000 in packet
        assert b"HasExtendedXMP" not in packet
        assert packet.count(b"</rdf:RDF>") == 1
        pyvips.Image.new_from_file(str(tmp_path / "out.jpg")).avg()
        assert "left out" not in caplog.text

    def test_the_shared_case_keeps_it(self, tmp_path, caplog):
        source = shared_case("bigxmp.png")
        for suffix in (".jpg", ".png", ".webp"):
            assert upscaled(source, tmp_path / f"out{suffix}") == 0
            assert upscaled(tmp_path / f"out{suffix}", tmp_path / "back.png") == 0
            before, after = xmp_of(source), xmp_of(tmp_path / "back.png")
            for line in re.findall(rb"<rdf:Description.*?>", before, re.DOTALL):
                assert line in after
        assert "left out" not in caplog.text


class TestExif:
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
    def test_a_maker_note_stays_byte_by_byte(self, tmp_path, suffix, caplog):
        block = exif_block(maker_note=True)
        jpeg(tmp_path / "in.jpg", (0xE1, b"Exif\0\0" + block))
        assert upscaled(tmp_path / "in.jpg", tmp_path / f"out{suffix}") == 0
        with Image.open(tmp_path / f"out{suffix}") as image:
            exif = image.getexif()
            assert exif[0x010F] == "Camera maker"
            note = exif.get_ifd(0x8769)[0x927C]
        assert note == MAKER_NOTE
        if suffix != ".tif":  # where it lies in the block does not change
            content = (tmp_path / f"out{suffix}").read_bytes()
            start = content.index(b"MM\0*\0\0\0\x08")
            assert content[start : start + len(block)] == block
        assert "left out" not in caplog.text

    @pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".avif"])
    def test_more_than_64_kb_stays_where_there_is_room(self, tmp_path, suffix, caplog):
        exif = Image.Exif()
        exif[0x010E] = "d" * 100_000
        block = exif.tobytes().removeprefix(b"Exif\0\0")
        source = png(tmp_path / "in.png", (b"eXIf", block))
        assert upscaled(source, tmp_path / f"out{suffix}") == 0
        with Image.open(tmp_path / f"out{suffix}") as image:
            assert image.getexif()[0x010E] == "d" * 100_000
        assert "left out" not in caplog.text
        assert upscaled(source, tmp_path / "out.jpg") == 0
        assert "left out EXIF, which is larger than 64 KB" in caplog.text

    def test_tiff_has_it_as_tags_of_its_own(self, tmp_path, caplog):
        tags = {270: "described", 271: "Maker", 315: "an artist", 33432: "mine"}
        source = tmp_path / "in.tif"
        Image.fromarray(patches()).save(source, tiffinfo=tags, compression="raw")
        for name in ("out.tif", "out.jpg", "out.png"):
            assert upscaled(source, tmp_path / name) == 0
            with Image.open(tmp_path / name) as image:
                exif = image.getexif()
                assert {tag: exif[tag] for tag in tags} == tags
        assert "left out" not in caplog.text

    def test_the_sides_and_the_thumbnail_are_those_of_the_result(self, tmp_path):
        old = pyvips.Image.black(16, 12).jpegsave_buffer()
        block = exif_block(6, thumbnail=old)
        jpeg(tmp_path / "in.jpg", (0xE1, b"Exif\0\0" + block))
        for suffix in (".jpg", ".png", ".webp", ".avif"):
            target = tmp_path / f"out{suffix}"
            assert upscaled(tmp_path / "in.jpg", target) == 0
            assert old not in target.read_bytes()
            with Image.open(target) as image:
                assert image.getexif()[0x0112] == 1
            image = pyvips.Image.new_from_file(str(target))
            data = image.get("jpeg-thumbnail-data")
            with Image.open(io.BytesIO(data)) as thumbnail:
                assert thumbnail.size == (32, 160)  # 80x16, turned and doubled
                middle = np.asarray(thumbnail.convert("RGB"), float)[16, 16]
            assert np.abs(middle - (230, 40, 30)).max() < 30


class TestIptc:
    def test_it_goes_from_format_to_format_and_back(self, tmp_path, caplog):
        blocks = resource(0x0404, IIM) + resource(0x040C, b"old thumbnail")
        jpeg(tmp_path / "in.jpg", (0xED, b"Photoshop 3.0\0" + blocks))
        assert upscaled(tmp_path / "in.jpg", tmp_path / "a.tif") == 0
        assert upscaled(tmp_path / "a.tif", tmp_path / "b.png") == 0
        assert upscaled(tmp_path / "b.png", tmp_path / "c.jpg") == 0
        for name in ("a.tif", "c.jpg"):
            with Image.open(tmp_path / name) as image:
                found = IptcImagePlugin.getiptcinfo(image)
            assert found[2, 120] == b"Written below"
            assert b"old thumbnail" not in (tmp_path / name).read_bytes()
        assert "left out" not in caplog.text
        assert upscaled(tmp_path / "in.jpg", tmp_path / "out.webp") == 0
        assert "left out IPTC" in caplog.text


HDRGM = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    b'rdf:about="" xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" '
    b'hdrgm:Version="1.0" hdrgm:GainMapMax="2.5"/></rdf:RDF></x:xmpmeta>'
)
XMP_START = b"http://ns.adobe.com/xap/1.0/\0"


def container(size):
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        b'rdf:about="" xmlns:Container="http://ns.google.com/photos/1.0/container/" '
        b'xmlns:Item="http://ns.google.com/photos/1.0/container/item/" '
        b'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0">'
        b'<Container:Directory><rdf:Seq><rdf:li rdf:parseType="Resource">'
        b'<Container:Item Item:Semantic="Primary" Item:Mime="image/jpeg"/></rdf:li>'
        b'<rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="GainMap" '
        b'Item:Mime="image/jpeg" Item:Length="%d"/></rdf:li></rdf:Seq>'
        b"</Container:Directory></rdf:Description></rdf:RDF></x:xmpmeta>" % size
    )


def ultra_hdr(path, orientation=1):
    """An Ultra HDR file by version 1 of the format, with XMP and without an index."""
    ramp = np.linspace(0, 255, 40).astype(np.uint8)
    Image.fromarray(ramp[np.newaxis].repeat(8, 0)).save(path, "JPEG", quality=95)
    jpeg_of = path.read_bytes()
    data = XMP_START + HDRGM
    segment = struct.pack(">BBH", 0xFF, 0xE1, len(data) + 2) + data
    gain_map = jpeg_of[:2] + segment + jpeg_of[2:]
    block = b"Exif\0\0" + exif_block(orientation)
    jpeg(path, (0xE1, block), (0xE1, XMP_START + container(len(gain_map))))
    path.write_bytes(path.read_bytes() + gain_map)
    return path


class TestGainMap:
    @pytest.mark.parametrize("orientation", [1, 6])
    def test_it_is_upscaled_with_the_picture(self, tmp_path, orientation, caplog):
        source = ultra_hdr(tmp_path / "in.jpg", orientation)
        assert upscaled(source, tmp_path / "out.jpg") == 0
        size = (160, 32) if orientation == 1 else (32, 160)
        with MpoImageFile(tmp_path / "out.jpg") as image:
            assert image.n_frames == 2  # Pillow finds both through the index
            assert image.size == size
            image.seek(1)
            assert image.size == (size[0] // 2, size[1] // 2)
            gain = np.asarray(image.convert("L"), float)
        if orientation == 6:  # what was left is at the top now
            gain = gain.T
        assert np.abs(gain[4] - np.linspace(0, 255, 80)).max() < 8
        content = (tmp_path / "out.jpg").read_bytes()
        second = content.index(HDRGM)
        length = int(re.search(rb'GainMap".*?Length="(\d+)"', content)[1])
        assert len(content) - length < second < len(content)
        assert content[-length:][:3] == b"\xff\xd8\xff"
        assert "left out" not in caplog.text

    def test_other_libraries_see_hdr(self, tmp_path):
        source = shared_case("ultrahdr.jpg")
        assert upscaled(source, tmp_path / "out.jpg") == 0
        before, after = (
            pyvips.Image.new_from_file(str(path))
            for path in (source, tmp_path / "out.jpg")
        )
        assert after.get("vips-loader") == "uhdrload"
        assert (after.width, after.height) == (192, 128)
        for name in before.get_fields():
            if name.startswith("gainmap-") and name != "gainmap-data":
                assert after.get(name) == pytest.approx(before.get(name)), name
        maps = [
            pyvips.Image.new_from_buffer(image.get("gainmap-data"), "")
            for image in (before, after)
        ]
        assert maps[1].width == 2 * maps[0].width
        assert abs(maps[0].avg() - maps[1].avg()) < 2

    @pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".avif", ".bmp"])
    def test_other_formats_name_it_and_do_not_announce_it(
        self, tmp_path, suffix, caplog
    ):
        source = ultra_hdr(tmp_path / "in.jpg")
        assert upscaled(source, tmp_path / f"out{suffix}") == 0
        assert "the gain map (HDR)" in caplog.text
        content = (tmp_path / f"out{suffix}").read_bytes()
        assert b"hdrgm" not in content
        assert b"Container" not in content

    def test_of_a_stereo_picture_the_first_is_upscaled(self, tmp_path, caplog):
        first, second = (Image.fromarray(patches(side)) for side in (16, 20))
        first.save(tmp_path / "in.mpo", "MPO", save_all=True, append_images=[second])
        assert upscaled(tmp_path / "in.mpo", tmp_path / "out.jpg") == 0
        assert "left out 1 more picture in the file" in caplog.text
        with Image.open(tmp_path / "out.jpg") as image:
            assert image.format == "JPEG"
            assert image.size == (160, 32)

    def test_a_film_behind_the_picture_is_named(self, tmp_path, caplog):
        jpeg(tmp_path / "in.jpg", icc_profile=srgb_profile())
        content = (tmp_path / "in.jpg").read_bytes()
        (tmp_path / "in.jpg").write_bytes(content + b"\0\0\0\x18ftypmp42" + bytes(999))
        assert upscaled(tmp_path / "in.jpg", tmp_path / "out.jpg") == 0
        assert "left out 1011 bytes behind the picture" in caplog.text


class TestTiff:
    def test_a_big_tiff_gets_its_metadata(self, tmp_path):
        image = pyvips.Image.new_from_array(patches(), interpretation="srgb")
        image.tiffsave(str(tmp_path / "a.tif"), bigtiff=True)
        block = exif_block(maker_note=True)
        tiff.add(tmp_path / "a.tif", Metadata(exif=block, xmp=XMP))
        with Image.open(tmp_path / "a.tif") as found:
            assert found.getexif()[0x010F] == "Camera maker"
            assert found.getexif().get_ifd(0x8769)[0x927C] == MAKER_NOTE
        again = pyvips.Image.new_from_file(str(tmp_path / "a.tif"))
        assert again.get("xmp-data") == XMP
        assert np.array_equal(again.numpy(), patches())

    def test_big_endian_tags_are_read(self, tmp_path):
        pixels = patches().tobytes()
        tags = [(256, 4, 80), (257, 4, 16), (258, 3, (8, 8, 8)), (259, 3, 1)]
        tags += [(262, 3, 2), (271, 2, b"Maker\0"), (273, 4, 0), (277, 3, 3)]
        tags += [(278, 4, 16), (279, 4, len(pixels)), (34665, 4, 0)]
        start = 8 + 2 + 12 * len(tags) + 4
        inner = struct.pack(">HHHI4sI", 1, 0x9000, 7, 4, b"0231", 0)
        rows, behind = b"", b""
        for tag, kind, value in tags:
            data = value if isinstance(value, bytes) else b""
            if isinstance(value, tuple):
                data = struct.pack(">3H", *value)
            if tag in (273, 34665):
                data = pixels if tag == 273 else inner
            place = struct.pack(">I", start + len(behind))
            count = len(data) if kind == 2 else 3 if isinstance(value, tuple) else 1
            if not data:
                place = struct.pack(
                    ">HH" if kind == 3 else ">I", *(value, 0)[: 5 - kind]
                )
            rows += struct.pack(">HHI", tag, kind, count) + place
            behind += data
        head = b"MM\0*" + struct.pack(">IH", 8, len(tags))
        (tmp_path / "in.tif").write_bytes(head + rows + bytes(4) + behind)
        for name in ("out.tif", "out.jpg", "out.avif"):
            assert upscaled(tmp_path / "in.tif", tmp_path / name) == 0
            with Image.open(tmp_path / name) as image:
                exif = image.getexif()
                assert exif[0x010F] == "Maker"
                assert exif.get_ifd(0x8769)[0x9000] == b"0231"

    def test_a_damaged_block_stops_nothing(self, tmp_path):
        head = struct.pack(">H", 3) + bytes(30)
        source = png(tmp_path / "in.png", (b"eXIf", b"MM\0*\0\0\0\x08" + head))
        for suffix in (".png", ".jpg", ".webp", ".tif", ".avif"):
            assert upscaled(source, tmp_path / f"out{suffix}") == 0
        jpeg(tmp_path / "in.jpg", (0xE1, b"http://ns.adobe.com/xmp/extension/\0short"))
        assert upscaled(tmp_path / "in.jpg", tmp_path / "out.png") == 0

    def test_a_profile_of_more_than_64_kb_goes_into_jpeg(self, tmp_path):
        profile = bytearray(srgb_profile())
        profile += bytes(200_000 - len(profile))
        struct.pack_into(">I", profile, 0, len(profile))
        chunk = (b"iCCP", b"x\0\0" + zlib.compress(bytes(profile)))
        assert upscaled(png(tmp_path / "in.png", chunk), tmp_path / "out.jpg") == 0
        with Image.open(tmp_path / "out.jpg") as image:
            assert image.info["icc_profile"] == bytes(profile)
