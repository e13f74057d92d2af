"""The training loop's promises, on a network and pictures as small as they can be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from runs import files, forget, metrics, raw, same

from training import loop
from training.loop import Training, make_accelerator, micro_batch, train
from unclip.nets.unet import UNetConfig
from unclip.stages import Decoder, DecoderStageConfig, Process, Sampling


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    forget()


def tiny_stage() -> Decoder:
    torch.manual_seed(0)
    net = UNetConfig(image_size=8, channels=16, channel_mult=(1,), num_res_blocks=1, head_channels=8)
    return Decoder(DecoderStageConfig(net=net, process=Process(predicts="v"), sampling=Sampling(steps=2)))


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


def fit(out: Path, x0: torch.Tensor, **settings) -> Path:
    """Trains a tiny decoder of 8 pixels on ``x0``; returns the folder of the run."""
    settings = Training(**{"out": str(out), "pictures": 32, "batch_size": 8, "precision": "fp32", "warmup": 0,
                           "log_every": 8, "weight_decay": 0.0, **settings})
    forget()
    accelerator = make_accelerator(settings)
    train(tiny_stage(), Rows(x0, micro_batch(settings, accelerator)), settings, settings, accelerator)
    return out


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
    steps = [torch.load(out / "state" / "progress.pt", weights_only=True)["step"] for out in (whole, halves)]
    assert steps == [4, 4]


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
    assert torch.load(out / "state" / "progress.pt", weights_only=True)["step"] == 3
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
