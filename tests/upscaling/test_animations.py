"""Animations stay animations: frames, times, the number of plays, transparency."""

import io
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
from helpers import Repeat, without_hidden
from picture_files import exif_block, srgb_profile, turned_animation, upscaled
from PIL import ExifTags, Image

from aethernet.errors import AnimatedError, ImageError
from aethernet.pictures.animation import AnimationReader, is_animated
from aethernet.pictures.timing import Timing
from aethernet.upscaling.files import Options, Size, upscale_file

DELAYS = (100, 50, 200, 70)
WIDTH, HEIGHT = 32, 24


def drawn(n, transparent=True):
    """A square that moves over a plain colour; the lower right is transparent."""
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[...] = (40 * n, 20, 200, 255)
    pixels[4:8, 4 + 4 * n : 8 + 4 * n] = (250, 250, 0, 255)
    if transparent:
        pixels[16:, 16:] = 0
    return pixels


def animation(path, count=4, loop=3, delays=DELAYS, transparent=True, **options):
    frames = [Image.fromarray(drawn(n, transparent)) for n in range(count)]
    if not transparent:
        frames = [frame.convert("RGB") for frame in frames]
    if path.suffix == ".webp":
        options["lossless"] = True
    if path.suffix == ".gif" and transparent:
        options["disposal"] = 2
    if loop is not None:
        options["loop"] = loop
    duration = list(delays[:count])
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=duration, **options
    )
    return path


def read(path):
    """By Pillow: times in milliseconds, the loop as stored, frames as RGBA."""
    with Image.open(path) as image:
        loop, times, frames = image.info.get("loop"), [], []
        for n in range(image.n_frames):
            image.seek(n)
            frames.append(np.asarray(image.convert("RGBA")).astype(int))
            times.append(image.info["duration"])
    return times, loop, frames


@pytest.mark.parametrize("after", [".gif", ".webp", ".png", ".apng"])
@pytest.mark.parametrize("before", [".gif", ".webp", ".png"])
def test_times_plays_and_frames_are_those_of_the_source(tmp_path, before, after):
    source = animation(tmp_path / f"in{before}")
    target = tmp_path / f"out{after}"
    upscale_file(source, target, Repeat())
    times, loop, frames = read(target)
    assert times == pytest.approx(DELAYS)
    # GIF stores how often it is repeated, the others how often it is played.
    plays = 3 + (before == ".gif")
    assert loop == plays - (after == ".gif")
    for n, frame in enumerate(frames):
        expected = drawn(n).repeat(2, 0).repeat(2, 1).astype(int)
        assert np.array_equal(frame[..., 3], expected[..., 3])
        seen = expected[..., 3] > 0
        difference = np.abs(frame - expected)[seen]
        assert difference.mean() < (4 if after == ".webp" else 1), (n, after)


@pytest.mark.parametrize(("loop", "plays"), [(None, 1), (0, 0), (1, 2), (7, 8)])
def test_a_gif_that_is_played_once_or_for_ever(tmp_path, loop, plays):
    source = animation(tmp_path / "in.gif", 2, loop)
    for suffix in (".gif", ".webp"):
        target = tmp_path / f"out{suffix}"
        upscale_file(source, target, Repeat())
        assert AnimationReader(target).timing.plays == plays
    assert read(tmp_path / "out.gif")[1] == loop


def test_times_that_are_no_whole_steps_do_not_drift(tmp_path):
    source = animation(tmp_path / "in.png", 3, delays=[1000 / 30] * 3)
    assert AnimationReader(source).timing.seconds == (Fraction(1, 30),) * 3
    found = {}
    for suffix in (".png", ".webp", ".gif"):
        target = tmp_path / f"out{suffix}"
        upscale_file(source, target, Repeat())
        found[suffix] = AnimationReader(target).timing.seconds
    assert found[".png"] == (Fraction(1, 30),) * 3
    assert sum(found[".webp"]) == Fraction(1, 10)
    assert sum(found[".gif"]) == Fraction(1, 10)
    odd = Timing((Fraction(1, 70_000), Fraction(100_000), Fraction(1, 3)), 0)
    assert odd.milliseconds() == [0, 100_000_000, 333]


