"""SE-CKNNA: CKNNA averaged over semantic-preserving transformations of the images.

    SE-CKNNA(A, B) = sum_c w_c CKNNA(A_c, B_c) / sum_c w_c

where A_c are features of the images under condition c. The paper defines a Monte-Carlo mean over noise levels, scales
and rotations; which features stand for it is an interpretation, and every part of it can be chosen: see `Aggregation`
and docs/alignment.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from common.errors import DataError, UserError
from evaluation.alignment.conditions import CLEAN, PUBLISHED
from evaluation.alignment.features import FeatureSet
from evaluation.alignment.scores import ScoreMatrix, Scoring, score_matrix

Reference = Literal["same", "clean"]


@dataclass(frozen=True)
class Aggregation:
    """How scores of single conditions become one.

    Args:
        conditions: names of the transformed conditions.
        include_clean: the clean condition takes part in the mean.
        reference: the second model sees the images of the "same" condition, or always the "clean" ones.
        weights: condition -> weight; 1 where none is given.

    Raises: UserError for a weight of a condition that takes no part, or weights that do not sum to more than 0.
    """

    conditions: tuple[str, ...] = PUBLISHED
    include_clean: bool = False
    reference: Reference = "same"
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.averaged or self.conditions.count(CLEAN):
            raise UserError(
                f"conditions: found {list(self.conditions)}, expected at least one transformation and not `clean`, "
                "which is always scored (--include-clean takes it into the mean)."
            )
        for name, weight in self.weights.items():
            if name not in self.averaged or not 0 <= weight < math.inf:
                raise UserError(
                    f"weights: found {name}={weight:g}, expected weights from 0 of {', '.join(self.averaged)}."
                )
        if not sum(self.weight(name) for name in self.averaged):
            raise UserError("weights: all are 0, expected at least one above.")

    @property
    def averaged(self) -> tuple[str, ...]:
        """The conditions that take part in the mean."""
        return ((CLEAN,) if self.include_clean else ()) + self.conditions

    @property
    def scored(self) -> tuple[str, ...]:
        """The conditions that are scored: the clean one too."""
        return (CLEAN, *self.conditions)

    def weight(self, condition: str) -> float:
        """Of a condition that takes part."""
        return self.weights.get(condition, 1.0)

    def reference_condition(self, condition: str) -> str:
        """Under which condition the second model's features are taken."""
        return condition if self.reference == "same" else CLEAN


def weighted_mean(scores: Mapping[str, Tensor], how: Aggregation) -> Tensor:
    """The mean of scores (of any shape) by condition."""
    total = sum(how.weight(name) for name in how.averaged)
    return torch.stack([how.weight(name) * scores[name] for name in how.averaged]).sum(0) / total


@dataclass(frozen=True)
class SeScores:
    """Aggregated scores of all rows with all columns.

    Args:
        by_condition: scores under every condition, the clean one too.
        how: the aggregation.
    """

    by_condition: Mapping[str, ScoreMatrix]
    how: Aggregation

    @property
    def clean(self) -> ScoreMatrix:
        """Scores on clean images."""
        return self.by_condition[CLEAN]

    @property
    def mean(self) -> ScoreMatrix:
        """The aggregated scores; a half of the images is the same half under every condition."""
        values = weighted_mean({name: scores.values for name, scores in self.by_condition.items()}, self.how)
        halves = weighted_mean({name: scores.halves for name, scores in self.by_condition.items()}, self.how)
        return ScoreMatrix(values, halves, min(scores.images for scores in self.by_condition.values()))

    @property
    def relative_change(self) -> Tensor:
        """Aggregated / clean - 1, [rows, columns]."""
        return self.mean.values / self.clean.values - 1


def score_conditions(
    rows: Sequence[Mapping[str, FeatureSet]],
    columns: Sequence[Mapping[str, FeatureSet]],
    how: Aggregation,
    scoring: Scoring,
) -> SeScores:
    """Score every row with every column under every condition, and aggregate.

    Args:
        rows, columns: of each model output its features by condition.

    Raises: DataError if a condition is missing, two models saw images that were transformed differently, or too few
        images are common to all.
    """
    by_condition = {}
    for condition in how.scored:
        first = [_of(sets, condition) for sets in rows]
        second = [_of(sets, how.reference_condition(condition)) for sets in columns]
        if how.reference == "same":
            for other in (*first[1:], *second):
                require_same_transformations(first[0], other)
        by_condition[condition] = score_matrix(first, second, scoring)
    return SeScores(by_condition, how)


def _of(sets: Mapping[str, FeatureSet], condition: str) -> FeatureSet:
    if condition not in sets:
        beside = next(iter(sets.values())).origin
        raise DataError(f"{beside}: features of the condition {condition} are not beside it; found {', '.join(sets)}.")
    return sets[condition]


def require_same_transformations(a: FeatureSet, b: FeatureSet) -> None:
    """Raise DataError if two files say that they transformed an image differently."""
    ours = dict(zip(a.names, a.transformations))
    for name, theirs in zip(b.names, b.transformations):
        if name in ours and any(ours[name][key] != theirs[key] for key in ours[name].keys() & theirs.keys()):
            raise DataError(
                f"{a.origin} and {b.origin}: {name} was transformed by {ours[name]} in one and by {theirs} in the "
                "other; extract both with the same equivariance_transforms.json and noise."
            )
