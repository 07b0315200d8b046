"""Draw the documents' pictures of our pages: `python tools/draw_screenshots.py`.

`aethernet compare` shows the sample picture at half its size, upscaled by the shipped
model, beside the sample itself. `aethernet ui` shows pictures upscaled, on a screen and
on a phone, and a preview of a video made of the sample; the page of `aethernet web`
shows the sample upscaled. This needs Chromium, npm, and the extras `ui`, `video` and
`dev`.
"""

import functools
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import pyvips
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "assets"
SAMPLE = ASSETS / "sample.png"
SIZE: ViewportSize = {"width": 1200, "height": 720}
PHONE: ViewportSize = {"width": 390, "height": 844}
FLAGS = ("--disable-gpu", "--disable-background-networking", "--no-first-run")
COMMAND = (sys.executable, "-m", "aethernet")


def main() -> int:
    chromium = shutil.which("chromium")  # None: the one that Playwright brings
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        _keep(_compare(browser, Path(folder)), ASSETS / "compare.png")
        with _server() as address:
            _keep(_ui(browser, address, Path(folder)), ASSETS / "ui.png")
            _keep(_phone(browser, address), ASSETS / "ui-phone.png")
            _keep(_video(browser, address, Path(folder)), ASSETS / "ui-video.png")
        with _static_server(Path(folder, "web")) as address:
            _keep(_web(browser, address), ASSETS / "web.png")
            _keep(_web_phone(browser, address), ASSETS / "web-phone.png")
        browser.close()
    return 0


def _compare(browser: Browser, folder: Path) -> bytes:
    report, lr = folder / "report.html", folder / "sample.png"
    pyvips.Image.new_from_file(str(SAMPLE)).resize(0.5, kernel="cubic").pngsave(str(lr))
    words = ("compare", lr, "--hr", SAMPLE, "-o", report)
    subprocess.run([*COMMAND, *map(str, words)], check=True)
    page = browser.new_page(viewport=SIZE)
    page.goto(report.as_uri())
    # Show the face, which has most detail.
    page.evaluate("view.division = 0.5; view.zoom = 5; view.opened = false")
    page.evaluate("view.x = 112; view.y = 58; redraw()")
    page.wait_for_timeout(500)
    return page.screenshot()


@contextmanager
def _server() -> Iterator[str]:
    """`aethernet ui`; yields its address."""
    server = subprocess.Popen(
        [*COMMAND, "ui", "--no-browser"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found, "the page did not start"
        yield found[0]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def _upscaled(page: Page, files: list[Path], button: str = "#upscale") -> None:
    """Choose files on the page, press a button and wait for the result."""
    page.locator("#files-input").set_input_files(files)
    page.locator("#files .good").nth(len(files) - 1).wait_for()
    page.locator(button).click()
    page.locator("#done").wait_for(timeout=600_000)
    page.mouse.move(0, 0)
    page.wait_for_timeout(2000)


def _ui(browser: Browser, address: str, folder: Path) -> bytes:
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.goto(address)
    shuttle = folder / "shuttle.png"
    whole = pyvips.Image.new_from_file(str(SAMPLE))
    whole.crop(150, 0, 106, 130).pngsave(str(shuttle))
    _upscaled(page, [SAMPLE, shuttle])
    return page.screenshot(full_page=True)


def _phone(browser: Browser, address: str) -> bytes:
    page = browser.new_page(viewport=PHONE)
    page.goto(address)
    _upscaled(page, [SAMPLE])
    return page.screenshot(full_page=True)


def _video(browser: Browser, address: str, folder: Path) -> bytes:
    context = browser.new_context(viewport=PHONE, color_scheme="dark")
    page = context.new_page()
    page.goto(address)
    page.locator("#tab-video").click()
    _upscaled(page, [_clip(folder / "clip.mp4")], "#preview")
    return page.screenshot(full_page=True)


def _clip(path: Path) -> Path:
    """Eight seconds that move over the sample."""
    whole = pyvips.Image.new_from_file(str(SAMPLE))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(64):
            part = whole.crop(number, 10 + number // 4, 160, 120)
            frame = av.VideoFrame.from_ndarray(part.numpy(), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@contextmanager
def _static_server(folder: Path) -> Iterator[str]:
    """The page of `aethernet web`, written into a folder; yields its address."""
    subprocess.run([*COMMAND, "web", "-o", str(folder)], check=True)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def _web(browser: Browser, address: str) -> bytes:
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    return _enlarged(page, address)


def _web_phone(browser: Browser, address: str) -> bytes:
    page = browser.new_page(viewport=PHONE, color_scheme="dark")
    return _enlarged(page, address)


def _enlarged(page: Page, address: str) -> bytes:
    page.goto(address)
    # It reloads itself once for threads. Its policy forbids to wait for an expression.
    page.locator("#engine", has_text="threads").wait_for(timeout=300_000)
    page.locator("#files").set_input_files(SAMPLE)
    page.locator("li.done").wait_for(timeout=300_000)
    page.locator(".zoom label").nth(2).click()  # show the face, which has most detail
    page.evaluate("document.querySelector('.stage').scrollTo(200, 130)")
    page.wait_for_timeout(500)
    return page.screenshot()


def _keep(picture: bytes, target: Path) -> None:
    """Write a palette of 256 colours: a third of the size, and no visible loss here."""
    image = pyvips.Image.new_from_buffer(picture, "")
    image.pngsave(str(target), palette=True, Q=95, effort=10)
    size = target.stat().st_size / 1e3
    print(f"wrote {target.relative_to(ROOT)} ({size:.0f} KB)")


if __name__ == "__main__":
    sys.exit(main())
