"""Rules of the house that can be read off the sources.

Import directions are contracts of import-linter, in pyproject.toml.
"""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from conftest import LONGEST
from helpers import ROOT

SOURCES = sorted((ROOT / "src/aethernet").rglob("*.py"))
OURS = [
    path
    for folder in (
        *("src", "tests", "tools", "training", "benchmarks", "fuse_script"),
        "integrations",
    )
    for path in sorted((ROOT / folder).rglob("*.py"))
] + sorted((ROOT / "onnx").glob("*.py"))
LONGEST_FILE = 600
LONGEST_FUNCTION = 60
FLAG_TABLES = ("define", "command_parser", "add_")  # one line and more for each flag


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes of a file's syntax tree."""
    return [*ast.walk(ast.parse(path.read_text("utf-8")))]


@pytest.mark.parametrize("path", OURS, ids=named)
def test_files_and_functions_are_short(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith(FLAG_TABLES) and "argparse" in text:
                continue
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


def test_no_two_classes_have_one_name():
    where = defaultdict(list)
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                where[node.name].append(named(path))
    assert where
    assert not {name: paths for name, paths in where.items() if len(paths) > 1}


def test_the_files_that_tests_begin_with_exist():
    assert not [name for name in LONGEST if not (ROOT / "tests" / name).exists()]


@pytest.mark.parametrize("path", OURS, ids=named)
def test_no_private_name_is_imported(path):
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom):
            private = [a.name for a in node.names if a.name.startswith("_")]
            assert not [n for n in private if not n.startswith("__")], node.module
