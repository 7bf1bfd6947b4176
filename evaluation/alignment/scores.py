"""Scores of pairs of feature sets, with standard errors, and matrices of them: rows x columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.errors import UserError
from common.random import torch_generator
from common.registry import import_object
from evaluation.alignment.features import FeatureSet, match_images
from evaluation.alignment.metrics import DEFAULT_EPS, DEFAULT_K, METRICS, MetricOptions
from evaluation.alignment.preparation import Clip, prepare
from evaluation.alignment.spaces import FeatureSpace


@dataclass(frozen=True)
class Scoring:
    """How two sets of features are compared.

    Args:
        metric: a name of `METRICS`.
        k: number of neighbours, where the metric uses them.
        eps: see `MetricOptions`.
        clip: see `prepare`.
        min_overlap: least share of images that all sets must have.
        halves: random halves of the images from which a standard error is estimated; 0: none.
        seed: of these halves.
        device: where kernels are computed.
    """

    metric: str = "cknna"
    k: int = DEFAULT_K
    eps: float = DEFAULT_EPS
    clip: Clip = "matrix"
    min_overlap: float = 0.95
    halves: int = 0
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        METRICS[self.metric]

    @property
    def k_used(self) -> int | None:
        """k, or None where the metric does not use it."""
        return self.k if METRICS[self.metric].uses_k else None


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores of all rows with all columns.

    Args:
        values: float64 [rows, columns].
        halves: the same on random halves of the images, [halves, rows, columns].
        images: how many were compared.
    """

    values: Tensor
    halves: Tensor
    images: int

    def standard_errors(self) -> Tensor:
        """Of the values, over the choice of images: [rows, columns]; NaN without at least two halves.

        It is the standard deviation over halves drawn without replacement, which for a mean over images equals the
        standard error of the whole set. For metrics of neighbours it is an upper estimate (docs/alignment.md). The
        usual bootstrap would draw images twice, and an image that is there twice is its own nearest neighbour.
        """
        return self.halves.std(0) if len(self.halves) > 1 else torch.full_like(self.values, math.nan)


def score_matrix(rows: Sequence[FeatureSet], columns: Sequence[FeatureSet], how: Scoring) -> ScoreMatrix:
    """Score every row (first argument) with every column (second argument) on the images that all of them have.

    Raises: DataError if too few images are common to all; UserError if k does not fit their number.
    """
    matched = match_images([*rows, *columns], how.min_overlap)
    _check_halves(len(matched.names), how)
    spaces = [FeatureSpace(prepare(features.to(how.device), how.clip)) for features in matched.features]
    function, options = import_object(METRICS[how.metric].target), MetricOptions(how.k, how.eps)

    def scores(of: Sequence[FeatureSpace]) -> Tensor:
        first, second = of[: len(rows)], of[len(rows) :]
        return torch.tensor([[function(a, b, options) for b in second] for a in first], dtype=torch.float64)

    values = scores(spaces)
    on_halves = [scores([space.subset(half) for space in spaces]) for half in _halves(len(matched.names), how)]
    halves = torch.stack(on_halves) if on_halves else values.new_empty(0, *values.shape)
    return ScoreMatrix(values, halves, len(matched.names))


def _check_halves(images: int, how: Scoring) -> None:
    least = max(4, (how.k_used or 0) + 1)  # what a `FeatureSpace` takes, and a neighbour more than k
    if how.halves and images // 2 < least:
        raise UserError(
            f"halves: half of {images} images are {images // 2}, expected at least {least} for a standard error; take "
            "more images, fewer neighbours, or no halves."
        )


def _halves(images: int, how: Scoring) -> Iterator[Tensor]:
    for half in range(how.halves):
        order = torch.randperm(images, generator=torch_generator(how.seed, "alignment half", half))
        yield order[: images // 2].sort().values.to(how.device)
