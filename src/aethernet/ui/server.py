"""A page on this computer for upscaling pictures and videos.

It listens on 127.0.0.1 only. Neither the server nor the page connects to another
machine: no telemetry, no fonts, no shared link. Uploads and results are kept in one
temporary folder, which is removed when the server ends.

Gradio stores the uploads and serves the API for its clients (`endpoints`); the page and
its requests are ours (`routes`).
"""

import contextlib
import functools
import os
import signal
import socket
import tempfile
import time
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aethernet.checkpoints.shipped import shipped_models
from aethernet.errors import AetherError, import_optional
from aethernet.files import check_source, files_in
from aethernet.runtimes.base import Model
from aethernet.runtimes.hardware import find_gpus
from aethernet.runtimes.registry import model_suffixes
from aethernet.runtimes.support import supports_of
from aethernet.ui.orders import Offer
from aethernet.ui.routes import Workplace, routes
from aethernet.ui.storage import LARGEST_UPLOAD, SameOrigin, Storage

ADDRESS = "127.0.0.1"

_KEPT_MODELS = 2  # that stay loaded, by model and device


def default_models() -> list[Path]:
    """The files of the models that are here: all fused ones that have a name."""
    return [model.path for model in shipped_models() if model.form == "fused"]


def find_models(paths: Sequence[Path]) -> dict[str, Path]:
    """Find model files, by the names that the page shows.

    Models that ship have their short name, others that of their file.

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
    short = {model.path: model.name for model in shipped_models()}
    shown = [short.get(path, path.name) for path in found]
    return {
        name if shown.count(name) == 1 else str(path): path
        for name, path in zip(shown, found, strict=True)
    }


def find_devices(preferred: str = "auto") -> dict[str, str]:
    """Devices to choose from, with the names to show; the preferred one is first."""
    found = {preferred: "as asked for", "auto": "automatic"}
    for gpu in find_gpus():
        for support in supports_of(gpu):
            if support.installed():
                found.setdefault(support.device, str(gpu))
    found["cpu"] = "processor"
    return found


def serve(
    models: Mapping[str, Path],
    load: Callable[[Path, str], Model],
    port: int | None = None,
    open_browser: bool = True,
    device: str = "auto",
) -> None:
    """Show the page until interrupted (Ctrl+C).

    Args:
        models: at least one, by the names to show; the first is preselected.
        load: opens a model file on a device; called when they are first used.
        port: None for the first free one from 7860 on.
        open_browser: whether to open the page in the browser.
        device: that is preselected.

    Raises:
        MissingExtraError: when Gradio is not installed.
        AetherError: when the port is taken.
    """
    _check_free(port)
    with tempfile.TemporaryDirectory(
        prefix="aethernet-ui-", ignore_cleanup_errors=True
    ) as temporary:
        storage = Storage(Path(temporary))
        _keep_gradio_local(storage.folder)
        gradio = import_optional("gradio", "ui")
        devices = find_devices(device)
        offer = Offer(models, tuple(devices))
        place = Workplace(storage, offer, devices, _opener(models, load))
        server = _server(gradio, place)
        try:
            url = _launch(server, port)
            print(f"The page is at {url} on this computer; Ctrl+C ends it.", flush=True)
            if open_browser:
                webbrowser.open(url)
            while True:
                time.sleep(1)
        except KeyboardInterrupt:  # the way to end it
            with _interrupts_ignored():
                place.queue.end()
        finally:
            place.queue.end()
            with contextlib.suppress(AttributeError):  # it was not launched
                server.get_blocks().close(verbose=False)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let no second Ctrl+C end the process while a model runs in another thread.

    The libraries abort the process then. A task stops after its next tile.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _opener(
    models: Mapping[str, Path], load: Callable[[Path, str], Model]
) -> Callable[[str, str], Model]:
    @functools.lru_cache(_KEPT_MODELS)
    def open_model(name: str, device: str) -> Model:
        return load(models[name], device)

    return open_model


def _check_free(port: int | None) -> None:
    """Check a port before Gradio is imported, which takes seconds."""
    if port is None:
        return
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")
            trial.bind((ADDRESS, port))
    except OSError as error:
        raise _taken(port) from error


def _taken(port: int | None) -> AetherError:
    taken = f"the port {port} is" if port else "all its ports are"
    return AetherError(
        f"The page cannot be served: {taken} taken.", hint="Name another (--port)."
    )


def _keep_gradio_local(folder: Path) -> None:
    """Set what Gradio reads from the environment when it is imported."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Requests to this computer must not go through a proxy.
    around = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    os.environ["no_proxy"] = f"{around},{ADDRESS}".lstrip(",")


def _server(gradio: Any, place: Workplace) -> Any:
    """The server with all its requests, not yet started."""
    from aethernet.ui.endpoints import add_endpoints  # imports Gradio

    middleware = import_optional("starlette.middleware", "ui").Middleware
    hosts = import_optional("starlette.middleware.trustedhost", "ui")
    server = gradio.Server(
        title="AetherNet",
        # Its pages would load programs from other machines.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            # Refuse pages elsewhere whose host name was made to resolve to 127.0.0.1.
            middleware(
                hosts.TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]
            ),
            middleware(SameOrigin, storage=place.storage),
        ],
    )
    server.router.routes[:0] = routes(place)
    add_endpoints(server, gradio, place)
    return server


def _launch(server: Any, port: int | None) -> str:
    """Start the server; return the address of the page."""
    try:
        _, url, _ = server.launch(
            server_name=ADDRESS,
            server_port=port,
            inbrowser=False,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=LARGEST_UPLOAD,
            enable_monitoring=False,
            run_history=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
        )
    except OSError as error:
        raise _taken(port) from error
    return str(url)
