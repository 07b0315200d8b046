"""The pull requests that tools/upstream_kit.py writes.

Stand-ins have the files of the other projects that the kit reads and changes. A clone
of spandrel (SPANDREL_DIR) also runs its own test of our folder.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch")

from helpers import (
    ROOT,
    SHIPPED_MODEL,
    call_script,
    sample_part,
    spandrel_of,
    write,
)

KIT = ROOT / "tools/upstream_kit.py"
SIZES = (16, 32, 64)

spandrel = pytest.importorskip(
    "spandrel", reason="needs spandrel: pip install -e '.[spandrel]'"
)


def apply(monkeypatch: pytest.MonkeyPatch, project: str, clone: Path) -> int:
    words = ("-o", clone, "--repository", "https://example.org/aethernet")
    return call_script(monkeypatch, KIT, project, *words)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def spandrel_clone(tmp_path: Path) -> Path:
    """The installed spandrel where its repository has it, and what the kit needs."""
    clone = tmp_path / "spandrel"
    library = clone / "libs/spandrel/spandrel"
    shutil.copytree(spandrel.__path__[0], library)
    readme = "- [AuraSR](https://example.org)\n\n#### Face Restoration\n"
    (clone / "README.md").write_text(readme, "utf-8")
    for size in SIZES:
        name = f"tests/images/inputs/{size}x{size}.png"
        write(sample_part(size, size), clone / name)
    return clone


@pytest.fixture
def trainner_clone(tmp_path: Path) -> Path:
    clone = tmp_path / "traiNNer-redux"
    schema = {
        "$defs": {
            "ReduxOptions": {"network_g": {"anyOf": [{"$ref": "#/$defs/artcnn"}]}},
            "artcnn": {"title": "artcnn"},
        }
    }
    texts = {
        "traiNNer/archs/arch_info.py": "",
        "schemas/redux-config.schema.json": json.dumps(schema, separators=(",", ":")),
        "docs/source/arch_reference.md": "### ATD\n### ArtCNN\n",
        "LICENSE/README.md": "|[Adan](x)|\r\n|[APISR](y)|\r\n",
        "README.md": "- The [FDAT](x) architecture\n",
        **{
            f"options/{kind}/ATD/.gitignore": "*\n"
            for kind in ("onnx", "test", "train")
        },
    }
    for name, text in texts.items():
        path = clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return clone


@pytest.fixture
def neosr_clone(tmp_path: Path) -> Path:
    clone = tmp_path / "neosr"
    (clone / "neosr/archs").mkdir(parents=True)
    (clone / "neosr/archs/arch_util.py").touch()
    (clone / "readme.md").write_text("| arch | name |\n|--|--|\n| [SRVGGNetCompact](x)")
    return clone


def test_spandrel_loads_our_file_once_the_kit_was_applied(
    spandrel_clone, monkeypatch, capsys
):
    assert apply(monkeypatch, "spandrel", spandrel_clone) == 0
    assert "tests/test_AetherNet.py\n" in capsys.readouterr().out
    with spandrel_of(spandrel_clone / "libs/spandrel") as changed:
        descriptor = changed.ModelLoader().load_from_file(SHIPPED_MODEL)
    assert (descriptor.architecture.id, descriptor.scale) == ("AetherNet", 2)
    assert descriptor.tags == ["small", "fused", "11lk"]
    network = "spandrel.architectures.AetherNet.__arch.aether_core"
    assert type(descriptor.model).__module__ == network
    adapter = "libs/spandrel/spandrel/architectures/AetherNet/__init__.py"
    assert "install" not in (spandrel_clone / adapter).read_text("utf-8")


def test_spandrels_snapshots_are_our_results(spandrel_clone, monkeypatch):
    import aethernet
    from aethernet.pictures.files import read_picture

    apply(monkeypatch, "spandrel", spandrel_clone)
    model = aethernet.load(
        SHIPPED_MODEL, runtime="pytorch", device="cpu", precision="float32"
    )
    for size in SIZES:
        name = f"tests/images/outputs/{size}x{size}/{SHIPPED_MODEL.stem}.png"
        found = read_picture(spandrel_clone / name).pixels
        expected = model.upscale(sample_part(size, size))
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_trainner_gets_file_options_schema_and_rows(trainner_clone, monkeypatch):
    assert apply(monkeypatch, "trainner-redux", trainner_clone) == 0
    names = ["aether", "aether_small", "aether_medium", "aether_large"]
    path = trainner_clone / "schemas/redux-config.schema.json"
    definitions = json.loads(path.read_text("utf-8"))["$defs"]
    listed = definitions["ReduxOptions"]["network_g"]["anyOf"]
    assert [row["$ref"].rpartition("/")[2] for row in listed] == [*names, "artcnn"]
    for name in names:
        assert definitions[name]["properties"]["type"]["enum"] == [name]
    ours = ROOT / "traiNNer-redux"
    written = contents(trainner_clone)
    arch = "traiNNer/archs/aether_arch.py"
    assert written[arch] == (ours / arch).read_bytes()
    for name, content in contents(ours / "options").items():
        assert written[f"options/_templates/{name}"] == content
    licences = written["LICENSE/README.md"].decode().splitlines(keepends=True)
    assert [line[:12] for line in licences] == [
        "|[Adan](x)|\r",
        "|[AetherNet]",
        "|[APISR](y)|",
    ]
    assert all(line.endswith("\r\n") for line in licences)


def test_neosr_gets_file_options_and_row(neosr_clone, monkeypatch):
    assert apply(monkeypatch, "neosr", neosr_clone) == 0
    written = contents(neosr_clone)
    ours = ROOT / "neosr"
    arch = "archs/aether_arch.py"
    assert written[f"neosr/{arch}"] == (ours / arch).read_bytes()
    for name, content in contents(ours / "options").items():
        assert written[f"options/{name}"] == content
    assert "`aether_small`" in (neosr_clone / "readme.md").read_text("utf-8")


@pytest.mark.parametrize("project", ["spandrel", "trainner-redux", "neosr"])
def test_a_second_time_changes_nothing(project, request, monkeypatch):
    clone = request.getfixturevalue(f"{project.split('-')[0]}_clone")
    apply(monkeypatch, project, clone)
    before = contents(clone)
    assert apply(monkeypatch, project, clone) == 0
    assert contents(clone) == before


@pytest.mark.parametrize("project", ["spandrel", "trainner-redux", "neosr"])
def test_another_folder_is_refused(project, tmp_path, monkeypatch, capsys):
    assert apply(monkeypatch, project, tmp_path) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "it has to be a clone" in said
    assert not list(tmp_path.iterdir())


def test_a_changed_project_is_told(spandrel_clone, monkeypatch, capsys):
    (spandrel_clone / "README.md").write_text("# new\n", "utf-8")
    assert apply(monkeypatch, "spandrel", spandrel_clone) == 1
    assert "README.md has changed" in capsys.readouterr().err


@pytest.mark.frameworks
def test_spandrels_own_test_passes(tmp_path, monkeypatch):
    folder = os.environ.get("SPANDREL_DIR")
    if not folder:
        pytest.skip(
            "set SPANDREL_DIR to a clone of spandrel whose .venv has its development "
            "requirements (CONTRIBUTING.md)"
        )
    from frameworks import interpreter_of

    clone = tmp_path / "spandrel"
    ignored = shutil.ignore_patterns(".git", ".venv", "venv", "__pycache__")
    shutil.copytree(folder, clone, ignore=ignored)
    assert apply(monkeypatch, "spandrel", clone) == 0
    (clone / "tests/models").mkdir(exist_ok=True)
    shutil.copy2(SHIPPED_MODEL, clone / "tests/models")  # as if downloaded
    python = interpreter_of(Path(folder).resolve())
    packages = ("libs/spandrel", "libs/spandrel_extra_arches")
    path = os.pathsep.join(str(clone / name) for name in packages)
    for words in (
        ("pytest", "-q", "tests/test_AetherNet.py"),
        ("ruff", "check", "libs", "tests"),
        ("ruff", "format", "--check", "tests/test_AetherNet.py", "libs"),
    ):
        done = subprocess.run(
            [python, "-m", *words],
            cwd=clone,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
