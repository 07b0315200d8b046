"""The site of the documents, and the tutorial, typed as it stands there."""

import re
import shlex

import pytest
from helpers import ROOT, lively_file, run, sample_part, write
from PIL import Image

from aethernet.commands.main import main


def test_it_builds_without_a_warning():
    pytest.importorskip("material", reason="needs the extra docs")
    pytest.importorskip("mkdocstrings", reason="needs the extra docs")
    done = run(ROOT / "tools/build_site.py")
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (ROOT / "build/site/docs/reference/python.html").read_text("utf-8")
    for name in ("load", "Upscaler.upscale", "upscale_file", "fuse", "export"):
        assert f'id="aethernet.api.{name}"' in reference
    command = (ROOT / "build/site/docs/reference/command.html").read_text("utf-8")
    assert "--overwrite" in command


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the tutorial starts from."""
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("torch", reason="needs PyTorch, to read a .pth file")
    # LPIPS and DISTS would download networks.
    opens = "aethernet.quality.perceptual.open_perceptual"
    monkeypatch.setattr(opens, lambda *_: ([], {}))
    lively_file(tmp_path / "net_g_100000.pth")
    Image.fromarray(sample_part(40, 56)).save("photo.jpg", quality=95)
    write(sample_part(48, 64), tmp_path / "hr/a.png")
    return tmp_path


def test_the_tutorial_works_line_by_line(place, capsys):
    pytest.importorskip("torch", reason="needs PyTorch: it starts from a .pth file")
    page = (ROOT / "docs/tutorial.md").read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) >= 9
    for line in lines:
        program, command, *rest = shlex.split(line)
        assert program == "aethernet"
        if command == "engine":  # needs TensorRT, whose tests build one
            assert rest == ["leaves_2x_fp16.onnx", "--max", "1920x1080"]
            continue
        assert main([command, *rest]) == 0, (line, capsys.readouterr().err)
    for name in ("leaves_2x.safetensors", "photo_2x.png", "compare.html"):
        assert (place / name).stat().st_size > 1000
    assert (place / "leaves_2x.bin").is_file()
    assert (place / "release/2x_leaves.md").is_file()
