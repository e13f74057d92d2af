"""What the training loop hands to its parts: each gets what it should, in its own units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import Rows, equal, make_run, noise, raw, saved
from torch import Tensor

from training.run.curves import Means, validate
from training.run.examples import Examples
from training.run.guard import Guard, Part
from training.run.loop import Run
from training.run.resume import save
from training.streams import Purpose, numbers, seed_of, streams
from unclip.checkpoint import load_checkpoint
from unclip.diffusion.noise import fold
from unclip.diffusion.timesteps import LossSecondMoment, uniform


class Classes(Rows):
    """Rows that are told to be of classes 0, 1, 2, 0, ..."""

    def rows(self, rows: list[int]) -> Examples:
        return replace(super().rows(rows), conditions={"classes": torch.tensor(rows) % 3})


def classes(out: Path, drop: float = 0.5, **settings: object) -> Run:
    """A run of a decoder that takes a class, which training leaves out now and then."""
    run = make_run(out, net={"classes": 3}, **settings)
    run.task = Classes(noise(), run.task.n)
    for stage in (run.raw, run.ema.module):
        stage.config = stage.config.model_copy(update={"drop_class": drop})
    return run


def spied(real: Callable) -> tuple[Callable, list[SimpleNamespace]]:
    """A stage's forward that takes down what it is called with, and in which state."""
    calls: list[SimpleNamespace] = []

    def stage(x0: Tensor, t: Tensor, noise: Tensor, conditions: dict) -> dict[str, Tensor]:
        calls.append(
            SimpleNamespace(
                x0=x0,
                t=t,
                noise=noise,
                conditions=conditions,
                seed=torch.initial_seed(),
                bf16=torch.is_autocast_enabled("cpu"),
                grad=torch.is_grad_enabled(),
            )
        )
        return real(x0, t, noise, conditions)

    return stage, calls


def stepped(run: Run) -> list[list[Tensor]]:
    """The gradients of every step, as the optimiser gets them; it then leaves the weights alone."""
    taken: list[list[Tensor]] = []
    run.optimizer.step = lambda: taken.append([weight.grad.clone() for weight in run.weights])
    return taken


def norm_of(gradients: list[Tensor]) -> float:
    return torch.cat([grad.flatten() for grad in gradients]).norm().item()


# What a batch is told


def test_a_pictures_chance_is_that_of_its_number(tmp_path):
    """Its t, its noise, and whether its condition is left out, in either part of a step."""
    run = classes(tmp_path / "run", pictures=16, accumulate=2, seed=3)
    run.stage, calls = spied(run.stage)
    run.train()
    left_out = []
    for index, call in enumerate(calls):
        source = streams(3, Purpose.LOSS, range(4 * index, 4 * index + 4))
        assert torch.equal(call.t, uniform(4, 1000, source)) and torch.equal(call.noise, source((3, 8, 8)))
        told = torch.arange(4 * index, 4 * index + 4) % 3
        assert torch.equal(call.conditions["classes"], run.raw.drop({"classes": told}, source)["classes"])
        left_out += (call.conditions["classes"] < 0).tolist()
        assert torch.equal(call.x0, noise()[4 * index : 4 * index + 4])
    assert len(calls) == 4 and 0 < sum(left_out) < 16


@pytest.mark.parametrize("rank", [0, 1])
def test_dropout_and_chance_are_a_processs_own(rank, tmp_path):
    run = make_run(tmp_path / "run", seed=5)
    stage, calls = spied(run.stage)
    run = SimpleNamespace(
        stage=stage,
        raw=run.raw,
        settings=run.settings,
        importance=None,
        accelerator=(SimpleNamespace(process_index=rank, num_processes=2, autocast=nullcontext)),
    )
    examples = Rows(noise(), 3).rows([0, 1, 2])
    for index in (0, 7):
        part, _ = Run._losses(run, examples, index)
        assert torch.equal(part.t, uniform(3, 1000, streams(5, Purpose.LOSS, numbers(index, 3, rank, 2))))
    assert [call.seed for call in calls] == [fold(5, rank, 0), fold(5, rank, 7)]


