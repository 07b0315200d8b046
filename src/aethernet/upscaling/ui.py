"""A page on this computer for upscaling pictures one by one, made with Gradio.

It listens on 127.0.0.1 only. Neither the server nor the page connects to another
machine: no telemetry, no fonts, no shared link. Uploads and results are kept in one
temporary folder, which is removed when the server ends.
"""

import contextlib
import html
import os
import tempfile
import time
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aethernet.errors import AetherError, ImageError, import_optional
from aethernet.files import check_source, files_in
from aethernet.pictures.files import FORMATS, PictureReader, read_picture
from aethernet.pictures.write import for_browsers
from aethernet.runtimes.base import Model
from aethernet.runtimes.registry import model_suffixes
from aethernet.upscaling.files import upscale_file

ADDRESS = "127.0.0.1"

MOST_MEGAPIXELS = 100
"""Largest result. More takes minutes, without progress on the page."""

_LARGEST_UPLOAD = "200mb"

# Largest pictures in the slider. Larger results are reduced for it only.
_PREVIEW_PIXELS, _PREVIEW_SIDE = 4_000_000, 8192

_AS_SOURCE = ""

_FORMATS = {_AS_SOURCE: "as the picture"} | {
    suffix: kind.name
    for suffix, kind in FORMATS.items()
    if suffix not in (".jpeg", ".jpe", ".jfif", ".tiff")
}

_STYLE = """
footer { display: none !important; }
.gradio-container {
  width: 100%; max-width: 1280px !important; margin: 0 auto !important;
}
#result p { font-variant-numeric: tabular-nums; }
"""


def find_models(paths: Sequence[Path]) -> dict[str, Path]:
    """Find model files, by the names that the page shows.

    Args:
        paths: of files, and of folders that stand for the model files in them.

    Raises:
        AetherError: when a folder has none, or a file cannot be read.
    """
    suffixes = model_suffixes()
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
        models: at least one, by the names to show; the first is preselected.
        load: opens a model file; called when the model is first used.
        port: None for the first free one from 7860 on.
        open_browser: whether to open the page in the browser.

    Raises:
        MissingExtraError: when Gradio is not installed.
        AetherError: when the port is taken.
    """
    with tempfile.TemporaryDirectory(
        prefix="aethernet-ui-", ignore_cleanup_errors=True
    ) as temporary:
        folder = Path(os.path.realpath(temporary))
        _keep_gradio_local(folder)
        gradio = import_optional("gradio", "ui")
        upscaler = _Upscaler(gradio, models, load, folder)
        page = _page(gradio, [*models], upscaler.upscale)
        url = _launch(gradio, page, port)
        try:
            print(f"The page is at {url} on this computer; Ctrl+C ends it.", flush=True)
            if open_browser:
                webbrowser.open(url)
            while True:
                time.sleep(1)
        except KeyboardInterrupt:  # the way to end it
            pass
        finally:
            page.close(verbose=False)


def _keep_gradio_local(folder: Path) -> None:
    """Set what Gradio reads from the environment when it is imported."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Requests to this computer must not go through a proxy.
    around = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    os.environ["no_proxy"] = f"{around},{ADDRESS}".lstrip(",")


def _launch(gradio: Any, page: Any, port: int | None) -> str:
    """Start the server; return the address of the page."""
    try:
        _, url, _ = page.launch(
            server_name=ADDRESS,
            server_port=port,
            inbrowser=False,
            share=False,
            # Refuse pages elsewhere whose host name was made to resolve to 127.0.0.1.
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
            f"The page cannot be served: {taken} taken.", hint="Name another (--port)."
        ) from error
    return str(url)


def _only_this_computer() -> Any:
    middleware = import_optional("starlette.middleware", "ui")
    hosts = import_optional("starlette.middleware.trustedhost", "ui")
    return middleware.Middleware(
        hosts.TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]
    )


