"""Pictures, models and a run that several of these files need."""

import json

import pytest
from helpers import HAS_TORCH, lively_file, sample_part, write
from quality_helpers import quality


@pytest.fixture(scope="module", autouse=True)
def without_perceptual():
    """Measure without LPIPS and DISTS, which download networks.

    Yields the function that opens them, which is replaced.
    """
    if not HAS_TORCH:  # they are left out for that
        yield None
        return
    from aethernet.quality import perceptual

    opens = perceptual.open_perceptual
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perceptual, "open_perceptual", lambda *_: ([], {}))
        yield opens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two HR pictures, one of no even size; two 2x models and one of 4x."""
    folder = tmp_path_factory.mktemp("quality")
    write(sample_part(70, 83), folder / "hr/first.png")
    write(sample_part(64, 48, 150), folder / "hr/second.png")
    for name, arguments in (
        ("one", {"seed": 0}),
        ("other", {"seed": 1}),
        ("four", {"scale": 4}),
    ):
        lively_file(folder / f"{name}.safetensors", **arguments)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """The JSON of a run that also wrote CSV (run.csv) and crops into `folder`."""
    words = ["--data", folder / "hr", "--model", folder / "one.safetensors"]
    words += ["--model", folder / "other.safetensors", "--crops", folder / "crops"]
    for kind in ("json", "csv"):
        words += [f"--{kind}", folder / f"run.{kind}"]
    assert quality(*words) == 0
    return json.loads((folder / "run.json").read_text("utf-8"))


@pytest.fixture
def spandrel():
    return pytest.importorskip(
        "spandrel", reason="needs spandrel: pip install -e '.[spandrel]'"
    )
