"""A headless Chromium for the tests that look at pages."""

import contextlib
import shutil

import pytest

FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextlib.contextmanager
def chromium():
    """Start the system's Chromium, or Playwright's own, with an empty profile."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright: pip install playwright"
    )
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        except api.Error:
            pytest.skip(
                "needs Chromium: install it, or run `playwright install chromium`"
            )
        yield browser
        browser.close()


def watch(page):
    """Two lists that fill with the page's requests and with its errors."""
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda line: line.type in ("error", "warning") and complaints.append(line.text),
    )
    return requests, complaints
