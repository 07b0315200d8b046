"""Colours that a file states outside of an ICC profile: what readers then show."""

import base64
import struct

import numpy as np
import pytest
import pyvips
from browser import chromium
from helpers import without_hidden
from picture_files import (
    COLOURS,
    DISPLAY_P3,
    PQ,
    centres,
    chunks_of,
    cicp_chunk,
    gamma_chunks,
    nclx_of,
    patches,
    png,
    shared_case,
    shown,
    srgb_encoded,
    upscaled,
)
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from aethernet.pictures.colour import StatedColour, profile_of
from aethernet.pictures.files import read_picture

STORED = np.array(COLOURS) / 255
# Rec. 709 to Display P3 and back are matrices of linear light: from P3 to sRGB.
P3_TO_SRGB = np.array(
    [[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]]
)


def linear(values):
    return np.where(
        values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
    )


def chrm(*pairs):
    numbers = [round(100_000 * value) for value in pairs]
    return (b"cHRM", struct.pack(">8I", *numbers))


P3_CORNERS = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
STATED = {
    "gamma 1": (gamma_chunks(), srgb_encoded(STORED)),
    "gamma 1/1.8": (gamma_chunks(55556), srgb_encoded(STORED**1.8)),
    "cICP of Display P3": (
        (cicp_chunk(*DISPLAY_P3),),
        srgb_encoded(linear(STORED) @ P3_TO_SRGB.T),
    ),
    "gamma and primaries": (
        (*gamma_chunks(45455), chrm(*P3_CORNERS)),
        srgb_encoded(np.clip(STORED**2.2 @ P3_TO_SRGB.T, 0, 1)),
    ),
    "sRGB": (((b"sRGB", b"\0"),), 255 * STORED),
}


@pytest.mark.parametrize("name", STATED)
@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif"])
def test_a_profile_shows_the_same_colours(tmp_path, name, suffix, caplog):
    chunks, wanted = STATED[name]
    source = png(tmp_path / "in.png", *chunks)
    flags = ["--quality", "lossless"] if suffix == ".webp" else []
    assert upscaled(source, tmp_path / f"out{suffix}", *flags) == 0
    assert "left out" not in caplog.text
    with Image.open(tmp_path / f"out{suffix}") as image:
        found = centres(shown(image))
    assert np.abs(found - wanted).max() < 3, (found, wanted)


@pytest.mark.parametrize("name", STATED)
def test_png_keeps_the_chunks_as_they_are(tmp_path, name):
    chunks, _ = STATED[name]
    source = png(tmp_path / "in.png", *chunks)
    assert upscaled(source, tmp_path / "out.png") == 0
    found = chunks_of(tmp_path / "out.png")
    assert set(chunks) <= set(found)
    assert b"iCCP" not in dict(found)


def test_code_points_go_from_png_to_avif_and_back(tmp_path, caplog):
    levels = ((b"cLLI", struct.pack(">II", 10_000_000, 4_000_000)),)
    corners = struct.pack(">8H2I", *range(1, 9), 10_000_000, 50)
    levels += ((b"mDCV", corners),)
    source = png(tmp_path / "in.png", cicp_chunk(*PQ), *levels)
    assert upscaled(source, tmp_path / "a.avif", "--quality", "lossless") == 0
    assert nclx_of(tmp_path / "a.avif")[:2] == PQ
    assert upscaled(tmp_path / "a.avif", tmp_path / "b.png") == 0
    found = chunks_of(tmp_path / "b.png")
    assert {cicp_chunk(*PQ), *levels} <= set(found)
    assert "left out" not in caplog.text
    pixels = read_picture(tmp_path / "b.png").pixels.astype(int)
    assert np.abs(centres(pixels) - COLOURS).max() <= 2


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_named_where_it_is_lost(tmp_path, caplog, suffix, transfer):
    source = png(tmp_path / "in.png", cicp_chunk(9, transfer))
    assert upscaled(source, tmp_path / f"out{suffix}") == 0
    name = {16: "PQ", 18: "HLG"}[transfer]
    printed = caplog.text
    assert f"left out the colour space (BT.2020, {name})" in printed
    assert printed.count("left out") == 1


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
def test_a_narrow_range_is_kept_or_named(tmp_path, caplog, suffix):
    narrow = (b"cICP", bytes((1, 13, 0, 0)))
    source = png(tmp_path / "in.png", narrow)
    target = tmp_path / f"out{suffix}"
    assert upscaled(source, target) == 0
    named = "left out the colour space (BT.709, sRGB, narrow range)" in caplog.text
    assert named is (suffix != ".png")
    if suffix == ".png":
        assert narrow in chunks_of(target)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif", ".tif", ".png"])
