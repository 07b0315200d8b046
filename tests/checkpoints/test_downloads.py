"""Downloading a model by its name, from a server on this machine."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers import ROOT, SHIPPED_MODEL

from aethernet.checkpoints import shipped
from aethernet.checkpoints.shipped import find_model, offered_downloads, shipped_models
from aethernet.commands.main import main

CONTENT = SHIPPED_MODEL.read_bytes()
FILE = "4x_aether_large.safetensors"  # the name decides, not the content


class Server(ThreadingHTTPServer):
    """Serves CONTENT in the way that the path names, and records the ranges asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = []
        self.cut = None  # bytes after which the connection is closed

    def url(self, way):
        return f"http://127.0.0.1:{self.server_port}/{way}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        way = self.path.strip("/")
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if way == "missing":
            return self.send_error(404)
        if way == "to-a-file":
            return self.redirect("file:///etc/hostname")
        if way == "to-good":
            return self.redirect(self.server.url("good"))
        content = CONTENT
        if way == "wrong":
            content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
        elif way == "longer":
            content = CONTENT + b"more" * 100_000
        start = 0
        if asked and way != "no-ranges":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        if start:
            total = len(content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        part = content[start:]
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: self.server.cut])
        return None

    def redirect(self, target):
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as it:
        thread = threading.Thread(target=it.serve_forever, daemon=True)
        thread.start()
        yield it
        it.shutdown()
        thread.join()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The user's data folder."""
    folder = tmp_path / "data/models"
    monkeypatch.setenv("AETHERNET_MODELS", str(folder))
    return folder


@pytest.fixture
def offer(tmp_path, monkeypatch, data):
    """A function that makes a list of one model with these addresses."""
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(SHIPPED_MODEL, folder)
    monkeypatch.setattr(shipped, "models_folder", lambda: folder)

    def make(*urls, **other):
        row = {
            "name": "4x-large",
            "file": FILE,
            "size": len(CONTENT),
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
            "license": "MIT",
            "description": "For tests, not for pictures.",
            "urls": urls,
            **other,
        }
        (folder / "index.json").write_text(json.dumps({"models": [row]}), "utf-8")

    return make


def get(name="4x-large"):
    return main(["models", "--get", name])


def models_in(folder):
    return [path.name for path in folder.glob("*") if not path.name.startswith(".")]


def test_the_shipped_list_is_complete():
    """Every model that can be downloaded has what its download is checked by."""
    rows = json.loads((ROOT / "models/index.json").read_text("utf-8"))["models"]
    assert len(offered_downloads()) == len(rows)
    for row in rows:
        assert row["size"] > 6e6  # smaller ones ship
        assert len(row["sha256"]) == 64
        assert all(url.startswith("https://") for url in row["urls"])
        assert row["description"]


def test_a_model_is_downloaded_and_has_its_name(server, offer, data, capsys):
    offer(server.url("good"))
    assert main(["upscale", "a.png", "--model", "4x-large"]) == 1
    error = capsys.readouterr().err
    assert error.endswith("Download it: aethernet models --get 4x-large\n")
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    assert "4x-large (5.5 MB, aethernet models --get 4x-large): For tests" in listed
    assert get() == 0
    assert "4x_aether_large.safetensors: 5.5 MB" in capsys.readouterr().out
    assert (data / FILE).read_bytes() == CONTENT
    assert models_in(data) == [FILE]
    assert find_model("4x-large") == data / FILE
    found = {model.name: model for model in shipped_models()}["4x-large"]
    assert (found.scale, found.license) == (4, "MIT")
    assert main(["models"]) == 0
    assert "\n4x-large: For tests, not for pictures." in capsys.readouterr().out


def test_what_is_here_is_not_fetched_again(server, offer, data):
    offer(server.url("good"))
    assert get() == get() == 0
    assert len(server.ranges) == 1
    damaged = bytearray(CONTENT)
    damaged[-1] ^= 1
    (data / FILE).write_bytes(damaged)
    assert get() == 0
    assert (data / FILE).read_bytes() == CONTENT


def test_an_interrupted_download_is_continued(server, offer, data, capsys):
    offer(server.url("good"))
    server.cut = 1_000_000
    assert get() == 1
    error = capsys.readouterr().err
    assert "ended early" in error
    assert "continue" in error
    assert models_in(data) == []
    server.cut = None
    assert get() == 0
    assert server.ranges == [None, "bytes=1000000-"]
    assert (data / FILE).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_again(server, offer, data):
    offer(server.url("no-ranges"))
    server.cut = 1_000_000
    assert get() == 1
    server.cut = None
    assert get() == 0
    assert (data / FILE).read_bytes() == CONTENT


