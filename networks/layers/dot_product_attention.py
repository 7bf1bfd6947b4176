"""Softmax attention, in the precision that is fastest on the device."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from common.precision import full_precision


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0, is_causal: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v on [B, heads, N, d].

    In fp32 on the CPU, where the bf16 kernel is several times slower on sequences of this length.

    Args:
        mask: boolean, broadcasts to [B, heads, N_q, N_k]; True where a query may attend to a key.
        dropout: how often a weight becomes 0 and the others grow to make up for it.
        is_causal: instead of a mask: query n attends to keys 0 to n.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
    with full_precision(q.device):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, dropout, is_causal)
