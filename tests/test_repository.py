"""What the README, the documents, CI and the layout promise."""

import importlib
import math
import re
import tomllib
from pathlib import Path

import pytest
from helpers import DEFAULTS, ROOT, tracked_files

import aethernet
from aethernet.checkpoints.info import multiply_adds_per_pixel
from aethernet.checkpoints.layout import VARIANTS, expected_shapes

FRAMEWORK_FOLDERS = ("onnx", "spandrel", "neosr", "traiNNer-redux", "fuse_script")
LONGEST_LINE = 120


def documents() -> list[Path]:
    found = [path for path in tracked_files() if path.suffix == ".md"]
    assert ROOT / "README.md" in found
    return found


def prose_lines(path: Path) -> list[str]:
    """Lines outside blocks of code."""
    blocks = re.split(r"(?m)^ *```.*$", path.read_text("utf-8"))
    return [line for block in blocks[::2] for line in block.splitlines()]


def anchors(path: Path) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    headings = [line for line in prose_lines(path) if line.startswith("#")]
    texts = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading) for heading in headings]
    plain = [re.sub(r"[^\w\- ]", "", text.lower()).strip() for text in texts]
    return {text.replace(" ", "-") for text in plain}


@pytest.mark.parametrize("folder", ["onnx", "spandrel", "neosr"])
def test_no_folder_hides_the_real_package(folder):
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("folder", FRAMEWORK_FOLDERS)
def test_every_folder_has_its_readme(folder):
    assert (ROOT / folder / "Readme.md").is_file()


def test_ci_runs_the_steps_of_readmes_second_command():
    readme = (ROOT / "README.md").read_text("utf-8")
    commands = re.findall(r"^python3 -m venv .*$", readme, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("-o sample_2x.png")
    ci = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    steps = commands[1].split(" && ")
    assert steps[-1].endswith("-m pytest")
    assert [line for line in ci if line in steps] == steps


def test_links_between_documents_lead_somewhere():
    checked = 0
    for path in documents():
        for link in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose_lines(path))):
            if "://" in link:
                continue
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            assert target.exists(), f"{path.relative_to(ROOT)}: {link}"
            if anchor:
                assert anchor in anchors(target), f"{path.relative_to(ROOT)}: {link}"
            checked += 1
    assert checked > 50  # the search for links finds them


def test_names_that_documents_import_exist():
    found = []
    for path in documents():
        for line in path.read_text("utf-8").splitlines():
            if match := re.fullmatch(r" *from (aethernet(?:\.\w+)*) import (.+)", line):
                names = match[2].split(", ")
                found += [(path.relative_to(ROOT), match[1], name) for name in names]
    assert found
    for path, module, name in found:
        assert hasattr(importlib.import_module(module), name), (path, name)


def test_lines_of_documents_are_short():
    """Those of tables and links cannot be broken; cards are generated."""
    for path in documents():
        if path.parent == ROOT / "models":
            continue
        for line in prose_lines(path):
            if not line.startswith(("|", "[", "<", "![")):
                assert len(line) <= LONGEST_LINE, f"{path.relative_to(ROOT)}: {line}"


def test_files_stay_small():
    for path in tracked_files():
        assert path.stat().st_size < 6 * 2**20, path


def test_weights_lie_in_models_and_have_cards():
    suffixes = (".safetensors", ".onnx", ".pth", ".param", ".bin")
    weights = [path for path in tracked_files() if path.suffix in suffixes]
    ours = [path for path in weights if "tests" not in path.parts]
    assert ours
    for path in ours:
        assert path.parent == ROOT / "models", path
        cards = [card.stem for card in path.parent.glob("*.md")]
        assert any(map(path.name.startswith, cards)), path


def test_the_sizes_of_the_variants_are_stated():
    page = (ROOT / "docs/network.md").read_text("utf-8")
    for name, variant in VARIANTS.items():
        arguments = {**DEFAULTS, **variant, "scale": 2}
        training, fused = (
            expected_shapes({**arguments, "fused_init": form}).values()
            for form in (False, True)
        )
        training, fused = (sum(map(math.prod, shapes)) for shapes in (training, fused))
        line = next(row for row in page.splitlines() if row.startswith(f"| `{name}`"))
        assert f"{training:,} / {fused:,}" in line
        assert f"| {multiply_adds_per_pixel(arguments):,} |" in line


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = settings["tool"]["setuptools"]["packages"]
    source = ROOT / "src"
    folders = [file.parent for file in source.rglob("__init__.py")]
    packages = {".".join(folder.relative_to(source).parts) for folder in folders}
    assert packages
    assert not packages - set(listed)


def test_licence_travels_with_the_copy_of_the_network():
    copy = ROOT / "spandrel/architectures/AetherNet/__arch/LICENSE"
    assert copy.read_text("utf-8") == (ROOT / "LICENSE").read_text("utf-8")


def test_changelog_knows_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"## {aethernet.__version__}" in changelog


# Files whose tests all are about PyTorch, or compare with it. All others run without.
NEED_PYTORCH = (
    *("bench/test_bench.py", "publish/test_release.py"),
    *(f"integrations/test_{name}.py" for name in ("comfyui", "upstream_kit")),
    *("quality/test_architectures.py", "quality/test_perceptual.py"),
    *("test_copies.py", "test_core.py", "test_golden.py", "test_set5.py"),
    "test_spandrel.py",
    *(f"checkpoints/test_{name}.py" for name in ("checkpoint", "comparison")),
    *(f"checkpoints/test_{name}.py" for name in ("folded", "fuse", "onnx", "rewrites")),
    *(f"checkpoints/test_{name}.py" for name in ("limits", "trainers")),
    *("commands/test_upscale_other_networks.py", "fuzz/test_fuzz.py"),
    *(f"runtimes/test_{name}.py" for name in ("choice", "native", "pytorch", "trial")),
    *("runtimes/test_registry.py", "runtimes/test_tensorrt_build.py"),
    *("runtimes/test_tensorrt_run.py", "runtimes/test_triton.py"),
    *("pictures/test_training_crops.py", "training/test_train_on_gpu.py"),
    *(f"training/test_{name}.py" for name in ("neosr", "route", "train_tool")),
    *(f"training/test_{name}.py" for name in ("trainer", "training", "trainner_redux")),
)


def test_few_files_are_skipped_without_pytorch():
    skips = re.compile(r'^(\w+ = )?pytest\.importorskip\(\s*"torch"', re.MULTILINE)
    found = {
        path.relative_to(ROOT / "tests").as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if skips.search(path.read_text("utf-8"))
    }
    assert found == {*NEED_PYTORCH}