def test_gray_keeps_its_curve(tmp_path, suffix, caplog):
    ramp = np.array((30, 90, 128, 170, 220), np.uint8).repeat(16)
    pixels = ramp[np.newaxis, :, np.newaxis].repeat(16, 0)
    source = png(tmp_path / "in.png", *gamma_chunks(55556), pixels=pixels)
    # The second time the source has a profile for gray.
    assert upscaled(source, tmp_path / "profile.tif") == 0
    for given in (source, tmp_path / "profile.tif"):
        assert upscaled(given, tmp_path / f"out{suffix}") == 0
        if suffix == ".png" and given is source:
            continue
        with Image.open(tmp_path / f"out{suffix}") as image:
            found = centres(shown(image))[:, 0]
        wanted = srgb_encoded((np.array((30, 90, 128, 170, 220)) / 255) ** 1.8)
        assert np.abs(found - wanted).max() < 4, given
    assert "left out" not in caplog.text


def test_a_profile_outranks_gamma_and_is_outranked_by_code_points(tmp_path):
    from zlib import compress

    profile = profile_of(StatedColour(gamma=100_000), gray=False)
    stated = (b"iCCP", b"x\0\0" + compress(profile))
    for chunks, wanted in (
        ((stated, *gamma_chunks(45455)), srgb_encoded(STORED)),
        ((cicp_chunk(1, 13), stated), 255 * STORED),
    ):
        source = png(tmp_path / "in.png", *chunks)
        assert upscaled(source, tmp_path / "out.tif") == 0
        with Image.open(tmp_path / "out.tif") as image:
            assert np.abs(centres(shown(image)) - wanted).max() < 3
        assert upscaled(source, tmp_path / "out.png") == 0
        kinds = dict(chunks_of(tmp_path / "out.png"))
        assert {kind for kind, _ in chunks} <= set(kinds)


def test_bmp_states_colours_too(tmp_path, caplog):
    pixels = patches()
    Image.fromarray(pixels).save(tmp_path / "plain.bmp")
    data = (tmp_path / "plain.bmp").read_bytes()[54:]
    corners = (0.4124, 0.2126, 0.0193, 0.3576, 0.7152, 0.1192, 0.1805, 0.0722, 0.9505)
    head = struct.pack("<IiiHHIIiiII", 108, 80, 16, 1, 24, 0, len(data), 0, 0, 0, 0)
    head += bytes(16) + bytes(4)
    head += struct.pack("<9i", *(round(c * 2**30) for c in corners))
    head += struct.pack("<3I", *[round(1.8 * 65536)] * 3)
    start = struct.pack("<2sIHHI", b"BM", 14 + 108 + len(data), 0, 0, 14 + 108)
    (tmp_path / "in.bmp").write_bytes(start + head + data)
    assert upscaled(tmp_path / "in.bmp", tmp_path / "out.tif") == 0
    with Image.open(tmp_path / "out.tif") as image:
        assert np.abs(centres(shown(image)) - srgb_encoded(STORED**1.8)).max() < 3
    assert upscaled(tmp_path / "in.bmp", tmp_path / "out.png") == 0
    assert dict(chunks_of(tmp_path / "out.png"))[b"gAMA"] == struct.pack(">I", 55555)
    caplog.clear()
    assert upscaled(tmp_path / "in.bmp", tmp_path / "out.bmp") == 0
    assert "left out the colour space (gamma" in caplog.text


