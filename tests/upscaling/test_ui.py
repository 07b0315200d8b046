"""The local page: a real server in a process of its own, and a real browser."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, watch
from helpers import PLAIN, lively_file, photo, without_hidden
from PIL import ImageCms

from aethernet.commands.main import main
from aethernet.errors import AetherError
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.metadata import Metadata
from aethernet.pictures.write import write_picture
from aethernet.upscaling.ui import check_size, find_models, target_name

pytest.importorskip("gradio", reason="needs pip install -e '.[ui]'")

RUNNING = ("--runtime", PLAIN, "--device", "cpu", "--precision", "float32")
# Notes every host name and address that the server asks for.
SERVER = """
import sys
asked = open(sys.argv[1], "a", buffering=1)
def watch(event, words):
    if event == "socket.connect":
        print("connect", words[1], file=asked)
    elif event == "socket.getaddrinfo":
        print("look up", words[0], file=asked)
sys.addaudithook(watch)
from aethernet.commands.main import main
sys.exit(main(sys.argv[2:]))
"""


class Server:
    """`aethernet ui` and where it is; ended as a user would, with Ctrl+C."""

    def __init__(self, folder: Path, *words):
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.asked = folder / "asked.txt"
        command = [sys.executable, "-c", SERVER, self.asked, "ui", "--no-browser"]
        self.process = subprocess.Popen(
            [*map(str, command), *map(str, words), *RUNNING],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"},
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, line + self.process.stderr.read()
        self.url, self.port = found[0], int(found[1])

    def end(self):
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out + err


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of two; the names are what the page offers."""
    folder = tmp_path_factory.mktemp("models")
    lively_file(folder / "a 2x.safetensors")
    lively_file(folder / "b <b>3x.safetensors", scale=3)
    (folder / "notes.txt").write_text("not a model")
    return folder


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("ui"), "--model", models)
    yield server
    if server.process.poll() is None:
        server.end()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        # One for all, so that Gradio's program is read once.
        yield browser.new_context(viewport={"width": 1280, "height": 900})


@pytest.fixture
def page(browser, server):
    page = browser.new_page()
    page.requests, _ = watch(page)
    page.goto(server.url)
    page.locator("#upscale").wait_for()
    yield page
    page.close()


def drop(page, path):
    page.locator("#picture input[type=file]").set_input_files(path)
    page.locator("#picture img").wait_for()


def choose(page, which, name):
    page.locator(f"#{which} input").click()
    page.get_by_role("option", name=name, exact=True).click()


def download(page, folder):
    page.locator("#upscale").click()
    page.locator("#result p").first.wait_for()
    with page.expect_download() as coming:
        page.locator("#download").click()
    name = Path(coming.value.suggested_filename)
    assert name.name == str(name)
    coming.value.save_as(folder / name)
    return folder / name


def upscaled(source, target, model):
    words = ["upscale", source, "-o", target, "--model", model, *RUNNING]
    assert main([*map(str, words)]) == 0
    return target


def test_the_download_is_what_the_command_makes(page, models, tmp_path):
    # 16 bits, transparency and a profile: everything a browser's own pictures lose.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = tmp_path / "my photo é.png"
    pixels = photo(40, 60, 4, np.uint16)
    write_picture(Picture(pixels, Metadata(profile=profile)), source)
    drop(page, source)
    result = read_picture(download(page, tmp_path))
    assert without_hidden(tmp_path) == ["my photo é.png", "my photo é_2x.png"]
    model = models / "a 2x.safetensors"
    expected = read_picture(upscaled(source, tmp_path / "expected.png", model))
    assert result.pixels.dtype == np.uint16
    assert result.pixels.shape == (80, 120, 4)
    assert np.array_equal(result.pixels, expected.pixels)
    assert result.metadata.profile == profile
    said = page.locator("#result").inner_text()
    assert "60x40 → 120x80" in said
    assert "PyTorch float32 on cpu" in said


