"""No work is lost: what ends a run leaves a save, and what is bad about a run replaces no good save."""

from __future__ import annotations

import json
import math
import os
import pty
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import Processes
from runs import broken, fit, make_run, metrics, same, saved

from training.run import loop, saves
from training.run.loop import Run
from training.run.resume import save
from unclip.config import ConfigError
from unclip.data.reading import ShardError


def steps_of(out: Path) -> list[int]:
    """The steps of the last save and the one before."""
    return [
        torch.load(out / name / "progress.pt", weights_only=True)["step"] for name in ("state", "state.old")
    ]


def signalled(run: Run, step: int, number: int) -> Run:
    """A run that gets a signal in the middle of this step, from 1 on."""
    real = run._losses

    def losses(examples, index):
        if run.step == step - 1:
            os.kill(os.getpid(), number)
        return real(examples, index)

    run._losses = losses
    return run


# Steps that are left out


def test_a_run_that_is_told_to_end_is_saved_after_the_next_sound_step(tmp_path, monkeypatch):
    broken(monkeypatch, {2, 3})
    run = signalled(make_run(tmp_path / "run", pictures=80, save_every=16), 3, signal.SIGTERM)
    run.train()
    assert run.step == 5 and steps_of(tmp_path / "run") == [5, 2] and run.code == 75


def test_where_no_sound_step_comes_it_is_told_where_the_run_goes_on(tmp_path, monkeypatch):
    broken(monkeypatch, set(range(2, 10)))
    run = signalled(make_run(tmp_path / "run", pictures=80, save_every=8, max_skipped=4), 4, signal.SIGTERM)
    with pytest.raises(ValueError, match="run/state, saved after 16"):
        run.train()
    assert steps_of(tmp_path / "run") == [2, 1]
    run = make_run(tmp_path / "other", pictures=80, max_skipped=1)
    with pytest.raises(ValueError, match="goes on from its beginning, since there is no save"):
        run.train()


def test_a_run_whose_last_steps_are_left_out_ends_and_keeps_the_save_before(tmp_path, monkeypatch):
    broken(monkeypatch, {8, 9})
    run = make_run(tmp_path / "run", pictures=80, save_every=32)
    run.train()
    assert run.code == 0 and steps_of(tmp_path / "run") == [10, 8]


# What is looked at


def test_a_save_comes_before_validation_and_drawing(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(loop, "save", lambda run: (order.append("save"), save(run)))
    monkeypatch.setattr(Run, "_validate", lambda run: order.append("validate"))
    monkeypatch.setattr(Run, "_draw", lambda run: order.append("draw"))
    fit(tmp_path / "run", pictures=16, save_every=8, validate_every=8, sample_every=8)
    assert order == ["save", "validate", "draw"] * 2


@pytest.mark.bitwise
@pytest.mark.parametrize("what", ["_validate", "_draw"])
def test_what_a_kill_left_out_after_a_save_is_made_up_for(what, tmp_path, monkeypatch):
    settings = {"pictures": 24, "save_every": 8, "validate_every": 8, "sample_every": 8, "draws": True}
    whole, out = fit(tmp_path / "whole", **settings), tmp_path / "killed"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):

        def killed(run: Run) -> None:
            raise KeyboardInterrupt

        patched.setattr(Run, what, killed)
        fit(out, **settings)
    assert saved(out)["step"] == 1
    fit(out, **settings)
    assert same(whole, out) and metrics(whole) == metrics(out)
    pictures = [sorted(path.name for path in (run / "samples").iterdir()) for run in (whole, out)]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 3


@pytest.mark.bitwise
@pytest.mark.attack
def test_an_error_in_validation_or_drawing_is_told_and_ends_nothing(tmp_path, monkeypatch, capsys):
    settings = {"pictures": 24, "validate_every": 8, "sample_every": 8}
    whole, out = fit(tmp_path / "whole", **settings), tmp_path / "run"
    run = make_run(out, **settings)
    real, calls = loop.validate, []

    def validate(*args: object) -> dict:
        calls.append(run.step)
        if run.step == 2:
            raise RuntimeError("no memory")
        return real(*args)

    monkeypatch.setattr(loop, "validate", validate)
    run.task.draw = lambda stage: 1 / 0
    run.train()
    said = capsys.readouterr().err
    assert "validation after 16 pictures failed, and the run goes on without it: RuntimeError: no me" in said
    assert said.count("drawing after") == 3 and "ZeroDivisionError" in said
    assert calls == [1, 2, 3] and run.code == 0 and same(whole, out)


@pytest.mark.attack
def test_what_is_held_out_is_read_at_the_start(tmp_path):
    run = make_run(tmp_path / "run", pictures=8)

    def missing() -> list:
        raise ShardError("no sample can be read from bad.tar")

    run.task.validation = missing
    with pytest.raises(ShardError, match="bad.tar"):
        run.train()
    assert run.step == 0 and not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.attack
@pytest.mark.parametrize("sampling, said", [
    ({"steps": 41}, "stage.sampling.steps: .*41"),
    ({"steps": "ddim39"}, "stage.sampling.steps: .*39"),
    ({"steps": 2, "sampler": "ddpm", "x0_variance": {40: 0.1}}, "x0_variance has no entry for t = 1,"),
])  # fmt: skip
def test_steps_that_the_schedule_does_not_have_are_found_at_the_start(sampling, said, tmp_path):
    run = make_run(tmp_path / "run", pictures=8, timesteps=40)
    fitting = {"steps": 40} if "x0_variance" not in sampling else {**sampling, "x0_variance": {40: 1, 1: 1}}
    for values in (sampling, fitting):
        new = type(run.raw.config.sampling)(**values)
        run.raw.config = run.raw.config.model_copy(update={"sampling": new})
        if values is sampling:
            with pytest.raises(ConfigError, match=said):
                run.train()
            assert run.step == 0
    run.train()
    assert run.step == 1


