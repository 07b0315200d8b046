"""A wrong output is an error before any model is opened."""

import io
import sys

import pytest
from helpers import check_one_error, photo, write

from aethernet.checkpoints import checkpoint
from aethernet.commands import export, fuse, model_flags
from aethernet.commands.main import main
from aethernet.runtimes import request


@pytest.fixture(autouse=True)
def no_model_is_opened(monkeypatch):
    def opened(*_):
        raise AssertionError("a model was opened")

    monkeypatch.setattr(request, "open_any", opened)
    monkeypatch.setattr(model_flags, "open_any", opened)
    for module in (checkpoint, export, fuse):
        monkeypatch.setattr(module, "load_checkpoint", opened)


@pytest.fixture
def source(tmp_path):
    write(photo(9, 8), tmp_path / "in/a.png")
    return str(tmp_path / "in/a.png")


def refused(capsys, *words):
    assert main([*map(str, words)]) == 1
    printed = capsys.readouterr()
    check_one_error(printed.err)
    assert printed.out == ""
    return printed.err


class TestUpscale:
    @pytest.mark.parametrize(
        ("target", "reason"),
        [
            ("out.xyz", "not that of a format we write"),
            ("out", "not that of a format we write"),
            ("missing/out.png", "does not exist"),
            ("in/a.png", "replace its own input"),
        ],
    )
    def test_a_picture(self, tmp_path, source, capsys, target, reason):
        said = refused(capsys, "upscale", source, "-o", tmp_path / target)
        assert reason in said
        assert str(tmp_path / target) in said

    def test_a_folder_that_has_to_be_one(self, tmp_path, source, capsys):
        (tmp_path / "file.png").write_bytes(b"")
        target = tmp_path / "file.png"
        assert "names a file" in refused(
            capsys, "upscale", tmp_path / "in", "-o", target
        )

    def test_an_unknown_format(self, tmp_path, source, capsys):
        words = ("-o", tmp_path / "out", "--format", "xyz")
        assert "Cannot write .xyz" in refused(capsys, "upscale", source, *words)
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_is_not_writable(self, tmp_path, source, capsys, monkeypatch):
        monkeypatch.setattr("aethernet.files.os.access", lambda *_: False)
        said = refused(capsys, "upscale", source, "--suffix", "_big")
        assert "its folder is not writable" in said

    def test_standard_input(self, tmp_path, capsys, monkeypatch, source):
        with open(source, "rb") as given:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(given))
            said = refused(capsys, "upscale", "-", "-o", tmp_path / "out.xyz")
        assert "not that of a format we write" in said

    @pytest.mark.parametrize(
        ("target", "reason"),
        [
            ("out.xyz", "not that of a video"),
            ("missing/out.mkv", "does not exist"),
            ("there.mkv", "The file exists"),
        ],
    )
    def test_a_video(self, tmp_path, capsys, target, reason):
        (tmp_path / "in.mp4").write_bytes(b"nobody reads this")
        (tmp_path / "there.mkv").write_bytes(b"")
        words = ("upscale", tmp_path / "in.mp4", "-o", tmp_path / target)
        assert reason in refused(capsys, *words)


class TestCompare:
    @pytest.mark.parametrize(
        ("target", "reason"),
        [("out.png", "has to be an .html file"), ("missing/out.html", "not exist")],
    )
    def test_a_page(self, tmp_path, source, capsys, target, reason):
        words = ("compare", source, "-o", tmp_path / target)
        assert reason in refused(capsys, *words)


class TestFiles:
    @pytest.mark.parametrize(
        ("command", "target", "reason"),
        [
            ("fuse", "out.onnx", "neither .safetensors nor .pth"),
            ("fuse", "in/m.safetensors", "replace its own input"),
            ("export", "out.xyz", "the suffix is neither .onnx nor .param"),
            ("export", "out.bin", "the suffix is neither .onnx nor .param"),
            ("release", "missing/release", "does not exist"),
            ("release", "in", "not empty"),
            ("release", "in/m.safetensors", "This is a file"),
        ],
    )
    def test_what_is_made_of_a_checkpoint(
        self, tmp_path, capsys, command, target, reason
    ):
        (tmp_path / "in").mkdir()
        model = tmp_path / "in/m.safetensors"
        model.write_bytes(b"nobody reads this")
        assert reason in refused(capsys, command, model, "-o", tmp_path / target)
