"""Recipes: read, changed on the command line, refused with every wrong key named, and written back."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from unclip.config import Config, ConfigError, differences, load_config, parse_config, to_yaml


class Net(Config):
    channels: int = 8
    mult: tuple[float, ...] = (1.0, 2.0)
    dim: int | None = None


class Recipe(Config):
    out: str
    rate: float = Field(0.1, gt=0)
    net: Net = Net()
    shards: list[str] = []
    words: dict[str, list[str]] = {}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("out: runs/a\nrate: 3.0e-4\nnet: {channels: 16, mult: [1, 1.5]}\n")
    return path


def test_a_recipe_is_frozen_and_typed(recipe):
    read = load_config(Recipe, recipe)
    assert read == Recipe(out="runs/a", rate=3e-4, net=Net(channels=16, mult=(1, 1.5)))
    with pytest.raises(ValidationError):
        read.rate = 1.0


@pytest.mark.parametrize("override, changed", [
    ("net.channels=64", {"net": Net(channels=64, mult=(1, 1.5))}),
    ("net.dim=7", {"net": Net(channels=16, mult=(1, 1.5), dim=7)}),
    ("net.dim=null", {}),
    ("net.mult=[1,2,4]", {"net": Net(channels=16, mult=(1, 2, 4))}),
    ("shards=[a/*.tar,b.tar]", {"shards": ["a/*.tar", "b.tar"]}),
    ("out=runs/b=c", {"out": "runs/b=c"}),
    ("rate=1e-2", {"rate": 0.01}),
])  # fmt: skip
def test_overrides_reach_inside_and_change_nothing_else(recipe, override, changed):
    expected = load_config(Recipe, recipe).model_copy(update=changed)
    assert load_config(Recipe, recipe, [override]) == expected


@pytest.mark.parametrize("text, overrides, said", [
    ("out: a\nnet: {chanels: 4}\n", [], ["net.chanels: unknown key"]),
    ("out: a\nrate: -1\nfoo: 1\nnet: {channels: many}\n", [],
     ["rate: ", "foo: unknown key", "net.channels: "]),
    ("rate: 1\n", [], ["out: "]),
    ("", [], ["out: "]),
    ("out: a\n", ["net.depth=3"], ["net.depth: unknown key"]),
    ("out: a\n", ["rate"], ["'rate' is not key=value"]),
    ("out: a\n", ["rate=inf"], ["rate: "]),
    ("out: a\n", ["rate=nan"], ["rate: "]),
    ("out: [a\n", [], ["cannot be read"]),
    ("- a\n- b\n", [], ["cannot be read"]),
    ("just words\n", [], ["just words: unknown key"]),
    ("out: ${nowhere}\n", [], ["cannot be read"]),
])  # fmt: skip
def test_what_is_wrong_is_named_with_the_file(tmp_path, text, overrides, said):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(Recipe, path, overrides)
    for words in said:
        assert words in str(caught.value)
    assert "bad.yaml" in str(caught.value) or "key=value" in str(caught.value)


def test_files_that_are_no_recipe(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\x00\xff\xfe\x80")
    for path, said in (
        (tmp_path / "none.yaml", "there is no recipe"),
        (tmp_path, "is a folder, not a file"),
        (tmp_path / "binary.yaml", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(Recipe, path)


@pytest.mark.parametrize("values", [
    {"out": "null"}, {"out": "1e3"}, {"out": "yes"}, {"out": "a: b # c"}, {"out": "naïve 金魚"},
    {"out": "'quoted\"", "rate": 1e-7},
    {"out": "a", "net": {"mult": (1, 1.5), "dim": 3}, "shards": ["x/*.tar"], "words": {"no": ["on", "1"]}},
])  # fmt: skip
def test_to_yaml_is_read_back_to_the_same(tmp_path, values):
    made = parse_config(Recipe, values)
    (tmp_path / "again.yaml").write_text(to_yaml(made), encoding="utf-8")
    assert load_config(Recipe, tmp_path / "again.yaml") == made


def test_differences_name_the_key_and_both_values():
    a = {"net": {"channels": 64, "mult": [1, 2]}, "rate": 1, "old": 0}
    b = {"net": {"channels": 32, "mult": [1, 2]}, "rate": 1, "low": {"size": 8}}
    assert differences(a, a) == {}
    assert differences(a, b) == {"low": "None -> {'size': 8}", "net.channels": "64 -> 32", "old": "0 -> None"}
