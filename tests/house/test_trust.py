"""What is downloaded runs nothing, removes nothing, and sees nothing: names, recipes, indices."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from shards import encoded

from training.doctor import look
from training.embed import _samples
from training.programs import program
from training.run import saves
from training.shards.sources import items_of
from unclip.checkpoint import CheckpointError
from unclip.config import Config, ConfigError, load_config
from unclip.data.addresses import as_file, checked, is_address, programs_in
from unclip.data.reading import ShardError, Shards, expand, read_shards, stream

pytestmark = pytest.mark.attack
RUNS = (
    "pipe:touch ran;#.tar",
    "pipe:touch${IFS}ran;#.tar",
    "s3:$(touch ran).tar",
    "http:x;touch ran;.tar",
    "{a,b}.tar",
    "[a].tar",
    "-.tar",
)


@pytest.fixture
def downloaded(tmp_path, monkeypatch) -> Path:
    """A folder of one good picture a shard, in shards whose names are programs, patterns and switches."""
    monkeypatch.chdir(tmp_path)
    picture = encoded(Image.new("RGB", (8, 8), "red"))
    for name in RUNS:
        with tarfile.open(tmp_path / name, "w") as tar:
            for file, data in (("0.png", picture), ("0.txt", name.encode())):
                info = tarfile.TarInfo(file)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return tmp_path


@pytest.mark.parametrize("typed", ["*.tar", ".", "{*,nothing}.tar"])
def test_a_listed_file_is_a_file_whatever_it_is_called(typed, downloaded):
    if typed.startswith("{"):
        with pytest.raises(ShardError, match="nothing.tar"):
            expand(typed)
        typed = "{*,?*}.tar"
    shards = expand(typed)
    assert {os.path.basename(shard) for shard in shards} == set(RUNS)
    assert not any(map(is_address, shards)) and expand(shards) is shards and isinstance(shards, Shards)
    captions = [sample["caption"] for sample in read_shards(shards, shuffle=3)]
    assert set(captions) == set(RUNS)
    assert {sample["txt"].decode() for shard in shards for sample in stream(shard)} == set(RUNS)
    assert {sample["txt"].decode() for shard in shards for sample in _samples(shard)} == set(RUNS)
    report = look(shards, workers=1)
    assert report.samples == len(shards)
    assert sorted(path.name for path in downloaded.iterdir()) == sorted(RUNS)  # nothing has run


@pytest.mark.parametrize("source", [".", "*.tar"])
def test_making_shards_of_such_a_folder_runs_nothing(source, downloaded):
    items, _ = items_of(source)
    assert sum(item.problem is None for item in items) == len(RUNS)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "address",
    [
        "https://x/a.tar;touch ran",
        "https://x/$(touch ran).tar",
        "s3://x/`id`",
        "gs://x/a b.tar",
        "https://x/'a'.tar",
        "https://x/a\nb.tar",
    ],
)
def test_an_address_that_a_shell_would_take_apart_is_refused(address):
    with pytest.raises(ShardError, match="which no address does"):
        expand(address)


def test_addresses_that_are_typed_are_left_as_they_are():
    for address in (
        "https://x/a-000000.tar?sig=a%2Fb&t=1",
        "hf://datasets/a/b@main/c.tar",
        "pipe:cat 'a b.tar'",
    ):
        assert expand(address) == [checked(address)] == [address]
    assert as_file("a/b.tar") == "a/b.tar" and as_file("pipe:x.tar") == os.path.abspath("pipe:x.tar")


class Recipe(Config):
    out: str = "run"
    data: dict[str, list[str]] = {}


def recipe(folder: Path, text: str) -> str:
    (folder / "r.yaml").write_text(text)
    return str(folder / "r.yaml")


def test_a_recipe_runs_a_program_only_where_that_is_allowed(tmp_path, capsys):
    path = recipe(tmp_path, "data: {shards: [a.tar, 'pipe:touch ran']}")
    assert [*programs_in({"a": [{"b": ("pipe:x", " pipe:y")}]})] == [("a.b", "pipe:x"), ("a.b", " pipe:y")]
    with pytest.raises(ConfigError, match="data.shards runs a program: 'pipe:touch ran'; .*--allow-programs"):
        program(Recipe, "", [path])
    assert program(Recipe, "", [path, "--allow-programs"]).data["shards"][1] == "pipe:touch ran"
    assert "data.shards runs 'pipe:touch ran'" in capsys.readouterr().err
    mine = program(Recipe, "", [path, "data.shards=['pipe:cat b.tar']"])  # typed by the user
    assert mine.data["shards"] == ["pipe:cat b.tar"]


@pytest.mark.parametrize("asked", ["${oc.env:SECRET}", "${oc.env:SECRET,none}", "x/${oc.decode:a}/y"])
def test_a_recipe_does_not_see_the_environment(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "a secret")
    with pytest.raises(ConfigError, match="may refer to its own keys alone") as error:
        load_config(Recipe, recipe(tmp_path, f"out: {asked}"))
    assert "a secret" not in str(error.value)
    assert load_config(Recipe, recipe(tmp_path, "out: a\ndata: {b: ['${out}/c']}")).data == {"b": ["a/c"]}


def _mine(folder: Path) -> None:
    (folder / "thesis.txt").write_text("mine")


@pytest.mark.parametrize("name", ["state", "state.old", "state.new", "state.damaged"])
@pytest.mark.parametrize(
    "fill",
    [
        _mine,
        lambda folder: (folder / "weights.bin").write_text("mine"),
        lambda folder: [(folder / "manifest.json").write_text("{}"), (folder / "more").mkdir()],
    ],
)
def test_a_run_removes_no_folder_but_its_own_saves(name, fill, tmp_path):
    (tmp_path / name).mkdir()
    fill(tmp_path / name)
    before = sorted(path.name for path in (tmp_path / name).iterdir())
    for work in (saves.newest, lambda out: saves.write(out, {"progress.pt": {}})):
        with pytest.raises(CheckpointError, match=f"{re.escape(name)} is no save of a run"):
            work(tmp_path)
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == before


def test_a_link_is_no_save_and_what_a_crash_left_is_one(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "state.new").symlink_to(tmp_path / "other")
    with pytest.raises(CheckpointError, match="is no save"):
        saves.newest(tmp_path)
    (tmp_path / "state.new").unlink()
    for names in ([], ["ema.bin"], ["phase.pt", ".manifest.json.x1"], [".manifest.json.x1"]):
        (tmp_path / "state.new").mkdir()
        for name in names:
            (tmp_path / "state.new" / name).write_bytes(b"")
        assert saves.newest(tmp_path) == (None, []) and not (tmp_path / "state.new").exists()
