"""CKA: centred kernel alignment, HSIC(K, L) / ( sqrt( HSIC(K, K) HSIC(L, L) ) + eps ), over all pairs of images.

Kernels are linear, or RBF exp(-|x - y|^2 / (2 sigma^2)) with sigma 1; HSIC is unbiased or biased.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evaluation.alignment.hsic import PairSums
from evaluation.alignment.metrics import MetricOptions
from evaluation.alignment.spaces import FeatureSpace, KernelRows

Kernel = Literal["linear", "rbf"]


@dataclass(frozen=True)
class CkaTerms:
    """HSIC of two kernels, and of each with itself."""

    kl: float
    kk: float
    ll: float

    def score(self, eps: float) -> float:
        """CKA; NaN where a self term is not positive."""
        return self.kl / (math.sqrt(self.kk * self.ll) + eps) if min(self.kk, self.ll) > 0 else math.nan


def cka_terms(a: FeatureSpace, b: FeatureSpace, kernel: Kernel, unbiased: bool = True) -> CkaTerms:
    """HSIC terms of CKA; kernels are made twice in blocks of rows and never held whole."""
    assert len(a) == len(b), "one row per image in both"
    n, device = len(a), a.features.device
    paired = dict.fromkeys(("kl", "kk", "ll"), torch.zeros((), dtype=torch.float64, device=device))
    sums = {name: torch.zeros(n, dtype=torch.float64, device=device) for name in "kl"}
    for k, l in zip(_kernel(a, kernel, unbiased), _kernel(b, kernel, unbiased), strict=True):
        rows = {"k": k.values.double(), "l": l.values.double()}
        for pair in paired:
            paired[pair] = paired[pair] + (rows[pair[0]] * rows[pair[1]]).sum()  # kernels are symmetric
        for name, values in rows.items():
            sums[name][k.start : k.start + len(values)] = values.sum(1)
    return CkaTerms(
        *(PairSums(n, paired[p + q], sums[p], sums[p], sums[q], sums[q]).hsic(unbiased) for p, q in ("kl", "kk", "ll"))
    )


def _kernel(space: FeatureSpace, kernel: Kernel, zero_diagonal: bool) -> Iterator[KernelRows]:
    squares = space.features.square().sum(1)
    for rows in space.linear_kernel():
        values = rows.values
        if kernel == "rbf":
            values = _rbf(values, squares[rows.start : rows.start + len(values)], squares)
        if zero_diagonal:
            values.diagonal(rows.start).zero_()
        yield KernelRows(rows.start, values)


def _rbf(products: Tensor, squares: Tensor, all_squares: Tensor) -> Tensor:
    distances = (squares[:, None] + all_squares - 2 * products).clamp(min=0)
    return torch.exp(-distances / 2)


def cka_linear(a: FeatureSpace, b: FeatureSpace, options: MetricOptions) -> float:
    """Linear CKA with unbiased HSIC."""
    return cka_terms(a, b, "linear").score(options.eps)


def cka_linear_biased(a: FeatureSpace, b: FeatureSpace, options: MetricOptions) -> float:
    """Linear CKA with biased HSIC."""
    return cka_terms(a, b, "linear", unbiased=False).score(options.eps)


def cka_rbf(a: FeatureSpace, b: FeatureSpace, options: MetricOptions) -> float:
    """RBF CKA with unbiased HSIC."""
    return cka_terms(a, b, "rbf").score(options.eps)


def cka_rbf_biased(a: FeatureSpace, b: FeatureSpace, options: MetricOptions) -> float:
    """RBF CKA with biased HSIC."""
    return cka_terms(a, b, "rbf", unbiased=False).score(options.eps)
