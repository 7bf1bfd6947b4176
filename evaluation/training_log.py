"""What reports and charts show of a run's log: values over the images seen, and the time spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import DataError
from common.registry import closest

LOSS_PREFIX = "loss/"
Curve = list[tuple[float, float]]  # (kimg, value) in order


@dataclass(frozen=True)
class TrainingLog:
    """The course of a run.

    Args:
        values: curve of each key of the log that has numbers.
        kimg: thousand images seen at the end.
        seconds: time spent training, over all sessions of the run.
    """

    values: dict[str, Curve]
    kimg: float
    seconds: float

    @property
    def losses(self) -> dict[str, Curve]:
        """Those under `loss/`, by their names without it."""
        return {
            key.removeprefix(LOSS_PREFIX): points for key, points in self.values.items() if key.startswith(LOSS_PREFIX)
        }


def summarise_log(lines: Sequence[Mapping[str, Any]], where: str) -> TrainingLog:
    """Gather the lines of a log, one per tick; `where` names the log in messages.

    Raises: DataError if there is no tick.
    """
    if not lines:
        raise DataError(f"{where}: holds no tick, expected the log of a training run that has got somewhere.")
    values: dict[str, Curve] = {}
    for line in lines:
        for key, value in line.items():
            if isinstance(value, int | float):
                values.setdefault(key, []).append((line["progress/kimg"], value))
    return TrainingLog(values, lines[-1]["progress/kimg"], lines[-1]["timing/train_seconds"])


def compare(logs: Mapping[str, TrainingLog], key: str) -> dict[str, Curve]:
    """The values of one key in several runs, by the names of the runs; empty where a run has none.

    Raises: DataError if no run has a finite value, with the closest key that one has.
    """
    curves = {name: log.values.get(key, []) for name, log in logs.items()}
    if any(math.isfinite(value) for points in curves.values() for _, value in points):
        return curves
    near = closest(key, sorted({other for log in logs.values() for other in log.values} - {key}))
    raise DataError(f"{key}: found no finite value in the logs of {', '.join(logs)}. Closest: {near}.")
