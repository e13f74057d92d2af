"""Several processes in one run (gloo, on CPUs): as one process, whole or in shards, stopped and continued."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from odd import odd_places, shift_save
from PIL import Image
from processes import Processes
from runs import equal, files, fit, forget, make_run, metrics, raw, same, saved

from training.run.loop import Run
from training.run.resume import resume
from unclip.checkpoint import load_checkpoint
from unclip.config import ConfigError
from unclip.data.images import to_tensor

pytestmark = pytest.mark.bitwise


HARD = {
    "pictures": 48,
    "log_every": 16,
    "validate_every": 16,
    "sample_every": 8,  # so that the average draws before it is validated
    "timesteps": 2,
    "warmup": 16,
    "decay": "none",
    "timestep_sampler": "loss_second_moment",
    "ema_half_life": 20,
    "draws": True,
}


def train(out: Path, settings: dict) -> None:
    fit(out, **settings)


def halt(out: Path, settings: dict, step: int) -> None:
    """The second process alone gets a signal, in the middle of this step, from 1 on."""
    run, real = make_run(out, **settings), Run._losses

    def losses(examples, index):
        if run.step == step - 1 and run.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, examples, index)

    run._losses = losses
    run.train()
    assert run.step == step, run.step


def spoil(out: Path, settings: dict, step: int) -> None:
    """In this step, from 1 on, the second process's first loss is no number."""
    run, real = make_run(out, **settings), Run._losses

    def losses(examples, index):
        part, loss = real(run, examples, index)
        if run.step == step - 1 and run.accelerator.process_index == 1:
            loss = torch.where(torch.arange(len(loss)) == 0, math.nan, 1) * loss
            part = replace(part, terms={**part.terms, "loss": loss.detach()})
        return part, loss

    run._losses = losses
    run.train()
    rank = run.accelerator.process_index
    torch.save((run.guard.total, run.sharded or run.raw.state_dict()), out / f"rank{rank}.pt")


def values(out: Path) -> list[float]:
    return [value for point in metrics(out) for name, value in sorted(point.items()) if name != "pictures"]


def close(a: Path, b: Path) -> bool:
    """Whether the curves of two runs have the same points, within 1e-5."""
    assert [sorted(point) for point in metrics(a)] == [sorted(point) for point in metrics(b)]
    return values(a) == pytest.approx(values(b), abs=1e-5)


def near(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=1e-4) for key in a)


def look(out: Path, settings: dict, step: int) -> None:
    """Take up a save, and see where it lies."""
    run = make_run(out, **settings)
    resume(run)
    assert run.sharded and run.step == step
    assert odd_places(run.raw, run.ema.module, run.optimizer) == []


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run in one process, and what becomes of it after more pictures."""
    folder = tmp_path_factory.mktemp("one")
    out = fit(folder / "run", **HARD)
    more = fit(Path(shutil.copytree(out, folder / "more")), **{**HARD, "pictures": 64})
    forget()
    return out, more


@pytest.mark.parametrize(
    "how",
    [{}, {"accumulate": 2}, {"shard": True, "checkpointing": True, "accumulate": 2}],
    ids=["ddp", "ddp-accumulate", "fsdp"],
)
def test_two_processes_equal_one_with_the_same_global_batch(how, one, tmp_path):
    """Losses within 1e-5, by quartile and in validation too; weights, averages, and what importance
    sampling remembers. And one process can go on from what two have saved.
    """
    out = tmp_path / "two"
    Processes(tmp_path, 2, train, out, {**HARD, **how}).succeed()
    assert files(out) == files(one[0]) and close(one[0], out)
    assert near(raw(one[0]), raw(out)) and near(saved(one[0], "ema.bin"), saved(out, "ema.bin"))
    drawn = [to_tensor(Image.open(run / "samples" / "000000048.png").convert("RGB")) for run in (one[0], out)]
    assert (drawn[0] - drawn[1]).abs().max() < 2.1 / 127.5 and drawn[0].std() > 0
    assert near(*(load_checkpoint(run / "decoder.safetensors")[0] for run in (one[0], out)))
    assert equal(saved(one[0])["importance"]["counts"], saved(out)["importance"]["counts"])
    fit(out, **{**HARD, "pictures": 64})
    assert close(one[1], out)


@pytest.mark.parametrize("how", [{}, {"shard": True}], ids=["ddp", "fsdp"])
def test_a_stopped_run_of_two_equals_one_that_was_not(how, tmp_path):
    """A signal to one stops both after the same step; to the last bit, with dropout, between points."""
    settings = {"pictures": 48, "log_every": 24, "save_every": 16, "net": {"dropout": 0.2}, **how}
    whole, out = tmp_path / "whole", tmp_path / "halves"
    Processes(tmp_path / "1", 2, train, whole, settings).succeed()
    Processes(tmp_path / "2", 2, halt, out, settings, 4).succeed()
    again = Processes(tmp_path / "3", 2, train, out, settings)
    again.succeed()
    assert again.log().count("going on from 32 pictures") == 1 and "going on" not in again.log(1)
    assert same(whole, out) and metrics(whole) == metrics(out)
    assert equal(saved(whole)["means"], saved(out)["means"])


@pytest.mark.parametrize("how", [{}, {"shard": True}], ids=["ddp", "fsdp"])
def test_all_leave_a_step_out_that_one_finds_broken(how, tmp_path):
    both = Processes(tmp_path, 2, spoil, tmp_path / "run", {"pictures": 24, **how}, 2)
    both.succeed()
    (line,) = map(json.loads, (tmp_path / "run" / "skipped.jsonl").read_text().splitlines())
    assert line["pictures"] == 16 and [sample["key"] for sample in line["samples"]] == ["picture-9"]
    assert "left out the step to 16 pictures" in both.log() and "left out" not in both.log(1)
    assert equal(*([*torch.load(tmp_path / "run" / f"rank{rank}.pt")] for rank in (0, 1)))
    assert [point.get("skipped") for point in metrics(tmp_path / "run") if "loss" in point] == [None, 1]


def test_weights_that_are_shared_out_lie_aligned(tmp_path):
    """Wherever the tensors of a save lie."""
    out, settings = tmp_path / "run", {"pictures": 16, "shard": True}
    Processes(tmp_path / "1", 2, train, out, settings).succeed()
    shift_save(out)
    Processes(tmp_path / "2", 2, look, out, settings, 2).succeed()


def test_what_accelerate_launch_asks_for(tmp_path, monkeypatch):
    """--use_fsdp is ``shard``, which one process has no use for; weights on the CPU are refused."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    run = make_run(tmp_path / "run")
    assert not run.sharded and run.accelerator.shards is False
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ConfigError, match="fsdp_offload_params"):
        make_run(tmp_path / "run")
