"""Class labels of class-conditional networks, with a null class for guidance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.errors import UserError


class LabelEmbedding(nn.Module):
    """Class labels [B] -> [B, D]; the last row of the table is the null class, where there is one."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


def null_label(num_classes: int, class_dropout_prob: float) -> int:
    """The label that stands for no class. Raises UserError if a network was built without one."""
    if class_dropout_prob == 0:
        raise UserError(
            "this network has no null class, which guidance and label dropout need: class_dropout_prob is 0; "
            "train one with class_dropout_prob above 0."
        )
    return num_classes


def drop_labels(y: Tensor, null_label: int, probability: float, generator: torch.Generator) -> Tensor:
    """Labels [B], of which each has become the null class with a probability, independently of the others.

    Args:
        generator: keyed by what the labels are for, so that a resumed run drops the same ones; on any device.
    """
    draws = torch.rand(y.shape, generator=generator, device=generator.device)
    return torch.where((draws < probability).to(y.device), null_label, y)
