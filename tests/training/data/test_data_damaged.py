"""Manifests, embeddings and pools that cannot be are not believed."""

from __future__ import annotations

import json

import pytest
import torch
from places import TRAIN
from shards import uneven
from tiny_models import tiny_clip

from training.data.config import DataConfig
from training.data.embeddings import Embeddings, Rows, load_rows, save_rows
from training.data.source import Source
from training.doctor import look
from unclip.checkpoint import CheckpointError
from unclip.config import ConfigError
from unclip.data.indexed import MANIFEST, stated_count
from unclip.data.indexed import _manifest as remembered

pytestmark = pytest.mark.attack


@pytest.mark.parametrize("files", [
    "[" * 100_000, '{"files": 7}', "\udcff", '{"files": {"NAME": 7}}',
    '{"files": {"NAME": {"samples": 2}}}', '{"files": {"NAME": {"samples": "9", "bytes": SIZE}}}',
    '{"files": {"NAME": {"samples": -3, "bytes": SIZE}}}',
    '{"files": {"NAME": {"samples": true, "bytes": SIZE}}}',
    '{"files": {"NAME": {"samples": 1000000000, "bytes": SIZE}}}',
])  # fmt: skip
def test_a_manifest_that_cannot_be_is_not_believed(tmp_path, files):
    (path,) = uneven(tmp_path, [3])
    text = files.replace("NAME", path.name).replace("SIZE", str(path.stat().st_size))
    (tmp_path / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    remembered.cache_clear()
    assert stated_count(str(path)) is None
    source = Source(DataConfig(shards=[str(path)], size=8))
    assert source.pictures.count == 3 and len(set(next(source.batches(3)).key)) == 3


def test_the_doctor_compares_the_manifest(tmp_path):
    (path,) = uneven(tmp_path, [3])
    size = path.stat().st_size
    for entry, wrong in (
        ({"samples": 3, "bytes": size}, []),
        ({"samples": 4, "bytes": size}, ["3 samples, not 4"]),
        ({"samples": 3, "bytes": size + 512}, [f"{size:,} bytes, not {size + 512:,}"]),
    ):
        (tmp_path / MANIFEST).write_text(json.dumps({"files": {path.name: entry}}))
        remembered.cache_clear()
        problems = look([str(path)], tiny_clip()).problems
        assert [one.reason for one in problems] == wrong
        assert all(one.kind == "other than its manifest" for one in problems)


def rows(**other: object) -> Rows:
    values = {"keys": ["a", "b"], "captions": ["one", "two", "three"], "image": torch.zeros(2, 4),
              "text": torch.zeros(3, 4), "picture": torch.tensor([0, 0, 1]),
              "tokens": torch.zeros(5, 4).half(), "ends": torch.tensor([0, 2, 3, 5]), **other}  # fmt: skip
    return Rows(**values)


@pytest.mark.parametrize("other", [
    {"keys": ["a"]}, {"captions": ["one"]}, {"captions": ["one", 2, "three"]}, {"image": torch.zeros(3, 4)},
    {"text": torch.zeros(2, 4)}, {"picture": torch.tensor([0, 1])}, {"picture": torch.tensor([0, 0, 2])},
    {"picture": torch.tensor([-1, 0, 1])}, {"picture": torch.tensor([1, 0, 1])},
    {"ends": torch.tensor([0, 2, 5])}, {"ends": torch.tensor([1, 2, 3, 5])},
    {"ends": torch.tensor([0, 2, 3, 6])}, {"ends": torch.tensor([0, 4, 3, 5])},
], ids=range(13))  # fmt: skip
def test_embeddings_that_do_not_belong_together_are_damaged(tmp_path, other):
    save_rows(tmp_path / "a", rows(), clip="x")
    assert load_rows(tmp_path / "a").captions == ["one", "two", "three"]
    save_rows(tmp_path / "b", rows(**other), clip="x")
    with pytest.raises(CheckpointError, match="b is damaged: "):
        load_rows(tmp_path / "b")


@pytest.mark.parametrize("change", [
    {"mean": [0.0]}, {"mean": "zero"}, {"files": {"a": {"pictures": -1, "captions": 2}}}, {"files": {"a": 7}},
    {"files": {"a": {"pictures": 1, "captions": True}}}, {"dim": True}, {"clip": None}, {"files": []},
], ids=range(8))  # fmt: skip
def test_a_list_of_embeddings_that_cannot_be_is_damaged(tmp_path, change):
    facts = {"clip": "x", "dim": 2, "text_dim": None, "tokens": False, "mean": [0.0, 0.0], "std": [1.0, 1.0],
             "files": {"a": {"pictures": 1, "captions": 2}}}  # fmt: skip
    (tmp_path / "embeddings.json").write_text(json.dumps(facts))
    assert Embeddings(tmp_path).files["a"]["captions"] == 2
    (tmp_path / "embeddings.json").write_text(json.dumps(facts | change))
    with pytest.raises(ConfigError, match="embeddings"):
        Embeddings(tmp_path)


def test_a_pool_of_odd_lines_is_damaged(tmp_path):
    from training.data.pool import FACTS, SAMPLES

    data = TRAIN
    config = DataConfig(
        kind="icons", shards=[str(data)], size=8, pool={"folder": str(tmp_path / "pool"), "scenes": 3}
    )
    Source(config)
    path = tmp_path / "pool" / SAMPLES
    lines = path.read_text().splitlines()
    for odd in ("[" * 100_000, "7", '["only one"]', '["a", 7]', "["):
        path.write_text("\n".join([lines[0], odd, lines[2]]) + "\n")
        with pytest.raises(ConfigError, match=r"line 2 of .*samples.jsonl is damaged; delete the pool"):
            Source(config)
    path.write_text("\n".join(lines) + "\n")
    (tmp_path / "pool" / FACTS).write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="the pool .* is damaged .*nested too deep"):
        Source(config)
