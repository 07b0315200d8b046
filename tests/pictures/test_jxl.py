"""What JPEG XL says of channels, layers and alpha, which no plugin tells."""

import base64
import struct

import numpy as np
import pytest
from picture_files import JXL_FILES, jxl_file, needs_jxl, png, upscaled

from aethernet.errors import ImageError
from aethernet.pictures.files import read_picture
from aethernet.pictures.jxl import read_header

MANY = (
    "the depth map, a channel of a spot colour, a selection mask, a channel of a "
    "camera's colour filters, the thermal channel and an extra channel"
)


@needs_jxl()
@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("depth", "the depth map"),
        ("many", MANY),
        ("layers", "the layers"),
        ("alphas", "another alpha channel"),
        ("premultiplied", ""),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".jxl"])
def test_what_the_plugin_does_not_tell_is_named(tmp_path, name, lost, suffix, caplog):
    source = jxl_file(tmp_path / "in.jxl", name)
    assert upscaled(source, tmp_path / f"out{suffix}") == 0
    texts = [record.getMessage() for record in caplog.records]
    assert [text.partition("left out ")[2] for text in texts] == [lost] * bool(lost)


@needs_jxl()
def test_without_its_black_cmyk_is_refused(tmp_path, capsys):
    source = jxl_file(tmp_path / "in.jxl", "black")
    assert upscaled(source, tmp_path / "out.png") == 1
    assert "is in CMYK" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


@needs_jxl()
def test_colours_multiplied_by_alpha_come_out_plain(tmp_path):
    source = jxl_file(tmp_path / "in.jxl", "premultiplied")
    assert upscaled(source, tmp_path / "out.png") == 0
    pixels = read_picture(tmp_path / "out.png").pixels.reshape(32, 32, 4)
    assert (pixels[..., :3] == (40, 80, 120)).all()
    assert (pixels[:, :16, 3] == 128).all()
    assert (pixels[:, 16:, 3] == 255).all()


@needs_jxl()
def test_usual_files_are_not_warned_of(tmp_path, caplog):
    assert upscaled(png(tmp_path / "in.png"), tmp_path / "a.jxl") == 0
    assert upscaled(tmp_path / "a.jxl", tmp_path / "b.png") == 0
    assert caplog.text == ""


class Header:
    """A codestream, written bit by bit, the least significant one first."""

    def __init__(self):
        self.text = ""
        self.put(1, 1).put(5, 1).put(3, 1)  # 16 pixels high, and as wide

    def put(self, count, number):
        self.text += f"{number:0{count}b}"[::-1] if count else ""
        return self

    def file(self, path):
        bits = self.text + "0" * (-len(self.text) % 8)
        content = [int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8)]
        path.write_bytes(b"\xff\x0a" + bytes(content))
        return path


def test_a_preview_and_a_size_on_a_display(tmp_path):
    bits = Header().put(1, 0).put(1, 1).put(3, 5)
    bits.put(1, 1).put(1, 1).put(5, 3).put(3, 1)  # the size on a display
    bits.put(1, 1).put(1, 1).put(2, 0).put(3, 1)  # a preview
    bits.put(1, 0).put(1, 0).put(2, 2)  # no animation, 12 bits
    bits.put(1, 1).put(2, 1)  # an extra channel, of a depth
    bits.put(1, 0).put(2, 1).put(1, 0).put(2, 0).put(2, 0).put(2, 0)
    found = read_header(bits.put(64, 0).file(tmp_path / "a.jxl"))
    assert (found.width, found.height, found.bits) == (16, 16, 12)
    assert found.channels == [1]
    assert found.others == ["the size on a display", "the preview", "the depth map"]


def test_an_animation_is_found_behind_a_preview(tmp_path):
    bits = Header().put(1, 0).put(1, 1).put(3, 0).put(1, 0)
    bits.put(1, 1).put(1, 0).put(2, 3).put(12, 7).put(3, 0).put(2, 0).put(6, 9)
    found = read_header(bits.put(1, 1).put(40, 0).file(tmp_path / "a.jxl"))
    assert found.animated


@pytest.mark.parametrize("name", JXL_FILES)
def test_a_cut_header_says_nothing_wrong(tmp_path, name):
    whole = jxl_file(tmp_path / "in.jxl", name)
    content, expected = whole.read_bytes(), read_header(whole)
    for length in range(len(content)):
        whole.write_bytes(content[:length])
        try:
            found = read_header(whole)
        except ImageError:
            continue
        assert (found.width, found.height) == (16, 16)
        assert found.channels in ([], expected.channels)
        assert set(found.others) <= set(expected.others)


def test_noise_in_a_header_is_no_traceback(tmp_path):
    noise = np.random.default_rng(5)
    path = tmp_path / "in.jxl"
    for packed in JXL_FILES.values():
        content = base64.b64decode(packed)
        for _ in range(300):
            changed = bytearray(content)
            for place in noise.integers(2, len(content), 3):
                changed[place] = noise.integers(256)
            path.write_bytes(changed)
            try:
                read_header(path)
            except ImageError:
                continue
    path.write_bytes(b"\xff\x0a" + noise.bytes(2**17))
    read_header(path)


def test_a_codestream_in_pieces(tmp_path):
    content = base64.b64decode(JXL_FILES["depth"])

    def box(kind, data):
        return struct.pack(">I4s", 8 + len(data), kind) + data

    pieces = [content[at : at + 7] for at in range(0, len(content), 7)]
    path = tmp_path / "in.jxl"
    path.write_bytes(
        b"\x00\x00\x00\x0cJXL \r\n\x87\n"
        + box(b"ftyp", b"jxl \0\0\0\0jxl ")
        + b"".join(box(b"jxlp", struct.pack(">I", n) + p) for n, p in enumerate(pieces))
    )
    assert read_header(path).channels == [1]