def test_every_purpose_has_streams_of_its_own():
    seeds = {seed_of(seed, purpose, number) for seed in (0, 1) for purpose in Purpose for number in (0, 1, 2)}
    assert len(seeds) == 2 * len(Purpose) * 3 and len(Purpose) == 4
    shared = [[*numbers(2, 3, rank, 2)] for rank in (0, 1)]
    assert shared == [[12, 14, 16], [13, 15, 17]] and [*numbers(2, 6, 0, 1)] == [*range(12, 18)]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precision_reaches_losses_validation_and_samples(precision, tmp_path, monkeypatch):
    run = classes(tmp_path / "run", pictures=8, precision=precision)
    run.stage, losses = spied(run.raw.__class__.forward.__get__(run.raw))  # not as accelerate wraps it
    averaged, checked = spied(run.ema.module.forward)
    monkeypatch.setattr(run.ema.module, "forward", averaged)
    drawn = []
    run.task.draw = lambda stage: drawn.append(
        (stage, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled())
    )
    run.train()
    assert {call.bf16 for call in [*losses, *checked]} == {precision == "bf16"}
    assert all(call.grad for call in losses) and not any(call.grad for call in checked)
    assert drawn == [(run.ema.module, precision == "bf16", False)]


# What is minimised


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_gradient_is_that_of_the_mean_loss(accumulate, tmp_path):
    """However many parts it is taken in, and alike in the second step."""
    run = make_run(tmp_path / "run", pictures=16, accumulate=accumulate, clip_norm=1e9)
    taken = stepped(run)
    run.train()
    for step, gradients in enumerate(taken):
        source = streams(0, Purpose.LOSS, range(8 * step, 8 * step + 8))
        t, x0 = uniform(8, 1000, source), noise()[8 * step : 8 * step + 8]
        loss = run.raw(x0, t, source((3, 8, 8)), {})["loss"].mean()
        for ours, wanted in zip(gradients, torch.autograd.grad(loss, run.weights), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-6)
    assert len(taken) == 2 and norm_of(taken[0]) > 0.01


def test_a_gradient_is_clipped_to_the_settings_norm_and_no_smaller_one_is_touched(tmp_path):
    limits = {"free": 1e9, "clipped": 0.05}
    taken = {}
    for name, limit in limits.items():
        run = make_run(tmp_path / name, pictures=8, clip_norm=limit)
        taken[name] = stepped(run)
        run.train()
    (free,), (clipped,) = taken.values()
    assert norm_of(free) > 0.1 and norm_of(clipped) == pytest.approx(0.05, rel=1e-3)
    for ours, whole in zip(clipped, free, strict=True):
        torch.testing.assert_close(ours, whole * 0.05 / norm_of(free), rtol=1e-3, atol=1e-8)


def test_an_optimisers_rate_is_that_of_its_step(tmp_path):
    run, rates = make_run(tmp_path / "run", pictures=32, warmup=16, learning_rate=1e-2), []
    run.optimizer.step = lambda: rates.append(run.optimizer.param_groups[0]["lr"])
    run.train()
    assert rates == [run.rate(step) for step in range(4)]
    assert rates == pytest.approx([0.005, 0.01 * 0.8536, 0.005, 0.01 * 0.1464], rel=1e-3)


def test_a_rare_t_counts_more_in_the_gradient(tmp_path):
    run = make_run(tmp_path / "run", timestep_sampler="loss_second_moment", timesteps=2)
    known = torch.tensor([1, 2]).repeat(10), torch.tensor([1.0, 2.0]).repeat(10)
    run.importance.update(*known)
    expected = LossSecondMoment(2)
    expected.update(*known)
    part, loss = run._losses(run.task.rows([*range(8)]), 0)
    t = expected.draw(8, streams(0, Purpose.LOSS, range(8)))
    assert torch.equal(part.t, t) and len(set(t.tolist())) == 2
    torch.testing.assert_close(loss, expected.weights(t).float() * part.terms["loss"])
    assert loss.requires_grad and not torch.allclose(loss, part.terms["loss"])


