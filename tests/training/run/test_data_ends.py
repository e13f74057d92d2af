"""A run whose data ends, or whose data workers die, is saved as it was before the step."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import Processes
from runs import Rows, equal, fit, make_run, metrics, noise, same, saved

from training.data.feed import fed
from training.run.learner import NoData
from training.run.loop import Run
from unclip.data.reading import ShardError

HARD = {
    "pictures": 64,
    "log_every": 24,
    "save_every": 16,
    "validate_every": 16,
    "accumulate": 2,
    "timesteps": 2,
    "timestep_sampler": "loss_second_moment",
    "net": {"dropout": 0.2},
}


class Short(Rows):
    """Batches that end, by an error, after so many."""

    error: Exception = OSError("the disk is gone")

    def batches(self, start: int) -> Iterator:
        for number, batch in enumerate(super().batches(start), start):
            if number == self.end and self.rank == self.world - 1:
                raise self.error
            yield batch


def short(run: Run, end: int, error: Exception) -> Run:
    task = Short(noise(), run.task.n, run.task.rank, run.task.world)
    task.end, task.error, run.task = end, error, task
    return run


@pytest.mark.bitwise
@pytest.mark.parametrize("end, error, wrong", [
    (6, ShardError("8 of 9 samples cannot be read"), ShardError),
    (7, OSError("the disk is gone"), OSError),  # in the second part of a step
    (7, RuntimeError("worker (pid 3) is killed by signal"), NoData),
])  # fmt: skip
def test_a_run_whose_data_ends_is_saved_as_it_was_before_the_step(end, error, wrong, tmp_path, capsys):
    whole, out = fit(tmp_path / "whole", **HARD), tmp_path / "run"
    with pytest.raises(wrong, match=error.args[0].partition("(")[0]):
        short(make_run(out, **HARD), end, error).train()
    assert saved(out)["step"] == 3 and max(point["pictures"] for point in metrics(out)) == 24
    assert "stopped after 24 pictures; the same command goes on\n" in capsys.readouterr().out
    fit(out, **HARD)
    assert same(whole, out) and metrics(whole) == metrics(out)
    assert equal(saved(whole)["importance"], saved(out)["importance"])


def test_an_error_before_the_first_batch_is_raised_as_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="no worker"):
        short(make_run(tmp_path / "run"), 0, RuntimeError("no worker")).train()
    assert not (tmp_path / "run" / "state").exists()


class Fed(Rows):
    """Batches that another process makes."""

    def batches(self, start: int) -> Iterator:
        make = super().batches
        return fed(lambda first, step: itertools.islice(make(first), 0, None, step), start, 1)


def test_a_data_worker_that_is_killed_ends_the_run_with_a_save(tmp_path):
    run, before = make_run(tmp_path / "run", pictures=8_000), signal.getsignal(signal.SIGCHLD)
    killed: list[int] = []
    run.task, real = Fed(noise(), run.task.n), run._optimise

    def optimise(batches: Iterator) -> None:
        real(batches)
        if run.step == 2 and not killed:
            assert signal.getsignal(signal.SIGCHLD) is before  # no error in the midst of a step
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker.pid)

    run._optimise = optimise
    with pytest.raises(NoData, match="the next samples did not come: .* a process that reads them may have"):
        run.train()
    assert saved(tmp_path / "run")["step"] == run.step >= 2


def shortened(out: Path, settings: dict) -> None:
    short(make_run(out, **settings), 7, OSError("the disk is gone")).train()


def train(out: Path, settings: dict) -> None:
    fit(out, **settings)


def ended(folder: Path, function: Callable, *args: object) -> Processes:
    """Two processes that came to an end of their own. Now and then one aborts in a collective of gloo's, when
    shards are gathered on a busy CPU; it is not known why. That is told, and goes on by the same command.
    """
    for number in range(3):
        both = Processes(folder / str(number), 2, function, *args)
        if -signal.SIGABRT not in both.wait():
            break
        warnings.warn("aborted:\n" + "\n".join(map(both.end, range(2))), stacklevel=2)
    return both


@pytest.mark.bitwise
@pytest.mark.parametrize("how", [{}, {"shard": True}], ids=["ddp", "fsdp"])
def test_where_one_process_has_no_data_all_end_with_a_save(how, tmp_path):
    settings = {**HARD, **how}
    ended(tmp_path / "0", train, tmp_path / "whole", settings).succeed()
    both = ended(tmp_path / "1", shortened, tmp_path / "run", settings)
    assert both.wait() == [1, 1]
    assert "OSError: the disk is gone" in both.log(1) and "to another process, which says why" in both.log(0)
    assert saved(tmp_path / "run")["step"] == 3
    ended(tmp_path / "2", train, tmp_path / "run", settings).succeed()
    assert same(tmp_path / "whole", tmp_path / "run")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "run")