def test_another_model_and_format(page, models, tmp_path):
    source = tmp_path / "in.png"
    write_picture(Picture(photo(20, 30)), source)
    drop(page, source)
    choose(page, "model", "b <b>3x.safetensors")
    choose(page, "format", "WebP")
    done = download(page, tmp_path)
    assert done.name == "in_3x.webp"
    expected = upscaled(
        source, tmp_path / "expected.webp", models / "b <b>3x.safetensors"
    )
    assert np.array_equal(read_picture(done).pixels, read_picture(expected).pixels)


def test_the_slider_shows_both_at_the_size_of_the_result(page, tmp_path):
    write_picture(Picture(photo(20, 30)), tmp_path / "in.png")
    drop(page, tmp_path / "in.png")
    download(page, tmp_path)
    images = page.locator("#slider img")
    sizes = images.evaluate_all(
        "(all) => Promise.all(all.map(async (image) => "
        "{ await image.decode(); return [image.naturalWidth, image.naturalHeight]; }))"
    )
    assert sizes == [[60, 40], [60, 40]]


def test_nothing_but_this_computer_is_asked(page, server, tmp_path):
    write_picture(Picture(photo(20, 30)), tmp_path / "in.png")
    drop(page, tmp_path / "in.png")
    download(page, tmp_path)
    local = (server.url, "data:", "blob:")
    outside = [url for url in page.requests if not url.startswith(local)]
    assert outside == []
    for line in server.asked.read_text().splitlines():
        assert "127.0.0.1" in line or "localhost" in line, line


