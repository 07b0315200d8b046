"""A page on this computer for upscaling pictures one by one, made with Gradio.

It listens on 127.0.0.1 only. Neither the server nor the page asks anything of another
machine: no telemetry, no fonts, no shared link. What is uploaded and made lies in one
temporary folder, which is removed when the server ends.
"""

import contextlib
import html
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aethernet.errors import AetherError, ImageError, import_optional
from aethernet.files import check_source, files_in
from aethernet.pictures.files import FORMATS, PictureReader, read_picture
from aethernet.pictures.write import for_browsers
from aethernet.runtimes.base import Model
from aethernet.runtimes.registry import RUNTIMES
from aethernet.upscaling.files import upscale_file

ADDRESS = "127.0.0.1"

MOST_MEGAPIXELS = 100
"""Of a result; more takes long, for which a page is not made."""

_LARGEST_UPLOAD = "200mb"

# Of each side of the slider; larger results are reduced for it, not for the download.
_PREVIEW_PIXELS, _PREVIEW_SIDE = 4_000_000, 8192

_AS_SOURCE = ""

_FORMATS = {_AS_SOURCE: "as the picture"} | {
    suffix: kind.name
    for suffix, kind in FORMATS.items()
    if suffix not in (".jpeg", ".tiff")
}

_STYLE = """
footer { display: none !important; }
.gradio-container {
  width: 100%; max-width: 1280px !important; margin: 0 auto !important;
}
#said p { font-variant-numeric: tabular-nums; }
"""


def find_models(paths: Sequence[Path]) -> dict[str, Path]:
    """Model files by the names to choose them by; folders stand for those in them.

    Raises:
        AetherError: when a folder has none, or a file cannot be read.
    """
    suffixes = [*dict.fromkeys(s for *_, each in RUNTIMES.values() for s in each)]
    found: list[Path] = []
    for path in paths:
        found += files_in(path, suffixes, "models") if path.is_dir() else [path]
    for path in found:
        check_source(path, "a model file")
    names = [path.name for path in found]
    return {
        name if names.count(name) == 1 else str(path): path
        for name, path in zip(names, found, strict=True)
    }


def serve(
    models: Mapping[str, Path],
    load: Callable[[Path], Model],
    port: int | None = None,
    open_browser: bool = True,
) -> None:
    """Show the page until interrupted (Ctrl+C).

    Args:
        models: at least one, by the names shown; the first is chosen at first.
        load: opens a model file, when it is first asked for.
        port: None for the first free one from 7860 on.

    Raises:
        MissingExtraError: when Gradio is not installed.
        AetherError: when the port is taken.
    """
    # Read when Gradio is imported; the page says the same again where it can.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    # A proxy for the world outside must not be asked for this computer.
    around = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    os.environ["no_proxy"] = f"{around},{ADDRESS}".lstrip(",")
    with tempfile.TemporaryDirectory(
        prefix="aethernet-ui-", ignore_cleanup_errors=True
    ) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        gradio = import_optional("gradio", "ui")
        page = _page(gradio, models, load, Path(folder))
        try:
            _, url, _ = page.launch(
                server_name=ADDRESS,
                server_port=port,
                inbrowser=False,
                share=False,
                # Not for a page elsewhere whose name was made to lead here.
                app_kwargs={"middleware": [_only_this_computer()]},
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=_LARGEST_UPLOAD,
                enable_monitoring=False,
                run_history=False,
                mcp_server=False,
                ssr_mode=False,
                pwa=False,
                footer_links=[],
                css=_STYLE,
                theme=gradio.themes.Default(
                    font=("system-ui", "sans-serif"),
                    font_mono=("ui-monospace", "monospace"),
                ),
            )
        except OSError as error:
            taken = f"the port {port} is" if port else "all its ports are"
            raise AetherError(
                f"The page cannot be served: {taken} taken; name another (--port)."
            ) from error
        try:
            print(f"The page is at {url} on this computer; Ctrl+C ends it.", flush=True)
            if open_browser:
                import webbrowser

                webbrowser.open(url)
            while True:
                time.sleep(1)
        except KeyboardInterrupt:  # the way to end it
            pass
        finally:
            page.close(verbose=False)


def _only_this_computer() -> Any:
    middleware = import_optional("starlette.middleware", "ui")
    hosts = import_optional("starlette.middleware.trustedhost", "ui")
    return middleware.Middleware(
        hosts.TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]
    )


