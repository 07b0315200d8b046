import pytest
from helpers import PLAIN, lively_file

from aethernet.runtimes.registry import open_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A small network, opened once for all files of this folder."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    return open_model(lively_file(path), PLAIN, "cpu")
