"""Entries for OpenModelDB: which are valid, and what is wrong with the others."""

import json

import pytest
from helpers import ROOT

from aethernet.publish import openmodeldb


@pytest.fixture
def good():
    """A valid entry with every required field."""
    return json.loads((ROOT / "models/2x_aether_small.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("author", []), ("author", "Philip"), ("license", "Free"), ("tags", [])),
        *(("tags", ["photo", "leaf"]), ("description", ""), ("date", 2026)),
        *(("architecture", "AetherNet"), ("size", []), ("size", [8]), ("scale", 0)),
        *(("scale", 2.0), ("scale", True), ("inputChannels", 5), ("resources", [])),
        *(("images", None), ("trainingIterations", -1), ("trainingOTF", "no")),
        *(("pretrainedModelG", "leaves"), ("thumbnail", {}), ("surprise", 1)),
        ("images", [{"type": "paired", "LR": "a.png", "SR": "b.png"}]),
        ("images", [{"type": "paired", "LR": "https://a.org/a.png"}]),
    ],
)
def test_a_wrong_field_is_named(good, name, value):
    (problem,) = openmodeldb.problems({**good, name: value})
    assert problem.startswith(f"{name} ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("size", 0), ("size", "12"), ("sha256", "A" * 64), ("sha256", "ab")),
        *(("urls", [""]), ("urls", None), ("type", "zip"), ("platform", "ncnn")),
        ("platform", "onnx"),
    ],
)
def test_a_wrong_resource_is_refused(good, name, value):
    assert good["resources"][0]["type"] == "safetensors"
    good["resources"][0][name] = value
    (problem,) = openmodeldb.problems(good)
    assert problem.startswith("resources ")


def test_every_required_field_is_missed(good):
    required = {
        *("name", "author", "license", "tags", "description", "date"),
        *("architecture", "size", "scale", "inputChannels", "outputChannels"),
        *("resources", "images"),
    }
    for name in good:
        rest = {key: value for key, value in good.items() if key != name}
        expected = [f"{name} is missing."] if name in required else []
        assert openmodeldb.problems(rest) == expected
    assert required <= {*good}


def test_what_may_be_null_or_alone(good):
    assert openmodeldb.problems({**good, "license": None, "size": None}) == []
    assert openmodeldb.problems({**good, "author": "helaman"}) == []
    assert openmodeldb.problems({**good, "license": "MIT OR CC0-1.0"}) == []


@pytest.mark.parametrize("content", [None, [], "text"])
def test_what_is_no_entry_at_all(content):
    assert len(openmodeldb.problems(content)) == 1


@pytest.mark.parametrize(
    ("name", "scale", "id"),
    [
        *(("2x_aether_small", 2, "2x-aether-small"), ("2xLeaf", 2, "2x-Leaf")),
        *(("4x_a__b.c_", 4, "4x-a-b-c"), ("2x_leaf_2x", 2, "2x-leaf")),
    ],
)
def test_the_database_has_names_of_its_own(name, scale, id):
    assert openmodeldb.model_id(name, scale) == id


def test_its_files_end_without_a_newline(good):
    text = openmodeldb.as_text({**good, "description": "größer"})
    assert "größer" in text
    assert text.startswith('{\n    "name"')
    assert text.endswith("}")
