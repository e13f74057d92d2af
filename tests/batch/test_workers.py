"""Several workers in one folder: nothing is drawn twice or lost, whoever dies; all is as by one alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Processes

from unclip.app.batch import main
from unclip.batch.leases import Leases
from unclip.files import sha256_of

BLOCK = ["--block", "4", "--batch-size", "3", "--steps", "1", "--prior-steps", "1"]
ROWS = 60


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Some rows have options of their own, one cannot be drawn, and pictures a row differ."""
    path = tmp_path / "rows.jsonl"
    with open(path, "w") as file:
        for number in range(ROWS):
            row: dict[str, object] = {"prompt": f"picture {number}"}
            row |= {"steps": 2} if number % 5 == 0 else {}
            row |= {"n": 3, "seed": 9} if number % 7 == 0 else {}
            row |= {"steps": 0} if number == 33 else {}
            file.write(json.dumps(row) + "\n")
    return path


def draws(prompts: Path, out: Path, model: Path) -> None:
    sys.exit(main([str(prompts), str(out), "--model", str(model), "--lease", "1", *BLOCK]))


def files(out: Path) -> dict[str, str]:
    """What there is, by its sum; the leases are all given back."""
    names = [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): sha256_of(path) for path in names}


@pytest.mark.bitwise
def test_workers_that_are_killed_and_one_that_comes_late_end_as_one_alone_does(prompts, tmp_path, tiny_model):
    alone, out = tmp_path / "alone", tmp_path / "out"
    one = Processes(tmp_path / "0", 1, draws, prompts, alone, tiny_model)
    three = [Processes(tmp_path / f"{k}", 1, draws, prompts, out, tiny_model) for k in (1, 2, 3)]
    for count, worker in enumerate(three, 1):
        until(lambda count=count: len(list(out.rglob("*.png"))) >= 9 * count)
        worker.kill(signal.SIGKILL)
    for worker in three:
        worker.wait()
    assert 0 < len(list((out / "index").glob("*.jsonl"))) < ROWS // 4  # they did not end
    late = Processes(tmp_path / "4", 1, draws, prompts, out, tiny_model)
    assert late.wait() == one.wait() == [1]  # a row could not be drawn
    assert "rows could not be drawn" in late.log()
    assert files(out) == files(alone)
    lines = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    keys = [(line["line"], line["k"]) for line in lines]
    assert keys == sorted(set(keys)) and len(keys) == ROWS - 1 + 2 * 9
    (bad,) = map(json.loads, (out / "errors.jsonl").read_text().splitlines())
    assert bad["line"] == 34 and "steps" in bad["error"]


@pytest.mark.attack
def test_what_a_worker_leaves_that_dies_just_after_a_block_is_taken_away(tmp_path, tiny_model):
    """Between the index and its end: the list of what was begun, the lease, a lease half taken over."""
    prompts = tmp_path / "lines.txt"
    prompts.write_text("a\nb\nc\nd\ne\n")
    arguments = [str(prompts), str(tmp_path / "out"), "--model", str(tiny_model), *BLOCK]
    assert main(arguments) == 0
    whole = files(tmp_path / "out")
    index = min((tmp_path / "out/index").glob("*.jsonl"))
    index.with_suffix(".part").write_bytes(index.read_bytes())
    folder = tmp_path / "out" / "leases"
    left(folder, host=socket.gethostname(), pid=dead_process()).rename(folder / "000000")
    left(folder, age=90).rename(folder / f".000001.{'0' * 32}")
    assert main(arguments) == 0
    assert files(tmp_path / "out") == whole


def until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_lease_is_of_one_and_given_back(tmp_path):
    with Leases(tmp_path) as a, Leases(tmp_path) as b:
        assert a.claim(3) and not b.claim(3) and a.mine()
        a.release()
        assert b.claim(3) and not a.claim(3)
    assert list(tmp_path.iterdir()) == []


def left(folder: Path, age: float = 0.0, **owner: object) -> Path:
    path = folder / "000003"
    path.write_text(json.dumps({"token": "0" * 32, "host": "elsewhere", "pid": 1, **owner}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lease_of_the_dead_is_taken_over_at_once_here_and_in_time_from_elsewhere(tmp_path):
    with Leases(tmp_path, expires=5) as leases:
        left(tmp_path, host=socket.gethostname(), pid=dead_process())
        assert leases.claim(3)
        leases.release()
        left(tmp_path, age=4)
        assert not leases.claim(3)
        left(tmp_path, age=6)
        assert leases.claim(3)


def test_a_lease_is_renewed_while_its_worker_lives(tmp_path):
    with Leases(tmp_path, expires=0.4) as slow, Leases(tmp_path, expires=0.4) as other:
        assert slow.claim(1)
        for _ in range(10):
            time.sleep(0.1)
            assert not other.claim(1)
        assert slow.mine()


@pytest.mark.attack
def test_who_lost_a_lease_does_not_take_back_or_give_away_that_of_another(tmp_path):
    with Leases(tmp_path, expires=60) as late, Leases(tmp_path, expires=60) as now:
        assert late.claim(1)
        (tmp_path / "000001").unlink()  # as if it had been given up
        assert now.claim(1) and not late.mine()
        late.release()
        assert now.mine()


@pytest.mark.attack
@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "[" * 9_999])
def test_a_lease_of_something_else_is_waited_for_and_then_given_up(tmp_path, text):
    with Leases(tmp_path, expires=5) as leases:
        left(tmp_path).write_text(text)
        assert not leases.claim(3)
        os.utime(tmp_path / "000003", (0, 0))
        assert leases.claim(3)
