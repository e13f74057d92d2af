"""kill -9 at any moment: what is lost is what came after the last save, and nothing else."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Processes
from runs import fit, forget, metrics, same

SETTINGS = {"pictures": 240, "save_every": 16, "log_every": 24, "validate_every": 40, "accumulate": 2,
            "net": {"dropout": 0.2}, "timestep_sampler": "loss_second_moment", "timesteps": 2}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    forget()


def train(out: Path) -> None:
    fit(out, **SETTINGS)


def going_on(log: str) -> int:
    """Pictures that a run began with."""
    _, found, rest = log.partition("going on from ")
    return int(rest.split()[0]) if found else 0


def test_killed_twenty_times_and_yet_the_same(tmp_path):
    """Each time at a random moment of a step or of a save; then to the end."""
    whole, out, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    Processes(tmp_path / "whole-log", 1, train, whole).succeed()
    began = []
    for number in range(20):
        process = Processes(tmp_path / f"log{number}", 1, train, out)
        target = rng.randint(0, 3)
        marks = [out / "state.new", out / "state", out / "metrics.jsonl", out / "recipe.yaml"]
        before = [mark.stat().st_mtime_ns if mark.exists() else 0 for mark in marks]
        end = time.monotonic() + 60
        while time.monotonic() < end and process.all[0].is_alive():  # until something happens ...
            now = marks[target].stat().st_mtime_ns if marks[target].exists() else 0
            if now not in (0, before[target]):
                break
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.03)  # ... and a little longer
        process.kill(signal.SIGKILL)
        assert process.wait() in ([-signal.SIGKILL], [0])
        began.append(going_on(process.log()))
        assert "damaged" not in process.log() and "Traceback" not in process.log(), process.log()
    assert began == sorted(began), "a save was lost"
    assert len(set(began)) > 5, began  # it did get on, by and by
    Processes(tmp_path / "last", 1, train, out).succeed()
    assert same(whole, out) and metrics(whole) == metrics(out)
