"""Real processes for tests, started in a moment: forks of one that has imported everything already."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path

from places import ROOT

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["warm", "processes"])


def _begin() -> None:
    """Start the process that is forked, if it does not run yet. Of the path it hears by its environment."""
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]), "OMP_NUM_THREADS": "1"}
    before = {key: os.environ.get(key) for key in env}
    os.environ.update(env)
    try:
        forkserver.ensure_running()
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value


def _child(function: Callable, args: tuple, env: dict[str, str], log: Path) -> None:
    import torch
    from tqdm import tqdm

    with open(log, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        os.environ.update(env)
        faulthandler.enable(file)  # what ends without a word of Python says where it was
        multiprocessing.set_start_method("fork", force=True)  # for data workers
        torch.set_num_threads(1)
        tqdm.set_lock(threading.RLock())  # forks share tqdm's own, and one that was killed keeps it for ever
        try:
            function(*args)
        except BaseException:
            traceback.print_exc()
            file.flush()
            os._exit(1)
        file.flush()
        os._exit(0)  # what only tests hold (process groups) need not be put away


class Processes:
    """``n`` processes that run ``function(*args)``, joined into one run if there are several.

    What they print is in ``log(rank)``.
    """

    def __init__(self, folder: Path, n: int, function: Callable, *args: object) -> None:
        _begin()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.n, self.all = folder, n, []
        self.store = self._meeting() if n > 1 else None
        for rank in range(n):
            self.path(rank).touch()  # there is a log, however soon a process ends
            env = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
            if n > 1:
                env |= {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(self.store.port),
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(n),
                    "TORCHELASTIC_USE_AGENT_STORE": "True",
                    "TORCHELASTIC_RESTART_COUNT": "0",
                }
            process = CONTEXT.Process(target=_child, args=(function, args, env, self.path(rank)))
            process.start()
            self.all.append(process)

    def _meeting(self):
        """Where the processes find each other: kept here, as a launcher does, on a port that nobody else can
        have taken before the first of them comes.
        """
        from torch.distributed import TCPStore

        return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def path(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.log"

    def log(self, rank: int = 0) -> str:
        return self.path(rank).read_text()

    def end(self, rank: int) -> str:
        """How a log ends; of a process that was aborted from what was said before that on."""
        log = self.log(rank)
        at = log.find("Fatal Python error")
        return log[-3000:] if at < 0 else log[max(0, at - 1500) : at + 2000]

    def kill(self, number: int, rank: int = 0) -> None:
        """Send a signal to one of them, if it has not ended by itself."""
        with suppress(ProcessLookupError):
            os.kill(self.all[rank].pid, number)

    def wait(self, timeout: float = 300) -> list[int]:
        """Their exit codes; of those that hang, which are ended, -9."""
        for process in self.all:
            process.join(timeout)
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.all]

    def succeed(self) -> None:
        codes = self.wait()
        ends = enumerate(codes)
        told = [f"rank {rank} ended with {code}:\n{self.end(rank)}" for rank, code in ends]
        assert codes == [0] * self.n, "\n".join(told)
