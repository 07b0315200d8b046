"""Exports in the cache that were changed since, and a cache on a full disk."""

import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, lively_file, photo, write

from aethernet.cache import cache_folder, read_json, write_json
from aethernet.commands.main import main
from aethernet.pictures.files import read_picture

pytest.importorskip("onnxruntime")


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.setenv("AETHERNET_CACHE", str(tmp_path / "kept"))
    lively_file(tmp_path / "m.safetensors", depths=(1,))
    write(photo(), tmp_path / "in.png")
    names = (tmp_path / "in.png", "-o", tmp_path / "out.png")
    model = ("--model", tmp_path / "m.safetensors", "--device", "cpu", "--overwrite")
    return ["upscale", *map(str, (*names, *model)), "--runtime", "onnxruntime"]


def upscaled(words):
    assert main(words) == 0
    return read_picture(words[3]).pixels


def test_one_changed_bit_anywhere_is_noticed(words):
    expected = upscaled(words)
    (export,) = (cache_folder() / "exports").glob("*.onnx")
    content = export.read_bytes()
    for place in np.linspace(len(content) // 3, len(content) - 100, 4).astype(int):
        changed = bytearray(content)
        changed[place] ^= 0x40
        export.write_bytes(changed)
        assert np.array_equal(upscaled(words), expected)
        assert export.read_bytes() == content


def test_a_longer_one_and_one_without_a_note_are_made_again(words):
    expected = upscaled(words)
    (export,) = (cache_folder() / "exports").glob("*.onnx")
    content = export.read_bytes()
    export.write_bytes(content + b"\0")
    assert np.array_equal(upscaled(words), expected)
    export.with_name(f"{export.name}.json").unlink()
    export.write_bytes(content[:-1])
    assert np.array_equal(upscaled(words), expected)
    assert export.read_bytes() == content


def test_a_changed_note_of_json_counts_as_absent(tmp_path):
    write_json(tmp_path / "a.json", {"runtime": "onnxruntime", "n": [1]})
    text = (tmp_path / "a.json").read_text()
    assert read_json(tmp_path / "a.json") == {"runtime": "onnxruntime", "n": [1]}
    (tmp_path / "a.json").write_text(text.replace("onnxruntime", "onnxruntimd"))
    assert read_json(tmp_path / "a.json") == {}


def test_a_full_disk_under_the_cache(words, tmp_path):
    # A file system of 64 KB in a name space of its own.
    cache = tmp_path / "cache"
    cache.mkdir()
    script = f'mount -t tmpfs -o size=64k none "{cache}" && exec "$@"'
    inside = ["unshare", "-rm", "sh", "-c", script, "sh"]
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs unshare and mount, as Linux has")
    done = subprocess.run(
        [*inside, sys.executable, "-m", "aethernet", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "AETHERNET_CACHE": str(cache)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    made = read_picture(words[3]).pixels
    assert np.array_equal(made, upscaled(words))
