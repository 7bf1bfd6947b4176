"""Requests to stop: SIGTERM, SIGUSR1 or Ctrl-C on any rank end the run after a checkpoint of the same step on all."""

from __future__ import annotations

import signal
from types import FrameType

STOPPED_EXIT_CODE = 143


class StopRequest:
    """Remembers that a signal came; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.requested = False

    def install(self) -> None:
        """Catch the signals from now on."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = True
