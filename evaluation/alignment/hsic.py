"""The Hilbert-Schmidt independence criterion of two n x n matrices P, Q, from sums over them.

    unbiased   [ sum_ij P_ij Q_ji + (sum P)(sum Q) / ((n-1)(n-2)) - 2/(n-2) sum_ij (PQ)_ij ] / (n (n-3))
    biased     tr(P H Q H),  H = I - 1/n

The unbiased form takes matrices whose diagonals are zero. P and Q need not be symmetric: each entry is paired with the
transposed one of the other matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PairSums:
    """Sums over two n x n matrices, in float64.

    Args:
        size: n.
        paired: sum_ij P_ij Q_ji.
        rows_p, columns_p: sums of the rows and of the columns of P, [n].
        rows_q, columns_q: those of Q.
    """

    size: int
    paired: Tensor
    rows_p: Tensor
    columns_p: Tensor
    rows_q: Tensor
    columns_q: Tensor

    def hsic(self, unbiased: bool = True) -> float:
        """HSIC(P, Q)."""
        n = self.size
        product = self.columns_p @ self.rows_q  # sum_ij (PQ)_ij
        totals = self.rows_p.sum() * self.rows_q.sum()
        if unbiased:
            value = (self.paired + totals / ((n - 1) * (n - 2)) - 2 / (n - 2) * product) / (n * (n - 3))
        else:
            value = self.paired - (product + self.columns_q @ self.rows_p) / n + totals / n**2
        return value.item()


@dataclass(frozen=True)
class MaskedKernel:
    """A sparse n x n matrix: the entries of a kernel that a mask leaves.

    Args:
        size: n.
        places: row * n + column of each entry, int64, ascending.
        values: the entries.
    """

    size: int
    places: Tensor
    values: Tensor

    def at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Where these places have an entry (a mask), and the entries that are there."""
        position = torch.searchsorted(self.places, places).clamp(max=len(self.places) - 1)
        there = self.places[position] == places
        return there, self.values[position[there]]

    def common(self, other: MaskedKernel) -> tuple[MaskedKernel, MaskedKernel]:
        """Both matrices with only the places at which each has an entry."""
        there, values = other.at(self.places)
        places = self.places[there]
        return MaskedKernel(self.size, places, self.values[there]), MaskedKernel(self.size, places, values)

    def sums(self, other: MaskedKernel) -> PairSums:
        """What the HSIC with another matrix needs; O(entries) up to a logarithm."""
        rows, columns = self.places // self.size, self.places % self.size
        there, transposed = other.at(columns * self.size + rows)
        paired = (self.values[there].double() * transposed.double()).sum()
        return PairSums(self.size, paired, _sum_by(self, rows), _sum_by(self, columns), *other.row_and_column_sums())

    def row_and_column_sums(self) -> tuple[Tensor, Tensor]:
        """[n] each, float64."""
        return _sum_by(self, self.places // self.size), _sum_by(self, self.places % self.size)


def _sum_by(kernel: MaskedKernel, indices: Tensor) -> Tensor:
    sums = torch.zeros(kernel.size, dtype=torch.float64, device=kernel.values.device)
    return sums.index_add_(0, indices, kernel.values.double())
