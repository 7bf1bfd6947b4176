"""The objective of autoregressive models."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens [B, N] under their logits [B, N, V], scalar in nats per token."""
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