def test_processes_wait_for_each_other_after_the_last_part_alone(tmp_path, monkeypatch):
    run, order = make_run(tmp_path / "run", pictures=8, accumulate=4), []
    monkeypatch.setattr(run.accelerator, "no_sync", lambda stage: order.append("apart") or nullcontext())
    monkeypatch.setattr(run.accelerator, "backward", lambda loss: order.append("part") or loss.backward())
    run.train()
    assert order == ["apart", "part"] * 3 + ["part"]
    run.sharded = True  # there nobody is told to wait
    run._shared(last=False)
    assert len(order) == 7


def test_a_loss_or_a_gradient_that_is_no_number_is_unsound(tmp_path):
    guard = Guard(tmp_path, SimpleNamespace())
    nan, one = torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 1.0])

    def parts(*losses: Tensor) -> list[Part]:
        return [Part(["a", "b"], torch.tensor([1, 2]), {"loss": loss}) for loss in losses]

    assert guard.sound(parts(one, one), torch.tensor(1.0))
    assert not guard.sound(parts(one, nan), torch.tensor(1.0)) and not guard.sound(parts(nan, one), one[0])
    assert not guard.sound(parts(one, one), nan[1]) and not guard.sound(parts(one), 1 / torch.tensor(0.0))


# What becomes of the weights


def test_the_average_counts_pictures(tmp_path):
    """All of a step's parts, from 8,000 on; the half-life of 200 is below 5% of the pictures seen, and above
    5% of the steps.
    """
    run = make_run(
        tmp_path / "run", pictures=8_024, accumulate=2, ema_half_life=200, learning_rate=1e-2, decay="none"
    )
    run.step, average, real = 1_000, [weight.clone() for weight in run.weights], run._optimise

    def optimise(batches: Iterator[Examples]) -> None:
        real(batches)
        for ours, weight in zip(average, run.weights, strict=True):
            ours.data.lerp_(weight.data, 1 - 0.5 ** (8 / 200))

    run._optimise = optimise
    run.train()
    made, header = load_checkpoint(tmp_path / "run" / "decoder.safetensors")
    names = [name for name, _ in run.raw.named_parameters()]
    for found in (saved(tmp_path / "run", "ema.bin"), made):
        for name, ours in zip(names, average, strict=True):
            torch.testing.assert_close(found[name], ours, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(average[0], raw(tmp_path / "run")[names[0]], atol=1e-3)
    assert header["pictures_seen"] == 8_024


def test_a_saved_average_is_gone_on_from_not_the_weights(tmp_path):
    run = make_run(tmp_path / "run", pictures=24)
    for weight in run.ema.module.parameters():
        weight.data += 1
    run.step, kept = 2, run.ema.module.state_dict()
    save(run)
    run = make_run(tmp_path / "run", pictures=16, eps=1e-6, weight_decay=0.3)
    run.train()
    assert run.step == 2 and equal(dict(run.ema.module.state_dict()), dict(kept))
    assert run.optimizer.param_groups[0]["eps"] == 1e-6
    assert run.optimizer.param_groups[0]["weight_decay"] == 0.3


def test_the_averages_are_validated_on_all_that_is_held_out(tmp_path):
    """At every level alike; each batch with a noise that no seed of the run changes, and all conditions."""
    run = classes(tmp_path / "run", drop=1.0, seed=7, timesteps=40)
    for weight in run.ema.module.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    expected = Means(40)
    for number, rows in enumerate([range(6), range(6, 12), range(12, 16)]):
        x0 = noise()[rows.start : rows.stop]
        drawn = torch.randn(x0.shape, generator=torch.Generator().manual_seed(fold(1, number)))
        t = torch.tensor([1 + k * 40 // len(rows) for k in range(len(rows))])
        with torch.no_grad():
            terms = run.ema.module(x0, t, drawn, {"classes": torch.tensor(rows) % 3})
        expected.add({"mse": terms["mse"]}, t)
    found = validate(run.ema.module, run.task.validation(), 40, run.accelerator)
    assert found == pytest.approx(expected.take(), rel=1e-6)