def test_only_this_computer_reaches_it(server):
    psutil = pytest.importorskip("psutil")
    listening = {
        connection.laddr.ip
        for connection in psutil.Process(server.process.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_errors_are_toasts_and_the_page_goes_on(page, tmp_path):
    bad = tmp_path / "bad & worse.png"
    bad.write_text("hello " * 99)
    page.locator("#picture input[type=file]").set_input_files(bad)
    page.locator("#picture img").wait_for(state="attached")
    page.locator("#upscale").click()
    toast = page.get_by_test_id("toast-body")
    toast.wait_for()
    said = toast.inner_text()
    assert "bad & worse.png: This is no picture that can be read" in said
    assert str(tmp_path.parent.parent) not in said
    page.locator("#picture").get_by_label("Remove Image").click()
    write_picture(Picture(photo(20, 30)), tmp_path / "in.png")
    drop(page, tmp_path / "in.png")
    assert read_picture(download(page, tmp_path)).pixels.shape == (40, 60, 3)


def test_without_a_picture_there_is_an_error(page):
    page.locator("#upscale").click()
    toast = page.get_by_test_id("toast-body")
    toast.wait_for()
    assert "Drop a picture first" in toast.inner_text()


def test_values_that_no_page_would_send_are_refused(page, server, tmp_path):
    # A program of somebody else may send anything; ".." must not become a path.
    write_picture(Picture(photo(20, 30)), tmp_path / "in.png")
    drop(page, tmp_path / "in.png")
    page.route(
        "**/queue/join*",
        lambda route: route.continue_(
            post_data=re.sub(
                r'"data":\[(.*),"[^"]*","[^"]*"\]',
                r'"data":[\1,"a 2x.safetensors","/../../../evil.png"]',
                route.request.post_data,
            )
        ),
    )
    page.locator("#upscale").click()
    toast = page.get_by_test_id("toast-body")
    toast.wait_for()
    assert "of those on the page" in toast.inner_text()
    assert not [*server.temporary.rglob("evil.png")]


@pytest.mark.parametrize("host", ["", "evil.example"])
def test_only_what_was_dropped_is_read(server, tmp_path, host):
    # Any local program can name any file. The page of another host gets nothing at all.
    write_picture(Picture(photo(20, 30)), tmp_path / "secret.png")
    if host:
        with pytest.raises(urllib.error.HTTPError, match="400"):
            asked(server.url, str(tmp_path / "secret.png"), host)
        return
    answer = asked(server.url, str(tmp_path / "secret.png"))
    assert "not a picture that was dropped here" in answer
    assert "_2x" not in answer


def test_without_a_browser_the_server_does_the_same(server, models, tmp_path):
    write_picture(Picture(photo(20, 30)), tmp_path / "in & out.png")
    answer = asked(server.url, uploaded(server.url, tmp_path / "in & out.png"))
    assert "30x20 → 60x40" in answer
    found = re.search(r'"url":\s*"([^"]*_2x\.png)"', answer)
    with urllib.request.urlopen(found[1], timeout=20) as download:
        (tmp_path / "result.png").write_bytes(download.read())
    model = models / "a 2x.safetensors"
    expected = upscaled(tmp_path / "in & out.png", tmp_path / "expected.png", model)
    result = read_picture(tmp_path / "result.png").pixels
    assert np.array_equal(result, read_picture(expected).pixels)


def test_errors_name_the_picture_and_not_the_folder(server, tmp_path):
    (tmp_path / "bad.png").write_text("hello " * 99)
    answer = asked(server.url, uploaded(server.url, tmp_path / "bad.png"))
    assert "bad.png: This is no picture that can be read" in answer
    assert "aethernet-ui-" not in answer


def uploaded(url, path):
    """Upload a file as the page does; returns where the server keeps it."""
    content = path.read_bytes()
    body = (
        b'--edge\r\nContent-Disposition: form-data; name="files"; filename="'
        + path.name.encode()
        + b'"\r\nContent-Type: image/png\r\n\r\n'
        + content
        + b"\r\n--edge--\r\n"
    )
    request = urllib.request.Request(
        f"{url.rstrip('/')}/gradio_api/upload",
        body,
        {"Content-Type": "multipart/form-data; boundary=edge"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)[0]


def asked(url, path, host=""):
    """Press the button for a file of the server; returns all events of the answer."""
    body = {"data": [{"path": path}, *page_values(url)], "fn_index": 0}
    body["session_hash"] = "b1"
    request = urllib.request.Request(
        f"{url.rstrip('/')}/gradio_api/queue/join",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **({"Host": host} if host else {})},
    )
    urllib.request.urlopen(request, timeout=20).close()
    with urllib.request.urlopen(
        f"{url.rstrip('/')}/gradio_api/queue/data?session_hash=b1", timeout=60
    ) as answer:
        return answer.read().decode()


def page_values(url):
    """A model and a format that the page offers."""
    with urllib.request.urlopen(f"{url.rstrip('/')}/config", timeout=20) as answer:
        parts = json.load(answer)["components"]
    found = {part["props"].get("elem_id"): part["props"] for part in parts}
    return found["model"]["value"], found["format"]["value"]


def test_a_port_that_is_taken_is_an_error(models, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["ui", "--no-browser", "--port", str(port), "--model", str(models)]
        assert main(words) == 1
    assert f"the port {port} is taken" in capsys.readouterr().err


def test_missing_models_are_an_error(tmp_path, capsys):
    for path, said in ((tmp_path / "a.onnx", "no such file"), (tmp_path, "no models")):
        assert main(["ui", "--no-browser", "--model", str(path)]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_models_of_one_name_are_told_apart(models, tmp_path):
    again = tmp_path / "a 2x.safetensors"
    again.write_bytes(b"")
    found = find_models([models, again])
    assert [*found.values()][-1] == again
    assert [*found] == [str(models / again.name), "b <b>3x.safetensors", str(again)]


def test_large_pictures_are_left_to_the_command():
    check_size(Path("a.png"), (5000, 5000), 2)
    with pytest.raises(AetherError, match="100 megapixels at 2x; this page makes"):
        check_size(Path("a.png"), (5010, 5000), 2)


def test_names_of_downloads():
    assert target_name(Path("a.b.JPG"), 2, "") == "a.b_2x.JPG"
    assert target_name(Path("a.gif"), 4, "") == "a_4x.png"
    assert target_name(Path("a"), 2, "") == "a_2x.png"
    assert target_name(Path("a.png"), 2, ".avif") == "a_2x.avif"


def test_ctrl_c_ends_it_and_leaves_nothing(server):
    # The last test of all, since it ends the server that they share.
    assert os.listdir(server.temporary) != []
    code, printed = server.end()
    assert code == 0
    assert "Traceback" not in printed
    assert os.listdir(server.temporary) == []
