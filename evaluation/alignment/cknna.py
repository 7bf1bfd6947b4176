"""CKNNA: centred kernel nearest-neighbour alignment, CKA restricted to mutual nearest neighbours.

With K = A A^T and L = B B^T on prepared rows, M_K the mask of the k largest entries beside the diagonal of each row of
K (not symmetric), and M = M_K * M_L the pairs that are neighbours in both spaces:

    CKNNA(A, B) = HSIC(M*K, M*L) / ( sqrt( HSIC(M_K*K, M_K*K) HSIC(M_L*L, M_L*L) ) + eps )

Each self term has its own mask. As the masks are not symmetric, CKNNA(A, B) and CKNNA(B, A) differ in the third digit:
the order of the arguments is part of the protocol. With k = N - 1 it is unbiased linear CKA.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from common.errors import UserError
from evaluation.alignment.hsic import MaskedKernel
from evaluation.alignment.metrics import MetricOptions
from evaluation.alignment.spaces import FeatureSpace


@dataclass(frozen=True)
class CknnaTerms:
    """What a CKNNA is made of.

    Args:
        shared: number of pairs (i, j) that are neighbours in both spaces.
        kl, kk, ll: HSIC of the two masked kernels, and of each with itself.
    """

    shared: int
    kl: float
    kk: float
    ll: float

    def score(self, eps: float) -> float:
        """CKNNA; NaN where a self term is not positive, as for features that are all alike."""
        return self.kl / (math.sqrt(self.kk * self.ll) + eps) if min(self.kk, self.ll) > 0 else math.nan


def cknna_terms(a: FeatureSpace, b: FeatureSpace, k: int, unbiased: bool = True) -> CknnaTerms:
    """HSIC terms of CKNNA; O(N k) once the neighbours are known.

    Args:
        unbiased: unbiased HSIC; else the biased one, for which images are their own neighbours too.

    Raises: UserError if k is below 2 or above N - 1.
    """
    assert len(a) == len(b), "one row per image in both"
    if k < 2:
        raise UserError(f"k: found {k}, expected at least 2 neighbours for CKNNA.")
    own_a, own_b = (space.remember(_own_terms, k, unbiased) for space in (a, b))
    shared_a, shared_b = own_a.kernel.common(own_b.kernel)
    return CknnaTerms(len(shared_a.places), shared_a.sums(shared_b).hsic(unbiased), own_a.hsic, own_b.hsic)


def cknna(a: FeatureSpace, b: FeatureSpace, options: MetricOptions) -> float:
    """CKNNA(A, B) with unbiased HSIC."""
    return cknna_terms(a, b, options.k).score(options.eps)


def cknna_biased(a: FeatureSpace, b: FeatureSpace, options: MetricOptions) -> float:
    """CKNNA(A, B) with biased HSIC."""
    return cknna_terms(a, b, options.k, unbiased=False).score(options.eps)


@dataclass(frozen=True)
class _OwnTerms:
    """What a space brings to all its scores: its masked kernel, and the HSIC of that with itself."""

    kernel: MaskedKernel
    hsic: float


def _own_terms(space: FeatureSpace, k: int, unbiased: bool) -> _OwnTerms:
    found = space.neighbours(k, with_self=not unbiased)
    rows = torch.arange(len(space), device=found.indices.device)
    places, order = (rows[:, None] * len(space) + found.indices).flatten().sort()
    kernel = MaskedKernel(len(space), places, found.similarities.flatten()[order])
    return _OwnTerms(kernel, kernel.sums(kernel).hsic(unbiased))
