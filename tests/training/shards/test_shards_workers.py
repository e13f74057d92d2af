"""Keys that lead nowhere, and the processes that prepare samples."""

from __future__ import annotations

import subprocess
import sys

import pytest
from places import ROOT
from works import square

from training.shards import parallel
from training.shards.parallel import ordered
from training.shards.prepare import key_of


@pytest.mark.parametrize("name, key", [
    ("a.b/c d", "a_b/c_d"), ("../../etc/passwd", "etc/passwd"), ("/abs", "abs"), ("C:\\x\\y", "C/x/y"),
    ("..", "_"), ("__meta__/x", "meta/x"), ("猫-1", "猫-1"), ("", "_"), ("a\0b\n", "a_b"), ("\udcff", "_"),
])  # fmt: skip
def test_keys_lead_nowhere(name, key):
    assert key_of(name) == key


def test_long_names_have_keys_of_their_own():
    one, two = (key_of("x" * 300 + end) for end in "ab")
    assert one != two and len(one) < 100


def test_a_worker_that_dies_costs_what_killed_it():
    found = list(ordered(square, range(20), workers=2, died=lambda item: -item))
    assert found == [(item, -13 if item == 13 else item * item) for item in range(20)]


def test_few_items_are_held_at_a_time(monkeypatch):
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    class Pool:
        def submit(self, function, item):
            done = parallel.Future()
            done.set_result(function(item))
            return done

        def shutdown(self, cancel_futures: bool = False):
            pass

    monkeypatch.setattr(parallel, "_pool", lambda workers: Pool())
    results = ordered(abs, items(), workers=2)
    assert next(results) == (0, 0) and len(taken) == 16
    assert [item for item, _ in results] == list(range(1, 100))


def test_workers_start_without_pytorch():
    """They import what the program imports; seconds each, on many cores, if that were more."""
    probe = "import sys, training.shards, training.doctor; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
