"""Frechet distance between Gaussians that are fitted to features (Heusel et al. 2017), all in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import DataError, ShapeError


@dataclass(frozen=True)
class FeatureMoments:
    """A Gaussian fitted to features: mean [D] and sample covariance [D, D] (divisor n - 1), float64."""

    mean: Tensor
    covariance: Tensor


class FeatureStatistics:
    """Running mean and covariance of features that come in batches of any size.

    Batches, and the statistics of several processes, are merged by
    n = n_a + n_b,  d = mean_b - mean_a,  mean = mean_a + d n_b / n,  M2 = M2_a + M2_b + d d^T n_a n_b / n.

    Args:
        dimension: D of the features.
        device: where the sums are kept.
    """

    def __init__(self, dimension: int, device: torch.device | str = "cpu"):
        self.count = 0
        self._mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Take in features [B, D]."""
        values = features.detach().to(self._mean)
        if len(values):
            mean = values.mean(0)
            centred = values - mean
            self._merge(len(values), mean, centred.T @ centred)

    def merge(self, other: FeatureStatistics) -> None:
        """Take in what another process has seen."""
        self._merge(other.count, other._mean.to(self._mean), other._scatter.to(self._scatter))

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        if count == 0:
            return
        difference = mean - self._mean
        self._mean += difference * (count / total)
        self._scatter += scatter
        self._scatter.addr_(difference, difference, alpha=self.count * count / total)
        self.count = total

    def moments(self) -> FeatureMoments:
        """The Gaussian fitted to all features so far. Raises DataError if there are fewer than two."""
        if self.count < 2:
            raise DataError(f"a covariance needs the features of at least 2 images, found {self.count}.")
        return FeatureMoments(self._mean.clone(), self._scatter / (self.count - 1))


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """|mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2).

    The trace of the root is the sum of the roots of the eigenvalues of S_a^(1/2) S_b S_a^(1/2), which is symmetric and
    has none below 0 but by rounding; so singular covariances (fewer images than features) need no correction.

    Raises: ShapeError if the dimensions differ; DataError if a value is not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise ShapeError(
            f"Frechet distance: found features of {len(a.mean)} and {len(b.mean)} dimensions, expected equal ones."
        )
    b = FeatureMoments(b.mean.to(a.mean), b.covariance.to(a.covariance))
    for moments in (a, b):
        if not (moments.mean.isfinite().all() and moments.covariance.isfinite().all()):
            raise DataError("Frechet distance: found statistics that are not finite; are the features?")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # S_a^(1/2)
    trace_of_root = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * trace_of_root
    return distance.item()
