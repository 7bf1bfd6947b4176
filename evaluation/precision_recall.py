"""Precision and recall of generated images by neighbourhoods in feature space (Kynkaanniemi et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import DataError

NEIGHBOURS = 3
_BLOCK_ELEMENTS = 10**8  # distances held at once


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of samples near a reference image (precision), and of reference images near a sample (recall)."""

    precision: float
    recall: float


def precision_recall(
    reference: Tensor, samples: Tensor, neighbours: int = NEIGHBOURS, half: bool = False
) -> PrecisionRecall:
    """Precision and recall as ADM's evaluator defines them.

    An image is near another one if their squared distance is at most that of the other to its `neighbours`-th
    neighbour in its own set.

    Args:
        reference, samples: features [R, D] and [S, D], fp32, on one device.
        half: evaluate distances in half precision as the original does; a little less exact. Blocks in which a value
            is not finite are evaluated in fp32.
    Raises: DataError if a set has no more images than neighbours.
    """
    reference_radii = squared_radii(reference, neighbours, half)
    sample_radii = squared_radii(samples, neighbours, half)
    is_precise = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    recalled = 0
    for rows, distances in _distance_blocks(reference, samples, half):
        is_precise |= (distances <= reference_radii[rows, None]).any(0)
        recalled += (distances <= sample_radii).any(1).sum().item()
    return PrecisionRecall(is_precise.sum().item() / len(samples), recalled / len(reference))


def squared_radii(features: Tensor, neighbours: int = NEIGHBOURS, half: bool = False) -> Tensor:
    """Squared distance of each of the features [N, D] to its `neighbours`-th neighbour in their own set, [N]."""
    if len(features) <= neighbours:
        raise DataError(f"{neighbours} neighbours of each image need at least {neighbours + 1}, found {len(features)}.")
    blocks = _distance_blocks(features, features, half)
    return torch.cat([d.topk(neighbours + 1, largest=False).values[:, -1] for _, d in blocks])


def _distance_blocks(a: Tensor, b: Tensor, half: bool) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of rows of `a` to all of `b`, in blocks of rows."""
    size = max(1, _BLOCK_ELEMENTS // len(b))
    for start in range(0, len(a), size):
        rows = slice(start, start + size)
        if half:
            distances = _squared_distances(a[rows], b, torch.float16)
            if distances.isfinite().all():
                yield rows, distances.float()
                continue
        yield rows, _squared_distances(a[rows], b, torch.float32)


def _squared_distances(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """max(|a|^2 - 2 a b + |b|^2, 0) in `dtype`; only the norms are summed in fp32."""
    a, b = a.to(dtype), b.to(dtype)
    norms_a, norms_b = (x.float().square().sum(1).to(dtype) for x in (a, b))
    return (norms_a[:, None] - 2 * (a @ b.T) + norms_b).clamp(min=0)
