"""What is published: source distribution, files of the wheel, page of the index."""

import fnmatch
import re
import shutil
import tomllib

import pytest
from helpers import ROOT, run, tracked_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]

# For those who change the repository; nothing is built or tested with them.
LEFT_OUT = (".gitignore", ".gitattributes")


def names(requirements):
    return {re.split(r"[^\w-]", line)[0] for line in requirements}


def test_the_name_is_ours_and_the_import_package_keeps_its_own():
    assert PROJECT["project"]["name"] == "aethernet-sr"
    scripts = PROJECT["project"]["scripts"]
    assert scripts == {"aethernet": "aethernet.__main__:main"}


def test_nothing_large_is_required():
    large = {"torch", "openvino", "spandrel", "gradio", "ray", "av", "matplotlib"}
    assert not names(PROJECT["project"]["dependencies"]) & large


def test_extras_that_need_pytorch_name_ours():
    """So that one line says which PyTorch is new enough."""
    assert EXTRAS["torch"] == ["torch>=2.9"]
    for extra, lines in EXTRAS.items():
        found = names(lines)
        assert extra == "torch" or "torch" not in found, extra
        if found & {"spandrel", "torchvision", "torchmetrics", "tensorboard"}:
            assert "aethernet-sr[torch]" in lines, extra


def test_every_extra_is_documented():
    page = (ROOT / "docs/installation.md").read_text("utf-8")
    assert not [extra for extra in EXTRAS if f"`{extra}`" not in page]


def test_extras_that_are_named_exist():
    """In hints, reasons to skip, documents and the project itself."""
    known = re.compile(r"(?:aethernet-sr|pip install -e ['\"]?\.)\[([\w,]+)\]")
    seen = set()
    for path in tracked_files():
        if path.suffix in (".py", ".md", ".toml", ".yml"):
            for found in known.findall(path.read_text("utf-8")):
                assert {*found.split(",")} <= {*EXTRAS}, path
                seen |= {*found.split(",")}
    assert {"torch", "spandrel", "dev", "video"} <= seen


def test_types_are_published():
    assert (ROOT / "src/aethernet/py.typed").is_file()
    data = PROJECT["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data["aethernet"]


def test_the_wheel_holds_the_weights_that_upscaling_needs():
    settings = PROJECT["tool"]["setuptools"]
    shipped = settings["package-data"]["aethernet.models"]
    without = settings["exclude-package-data"]["aethernet.models"]
    held = [
        path.name
        for path in (ROOT / "models").iterdir()
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in shipped)
        and not any(fnmatch.fnmatch(path.name, pattern) for pattern in without)
    ]
    assert "2x_aether_small.safetensors" in held
    assert "2x_aether_small_photo.safetensors" in held
    assert not [name for name in held if name.endswith("_training.safetensors")]


def test_the_source_distribution_holds_every_file():
    rules = [
        line.split()
        for line in (ROOT / "MANIFEST.in").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    folders = [words[1] for words in rules if words[0] == "graft"]
    single = [name for words in rules if words[0] == "include" for name in words[1:]]
    wrong = [word for words in rules if words[0].startswith("global") for word in words]
    for path in tracked_files():
        name = path.relative_to(ROOT).as_posix()
        held = name.partition("/")[0] in folders or any(
            "/" not in name and fnmatch.fnmatch(name, pattern) for pattern in single
        )
        assert held or name in LEFT_OUT, name
        assert not any(fnmatch.fnmatch(path.name, pattern) for pattern in wrong), name


class TestPageOfTheIndex:
    URL = "https://example.org/me/aethernet"

    @pytest.fixture
    def clone(self, tmp_path):
        for name in ("README.md", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
        return tmp_path

    def prepare(self, clone, url=URL):
        return run(ROOT / "tools/index_page.py", url, "v1", "--folder", clone)

    def test_links_lead_into_the_repository(self, clone):
        assert self.prepare(clone).returncode == 0
        text = (clone / "README.md").read_text("utf-8")
        targets = re.findall(r"\]\(([^)\s]+)\)", text)
        assert targets
        assert all(target.startswith(("https://", "#")) for target in targets)
        assert f"[MIT]({self.URL}/blob/v1/LICENSE)" in text
        assert f"]({self.URL}/raw/v1/assets/comparison.png)" in text
        for target in targets:
            kept = re.fullmatch(rf"{self.URL}/(?:raw|blob)/v1/([^#]+)(?:#.*)?", target)
            assert not kept or (ROOT / kept[1]).exists(), target

    def test_addresses_are_in_the_metadata(self, clone):
        assert self.prepare(clone).returncode == 0
        settings = tomllib.loads((clone / "pyproject.toml").read_text("utf-8"))
        addresses = settings["project"].pop("urls")
        assert addresses["Homepage"] == self.URL
        assert addresses["Changelog"] == f"{self.URL}/blob/v1/CHANGELOG.md"
        assert settings == PROJECT  # nothing else changed

    @pytest.mark.parametrize("url", ["http://example.org/a", "https://example.org/a/"])
    def test_an_address_that_makes_no_links(self, clone, url):
        done = self.prepare(clone, url)
        assert done.returncode == 2
        assert "has to begin with https://" in done.stderr
        assert (clone / "README.md").read_text("utf-8") == (
            ROOT / "README.md"
        ).read_text("utf-8")

    def test_a_second_time_is_refused(self, clone):
        assert self.prepare(clone).returncode == 0
        before = (clone / "README.md").read_text("utf-8")
        done = self.prepare(clone)
        assert done.returncode == 2
        assert "not that of a fresh clone" in done.stderr
        assert (clone / "README.md").read_text("utf-8") == before  # absolute already
