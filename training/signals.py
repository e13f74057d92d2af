"""Ctrl-C and SIGTERM: remembered, so that a run ends after a whole step, when its state can be saved."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType


class Signals:
    """Inside the block such a signal is only noted in ``came``; a second Ctrl-C ends the run at once."""

    def __init__(self) -> None:
        self.came = False
        self._first = 0.0
        self._before: dict = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Launchers hand on a Ctrl-C that has reached their processes already: that is not a second one."""
        if self.came and number == signal.SIGINT and time.monotonic() - self._first > 2:
            raise KeyboardInterrupt
        if not self.came:
            self.came, self._first = True, time.monotonic()
