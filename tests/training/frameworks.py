"""The training frameworks: clones of them, and stand-ins where there is none.

The stand-ins behave as the frameworks' own sources do.

neosr 1.0.0: a name registers with its case kept, a second time is an AssertionError;
`build_network` pops "type" and passes the rest of [network_g], never the scale; that
comes from `net_opt()`, which reads the option file named on the command line.
traiNNer-redux: names are lower-cased; the scale is passed as the keyword `scale`.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import ROOT

NEOSR_FILE = ROOT / "neosr/archs/aether_arch.py"
TRAINNER_FILE = ROOT / "traiNNer-redux/traiNNer/archs/aether_arch.py"


def clone_of(variable: str) -> Path:
    """The clone that an environment variable names; skips where it is not set."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"set {variable} to the folder of a clone (CONTRIBUTING.md)")
    assert (Path(folder) / "train.py").is_file(), f"no train.py in {variable}={folder}"
    return Path(folder).resolve()


def interpreter_of(clone: Path) -> Path:
    """The Python that the framework's installer made in its clone, else this one."""
    for folder in (".venv", "venv"):
        for name in ("bin/python", "Scripts/python.exe"):
            if (clone / folder / name).exists():
                return clone / folder / name
    return Path(sys.executable)


@contextmanager
def dropped_in(source: Path, archs: Path) -> Iterator[None]:
    """The drop-in file in a framework's archs folder, as it was there before after."""
    target = archs / source.name
    before = target.read_bytes() if target.exists() else None
    shutil.copyfile(source, target)
    try:
        yield
    finally:
        if before is None:
            target.unlink()
        else:
            target.write_bytes(before)


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


class _Neosr(Framework):
    def __init__(self, *imported: Any, command_line: list[str]) -> None:
        super().__init__(*imported)
        self._command_line = command_line

    def build_network(self, options: dict[str, Any]) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", self._command_line)
            return super().build_network(options)


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
    module = _import(NEOSR_FILE, "neosr_aether_arch", modules)
    words = ["train.py"] + ["-opt", "a.toml"] * (scale_of_option_file is not None)
    return _Neosr(module, registry, command_line=words)


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
