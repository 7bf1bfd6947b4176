"""The label of a sample, keyed by seed and number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from common.random import python_generator

LabelChoice = Literal["random", "balanced"]


def sample_labels(indices: Sequence[int], classes: Sequence[int], choice: LabelChoice, seed: int) -> Tensor:
    """Labels [B], int64, of samples with these numbers.

    Args:
        choice: "random" draws each from the classes, as the published samples are; "balanced" takes them in turn, so
            that any number of samples has every class equally often, give or take one.
    """
    if choice == "balanced":
        return torch.tensor([classes[index % len(classes)] for index in indices])
    return torch.tensor([python_generator(seed, "sample_label", index).choice(classes) for index in indices])