def _page(
    gradio: Any,
    models: Mapping[str, Path],
    load: Callable[[Path], Model],
    folder: Path,
) -> Any:
    loaded: dict[str, Model] = {}

    def upscale(upload: dict[str, Any] | None, name: str, suffix: str) -> Any:
        with _errors_as_toasts(gradio, folder):
            # All of these words may be anything that a client sends.
            if not isinstance(upload, dict) or not upload.get("path"):
                raise ImageError("Drop a picture first.")
            source = Path(os.path.realpath(str(upload["path"])))
            if not source.is_relative_to(os.path.realpath(folder)):
                raise ImageError("That is no picture that was dropped here.")
            if name not in models or suffix not in _FORMATS:
                raise AetherError("Choose a model and a format of those on the page.")
            size = PictureReader(source).header.size
            if name not in loaded:
                loaded[name] = load(models[name])
            model = loaded[name]
            check_size(source.name, size, model.scale)
            work = Path(tempfile.mkdtemp(dir=folder))
            target = work / target_name(source, model.scale, suffix)
            start = time.perf_counter()
            done = upscale_file(source, target, model)
            seconds = time.perf_counter() - start
            sizes = (
                "x".join(map(str, size)) for size in (done.size_before, done.size_after)
            )
            how = replace(model.describe(), why="")
            said = f"{' → '.join(sizes)} in {seconds:.1f} s, {html.escape(str(how))}"
            slider = _previews(source, target, work)
            return slider, gradio.DownloadButton(value=target, interactive=True), said

    with gradio.Blocks(
        title="AetherNet", analytics_enabled=False, fill_width=True
    ) as page:
        gradio.Markdown("## AetherNet")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300):
                dropped = gradio.Image(
                    label="Picture",
                    sources=["upload", "clipboard"],
                    type="filepath",
                    image_mode=None,
                    height=220,
                    buttons=[],
                    elem_id="picture",
                )
                chosen = gradio.Dropdown(
                    [*models], value=next(iter(models)), label="Model", elem_id="model"
                )
                written_as = gradio.Dropdown(
                    [(shown, suffix) for suffix, shown in _FORMATS.items()],
                    value=_AS_SOURCE,
                    label="Format",
                    elem_id="format",
                )
                button = gradio.Button("Upscale", variant="primary", elem_id="upscale")
                download = gradio.DownloadButton(
                    "Download", interactive=False, elem_id="download"
                )
                said = gradio.Markdown(elem_id="said")
            with gradio.Column(scale=3, min_width=320):
                slider = gradio.ImageSlider(
                    label="Bicubic and the model",
                    type="filepath",
                    image_mode=None,
                    interactive=False,
                    max_height=600,
                    buttons=["fullscreen"],
                    elem_id="slider",
                )
        button.click(
            upscale,
            [dropped, chosen, written_as],
            [slider, download, said],
            # Gradio would open the picture itself, with other limits and sentences.
            preprocess=False,
            api_visibility="private",
        )
    return page


def check_size(name: str, size: tuple[int, int], scale: int) -> None:
    """Refuse a picture that would take the page too long.

    Raises:
        ImageError: when the result has more than `MOST_MEGAPIXELS`.
    """
    megapixels = size[0] * size[1] * scale**2 / 1e6
    if megapixels > MOST_MEGAPIXELS:
        raise ImageError(
            f"{name} has {size[0]}x{size[1]} pixels and would become "
            f"{megapixels:.0f} megapixels at {scale}x; this page makes "
            f"{MOST_MEGAPIXELS} at most, the command `aethernet upscale` more."
        )


def target_name(source: Path, scale: int, suffix: str) -> str:
    """What the download is called: photo.jpg becomes photo_2x.jpg."""
    if suffix == _AS_SOURCE:
        known = source.suffix.lower() in FORMATS
        suffix = source.suffix if known else ".png"
    return f"{source.stem}_{scale}x{suffix}"


@contextlib.contextmanager
def _errors_as_toasts(gradio: Any, folder: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise gradio.Error("Out of memory.", print_exception=False) from error
    except AetherError as error:
        # Of a file in our folder of folders only its own name says something.
        inside = re.escape(str(folder)) + r"[/\\][^/\\]+[/\\]"
        # The page shows HTML, and a name may look like it.
        said = html.escape(re.sub(inside, "", str(error)))
        raise gradio.Error(said, print_exception=False) from error


def _previews(source: Path, target: Path, folder: Path) -> tuple[Path, Path]:
    """Pictures of one size for the slider: the source, bicubic, and the result."""
    before, after = (for_browsers(read_picture(path)) for path in (source, target))
    pixels = after.width * after.height
    longest = max(after.width, after.height)
    factor = min((_PREVIEW_PIXELS / pixels) ** 0.5, _PREVIEW_SIDE / longest, 1)
    width, height = (
        max(round(side * factor), 1) for side in (after.width, after.height)
    )
    paths = folder / "before.webp", folder / "after.webp"
    for image, path in ((before, paths[0]), (after, paths[1])):
        across, down = width / image.width, height / image.height
        shown = image.resize(across, vscale=down, kernel="cubic")
        shown.webpsave(str(path), lossless=True, effort=0, keep="icc")
    return paths
