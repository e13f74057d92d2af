"""The training loop's promises, on a network and pictures as small as they can be."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from runs import files, forget, metrics, raw, same

from training import loop
from training.loop import Training, make_accelerator, micro_batch, train
from unclip.diffusion.timesteps import LossSecondMoment
from unclip.nets.unet import UNetConfig
from unclip.stages import Decoder, DecoderStageConfig, Process, Sampling


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    forget()


ROOT = Path(__file__).parent.parent


def tiny_stage(timesteps: int = 1000) -> Decoder:
    torch.manual_seed(0)
    net = UNetConfig(image_size=8, channels=16, channel_mult=(1,), num_res_blocks=1, head_channels=8)
    process = Process(predicts="v", timesteps=timesteps)
    return Decoder(DecoderStageConfig(net=net, process=process, sampling=Sampling(steps=2)))


class Rows:
    """Batch k is the k-th ``n`` of some pictures, over and over."""

    def __init__(self, x0: torch.Tensor, n: int) -> None:
        self.x0, self.n = x0, n

    def batches(self, start: int):
        while True:
            first = start * self.n % len(self.x0)
            yield self.x0[first:first + self.n], {}
            start += 1

    def validation(self):
        return [(self.x0, {})]

    def draw(self, stage):
        return None


def fit(out: Path, x0: torch.Tensor, timesteps: int = 1000, **settings) -> Path:
    """Trains a tiny decoder of 8 pixels on ``x0``; returns the folder of the run."""
    settings = Training(**{"out": str(out), "pictures": 32, "batch_size": 8, "precision": "fp32", "warmup": 0,
                           "log_every": 8, "weight_decay": 0.0, **settings})
    forget()
    accelerator = make_accelerator(settings)
    task = Rows(x0, micro_batch(settings, accelerator))
    train(tiny_stage(timesteps), task, settings, settings, accelerator)
    return out


def progress(out: Path) -> dict:
    """What a run saved besides what accelerate saves."""
    return torch.load(out / "state" / "progress.pt", weights_only=True)


def noise(n: int = 16) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def test_one_picture_is_learnt(tmp_path):
    out = fit(tmp_path / "run", noise(1).expand(8, -1, -1, -1), pictures=60 * 8, learning_rate=5e-3)
    losses = [line["loss"] for line in metrics(out) if "loss" in line]
    assert len(losses) == 60
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0]


def test_the_learning_rate_warms_up_and_falls_to_zero(tmp_path):
    out = fit(tmp_path / "cosine", noise(8), pictures=48, learning_rate=1e-3, warmup=24)
    rates = [line["learning_rate"] for line in metrics(out) if "loss" in line]
    expected = [min(1, (k + 1) / 3) * (1 + math.cos(math.pi * k / 6)) / 2 * 1e-3 for k in range(1, 7)]
    assert rates == pytest.approx(expected) and rates[-1] == 0
    out = fit(tmp_path / "none", noise(8), pictures=48, learning_rate=1e-3, decay="none")
    assert {line["learning_rate"] for line in metrics(out) if "loss" in line} == {1e-3}


def test_accumulation_is_one_large_batch(tmp_path, monkeypatch):
    """With t and noise given by the picture, two halves make the gradient of the whole."""
    def losses(self, x0, conditions, index):
        return self.stage(x0, torch.full((len(x0),), 300), x0.flip(2), conditions)

    monkeypatch.setattr(loop._Run, "_losses", losses)
    settings = {"log_every": 10**6, "learning_rate": 1e-3, "clip_norm": 100.0}
    whole, halves, half = (fit(tmp_path / name, x0, **settings, **more) for name, x0, more in (
        ("whole", noise(), {}), ("halves", noise(), {"accumulate": 2}), ("half", noise()[:8], {})))
    weights = [raw(out) for out in (whole, halves, half)]
    start = tiny_stage().state_dict()

    def apart(a, b):
        return max((a[key] - b[key]).abs().max().item() for key in a if a[key].numel())

    assert apart(weights[0], weights[1]) < 0.1 * min(apart(weights[0], start), apart(weights[0], weights[2]))
    assert [progress(out)["step"] for out in (whole, halves)] == [4, 4]


def test_a_crash_costs_what_came_after_the_last_save(tmp_path, monkeypatch):
    whole, out = fit(tmp_path / "whole", noise()), tmp_path / "crashed"
    real = loop._Run._optimise

    def crash(self, batches):
        if self.step == 3:
            raise RuntimeError("the power went")
        real(self, batches)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(loop._Run, "_optimise", crash)
        fit(out, noise(), save_every=8)
    assert progress(out)["step"] == 3
    (out / "state").rename(out / "state.old")  # ... and another crash, between the two renamings
    (out / "state.new").mkdir()
    (out / "state.new" / "pytorch_model.bin").write_bytes(b"half")
    fit(out, noise())
    assert same(whole, out, "decoder")
    assert {"state.new", "state.old"}.isdisjoint(files(out))


def test_a_finished_run_does_nothing_more(tmp_path):
    out = fit(tmp_path / "run", noise())
    before = metrics(out)[-1], raw(out)
    fit(out, noise())
    assert metrics(out)[-1] == before[0]  # validated again, with the same result
    assert all(torch.equal(value, before[1][key])
               for key, value in raw(out).items())


IMPORTANCE = {"timestep_sampler": "loss_second_moment", "timesteps": 2, "pictures": 96}


def test_importance_sampling_learns_what_the_losses_were(tmp_path, monkeypatch):
    """Of T = 2, every t has its history after a few batches of 8; then a loss counts 1 / (T p_t)."""
    seen, real = [], loop._Run._weighted

    def weighted(self, terms, t):
        p = self.importance.probabilities()
        out = real(self, terms, t)
        seen.append((t, terms["loss"].detach(), out["loss"].detach(), p))
        assert torch.equal(out["mse"], terms["mse"])
        return out

    monkeypatch.setattr(loop._Run, "_weighted", weighted)
    out = fit(tmp_path / "run", noise(), **IMPORTANCE)
    expected = LossSecondMoment(2)
    for t, loss, counted, p in seen:
        assert torch.equal(p, expected.probabilities())
        torch.testing.assert_close(counted, (loss / (2 * p[t - 1])).float())
        expected.update(t, loss)
    assert len(seen) == 12 and not torch.equal(seen[0][3], seen[-1][3])  # it did warm up
    state = progress(out)["importance"]
    assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items())
    curve = [line["loss"] for line in metrics(out) if "loss" in line]
    assert curve == pytest.approx([loss.mean().item() for _, loss, _, _ in seen])


def test_importance_sampling_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole, out = fit(tmp_path / "whole", noise(), **IMPORTANCE), tmp_path / "stopped"
    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "_told_to_stop", lambda self: self.step == 7)
        fit(out, noise(), **IMPORTANCE)
    assert progress(out)["step"] == 7 and progress(out)["importance"]["counts"].sum() == 56
    fit(out, noise(), **IMPORTANCE)
    assert same(whole, out, "decoder")
    assert torch.equal(*(progress(run)["importance"]["losses"] for run in (whole, out)))
    assert progress(fit(tmp_path / "uniform", noise()))["importance"] is None


TWO = """
import os
import sys
from pathlib import Path
import torch
from test_loop import Rows, noise, tiny_stage
from training import loop
rank = int(os.environ["RANK"])
settings = loop.Training(out=sys.argv[1], pictures=96, batch_size=16, precision="fp32", accumulate=2,
                         timestep_sampler="loss_second_moment")
accelerator = loop.make_accelerator(settings)
seen, real = [], loop._Run._weighted
def weighted(self, terms, t):
    seen.append((t, terms["loss"].detach()))
    return real(self, terms, t)
loop._Run._weighted = weighted
run = loop._Run(tiny_stage(2), Rows(noise(16)[8 * rank:][:8], 4), settings, settings, accelerator)
run.train()
torch.save((seen, run.importance.state_dict()), Path(sys.argv[1]) / f"rank{rank}.pt")
"""


def test_two_processes_have_one_history(tmp_path):
    """Every process remembers the losses of both, in the order of their ranks."""
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(tmp_path / "two.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600,
                          env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1",
                               "ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr[-3000:]
    (ours, mine), (theirs, other) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    expected = LossSecondMoment(2)
    for one, two in zip(ours, theirs, strict=True):
        expected.update(*(torch.cat(pair) for pair in zip(one, two, strict=True)))
        assert not torch.equal(one[1], two[1])
    for key, value in expected.state_dict().items():
        assert torch.equal(mine[key], value) and torch.equal(other[key], value)
    assert expected.counts.sum() == 96 and expected.probabilities()[0] != 0.5
