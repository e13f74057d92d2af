"""The pictures that a CLIP learns from again and again; what it is measured by; gradients over processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from clip_runs import MODEL, state, train
from processes import Processes

from training.clip.losses import gather
from training.clip.pool import build_pool, groups
from training.clip.recipe import ClipRecipe
from training.data.pool import FACTS, PICTURES, SAMPLES
from training.data.source import Source
from training.run.folder import write_recipe
from unclip.config import ConfigError, load_config


def read(path: str, *more: str) -> ClipRecipe:
    return load_config(ClipRecipe, path, more)


@pytest.fixture
def kept(recipe) -> ClipRecipe:
    return read(recipe("run", f"model: {MODEL}\ndistinct: 20"))


def folder_of(kept: ClipRecipe) -> Path:
    (folder,) = Path(kept.out).glob("pool-*")
    return folder


def test_a_pool_holds_the_pictures_that_would_be_drawn(kept):
    pool = build_pool(kept, Path(kept.out), batch=6)
    assert len(pool) == 20
    drawn, seen = Source(kept.data, kept.seed).batches(6), 0
    for batch in (next(drawn) for _ in range(3)):
        rows = list(range(seen, seen + 6))
        assert torch.equal(pool.pictures(rows), batch.pixels)
        assert [pool.caption[row] for row in rows] == batch.caption
        assert [pool.key[row] for row in rows] == batch.key
        seen += 6
    numbers = groups(pool)
    names = [key.split("--")[-1] for key in pool.key]
    assert len(numbers) == 20 and len(set(numbers.tolist())) == len(set(names))
    for a in range(20):
        for b in range(20):
            assert (numbers[a] == numbers[b]).item() == (names[a] == names[b])


def test_a_pool_is_made_once_grows_and_goes_on(kept, monkeypatch):
    whole = build_pool(kept, Path(kept.out), batch=6)
    expected = whole.pictures(slice(0, 20)).clone()
    facts = json.loads((folder_of(kept) / FACTS).read_text())
    (folder_of(kept) / FACTS).write_text(json.dumps({**facts, "count": 9}))  # in the middle of a batch
    again = build_pool(kept, Path(kept.out), batch=6)
    assert torch.equal(again.pictures(slice(0, 20)), expected) and again.key == whole.key
    more = build_pool(kept.model_copy(update={"distinct": 23}), Path(kept.out), batch=6)
    assert len(more) == 23 and torch.equal(more.pictures(slice(0, 20)), expected)
    monkeypatch.setattr("training.clip.pool.Source.batches", None)  # nothing is drawn any more
    fewer = build_pool(kept.model_copy(update={"distinct": 5}), Path(kept.out))
    assert fewer.key == whole.key[:5]


def test_pictures_of_another_size_or_seed_are_another_pool(kept):
    build_pool(kept, Path(kept.out))
    small = kept.data.model_copy(update={"size": 8})
    for other in ({"data": small}, {"seed": 1}):
        build_pool(kept.model_copy(update=other), Path(kept.out))
    assert len([*Path(kept.out).glob("pool-*")]) == 3
    assert build_pool(kept.model_copy(update={"data": small}), Path(kept.out)).pictures([0]).shape[-1] == 8


@pytest.mark.attack
@pytest.mark.parametrize("name", [PICTURES, SAMPLES, FACTS])
def test_a_pool_that_was_cut_short_is_refused_before_a_step(name, kept, recipe, tmp_path):
    build_pool(kept, Path(kept.out))
    path = folder_of(kept) / name
    path.write_bytes(path.read_bytes()[:-40])
    write_recipe(Path(kept.out), kept)  # as a run does before it makes its pool
    with pytest.raises(ConfigError, match=f"the pool .*{folder_of(kept).name} is (cut short|damaged)"):
        train(recipe("run", f"model: {MODEL}\ndistinct: 20"))
    assert not (tmp_path / "run/images").exists()


@pytest.mark.parametrize("what", ["", "distinct: 20"], ids=["streamed", "kept"])
def test_without_held_out_pictures_a_run_ends_with_its_model(what, recipe, tmp_path):
    train(recipe("run", f"model: {MODEL}\n{what}"), "data.heldout=[]", "images.samples=16")
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == {}
    assert (tmp_path / "run/open_clip_model.safetensors").is_file() and state(tmp_path / "run")["step"] == 2
    train(recipe("run", f"model: {MODEL}\n{what}"), "data.heldout=[]", "images.samples=16")  # nothing is left


ROWS = torch.tensor([[1.0, -2.0], [3.0, 5.0], [-4.0, 2.0], [7.0, -1.0]], dtype=torch.float64)


def objective(own: torch.Tensor, every: torch.Tensor, rank: int) -> torch.Tensor:
    """In small whole numbers, so that sums in any order are exact; every process weighs rows differently."""
    return ((rank + 1) * (own[:, None] * every[None]).sum(-1).square()).sum()


def gathered(out: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    own = ROWS[2 * rank : 2 * rank + 2].clone().requires_grad_()
    every = gather(own)
    assert torch.equal(every, ROWS)
    objective(own, every, rank).backward()
    torch.save(own.grad, f"{out}/{rank}.pt")
    assert torch.equal(gather(torch.tensor([rank])), torch.tensor([0, 1]))  # numbers, too
    dist.destroy_process_group()


def test_gradients_through_the_rows_of_all_processes_are_exact(tmp_path):
    Processes(tmp_path / "log", 2, gathered, str(tmp_path)).succeed()
    rows = ROWS.clone().requires_grad_()
    sum(objective(rows[2 * rank : 2 * rank + 2], rows, rank) for rank in (0, 1)).backward()
    both = torch.cat([torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)])
    assert torch.equal(both, rows.grad) and rows.grad.abs().min() > 0
