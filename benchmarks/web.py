"""The page of `aethernet web` on the processor, beside ONNX Runtime itself.

    python benchmarks/web.py [--side 192] [--rounds 7]

A round enlarges the same picture with the shipped model four times, in turn: on the
page with one thread and with two, and in ONNX Runtime with as many. Ratios are taken
round by round. The page decodes a PNG and encodes the result, too. What the start
costs is printed apart: loading, and the first picture, during which the browser still
compiles. Needs Chromium, npm and the extra `dev`; nothing else should run.
"""

import argparse
import contextlib
import functools
import io
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from aethernet.checkpoints.checkpoint import load_checkpoint
from aethernet.checkpoints.onnx_graph import to_onnx
from aethernet.checkpoints.shipped import shipped_model
from aethernet.errors import import_optional
from aethernet.publish.web import write_page

SAMPLE = Path(__file__).resolve().parents[1] / "assets/sample.png"

FLAGS = ("--disable-gpu", "--disable-background-networking", "--no-first-run")

# Enlarges a picture on the page, as a visitor does, and removes it from the list.
RUN = """async (values) => {
  const files = document.querySelector('#files');
  const list = document.querySelector('#list');
  const picture = new DataTransfer();
  picture.items.add(new File([new Uint8Array(values)], 'picture.png'));
  const start = performance.now();
  const done = new Promise((resolve, reject) => {
    const observer = new MutationObserver(() => {
      const {className, textContent} = list.firstElementChild;
      if (className === 'failed') reject(new Error(textContent));
      if (className !== 'done') return;
      observer.disconnect();
      resolve(performance.now());
    });
    observer.observe(list, {attributes: true, subtree: true});
  });
  files.files = picture.files;
  files.dispatchEvent(new Event('change'));
  const seconds = ((await done) - start) / 1000;
  list.querySelector('.stop').click();
  return seconds;
}"""


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, with the headers that allow threads or without."""

    def __init__(self, *words: object, isolated: bool, folder: Path) -> None:
        self.isolated = isolated
        super().__init__(*words, directory=str(folder))  # type: ignore[arg-type]

    def end_headers(self) -> None:
        if self.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path, isolated: bool) -> Iterator[str]:
    """The address of a folder."""
    handler = functools.partial(Handler, isolated=isolated, folder=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def opened(browser: Browser, address: str, threads: int) -> Page:
    """A page on which `RUN` enlarges a picture; prints what loading takes.

    Raises:
        AssertionError: when the page takes another number of threads on this computer.
    """
    context = browser.new_context(service_workers="block")  # it would isolate the page
    page = context.new_page()
    page.add_init_script("localStorage.device = 'wasm'")
    start = time.perf_counter()
    page.goto(address)
    engine = page.locator("#engine", has_text="Runs on")
    engine.wait_for()
    loaded = time.perf_counter() - start
    used = engine.inner_text()
    assert f"({threads} thread" in used, used
    print(f"page, {threads} thread(s): loaded in {loaded:.2f} s")
    return page


def library(content: bytes, threads: int, image: np.ndarray) -> Callable[[], float]:
    """What runs ONNX Runtime and returns its seconds."""
    onnxruntime = import_optional("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(content, options, providers)

    def run() -> float:
        start = time.perf_counter()
        session.run(None, {"input": image})
        return time.perf_counter() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", type=int, default=192, help="pixels; up to 288")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    side = arguments.side
    picture = Image.open(SAMPLE).convert("RGB").crop((0, 0, side, side))
    file = io.BytesIO()
    picture.save(file, "png")
    image = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / np.float32(255)
    content = to_onnx(load_checkpoint(shipped_model()).folded).SerializeToString()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()), "page")
        write_page([shipped_model()], folder)
        playwright = stack.enter_context(sync_playwright())
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        runs: dict[str, Callable[[], float]] = {}
        for threads in (1, 2):
            address = stack.enter_context(served(folder, isolated=threads > 1))
            page = opened(browser, address, threads)
            values = [*file.getvalue()]
            runs[f"page, {threads}"] = lambda page=page, values=values: (  # type: ignore[misc]
                page.evaluate(RUN, values)
            )
            runs[f"ONNX Runtime, {threads}"] = library(content, threads, image)
        report(runs, arguments.rounds, side * side / 1e6)
        browser.close()


def report(
    runs: dict[str, Callable[[], float]], rounds: int, megapixels: float
) -> None:
    """Run everything in turn, and print it."""
    first = {name: run() for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(run())
    for name, own in seconds.items():
        middle = statistics.median(own)
        print(
            f"{name} thread(s): {middle / megapixels:.1f} s per LR megapixel; the "
            f"first picture took {first[name] / middle:.2f} times as long"
        )
    for one, other in (
        ("page, 1", "ONNX Runtime, 1"),
        ("page, 2", "ONNX Runtime, 2"),
        ("page, 1", "page, 2"),
    ):
        ratios = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
        print(
            f"{one} / {other} thread(s): {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
