"""Inception Score (Salimans et al. 2016): how sure a classifier is of each image, and how varied the classes are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.errors import DataError

SPLIT_SIZE = 5000


class InceptionScore:
    """Mean over splits of exp(mean_i sum_c p_ic (log p_ic - log mean_i p_ic)), float64.

    Splits are consecutive images in the order in which they come, not shuffled; the last may be shorter and counts as
    much as the others, as in ADM's evaluator. Only sums are kept, so the number of images does not matter.

    Args:
        split_size: images per split.
    """

    def __init__(self, split_size: int = SPLIT_SIZE):
        self.split_size = split_size
        self.count = 0
        self._scores: list[float] = []
        self._start_split()

    def _start_split(self) -> None:
        self._in_split, self._information, self._probabilities = 0, 0.0, 0.0

    def update(self, logits: Tensor) -> None:
        """Take in the next images' logits [B, K]."""
        while len(logits):
            part, logits = logits.split_with_sizes(self._cut(len(logits)))
            log_p = part.double().log_softmax(1)
            p = log_p.exp()
            self._information += (p * log_p).sum().item()
            self._probabilities = self._probabilities + p.sum(0)
            self._in_split += len(part)
            self.count += len(part)
            if self._in_split == self.split_size:
                self._scores.append(self._score_of_split())
                self._start_split()

    def _cut(self, count: int) -> list[int]:
        taken = min(count, self.split_size - self._in_split)
        return [taken, count - taken]

    def _score_of_split(self) -> float:
        marginal = self._probabilities / self._in_split
        return math.exp(self._information / self._in_split - torch.xlogy(marginal, marginal).sum().item())

    def value(self) -> float:
        """The score of all images so far. Raises DataError if there are none."""
        if self.count == 0:
            raise DataError("an Inception Score needs at least one image, found none.")
        scores = [*self._scores, self._score_of_split()] if self._in_split else self._scores
        return math.fsum(scores) / len(scores)
