"""kill -9 at any moment: what is lost is what came after the last save, and nothing else."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
from places import HELDOUT, TRAIN
from processes import Processes
from runs import equal, fit, metrics, same, saved

from training.clip.__main__ import main
from training.run import saves as state

SETTINGS = {
    "pictures": 240,
    "save_every": 16,
    "log_every": 24,
    "validate_every": 40,
    "accumulate": 2,
    "net": {"dropout": 0.2},
    "timestep_sampler": "loss_second_moment",
    "timesteps": 2,
}


pytestmark = pytest.mark.bitwise


def train(out: Path) -> None:
    fit(out, **SETTINGS)


def said(log: str) -> int | None:
    """Pictures that a process said it goes on from; None if it did not."""
    _, found, rest = log.partition("going on from ")
    return int(rest.split()[0].replace(",", "")) if found else None


def kept(out: Path) -> int:
    """Pictures of the newest whole save on the disk, in whichever folder it lies; 0 = there is none."""
    for folder in (out / state.ASIDE, out / state.LAST, out / state.BEFORE):
        if (folder / state.MANIFEST).is_file() and state.fault(folder) is None:
            return json.loads((folder / state.MANIFEST).read_text())["pictures"]
    return 0


def mark(path: Path) -> tuple[int, int]:
    """What is another number whenever a file or folder has been put here anew."""
    try:
        found = path.stat()
    except FileNotFoundError:  # as it may be from one moment to the next
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def test_killed_twenty_times_and_yet_the_same(tmp_path):
    """Each time at a random moment of a step or of a save, eight times soon after one; then to the end.

    The next process goes on from the newest whole save. It says so before it writes its recipe: of one that
    was killed before either, there is nothing to be known.
    """
    whole, out, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    Processes(tmp_path / "whole-log", 1, train, whole).succeed()
    marks = [out / "state.new", out / "state", out / "metrics.jsonl", out / "recipe.yaml"]
    had = []
    for number in range(20):
        had.append(kept(out))
        target, recipe = marks[(1, 0, 2, 1, 3)[number % 5]], mark(marks[3])
        before = mark(target)
        process = Processes(tmp_path / f"log{number}", 1, train, out)
        end = time.monotonic() + 300
        while process.all[0].is_alive() and mark(target) in ((0, 0), before):  # until something happens ...
            assert time.monotonic() < end, f"it is stuck: {process.log()}"
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.03)  # ... and a little longer
        process.kill(signal.SIGKILL)
        assert process.wait() in ([-signal.SIGKILL], [0])
        assert "damaged" not in process.log() and "Traceback" not in process.log(), process.log()
        began = said(process.log())
        if began is None and mark(marks[3]) != recipe:  # it got as far as its recipe without a word
            began = 0
        assert began in (None, had[-1]), "a save was lost"
    assert had == sorted(had) and len(set(had)) > 5, had  # it did get on, by and by
    Processes(tmp_path / "last", 1, train, out).succeed()
    assert same(whole, out) and metrics(whole) == metrics(out)


CLIP = {
    "model": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "layers": 1, "heads": 2},
    },
    "data": {"shards": [str(TRAIN)], "heldout": [str(HELDOUT)], "size": 16, "hold": True},
    "images": {"samples": 160, "batch_size": 8, "warmup": 0},
    "precision": "fp32",
    "save_every": 16,
}


def learn(out: Path) -> None:
    recipe = out.with_suffix(".yaml")
    recipe.write_text(json.dumps({"out": str(out), **CLIP}))  # JSON is YAML
    assert main([str(recipe)]) == 0


def step(out: Path) -> int:
    return saved(out / "images", "phase.pt")["step"]


def test_a_clip_that_is_killed_ends_the_same(tmp_path):
    """Soon after a save, while one is written, and soon after it began: its last save is never lost."""
    whole, out, rng = tmp_path / "whole", tmp_path / "killed", random.Random(1)
    Processes(tmp_path / "whole-log", 1, learn, whole).succeed()
    places = [out / "images" / name for name in ("state", "state.new", "state", "state.new")]
    for number, target in enumerate(places):
        before, last = mark(target), step(out) if (out / "images" / "state").is_dir() else 0
        process = Processes(tmp_path / f"log{number}", 1, learn, out)
        end = time.monotonic() + 300
        while process.all[0].is_alive() and mark(target) in ((0, 0), before):
            assert time.monotonic() < end, f"it is stuck: {process.log()}"
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.02)
        process.kill(signal.SIGKILL)
        assert process.wait() in ([-signal.SIGKILL], [0])
        assert "damaged" not in process.log() and "Traceback" not in process.log(), process.log()
        folder, _ = state.newest(out / "images")
        assert folder is not None and step(out) >= last
    Processes(tmp_path / "last", 1, learn, out).succeed()
    assert equal(saved(whole / "images", "phase.pt"), saved(out / "images", "phase.pt"))
    assert (whole / "metrics.json").read_text() == (out / "metrics.json").read_text()
    assert step(out) == 20
