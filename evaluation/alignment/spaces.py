"""A set of images as points of a feature space: kernels in blocks of rows, and nearest neighbours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from common.errors import UserError
from common.precision import full_precision

Value = TypeVar("Value")

BLOCK_ELEMENTS = 2**24  # of a kernel, held at a time


@dataclass(frozen=True)
class Neighbours:
    """The nearest neighbours of every image, nearest first.

    Args:
        indices: int64 [N, k].
        similarities: the kernel's values there, [N, k].
    """

    indices: Tensor
    similarities: Tensor

    def first(self, k: int) -> Neighbours:
        """The k nearest of them."""
        return Neighbours(self.indices[:, :k], self.similarities[:, :k])


@dataclass(frozen=True)
class KernelRows:
    """Rows of a kernel, from image `start` on: [b, N]."""

    start: int
    values: Tensor


class FeatureSpace:
    """Images as points with the linear kernel K = A A^T.

    Args:
        features: prepared features [N, D]; kernels have their dtype.

    Neighbours are found once for the largest number asked for, so that scores of many pairs and many k are cheap.
    Raises: UserError if there are fewer than 4 images, for which nothing here is defined.
    """

    def __init__(self, features: Tensor):
        if features.ndim != 2 or len(features) < 4:
            raise UserError(f"found features of shape {list(features.shape)}, expected [N, D] of at least 4 images.")
        self.features = features
        self._found: dict[bool, Neighbours] = {}
        self._remembered: dict[tuple, Any] = {}

    def __len__(self) -> int:
        return len(self.features)

    def subset(self, rows: Tensor) -> FeatureSpace:
        """Some of the images, prepared as they are."""
        return FeatureSpace(self.features[rows])

    def remember(self, compute: Callable[..., Value], *arguments: Hashable) -> Value:
        """compute(self, *arguments), computed once: what a space brings to its scores with all others."""
        key = (compute, *arguments)
        if key not in self._remembered:
            self._remembered[key] = compute(self, *arguments)
        return self._remembered[key]

    def linear_kernel(self) -> Iterator[KernelRows]:
        """K = A A^T in blocks of rows, in full precision."""
        block = max(1, BLOCK_ELEMENTS // len(self))
        for start in range(0, len(self), block):
            with _exact_products(self.features.device):
                yield KernelRows(start, self.features[start : start + block] @ self.features.T)

    def neighbours(self, k: int, with_self: bool = False) -> Neighbours:
        """The k images with the largest kernel values in every row.

        Args:
            with_self: an image may be its own neighbour.

        Raises: UserError if there are fewer than k candidates.
        """
        most = len(self) - (not with_self)
        if not 1 <= k <= most:
            raise UserError(f"k: found {k} neighbours among {len(self)} images, expected 1 to {most}.")
        found = self._found.get(with_self)
        if found is None or found.indices.shape[1] < k:
            found = self._found[with_self] = self._search(k, with_self)
        return found.first(k)

    def _search(self, k: int, with_self: bool) -> Neighbours:
        blocks = []
        for rows in self.linear_kernel():
            kernel = rows.values
            if not with_self:
                kernel.diagonal(rows.start).fill_(-torch.inf)
            blocks.append(kernel.topk(k, dim=1))
        return Neighbours(torch.cat([block.indices for block in blocks]), torch.cat([block.values for block in blocks]))


@contextlib.contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Matrix products of float32 without TF32 or autocast, which would change who is whose neighbour."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with full_precision(device):
            yield
    finally:
        torch.set_float32_matmul_precision(chosen)