# What ends a run


@pytest.fixture
def hangs_up() -> Iterator[None]:
    """SIGHUP is heard, though the tests were started under nohup, of which they would inherit deafness."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangs_up")
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_says_so_by_its_exit_code(number, code, tmp_path, capsys):
    before = signal.getsignal(number)
    run = signalled(make_run(tmp_path / "run"), 2, number)
    run.train()
    assert run.code == code and saved(tmp_path / "run")["step"] == 2 and signal.getsignal(number) is before
    assert "stopped after 16 pictures; the same command goes on\n" in capsys.readouterr().out
    run = make_run(tmp_path / "run")
    run.train()
    assert run.code == 0


def test_a_hangup_that_is_ignored_stays_so(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        run = signalled(make_run(tmp_path / "run"), 2, signal.SIGHUP)
        run.train()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert run.step == 4 and run.code == 0


def in_a_terminal(out: Path, name: str) -> None:
    """Train as what a shell in a terminal runs."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup would have passed on otherwise
    terminal = os.open(name, os.O_RDWR)  # of a session's leader its controlling one
    for stream in (0, 1, 2):
        os.dup2(terminal, stream)
    os.close(terminal)
    run = make_run(out, pictures=8_000_000, log_every=8)
    run.train()
    assert run.code == 75
    (out / "ended").touch()


def test_a_closed_terminal_leaves_a_save(tmp_path):
    """Though whatever is then written to it is an error."""
    ours, theirs = pty.openpty()
    run = Processes(tmp_path / "log", 1, in_a_terminal, tmp_path / "run", os.ttyname(theirs))
    os.close(theirs)
    end = time.monotonic() + 300
    while not (tmp_path / "run" / "metrics.jsonl").is_file() and time.monotonic() < end:
        time.sleep(0.05)
    os.close(ours)
    assert run.wait() == [0] and (tmp_path / "run" / "ended").exists()
    assert saved(tmp_path / "run")["step"] >= 1


# Room on the disk


@pytest.mark.attack
def test_a_full_disk_is_told_and_costs_no_good_save(tmp_path, monkeypatch):
    """Before anything is written where it is known, else from what found no room; all in one message."""
    out, files = tmp_path / "run", {"ema.bin": {"x": torch.zeros(1000), "y": [torch.zeros(500)]}}
    saves.write(out, files, step=1)
    assert saves.bytes_of(files) == 6000
    real = saves.torch.save

    def half(content: object, path: Path) -> None:
        real(content, path)
        path.write_bytes(path.read_bytes()[:2000])
        raise RuntimeError("unexpected pos 59776 vs 59664\nand more")

    with monkeypatch.context() as patched:
        patched.setattr(saves.torch, "save", half)
        said = r"no room for a save in .*: it takes 6,000 bytes, and at least 4,000 are missing \(unexpected"
        with pytest.raises(OSError, match=said) as full:
            saves.write(out, files, step=2)
        assert "the saves before it are untouched" in str(full.value) and "\n" not in str(full.value)
    usage = type("Usage", (), {"free": 1500})
    with monkeypatch.context() as patched:
        patched.setattr(saves.shutil, "disk_usage", lambda _: usage)
        patched.setattr(saves.torch, "save", lambda *_: pytest.fail("it wrote"))
        with pytest.raises(OSError, match="at least 4,500 are missing"):
            saves.write(out, files, step=2)
        with pytest.raises(OSError, match="there is none before it"):
            saves.write(tmp_path / "other", files, step=1)
    assert not (out / saves.ASIDE).exists() and saves.newest(out) == (out / saves.LAST, [])
    assert json.loads((out / saves.LAST / saves.MANIFEST).read_text())["step"] == 1


@pytest.mark.attack
@pytest.mark.parametrize("text", [
    "[]", "null", "{}", '{"files": []}', '{"files": {"ema.bin": 3}}',
    '{"files": {"ema.bin": {"bytes": "1", "sha256": "0"}}}',
    '{"files": {"../x": {"bytes": 1, "sha256": "0"}}}', "[" * 100_000, "\udcff",
])  # fmt: skip
def test_an_odd_manifest_is_a_damaged_save(text, tmp_path):
    saves.write(tmp_path, {"ema.bin": 1}, step=1)
    saves.write(tmp_path, {"ema.bin": 2}, step=2)
    (tmp_path / "state" / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    folder, (complaint,) = saves.newest(tmp_path)
    assert folder == tmp_path / "state.old" and "state is damaged (manifest.json cannot be read" in complaint


def test_a_loss_stays_out_of_reach(tmp_path, monkeypatch):
    """Infinite ones in a row, too, however often the run is started again with what does not help."""
    settings = {"pictures": 32, "save_every": 8, "max_skipped": 2}
    fit(tmp_path / "run", **{**settings, "pictures": 16})
    before = steps_of(tmp_path / "run")
    broken(monkeypatch, {2, 3}, math.inf)
    for _ in range(3):
        with pytest.raises(ValueError, match="saved after 16"):
            fit(tmp_path / "run", **settings)
        assert steps_of(tmp_path / "run") == before == [2, 1]