def test_tiff_states_colours_too(tmp_path):
    numbers = [IFDRational(round(10_000 * value), 10_000) for value in P3_CORNERS]
    table = [round(65535 * (i / 255) ** 2.2) for i in range(256)]
    Image.fromarray(patches()).save(
        tmp_path / "in.tif",
        tiffinfo={318: tuple(numbers[:2]), 319: tuple(numbers[2:]), 301: table * 3},
    )
    with Image.open(tmp_path / "in.tif") as image:
        assert 319 in image.tag_v2
    assert (
        upscaled(tmp_path / "in.tif", tmp_path / "out.webp", "--quality", "lossless")
        == 0
    )
    wanted = STATED["gamma and primaries"][1]
    with Image.open(tmp_path / "out.webp") as image:
        assert np.abs(centres(shown(image)) - wanted).max() < 3


def test_deep_avif_with_code_points(tmp_path, caplog):
    source = shared_case("pq_bt2020.avif")
    assert upscaled(source, tmp_path / "out.avif") == 0
    assert nclx_of(tmp_path / "out.avif")[:2] == PQ
    assert upscaled(source, tmp_path / "out.png") == 0
    assert cicp_chunk(*PQ) in chunks_of(tmp_path / "out.png")
    assert "left out" not in caplog.text
    before = read_picture(source).pixels.astype(float).repeat(2, 0).repeat(2, 1)
    after = read_picture(tmp_path / "out.png").pixels
    assert np.array_equal(before, after)
    close = read_picture(tmp_path / "out.avif").pixels
    assert np.abs(close - before).mean() / 65535 < 0.01


def test_the_files_of_the_shared_cases_keep_their_chunks(tmp_path):
    for name in ("gama1.png", "cicp.png"):
        source = shared_case(name)
        assert upscaled(source, tmp_path / name) == 0
        kinds = (b"gAMA", b"cICP", b"cHRM", b"sRGB")
        kept = [each for each in chunks_of(source) if each[0] in kinds]
        assert kept
        assert kept == [c for c in chunks_of(tmp_path / name) if c[0] in kinds]


def test_nclx_changes_no_pixel(tmp_path):
    # The matrix in it is the one that the encoder has used.
    for flags in ((), ("--quality", "lossless")):
        upscaled(png(tmp_path / "a.png"), tmp_path / "plain.avif", *flags)
        stated = png(tmp_path / "b.png", cicp_chunk(1, 13))
        upscaled(stated, tmp_path / "stated.avif", *flags)
        assert nclx_of(tmp_path / "stated.avif")[:2] == (1, 13)
        for name in ("plain", "stated"):
            with Image.open(tmp_path / f"{name}.avif") as image:
                found = centres(np.asarray(image.convert("RGB"), float))
            assert np.abs(found - COLOURS).max() <= 4


SHOWN = [(name, suffix) for name in STATED for suffix in (".png", ".jpg", ".avif")]


@pytest.fixture(scope="module")
def page():
    with chromium() as browser:
        yield browser.new_page(viewport={"width": 400, "height": 200})


def seen(page, path, width):
    """The pixels that Chromium shows of a picture."""
    kind = {".jpg": "jpeg"}.get(path.suffix, path.suffix[1:])
    data = base64.b64encode(path.read_bytes()).decode()
    style = f"display:block;width:{width}px;image-rendering:pixelated"
    page.set_content(
        f"<body style='margin:0'><img style='{style}' src='data:image/{kind};base64,"
        f"{data}'></body>"
    )
    page.wait_for_function("document.images[0].complete")
    assert page.evaluate("document.images[0].naturalWidth") > 0
    shot = page.locator("img").screenshot()
    image = pyvips.Image.new_from_buffer(shot, "")
    return image.numpy()[..., :3].astype(float)


@pytest.mark.parametrize(("name", "suffix"), [*SHOWN, ("PQ", ".png"), ("PQ", ".avif")])
def test_chromium_shows_source_and_result_alike(tmp_path, page, name, suffix):
    chunks = (cicp_chunk(*PQ),) if name == "PQ" else STATED[name][0]
    source = png(tmp_path / "in.png", *chunks)
    target = tmp_path / f"out{suffix}"
    assert upscaled(source, target) == 0
    assert without_hidden(tmp_path)
    before, after = (centres(seen(page, path, 160)) for path in (source, target))
    # Chromium applies gAMA for a display of gamma 2.2, and profiles by sRGB's curve.
    # It shows PQ in PNG and AVIF by two different ways.
    most = 12 if name == "PQ" else 6
    assert np.abs(before - after).max() <= most, (before, after)
