"""A run that was stopped, or that broke off, goes on as if nothing had been: to the last bit."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import equal, files, fit, forget, make_run, metrics, same, saved

from training.run import saves as state
from training.run.loop import Run
from unclip.checkpoint import CheckpointError
from unclip.config import ConfigError

pytestmark = pytest.mark.bitwise


def halted(out: Path, step: int, number: int = signal.SIGTERM, **settings: object) -> Run:
    """A run that gets a signal in the middle of a step, this one from 1 on."""
    run, real = make_run(out, **settings), Run._losses

    def losses(examples, index):
        if run.step == step - 1:
            os.kill(os.getpid(), number)
        return real(run, examples, index)

    run._losses = losses
    run.train()
    assert run.step == step
    return run


def crashed(out: Path, step: int, **settings: object) -> None:
    """A run that breaks off in this step, from 1 on."""
    run, real = make_run(out, **settings), Run._optimise

    def optimise(batches):
        if run.step == step - 1:
            raise RuntimeError("the power went")
        real(run, batches)

    run._optimise = optimise
    with pytest.raises(RuntimeError):
        run.train()


def identical(a: Path, b: Path) -> bool:
    """Weights, averages, optimiser, and every point of every curve."""
    return same(a, b) and metrics(a) == metrics(b)


HARD = {
    "pictures": 88,
    "log_every": 24,
    "validate_every": 32,
    "accumulate": 2,
    "warmup": 40,
    "timesteps": 2,
    "timestep_sampler": "loss_second_moment",
    "net": {"dropout": 0.2},
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_equals_one_that_was_not(number, tmp_path, capsys):
    """Twice, between the points of the curves, with dropout and importance sampling."""
    before = signal.getsignal(number)
    whole, out = fit(tmp_path / "whole", **HARD), tmp_path / "halves"
    halted(out, 4, number, **HARD)
    assert signal.getsignal(number) is before
    assert "stopped after 32 pictures; the same command goes on" in capsys.readouterr().out
    halted(out, 5, number, **HARD)
    assert not same(whole, out)
    fit(out, **HARD)
    assert "going on from 40 pictures" in capsys.readouterr().out
    assert identical(whole, out)
    assert equal(saved(whole)["importance"], saved(out)["importance"])


def test_a_crash_costs_what_came_after_the_last_save(tmp_path):
    """And leaves no point of a curve twice."""
    settings = {**HARD, "save_every": 24}
    whole, out = fit(tmp_path / "whole", **settings), tmp_path / "crashed"
    crashed(out, 9, **settings)
    assert saved(out)["step"] == 6
    assert torch.load(out / "state.old" / "progress.pt", weights_only=True)["step"] == 3
    assert max(point["pictures"] for point in metrics(out)) == 64
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"pictures": 70, "lo')  # the line that was being written
    fit(out, **settings)
    assert identical(whole, out)
    assert files(out) == ["decoder.safetensors", "metrics.jsonl", "recipe.yaml", "state", "state.old"]


def test_a_crash_before_the_first_save_begins_anew(tmp_path):
    whole, out = fit(tmp_path / "whole"), tmp_path / "crashed"
    crashed(out, 4)
    assert len(metrics(out)) == 3
    fit(out)
    assert identical(whole, out)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "optimizer.bin": (cut_off, "optimizer.bin has .* bytes, not "),
    "pytorch_model.bin": (flip, "the content of pytorch_model.bin has changed"),
    "ema.bin": (Path.unlink, "ema.bin is missing"),
    "manifest.json": (cut_off, "manifest.json cannot be read"),
    "progress.pt": (flip, "the content of progress.pt has changed"),
}


@pytest.fixture(scope="module")
def two_saves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole run, and one that broke off with two saves: after 1 step and after 2."""
    folder = tmp_path_factory.mktemp("saves")
    settings = {"pictures": 24, "save_every": 8}
    whole = fit(folder / "whole", **settings)
    crashed(folder / "crashed", 3, **settings)
    forget()
    return whole, folder / "crashed"


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_save_is_recognised_and_the_one_before_it_used(name, two_saves, tmp_path, capsys):
    whole, out = two_saves[0], Path(shutil.copytree(two_saves[1], tmp_path / "run"))
    damage, said = DAMAGE[name]
    damage(out / "state" / name)
    fit(out, pictures=24, save_every=8)
    printed = capsys.readouterr().out
    assert "going on from 8 pictures" in printed and "the save before it is used" in printed
    assert re.search(f"state is damaged \\({said}.*\\)", printed)
    assert identical(whole, out) and "state.damaged" in files(out)
    assert torch.load(out / "state.old" / "progress.pt", weights_only=True)["step"] == 2


def test_no_whole_save_is_no_reason_to_begin_anew(two_saves, tmp_path):
    out = Path(shutil.copytree(two_saves[1], tmp_path / "run"))
    for name in ("state", "state.old"):
        flip(out / name / "optimizer.bin")
    with pytest.raises(CheckpointError, match="state is damaged.*state.old is damaged.*no save is left"):
        fit(out, pictures=24)
    for name in ("state", "state.old"):
        shutil.rmtree(out / name)
    with pytest.raises(ConfigError, match="decoder.safetensors was trained, but there is no save"):
        fit(out, pictures=24)


class Dead(BaseException):
    """What a kill looks like to a single process: nothing more is done."""


