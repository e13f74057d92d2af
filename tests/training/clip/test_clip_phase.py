"""A phase of CLIP's training: its steps, rates, precision, and what processes tell each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from runs import forget
from torch import Tensor, nn

from training.clip.batches import ClipBatch
from training.clip.phase import PhaseRun, _adam
from training.clip.recipe import Phase
from unclip.config import Config
from unclip.diffusion.noise import fold


class Small(nn.Module):
    """A matrix, a gain and a scale; its loss has a gradient as large as is asked for."""

    def __init__(self, steep: float = 1.0) -> None:
        super().__init__()
        self.matrix, self.gain = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
        self.scale, self.steep, self.calls = nn.Parameter(torch.tensor(1.0)), steep, []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((torch.initial_seed(), torch.is_autocast_enabled("cpu"), self.training))
        return self.steep * (self.matrix.sum() + self.gain.sum() + self.scale) * x.float().mean()


class Recipe(Config):
    out: str
    seed: int = 5


def phase_of(out: Path, module: Small, precision: str = "no", **settings: object) -> PhaseRun:
    forget()
    phase = Phase(**{"samples": 16, "batch_size": 4, "warmup": 0, "learning_rate": 0.1, **settings})
    return PhaseRun(
        "images",
        phase,
        module,
        Recipe(out=str(out)),
        {},
        Accelerator(cpu=True, mixed_precision=precision),
        10**6,
        lambda: None,
    )


def ones(n: int, start: int) -> Iterator[ClipBatch]:
    while True:
        yield ClipBatch((torch.ones(n),), ["key"] * n)


def test_matrices_decay_and_gains_biases_and_scales_do_not():
    module, lengths = Small(), {}
    module.kernel, module.bias = nn.Parameter(torch.ones(2, 1, 1, 1)), nn.Parameter(torch.ones(2))
    adam = _adam(Phase(samples=4, weight_decay=0.25, learning_rate=0.1, beta2=0.9, eps=1e-3), module)
    for weight in module.parameters():
        weight.grad = torch.zeros_like(weight)
    adam.step()
    for name, weight in module.named_parameters():
        lengths[name] = weight.flatten()[0].item()
    assert lengths == pytest.approx({"matrix": 0.975, "kernel": 0.975, "gain": 1, "scale": 1, "bias": 1})
    assert all(group["betas"] == (0.9, 0.9) and group["eps"] == 1e-3 for group in adam.param_groups)


def test_a_phases_steps_have_their_rates_and_gradients_of_length_one(tmp_path):
    run, taken = phase_of(tmp_path, Small(steep=50.0), warmup=8), []
    run.optimizer.step = lambda *_: taken.append(
        (
            [group["lr"] for group in run.optimizer.param_groups],
            torch.cat([weight.grad.flatten() for weight in run.module.parameters()]).norm().item(),
        )
    )
    run.run(ones)
    warm = [0.5, 1, 1, 1]
    rates = [0.1 * warm[step] * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    for (found, norm), rate in zip(taken, rates, strict=True):
        assert found == pytest.approx([rate] * 2) and norm == pytest.approx(1.0, rel=1e-4)
    small, lengths = phase_of(tmp_path / "small", Small(steep=0.01), samples=8), []
    small.optimizer.step = lambda *_: lengths.append(small.module.gain.grad.tolist())
    small.run(ones)
    assert lengths == [pytest.approx([0.01] * 3)] * 2  # and nothing of the step before


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_phase_trains_in_its_precision_with_seeds_of_its_steps(precision, tmp_path):
    module = Small()
    module.eval()
    phase_of(tmp_path, module, precision).run(ones)
    assert module.calls == [(fold(5, 0, step), precision == "bf16", True) for step in range(4)]


def test_a_sound_step_ends_a_row_of_others(tmp_path):
    run = phase_of(tmp_path, Small(), max_skipped=2, samples=24)
    run.run(
        lambda n, start: (
            ClipBatch((torch.full((n,), x),), ["key"]) for x in (1.0, math.nan, 1.0, math.inf, 1.0, math.nan)
        )
    )
    assert run.step == 6 and run.guard.in_a_row == 1 and run.guard.total == 3


def test_the_loss_that_is_told_is_the_mean_over_processes(tmp_path):
    run, told = phase_of(tmp_path, Small()), []
    run.accelerator = SimpleNamespace(
        num_processes=2,
        reduce=lambda loss: loss + 4.0,
        log=lambda values, step: told.append((step, values["images/loss"])),
    )
    run.step = 3
    run._record(torch.tensor(6.0), SimpleNamespace(set_postfix=lambda **shown: told.append(shown)))
    assert told == [{"loss": "5.000"}, (12, 5.0)]


def test_a_signal_that_comes_to_another_process_ends_the_run_here_too(tmp_path):
    run = phase_of(tmp_path, Small())
    run.accelerator = SimpleNamespace(
        process_index=1,
        num_processes=2,
        device="cpu",
        autocast=run.accelerator.autocast,
        backward=run.accelerator.backward,
        reduce=lambda flags: flags + torch.tensor([0.0, 1.0, 0.0, 0.0]),
    )
    loss = run._optimise(run.module, next(ones(4, 0)))
    assert loss == 6 + 3 + 1 and run.ending and run.guard.total == 0
