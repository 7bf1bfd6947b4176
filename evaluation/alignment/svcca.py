"""SVCCA: canonical correlations between the leading principal components of two sets of features."""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation.alignment.metrics import MetricOptions
from evaluation.alignment.spaces import FeatureSpace

COMPONENTS = 10


def svcca(a: FeatureSpace, b: FeatureSpace, options: MetricOptions) -> float:
    """Mean canonical correlation between the 10 leading components of each side (fewer where a rank is lower).

    The decomposition is exact, in float64, so nothing is drawn; the usual form draws a random low-rank one.
    """
    left, right = _leading(a.features), _leading(b.features)
    return torch.linalg.svdvals(left.T @ right).clamp(max=1).mean().item()


def _leading(features: Tensor) -> Tensor:
    """Orthonormal columns [N, r] that span the leading components of the standardised features."""
    features = features.double()
    deviations = features - features.mean(0)
    scale = deviations.square().mean(0).sqrt()
    standardised = deviations[:, scale > 0] / scale[scale > 0]
    u, s, _ = torch.linalg.svd(standardised, full_matrices=False)
    rank = int((s > 1e-10 * s[:1]).sum())
    return u[:, : min(COMPONENTS, rank)]
