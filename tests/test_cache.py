"""The cache folder, and the names of what is kept in it."""

import inspect
import shutil
from pathlib import Path

import pytest
from helpers import without_hidden

from aethernet.cache import (
    cache_folder,
    code_version,
    make_folder,
    read_json,
    write_json,
)
from aethernet.checkpoints.onnx import export_onnx
from aethernet.errors import AetherError
from aethernet.runtimes.onnx_files import EXPORTING_CODE
from aethernet.runtimes.onnxruntime import OnnxRuntime
from aethernet.version import PACKAGE, __version__


@pytest.fixture
def copied(tmp_path):
    """The code that decides what an export holds, copied to be changed."""
    copies = []
    for part in EXPORTING_CODE:
        copy = tmp_path / part.relative_to(PACKAGE)
        (shutil.copytree if part.is_dir() else shutil.copy)(part, copy)
        copies.append(copy)
    return copies


def exporter(folder):
    """The copy of the file that holds the exporter."""
    source = Path(inspect.getsourcefile(export_onnx))
    return folder / source.relative_to(PACKAGE)


class TestCodeVersion:
    def test_is_of_the_content_and_not_of_the_place(self, copied):
        assert code_version(copied) == code_version(EXPORTING_CODE)
        assert code_version(copied).startswith(f"{__version__}-")

    def test_changes_with_the_exporter(self, copied, tmp_path):
        before = code_version(copied)
        with exporter(tmp_path).open("a") as file:
            file.write("# another comment\n")
        assert code_version(copied) != before

    def test_changes_when_a_module_is_renamed(self, copied, tmp_path):
        before = code_version(copied)
        exporter(tmp_path).rename(tmp_path / "checkpoints/another.py")
        assert code_version(copied) != before

    def test_does_not_change_with_what_python_compiles(self, copied, tmp_path):
        before = code_version(copied)
        compiled = tmp_path / "checkpoints/__pycache__"
        compiled.mkdir(exist_ok=True)
        (compiled / "onnx.cpython-399.pyc").write_bytes(b"x")
        assert code_version(copied) == before

    @pytest.mark.parametrize("part", ["aether_core.py", "checkpoints"])
    def test_a_missing_part_is_an_error(self, copied, tmp_path, part):
        gone = tmp_path / part
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        with pytest.raises(AetherError, match="part of AetherNet is missing") as caught:
            code_version(copied)
        assert caught.value.path == gone

    def test_a_missing_part_keeps_no_export_in_use(self, tmp_path, monkeypatch, copied):
        (tmp_path / "aether_core.py").unlink()
        monkeypatch.setattr("aethernet.runtimes.onnx_files.EXPORTING_CODE", copied)
        with pytest.raises(AetherError, match="part of AetherNet is missing"):
            OnnxRuntime.load(tmp_path / "model.pth", "cpu", "float32")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"AETHERNET_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "LOCALAPPDATA": "/c"}, "/b/aethernet"),
        ({"LOCALAPPDATA": "/c"}, "/c/aethernet"),
        ({"HOME": "/d", "USERPROFILE": "/d"}, "/d/.cache/aethernet"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, folder):
    for name in ("AETHERNET_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


def test_a_folder_that_cannot_be_made_names_the_variable(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AetherError) as caught:
        make_folder(tmp_path / "file/cache")
    assert caught.value.path == tmp_path / "file/cache"
    assert "AETHERNET_CACHE" in caught.value.hint


def test_what_is_written_is_read_and_damage_is_nothing(tmp_path):
    path = tmp_path / "new/facts.json"
    write_json(path, {"a": [1, None]})
    assert read_json(path) == {"a": [1, None]}
    assert without_hidden(path.parent) == ["facts.json"]
    for content in (b"", b"[1]", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        assert read_json(path) == {}
