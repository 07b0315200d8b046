"""The local page and its API: one real server for all tests, and a real browser."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, watch
from helpers import ROOT, SAMPLE, lively_file, photo
from PIL import Image, ImageCms

from aethernet.commands.main import main
from aethernet.pictures.files import Picture, read_picture
from aethernet.pictures.metadata import Metadata
from aethernet.pictures.write import write_picture
from aethernet.ui.tasks import KEPT_TASKS

if importlib.util.find_spec("gradio") is None:  # the server alone imports it
    pytest.skip("needs pip install -e '.[ui]'", allow_module_level=True)

# Starts sooner than PyTorch.
RUNNING = ("--runtime", "onnxruntime", "--device", "cpu", "--precision", "float32")
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
        self.url = found[0].rstrip("/")

    def end(self):
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out + err

    def ask(self, method, path, body=None, **headers):
        """Send JSON, or bytes; returns what the server answers, of JSON its content."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}{path}", data, headers, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
        found = answer.headers["Content-Type"].startswith("application/json")
        return json.loads(content) if found else content

    def refuses(self, method, path, body=None):
        """The status and the words of a refusal."""
        with pytest.raises(urllib.error.HTTPError) as error:
            self.ask(method, path, body)
        return error.value.code, json.loads(error.value.read())["error"]

    def upload(self, path, **headers):
        """Upload a file as the page does; returns where the server keeps it."""
        body = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="'
        body += path.name.encode() + b'"\r\nContent-Type: image/png\r\n\r\n'
        body += path.read_bytes() + b"\r\n--edge--\r\n"
        headers["Content-Type"] = "multipart/form-data; boundary=edge"
        return self.ask("POST", "/gradio_api/upload", body, **headers)[0]

    def run(self, **order):
        """Run a task to its end."""
        task = self.ask("POST", "/tasks", order)
        return self.until(task, "done", "failed", "cancelled")

    def until(self, task, *states):
        for _ in range(600):
            task = self.ask("GET", f"/tasks/{task['id']}")
            if task["state"] in states:
                return task
            time.sleep(0.05)
        raise AssertionError(task)


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
        # One for all, so that it is read once.
        yield browser.new_context(viewport={"width": 1280, "height": 900})