@pytest.mark.parametrize("way", ["wrong", "longer"])
def test_another_content_is_refused(server, offer, data, capsys, way):
    offer(server.url(way))
    assert get() == 1
    assert "holds another file" in capsys.readouterr().err
    assert [path for path in data.glob("*") if path.suffix == ".safetensors"] == []
    assert [*data.glob(".*.part")] == []


@pytest.mark.parametrize("way", ["wrong", "missing", "to-a-file"])
def test_the_next_address_is_tried(server, offer, data, way):
    offer(server.url(way), server.url("to-good"))
    assert get() == 0
    assert (data / FILE).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://models.example/a", "not HTTPS"),
        ("file:///etc/hostname", "not HTTPS"),
        ("http://127.0.0.1:1/a", "cannot be read"),
    ],
)
def test_addresses_that_fail_are_named(offer, data, capsys, url, reason):
    offer(url)
    assert get() == 1
    error = capsys.readouterr().err
    assert url in error
    assert reason in error
    assert error.count("\n") == 1
    assert models_in(data) == []


def test_an_unknown_name_lists_the_known_ones(offer, capsys):
    offer()
    assert get("9x-none") == 1
    assert capsys.readouterr().err.endswith("These can: 4x-large.\n")


def test_a_list_without_models_says_so(capsys):
    if offered_downloads():
        pytest.skip("this version offers downloads")
    assert get() == 1
    assert "offers no downloads" in capsys.readouterr().err


@pytest.mark.parametrize(
    "other", [{"file": "../evil.safetensors"}, {"size": "many"}, {"urls": None}]
)
def test_a_damaged_list_is_named(offer, capsys, other):
    offer("https://models.example/a", **other)
    assert main(["models"]) == 1
    error = capsys.readouterr().err
    assert "The list of models is damaged" in error
    assert "index.json" in error


def test_a_folder_that_cannot_be_made_is_named(
    server, offer, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AETHERNET_MODELS", str(tmp_path / "file/models"))
    offer("https://models.example/a")
    assert get() == 1
    assert "Cannot be written" in capsys.readouterr().err


class TestTheModelForAScale:
    """`aethernet upscale` without --model."""

    @pytest.fixture
    def models(self, tmp_path, monkeypatch):
        folder = tmp_path / "models"
        folder.mkdir()
        names = ("2x_aether_small", "2x_aether_small_photo", "4x_aether_small")
        for name in (*names, "4x_aether_medium"):
            shutil.copy(SHIPPED_MODEL, folder / f"{name}.safetensors")
        figures = {"4x_aether_small": 30.1, "4x_aether_medium": 30.9}
        # A model for a special purpose is never taken by itself, however good.
        for name, figure in {**figures, "2x_aether_small_photo": 50.0}.items():
            row = f"| Set5 | {figure} dB / 0.9 |\n"
            (folder / f"{name}.md").write_text(row, "utf-8")
        monkeypatch.setattr(shipped, "models_folder", lambda: folder)

    @pytest.mark.parametrize(
        ("scale", "name"),
        [
            (None, "2x_aether_small"),
            (1.5, "2x_aether_small"),
            (2, "2x_aether_small"),
            (3, "4x_aether_medium"),
            (4, "4x_aether_medium"),
            (8, "4x_aether_medium"),
        ],
    )
    @pytest.mark.usefixtures("models")
    def test_is_of_that_scale_or_the_next(self, scale, name):
        assert shipped.shipped_model(scale).stem == name

    @pytest.mark.usefixtures("models")
    def test_through_the_command(self, monkeypatch):
        asked = []
        monkeypatch.setattr(
            "aethernet.commands.upscale_run.run_upscale",
            lambda request: asked.append(request.model.path.stem) or 0,
        )
        assert main(["upscale", "a.png"]) == 0
        assert main(["upscale", "a.png", "--scale", "4"]) == 0
        assert main(["upscale", "a.png", "--scale", "4", "--model", "2x-small"]) == 0
        assert asked == ["2x_aether_small", "4x_aether_medium", "2x_aether_small"]
