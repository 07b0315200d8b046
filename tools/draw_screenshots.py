"""Draw README's pictures of the two pages: `python tools/draw_screenshots.py`.

`aethernet compare` shows the sample picture at half its size, upscaled by the shipped
model, beside the sample itself. `aethernet ui` shows the sample, upscaled. This needs
Chromium and the extras `ui` and `dev`.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyvips
from playwright.sync_api import Browser, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "assets/sample.png"
SIZE: ViewportSize = {"width": 1200, "height": 720}
FLAGS = ("--disable-gpu", "--disable-background-networking", "--no-first-run")
COMMAND = (sys.executable, "-m", "aethernet")


def main() -> int:
    chromium = shutil.which("chromium")  # None: the one that Playwright brings
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        _keep(_compare(browser, Path(folder)), ROOT / "assets/compare.png")
        _keep(_ui(browser), ROOT / "assets/ui.png")
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


def _ui(browser: Browser) -> bytes:
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


def _keep(picture: bytes, target: Path) -> None:
    """Write a palette of 256 colours: a third of the size, and no visible loss here."""
    image = pyvips.Image.new_from_buffer(picture, "")
    image.pngsave(str(target), palette=True, Q=95, effort=10)
    size = target.stat().st_size / 1e3
    print(f"wrote {target.relative_to(ROOT)} ({size:.0f} KB)")


if __name__ == "__main__":
    sys.exit(main())
