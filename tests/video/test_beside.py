"""What a clip carries beside its pictures: carried to the right value, or named."""

import re
import struct
from fractions import Fraction

import numpy as np
import pytest
from video_beside import (
    CAPTION,
    DISPLAY,
    LEVELS,
    T35,
    USER_DATA,
    add_extras,
    add_ordered_chapters,
    add_sei,
    add_timecode,
    beside,
    cropping,
    display_of,
    dolby_vision,
    facts,
    first_frame,
    h264,
    hdr10_plus,
    sphere,
    stereo,
)
from video_helpers import (
    HEIGHT,
    LOSSLESS,
    WIDTH,
    FrameRepeat,
    av,
    decoded,
    make_clip,
    planes_of,
)

from aethernet.video.describe import moved_timecode
from aethernet.video.ebml import Element, elements, find, joined
from aethernet.video.libav import entries
from aethernet.video.upscale import VideoOptions, upscale_video
from aethernet.video.yuv import Colour, from_rgb, to_rgb

TRACK = (0x18538067, 0x1654AE6B, 0xAE)


def upscaled(clip, name, codec=None, **options):
    target = clip.with_name(name)
    upscale_video(clip, target, FrameRepeat(), VideoOptions(codec, **options))
    return target


class TestLight:
    OUTPUTS = (
        ("out.mkv", "libx265"),
        ("out.mp4", "libx264"),
        ("out.webm", "libsvtav1"),
        ("out.mov", "prores_ks"),
    )

    @pytest.mark.parametrize(("name", "codec"), OUTPUTS)
    def test_levels_come_out_to_the_same_values(self, tmp_path, name, codec):
        # They are inside the coded pictures only, as on discs.
        shown = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
        parameters = f"log-level=none:bframes=0:master-display={shown}:max-cll=1000,400"
        clip = make_clip(
            tmp_path / "in.mkv",
            2,
            codec="libx265",
            kind="yuv420p10le",
            size=(64, HEIGHT),
            colour=(9, 1, 9, 16),
            options={"x265-params": parameters},
        )
        target = upscaled(clip, name, codec)
        assert display_of(target) == pytest.approx(DISPLAY, abs=3e-5)
        levels = beside(target)["CONTENT_LIGHT_LEVEL"]
        assert struct.unpack_from("=2I", levels) == LEVELS
        # ffprobe and players read the container, televisions the coded pictures.
        with av.open(str(target)) as container:
            (stream,) = container.streams
            packet = next(container.demux(stream))
            inside = av.CodecContext.create(stream.codec_context.name, "r")
            inside.extradata = stream.codec_context.extradata
            frame = [*inside.decode(packet), *inside.decode(None)][0]
        kinds = {entry.type.name for entry in entries(frame.side_data)}
        assert ("CONTENT_LIGHT_LEVEL" in kinds) == (codec != "prores_ks")


