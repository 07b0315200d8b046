"""RGB sources that are stored as Y'CbCr: the stated matrix is the one that was used."""

import numpy as np
import pytest
from helpers import PLAIN, lively_file
from video_helpers import FrameRepeat, as_rgb, av, planes_of

from aethernet.commands.main import main
from aethernet.video.upscale import VideoOptions, upscale_video

SIDE = 64  # the smallest that all codecs take

COLOURS = np.array(
    [
        *([220, 30, 40], [20, 200, 60], [30, 60, 230], [128, 128, 128]),
        *([240, 220, 20], [10, 210, 220], [200, 40, 200], [90, 40, 10]),
        *([250, 250, 250], [5, 5, 5], [255, 120, 0], [120, 0, 255]),
        *([0, 120, 80], [180, 160, 140], [60, 90, 160], [150, 20, 70]),
    ]
)
"""Of squares, four in a row."""

SRGB = (1, 13)  # primaries of BT.709, and the transfer of sRGB

OPAQUE = {
    "libx264": (".mp4", ".m4v", ".mov", ".mkv"),
    "libx265": (".mp4", ".m4v", ".mov", ".mkv"),
    "libsvtav1": (".mp4", ".webm", ".mkv"),
    "libvpx-vp9": (".mp4", ".webm", ".mkv"),
    "ffv1": (".mkv",),
    "prores_ks": (".mov", ".mkv"),
}
TRANSPARENT = {
    "libvpx-vp9": (".webm", ".mkv"),
    "ffv1": (".mkv",),
    "prores_ks": (".mov", ".mkv"),
}


def rgb_clip(path, codec="ffv1", kind="bgr0", colour=(2, 2)):
    """Squares of colours, the right half with an alpha of 60 if there is alpha."""
    pixels = np.full((SIDE, SIDE, 4), 255, np.uint8)
    squares = COLOURS.reshape(4, 4, 3).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)
    pixels[..., :3] = squares
    pixels[:, SIDE // 2 :, 3] = 60
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = kind
        context = stream.codec_context
        context.color_primaries, context.color_trc = colour
        for n in range(2):
            frame = av.VideoFrame.from_ndarray(pixels, "rgba").reformat(format=kind)
            frame.color_primaries, frame.color_trc = colour
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_back(path):
    """The colours of the squares by what the file states, primaries, transfer."""
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        before = context.colorspace, context.color_primaries, context.color_trc
        frame = next(container.decode(video=0))
    assert before == (frame.colorspace, frame.color_primaries, frame.color_trc)
    bits = frame.format.components[0].bits
    places = (2 * np.arange(4) + 1) / 8
    values = []
    for plane in planes_of(frame)[:3]:
        rows, columns = (np.intp(places * side) for side in plane.shape)
        values.append(plane[np.ix_(rows, columns)].ravel() / 2.0 ** (bits - 8))
    if frame.colorspace == 0:
        assert frame.format.name.startswith("gbr")
        green, blue, red = np.array(values) * 2.0 ** (bits - 8) / (2**bits - 1)
        found = np.array([red, green, blue])
    else:
        full = {1: False, 2: True}[frame.color_range]
        found = as_rgb(*values, frame.colorspace, full)
    return 255 * found.T, (frame.color_primaries, frame.color_trc)


@pytest.mark.parametrize(
    ("kind", "codec", "suffix"),
    [
        *(("bgr0", c, s) for c, suffixes in OPAQUE.items() for s in suffixes),
        *(("bgra", c, s) for c, suffixes in TRANSPARENT.items() for s in suffixes),
    ],
)
def test_every_codec_and_container_states_the_colours(tmp_path, kind, codec, suffix):
    source, target = rgb_clip(tmp_path / "in.mkv", kind=kind), tmp_path / f"out{suffix}"
    done = upscale_video(source, target, FrameRepeat(), VideoOptions(codec))
    assert done.encoding.has_alpha == (kind == "bgra")
    found, stated = read_back(target)
    assert stated == SRGB
    assert np.abs(found - COLOURS).max() < 8
    assert np.abs(found - COLOURS).mean() < 2


@pytest.mark.parametrize(
    ("codec", "kind", "name"),
    [
        ("qtrle", "argb", "in.mov"),
        ("qtrle", "rgb24", "in.mov"),
        ("png", "rgba", "in.mov"),
        ("png", "rgb24", "in.avi"),
        ("utvideo", "gbrap", "in.avi"),
        ("cfhd", "gbrap12le", "in.mov"),
        ("ffv1", "bgra", "in.mkv"),
        ("ffv1", "bgr0", "in.mkv"),
        ("rawvideo", "bgr24", "in.avi"),
    ],
)
def test_sources_of_all_kinds_in_mov_and_mkv(tmp_path, codec, kind, name):
    source = rgb_clip(tmp_path / name, codec, kind)
    for suffix in (".mov", ".mkv", ".webm"):
        target = tmp_path / f"out{suffix}"
        upscale_video(source, target, FrameRepeat())
        found, stated = read_back(target)
        assert stated == SRGB
        assert np.abs(found - COLOURS).mean() < 2


@pytest.mark.parametrize(
    ("colour", "expected"),
    [((9, 16), (9, 16)), ((2, 8), (1, 8)), ((12, 2), (12, 13))],
)
def test_what_the_source_states_is_kept(tmp_path, colour, expected):
    source = rgb_clip(tmp_path / "in.mkv", kind="bgra", colour=colour)
    for suffix in (".mov", ".mkv", ".webm"):
        target = tmp_path / f"out{suffix}"
        upscale_video(source, target, FrameRepeat())
        found, stated = read_back(target)
        assert stated == expected
        assert np.abs(found - COLOURS).mean() < 2


def test_the_command_states_them_in_quicktime_files(tmp_path):
    source = rgb_clip(tmp_path / "in.mov", "qtrle", "argb")
    model = tmp_path / "model.safetensors"
    lively_file(model, depths=(1,))
    target = tmp_path / "out.mov"
    command = ["upscale", str(source), "--model", str(model), "--runtime", PLAIN]
    assert main([*command, "--device", "cpu", "-o", str(target)]) == 0
    content = target.read_bytes()
    place = content.index(b"colrnclc") + 8
    assert content[place : place + 6] == bytes((0, 1, 0, 13, 0, 1))
    frame = content.index(b"icpf") + 4  # its header: SMPTE RDD 36, 5.1
    assert content[frame + 14 : frame + 17] == bytes((1, 13, 1))


@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
def test_prores_that_states_its_matrix_in_the_container_only(tmp_path, matrix):
    """As older encoders wrote it: the header of a frame says that it is unknown."""
    source = tmp_path / "in.mov"
    values = (420, 440, 600)
    with av.open(str(source), "w") as container:
        stream = container.add_stream("prores_ks", rate=25, options={"profile": "hq"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv422p10le"
        context = stream.codec_context
        context.colorspace = context.color_primaries = matrix
        context.color_trc = 1
        frame = av.VideoFrame(SIDE, SIDE, "yuv422p10le")
        for plane, value in zip(planes_of(frame), values, strict=True):
            plane[...] = value
        container.mux([*stream.encode(frame), *stream.encode(None)])
    model = FrameRepeat()
    upscale_video(source, tmp_path / "out.mov", model)
    expected = as_rgb(*(value / 4 for value in values), matrix, full=False)
    assert np.abs(model.frames[0][0, :, 32, 32] - expected).max() < 0.02
    with av.open(str(tmp_path / "out.mov")) as container:
        made = next(container.decode(video=0))
    stated = made.colorspace, made.color_primaries, made.color_trc
    assert stated == (matrix, matrix, 1)
