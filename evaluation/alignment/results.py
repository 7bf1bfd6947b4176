"""Scores as plain records: for JSON, CSV and the terminal."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common.files import write_atomically
from evaluation.alignment.scores import ScoreMatrix, Scoring
from evaluation.alignment.se_cknna import SeScores


@dataclass(frozen=True)
class ScoreRecord:
    """One score.

    Args:
        row, column: what was compared: first and second argument of the metric.
        metric, k: which score; k is None where the metric uses no neighbours.
        condition: what was done to the images; None where that is not known.
        standard_error: None where it was not asked for.
        images: how many were compared.
    """

    row: str
    column: str
    metric: str
    k: int | None
    condition: str | None
    value: float | None
    standard_error: float | None
    images: int


def records_of(
    rows: Sequence[str], columns: Sequence[str], scores: ScoreMatrix, how: Scoring, condition: str | None = None
) -> list[ScoreRecord]:
    """The scores of a matrix, row by row."""
    errors = scores.standard_errors().tolist()
    return [
        ScoreRecord(row, column, how.metric, how.k_used, condition, _finite(value), _finite(error), scores.images)
        for row, values, own_errors in zip(rows, scores.values.tolist(), errors, strict=True)
        for column, value, error in zip(columns, values, own_errors, strict=True)
    ]


def plain_scoring(how: Scoring) -> dict[str, Any]:
    """The protocol of a score for JSON."""
    return {
        "preparation": f"clip: {how.clip} (0.95 quantile of absolute values), rows divided by their length",
        "eps": how.eps,
        "min_overlap": how.min_overlap,
        "standard_error": f"standard deviation over {how.halves} random halves, seed {how.seed}"
        if how.halves
        else None,
    }


def plain_matrix(scores: ScoreMatrix) -> dict[str, Any]:
    """Values and standard errors as nested lists for JSON."""
    return {
        "values": _plain(scores.values),
        "standard_errors": _plain(scores.standard_errors()),
        "images": scores.images,
    }


def plain_se(found: SeScores, how: Scoring) -> dict[str, Any]:
    """An aggregation for JSON: its scores, those of every condition, and how they were made."""
    return {
        "metric": how.metric,
        "topk": how.k_used,
        f"se_{how.metric}": plain_matrix(found.mean),
        **{condition: plain_matrix(scores) for condition, scores in found.by_condition.items()},
        "relative_change": _plain(found.relative_change),
        "aggregation": {
            "averaged": {name: found.how.weight(name) for name in found.how.averaged},
            "reference": found.how.reference,
        },
        "protocol": plain_scoring(how),
    }


def se_text(found: SeScores, how: Scoring) -> str:
    """An aggregation of one pair for the terminal."""
    matrices = {**found.by_condition, f"se_{how.metric}": found.mean}
    width = max(map(len, matrices))
    lines = [f"{found.mean.images} images"]
    for name, scores in matrices.items():
        (record,) = records_of([""], [""], scores, how)
        lines.append(f"{name:{width}} {show_record(record)}")
    change = found.relative_change.item()
    return "\n".join(
        [*lines, f"{'change':{width}} {change:+.1%} against clean" if math.isfinite(change) else ""]
    ).rstrip()


def write_scores_csv(path: str | Path, records: Iterable[ScoreRecord]) -> None:
    """One line per score."""

    def write(partial: Path) -> None:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(ScoreRecord.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(record) for record in records)

    write_atomically(path, write)


def show_record(record: ScoreRecord) -> str:
    """A score with its standard error for the terminal."""
    value = "undefined" if record.value is None else f"{record.value:.4f}"
    return value if record.standard_error is None else f"{value} +- {record.standard_error:.4f}"


def _plain(values: Tensor) -> list[list[float | None]]:
    return [[_finite(value) for value in row] for row in values.tolist()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