class TestLayout:
    def test_a_sphere_in_mp4_comes_out_of_any_container(self, tmp_path, caplog):
        clip = add_extras(h264(tmp_path / "in.mkv"), sphere(), stereo(3))
        in_mp4 = upscaled(clip, "in.mp4")
        for name in ("out.mkv", "out.mp4", "out.webm"):
            found = beside(upscaled(in_mp4, name))
            kind, swapped = struct.unpack_from("=2i", found["STEREO3D"])
            assert (kind, swapped) == (2, 0)  # top and bottom
            assert struct.unpack_from("=i", found["SPHERICAL"]) == (0,)
        assert caplog.text == ""
        assert b"st3d" in in_mp4.read_bytes()
        assert b"sv3d" in in_mp4.read_bytes()

    @pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
    def test_a_mesh_for_a_sphere_is_named(self, tmp_path, suffix, caplog):
        clip = add_extras(h264(tmp_path / "in.mkv"), sphere(3, b"\0\0\0\0mesh"))
        if suffix == ".mp4":
            clip = upscaled(add_extras(clip, sphere()), "in.mp4")
            assert caplog.text == ""
            clip.write_bytes(clip.read_bytes().replace(b"equi", b"mshp"))
        assert "SPHERICAL" not in beside(clip)
        upscaled(clip, "out" + suffix)
        assert "left out the spherical projection, with" in caplog.text

    @pytest.mark.parametrize("ordered", [0, 1])
    def test_ordered_chapters_are_named(self, tmp_path, ordered, caplog):
        clip = add_ordered_chapters(h264(tmp_path / "in.mkv"), ordered)
        upscaled(clip, "out.mkv")
        named = "left out the order in which chapters play, with" in caplog.text
        assert named == bool(caplog.text) == bool(ordered)

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            (b"cclv", "the content colour volume"),
            (b"hfov", "the field of view"),
            (b"abcd", "the box abcd"),
            (b"free", ""),
        ],
    )
    def test_boxes_beside_the_pictures_of_mp4(self, tmp_path, kind, name, caplog):
        clip = h264(tmp_path / "in.mp4")
        content = clip.read_bytes()
        place = content.index(b"\0\0\0\x14btrt")
        made = struct.pack(">I4sII4s", 12, kind, 63_000, 8, b"free")
        clip.write_bytes(content[:place] + made + content[place + 20 :])
        upscaled(clip, "out.mp4")
        assert (f"left out {name}, with" in caplog.text) == bool(name)
        assert bool(caplog.text) == bool(name)

    @pytest.mark.parametrize(
        ("box", "name"),
        [
            (b"uuid" + bytes.fromhex("be7acfcb97a942e89c71999491e3afac"), "XMP"),
            (b"uuid" + bytes(16), "the box uuid"),
            (b"abcd" + bytes(16), "the box abcd"),
            (b"free" + bytes(16), ""),
        ],
    )
    def test_boxes_of_mp4_beside_its_streams(self, tmp_path, box, name, caplog):
        clip = h264(tmp_path / "in.mp4")
        clip.write_bytes(clip.read_bytes() + struct.pack(">I", 24) + box)
        upscaled(clip, "out.mkv")
        assert (f"left out {name}, with" in caplog.text) == bool(name)
        assert bool(caplog.text) == bool(name)

    def test_stereo_inside_the_pictures_comes_out(self, tmp_path):
        clip = h264(tmp_path / "in.mkv", options={"x264-params": "frame-packing=3"})
        found = beside(upscaled(clip, "out.mkv"))
        assert struct.unpack_from("=i", found["STEREO3D"]) == (1,)  # side by side

    def test_each_stereo_layout_is_carried_or_named(self, tmp_path, caplog):
        plain = h264(tmp_path / "plain.mkv", 1).read_bytes()
        for mode in (1, 2, 3, 5, 7, 9, 10, 11, 12, 13):
            clip = tmp_path / f"{mode}.mkv"
            clip.write_bytes(plain)
            add_extras(clip, stereo(mode))
            for suffix in (".mkv", ".mp4"):
                caplog.clear()
                target = upscaled(clip, f"{mode}_2x{suffix}")
                named = "left out the stereo 3D layout" in caplog.text
                before, after = (
                    each.get("STEREO3D", b"")[:8]
                    for each in map(beside, (clip, target))
                )
                assert named == (not before or before != after), (mode, suffix)

    def test_the_cropping_and_the_padding_grow(self, tmp_path):
        cube = sphere(2, struct.pack(">3I", 0, 0, 4))
        clip = add_extras(h264(tmp_path / "in.mkv"), cropping(2, 4, 6, 8), cube)
        target = upscaled(clip, "out.mkv")
        video = find(target.read_bytes(), *TRACK, 0xE0)
        sides = {each.number: each.content for each in elements(video)}
        found = [sides[number][0] for number in (0x54AA, 0x54BB, 0x54CC, 0x54DD)]
        assert found == [4, 8, 12, 16]
        private = find(video, 0x7670, 0x7672)
        assert struct.unpack(">3I", private) == (0, 0, 8)

    def test_mirroring_is_named_where_only_turning_is_held(self, tmp_path, caplog):
        def mirrored(container, stream):
            stream.set_display_rotation(90, hflip=True)

        clip = h264(tmp_path / "in.mp4", set_up=mirrored)
        assert beside(upscaled(clip, "out.mov"))["DISPLAYMATRIX"]
        assert caplog.text == ""
        upscaled(clip, "out.mkv")
        assert "left out the mirroring of the picture" in caplog.text