def test_a_kill_at_any_operation_leaves_a_whole_save(tmp_path, monkeypatch):
    """Every call that touches the disk is the last one, once."""

    def counted(limit: int) -> Callable[[], int]:
        done = 0

        def wrap(real):
            def call(*args, **kwargs):
                nonlocal done
                done += 1
                if done > limit:
                    raise Dead
                return real(*args, **kwargs)

            return call

        for module, name in (
            (state.os, "replace"),
            (state, "flush"),
            (state.torch, "save"),
            (state.shutil, "rmtree"),
            (state, "write_json"),
        ):
            patched.setattr(module, name, wrap(getattr(module, name)))
        return lambda: done

    calls, stopped = 0, 0
    for limit in range(100):
        out = tmp_path / str(limit)
        for step in (1, 2):
            state.write(out, {"progress.pt": {"format": 2, "step": step}, "ema.bin": [step] * 99}, step=step)
        with monkeypatch.context() as patched:
            done = counted(limit)
            try:
                state.write(out, {"progress.pt": {"format": 2, "step": 3}, "ema.bin": [3] * 99}, step=3)
            except Dead:
                stopped += 1
            calls = done()
        folder, complaints = state.newest(out)
        step = state.load(folder / "progress.pt")["step"]
        assert step in (2, 3) and state.load(folder / "ema.bin") == [step] * 99 and not complaints
        assert not (out / "state.new").exists()
        state.write(out, {"progress.pt": {"format": 2, "step": 4}}, step=4)  # and it goes on
        assert state.load(state.newest(out)[0] / "progress.pt")["step"] == 4
        if calls <= limit:
            break
    assert stopped == calls >= 10


def test_a_save_of_another_form_is_refused(tmp_path):
    out = tmp_path / "run"
    halted(out, 2)
    progress = saved(out)
    files = {path.name: torch.load(path, weights_only=True) for path in (out / "state").glob("*.bin")}
    state.write(out, {**files, "progress.pt": {**progress, "format": 1}})
    with pytest.raises(CheckpointError, match="was saved by another version"):
        fit(out)


def test_what_changed_is_told_and_counts(tmp_path, capsys):
    out = tmp_path / "run"
    halted(out, 2)
    run = make_run(out, learning_rate=1e-5, pictures=64, accumulate=2, beta2=0.95, decay="none", log_every=16)
    run.train()
    printed = capsys.readouterr().out
    assert "changed since the last save: train.accumulate: 1 -> 2, train.beta2: 0.99 -> 0.95" in printed
    assert "train.learning_rate: 0.0003 -> 1e-05" in printed
    assert metrics(out)[-2]["learning_rate"] == 1e-5 and metrics(out)[-2]["pictures"] == 64
    assert run.optimizer.param_groups[0]["lr"] == 1e-5 and run.optimizer.param_groups[0]["betas"][1] == 0.95


@pytest.mark.parametrize("settings, said", [
    ({"batch_size": 16}, "train.batch_size: 8 -> 16.*choose another out=$"),
    ({"seed": 1}, "train.seed: 0 -> 1.*train.new_data=true goes on"),
    ({"net": {"channels": 32}}, "stage.net.channels: 16 -> 32"),
    ({"data": {"shards": ["b.tar"]}}, r"data.shards: \['a.tar'\] -> \['b.tar'\].*train.new_data=true"),
    ({"data": {"shards": ["b.tar"]}, "timesteps": 9}, "data.shards.*process.timesteps.*another out=$"),
])  # fmt: skip
def test_what_cannot_be_continued_is_refused(settings, said, tmp_path):
    out, data = tmp_path / "run", {"data": {"shards": ["a.tar"], "heldout": ["c.tar"]}}
    fit(out, pictures=8, **data)
    before = files(out), (out / "recipe.yaml").read_text(), metrics(out)
    with pytest.raises(ConfigError, match=f"cannot continue .*{said}"):
        fit(out, **{**data, **settings})
    assert before == (files(out), (out / "recipe.yaml").read_text(), metrics(out))


def test_new_data_and_another_place_of_the_old(tmp_path, capsys):
    out = fit(tmp_path / "run", pictures=8, data={"shards": ["a.tar"], "heldout": ["c.tar"]})
    run = make_run(out, pictures=16, data={"shards": ["b.tar"], "heldout": []}, seed=3, new_data=True)
    run.order = {"processes": 2}
    run.train()
    assert "data.heldout: ['c.tar'] -> [], data.shards: ['a.tar'] -> ['b.tar']" in capsys.readouterr().out
    assert saved(out)["step"] == 2 and saved(out)["order"] == {"processes": 2}
    run = make_run(out, pictures=32, data={"shards": ["b.tar"], "heldout": ["d.tar"]}, seed=3)
    run.order = {"processes": 4}
    with pytest.raises(ConfigError, match="order.processes: 2 -> 4"):
        run.train()


def test_another_clip_is_refused(tmp_path):
    run = make_run(tmp_path / "run", pictures=8)
    run.raw.facts["clip"] = "clip#1"
    run.train()
    run = make_run(tmp_path / "run", pictures=16)
    run.raw.facts["clip"] = "clip#2"
    with pytest.raises(ConfigError, match="the CLIP clip#1; the recipe's is clip#2"):
        run.train()


def test_the_manifest_names_all_that_counts(two_saves):
    manifest = json.loads((two_saves[0] / "state" / "manifest.json").read_text())
    assert (manifest["step"], manifest["pictures"]) == (3, 24)
    assert sorted([*manifest["files"], "manifest.json"]) == files(two_saves[0] / "state")
