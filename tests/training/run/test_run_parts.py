"""The parts of a run one by one: what a guard names, how a batch is shared, where curves are cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import forget, make_run, saved

from training.run import curves
from training.run.guard import Guard, Part
from training.run.resume import _load_means, resume, save
from training.run.settings import Training, alone, micro_batch
from training.tasks import start
from training.tasks.prior import interleaved
from training.tasks.recipes import TOKENIZER
from unclip.config import ConfigError


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    forget()


def part(losses: list[float], first: int = 0) -> Part:
    keys = [f"k{first + number}" for number in range(len(losses))]
    return Part(keys, torch.arange(len(losses)) + 7, {"loss": torch.tensor(losses)})


def test_a_guard_names_whose_loss_is_not_finite_and_else_all(tmp_path, capsys):
    guard = Guard(tmp_path, make_run(tmp_path / "run").accelerator)
    nan, inf = float("nan"), float("inf")
    guard.skipped(8, [part([1.0, nan]), part([-inf, 2.0, inf], 2)], torch.tensor(3.0))
    guard.skipped(16, [part([1.0] * 11)], torch.tensor(inf))
    assert guard.in_a_row == guard.total == 2
    first, second = (json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines())
    assert first["samples"] == [
        {"key": "k1", "t": 8, "loss": "nan"},
        {"key": "k2", "t": 7, "loss": "-inf"},
        {"key": "k4", "t": 9, "loss": "inf"},
    ]
    assert (first["pictures"], first["gradient"], second["pictures"], second["gradient"]) == (
        8,
        "3.0",
        16,
        "inf",
    )
    assert [sample["key"] for sample in second["samples"]] == [f"k{number}" for number in range(11)]
    said = capsys.readouterr().err
    assert "to 8 pictures, 1 in a row: a loss is not finite: k1 (t = 8, loss nan), k2 (t = 7" in said
    assert "to 16 pictures, 2 in a row: the gradient (its norm is inf), though no loss" in said
    assert "k7 (t = 14, loss 1.0) and 3 more" in said and "k8 (" not in said
    none = Part(["a"], None, {"loss": torch.tensor([nan])})
    guard.skipped(24, [none], torch.tensor(1.0))
    assert "a (loss nan)" in capsys.readouterr().err


def test_a_batch_is_shared_out_evenly_or_refused():
    for batch, accumulate, processes, share in ((24, 1, 1, 24), (24, 3, 2, 4), (24, 2, 3, 4)):
        settings = Training(out="x", pictures=1, batch_size=batch, accumulate=accumulate)
        assert micro_batch(settings, SimpleNamespace(num_processes=processes)) == share
    for accumulate, processes in ((5, 1), (1, 5), (5, 2), (16, 2)):
        settings = Training(out="x", pictures=1, batch_size=24, accumulate=accumulate)
        said = f"batch_size 24 does not divide by {processes} processes x accumulate {accumulate}"
        with pytest.raises(ConfigError, match=said):
            micro_batch(settings, SimpleNamespace(num_processes=processes))


def test_curves_and_what_was_left_out_are_cut_where_the_run_goes_on(tmp_path):
    """A point at that very place stays; one that was half written goes."""
    run = make_run(tmp_path, pictures=32)
    run.step = 2
    save(run)
    for name in ("metrics.jsonl", "skipped.jsonl"):
        lines = [json.dumps({"pictures": pictures}) + "\n" for pictures in (8, 16, 16, 17, 24)]
        (tmp_path / name).write_text("".join(lines) + '{"pic')
    run = make_run(tmp_path, pictures=32)
    resume(run)
    run._start()
    for name in ("metrics.jsonl", "skipped.jsonl"):
        assert [point["pictures"] for point in curves.read(tmp_path / name)] == [8, 16, 16]
        assert (tmp_path / name).read_text().endswith("16}\n")
    assert not run.curves.validated(16)
    curves.append(tmp_path / "metrics.jsonl", {"pictures": 16, "validation/mse": 1.0})
    assert run.curves.validated(16) and not run.curves.validated(8)


def test_what_is_skipped_and_the_rate_are_gone_on_from(tmp_path):
    run = make_run(tmp_path, pictures=64, timestep_sampler="loss_second_moment", timesteps=2)
    run.step, run.guard.total, run.order, run.listing = 3, 5, {"processes": 1}, {"a.tar": "x"}
    run.importance.update(torch.tensor([1, 2]), torch.tensor([3.0, 4.0]))
    run.means.add({"loss": torch.tensor([1.0, 2.0])}, torch.tensor([1, 2]))
    save(run)
    progress = saved(tmp_path)
    assert progress["skipped"] == 5 and progress["order"] == {"processes": 1} and progress["step"] == 3
    assert progress["listing"] == {"a.tar": "x"} and "in_a_row" not in progress
    again = make_run(tmp_path, pictures=64, timestep_sampler="loss_second_moment", timesteps=2)
    again.order = {"processes": 1}
    resume(again)
    assert (again.step, again.saved, again.guard.total) == (3, 3, 5) and again.last_save.endswith(
        "after 24 samples"
    )
    assert again.importance.counts.tolist() == [1, 1] and torch.equal(again.means.sums, run.means.sums)


@pytest.mark.parametrize(
    "rank, world, sums", [(0, 1, 6.0), (0, 2, 2.0), (1, 2, 4.0), (0, 3, 6.0), (1, 3, None)]
)
def test_sums_between_points_are_shared_out_anew(rank, world, sums, tmp_path):
    """Each process has its own back; if there are more or fewer, one has all."""
    saves = [{"names": ["loss"], "sums": torch.full((4, 2), value)} for value in (2.0, 4.0)]
    run = make_run(tmp_path / "run")
    run.accelerator = SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu"))
    _load_means(run, saves)
    assert (run.means.sums is None) == (sums is None)
    if sums is not None:
        assert torch.equal(run.means.sums, torch.full((4, 2), sums)) and run.means.names == ["loss"]
    _load_means(run, [{"names": [], "sums": None}] * 5)  # saved at a point: there are none


def test_a_tokenizer_lies_beside_the_checkpoint(tmp_path, monkeypatch):
    settings, told = Training(out=str(tmp_path), pictures=1, batch_size=2, trackers=[]), []
    recipe = SimpleNamespace(train=settings, stage=None)
    monkeypatch.setattr(start, "program", lambda *_: recipe)
    monkeypatch.setattr(start, "train", lambda *_: 0)
    stage = SimpleNamespace(to=lambda device: stage)
    task = SimpleNamespace(tokenizer=SimpleNamespace(save=told.append))
    for made in (task, SimpleNamespace(tokenizer=None), SimpleNamespace()):
        forget()
        assert start.train_stage(None, lambda config: stage, lambda *_, made=made: made, "") == 0
    assert told == [tmp_path / TOKENIZER]


def test_a_recipe_of_another_program_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    def refuse(recipe: object) -> None:
        raise ConfigError("not mine")

    recipe = SimpleNamespace(train=Training(out=str(tmp_path / "run"), pictures=1))
    monkeypatch.setattr(start, "program", lambda *_: recipe)
    with pytest.raises(ConfigError, match="not mine"):
        start.train_stage(None, None, None, "", check=refuse)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(start, "program", lambda *_: None)  # a dry run
    assert start.train_stage(None, None, None, "") == 0


def test_rows_of_processes_are_put_in_the_order_of_one():
    assert interleaved([["a", "c"], ["b", "d"]]) == ["a", "b", "c", "d"]
    rows = interleaved((torch.tensor([[0, 0], [2, 2]]), torch.tensor([[1, 1], [3, 3]])))
    assert rows.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]] and interleaved([["a"]]) == ["a"]


def test_what_one_process_does_is_known_to_all_or_raised(tmp_path):
    accelerator = make_run(tmp_path / "run").accelerator
    assert alone(accelerator, lambda: 3) == 3
    with pytest.raises(OSError, match="no room"):
        alone(accelerator, lambda: (_ for _ in ()).throw(OSError("no room")))
    other = SimpleNamespace(is_main_process=False)
    assert alone(other, lambda: Path("never").read_text()) is None