class TestCaptions:
    @pytest.mark.parametrize("codec", ["libx264", "libx265"])
    def test_they_stay_with_their_frames(self, tmp_path, codec, caplog):
        clip = add_sei(h264(tmp_path / "in.mkv", 5), (T35, CAPTION), frames=range(2, 5))
        target = upscaled(clip, "out.mp4", codec)
        before, after = (
            [(time, "A53_CC" in str(side_data(frame))) for time, frame in decoded(path)]
            for path in (clip, target)
        )
        assert before == after
        assert sum(has for _, has in after) == 3
        found = [side_data(frame).get("A53_CC") for _, frame in decoded(target)]
        assert found == [side_data(frame).get("A53_CC") for _, frame in decoded(clip)]
        pixels, expected = (
            planes_of(decoded(path)[-1][1])[0].astype(int) for path in (target, clip)
        )
        assert np.abs(pixels[::2, ::2] - expected).mean() < 4
        assert caplog.text == ""

    def test_late_ones_are_named_when_they_come(self, tmp_path, caplog):
        clip = add_sei(h264(tmp_path / "in.mkv", 5), (T35, CAPTION), frames=(3, 4))
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        assert caplog.text.count("left out closed captions, from 0.") == 1


def side_data(frame):
    return {entry.type.name: bytes(entry) for entry in entries(frame.side_data)}


