"""What a report shows of a run's log: loss curves, images seen, time spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import DataError

LOSS_PREFIX = "loss/"


@dataclass(frozen=True)
class TrainingLog:
    """The course of a run.

    Args:
        losses: name (without `loss/`) -> (kimg, value) in order.
        kimg: thousand images seen at the end.
        seconds: time spent training, over all sessions of the run.
    """

    losses: dict[str, list[tuple[float, float]]]
    kimg: float
    seconds: float


def summarise_log(lines: Sequence[Mapping[str, Any]], where: str) -> TrainingLog:
    """Gather the lines of a log, one per tick; `where` names the log in messages.

    Raises: DataError if there is no tick.
    """
    if not lines:
        raise DataError(f"{where}: holds no tick, expected the log of a training run that has got somewhere.")
    losses: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith(LOSS_PREFIX) and value is not None:
                losses.setdefault(key.removeprefix(LOSS_PREFIX), []).append((line["progress/kimg"], value))
    return TrainingLog(losses, lines[-1]["progress/kimg"], lines[-1]["timing/train_seconds"])
