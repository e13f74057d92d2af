"""The training loop's promises, on a network and pictures as small as they can be."""

from __future__ import annotations

import json
import math
import signal
import sys
import time

import pytest
import torch
from runs import broken, equal, fit, make_run, metrics, noise, raw, saved, tiny_stage
from torch import nn

from training.run.guard import NotFinite, Signals
from training.run.loop import Run
from training.run.settings import Training
from unclip.config import ConfigError
from unclip.diffusion.timesteps import LossSecondMoment
from unclip.nets.blocks import Unit
from unclip.nets.prior import PriorConfig, PriorTransformer
from unclip.nets.text import TextConfig, TextTransformer
from unclip.nets.unet import UNet, UNetConfig


def test_one_picture_is_learnt(tmp_path):
    out = fit(tmp_path / "run", noise(1), pictures=60 * 8, learning_rate=5e-3)
    losses = [line["loss"] for line in metrics(out) if "loss" in line]
    assert len(losses) == 60
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0]


def test_the_learning_rate_warms_up_and_falls_to_zero(tmp_path):
    out = fit(tmp_path / "cosine", pictures=48, learning_rate=1e-3, warmup=24)
    rates = [line["learning_rate"] for line in metrics(out) if "loss" in line]
    expected = [min(1, (k + 1) / 3) * (1 + math.cos(math.pi * k / 6)) / 2 * 1e-3 for k in range(1, 7)]
    assert rates == pytest.approx(expected) and rates[-1] == 0
    out = fit(tmp_path / "none", pictures=48, learning_rate=1e-3, decay="none")
    assert {line["learning_rate"] for line in metrics(out) if "loss" in line} == {1e-3}


def test_a_steps_rate_is_that_of_its_number(tmp_path, monkeypatch):
    """Adam's first step is as long as its rate, whatever the gradient is."""
    run = make_run(tmp_path / "run", pictures=8, learning_rate=1e-3, warmup=32)
    before = run.raw.network.time[0].weight.clone()
    run.train()
    assert (run.raw.network.time[0].weight - before).abs().max() <= 1e-3 / 4 * 1.01
    assert run.raw.network.out.bias.abs().max().item() == pytest.approx(1e-3 / 4, rel=1e-3)


