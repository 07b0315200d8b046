"""What README, CI and the layout promise."""

import re
import subprocess

import pytest
import torch
from helpers import ROOT

import aethernet
from aethernet.aether_core import VARIANTS
from aethernet.checkpoints.info import multiply_adds_per_pixel

FRAMEWORK_FOLDERS = ("onnx", "spandrel", "neosr", "traiNNer-redux", "fuse_script")


def tracked_files():
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("needs a git checkout")
    return [ROOT / name for name in done.stdout.splitlines()]


@pytest.mark.parametrize("folder", ["onnx", "spandrel", "neosr"])
def test_no_folder_hides_the_real_package(folder):
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("folder", FRAMEWORK_FOLDERS)
def test_every_folder_has_its_readme(folder):
    assert (ROOT / folder / "Readme.md").is_file()


def test_ci_takes_the_test_command_from_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    commands = re.findall(r"^python3 -m venv .*$", readme, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("-o sample_2x.png")
    assert commands[1].endswith("-m pytest")
    assert "pytest$" in (ROOT / ".ci/run").read_text("utf-8")


def test_links_between_documents_lead_somewhere():
    for path in tracked_files():
        if path.suffix != ".md" or not path.exists():
            continue
        for target in re.findall(r"\]\(([^)#]+)", path.read_text("utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_files_stay_small_and_weights_have_cards():
    for path in tracked_files():
        assert path.stat().st_size < 6 * 2**20, path
        if (
            path.suffix in (".safetensors", ".onnx", ".pth")
            and "tests" not in path.parts
        ):
            assert path.parent == ROOT / "models", path
            cards = [card.stem for card in path.parent.glob("*.md")]
            assert any(map(path.name.startswith, cards)), path


def test_readme_states_the_sizes_of_the_variants():
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in VARIANTS:
        with torch.device("meta"):
            network = getattr(aethernet, name)(scale=2)
        training = sum(p.numel() for p in network.parameters())
        fused = sum(p.numel() for p in network.fuse().parameters())
        line = next(row for row in readme.splitlines() if row.startswith(f"| `{name}`"))
        assert f"{training:,} / {fused:,}" in line
        assert f"| {multiply_adds_per_pixel(network):,} |" in line


def test_licence_travels_with_the_copy_of_the_network():
    copy = ROOT / "spandrel/architectures/AetherNet/__arch/LICENSE"
    assert copy.read_text("utf-8") == (ROOT / "LICENSE").read_text("utf-8")


def test_changelog_knows_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"## {aethernet.__version__}" in changelog
