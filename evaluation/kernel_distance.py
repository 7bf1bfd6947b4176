"""Kernel Inception Distance (Binkowski et al. 2018): unbiased squared MMD with a cubic kernel, over random subsets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from common.errors import DataError

SUBSETS = 100
SUBSET_SIZE = 1000
SEED = 2020


@dataclass(frozen=True)
class KernelDistance:
    """Mean and (population) standard deviation over subsets."""

    mean: float
    std: float


def kernel_distance(
    samples: Tensor, reference: Tensor, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = SEED
) -> KernelDistance:
    """Distance of two sets of features [S, D] and [R, D], in float64.

    Subsets are drawn without replacement by NumPy's RandomState(seed), samples first, as torch-fidelity draws them.

    Raises: DataError if a set has fewer images than a subset.
    """
    if min(len(samples), len(reference)) < subset_size:
        raise DataError(
            f"kernel distance: found {len(samples)} and {len(reference)} images, expected at least {subset_size} (the "
            "size of a subset) in both."
        )
    draws = np.random.RandomState(seed)
    distances = []
    for _ in range(subsets):
        a, b = (x[draws.choice(len(x), subset_size, replace=False)].double() for x in (samples, reference))
        distances.append(_squared_mmd(a, b))
    mean = math.fsum(distances) / subsets
    return KernelDistance(mean, math.sqrt(math.fsum((d - mean) ** 2 for d in distances) / subsets))


def _squared_mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased for samples of equal size m: means over pairs of different images within, over all pairs between."""
    m = len(a)
    within = sum((kernel.sum() - kernel.trace()) / (m * (m - 1)) for kernel in (_cubic(a, a), _cubic(b, b)))
    return (within - 2 * _cubic(a, b).mean()).item()


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3