def test_accumulation_is_one_large_batch(tmp_path):
    """The same pictures with the same t and noise, in one part or four: the gradients are the same."""
    whole, quarters = (fit(tmp_path / str(k), accumulate=k, learning_rate=1e-3) for k in (1, 4))
    start = tiny_stage().state_dict()
    weights = [raw(out) for out in (whole, quarters)]
    moved = max((weights[0][key] - start[key]).abs().max() for key in start if start[key].numel())
    apart = max((weights[0][key] - weights[1][key]).abs().max() for key in start if start[key].numel())
    assert apart < 0.05 * moved
    losses = [[line["loss"] for line in metrics(out) if "loss" in line] for out in (whole, quarters)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.bitwise
def test_a_finished_run_does_nothing_more(tmp_path):
    out = fit(tmp_path / "run")
    before = metrics(out), raw(out), (out / "state").stat().st_mtime_ns
    fit(out)
    assert metrics(out) == before[0] and equal(raw(out), before[1])
    assert (out / "state").stat().st_mtime_ns == before[2]
    (out / "decoder.safetensors").unlink()  # killed after the last save, before the checkpoint
    (out / "metrics.jsonl").write_text("".join((out / "metrics.jsonl").read_text().splitlines(True)[:-1]))
    fit(out)
    assert metrics(out) == before[0] and (out / "decoder.safetensors").is_file()


IMPORTANCE = {"timestep_sampler": "loss_second_moment", "timesteps": 2, "pictures": 96}


@pytest.mark.bitwise
def test_importance_sampling_learns_what_the_losses_were(tmp_path, monkeypatch):
    """Of T = 2, every t has its history after a few batches of 8; then a loss counts 1 / (T p_t)."""
    seen, real = [], Run._weighted

    def weighted(self, loss, t):
        p = self.importance.probabilities()
        counted = real(self, loss, t)
        seen.append((t, loss.detach(), counted.detach(), p))
        return counted

    monkeypatch.setattr(Run, "_weighted", weighted)
    out = fit(tmp_path / "run", **IMPORTANCE)
    expected = LossSecondMoment(2)
    for t, loss, counted, p in seen:
        assert torch.equal(p, expected.probabilities())
        torch.testing.assert_close(counted, (loss / (2 * p[t - 1])).float())
        expected.update(t, loss)
    assert len(seen) == 12 and not torch.equal(seen[0][3], seen[-1][3])  # it did warm up
    assert equal(saved(out)["importance"], expected.state_dict())
    curve = [line["loss"] for line in metrics(out) if "loss" in line]
    assert curve == pytest.approx([loss.mean().item() for _, loss, _, _ in seen])


def test_curves_are_means_over_pictures(tmp_path, monkeypatch):
    """By quartile too, however the pictures fall on steps."""
    parts, real = [], Run._losses

    def losses(self, examples, index):
        part, loss = real(self, examples, index)
        parts.append(part)
        return part, loss

    monkeypatch.setattr(Run, "_losses", losses)
    point = metrics(fit(tmp_path / "run", log_every=32))[0]
    loss, t = torch.cat([part.terms["loss"] for part in parts]), torch.cat([part.t for part in parts])
    assert len(loss) == 32 and point["loss"] == pytest.approx(loss.mean().item())
    for q in range(4):
        of = (t > 250 * q) & (t <= 250 * (q + 1))
        assert point[f"mse/quartile{q}"] == pytest.approx(loss[of].mean().item())


@pytest.mark.bitwise
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_step_without_a_finite_loss_is_left_out(wrong, tmp_path, monkeypatch, capsys):
    """As if its pictures had not been; t and key of the culprit are told."""
    whole = make_run(tmp_path / "whole", pictures=96)
    real = Run._optimise

    def without(self, batches):
        if self.step == 2:
            next(batches)
            self.step += 1
        real(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_optimise", without)
        whole.train()
    broken(monkeypatch, {2}, wrong)
    out = fit(tmp_path / "broken", pictures=96)
    assert equal(raw(out), raw(tmp_path / "whole"))
    assert equal(saved(out, "ema.bin"), saved(tmp_path / "whole", "ema.bin"))
    err = capsys.readouterr().err
    assert "left out the step to 24 pictures, 1 in a row: a loss is not finite: picture-1 (t = " in err
    (line,) = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    (sample,) = line["samples"]
    assert sample["key"] == "picture-1" and sample["loss"] == str(wrong) and 1 <= sample["t"] <= 1000
    assert all(math.isfinite(value) for point in metrics(out) for value in point.values())
    assert [point.get("skipped") for point in metrics(out) if "loss" in point] == [None] * 2 + [1] * 9


def test_importance_sampling_learns_from_finite_losses_alone(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", **IMPORTANCE)
    forward = run.stage.forward

    def spoilt(x0, *inputs):
        terms = forward(x0, *inputs)
        return {**terms, "loss": terms["loss"] * torch.where(torch.arange(len(x0)) == 1, math.nan, 1)}

    monkeypatch.setattr(run.raw, "forward", lambda *inputs: (spoilt if run.step == 2 else forward)(*inputs))
    run.train()
    assert run.importance.counts.sum() == 95 and run.importance.losses.isfinite().all()
    assert run.guard.total == 1


def test_a_gradient_that_is_not_finite_is_one_too(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", pictures=16)
    weight = run.raw.network.out.weight
    weight.register_hook(lambda grad: grad * math.nan if run.step == 1 else grad)
    run.train()
    err = capsys.readouterr().err
    assert "the gradient (its norm is nan), though no loss, is not finite: picture-8 (t =" in err
    assert weight.isfinite().all() and saved(tmp_path / "run")["skipped"] == 1


def test_too_many_in_a_row_end_the_run_and_its_saves_are_from_before(tmp_path, monkeypatch):
    settings = {"pictures": 80, "max_skipped": 3, "save_every": 8}
    out = tmp_path / "run"
    said = f"in 3 steps in a row .* goes on from {out}/state, saved after 32 samples. A lower learning_rate"
    with monkeypatch.context() as patched, pytest.raises(NotFinite, match=said):
        broken(patched, {1, 2, 4, 5, 6})  # two in a row are allowed
        fit(out, **settings)
    before = torch.load(out / "state.old" / "progress.pt", weights_only=True)
    assert saved(out)["step"] == 4 and before["step"] == 1
    fit(out, **settings)  # and it goes on
    assert saved(out)["step"] == 10 and saved(out)["skipped"] == 2
    assert all(value.isfinite().all() for value in raw(out).values())


DEEP = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.2}
NETS = {
    "unet": lambda: UNet(
        UNetConfig(
            image_size=8,
            channels=16,
            channel_mult=(1, 2),
            num_res_blocks=1,
            head_channels=8,
            attention_resolutions=(4,),
            context_channels=8,
            image_embed_dim=6,
            dropout=0.2,
        )
    ),
    "prior": lambda: PriorTransformer(PriorConfig(embed_dim=6, text_dim=5, text_length=4, **DEEP)),
    "text": lambda: TextTransformer(TextConfig(vocab_size=9, length=4, **DEEP)),
}


@pytest.mark.bitwise
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("bf16", [False, True])
def test_checkpointing_changes_no_gradient(name, bf16):
    """Dropout is repeated, and so is bfloat16; and less is kept for the backward pass."""
    torch.manual_seed(0)
    net, g = NETS[name](), torch.Generator().manual_seed(1)
    for weight in net.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=g)
    t, ids = torch.tensor([3.0, 8.0]), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    inputs = {
        "unet": (torch.randn(2, 3, 8, 8), t, torch.randn(2, 6)),
        "prior": (torch.randn(2, 6), t, torch.randn(2, 6), torch.randn(2, 4, 5), ids > 2),
        "text": (ids, ids > 0),
    }[name]

    def gradients(checkpointing: bool) -> tuple[list[torch.Tensor], int]:
        for module in net.modules():
            if isinstance(module, Unit):
                module.checkpointing = checkpointing
        kept: list[int] = []
        net.zero_grad()
        torch.manual_seed(2)
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            out = net(*inputs)
        loss = (out[1] if isinstance(out, tuple) else out).float().square().sum()
        loss.backward()
        return [weight.grad.clone() for weight in net.parameters() if weight.grad is not None], sum(kept)

    (plain, much), (again, little) = gradients(False), gradients(True)
    assert equal(plain, again) and any(grad.any() for grad in plain)
    assert little < 0.5 * much


def test_everything_at_once(tmp_path, monkeypatch):
    """bfloat16, checkpointing, accumulation, clipping and a compiled network learn as a plain run does."""
    import torch._dynamo

    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda self: setattr(  # without the slow C++ compiler
            self, "_compiled_call_impl", torch.compile(self._call_impl, backend="aot_eager")
        ),
    )
    settings = {"pictures": 24, "learning_rate": 2e-3}
    plain = fit(tmp_path / "plain", noise(8), **settings)
    out = fit(
        tmp_path / "all",
        noise(8),
        **settings,
        precision="bf16",
        checkpointing=True,
        accumulate=2,
        compile=True,
        clip_norm=0.9,
    )
    torch._dynamo.reset()
    losses = [[line["loss"] for line in metrics(run) if "loss" in line] for run in (plain, out)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1] != losses[0]


def test_wandb_draws_the_curves_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = fit(tmp_path / "run", pictures=16, trackers=["wandb", "tensorboard"])
    (written,) = (out / "wandb").glob("offline-run-*/run-*.wandb")
    assert written.stat().st_size > 0 and (out / "wandb-id").read_text() in written.name
    assert any("tfevents" in file.name for file in (out / "curves").rglob("*"))


def test_a_tracker_that_is_not_there_is_told_before_work_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises((ConfigError, ValueError), match="wandb"):
        fit(tmp_path / "run", trackers=["wandb"])
    assert not (tmp_path / "run").exists()


def test_a_second_ctrl_c_stops_at_once_but_not_a_launchers_echo(monkeypatch):
    before, now = signal.getsignal(signal.SIGINT), 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Signals() as signals:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
            assert signals.came
        now += 3
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_settings_are_those_of_the_optimiser(tmp_path):
    run = make_run(tmp_path / "run", beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1)
    (group,) = run.optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-6, 0.1)
    assert Training(out="x", pictures=1).max_skipped == 10
