"""Frames through pipes: y4m and raw RGB."""

import io
import os
import threading

import numpy as np
import pytest
from helpers import Repeat
from video_helpers import HEIGHT, WIDTH, Y4M, as_rgb, av, y4m

from aethernet.errors import AetherError
from aethernet.video.upscale import upscale_stream
from aethernet.video.y4m import RawFormat


class TestPipes:
    @pytest.mark.parametrize("layout", Y4M)
    def test_y4m_in_and_out(self, layout):
        source, frames = y4m(layout)
        target = io.BytesIO()
        assert upscale_stream(source, target, Repeat()) == 3
        line, _, rest = target.getvalue().partition(b"\n")
        assert (
            line
            == (
                f"YUV4MPEG2 W{2 * WIDTH} H{2 * HEIGHT} F30000:1001 Ip A1:1 C{layout}"
            ).encode()
        )
        deep = frames[0][0].itemsize == 2
        for planes in frames:
            assert rest.startswith(b"FRAME\n")
            rest = rest[6:]
            for plane in planes:
                count = 4 * plane.size
                values = np.frombuffer(rest, plane.dtype, count).astype(int)
                rest = rest[count * plane.itemsize :]
                after = values.reshape(2 * plane.shape[0], -1)[::2, ::2]
                if plane is planes[0]:
                    unit = 256 if deep and "16" in layout else 16 if deep else 1
                    assert np.abs(after - plane).max() <= 2 * unit
        assert rest == b""

    @pytest.mark.parametrize("order", ["p", "t", "b", "m", "?"])
    def test_interlaced_streams_are_reported(self, order, caplog):
        source, _ = y4m("444", 1, extra=f"F25:1 I{order} A1:1")
        upscale_stream(source, io.BytesIO(), Repeat())
        assert ("the stream is interlaced" in caplog.text) == (order in "tbm")

    def test_libav_reads_what_we_write(self):
        source, _ = y4m("420p10")
        target = io.BytesIO()
        upscale_stream(source, target, Repeat())
        target.seek(0)
        with av.open(target, format="yuv4mpegpipe") as container:
            frames = [*container.decode(video=0)]
        assert [frame.format.name for frame in frames] == ["yuv420p10le"] * 3
        assert (frames[0].width, frames[0].height) == (2 * WIDTH, 2 * HEIGHT)

    @pytest.mark.parametrize("full", [False, True])
    def test_y4m_range_is_honoured(self, full):
        word = "FULL" if full else "LIMITED"
        source, _ = y4m("444", 1, extra=f"F25:1 XCOLORRANGE={word}")
        model = Repeat()
        content = bytearray(source.getvalue())
        header = content.index(b"FRAME\n") + 6
        size = WIDTH * HEIGHT
        for n, value in enumerate((100, 90, 170)):
            start = header + n * size
            content[start : start + size] = bytes([value]) * size
        target = io.BytesIO()
        upscale_stream(io.BytesIO(content), target, model)
        expected = as_rgb(100, 90, 170, 6, full)
        assert np.allclose(model.seen[0][0, :, 0, 0], expected, atol=0.5 / 255)
        assert f"XCOLORRANGE={word}".encode() in target.getvalue()

    @pytest.mark.parametrize("bits", [8, 16])
    def test_raw_rgb(self, bits):
        dtype = np.dtype("u1" if bits == 8 else "<u2")
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 2**bits, (2, 5, 7, 3)).astype(dtype)
        target = io.BytesIO()
        done = upscale_stream(
            io.BytesIO(frames.tobytes()), target, Repeat(), RawFormat(7, 5, bits)
        )
        assert done == 2
        assert target.getvalue() == frames.repeat(2, 1).repeat(2, 2).tobytes()

    @pytest.mark.parametrize("raw", [None, RawFormat(WIDTH, HEIGHT)])
    def test_a_stream_that_ends_inside_a_frame_gives_its_whole_frames(self, raw):
        source, _ = y4m("444", 3)
        content = source.getvalue()
        if raw:
            content = bytes(3 * 3 * WIDTH * HEIGHT)
        whole = io.BytesIO()
        upscale_stream(io.BytesIO(content), whole, Repeat(), raw)
        target = io.BytesIO()
        with pytest.raises(AetherError, match=r"ends inside a frame.*\(2\)"):
            upscale_stream(io.BytesIO(content[:-100]), target, Repeat(), raw)
        assert len(target.getvalue()) > len(whole.getvalue()) * 0.6
        assert whole.getvalue().startswith(target.getvalue())

    def test_a_reader_that_goes_away_ends_it(self):
        source, _ = y4m("420", 50, 64, 64)
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as end:
            end_reading = threading.Timer(0.2, end.close)
            end_reading.start()
            with pytest.raises(BrokenPipeError), os.fdopen(writer, "wb", 0) as target:
                upscale_stream(source, target, Repeat(8))
            end_reading.join()

    def test_pieces_of_a_slow_pipe_are_put_together(self):
        content = y4m("420", 2)[0].getvalue()
        reader, writer = os.pipe()

        def trickle():
            with os.fdopen(writer, "wb", 0) as end:
                for start in range(0, len(content), 1000):
                    end.write(content[start : start + 1000])

        feeder = threading.Thread(target=trickle)
        feeder.start()
        with os.fdopen(reader, "rb", 0) as source:
            assert (
                upscale_stream(io.BufferedReader(source), io.BytesIO(), Repeat()) == 2
            )
        feeder.join()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "found nothing"),
            (b"P6 3 3 255\n", "found something else"),
            (b"YUV4MPEG2 " + b"x" * 5000, "something else"),
            (b"YUV4MPEG2 W0 H32 C420\nFRAME\n", "no valid frame size"),
            (b"YUV4MPEG2 W99999999 H32\nFRAME\n", "no valid frame size"),
            (b"YUV4MPEG2 W8 H8 C411\nFRAME\n", "C411, which is not supported"),
            (b"YUV4MPEG2 W8 H8 C444alpha\nFRAME\n", "not supported"),
            (b"YUV4MPEG2 W8 H8\nnonsense\n", "ends inside a frame"),
        ],
    )
    def test_what_is_not_y4m_is_refused(self, content, message):
        with pytest.raises(AetherError, match=message):
            upscale_stream(io.BytesIO(content), io.BytesIO(), Repeat())