def test_the_command_keeps_an_animation_alive(tmp_path, capsys):
    source = animation(tmp_path / "in.gif", 2)
    target = tmp_path / "out.gif"
    assert upscaled(source, target) == 0
    assert read(target)[0] == [100, 50]
    assert upscaled(source, tmp_path / "out.jpg") == 1
    error = capsys.readouterr().err
    assert "is animated (2 frames). Name an output .webp, .png or .gif" in error
    assert not (tmp_path / "out.jpg").exists()


@pytest.mark.parametrize("transparent", [True, False])
def test_an_avif_is_read(tmp_path, transparent, capsys):
    source = animation(
        *(tmp_path / "in.avif", 4, None, DELAYS, transparent), quality=100
    )
    for suffix in (".webp", ".png"):
        target = tmp_path / f"out{suffix}"
        upscale_file(source, target, Repeat())
        times, loop, frames = read(target)
        assert times == pytest.approx(DELAYS)
        assert loop == 0  # nothing in the file limits it
        for n, frame in enumerate(frames):
            expected = drawn(n, transparent).repeat(2, 0).repeat(2, 1).astype(int)
            assert np.abs(frame[..., 3] - expected[..., 3]).max() < 20
            seen = expected[..., 3] > 0
            assert np.abs(frame - expected)[seen].mean() < 4, (n, suffix)
    assert upscaled(source, tmp_path / "out.avif") == 1
    assert "animated. Name an output .webp" in capsys.readouterr().err


def test_how_often_an_avif_is_played(tmp_path):
    """Its edit list tells; Pillow writes one of each kind of box."""
    source = animation(tmp_path / "in.avif", 3)
    content = source.read_bytes()
    edits, track = content.index(b"elst"), content.index(b"tkhd")
    assert content[edits + 7] == 1  # repeated
    wide = content[track + 4] == 1
    place, size = (track + 32, 8) if wide else (track + 24, 4)
    one = int.from_bytes(content[edits + 12 : edits + 12 + size], "big")
    for flag, whole, plays in ((1, 3 * one, 3), (0, one, 1), (1, 256**size - 1, 0)):
        changed = bytearray(content)
        changed[edits + 7] = flag
        changed[place : place + size] = whole.to_bytes(size, "big")
        source.write_bytes(changed)
        assert AnimationReader(source).timing.plays == plays


@pytest.mark.parametrize("box", [b"mdhd", b"stts", b"hdlr", b"trak", b"stbl"])
def test_an_avif_without_times_is_one_error(tmp_path, capsys, box):
    source = animation(tmp_path / "in.avif", 2)
    content = source.read_bytes()
    start = content.index(b"moov")
    source.write_bytes(content[:start] + content[start:].replace(box, b"free"))
    assert upscaled(source, tmp_path / "out.webp") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.webp").exists()


def test_other_sizes_are_resampled_frame_by_frame(tmp_path):
    source = animation(tmp_path / "in.webp", 2)
    target = tmp_path / "out.png"
    upscale_file(source, target, Repeat(), Options(size=Size(width=50)))
    frames = read(target)[2]
    assert [frame.shape for frame in frames] == [(38, 50, 4)] * 2
    assert np.abs(frames[0][0, :, :3] - (0, 20, 200)).max() <= 2
    assert np.abs(frames[1][0, :, :3] - (40, 20, 200)).max() <= 2


