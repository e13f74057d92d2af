"""What of a training recipe's settings reaches the parts of a run: when it does what, and how it computes."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from runs import SETTINGS, Recipe, Rows, forget, make_run, metrics, noise
from torch import nn

from training.run import loop
from training.run.curves import Curves, Means
from training.run.loop import Run
from training.run.settings import Training, make_accelerator
from unclip.nets.blocks import Unit
from unclip.nets.unet import UNetConfig
from unclip.stages import Decoder, DecoderStageConfig, Process


def test_each_interval_has_its_own_setting(tmp_path, monkeypatch):
    done = []
    run = make_run(tmp_path / "run", pictures=46, validate_every=16, sample_every=24, save_every=40)
    monkeypatch.setattr(Run, "_validate", lambda run: done.append(("validate", run.seen)))
    monkeypatch.setattr(Run, "_draw", lambda run: done.append(("draw", run.seen)))
    monkeypatch.setattr(loop, "save", lambda run: done.append(("save", run.seen)))
    run.train()
    assert done == [
        ("validate", 16),
        ("draw", 24),
        ("validate", 32),
        ("save", 40),
        ("save", 48),
        ("validate", 48),
        ("draw", 48),
    ]


@pytest.mark.parametrize("on", [False, True])
def test_checkpointing_and_compiling_are_as_set(on, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    run = make_run(tmp_path / "run", checkpointing=on, compile=on)
    units = [module for module in run.raw.modules() if isinstance(module, Unit)]
    assert units and all(unit.checkpointing is on for unit in units)
    assert compiled == ([run.raw.network] if on else [])


def test_convolutions_lie_in_memory_as_they_are_fast(tmp_path):
    kernels = [weight for weight in make_run(tmp_path / "run").weights if weight.dim() == 4]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("two", [False, True])
def test_processes_expect_weights_without_a_gradient_of_two_networks_alone(two, tmp_path):
    settings = Training(**{**SETTINGS, "out": str(tmp_path)})
    forget()
    net = UNetConfig(image_size=8, channels=16, channel_mult=(1,), num_res_blocks=1, head_channels=8)
    stage = Decoder(DecoderStageConfig(net=net, process=Process(predicts="v"), last_network=two))
    accelerator = make_accelerator(settings)
    Run(stage, Rows(noise(), 8), settings, Recipe(stage=stage.config, train=settings), accelerator)
    assert accelerator.ddp_handler.find_unused_parameters is two


@pytest.mark.parametrize(
    "settings, asked, shared",
    [
        ({"precision": "bf16"}, "bf16", False),
        ({"precision": "fp32", "shard": True}, "no", True),
        ({"precision": "fp32", "trackers": ["tensorboard"]}, "no", False),
    ],
)
def test_an_accelerator_is_what_the_settings_ask_for(settings, asked, shared, tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(
        "training.run.settings.Accelerator",
        lambda **how: told.update(how) or SimpleNamespace(num_processes=2),
    )
    made = make_accelerator(Training(**{**SETTINGS, "out": str(tmp_path), **settings}))
    assert told["mixed_precision"] == asked and made.shards is shared
    assert told["log_with"] == (settings.get("trackers") or None)
    (group,) = told["kwargs_handlers"]  # a save or a pool of one process may take long
    assert group.timeout > timedelta(hours=2)
    assert told["project_config"].logging_dir == str(tmp_path / "curves")


def test_quartiles_are_of_the_process_that_is_trained(tmp_path):
    """Of four levels each is a quarter, and a last step that is not full of pictures is one too."""
    run = make_run(tmp_path / "run", pictures=20, timesteps=4, log_every=24)
    run.train()
    (point,) = [point for point in metrics(tmp_path / "run") if "loss" in point]
    assert point["pictures"] == 24 and {f"mse/quartile{q}" for q in range(4)} <= point.keys()


def test_means_are_over_all_processes_and_begin_anew():
    means, other = Means(8), Means(8)
    means.add({"loss": torch.tensor([1.0, 2.0])}, torch.tensor([2, 7]))
    other.add({"loss": torch.tensor([6.0])}, torch.tensor([8]))
    found = means.take(SimpleNamespace(reduce=lambda sums: sums + other.sums))
    assert found == {"loss": 3.0, "loss/quartile0": 1.0, "loss/quartile3": 4.0} and means.take() == {}


def test_curves_that_go_on_forget_what_will_be_recorded_again(tmp_path):
    told = {}
    accelerator = SimpleNamespace(
        is_main_process=True,
        log_with=["tensorboard"],
        init_trackers=lambda name, config, init_kwargs: told.update(init_kwargs),
    )
    Curves(tmp_path, accelerator).start(64, {"a": 1})
    assert told["tensorboard"] == {"purge_step": 65} and told["wandb"]["config"] == {"a": 1}
