"""Training that goes on from a save: all that it takes up lies at multiples of 64 bytes."""

from __future__ import annotations

import pytest
from accelerate import Accelerator
from odd import odd_places, shift_save
from runs import equal, fit, forget, make_run, same
from tiny import randn
from torch import nn

from training.clip.phase import PhaseRun
from training.clip.recipe import Phase
from training.run import saves as state
from training.run.resume import WEIGHTS, resume
from unclip.config import Config

pytestmark = pytest.mark.bitwise


def test_a_run_that_goes_on_lies_aligned(tmp_path):
    settings = {"net": {"dropout": 0.2}, "decay": "none"}
    whole, out = fit(tmp_path / "whole", pictures=32, **settings), tmp_path / "run"
    fit(out, pictures=16, **settings)
    shift_save(out)
    assert odd_places(nn.ParameterList(state.load(out / "state" / WEIGHTS).values()))
    run = make_run(out, pictures=32, **settings)
    resume(run)
    assert run.step == 2 and odd_places(run.raw, run.ema.module, run.optimizer) == []
    fit(out, pictures=32, **settings)
    forget()
    assert same(whole, out)


class PhaseRecipe(Config):
    out: str
    seed: int = 0


def test_a_phase_that_goes_on_lies_aligned(tmp_path):
    """And owns its optimiser's memory: nothing of the save stays mapped."""

    def phase() -> PhaseRun:
        return PhaseRun(
            "images",
            Phase(samples=8, batch_size=4),
            nn.Linear(7, 5),
            PhaseRecipe(out=str(tmp_path)),
            {},
            Accelerator(cpu=True),
            4,
            lambda: None,
        )

    first = phase()
    first.module(randn(4, 7)).sum().backward()
    first.optimizer.step()
    first._save()
    shift_save(tmp_path / "images")
    second = phase()
    second._resume()
    assert odd_places(second.module, second.optimizer) == []
    assert equal(first.module.state_dict(), second.module.state_dict())
    assert equal(first.optimizer.state_dict(), second.optimizer.state_dict())
    forget()
