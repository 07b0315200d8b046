"""Draw the pictures of the pages in the documents: `python tools/draw_screenshots.py`.

`aethernet compare` shows the sample picture at half its size, upscaled by the shipped
model, beside the sample itself. `aethernet ui` and the page of `aethernet web` show the
sample, upscaled. This needs Chromium, npm, and the extras `ui` and `dev`. Name
pictures, such as web.png, to draw these only.
"""

import contextlib
import functools
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyvips
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "assets/sample.png"
SIZE: ViewportSize = {"width": 1200, "height": 720}
TALL: ViewportSize = {"width": 1200, "height": 1000}
PHONE: ViewportSize = {"width": 390, "height": 844}
FLAGS = ("--disable-gpu", "--disable-background-networking", "--no-first-run")
COMMAND = (sys.executable, "-m", "aethernet")


def main() -> int:
    draw = {
        "compare.png": _compare,
        "ui.png": _ui,
        "web.png": _web,
        "web_phone.png": _web_phone,
    }
    chromium = shutil.which("chromium")  # None: the one that Playwright brings
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name in sys.argv[1:] or draw:
            _keep(draw[name](browser, Path(folder)), ROOT / "assets" / name)
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
    page.evaluate("view.division = 0.5; view.zoom = 5.4; view.fitted = false")
    page.evaluate("view.x = 112; view.y = 58; redraw()")
    page.wait_for_timeout(500)
    return page.screenshot()


def _ui(browser: Browser, _: Path) -> bytes:
    server = subprocess.Popen(
        [*COMMAND, "ui", "--no-browser"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found, "the page did not start"
        page = browser.new_page(viewport=SIZE)
        page.goto(found[0])
        page.locator("#picture input[type=file]").set_input_files(SAMPLE)
        page.locator("#picture img").wait_for()
        page.locator("#upscale").click()
        page.locator("#result p").first.wait_for(timeout=300_000)
        page.wait_for_timeout(1500)
        return page.screenshot()
    finally:
        server.terminate()
        server.wait()


def _web(browser: Browser, folder: Path) -> bytes:
    with _served(folder / "web") as address:
        return _enlarged(browser.new_page(viewport=TALL), address)


def _web_phone(browser: Browser, folder: Path) -> bytes:
    with _served(folder / "web") as address:
        page = browser.new_page(viewport=PHONE, color_scheme="dark", has_touch=True)
        return _enlarged(page, address)


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The address of the page of `aethernet web`, which is written the first time."""
    if not folder.exists():
        subprocess.run([*COMMAND, "web", "-o", str(folder)], check=True)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def _enlarged(page: Page, address: str) -> bytes:
    page.goto(address)
    # It reloads itself once for threads. Its policy forbids to wait for an expression.
    page.locator("#engine", has_text="threads").wait_for(timeout=300_000)
    page.locator("#files").set_input_files(SAMPLE)
    page.locator("li.done").wait_for(timeout=300_000)
    page.locator(".zoom button").nth(2).click()  # show the face, which has most detail
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