def test_a_frame_that_equals_the_one_before_is_upscaled_once(tmp_path):
    still = Image.fromarray(drawn(0, transparent=False)).convert("RGB")
    other = Image.fromarray(drawn(1, transparent=False)).convert("RGB")
    frames = [still, still.copy(), other]
    source = tmp_path / "in.webp"
    # Not merged into one, as their pixels differ by less than is shown.
    frames[1].putpixel((0, 0), (1, 20, 200))
    still.save(source, save_all=True, append_images=frames[1:], lossless=True)
    model = Repeat()
    upscale_file(source, tmp_path / "out.png", model)
    assert len(model.seen) == 3
    assert len(read(tmp_path / "out.png")[2]) == 3


def test_what_is_beside_the_frames_is_carried_or_named(tmp_path, caplog):
    source = animation(tmp_path / "in.gif", 2, comment=b"by hand")
    upscale_file(source, tmp_path / "again.gif", Repeat())
    assert caplog.text == ""
    with Image.open(tmp_path / "again.gif") as image:
        assert image.info["comment"] == b"by hand"
    upscale_file(source, tmp_path / "out.webp", Repeat())
    assert caplog.text == ""
    with Image.open(tmp_path / "out.webp") as image:
        comment = image.getexif().get_ifd(0x8769)[37510]
        assert comment == b"UNICODE\0" + "by hand".encode("utf-16-be")
    profiled = animation(
        tmp_path / "in.webp", 2, icc_profile=srgb_profile(), xmp=b"<x/>"
    )
    upscale_file(profiled, tmp_path / "again.webp", Repeat())
    assert caplog.text == ""
    with Image.open(tmp_path / "again.webp") as image:
        assert (image.n_frames, image.info["xmp"]) == (2, b"<x/>")
        assert image.info["icc_profile"] == srgb_profile()
    upscale_file(profiled, tmp_path / "out.gif", Repeat())
    assert "left out" not in caplog.text
    assert "a GIF has 256 colours" in caplog.text
    carried = AnimationReader(tmp_path / "out.gif").header.metadata
    assert (carried.xmp, carried.profile) == (b"<x/>", srgb_profile())
    assert len(read(tmp_path / "out.gif")[2]) == 2


class TestOrientation:
    @pytest.mark.parametrize("turn", range(1, 9))
    @pytest.mark.parametrize("before", [".webp", ".png", ".avif"])
    def test_every_frame_is_turned(self, tmp_path, before, turn):
        frames = [Image.fromarray(drawn(n)).convert("RGB") for n in range(4)]
        source = tmp_path / f"in{before}"
        upright = turned_animation(source, turn, frames, duration=list(DELAYS))
        for after in (".png", ".webp", ".gif"):
            target = tmp_path / f"out{after}"
            assert upscaled(source, target) == 0
            times, _, found = read(target)
            assert times == pytest.approx(DELAYS)
            for frame, small in zip(found, upright, strict=True):
                expected = small.repeat(2, 0).repeat(2, 1)
                assert frame.shape[:2] == expected.shape[:2]
                difference = np.abs(frame[..., :3] - expected)
                lossy = before == ".avif" or after == ".webp"
                assert difference.mean() < (4 if lossy else 1), after
            with Image.open(target) as image:
                exif = image.getexif()
            assert exif.get(0x0112, 1) == 1
            carried = before != ".avif" and after != ".gif"
            assert exif.get(0x010F) == ("Camera maker" if carried else None)

    def test_one_that_does_not_exist_turns_nothing(self, tmp_path):
        frames = [Image.fromarray(drawn(n)).convert("RGB") for n in range(2)]
        for turn in (0, 9):
            for suffix in (".webp", ".png"):
                source = tmp_path / f"{turn}{suffix}"
                turned_animation(source, turn, frames, duration=100)
                target = tmp_path / f"out{turn}{suffix}"
                assert upscaled(source, target) == 0
                found = read(target)[2]
                expected = np.asarray(frames[0]).repeat(2, 0).repeat(2, 1).astype(int)
                assert np.abs(found[0][..., :3] - expected).mean() < 4

    def test_that_of_xmp_alone_turns_nothing(self, tmp_path):
        packet = b'<x tiff:Orientation="6"/>'
        source = animation(tmp_path / "in.webp", 2, xmp=packet)
        target = tmp_path / "out.webp"
        assert upscaled(source, target) == 0
        with Image.open(target) as image:
            assert image.size == (2 * WIDTH, 2 * HEIGHT)
            assert image.info["xmp"] == packet.replace(b"6", b"1")

    def test_the_thumbnail_shows_the_first_frame_upright(self, tmp_path):
        jpeg = io.BytesIO()
        Image.new("RGB", (16, 12)).save(jpeg, "JPEG")
        block = exif_block(6, thumbnail=jpeg.getvalue())
        source = animation(tmp_path / "in.webp", 3, transparent=False, exif=block)
        target = tmp_path / "out.webp"
        assert upscaled(source, target) == 0
        with Image.open(target) as image:
            made = image.getexif()
            thumbnail = made.get_ifd(ExifTags.IFD.IFD1)
            start, size = thumbnail[513], thumbnail[514]
            content = image.info["exif"].removeprefix(b"Exif\0\0")
        assert made[0x0112] == 1
        with Image.open(io.BytesIO(content[start : start + size])) as small:
            assert small.size == (2 * HEIGHT, 2 * WIDTH)


