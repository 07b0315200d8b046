"""A small model, and the command `upscale` with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import PLAIN, lively_file

from aethernet.commands.main import main

PLAINLY = ("--runtime", PLAIN, "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    lively_file(path)
    return path


@pytest.fixture
def upscale(model: Path) -> Callable[..., int]:
    """Run the command in this process; return its exit code."""

    def call(*arguments: object) -> int:
        return main(["upscale", *map(str, arguments), "--model", str(model), *PLAINLY])

    return call
