"""SE-CKNNA: CKNNA averaged over semantic-preserving transformations of the images.

    SE-CKNNA(A, B) = sum_c w_c CKNNA(A_c, B_c) / sum_c w_c

where A_c are features of the images under condition c. The paper defines a Monte-Carlo mean over noise levels, scales
and rotations; which features stand for it is an interpretation, and every part of it can be chosen: see `Aggregation`
and docs/alignment.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from common.errors import DataError, UserError
from evaluation.alignment.conditions import CLEAN, PUBLISHED
from evaluation.alignment.features import FeatureSet

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
                f"conditions: found {list(self.conditions)}, expected at least one transformation and not `clean`, which "
                "is always scored (--include-clean takes it into the mean)."
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


@dataclass(frozen=True)
class SeScore:
    """An aggregated score.

    Args:
        score: the weighted mean.
        clean: the score on clean images.
        by_condition: all scores it is made of, and the clean one.
    """

    score: float
    clean: float
    by_condition: Mapping[str, float]

    @property
    def relative_change(self) -> float:
        """score / clean - 1; NaN where the clean score is 0."""
        return self.score / self.clean - 1 if self.clean else math.nan


def aggregate(scores: Mapping[str, float], how: Aggregation) -> SeScore:
    """The weighted mean of scores by condition."""
    total = sum(how.weight(name) for name in how.averaged)
    mean = sum(how.weight(name) * scores[name] for name in how.averaged) / total
    return SeScore(mean, scores[CLEAN], {name: scores[name] for name in how.scored})


def score_conditions(
    first: Mapping[str, FeatureSet],
    second: Mapping[str, FeatureSet],
    how: Aggregation,
    score: Callable[[FeatureSet, FeatureSet], float],
) -> SeScore:
    """Score every condition and aggregate.

    Args:
        first, second: features of two models by condition.
        score: of two sets of features.

    Raises: DataError if a condition is missing, or the two models saw images that were transformed differently.
    """
    scores = {}
    for condition in how.scored:
        a, b = _of(first, condition), _of(second, how.reference_condition(condition))
        if how.reference == "same":
            require_same_transformations(a, b)
        scores[condition] = score(a, b)
    return aggregate(scores, how)


def _of(sets: Mapping[str, FeatureSet], condition: str) -> FeatureSet:
    if condition not in sets:
        raise DataError(f"features of the condition {condition} are missing; found {', '.join(sets) or 'none'}.")
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
