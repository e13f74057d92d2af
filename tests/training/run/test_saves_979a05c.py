"""What commit 979a05c saved can be gone on from, and drawn with."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import FIXTURES
from runs import forget, metrics, saved

from training import decoder
from unclip import load
from unclip.stages import load_stage

MADE = FIXTURES / "saves-979a05c"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the run, which its recipe names as seen from the one above."""
    with tarfile.open(MADE / "run.tar.xz") as tar:
        # An archive of our own; Python before 3.11.4 knows no filter.
        tar.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    monkeypatch.chdir(tmp_path)
    forget()
    yield tmp_path / "run"
    forget()


def test_a_run_of_then_ends_as_it_would_have_then(run, capsys):
    assert saved(run)["step"] == 4
    assert decoder.main(["recipe.yaml"]) == 0
    said = capsys.readouterr().out
    assert "going on from 32 pictures" in said and "changed" not in said
    then = [json.loads(line) for line in (MADE / "whole.jsonl").read_text().splitlines()]
    now = metrics(run)
    assert [sorted(point) for point in now] == [sorted(point) for point in then]
    for ours, theirs in zip(now, then, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert load_stage(run / "decoder.safetensors").facts["pictures_seen"] == 64


def test_a_damaged_save_of_then_gives_way_to_the_one_before(run, capsys):
    weights = run / "state" / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert decoder.main(["recipe.yaml", "train.pictures=40"]) == 0
    assert "going on from 16 pictures" in capsys.readouterr().out and saved(run)["step"] == 5


def test_a_checkpoint_of_then_draws(run):
    assert load(run / "decoder.safetensors").generate(seed=1).size == (8, 8)