class TestNamed:
    def warned(self, clip, caplog):
        upscale_video(clip, clip.with_name("out.mkv"), FrameRepeat())
        (record,) = caplog.records
        return record.getMessage()

    def test_what_cannot_be_carried_is_named_in_one_warning(self, tmp_path, caplog):
        clip = make_clip(
            tmp_path / "in.mkv",
            2,
            codec="libx265",
            size=(64, HEIGHT),
            options={"x265-params": "log-level=none:bframes=0"},
        )
        user_data = bytes(range(16)) + b"a drone's telemetry"
        add_sei(clip, (T35, hdr10_plus()), (USER_DATA, user_data))
        content = clip.read_bytes()
        add_extras(clip, stereo(10))
        assert content != clip.read_bytes()
        message = self.warned(clip, caplog)
        for name in ("HDR10+", "user data inside the picture", "stereo 3D"):
            assert name in message

    def test_user_data_is_found_among_that_of_the_encoder(self, tmp_path, caplog):
        user_data = (USER_DATA, bytes(range(16)) + b"telemetry")
        clip = add_sei(h264(tmp_path / "in.mkv", 2), user_data)
        kinds = [entry.type.name for entry in entries(first_frame(clip).side_data)]
        assert kinds.count("SEI_UNREGISTERED") == 2
        assert "user data inside the picture" in self.warned(clip, caplog)

    @pytest.mark.parametrize("compatible", [1, 0])
    def test_dolby_vision(self, tmp_path, caplog, compatible):
        clip = h264(tmp_path / "in.mkv", 2)
        head, segment = elements(add_extras(clip).read_bytes())
        parts = []
        for part in elements(segment.content):
            if part.number == 0x1654AE6B:
                track = find(part.content, 0xAE) + dolby_vision(compatible)
                parts.append(Element(part.number, bytes(Element(0xAE, track))))
            else:
                parts.append(part)
        clip.write_bytes(joined([head, Element(segment.number, joined(parts))]))
        upscaled(clip, "out.mp4")
        assert "left out Dolby Vision metadata" in caplog.text
        assert ("green and purple" in caplog.text) == (not compatible)

    def test_side_data_without_a_name_in_pyav_hides_nothing(self, tmp_path, caplog):
        # EXIF in the frames of a camera: PyAV 18 then reads no side data at all.
        from PIL import Image

        exif = Image.Exif()
        exif[0x010F], exif[0x0112] = "Maker", 6
        picture = tmp_path / "frame.jpg"
        Image.new("RGB", (WIDTH, HEIGHT), "red").save(picture, exif=exif)
        clip = tmp_path / "in.mov"
        with av.open(str(clip), "w") as container:
            stream = container.add_stream("mjpeg", rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            packet = av.Packet(picture.read_bytes())
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts, packet.dts, packet.duration = 0, 0, 1
            container.mux(packet)
        target = upscaled(clip, "out.mp4")
        assert "left out EXIF, with libx264 in .mp4" in caplog.text
        assert abs(first_frame(target).rotation) == 90

    @pytest.mark.parametrize("flag", [1, 2])
    def test_interlaced_frames_that_only_the_container_names(
        self, tmp_path, flag, caplog
    ):
        clip = make_clip(tmp_path / "in.mkv", 2, codec="jpeg2000")
        head, segment = elements(clip.read_bytes())
        parts = []
        for part in elements(segment.content):
            content = part.content
            if part.number == 0x1654AE6B:
                track = find(content, 0xAE)
                video = find(track, 0xE0) + b"\x9a\x81" + bytes([flag]) + b"\x9d\x81\1"
                rest = [e for e in elements(track) if e.number != 0xE0]
                content = bytes(Element(0xAE, joined([*rest, Element(0xE0, video)])))
            parts.append(Element(part.number, content))
        clip.write_bytes(joined([head, Element(segment.number, joined(parts))]))
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        assert ("is interlaced" in caplog.text) == (flag == 1)

    def test_interlaced_frames_after_a_progressive_start(self, tmp_path, caplog):
        parts = [
            h264(tmp_path / "one.ts", 3, time_base=Fraction(1, 90000)),
            h264(
                tmp_path / "two.ts",
                times=[3600 * n for n in range(3, 6)],
                time_base=Fraction(1, 90000),
                options={"x264-params": "tff=1", "flags": "+ildct+ilme"},
            ),
        ]
        clip = tmp_path / "in.ts"
        clip.write_bytes(b"".join(each.read_bytes() for each in parts))
        kinds = [frame.interlaced_frame for _, frame in decoded(clip)]
        assert kinds == [False] * 3 + [True] * 3
        upscale_video(clip, tmp_path / "out.mkv", FrameRepeat(), LOSSLESS)
        assert caplog.text.count("is interlaced") == 1
        assert re.search(r"in\.ts: from 0\.\d\d s on, the clip", caplog.text)


class TestChanges:
    """What a target says once is what the first frame said."""

    def joined(self, folder, *clips):
        """Broadcasts that follow each other, of three frames each."""
        content = b""
        for n, options in enumerate(clips):
            part = h264(
                folder / f"{n}.ts",
                times=[3600 * (3 * n + i) for i in range(3)],
                time_base=Fraction(1, 90000),
                size=(64, 32),
                **options,
            )
            content += part.read_bytes()
        (folder / "in.ts").write_bytes(content)
        return folder / "in.ts"

    def messages(self, clip, caplog, **options):
        caplog.clear()
        options = VideoOptions("libx264", overwrite=True, **options)
        upscale_video(clip, clip.with_name("out.mkv"), FrameRepeat(), options)
        return [
            record.getMessage().partition("in.ts: ")[2] for record in caplog.records
        ]

    def test_other_colours_are_named_once_when_they_come(self, tmp_path, caplog):
        sdr, hdr = ({"colour": each} for each in ((1, 1, 1, 1), (9, 1, 9, 18)))
        clip = self.joined(tmp_path, sdr, hdr, sdr, hdr)
        (message,) = self.messages(clip, caplog)
        assert re.fullmatch(
            r"from 0\.\d\d s on, the clip has other colours; the target does not",
            message,
        )

    def test_a_part_that_begins_behind_the_change(self, tmp_path, caplog):
        clip = self.joined(tmp_path, *({"colour": (n, 1, n, n)} for n in (1, 6)))
        (message,) = self.messages(clip, caplog, start=0.12)
        assert "has other colours" in message

    def test_other_formats_and_light_levels(self, tmp_path, caplog):
        deep = {
            "kind": "yuv420p10le",
            "codec": "libx265",
            "options": {"x265-params": "log-level=none:bframes=0:max-cll=1000,400"},
        }
        plain = {**deep, "kind": "yuv420p"}
        plain["options"] = {"x265-params": "log-level=none:bframes=0"}
        clip = self.joined(tmp_path, plain, deep)
        (message,) = self.messages(clip, caplog)
        assert "other light levels and pixel formats" in message

    def test_another_aspect(self, tmp_path, caplog):
        def aspect(above):
            def set_up(container, stream):
                stream.codec_context.sample_aspect_ratio = Fraction(above, 11)

            return {"set_up": set_up}

        (message,) = self.messages(
            self.joined(tmp_path, aspect(12), aspect(16)), caplog
        )
        assert "pixels have another aspect" in message
        assert (
            self.messages(self.joined(tmp_path, aspect(12), aspect(12)), caplog) == []
        )


class TestSiting:
    @pytest.mark.parametrize("siting", ["topleft", "left"])
    def test_chroma_is_read_where_the_file_says(self, tmp_path, siting):
        rows = {"topleft": 0.0, "left": 0.5}[siting]

        def slope(n, planes):
            at = 2 * np.arange(planes[1].shape[0]) + rows
            planes[0][...], planes[2][...] = 120, 128
            planes[1][...] = np.rint(100 + 2 * at)[:, None]

        clip = h264(
            tmp_path / "in.mkv",
            1,
            draw=slope,
            colour=(1, 2, 1, 1),
            options={"qp": "0", "chroma_sample_location": siting},
        )
        model = FrameRepeat()
        upscale_video(clip, tmp_path / "out.mkv", model, LOSSLESS)
        blue = model.frames[0][0, 2, 6:-6, 8] - 120 / 255
        expected = (2 * np.arange(6, HEIGHT - 6) - 28) / 255 * 1.8556
        assert np.abs(blue - expected).max() < 0.6 * 1.8556 / 255

    @pytest.mark.parametrize(
        ("name", "codec"),
        [
            ("out.mkv", "libx264"),
            ("out.mp4", "libx265"),
            ("out.webm", "libsvtav1"),
            ("out.mkv", "ffv1"),
            ("out.webm", "libvpx-vp9"),
        ],
    )
    def test_top_left_is_kept_and_tagged(self, tmp_path, name, codec):
        clip = h264(
            tmp_path / "in.mkv", 1, options={"chroma_sample_location": "topleft"}
        )
        model = FrameRepeat()
        target = tmp_path / name
        upscale_video(clip, target, model, VideoOptions(codec))
        assert facts(target).siting == "topleft"
        if codec == "ffv1":
            ((_, frame),) = decoded(target)
            colour = Colour(frame.colorspace, 1, 2, 2)
            wanted = from_rgb(
                model.run(model.frames[0])[0], 8, colour, (2, 2), "topleft"
            )
            for plane, expected in zip(planes_of(frame), wanted, strict=True):
                assert np.array_equal(plane, expected)
            back = to_rgb(planes_of(frame), 8, colour, "topleft")
            assert np.abs(back[:, ::2, ::2] - model.frames[0][0]).mean() < 0.02


class TestTimecode:
    def test_it_is_kept_and_not_reported(self, tmp_path, caplog):
        clip = h264(tmp_path / "in.mov", 25, set_up=add_timecode)
        for name in ("out.mov", "out.mp4", "out.mkv"):
            with av.open(str(upscaled(clip, name))) as container:
                found = container.streams.video[0].metadata
                assert "01:00:00:00" in (found.get("timecode"), found.get("TIMECODE"))
        assert caplog.text == ""
        with av.open(str(upscaled(clip, "cut.mov", start=0.2))) as container:
            assert container.streams.video[0].metadata["timecode"] == "01:00:00:05"

    @pytest.mark.parametrize(
        ("before", "frames", "rate", "after"),
        [
            ("01:00:00:00", 0, 25, "01:00:00:00"),
            ("00:00:59:24", 1, 25, "00:01:00:00"),
            ("00:00:59;29", 1, Fraction(30000, 1001), "00:01:00;02"),
            ("00:09:59;29", 1, Fraction(30000, 1001), "00:10:00;00"),
            ("00:00:00;00", 17982, Fraction(30000, 1001), "00:10:00;00"),
            ("00:00:59;59", 1, Fraction(60000, 1001), "00:01:00;04"),
            ("23:59:59:24", 2, 25, "00:00:00:01"),
            ("no timecode", 5, 25, None),
        ],
    )
    def test_it_moves_with_a_cut(self, before, frames, rate, after):
        assert moved_timecode(before, frames, Fraction(rate)) == after


class TestPalettes:
    def test_colours_of_a_palette_are_not_taken_for_another_matrix(self, tmp_path):
        clip = tmp_path / "in.nut"
        with av.open(str(clip), "w") as container:
            stream = container.add_stream("png", rate=25)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "pal8"
            frame = av.VideoFrame(16, 16, "pal8")
            frame.planes[0].update(bytes(frame.planes[0].buffer_size))
            colours = np.full(256, 0xFF3264C8, np.uint32)
            frame.planes[1].update(colours.tobytes())
            container.mux([*stream.encode(frame), *stream.encode(None)])
        model = FrameRepeat()
        upscale_video(clip, tmp_path / "out.mkv", model, LOSSLESS)
        found = model.frames[0][0, :, 8, 8] * 255
        assert found == pytest.approx([0x32, 0x64, 0xC8])
