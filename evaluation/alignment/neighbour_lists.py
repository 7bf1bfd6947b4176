"""Metrics that compare, image by image, the two lists of its k nearest neighbours (nearest first)."""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation.alignment.metrics import MetricOptions
from evaluation.alignment.spaces import FeatureSpace

CHUNK = 2**22  # comparisons of list entries held at a time


def mutual_knn(a: FeatureSpace, b: FeatureSpace, options: MetricOptions) -> float:
    """Mean share of neighbours that are the same in both spaces: |N_A(i) and N_B(i)| / k."""
    lists_a, lists_b = _lists(a, b, options)
    shared = [_contained(x, y).sum(1) for x, y in _chunks(lists_a, lists_b)]
    return torch.cat(shared).double().mean().item() / options.k


def cycle_knn(a: FeatureSpace, b: FeatureSpace, options: MetricOptions) -> float:
    """Share of images that come back: i is among the neighbours in A of one of its neighbours in B."""
    lists_a, lists_b = _lists(a, b, options)
    rows = torch.arange(len(a), device=lists_a.device)
    back = [
        (lists_a[neighbours] == row[:, None, None]).flatten(1).any(1)
        for neighbours, row in zip(_split(lists_b), _split(rows, lists_b.shape[1]))
    ]
    return torch.cat(back).double().mean().item()


def lcs_knn(a: FeatureSpace, b: FeatureSpace, options: MetricOptions) -> float:
    """Mean length of the longest common subsequence of the two lists, 0 to k."""
    lists_a, lists_b = _lists(a, b, options)
    n, k = lists_a.shape
    previous = torch.zeros(k + 1, n, dtype=torch.int64, device=lists_a.device)  # of the first i - 1 of A, j of B
    for i in range(k):
        current = torch.zeros_like(previous)
        for j in range(k):
            same = lists_a[:, i] == lists_b[:, j]
            current[j + 1] = torch.where(same, previous[j] + 1, torch.maximum(previous[j + 1], current[j]))
        previous = current
    return previous[k].double().mean().item()


def edit_distance_knn(a: FeatureSpace, b: FeatureSpace, options: MetricOptions) -> float:
    """1 - mean Levenshtein distance of the two lists / k."""
    lists_a, lists_b = _lists(a, b, options)
    n, k = lists_a.shape
    previous = torch.arange(k + 1, device=lists_a.device)[:, None].repeat(1, n)
    for i in range(k):
        current = torch.full_like(previous, i + 1)
        for j in range(k):
            replaced = previous[j] + (lists_a[:, i] != lists_b[:, j])
            current[j + 1] = torch.minimum(replaced, torch.minimum(previous[j + 1], current[j]) + 1)
        previous = current
    return 1 - previous[k].double().mean().item() / k


def _lists(a: FeatureSpace, b: FeatureSpace, options: MetricOptions) -> tuple[Tensor, Tensor]:
    assert len(a) == len(b), "one row per image in both"
    return a.neighbours(options.k).indices, b.neighbours(options.k).indices


def _contained(x: Tensor, y: Tensor) -> Tensor:
    """Which entries of each row of x [b, k] are in the same row of y."""
    return (x[:, :, None] == y[:, None, :]).any(2)


def _split(rows: Tensor, width: int | None = None) -> tuple[Tensor, ...]:
    width = rows.shape[1] if width is None else width
    return rows.split(max(1, CHUNK // width**2))


def _chunks(x: Tensor, y: Tensor) -> zip:
    return zip(_split(x), _split(y))
