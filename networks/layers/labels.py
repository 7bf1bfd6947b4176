"""Class labels of class-conditional networks, with a null class for guidance."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LabelEmbedding(nn.Module):
    """Class labels [B] -> [B, D]; the last row of the table is the null class, where there is one."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


def drop_labels(y: Tensor, null_label: int, probability: float, generator: torch.Generator) -> Tensor:
    """Labels [B], of which each has become the null class with a probability, independently of the others.

    Args:
        generator: keyed by what the labels are for, so that a resumed run drops the same ones; on any device.
    """
    draws = torch.rand(y.shape, generator=generator, device=generator.device)
    return torch.where((draws < probability).to(y.device), null_label, y)