def chunk(kind, data):
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


def test_the_picture_of_an_apng_that_is_no_frame_is_named(tmp_path, caplog):
    source = animation(tmp_path / "in.png", 3, default_image=True, delays=(50, 70))
    assert len(AnimationReader(source).timing.seconds) == 2
    target = tmp_path / "out.png"
    upscale_file(source, target, Repeat())
    assert "left out the picture for programs that show no animation" in caplog.text
    frames = read(target)[2]
    assert [frame[0, 0, 0] for frame in frames] == [40, 80]


class TestRefused:
    def test_still_pictures_as_gif_and_the_other_way_round(self, tmp_path):
        still = tmp_path / "still.png"
        Image.fromarray(drawn(0)).save(still)
        assert not is_animated(still)
        with pytest.raises(ImageError, match="is for animations only"):
            upscale_file(still, tmp_path / "out.gif", Repeat())
        for suffix in (".jpg", ".tif", ".avif", ".bmp"):
            source = animation(tmp_path / "in.webp", 2)
            with pytest.raises(AnimatedError, match=r"or that of a video"):
                upscale_file(source, tmp_path / f"out{suffix}", Repeat())
        assert without_hidden(tmp_path) == ["in.webp", "still.png"]

    def test_more_pixels_than_the_limit(self, tmp_path):
        source = animation(tmp_path / "in.gif", 4, transparent=False)
        limit = WIDTH * HEIGHT / 1e6
        AnimationReader(source, limit)
        with pytest.raises(ImageError, match="the limit is"):
            AnimationReader(source, limit / 6)

    def test_frames_too_large_for_memory(self, tmp_path):
        frames = [Image.new("L", (5000, 4000), value) for value in (0, 255)]
        source = tmp_path / "in.gif"
        frames[0].save(source, save_all=True, append_images=frames[1:])
        with pytest.raises(ImageError, match="5000x4000 pixels; those of an animation"):
            upscale_file(source, tmp_path / "out.gif", Repeat())

    def test_damaged_ones_leave_nothing(self, tmp_path):
        for suffix in (".gif", ".webp", ".png", ".avif"):
            source = animation(tmp_path / f"in{suffix}")
            content = source.read_bytes()
            for share in (0.5, 0.67, 0.8, 0.95):
                source.write_bytes(content[: int(len(content) * share)])
                with pytest.raises(ImageError, match=r"damaged|no picture"):
                    upscale_file(source, tmp_path / "out.webp", Repeat())
        assert len(without_hidden(tmp_path)) == 4
