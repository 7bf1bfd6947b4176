"""Causal self-attention, as both of VFMTok's transformers have it."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from networks.layers.dot_product_attention import attend


class CausalSelfAttention(nn.Module):
    """Multi-head attention of every token to itself and those before it.

    Args:
        width, heads: of the tokens.
        dropout: probability of dropping an attention weight in training.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        q, k, v = (
            rearrange(layer(x), "b n (g d) -> b g n d", g=self.heads) for layer in (self.query, self.key, self.value)
        )
        attended = attend(q, k, v, is_causal=True, dropout=self.dropout if self.training else 0.0)
        return self.output(rearrange(attended, "b g n d -> b n (g d)").to(x.dtype))
