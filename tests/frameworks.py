"""Stand-ins for the training frameworks, behaving as their own sources do.

neosr 1.0.0: a name registers with its case kept, a second time is an AssertionError;
`build_network` pops "type" and passes the rest of [network_g], never the scale; that
comes from `net_opt()`, which reads the option file named on the command line.
traiNNer-redux: names are lower-cased; the scale is passed as the keyword `scale`.
"""

import importlib.util
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from helpers import ROOT

NEOSR_FILE = ROOT / "neosr/archs/aether_arch.py"
TRAINNER_FILE = ROOT / "traiNNer-redux/traiNNer/archs/aether_arch.py"


class Registry:
    def __init__(self, lower_case: bool) -> None:
        self.entries: dict[str, Callable[..., Any]] = {}
        self._lower_case = lower_case

    def register(self, obj: Callable[..., Any] | None = None) -> Any:
        def add(built: Callable[..., Any]) -> Callable[..., Any]:
            name = built.__name__.lower() if self._lower_case else built.__name__
            assert name not in self.entries, f"{name} was already registered"
            self.entries[name] = built
            return built

        return add if obj is None else add(obj) and None


class Framework:
    """A framework that has imported one drop-in file."""

    def __init__(self, module: ModuleType, registry: Registry) -> None:
        self.module = module
        self.registry = registry

    def build_network(self, options: dict[str, Any]) -> Any:
        options = dict(options)
        return self.registry.entries[options.pop("type")](**options)


def load_neosr(scale_of_option_file: int | None = None) -> Framework:
    """The drop-in file imported by neosr; without a scale, no -opt was given."""

    def net_opt() -> tuple[int, bool]:
        if scale_of_option_file is None:
            raise ValueError("no -opt on the command line")
        return scale_of_option_file, True

    registry = Registry(lower_case=False)
    modules = {
        "neosr.archs.arch_util": {"net_opt": net_opt},
        "neosr.utils.registry": {"ARCH_REGISTRY": registry},
    }
    return Framework(_import(NEOSR_FILE, "neosr_aether_arch", modules), registry)


def load_trainner() -> Framework:
    """The drop-in file imported by traiNNer-redux."""
    registry = Registry(lower_case=True)
    modules = {"traiNNer.utils.registry": {"ARCH_REGISTRY": registry}}
    return Framework(_import(TRAINNER_FILE, "trainner_aether_arch", modules), registry)


def import_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect.getsource looks there
    spec.loader.exec_module(module)
    return module


def _import(path: Path, name: str, stubs: dict[str, dict[str, Any]]) -> ModuleType:
    with _installed(stubs):
        return import_file(path, name)


@contextmanager
def _installed(stubs: dict[str, dict[str, Any]]):
    before = dict(sys.modules)
    for dotted, attributes in stubs.items():
        parts = dotted.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            sys.modules[name] = ModuleType(name)
        vars(sys.modules[dotted]).update(attributes)
    try:
        yield
    finally:
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] in ("neosr", "traiNNer"):
                del sys.modules[name]
        sys.modules.update(before)
