"""A run keeps its best weights beside the last, and ends where there is no gain, however it was stopped."""

from __future__ import annotations

import pytest
import torch
from processes import Processes
from runs import files, fit, make_run, metrics, raw, same, saved

from training.run import loop
from training.run.curves import best_of
from training.run.loop import Run
from unclip.checkpoint import load_checkpoint
from unclip.config import ConfigError

BEST = {"pictures": 64, "validate_every": 8, "save_every": 24, "keep": "best", "learning_rate": 3e-3}


class Stopped(Exception):
    pass


@pytest.fixture
def errors(monkeypatch) -> list[float]:
    """What validation says, in turn after 8, 16, ... pictures; it is computed all the same."""
    told = [0.9, 0.7, 0.8, 0.6, 0.6, 0.65, 0.7, 0.8]
    real = loop.validate

    def validate(module, batches, timesteps, accelerator, sharded=False):
        means = real(module, batches, timesteps, accelerator, sharded)
        return (
            means
            if len(batches) == 1 and not batches[0].keys
            else {**means, "mse": told[RUN[0].seen // 8 - 1]}
        )

    monkeypatch.setattr(loop, "validate", validate)
    return told


RUN: list[Run] = []


def run(out, **settings) -> Run:
    made = make_run(out, **{**BEST, **settings})
    RUN[:] = [made]
    return made


def best(out) -> tuple[int, dict[str, torch.Tensor]]:
    tensors, header = load_checkpoint(out / "decoder-best.safetensors")
    return header["pictures_seen"], tensors


@pytest.mark.bitwise
def test_the_best_is_what_a_run_of_that_length_ends_with(tmp_path, errors, capsys):
    run(tmp_path / "whole").train()
    seen, tensors = best(tmp_path / "whole")
    assert seen == 32  # the first of two that are equal
    assert "best after 32 of 64 pictures (validation/mse 0.6000): " in capsys.readouterr().out
    fit(tmp_path / "short", **{**BEST, "decay": "none", "pictures": 32, "keep": "last"})
    run(tmp_path / "flat", decay="none").train()
    at_32 = load_checkpoint(tmp_path / "short/decoder.safetensors")[0]
    assert all(torch.equal(at_32[key], value) for key, value in best(tmp_path / "flat")[1].items())
    assert any(not torch.equal(raw(tmp_path / "whole")[key], value) for key, value in tensors.items())


@pytest.mark.bitwise
@pytest.mark.parametrize("where", ["save_best", "record"])
def test_a_run_that_is_killed_around_its_best_keeps_the_same(where, tmp_path, errors, monkeypatch):
    run(tmp_path / "whole").train()
    out = tmp_path / "run"
    first = run(out)
    place = loop if where == "save_best" else first.curves
    real = getattr(place, where)

    def killed(*args):
        if RUN[0].seen == 32:
            raise Stopped  # a validation that fails is told; the kill comes after it
        return real(*args)

    monkeypatch.setattr(place, where, killed)
    monkeypatch.setattr(first, "_attempt", lambda what, look: look())
    with pytest.raises(Stopped):
        first.train()
    monkeypatch.setattr(place, where, real)
    run(out).train()
    assert same(tmp_path / "whole", out) and metrics(tmp_path / "whole") == metrics(out)
    (a, one), (b, other) = best(tmp_path / "whole"), best(out)
    assert a == b and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.bitwise
def test_a_run_without_gain_ends_and_does_not_go_on(tmp_path, errors, capsys):
    out = tmp_path / "run"
    ended = run(out, patience=3)
    ended.train()
    assert ended.code == 0 and saved(out)["step"] == 56 // 8 and best(out)[0] == 32
    assert "no gain in 3 validations, so it ends here; best after 32 of 56" in capsys.readouterr().out
    before = metrics(out)
    again = run(out, patience=3)
    again.train()
    assert again.step == 7 and metrics(out) == before
    longer = run(out, patience=4)  # and with more patience it does
    longer.train()
    assert longer.step == 8


def test_two_processes_keep_what_one_does(tmp_path):
    settings = {**BEST, "pictures": 32, "learning_rate": 1e-4}
    Processes(tmp_path / "0", 2, train, tmp_path / "two", settings).succeed()
    Processes(tmp_path / "1", 2, train, tmp_path / "parts", {**settings, "shard": True}).succeed()
    fit(tmp_path / "one", **settings)
    seen, tensors = best(tmp_path / "one")
    for other in ("two", "parts"):
        assert best(tmp_path / other)[0] == seen
        for key, value in best(tmp_path / other)[1].items():
            assert torch.allclose(value, tensors[key], atol=1e-4)


def train(out, settings) -> None:
    fit(out, **settings)


def test_what_cannot_tell_the_best_is_said_before_work(tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match="validation has no fid, but mse, mse/quartile0"):
        make_run(tmp_path / "a", **BEST, keep_by="fid").train()
    with pytest.raises(ConfigError, match="keep_by is of keep: best"):
        make_run(tmp_path / "b", keep_by="mse").train()
    assert not (tmp_path / "a" / "state").exists()
    blind = make_run(tmp_path / "c", **{**BEST, "pictures": 8})
    monkeypatch.setattr(blind.task, "validation", list)
    blind.train()
    assert "there is no held-out data" in capsys.readouterr().out
    assert "decoder-best.safetensors" not in files(tmp_path / "c")
    assert best_of(tmp_path / "c" / "metrics.jsonl", None) is None