@pytest.fixture
def page(browser, server):
    page = browser.new_page()
    page.requests, page.complaints = watch(page)
    page.goto(server.url)
    yield page
    assert not page.complaints
    page.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A picture whose tiles take a few seconds."""
    path = tmp_path_factory.mktemp("large") / "large.png"
    write_picture(Picture(np.tile(photo(300, 500), (8, 4, 1))), path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of eight seconds, four frames each."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("clip") / "my clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for number in range(32):
            frame = av.VideoFrame.from_ndarray(np.roll(photo(24, 32), number, 1))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def choose_files(page, *paths, ready="good"):
    page.locator("#files-input").set_input_files([*map(str, paths)])
    for number, _ in enumerate(paths):
        page.locator("#files li").nth(number).and_(page.locator(f".{ready}")).wait_for()


def download(page, folder, button="#download"):
    with page.expect_download() as coming:
        page.locator(button).first.click()
    name = Path(coming.value.suggested_filename)
    assert name.name == str(name)
    coming.value.save_as(folder / name)
    return folder / name


def upscale(page, button="#upscale"):
    """Press the button and wait for the result; fails with what the page says else."""
    page.locator(button).click()
    ends = ("#done", "#error", "#refused", "#lost")
    page.locator(", ".join(f"{end}:visible" for end in ends)).first.wait_for(
        timeout=60_000
    )
    assert page.locator("#done").is_visible(), page.locator("main").inner_text()


def upscaled(source, target, model, *words):
    words = ["upscale", source, "-o", target, "--model", model, *words, *RUNNING]
    assert main([*map(str, words)]) == 0
    return target


def test_the_download_is_what_the_command_makes(page, models, tmp_path):
    # 16 bits, transparency and a profile: everything a browser's own pictures lose.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = tmp_path / "my photo (é & ü).png"
    pixels = photo(40, 60, 4, np.uint16)
    write_picture(Picture(pixels, Metadata(profile=profile)), source)
    assert page.locator("h1").inner_text() == "AetherNet"
    assert page.locator("#upscale").is_disabled()
    choose_files(page, source)
    upscale(page)
    result = download(page, tmp_path)
    assert result.name == "my photo (é & ü)_2x.png"
    model = models / "a 2x.safetensors"
    expected = read_picture(upscaled(source, tmp_path / "expected.png", model))
    found = read_picture(result)
    assert found.pixels.dtype == np.uint16
    assert np.array_equal(found.pixels, expected.pixels)
    assert found.metadata.profile == profile
    said = page.locator("#done").inner_text()
    assert "60x40 → 120x80" in said
    assert "a 2x.safetensors, ONNX Runtime float32 on cpu" in said


def test_model_size_format_and_quality(page, models, tmp_path):
    source = tmp_path / "in.png"
    write_picture(Picture(photo(20, 30)), source)
    choose_files(page, source)
    page.locator("#model").select_option("b <b>3x.safetensors")
    page.locator("#size").select_option("sides")
    page.locator("#upscale").click()
    assert "how wide or how high" in page.locator("#refused").inner_text()
    page.locator("#height").fill("50")
    assert page.locator("#refused").is_hidden()
    assert page.locator("#files .info").inner_text() == "30x20 → 75x50"
    page.locator("summary").click()
    page.locator("#format").select_option(label="WebP")
    page.locator("#quality").fill("70")
    upscale(page)
    done = download(page, tmp_path)
    assert done.name == "in_upscaled.webp"
    words = ("--height", 50, "--quality", 70)
    model = models / "b <b>3x.safetensors"
    expected = upscaled(source, tmp_path / "expected.webp", model, *words)
    assert done.read_bytes() == expected.read_bytes()


def test_several_pictures_before_and_after(page, tmp_path):
    for name, size in (("one.png", (20, 30)), ("two.jpg", (24, 18))):
        write_picture(Picture(photo(*size)), tmp_path / name)
    bad, cut = tmp_path / "bad & <b>worse.png", tmp_path / "cut.png"
    bad.write_text("hello " * 99)
    cut.write_bytes(SAMPLE.read_bytes()[:30_000])
    page.locator("#files-input").set_input_files(
        [tmp_path / "one.png", bad, tmp_path / "two.jpg", cut]
    )
    # What is damaged is told at once, beside it.
    page.locator("#files .good").nth(1).wait_for()
    page.locator("#files .bad").nth(1).wait_for()
    rows = page.locator("#files .bad").all_inner_texts()
    assert "bad & <b>worse.png" in rows[0]
    assert "This is no picture that can be read" in rows[0]
    assert "The file is damaged, or ends early." in rows[1]
    assert page.locator("#count").inner_text() == "4 pictures, 2 cannot be used"
    # So is what would become too large.
    page.locator("#size").select_option("sides")
    page.locator("#width").fill("90000")
    assert page.locator("#files .bad").count() == 4
    assert page.locator("#upscale").is_disabled()
    page.locator("#size").select_option("")
    assert page.locator("#upscale").inner_text() == "Upscale 2 pictures"
    upscale(page)
    cards = page.locator("#gallery li")
    assert cards.count() == 2
    with zipfile.ZipFile(download(page, tmp_path)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["one_2x.png", "two_2x.jpg"]
        (tmp_path / "zipped.png").write_bytes(archive.read("one_2x.png"))
    single = download(page, tmp_path, "#gallery a")
    assert single.read_bytes() == (tmp_path / "zipped.png").read_bytes()
    frame = page.frame_locator("#comparison iframe")
    assert frame.locator("#first-tag").inner_text() == "Before: bicubic"
    assert frame.locator("#second-tag").inner_text() == "After: a 2x.safetensors"
    view = next(frame for frame in page.frames if frame.url.endswith("/compare"))
    loaded = "images.every((each) => each.complete && each.naturalWidth)"
    assert view.evaluate(
        f"new Promise((done) => setTimeout(() => done({loaded}), 300))"
    )
    sizes = "images.map((each) => [each.naturalWidth, each.naturalHeight])"
    assert view.evaluate(sizes) == [[60, 40], [60, 40]]
    assert float(view.evaluate("view.zoom")).is_integer()
    cards.nth(1).locator("button").click()
    assert frame.locator("#picture").input_value() == "1"


def test_a_folder_keeps_its_folders(page, tmp_path):
    (tmp_path / "scans/deep").mkdir(parents=True)
    for name in ("a.png", "deep/a.png", "deep/.hidden.png"):
        write_picture(Picture(photo(16, 16)), tmp_path / "scans" / name)
    (tmp_path / "scans/notes.txt").write_text("no picture")
    page.locator("#folder-input").set_input_files(tmp_path / "scans")
    page.locator("#files .good").nth(1).wait_for()
    assert "2 other files" in page.locator("#note").inner_text()
    upscale(page)
    with zipfile.ZipFile(download(page, tmp_path)) as archive:
        assert archive.namelist() == ["scans/a_2x.png", "scans/deep/a_2x.png"]


def test_progress_reload_and_cancel(page, server, large, tmp_path):
    write_picture(Picture(photo(20, 30)), tmp_path / "small.png")
    choose_files(page, tmp_path / "small.png", large)
    page.locator("#upscale").click()
    page.locator("#left", has_text="left").wait_for(timeout=60_000)
    said = page.locator("#left").inner_text()
    assert re.fullmatch(r"about [\d.]+ (s|min) left", said)
    page.get_by_text("Upscaling 2 of 2: large.png").wait_for()
    page.locator('#bar:not([aria-valuenow="0"])').wait_for()
    share = int(page.locator("#bar").get_attribute("aria-valuenow"))
    assert 0 < share < 100
    page.reload()
    page.locator("#bar").wait_for()
    assert int(page.locator("#bar").get_attribute("aria-valuenow")) >= share
    assert page.locator("#files li").count() == 2
    # Another tab of the browser finds the task, and one of its own waits.
    other = page.context.new_page()
    other.goto(server.url)
    other.locator("#others", has_text="small.png and 1 more is being").wait_for()
    choose_files(other, tmp_path / "small.png")
    other.locator("#upscale").click()
    other.get_by_text("Waiting for 1 other task").wait_for()
    other.locator("#cancel").click()
    other.locator("#error", has_text="Cancelled").wait_for()
    other.close()
    page.locator("#cancel").click()
    page.locator("#done").wait_for(timeout=60_000)
    # What was finished before stays.
    said = page.locator("#outcome").inner_text()
    assert said == "Cancelled; finished: small_2x.png: 30x20 → 60x40"
    assert page.locator("#progress").is_hidden()
    assert page.locator("#upscale").is_enabled()


def test_a_preview_of_a_video(page, clip, tmp_path):
    # A video that is dropped among the pictures finds its tab.
    choose_files(page, clip)
    assert page.locator("#tab-video").get_attribute("aria-selected") == "true"
    assert page.locator("#files .info").inner_text() == "32x24, 8.0 s"
    upscale(page, "#preview")
    assert "32x24 → 64x48" in page.locator("#outcome").inner_text()
    assert "20 frames" in page.locator("#how").inner_text()
    preview = download(page, tmp_path)
    assert preview.name == "my clip_preview_2x.mp4"
    frame = page.frame_locator("#comparison iframe")
    assert frame.locator("#second-tag").inner_text() == "After: a 2x.safetensors"


def test_a_damaged_video_is_told_at_once(page, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 50)
    choose_files(page, tmp_path / "bad.mp4", ready="bad")
    assert "cannot be read as a video" in page.locator("#files .bad").inner_text()
    assert page.locator("#preview").is_disabled()


def test_nothing_but_this_computer_is_asked(page, server, tmp_path):
    write_picture(Picture(photo(20, 30)), tmp_path / "in.png")
    choose_files(page, tmp_path / "in.png")
    upscale(page)
    local = (server.url, "data:", "blob:")
    assert len(page.requests) > 5
    assert [url for url in page.requests if not url.startswith(local)] == []
    for line in server.asked.read_text().splitlines():
        assert "127.0.0.1" in line or "localhost" in line, line


# The least contrast of all texts on the page with what is behind them, after WCAG 2.
CONTRAST = """() => {
  const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) =>
    [r, g, b].map((each, i) => each * a + below[i] * (1 - a));
  function behind(node) {
    if (!node) return rgba(getComputedStyle(document.documentElement).backgroundColor);
    const colour = rgba(getComputedStyle(node).backgroundColor);
    return colour[3] === 0 ? behind(node.parentElement)
      : over(colour, behind(node.parentElement));
  }
  function light(colour) {
    const [r, g, b] = colour.map((each) => each / 255)
      .map((each) => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].some((each) =>
      each.nodeType === 3 && each.textContent.trim());
    const box = node.getBoundingClientRect();
    if (!text && !node.matches("input, select") || !box.width || !box.height) continue;
    if (node.matches("script, option, noscript")) continue;
    const back = behind(node), front = over(rgba(getComputedStyle(node).color), back);
    const [low, high] = [light(front), light(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    found.push([ratio, node.tagName, node.textContent.slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""


def test_contrast_and_a_phone(page, tmp_path):
    page.set_viewport_size({"width": 390, "height": 844})
    (tmp_path / "bad.png").write_text("hello")
    write_picture(Picture(photo(20, 30)), tmp_path / "in.png")
    page.locator("summary").click()
    choose_files(page, tmp_path / "in.png")
    page.locator("#files-input").set_input_files(tmp_path / "bad.png")
    page.locator("#files .bad").wait_for()
    upscale(page)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        contrasts = page.evaluate(CONTRAST)
        assert len(contrasts) > 25
        assert contrasts[0][0] >= 4.5, contrasts[:3]
        assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("h1").count() == 1


def test_only_this_computer_reaches_it(server):
    psutil = pytest.importorskip("psutil")
    listening = {
        connection.laddr.ip
        for connection in psutil.Process(server.process.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    with pytest.raises(urllib.error.HTTPError, match="400"):
        server.ask("GET", "/tasks", Host="evil.example")


def test_only_what_was_uploaded_is_read(server, tmp_path):
    write_picture(Picture(photo(20, 30)), tmp_path / "secret.png")
    for path in (str(tmp_path / "secret.png"), "", "\0", 7, None, ["a"], "x" * 9999):
        code, error = server.refuses("POST", "/tasks", {"files": [path]})
        assert (code, error) == (400, "This is no file that was uploaded here.")
    for name in ("../../x", "x/files/0", "x/zip", "x/compare", "x"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            server.ask("GET", f"/tasks/{name}")


@pytest.mark.parametrize(
    "words, said",
    [
        (7, "An order is a JSON object."),
        ({"model": ["a"]}, "`model` has to be one of a 2x.safetensors, b <b>3x"),
        ({"model": {}}, "`model` has to be one of"),
        ({"format": "/../../evil.png"}, "`format` has to be one of .png"),
        ({"scale": "2"}, "`scale` has to be a number from 0.1 to 16."),
        ({"scale": True}, "`scale` has to be a number from 0.1 to 16."),
        ({"width": 10**9}, "`width` has to be a number from 1 to 100000."),
        ({"quality": 0}, "`quality` has to be a number from 1 to 100."),
        ({"kind": "sound"}, "`kind` has to be one of pictures, video."),
        ({"kind": "video", "preview": 1}, "`preview` has to be true or false."),
        ({"evil": 1}, "There is no setting `evil` here."),
        ({"files": "a"}, "Add a file first"),
    ],
)
def test_words_of_another_type_are_an_error(server, tmp_path, words, said):
    if isinstance(words, dict) and "files" not in words:
        write_picture(Picture(photo(20, 30)), tmp_path / "in.png")
        words = {"files": [server.upload(tmp_path / "in.png")], **words}
    code, error = server.refuses("POST", "/tasks", words)
    assert code == 400
    assert error.startswith(said)
    assert server.refuses("POST", "/tasks", b"{")[1] == "The request is no JSON."


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1"]
)
def test_another_page_stores_nothing(server, tmp_path, origin):
    write_picture(Picture(photo(21, 30)), tmp_path / "in.png")
    before = sorted(server.temporary.rglob("*"))
    with pytest.raises(urllib.error.HTTPError, match="403"):
        server.upload(tmp_path / "in.png", Origin=origin)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        server.ask("POST", "/tasks", {}, Origin=origin)
    assert sorted(server.temporary.rglob("*")) == before
    assert os.path.exists(server.upload(tmp_path / "in.png", Origin=server.url))


def test_pictures_that_are_too_large(server, tmp_path):
    # 30000x30000 in the header; the file itself is small.
    Image.new("1", (8, 8)).save(tmp_path / "huge.png")
    content = bytearray((tmp_path / "huge.png").read_bytes())
    content[16:24] = (30000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(content)
    path = server.upload(tmp_path / "huge.png")
    said = server.ask("POST", "/checks", {"path": path})["reason"]
    assert "900 megapixels" in said or "30000x30000" in said
    task = server.run(files=[path])
    assert task["state"] == "failed"
    assert task["failures"][0]["name"] == "huge.png"
    write_picture(Picture(photo(60, 60)), tmp_path / "wide.png")
    task = server.run(files=[server.upload(tmp_path / "wide.png")], width=40_000)
    assert "this page makes 500 at most" in task["failures"][0]["reason"]
    assert "aethernet-ui-" not in json.dumps(task)


def test_the_files_of_earlier_tasks_go(server, tmp_path):
    paths = []
    for number in range(KEPT_TASKS + 2):
        write_picture(Picture(photo(8, 9 + number)), tmp_path / f"{number}.png")
        paths.append(server.upload(tmp_path / f"{number}.png"))
        task = server.run(files=[paths[-1]])
        assert task["results"][0]["name"] == f"{number}_2x.png"
    assert [os.path.exists(path) for path in paths[:2]] == [False, False]
    assert os.path.exists(paths[-1])
    folders = [*server.temporary.glob("aethernet-ui-*/tasks/*")]
    assert len(folders) == len(server.ask("GET", "/tasks")) == KEPT_TASKS


def test_the_api_as_the_page_describes_it(server, clip, tmp_path, monkeypatch):
    """Every block of Python and of sh in docs/ui.md, one after the other."""
    pytest.importorskip("gradio_client")
    page = (ROOT / "docs/ui.md").read_text("utf-8")
    page = page.replace("http://127.0.0.1:7860", server.url)
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```$", page, re.M | re.S)
    assert {kind for kind, _ in blocks} == {"python", "sh"}
    write_picture(Picture(photo(20, 30)), tmp_path / "photo.jpg")
    shutil.copy(clip, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    scope = {}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "docs/ui.md", "exec"), scope)
        elif "curl" in block and shutil.which("curl"):
            subprocess.run(["sh", "-ec", block], check=True, timeout=60)
    assert read_picture(scope["big"]).pixels.shape == (40, 60, 3)
    assert Path(scope["try_out"]).suffix == ".mp4"
    if shutil.which("curl"):
        assert read_picture("photo_2x.jpg").pixels.shape == (40, 60, 3)


def test_ctrl_c_ends_it_in_the_middle_of_a_task(server, large):
    # The last test of all, since it ends the server that they share.
    task = server.ask("POST", "/tasks", {"files": [server.upload(large)]})
    while not server.ask("GET", f"/tasks/{task['id']}")["share"]:
        time.sleep(0.05)
    assert os.listdir(server.temporary) != []
    code, printed = server.end()
    assert code == 0
    assert "Traceback" not in printed
    assert "terminate" not in printed
    assert os.listdir(server.temporary) == []