class _Upscaler:
    """Upscales what was dropped on the page; models stay loaded."""

    def __init__(
        self,
        gradio: Any,
        models: Mapping[str, Path],
        load: Callable[[Path], Model],
        folder: Path,
    ) -> None:
        self._gradio, self._models, self._load = gradio, models, load
        self._folder = folder
        self._loaded: dict[str, Model] = {}

    def upscale(self, upload: Any, name: Any, suffix: Any) -> tuple[Any, Any, str]:
        """Values of the slider, the download button and the text below it.

        Args:
            upload, name, suffix: values of the page's inputs. Another client could send
                anything.
        """
        with _errors_as_toasts(self._gradio, self._folder):
            source = self._uploaded(upload)
            if name not in self._models or suffix not in _FORMATS:
                raise AetherError("Choose a model and a format of those on the page.")
            size = PictureReader(source).header.size
            model = self._model(name)
            check_size(source, size, model.scale)
            work = Path(tempfile.mkdtemp(dir=self._folder))
            target = work / target_name(source, model.scale, suffix)
            start = time.perf_counter()
            done = upscale_file(source, target, model)
            seconds = time.perf_counter() - start
            before, after = (f"{w}x{h}" for w, h in (done.size_before, done.size_after))
            how = html.escape(str(replace(model.describe(), why="")))
            download = self._gradio.DownloadButton(value=target, interactive=True)
            text = f"{before} → {after} in {seconds:.1f} s, {how}"
            if done.left_out:
                text += f". Left out: {html.escape(', '.join(done.left_out))}."
            return _previews(source, target, work), download, text

    def _uploaded(self, upload: Any) -> Path:
        """The picture that was dropped; never a file outside the page's own folder."""
        if not isinstance(upload, dict) or not upload.get("path"):
            raise ImageError("Drop a picture first.")
        source = Path(os.path.realpath(str(upload["path"])))
        if not source.is_relative_to(self._folder):
            raise ImageError("This is not a picture that was dropped here.")
        return source

    def _model(self, name: str) -> Model:
        if name not in self._loaded:
            self._loaded[name] = self._load(self._models[name])
        return self._loaded[name]


def _page(gradio: Any, names: Sequence[str], upscale: Callable[..., Any]) -> Any:
    """The layout: inputs at the left, the slider at the right."""
    with gradio.Blocks(
        title="AetherNet", analytics_enabled=False, fill_width=True
    ) as page:
        gradio.Markdown("## AetherNet")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300):
                inputs = _inputs(gradio, names)
                button = gradio.Button("Upscale", variant="primary", elem_id="upscale")
                download = gradio.DownloadButton(
                    "Download", interactive=False, elem_id="download"
                )
                result = gradio.Markdown(elem_id="result")
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
            inputs,
            [slider, download, result],
            # Otherwise Gradio opens the picture itself, with its own limits and errors.
            preprocess=False,
            api_visibility="private",
        )
    return page


def _inputs(gradio: Any, names: Sequence[str]) -> list[Any]:
    """The picture, the model and the format to choose."""
    picture = gradio.Image(
        label="Picture",
        sources=["upload", "clipboard"],
        type="filepath",
        image_mode=None,
        height=220,
        buttons=[],
        elem_id="picture",
    )
    model = gradio.Dropdown([*names], value=names[0], label="Model", elem_id="model")
    written_as = gradio.Dropdown(
        [(shown, suffix) for suffix, shown in _FORMATS.items()],
        value=_AS_SOURCE,
        label="Format",
        elem_id="format",
    )
    return [picture, model, written_as]


def check_size(path: Path, size: tuple[int, int], scale: int) -> None:
    """Check that a picture of this width and height is not too large for the page.

    Raises:
        ImageError: when the result has more than `MOST_MEGAPIXELS`.
    """
    megapixels = size[0] * size[1] * scale**2 / 1e6
    if megapixels > MOST_MEGAPIXELS:
        raise ImageError(
            f"The picture has {size[0]}x{size[1]} pixels and would become "
            f"{megapixels:.0f} megapixels at {scale}x; this page makes "
            f"{MOST_MEGAPIXELS} at most.",
            path,
            "The command `aethernet upscale` makes more.",
        )


def target_name(source: Path, scale: int, suffix: str) -> str:
    """The name of the download: photo.jpg becomes photo_2x.jpg."""
    if suffix == _AS_SOURCE:
        known = source.suffix.lower() in FORMATS
        suffix = source.suffix if known else ".png"
    return f"{source.stem}_{scale}x{suffix}"


@contextlib.contextmanager
def _errors_as_toasts(gradio: Any, folder: Path) -> Iterator[None]:
    """Show our errors on the page, in a message that fades."""
    try:
        yield
    except MemoryError as error:
        raise gradio.Error("Out of memory.", print_exception=False) from error
    except AetherError as error:
        shown = error
        if error.path is not None and error.path.is_relative_to(folder):
            shown = error.about(error.path.name)  # the user does not know the folder
        # The page shows HTML, and the name of a file may look like HTML.
        text = html.escape(str(shown))
        raise gradio.Error(text, print_exception=False) from error


def _previews(source: Path, target: Path, folder: Path) -> tuple[Path, Path]:
    """Pictures of one size for the slider: the source by bicubic, and the result."""
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
