"""`aethernet release` with bad input: one error, and nothing is written."""

import pytest
from helpers import (
    SUFFIX,
    check_one_error,
    lively_arrays,
    lively_file,
    photo,
    without_hidden,
)
from PIL import Image

from aethernet.checkpoints.checkpoint import write_checkpoint
from aethernet.commands.main import main

TINY = {"embed_dim": 8, "depths": (1,)}
EXPORTS = ("--without", "fp32", "fp16", "ncnn")
"""Leaves out the files that take seconds, for tests of something else."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / f"net_g_1234{SUFFIX}"
    lively_file(path, **TINY)
    return path


def refused(capsys, tmp_path, *words):
    before = without_hidden(tmp_path)
    out = tmp_path / "out"
    assert main(["release", "-o", str(out), *map(str, words)]) == 1
    error = capsys.readouterr().err
    check_one_error(error)
    assert without_hidden(tmp_path) == before
    return error


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--author", "Philip Hofmann"), "author's id"),
        (("--license", "CC0"), "SPDX identifier, e.g. CC0-1.0"),
        (("--license", "mit"), "has to be spelled MIT"),
        (("--license", "MIT AND CC0-1.0"), "SPDX identifier"),
        (("--tags", "photos"), "not one of ai-generated"),
        (("--date", "28.2.2026"), "yyyy-mm-dd"),
        (("--date", "2026-02-30"), "yyyy-mm-dd"),
        (("--description", " "), "begins or ends with a blank"),
        (("--description", "\udcff"), "not valid Unicode"),
        (
            ("--training", "batch=many"),
            "trainingBatchSize has to be a whole number",
        ),
        (("--training", "batch=0"), "1 or more, not 0"),
        (("--training", "otf=maybe"), "true or false"),
        (("--training", "pretrained=mine"), "a model's id"),
        (("--url", "ftp://example.org/x"), "an address (https://..)"),
        (("--url", "example.org"), "an address (https://..)"),
    ],
)
def test_statements_are_checked_before_any_work(capsys, tmp_path, words, reason):
    assert reason in refused(capsys, tmp_path, "absent.pth", *words)


@pytest.mark.parametrize("name", ["a/b", "..", "leaf net", "größer", "-x"])
def test_a_name_that_is_no_file_name(capsys, tmp_path, checkpoint, name):
    reason = refused(capsys, tmp_path, checkpoint, f"--name={name}")
    assert "characters other than" in reason


def test_a_name_of_another_scale(capsys, tmp_path, checkpoint):
    reason = refused(capsys, tmp_path, checkpoint, "--name", "4x_leaves")
    assert "states 4x, but the weights are 2x" in reason


def test_bad_notes(capsys, tmp_path, checkpoint):
    (tmp_path / "notes.md").write_bytes(b"\xff\xfe\x00")
    for name in ("notes.md", "absent.md", "."):
        refused(capsys, tmp_path, checkpoint, "--notes", tmp_path / name)


def test_bad_pictures(capsys, tmp_path, checkpoint):
    (tmp_path / "text.png").write_text("hello " * 99)
    Image.new("1", (6000, 4000)).save(tmp_path / "huge.png")
    (tmp_path / "again").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "again/a.png"):
        Image.fromarray(photo(8, 8)).save(path)
    for names, reason in (
        (["text.png"], "text.png: "),
        (["absent.png"], "no such file"),
        (["huge.png"], "96 megapixels"),
        (["a.png", "again/a.png"], "Two pictures have the name a"),
    ):
        paths = [tmp_path / name for name in names]
        found = refused(capsys, tmp_path, checkpoint, "--picture", *paths)
        assert reason in found


def test_bad_sets(capsys, tmp_path, checkpoint):
    (tmp_path / "empty").mkdir()
    reason = refused(capsys, tmp_path, checkpoint, "--data", tmp_path / "empty")
    assert "no pictures" in reason
    refused(capsys, tmp_path, checkpoint, "--data", tmp_path / "absent")
    twice = (tmp_path / "empty",) * 2
    reason = refused(capsys, tmp_path, checkpoint, "--data", *twice)
    assert "Two sets have the same name" in reason
    lively_file(tmp_path / "one.safetensors", **TINY, scale=1)
    reason = refused(
        *(capsys, tmp_path, tmp_path / "one.safetensors", "--data", tmp_path / "empty")
    )
    assert "aethernet quality --lr" in reason


@pytest.mark.slow
def test_weights_too_large_for_float16(capsys, tmp_path):
    weights, arguments = lively_arrays(**TINY)
    weights["conv_first.weight"] *= 1e5
    write_checkpoint(weights, arguments, tmp_path / "large.safetensors")
    reason = refused(
        *(capsys, tmp_path, tmp_path / "large.safetensors", "--without", "fp32", "ncnn")
    )
    assert "float16" in reason or "ONNX" in reason
    assert ".part" not in reason


def test_channels_that_no_picture_has(capsys, tmp_path):
    for channels, reason in ((2, "--picture"), (5, "inputChannels")):
        path = tmp_path / "model.safetensors"
        lively_file(path, **TINY, in_chans=channels)
        assert reason in refused(capsys, tmp_path, path)


def test_a_place_that_cannot_be(capsys, tmp_path, checkpoint):
    (tmp_path / "file").touch()
    for place, reason in (
        ("file", "This is a file"),
        ("absent/out", "does not exist"),
    ):
        words = ("-o", tmp_path / place, *EXPORTS)
        assert reason in refused(capsys, tmp_path, checkpoint, *words)


def test_a_full_disk(capsys, tmp_path, checkpoint):
    resource = pytest.importorskip("resource", reason="needs POSIX resource limits")
    # A limit on the file size stands in for the disk: write() fails the same way.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        reason = refused(capsys, tmp_path, checkpoint, *EXPORTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{tmp_path / 'out'}" in reason
    assert "Cannot be written" in reason
    assert ".part" not in reason


def test_bad_facts_about_the_training(capsys):
    for fact in ("batch", "batch=", "speed=9"):
        with pytest.raises(SystemExit) as stop:
            main(["release", "a.pth", "-o", "b", "--training", fact])
        assert stop.value.code == 2
        assert "KEY=VALUE" in capsys.readouterr().err
