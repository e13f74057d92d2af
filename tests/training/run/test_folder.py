"""A run's folder: whose it is, who is at work in it, and what it learnt from."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from processes import Processes
from runs import fit, make_run, saved

from training.run import changes, folder, saves
from training.run.settings import Training, joined, make_accelerator
from training.tasks import start
from unclip.config import ConfigError

pytestmark = pytest.mark.attack


# Whose it is


@pytest.mark.parametrize("name, text", [
    ("recipe.yaml", "flour: 500 g\n"), ("notes.txt", ""), ("metrics.jsonl", "{}"), ("state", None),
    ("decoder.safetensors", ""),
])  # fmt: skip
def test_a_folder_that_holds_something_else_is_refused(name, text, tmp_path):
    if text is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=f"{re.escape(str(tmp_path))} holds {name}, and no run"):
        folder.check(tmp_path)


def test_an_empty_folder_a_run_and_its_logs_are_fine(tmp_path):
    folder.check(tmp_path / "none")
    for name in (".hidden", "slurm-1.out", "log.err", "run.log"):
        (tmp_path / name).write_text("")
    folder.check(tmp_path)
    (tmp_path / "notes").mkdir()
    with pytest.raises(ConfigError, match="holds notes, and no run"):
        folder.check(tmp_path)
    for number in range(5):
        (tmp_path / str(number)).touch()
    with pytest.raises(ConfigError, match="holds 0, 1, 2 and 3 more, and no run"):
        folder.check(tmp_path)
    saves.write(tmp_path, {"progress.pt": {}})
    folder.check(tmp_path)  # a run of before this was checked
    saves.write(tmp_path / "other" / "images", {"phase.pt": {}})
    folder.check(tmp_path / "other")  # a CLIP's


def test_a_run_that_broke_off_before_its_first_save_is_one(tmp_path):
    run = make_run(tmp_path / "run")
    run._optimise = lambda batches: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.train()
    assert not (tmp_path / "run" / "state").exists()
    folder.check(tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").unlink()
    assert not folder.is_run(tmp_path / "run")


def test_a_programs_folder_is_looked_at_first(tmp_path, monkeypatch):
    """The recipe of a stranger stays as it is."""
    (tmp_path / "recipe.yaml").write_text("flour: 500 g\n")
    recipe = type("Recipe", (), {"train": Training(out=str(tmp_path), pictures=1)})
    monkeypatch.setattr(start, "program", lambda *_: recipe)
    with pytest.raises(ConfigError, match="holds recipe.yaml, and no run"):
        start.train_stage(None, None, None, "")
    assert (tmp_path / "recipe.yaml").read_text() == "flour: 500 g\n"


# Who is at work


def hold(out: Path, ready: Path) -> None:
    with folder.held(out, make_accelerator(Training(out=str(out), pictures=1, batch_size=2, trackers=[]))):
        ready.touch()
        while not (out / "end").exists():
            time.sleep(0.02)


def wait_for(path: Path, process: Processes) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert process.all[0].is_alive() and time.monotonic() < end, process.log()
        time.sleep(0.02)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_run_in_a_folder_is_refused_by_the_name_of_the_first(processes, tmp_path):
    """Though all processes of one run share it; a run that ended, or was killed, holds nothing."""
    out, ready = tmp_path / "run", tmp_path / "ready"
    first = Processes(tmp_path / "1", processes, hold, out, ready)
    wait_for(ready, first)
    again = Processes(tmp_path / "2", processes, hold, out, ready)
    assert again.wait() == [1] * processes
    owner = f"process {first.all[0].pid} on {re.escape(socket.gethostname())}"
    for rank in range(processes):
        assert re.search(f"ConfigError: another run is at work in .*run: {owner}; wait for", again.log(rank))
    for process in first.all:
        os.kill(process.pid, signal.SIGKILL)
    first.wait()
    assert json.loads((out / folder.OWNER).read_text())["pid"] == first.all[0].pid
    (out / "end").touch()
    Processes(tmp_path / "3", processes, hold, out, ready).succeed()
    assert not (out / folder.OWNER).exists()
    Processes(tmp_path / "4", processes, hold, out, ready).succeed()


@pytest.mark.parametrize("text", ["", "[]", '{"pid": "x"}', "[" * 100_000, '{"pid": 1, "host": "elsewhere"}'])
def test_what_an_owner_left_may_be_anything(text, tmp_path):
    (tmp_path / folder.OWNER).write_text(text)
    assert not folder._is_dead(folder._owner(tmp_path))
    with folder.held(tmp_path, make_run(tmp_path / "run").accelerator):
        owner = folder._owner(tmp_path)
    assert owner == {"pid": os.getpid(), "host": socket.gethostname()}
    assert not folder._is_dead(owner) and folder._is_dead({**owner, "pid": 2**22 + 1})


def test_a_program_holds_its_folder_while_it_trains(tmp_path, monkeypatch):
    settings, held = Training(out=str(tmp_path), pictures=1, batch_size=2, trackers=[]), []
    recipe = type("Recipe", (), {"train": settings, "stage": None})
    monkeypatch.setattr(start, "program", lambda *_: recipe)
    monkeypatch.setattr(start, "begin", lambda stage, path: held.append((tmp_path / folder.OWNER).exists()))

    def train(stage, task, *given: object) -> int:
        held.append((stage, task, given[:2], (tmp_path / folder.OWNER).exists()))
        return 75

    monkeypatch.setattr(start, "train", train)
    stage = type("Stage", (), {"to": lambda self, device: self})()
    code = start.train_stage(None, lambda config: stage, lambda *given: "a task", "")
    assert code == 75 and held == [True, (stage, "a task", (settings, recipe), True)]
    assert not (tmp_path / folder.OWNER).exists()


# How many there are


def alike(out: Path) -> None:
    del os.environ["ACCELERATE_USE_CPU"]  # as where nobody set it
    fit(out, pictures=16)


def test_processes_of_a_launcher_are_one_run_without_a_gpu(tmp_path):
    both = Processes(tmp_path / "log", 2, alike, tmp_path / "run")
    both.succeed()
    alone = fit(tmp_path / "alone", pictures=16)
    ours, theirs = ((out / "metrics.jsonl").read_text().count('"loss"') for out in (alone, tmp_path / "run"))
    assert ours == theirs == 2 and len(saved(tmp_path / "run")["means"]) == 2


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    one = type("Accelerator", (), {"num_processes": 1, "__init__": lambda self, **_: None})
    monkeypatch.setattr("training.run.settings.Accelerator", one)
    with pytest.raises(ConfigError, match="started 2 processes, which do not find each other .*sees 1"):
        joined("fp32")
    assert os.environ["ACCELERATE_USE_CPU"] == "true"


# What it learnt from


def listing(data: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in sorted(data.iterdir())} | {"https://x/y.tar": None}


def learn(out: Path, data: Path, pictures: int) -> None:
    run = make_run(out, pictures=pictures)
    run.listing = changes.sealed(listing(data))
    run.train()


def test_shards_that_were_added_exchanged_or_taken_away_are_told(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for name in "abcd":
        (data / f"{name}.tar").write_text(f"shard {name}")
    learn(tmp_path / "run", data, 8)
    learn(tmp_path / "run", data.rename(tmp_path / "moved"), 16)
    assert ".tar" not in capsys.readouterr().out
    data = tmp_path / "moved"
    (data / "b.tar").write_text("shard B")  # as long as before
    (data / "c.tar").write_text("a longer shard")
    (data / "d.tar").rename(data / "e.tar")
    learn(tmp_path / "run", data, 24)
    said = capsys.readouterr().out
    assert re.search("changed since the last save: .*, b.tar: 7 bytes that begin .* -> 7 bytes that", said)
    assert "c.tar: 7 bytes" in said and "d.tar: gone, e.tar: new" in said and "a.tar" not in said
    assert "going on from 16 pictures" in said and "y.tar" not in said


def test_a_save_without_a_listing_says_nothing(tmp_path):
    assert changes.of_files({}, {"a.tar": "x"}) == {}
    assert changes.of_files({"/b/a.tar": "x"}, {"/c/a.tar": "x"}) == {}
