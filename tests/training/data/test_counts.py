"""How many samples shards have is read where it is stated, else counted once; a wrong statement is told."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from shards import encoded, noise

from training.data import counts
from training.data.config import DataConfig
from training.data.source import Source
from unclip.data.indexed import MANIFEST, Indexed, ShardIndexError, stated_count
from unclip.data.writing import ShardWriter

COUNTS = (3, 3, 2)


@pytest.fixture
def shards(tmp_path, monkeypatch) -> list[str]:
    """Three shards, of which nothing is known."""
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))
    with ShardWriter(tmp_path / "data", "train", 3) as writer:
        for number in range(sum(COUNTS)):
            writer.write(f"{number}", {"png": encoded(noise(8, 8, number)), "txt": b"a caption"})
    (tmp_path / "data" / MANIFEST).unlink(missing_ok=True)
    return sorted(map(str, (tmp_path / "data").glob("*.tar")))


def state(path: str, kind: str, count: object) -> None:
    """State how many samples a shard has, as others do."""
    folder, name = os.path.split(path)
    if kind == "img2dataset":
        stats = {"count": 9, "successes": count, "failed_to_download": 9 - 1, "status_dict": {}}
        Path(path.removesuffix(".tar") + "_stats.json").write_text(json.dumps(stats))
        return
    index = Path(folder, "index.json" if kind == "wids" else "shards.json")
    listed = json.loads(index.read_text())["shardlist"] if index.exists() else []
    size = {"filesize": os.path.getsize(path)} if kind == "wids" else {}
    listed = [*listed, {"url": f"s3://bucket/{name}", "nsamples": count, **size}]
    index.write_text(json.dumps({"__kind__": "wids-shard-index-v1", "shardlist": listed}))


def no_counting(monkeypatch) -> None:
    monkeypatch.setattr(counts, "index", None)


@pytest.mark.parametrize("kind", ["img2dataset", "wids", "a list without sizes"])
def test_what_others_state_is_believed_and_nothing_counted(shards, kind, monkeypatch):
    for path, count in zip(shards, COUNTS, strict=True):
        state(path, kind, count)
    no_counting(monkeypatch)
    assert counts.counts_of(shards) == list(COUNTS)


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["img2dataset", "wids", "a list without sizes"])
@pytest.mark.parametrize("count", [-1, 10**9, 3.0, "3", None, True, [], {}])
def test_what_cannot_be_is_not_believed(shards, kind, count):
    state(shards[0], kind, count)
    assert stated_count(shards[0]) is None and counts.counts_of(shards) == list(COUNTS)


@pytest.mark.attack
@pytest.mark.parametrize("text", ["", "[]", "{", '{"shardlist": 3}', '{"shardlist": [3, {}]}', "[" * 9_999])
def test_nor_is_what_is_no_index(shards, text):
    for name in ("index.json", "shards.json", Path(shards[0]).name.replace(".tar", "_stats.json")):
        Path(shards[0]).with_name(name).write_text(text)
    assert counts.counts_of(shards) == list(COUNTS)


@pytest.mark.parametrize("kind", ["img2dataset", "wids", "a list without sizes"])
def test_what_was_stated_of_a_file_that_was_replaced_is_not_believed(shards, kind):
    state(shards[0], kind, 3)
    with ShardWriter(Path(shards[0]).parent / "other", "train", 3) as writer:
        for number in range(2):
            writer.write(f"{number}", {"png": encoded(noise(99, 99, number)), "txt": b"a caption"})
    shutil.copy(Path(shards[0]).parent / "other" / Path(shards[0]).name, shards[0])
    os.utime(shards[0], (2e9, 2e9))
    assert counts.counts_of(shards) == [2, 3, 2]


def test_what_was_counted_is_kept_until_a_file_changes(shards, tmp_path, monkeypatch):
    assert counts.counts_of(shards) == list(COUNTS)
    (kept,) = (tmp_path / "cache" / "counts").iterdir()
    counted, count = [], counts._count
    monkeypatch.setattr(counts, "_count", lambda path: counted.append(path) or count(path))
    assert counts.counts_of(shards) == list(COUNTS) and counted == []
    shutil.copy(shards[2], shards[1])
    assert counts.counts_of(shards) == [3, 2, 2] and counted == [shards[1]]
    shutil.copy(shards[0], shards[2])
    assert counts.counts_of(shards[2:]) == [3] and counts.counts_of(shards[:2]) == [3, 2]
    assert counted == [shards[1], shards[2]]  # what is known of others is kept
    shutil.copy(shards[1], shards[2])
    assert counts.counts_of(shards) == [3, 2, 2]
    odd = json.dumps({"shards": dict.fromkeys(map(counts._mark, shards), "3")})
    for text in ("", "[]", '{"shards": 1}', odd):
        kept.write_text(text)
        assert counts.counts_of(shards) == [3, 2, 2]
    monkeypatch.setenv("UNCLIP_CACHE", "/dev/null/nowhere")
    assert counts.counts_of(shards) == [3, 2, 2]  # a cache that cannot be written costs time alone


def test_many_are_counted_by_several_processes(shards, monkeypatch):
    monkeypatch.setattr(counts, "MANY", 2)
    assert counts.counts_of(shards, quiet=True) == list(COUNTS)


@pytest.mark.attack
@pytest.mark.parametrize("count", [2, 4])
def test_an_index_that_says_something_else_is_told_and_not_followed(shards, count):
    state(shards[0], "img2dataset", count)
    with pytest.raises(ShardIndexError, match=f"holds 3 samples, and .*says {count}: make that anew"):
        Indexed(shards)[0, 0]
    samples = Indexed(shards)
    for _ in range(2):  # nor once it was looked through
        with pytest.raises(ShardIndexError):
            samples[0, 0]
    config = DataConfig(shards=shards[:1], size=8)
    with pytest.raises(ValueError, match="make that anew, or remove it"):
        next(Source(config).batches(2))
