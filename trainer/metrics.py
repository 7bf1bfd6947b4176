"""Means between two log lines, and the JSONL log of a run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import write_text_atomically

log = logging.getLogger(__name__)


class Means:
    """Running means by name since the last `take`. Its state is part of a checkpoint."""

    def __init__(self):
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Count one value per name."""
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)

    def take(self) -> dict[str, float]:
        """The means, sorted by name; starts anew."""
        means = {name: total / count for name, (total, count) in sorted(self._sums.items())}
        self._sums.clear()
        return means

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts; JSON keeps them exactly."""
        return {name: list(entry) for name, entry in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._sums = {name: (total, count) for name, (total, count) in state.items()}


class JSONLLog:
    """One JSON object per line, complete and monotone in `progress/nimg` however often a run is resumed.

    Args:
        path: the log file.
        resumed_nimg: images seen at the checkpoint that the run goes on from; later lines, of steps that will be
            done again, are dropped, as is a half-written last line.
    """

    def __init__(self, path: Path, resumed_nimg: int):
        self.path = path
        self._pending = ""
        lines = [line for line in read_log(path) if line["progress/nimg"] <= resumed_nimg]
        write_text_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line. One that cannot be written (full disk) is kept and written with the next."""
        self._pending += json.dumps(line) + "\n"
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self._pending)
            self._pending = ""
        except OSError as error:
            log.warning("%s: a line could not be written yet: %s", self.path, error)
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)  # a part of it may stand there


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log; an unfinished last line is left out, a missing file is an empty log."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
